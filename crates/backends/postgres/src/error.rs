//! From the driver's errors to the store's.

use mainstay_store::{Error, ErrorKind, Outcome};
use tokio_postgres::error::{Severity, SqlState};

/// Classifies a failed statement.
///
/// An error that the server answered and that leaves the session undid the statement. One that ends the session,
/// or no answer at all, leaves open whether a commit came first.
pub(crate) fn store_error(e: tokio_postgres::Error) -> Error {
    let Some(db) = e.as_db_error() else {
        let (kind, outcome) = if e.is_closed() || is_io(&e) {
            (ErrorKind::Unavailable, Outcome::Unknown)
        } else {
            (ErrorKind::Internal, Outcome::Unknown)
        };
        return Error::new(kind, "PostgreSQL did not answer").with_outcome(outcome).with_source(e);
    };
    let ends = matches!(db.parsed_severity(), Some(Severity::Fatal | Severity::Panic));
    let outcome = if ends { Outcome::Unknown } else { Outcome::NotApplied };
    let (kind, text) = classify(db.code());
    Error::new(kind, text).with_outcome(outcome).with_source(e)
}

fn is_io(e: &tokio_postgres::Error) -> bool {
    std::error::Error::source(e).is_some_and(|s| s.is::<std::io::Error>())
}

fn classify(code: &SqlState) -> (ErrorKind, &'static str) {
    match code.code() {
        "55P03" => (ErrorKind::Unavailable, "the row is locked by a guarded transaction"),
        "57014" => (ErrorKind::Unavailable, "the statement took too long and was ended"),
        "40001" | "40P01" => (ErrorKind::Unavailable, "the transaction met another one and was undone"),
        "25006" | "55000" => (ErrorKind::Unavailable, "this server is a standby: it grants nothing"),
        "53100" => (ErrorKind::Full, "the server's disk is full"),
        "22003" => (ErrorKind::TooLarge, "the range of fencing tokens is used up for this name"),
        "22021" | "22P05" => (ErrorKind::ApiMisuse, "a name, an owner or a note has a byte of zero in it"),
        "42501" => (ErrorKind::Unsupported, "the role lacks a permission that leases need"),
        "42P01" | "42703" => (ErrorKind::Unsupported, "the lease tables are not there, or are not ours"),
        other => match other.get(..2).unwrap_or_default() {
            "08" | "53" | "57" | "58" => (ErrorKind::Unavailable, "PostgreSQL is not available"),
            "XX" => (ErrorKind::Corrupt, "PostgreSQL reports damaged data"),
            _ => (ErrorKind::Internal, "a statement failed"),
        },
    }
}

/// Whether the statement found its row locked and gave up: definite, and no sign of a failing server.
pub(crate) fn is_locked(e: &tokio_postgres::Error) -> bool {
    e.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

/// Whether the connection is as good as before.
pub(crate) fn is_usable_after(e: &tokio_postgres::Error) -> bool {
    e.as_db_error().is_some_and(|db| {
        // A standby is of no use: connect anew and find the primary.
        let standby = matches!(db.code().code(), "25006" | "55000");
        !standby && db.parsed_severity() == Some(Severity::Error)
    })
}

pub(crate) fn late(what: &str, outcome: Outcome) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{what} took longer than the request timeout"))
        .with_outcome(outcome)
}

#[cfg(test)]
mod tests {
    use mainstay_store::ErrorKind;
    use tokio_postgres::error::SqlState;

    #[test]
    fn what_a_code_means() {
        let cases = [
            ("55P03", ErrorKind::Unavailable),
            ("53300", ErrorKind::Unavailable),
            ("53100", ErrorKind::Full),
            ("57P01", ErrorKind::Unavailable),
            ("22003", ErrorKind::TooLarge),
            ("42P01", ErrorKind::Unsupported),
            ("25006", ErrorKind::Unavailable),
            ("XX001", ErrorKind::Corrupt),
            ("23505", ErrorKind::Internal),
        ];
        for (code, kind) in cases {
            assert_eq!(super::classify(&SqlState::from_code(code)).0, kind, "{code}");
        }
    }
}
