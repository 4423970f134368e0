//! The one error of this crate.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use mainstay_store::Outcome;

/// What went wrong, for callers that branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller broke the contract.
    ApiMisuse,
    /// The action is not legal in the saga's state, or the state changed since it was looked at.
    Conflict,
    /// A definition or a configuration was refused.
    Config,
    /// The same id or key was used with another input.
    InputConflict,
    /// A bug of ours.
    Internal,
    /// No such saga, definition or step.
    NotFound,
    /// The engine is at its bound or shutting down.
    Overloaded,
    /// The store failed.
    Store,
    /// A payload exceeds a limit.
    TooLarge,
}

/// A failed saga call.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    outcome: Outcome,
    retry_after: Option<Duration>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error that left no effect.
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), outcome: Outcome::NotApplied, retry_after: None, source: None }
    }

    /// The same error with advice when to come back.
    pub(crate) fn with_retry_after(mut self, d: Duration) -> Self {
        self.retry_after = Some(d);
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the call took effect.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::Overloaded | ErrorKind::Store)
    }

    /// When to come back, if known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// A stable name of the kind.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self.kind {
            ErrorKind::ApiMisuse => "saga_api_misuse",
            ErrorKind::Config => "saga_config",
            ErrorKind::Conflict => "saga_conflict",
            ErrorKind::InputConflict => "saga_input_conflict",
            ErrorKind::Internal => "saga_internal",
            ErrorKind::NotFound => "saga_not_found",
            ErrorKind::Overloaded => "saga_overloaded",
            ErrorKind::Store => "saga_store",
            ErrorKind::TooLarge => "saga_too_large",
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

impl From<mainstay_store::Error> for Error {
    fn from(e: mainstay_store::Error) -> Self {
        let kind = match e.kind() {
            mainstay_store::ErrorKind::TooLarge => ErrorKind::TooLarge,
            _ => ErrorKind::Store,
        };
        Self {
            kind,
            context: "the journal failed".to_owned(),
            outcome: e.outcome(),
            retry_after: e.retry_after(),
            source: Some(Box::new(e)),
        }
    }
}
