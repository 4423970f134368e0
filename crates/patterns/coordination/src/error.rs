//! What can go wrong, so that a caller can tell held by another, unreachable and lost apart.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use mainstay_store::lease::Since;
use mainstay_store::{Answered, Outcome};

/// Why a right ended while it was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// The deadline came near and no renewal had succeeded: the work has to stop now, by its own clock.
    DeadlinePassed,
    /// Somebody ended it by force: an operator, with `lease break` or in the console.
    Forced,
    /// It was held for as long as [`max_hold`](crate::lock::Builder::max_hold) allows.
    HeldTooLong,
    /// It was bound to a session or a connection, and that is over.
    SessionClosed,
    /// The store lost state: it was restored from a backup or lost a disk, and the newest token that it knows is older
    /// than this one. What it grants next may be refused by resources that saw this one: raise its epoch.
    StoreRegressed,
    /// The store says that it is no longer ours: it ran out or was taken over, or was ended by force on a store that does
    /// not remember that.
    TakenOver,
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DeadlinePassed => "its deadline passed without a renewal",
            Self::Forced => "it was ended by force",
            Self::HeldTooLong => "it was held longer than allowed",
            Self::SessionClosed => "the session that it was bound to is over",
            Self::StoreRegressed => "the store lost state: all that it knows is older",
            Self::TakenOver => "the store no longer knows it as ours",
        })
    }
}

/// What went wrong, for callers that branch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller broke the contract.
    ApiMisuse,
    /// A member died while others waited, and the barrier was built to break then.
    Broken {
        /// Who died.
        dead: Vec<String>,
    },
    /// The others use this name with another size.
    ConfigMismatch,
    /// Somebody else holds it, and the caller did not want to wait.
    Contended {
        /// The owner that stands in the way.
        holder: String,
        /// How long its lease still lasts without renewal, if the store can tell.
        remaining: Option<Duration>,
        /// Since when it holds it, if it holds it and anybody wrote that down: for people, nothing is decided by it.
        since: Option<Since>,
    },
    /// The grant arrived so late that its deadline had passed; it was given back.
    Expired,
    /// A right that was held is gone.
    Lost(LossReason),
    /// The system gave no thread to work on; nothing ran.
    NoThread,
    /// The store answered, and what it says of itself stands in the way: data that is damaged, written by a newer
    /// version or too large, a full disk, another process that has it, a bug. Only a full one is worth another try.
    Store(mainstay_store::ErrorKind),
    /// The store granted a smaller token than one that this process had seen before it asked, or knows by itself that it
    /// went back: it lost state.
    StoreRegressed,
    /// The wait ended and somebody else still held it.
    TimedOut {
        /// The owner that stood in the way at last, if the store says it to those who stand in line.
        holder: Option<String>,
    },
    /// The store could not be asked; of a store on several servers [`Error::answered`] counts those that answered.
    Unreachable,
    /// The store cannot do that.
    Unsupported,
}

/// A failed call of a lock or an election.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    outcome: Outcome,
    source: Option<Box<mainstay_store::Error>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), outcome: Outcome::NotApplied, source: None }
    }

    pub(crate) fn lost(name: &str, reason: LossReason) -> Self {
        Self::new(ErrorKind::Lost(reason), format!("`{name}` is lost: {reason}"))
    }

    /// What the store said, under the kind that its own kind means here.
    pub(crate) fn store(name: &str, source: mainstay_store::Error) -> Self {
        let kind = match source.kind() {
            mainstay_store::ErrorKind::ApiMisuse => ErrorKind::ApiMisuse,
            mainstay_store::ErrorKind::ConfigMismatch => ErrorKind::ConfigMismatch,
            mainstay_store::ErrorKind::Regressed => ErrorKind::StoreRegressed,
            mainstay_store::ErrorKind::Unsupported => ErrorKind::Unsupported,
            mainstay_store::ErrorKind::Unavailable => ErrorKind::Unreachable,
            other => ErrorKind::Store(other),
        };
        // It says by itself what is wrong, and with what.
        if kind == ErrorKind::ConfigMismatch {
            return Self::new(kind, source.to_string());
        }
        let outcome = source.outcome();
        Self {
            kind,
            context: format!("`{name}`: the lease store failed"),
            outcome,
            source: Some(Box::new(source)),
        }
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Whether the call took effect. `Unknown` means that a lease may exist until its ttl is over; it is
    /// given back in the background.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        use ErrorKind::{ApiMisuse, ConfigMismatch, Store, StoreRegressed, Unsupported};
        match self.kind {
            ApiMisuse | ConfigMismatch | StoreRegressed | Unsupported => false,
            // It knows best.
            Store(_) => self.source.as_ref().is_some_and(|e| e.is_retryable()),
            _ => true,
        }
    }

    /// When to come back, if known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match &self.kind {
            ErrorKind::Contended { remaining, .. } => *remaining,
            _ => self.source.as_ref().and_then(|e| e.retry_after()),
        }
    }

    /// How many servers answered, of a store that needs the answers of several.
    #[must_use]
    pub fn answered(&self) -> Option<Answered> {
        self.source.as_ref().and_then(|e| e.answered())
    }

    /// A stable name of the kind.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self.kind {
            ErrorKind::ApiMisuse => "lock_api_misuse",
            ErrorKind::Broken { .. } => "lock_broken",
            ErrorKind::ConfigMismatch => "lock_config_mismatch",
            ErrorKind::Contended { .. } => "lock_contended",
            ErrorKind::Expired => "lock_expired",
            ErrorKind::Lost(_) => "lock_lost",
            ErrorKind::Store(mainstay_store::ErrorKind::Corrupt) => "lock_store_corrupt",
            ErrorKind::Store(mainstay_store::ErrorKind::Full) => "lock_store_full",
            ErrorKind::Store(mainstay_store::ErrorKind::NewerVersion) => "lock_store_newer_version",
            ErrorKind::Store(mainstay_store::ErrorKind::Occupied) => "lock_store_occupied",
            ErrorKind::Store(mainstay_store::ErrorKind::TooLarge) => "lock_store_too_large",
            ErrorKind::Store(_) => "lock_store_failed",
            ErrorKind::NoThread => "lock_no_thread",
            ErrorKind::StoreRegressed => "lock_store_regressed",
            ErrorKind::TimedOut { .. } => "lock_timed_out",
            ErrorKind::Unreachable => "lock_unreachable",
            ErrorKind::Unsupported => "lock_unsupported",
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
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}
