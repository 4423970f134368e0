//! Errors.

use std::error::Error as StdError;
use std::fmt;

pub use mainstay_clock::ConfigError;
use mainstay_store::Outcome;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A change was refused by the replicated type.
    Change,
    /// The node was stopped.
    Closed,
    /// A setting is not allowed.
    Config,
    /// A snapshot is damaged: it was not written by this program, or not completely.
    Damaged,
    /// A snapshot belongs to another cluster or another member.
    Foreign,
    /// Another process uses the same file.
    InUse,
    /// A snapshot was written by a newer version.
    Newer,
    /// Sockets cannot be opened.
    Socket,
    /// A snapshot cannot be read or written.
    Store,
}

/// A refused call.
///
/// Guarantees: nothing was changed, unless [`outcome`](Error::outcome) says that nobody knows.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    pub(crate) fn with(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether it happened.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        if self.kind == ErrorKind::Store { Outcome::Unknown } else { Outcome::NotApplied }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::InUse | ErrorKind::Socket | ErrorKind::Store)
    }

    /// A stable name of the kind.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self.kind {
            ErrorKind::Change => "gossip_change",
            ErrorKind::Closed => "gossip_closed",
            ErrorKind::Config => "gossip_config",
            ErrorKind::Damaged => "gossip_damaged",
            ErrorKind::Foreign => "gossip_foreign",
            ErrorKind::InUse => "gossip_in_use",
            ErrorKind::Newer => "gossip_newer",
            ErrorKind::Socket => "gossip_socket",
            ErrorKind::Store => "gossip_store",
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

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::new(ErrorKind::Config, "the configuration was refused").with(error)
    }
}

impl From<mainstay_consistency::Error> for Error {
    fn from(error: mainstay_consistency::Error) -> Self {
        Self::new(ErrorKind::Change, "the change was refused").with(error)
    }
}

impl From<mainstay_store::Error> for Error {
    fn from(error: mainstay_store::Error) -> Self {
        let kind = match error.kind() {
            mainstay_store::ErrorKind::Occupied => ErrorKind::InUse,
            mainstay_store::ErrorKind::Corrupt => ErrorKind::Damaged,
            _ => ErrorKind::Store,
        };
        Self::new(kind, "the snapshot could not be read or written").with(error)
    }
}
