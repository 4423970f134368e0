//! The errors of this crate.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

pub use mainstay_clock::ConfigError;
use mainstay_store::Outcome;

/// The result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, for callers that branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The wall clock runs behind the newest stamp by more than the allowed skew.
    ClockBehind {
        /// By how much.
        behind: Duration,
    },
    /// The wall clock jumped ahead of the monotonic one by more than the allowed skew.
    ClockJump {
        /// By how much.
        ahead: Duration,
    },
    /// A configuration was refused; the source is the [`ConfigError`].
    Config,
    /// Changes of this actor exist that it did not make.
    DuplicateActor,
    /// An actor was used with a second value.
    ForeignActor,
    /// A context of another key or cluster.
    ForeignContext,
    /// A session's token is of another store.
    ForeignToken,
    /// A bounded queue is full; the same call may succeed later.
    Full,
    /// Positions that no token can hold together.
    Incomparable,
    /// Input that is no encoding of the wanted type.
    Malformed,
    /// Not enough rights left for a bounded counter.
    NoRights {
        /// How many there are.
        have: u64,
        /// How many were asked for.
        need: u64,
    },
    /// A place that is not in a text or list, or a name of the wrong length.
    OutOfBounds {
        /// The place, or the length of the name.
        at: usize,
        /// Where it ends, or how long a name may be.
        len: usize,
    },
    /// A count left its range.
    Overflow,
    /// A stamp from further ahead than the allowed skew.
    Skew {
        /// How far ahead of the wall clock.
        ahead: Duration,
    },
    /// The store of a durable value failed; the source is its error.
    Store,
    /// Data nested deeper than allowed.
    TooDeep,
    /// One change does not fit into a message.
    TooLarge,
    /// More siblings than a client may leave behind.
    TooManySiblings {
        /// How many there would be.
        count: usize,
    },
    /// Two replicas hold different types under one key.
    TypeMismatch,
    /// No node answers that may; the same call may succeed later.
    Unavailable,
    /// No stamp may be handed out before the next bound is durable.
    Unbounded,
    /// What a session read is not provably in the present history.
    Unproven,
    /// What a session wrote or read is no ancestor of the present history: a failover lost it.
    WriteLost,
}

/// A refused change, merge or reading.
///
/// Guarantees: nothing was changed, except that after [`ErrorKind::Store`] the [`outcome`](Error::outcome) of the
/// store counts.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Source>,
}

#[derive(Debug)]
enum Source {
    Config(ConfigError),
    Store(mainstay_store::Error),
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    pub(crate) fn malformed(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Malformed, context)
    }

    pub(crate) fn unavailable(context: impl Into<String>, source: Option<mainstay_store::Error>) -> Self {
        Self { kind: ErrorKind::Unavailable, context: context.into(), source: source.map(Source::Store) }
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the call took effect: it never did, unless a store says otherwise.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match &self.source {
            Some(Source::Store(error)) => error.outcome(),
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match &self.source {
            Some(Source::Store(error)) => error.is_retryable(),
            _ => matches!(
                self.kind,
                ErrorKind::ClockBehind { .. }
                    | ErrorKind::Full
                    | ErrorKind::NoRights { .. }
                    | ErrorKind::Skew { .. }
                    | ErrorKind::Unavailable
                    | ErrorKind::Unbounded
            ),
        }
    }

    /// When to come back, if that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match (&self.source, self.kind) {
            (Some(Source::Store(error)), _) => error.retry_after(),
            (_, ErrorKind::Skew { ahead } | ErrorKind::ClockBehind { behind: ahead }) => Some(ahead),
            _ => None,
        }
    }

    /// A stable name of the kind.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self.kind {
            ErrorKind::ClockBehind { .. } => "consistency_clock_behind",
            ErrorKind::ClockJump { .. } => "consistency_clock_jump",
            ErrorKind::Config => "consistency_config",
            ErrorKind::DuplicateActor => "consistency_duplicate_actor",
            ErrorKind::ForeignActor => "consistency_foreign_actor",
            ErrorKind::ForeignContext => "consistency_foreign_context",
            ErrorKind::ForeignToken => "consistency_foreign_token",
            ErrorKind::Full => "consistency_full",
            ErrorKind::Incomparable => "consistency_incomparable",
            ErrorKind::Malformed => "consistency_malformed",
            ErrorKind::NoRights { .. } => "consistency_no_rights",
            ErrorKind::OutOfBounds { .. } => "consistency_out_of_bounds",
            ErrorKind::Overflow => "consistency_overflow",
            ErrorKind::Skew { .. } => "consistency_skew",
            ErrorKind::Store => "consistency_store",
            ErrorKind::TooDeep => "consistency_too_deep",
            ErrorKind::TooLarge => "consistency_too_large",
            ErrorKind::TooManySiblings { .. } => "consistency_too_many_siblings",
            ErrorKind::TypeMismatch => "consistency_type_mismatch",
            ErrorKind::Unavailable => "consistency_unavailable",
            ErrorKind::Unbounded => "consistency_unbounded",
            ErrorKind::Unproven => "consistency_unproven",
            ErrorKind::WriteLost => "consistency_write_lost",
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
        match &self.source {
            Some(Source::Config(error)) => Some(error),
            Some(Source::Store(error)) => Some(error),
            None => None,
        }
    }
}

impl From<ConfigError> for Error {
    fn from(source: ConfigError) -> Self {
        let context = "the configuration was refused".to_owned();
        Self { kind: ErrorKind::Config, context, source: Some(Source::Config(source)) }
    }
}

impl From<mainstay_store::Error> for Error {
    fn from(source: mainstay_store::Error) -> Self {
        let context = "a durable value could not be read or written".to_owned();
        Self { kind: ErrorKind::Store, context, source: Some(Source::Store(source)) }
    }
}
