//! The one error of all stores.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

pub use mainstay_clock::ConfigError;

/// Whether an operation took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(clippy::exhaustive_enums, reason = "there is no fourth answer")]
pub enum Outcome {
    /// It took effect; only the reply is unusable.
    Applied,
    /// It certainly did not take effect.
    NotApplied,
    /// It may have taken effect, now or later.
    Unknown,
}

/// What went wrong, for callers that branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller broke the contract.
    ApiMisuse,
    /// Others use the same name with other settings.
    ConfigMismatch,
    /// Stored data fails its checksum or its schema.
    Corrupt,
    /// The disk or the quota is full.
    Full,
    /// A bug of ours.
    Internal,
    /// The store was written by a newer version than this one.
    NewerVersion,
    /// The store is held by another process.
    Occupied,
    /// The store knows less than it did: it was restored from a backup, replaced, or lost what it had acknowledged.
    Regressed,
    /// A value exceeds a limit.
    TooLarge,
    /// The store cannot be reached or is shutting down.
    Unavailable,
    /// The store cannot do that.
    Unsupported,
}

/// How many servers answered a call that several had to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "two counts")]
pub struct Answered {
    /// So many did.
    pub answered: u16,
    /// So many would have been enough.
    pub needed: u16,
}

/// A failed store call.
///
/// [`Error::outcome`] says whether the operation took effect; never derive that from the text.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    outcome: Outcome,
    context: String,
    retry_after: Option<Duration>,
    answered: Option<Answered>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` that left no effect. Say otherwise with [`Error::with_outcome`].
    #[must_use]
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        let context = context.into();
        Self { kind, outcome: Outcome::NotApplied, context, retry_after: None, answered: None, source: None }
    }

    /// The same error with another outcome.
    #[must_use]
    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    /// The same error with its cause.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// The same error with advice when to come back.
    #[must_use]
    pub fn with_retry_after(mut self, d: Duration) -> Self {
        self.retry_after = Some(d);
        self
    }

    /// The same error with how many servers of several answered.
    #[must_use]
    pub fn with_answered(mut self, answered: usize, needed: usize) -> Self {
        // Small, for every error of every store carries it.
        let small = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        self.answered = Some(Answered { answered: small(answered), needed: small(needed) });
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the operation took effect.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::Full | ErrorKind::Unavailable)
    }

    /// When to come back, if the store said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// How many servers answered, of a store that needs the answers of several.
    #[must_use]
    pub fn answered(&self) -> Option<Answered> {
        self.answered
    }

    /// A stable name of the kind.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self.kind {
            ErrorKind::ApiMisuse => "store_api_misuse",
            ErrorKind::ConfigMismatch => "store_config_mismatch",
            ErrorKind::Corrupt => "store_corrupt",
            ErrorKind::Full => "store_full",
            ErrorKind::Internal => "store_internal",
            ErrorKind::NewerVersion => "store_newer_version",
            ErrorKind::Occupied => "store_occupied",
            ErrorKind::Regressed => "store_regressed",
            ErrorKind::TooLarge => "store_too_large",
            ErrorKind::Unavailable => "store_unavailable",
            ErrorKind::Unsupported => "store_unsupported",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.context)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}
