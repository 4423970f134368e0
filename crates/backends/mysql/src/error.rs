//! From the driver's errors to the store's, and refused settings.

use mainstay_store::{Error, ErrorKind, Outcome};

/// The error of a statement. What the server refused has no effect of its own; what it did not answer may have.
pub(crate) fn called(server: &str, error: mysql_async::Error) -> Error {
    let (kind, outcome, text) = match &error {
        mysql_async::Error::Server(e) => (refused(e.code), Outcome::NotApplied, "refused a statement"),
        _ => (ErrorKind::Unavailable, Outcome::Unknown, "broke the connection"),
    };
    Error::new(kind, format!("mysql {server} {text}")).with_outcome(outcome).with_source(error)
}

/// The error of a connection that could not be made.
pub(crate) fn unreachable(server: &str, error: mysql_async::Error) -> Error {
    let kind = match &error {
        mysql_async::Error::Server(e) => refused(e.code),
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("mysql {server} cannot be reached")).with_source(error)
}

/// The error of a statement that was not answered in time.
pub(crate) fn late(server: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("mysql {server} did not answer in time"))
        .with_outcome(Outcome::Unknown)
}

/// Numbers from the reference of server errors that MySQL and MariaDB share.
fn refused(code: u16) -> ErrorKind {
    match code {
        // Access denied: user, database, privilege.
        1044 | 1045 | 1142 | 1227 => ErrorKind::Unsupported,
        // Too many connections, shutting down, read-only, deadlock, lock wait.
        1040 | 1053 | 1205 | 1213 | 1290 | 1792 | 1836 => ErrorKind::Unavailable,
        1021 | 1114 => ErrorKind::Full,
        _ => ErrorKind::Internal,
    }
}
