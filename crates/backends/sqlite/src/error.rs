//! From the driver's errors to the store's.

use mainstay_store::{Error, ErrorKind};
use rusqlite::ErrorCode;

/// Classifies a driver error of a statement that was rolled back or never wrote.
pub(crate) fn store_error(e: rusqlite::Error) -> Error {
    let kind = match e.sqlite_error_code() {
        // Only damage puts another type into a column than was written there.
        None if matches!(
            e,
            rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::Utf8Error(..)
        ) =>
        {
            ErrorKind::Corrupt
        }
        Some(ErrorCode::DiskFull) => ErrorKind::Full,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ErrorKind::Corrupt,
        Some(ErrorCode::TooBig) => ErrorKind::TooLarge,
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::ReadOnly,
        ) => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    let text = match kind {
        ErrorKind::Full => "the disk or the file's page limit is full",
        ErrorKind::Corrupt => "the database file is damaged",
        ErrorKind::Unavailable => "the database file cannot be used now",
        _ => "a statement failed",
    };
    Error::new(kind, text).with_source(e)
}

/// Whether the system could not make something durable: trying again would prove nothing.
pub(crate) fn sync_failed(e: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_IOERR_DIR_FSYNC, SQLITE_IOERR_FSYNC};
    let code = e.sqlite_error().map(|e| e.extended_code);
    matches!(code, Some(SQLITE_IOERR_FSYNC | SQLITE_IOERR_DIR_FSYNC))
}

pub(crate) fn corrupt(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, text)
}
