//! From the driver's errors to the store's, and refused settings.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use mainstay_store::{Error, ErrorKind, Outcome};
use redis::RedisError;

use crate::tls::is_distrust;

/// What is wrong when a server refused a command; a refused script has changed nothing.
fn refused(code: &str) -> (ErrorKind, &'static str) {
    match code {
        "LOADING" => (ErrorKind::Unavailable, "is still loading its data"),
        "BUSY" => (ErrorKind::Unavailable, "is busy with a script of somebody else"),
        "READONLY" | "MASTERDOWN" => (ErrorKind::Unavailable, "is a replica and takes no writes"),
        "CLUSTERDOWN" | "MOVED" | "ASK" | "TRYAGAIN" => {
            (ErrorKind::Unavailable, "is part of a cluster and does not serve this key")
        }
        "MISCONF" | "NOREPLICAS" => (ErrorKind::Unavailable, "refuses writes until it can keep them"),
        "OOM" => (ErrorKind::Full, "has used the memory it may use"),
        "NOAUTH" | "WRONGPASS" | "NOPERM" => (ErrorKind::Unsupported, "does not allow this user to do that"),
        "WRONGTYPE" => (ErrorKind::Corrupt, "has a value of another type under a key of this store"),
        _ => (ErrorKind::Internal, "refused a command"),
    }
}

/// The error of a command that `node` answered with an error.
pub(crate) fn by_server(node: &str, error: &redis::ServerError) -> Error {
    let (kind, text) = refused(error.code());
    Error::new(kind, format!("redis {node} {text}: {} {}", error.code(), error.details().unwrap_or_default()))
}

/// The same, from the driver's error.
pub(crate) fn refused_by(node: &str, error: RedisError) -> Error {
    let (kind, text) = refused(error.code().unwrap_or_default());
    Error::new(kind, format!("redis {node} {text}")).with_source(error)
}

/// The error of a command that may have reached `node`.
pub(crate) fn sent(node: &str, error: RedisError) -> Error {
    let text = if error.is_timeout() { "did not answer in time" } else { "broke the connection" };
    Error::new(ErrorKind::Unavailable, format!("redis {node} {text}"))
        .with_outcome(Outcome::Unknown)
        .with_source(error)
}

/// The error of a command that may have reached `node`, of which nothing was heard in its time.
pub(crate) fn unheard(node: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("redis {node} did not answer in time"))
        .with_outcome(Outcome::Unknown)
}

/// One error that several callers are told.
#[derive(Debug)]
struct Shared(Arc<Error>);

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.source().map_or(Ok(()), |cause| fmt::Display::fmt(cause, f))
    }
}

impl StdError for Shared {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source().and_then(StdError::source)
    }
}

/// The same error for one more caller.
pub(crate) fn again(error: &Arc<Error>) -> Error {
    let mut one = Error::new(error.kind(), error.to_string()).with_outcome(error.outcome());
    if let Some(left) = error.retry_after() {
        one = one.with_retry_after(left);
    }
    if error.source().is_some() { one.with_source(Shared(Arc::clone(error))) } else { one }
}

/// The error of a connection that could not be made.
pub(crate) fn unreachable(node: &str, error: RedisError) -> Error {
    let kind = match error.code() {
        Some(code) => refused(code).0,
        None if error.kind() == redis::ErrorKind::AuthenticationFailed => ErrorKind::Unsupported,
        None if is_distrust(&error) => ErrorKind::Unsupported,
        None => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("redis {node} cannot be reached")).with_source(error)
}

/// A reply that no version of our scripts gives.
pub(crate) fn garbled(node: &str, reply: &impl fmt::Debug) -> Error {
    Error::new(ErrorKind::Internal, format!("redis {node} answered what no script of ours does: {reply:?}"))
        .with_outcome(Outcome::Unknown)
}
