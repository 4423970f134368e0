//! Why a read or a write has no result.

use std::fmt;

use crate::error::{Error, ErrorKind};

/// Why a read or a write has no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError<E> {
    /// The closure failed.
    Inner(E),
    /// The session refused, before the closure ran or, for [`ErrorKind::Unavailable`], because the server was
    /// restarted under a read.
    Refused(Error),
}

impl<E> CallError<E> {
    /// Whether what the session knows was lost in a failover.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Refused(error) if error.kind() == ErrorKind::WriteLost)
    }
}

impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inner(error) => error.fmt(f),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for CallError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Inner(error) => error.source(),
            Self::Refused(error) => std::error::Error::source(error),
        }
    }
}

impl<E> From<Error> for CallError<E> {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}
