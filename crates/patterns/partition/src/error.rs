//! The errors of this crate.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

pub use mainstay_clock::ConfigError;
use mainstay_store::Outcome;

/// What went wrong, for callers that branch. The variants name the missing thing.
///
/// | kind | what to do |
/// |---|---|
/// | `AllFull` | shed or queue the call; room comes back with the leases |
/// | `Guarded` | look at the discovery; offer the change again, or force it |
/// | `InProgress`, `NotAcknowledged` | wait for the members, or excuse those whose leases have ended |
/// | `StaleEpoch` | fetch the newer topology and route again |
/// | `StaleToken` | stop: another coordinator has taken over |
/// | `Conflict` | raise an alarm: two parties disagree on one epoch |
/// | `TooFewNodes`, `TooFewZones` | ask for less, or bring nodes back; nothing shorter is given |
/// | `Config`, `ApiMisuse` | mend the caller; the text names the field or the call |
/// | `Internal` | report it |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Every node is at its bound.
    AllFull,
    /// The caller broke the contract.
    ApiMisuse,
    /// A configuration was refused; the source is the [`ConfigError`].
    Config,
    /// The same epoch came with another fingerprint.
    Conflict,
    /// A change drops so much that it must be seen more often in a row, or be forced.
    Guarded {
        /// How often it was seen in a row.
        seen: u32,
        /// How often it must be.
        hold: u32,
    },
    /// Another change is prepared and not yet decided.
    InProgress,
    /// A bug of ours.
    Internal,
    /// Members have neither acknowledged the change nor been excused.
    NotAcknowledged {
        /// How many.
        missing: usize,
    },
    /// The epoch is lower than one already seen.
    StaleEpoch {
        /// The highest epoch seen.
        seen: u64,
        /// The epoch that came.
        got: u64,
    },
    /// The fencing token is lower than one already seen.
    StaleToken,
    /// Fewer distinct nodes than asked for.
    TooFewNodes {
        /// How many there are.
        have: usize,
        /// How many were asked for.
        need: usize,
    },
    /// Fewer distinct zones than asked for.
    TooFewZones {
        /// How many there are.
        have: usize,
        /// How many were asked for.
        need: usize,
    },
}

/// A placement question without an answer, or a refused change.
///
/// Nothing in this crate reaches outside the process: [`Error::outcome`] is always
/// [`Outcome::NotApplied`].
/// ```
/// use mainstay_partition::{Bounded, ErrorKind, Load, Node, Ring};
///
/// let ring = Ring::builder().nodes([Node::new("a")]).build()?;
/// let one = Bounded::new(ring, Load::default().hard_limit(1))?;
/// let lease = one.acquire(b"k")?;
/// let full = one.acquire(b"k").unwrap_err();
/// assert_eq!((full.kind(), full.code()), (ErrorKind::AllFull, "partition_all_full"));
/// assert!(full.is_retryable(), "room comes back");
/// # drop(lease);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<ConfigError>,
}

impl Error {
    /// An error of `kind`; `context` is the text for people.
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the call took effect: it never did.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::NotApplied
    }

    /// Whether the same call may succeed later without a new topology.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use mainstay_clock::SystemClock;
    /// use mainstay_partition::{Node, Ring, topology::{Guard, Topology}};
    ///
    /// let ring = |id: &str| Ring::builder().nodes([Node::new(id)]).build().map(Arc::new);
    /// let topology = Topology::new(2, ring("a")?, Arc::new(SystemClock::new()));
    /// let change = topology.prepare(ring("b")?, &Guard::new().force())?;
    /// let second = topology.prepare(ring("c")?, &Guard::new().force()).unwrap_err();
    /// assert!(second.is_retryable(), "the first one will be decided");
    /// let late = topology.observe(1, ring("c")?).unwrap_err();
    /// assert!(!late.is_retryable(), "that epoch is over for good");
    /// # drop(change);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::AllFull
                | ErrorKind::Guarded { .. }
                | ErrorKind::InProgress
                | ErrorKind::NotAcknowledged { .. }
        )
    }

    /// When to come back; unknown here.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        None
    }

    /// A stable name of the kind.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self.kind {
            ErrorKind::AllFull => "partition_all_full",
            ErrorKind::ApiMisuse => "partition_api_misuse",
            ErrorKind::Config => "partition_config",
            ErrorKind::Conflict => "partition_conflict",
            ErrorKind::Guarded { .. } => "partition_guarded",
            ErrorKind::InProgress => "partition_in_progress",
            ErrorKind::Internal => "partition_internal",
            ErrorKind::NotAcknowledged { .. } => "partition_not_acknowledged",
            ErrorKind::StaleEpoch { .. } => "partition_stale_epoch",
            ErrorKind::StaleToken => "partition_stale_token",
            ErrorKind::TooFewNodes { .. } => "partition_too_few_nodes",
            ErrorKind::TooFewZones { .. } => "partition_too_few_zones",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|e| e as &(dyn StdError + 'static))
    }
}

impl From<ConfigError> for Error {
    fn from(source: ConfigError) -> Self {
        Self { kind: ErrorKind::Config, context: "the placement was refused".into(), source: Some(source) }
    }
}
