//! Connections whose settings are proven, not assumed.

use std::path::Path;
use std::time::Duration;

use mainstay_store::{Error, ErrorKind};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::error::store_error;

/// Fixes the WAL-reset race between connections; older libraries may corrupt the file.
const MIN_SQLITE: i32 = 3_051_003;
/// The same, as people write it.
pub(crate) const OLDEST: &str = "3.51.3";
/// A foreign process that holds the file for a moment is slowness, not failure.
pub(crate) const BUSY: Duration = Duration::from_secs(10);
/// Between two tries to switch a new file.
const SWITCHING: Duration = Duration::from_millis(5);
/// Page cache of the writer, in KiB: the hot end of the tables, and far below the memory goal.
const WRITER_KIB: i64 = 16 * 1024;
/// Page cache of a reader, in KiB: there are several; what they miss is in the cache of the system.
const READER_KIB: i64 = 2 * 1024;
/// Prepared statements kept per connection: more than we have.
const STATEMENTS: usize = 128;

pub(crate) fn open(file: &Path, write: bool) -> Result<Connection, Error> {
    if rusqlite::version_number() < MIN_SQLITE {
        let text = format!("SQLite {} is too old; {OLDEST} or newer is needed", rusqlite::version());
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let mode = if write {
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE
    } else {
        OpenFlags::SQLITE_OPEN_READ_ONLY
    };
    let conn =
        Connection::open_with_flags(file, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(store_error)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    if write {
        to_wal(&conn)?;
    }
    conn.busy_timeout(BUSY).map_err(store_error)?;
    conn.execute_batch("pragma synchronous = full; pragma mmap_size = 0; pragma foreign_keys = off;")
        .map_err(store_error)?;
    conn.pragma_update(None, "cache_size", if write { -WRITER_KIB } else { -READER_KIB })
        .map_err(store_error)?;
    verify(&conn)?;
    Ok(conn)
}

/// Of several that switch a new file at once SQLite refuses all but one, without waiting when their read locks stand in
/// each other's way. A file is switched once, so those who ask again find it done.
fn to_wal(conn: &Connection) -> Result<(), Error> {
    let mut waited = Duration::ZERO;
    loop {
        match conn.pragma_update(None, "journal_mode", "wal") {
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && waited < BUSY => {
                #[allow(
                    clippy::disallowed_methods,
                    reason = "a process is waited for in real time, as SQLite does"
                )]
                std::thread::sleep(SWITCHING);
                waited += SWITCHING;
            }
            switched => return switched.map_err(store_error),
        }
    }
}

/// Reads back what decides whether an answered write survives: SQLite ignores what it does not understand.
pub(crate) fn verify(conn: &Connection) -> Result<(), Error> {
    let refuse = |what: &str, found: &str, needed: &str| {
        let text =
            format!("SQLite has {what} = {found} where {needed} is needed: answered writes could be lost");
        Err(Error::new(ErrorKind::Unsupported, text))
    };
    let mode: String = conn.query_row("pragma journal_mode", [], |r| r.get(0)).map_err(store_error)?;
    if mode != "wal" {
        return refuse("journal_mode", &mode, "wal");
    }
    let synchronous: i64 = conn.query_row("pragma synchronous", [], |r| r.get(0)).map_err(store_error)?;
    if synchronous < 2 {
        return refuse("synchronous", &synchronous.to_string(), "2 (full)");
    }
    Ok(())
}

/// A quick look over the whole file.
pub(crate) fn check(conn: &Connection) -> Result<(), Error> {
    let verdict: String = conn.query_row("pragma quick_check(1)", [], |r| r.get(0)).map_err(store_error)?;
    if verdict == "ok" {
        return Ok(());
    }
    Err(crate::error::corrupt(format!("the database file is damaged: {verdict}; restore it from a backup")))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::{open, verify};

    /// Two commands that a timer starts at the same second: one of them ended with "the database file cannot be used now".
    #[test]
    fn those_who_make_a_file_together_all_open_it() {
        for _ in 0..100 {
            let dir = tempfile::tempdir().unwrap();
            let (file, together) = (dir.path().join("a.db"), Barrier::new(4));
            let opened = || {
                together.wait();
                open(&file, true).map(|_| ())
            };
            let refused: Vec<_> = std::thread::scope(|s| {
                let all = [(); 4].map(|()| s.spawn(opened));
                all.into_iter().filter_map(|one| one.join().unwrap().err()).collect()
            });
            assert!(refused.is_empty(), "{refused:?}");
        }
    }

    #[test]
    fn sg_f12_every_connection_syncs_fully_and_less_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.db");
        for write in [true, false] {
            let conn = open(&file, write).unwrap();
            let synchronous: i64 = conn.query_row("pragma synchronous", [], |r| r.get(0)).unwrap();
            assert_eq!(synchronous, 2);
            for weak in ["normal", "off", "wal"] {
                conn.execute_batch(&format!("pragma synchronous = {weak}")).unwrap();
                let refused = verify(&conn).unwrap_err();
                assert_eq!(refused.kind(), mainstay_store::ErrorKind::Unsupported, "{weak}");
            }
        }
        let plain = rusqlite::Connection::open(dir.path().join("b.db")).unwrap();
        plain.execute_batch("pragma synchronous = full").unwrap();
        assert!(verify(&plain).is_err(), "a rollback journal is refused");
    }
}
