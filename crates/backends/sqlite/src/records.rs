//! Records and cells.

use std::time::Duration;

use mainstay_clock::WallTime;
use mainstay_store::{BoxFuture, DurableCell, Error, ErrorKind, PutIf, RecordStore, Result, VersionedRecord};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::{corrupt, store_error};
use crate::store::SqliteStore;
use crate::writer::Step;

/// What a row of `kv` says: a missing value is a deleted or expired record whose version lives on.
struct Found {
    version: u64,
    value: Option<Vec<u8>>,
}

/// Reads `version, value, expires, sum` of a row.
fn row(r: &Row<'_>, key: &str, now: i64) -> rusqlite::Result<Result<Found>> {
    let (version, value, expires): (u64, Option<Vec<u8>>, Option<i64>) = (r.get(0)?, r.get(1)?, r.get(2)?);
    let said: Option<[u8; 32]> = r.get(3)?;
    // Rows from before there were checksums have none.
    if said.is_some_and(|said| said != sum(key, version, value.as_deref(), expires)) {
        return Ok(Err(corrupt(format!("record `{key}` fails its checksum"))));
    }
    let value = value.filter(|_| expires.is_none_or(|e| e > now));
    Ok(Ok(Found { version, value }))
}

fn read(conn: &Connection, key: &str, now: i64) -> std::result::Result<Option<Found>, Step> {
    let found = conn
        .prepare_cached("select version, value, expires, sum from kv where key = ?1")?
        .query_row([key], |r| row(r, key, now))
        .optional()?;
    Ok(found.transpose()?)
}

fn write(
    conn: &Connection,
    key: &str,
    version: u64,
    value: Option<&[u8]>,
    expires: Option<i64>,
) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "insert or replace into kv (key, version, value, expires, sum) values (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![key, version, value, expires, sum(key, version, value, expires)])
    .map(drop)
}

/// Over everything that the row says.
fn sum(key: &str, version: u64, value: Option<&[u8]>, expires: Option<i64>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in [Some(key.as_bytes()), value, expires.map(i64::to_le_bytes).as_ref().map(|b| &b[..])] {
        // The length first, so that no two rows give the same bytes.
        let length = part.map_or(u64::MAX, |p| p.len() as u64);
        hasher.update(&length.to_le_bytes()).update(part.unwrap_or_default());
    }
    *hasher.update(&version.to_le_bytes()).finalize().as_bytes()
}

/// Ended records forgotten with one write: more than one write makes, so the table stays small.
const SWEEP: i64 = 8;
/// The row that keeps the largest version of what was forgotten, so that none is used again. No record has this key.
const FORGOTTEN: &str = "";

/// Forgets records that were deleted or have ended.
fn sweep(conn: &Connection, now: i64) -> std::result::Result<(), Step> {
    let ended = conn
        .prepare_cached("select key, version from kv where expires <= ?1 limit ?2")?
        .query_map(params![now, SWEEP], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect::<rusqlite::Result<Vec<(String, u64)>>>()?;
    let Some(highest) = ended.iter().map(|(_, version)| *version).max() else { return Ok(()) };
    let before = read(conn, FORGOTTEN, now)?.map_or(0, |f| f.version);
    write(conn, FORGOTTEN, highest.max(before), None, None)?;
    let mut delete = conn.prepare_cached("delete from kv where key = ?1")?;
    for (key, _) in ended {
        delete.execute([key])?;
    }
    Ok(())
}

/// The next version of a record that was found so.
fn next_version(conn: &Connection, found: Option<&Found>, now: i64) -> std::result::Result<u64, Step> {
    if let Some(found) = found {
        return Ok(found.version + 1);
    }
    Ok(read(conn, FORGOTTEN, now)?.map_or(0, |f| f.version) + 1)
}

/// A record as it is told: none for a deleted or expired one.
fn told(key: &str, found: Option<Found>) -> Option<VersionedRecord> {
    found.and_then(|f| Some(VersionedRecord { key: key.to_owned(), version: f.version, value: f.value? }))
}

/// The record of `key` at `now`, in milliseconds since the epoch.
pub(crate) fn get(
    conn: &Connection,
    key: &str,
    now: i64,
) -> std::result::Result<Option<VersionedRecord>, Step> {
    Ok(told(key, read(conn, key, now)?))
}

/// As [`RecordStore::put_if`].
pub(crate) fn put_if(
    conn: &Connection,
    (key, expected): (&str, Option<u64>),
    value: &[u8],
    ttl: Option<Duration>,
    now: i64,
) -> std::result::Result<PutIf, Step> {
    if key.is_empty() {
        return Err(Step::Refuse(Error::new(ErrorKind::ApiMisuse, "a record has a key")));
    }
    let found = read(conn, key, now)?;
    let version = next_version(conn, found.as_ref(), now)?;
    let current = told(key, found);
    if current.as_ref().map(|c| c.version) != expected {
        return Ok(PutIf::Conflict(current));
    }
    let expires = ttl.map(|d| now.saturating_add(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)));
    write(conn, key, version, Some(value), expires)?;
    sweep(conn, now)?;
    Ok(PutIf::Stored(version))
}

/// As [`RecordStore::delete_if`].
pub(crate) fn delete_if(
    conn: &Connection,
    key: &str,
    expected: u64,
    now: i64,
) -> std::result::Result<bool, Step> {
    let held = read(conn, key, now)?.is_some_and(|f| f.version == expected && f.value.is_some());
    if held {
        // The version stays until it is swept up, and is remembered then: it is never reused.
        write(conn, key, expected, None, Some(now))?;
    }
    Ok(held)
}

/// As [`RecordStore::list`].
pub(crate) fn list(
    conn: &Connection,
    (prefix, after): (&str, &str),
    limit: usize,
    now: i64,
) -> std::result::Result<Vec<VersionedRecord>, Step> {
    let found = conn
        .prepare_cached(
            "select version, value, expires, sum, key from kv where substr(key, 1, length(?1)) = ?1
             and key > ?2 and value is not null and (expires is null or expires > ?3) order by key limit ?4",
        )?
        .query_map(params![prefix, after, now, limit], |r| {
            let key: String = r.get(4)?;
            let found = row(r, &key, now)?;
            Ok(found.map(|f| (key, f)))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let mut records = Vec::with_capacity(found.len());
    for record in found {
        let (key, found) = record?;
        records.extend(told(&key, Some(found)));
    }
    Ok(records)
}

impl RecordStore for SqliteStore {
    fn now(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(self.0.writer.write(0, |_, now| Ok(Some(WallTime::from_unix_millis(now)))))
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<VersionedRecord>>> {
        let key = key.to_owned();
        // On the writer: its clock decides what has expired.
        Box::pin(self.0.writer.write(0, move |conn, now| get(conn, &key, now)))
    }

    fn put_if(
        &self,
        key: &str,
        expected: Option<u64>,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<PutIf>> {
        let key = key.to_owned();
        let size = value.len();
        let put = move |conn: &Connection, now| put_if(conn, (&key, expected), &value, ttl, now);
        Box::pin(self.0.writer.write(size, put))
    }

    fn delete_if(&self, key: &str, expected: u64) -> BoxFuture<'_, Result<bool>> {
        let key = key.to_owned();
        Box::pin(self.0.writer.write(0, move |conn, now| delete_if(conn, &key, expected, now)))
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<VersionedRecord>>> {
        let (prefix, after) = (prefix.to_owned(), after.unwrap_or_default().to_owned());
        Box::pin(self.0.writer.write(0, move |conn, now| list(conn, (&prefix, &after), limit, now)))
    }
}

/// A cell of a store, by name.
#[derive(Clone, Debug)]
struct Cell {
    store: SqliteStore,
    name: String,
}

impl SqliteStore {
    /// The durable cell called `name`.
    #[must_use]
    pub fn cell(&self, name: &str) -> impl DurableCell + Clone + use<> {
        Cell { store: self.clone(), name: name.to_owned() }
    }
}

/// Over the name, too: a cell under a damaged name is another one's, or nobody's.
fn cell_sum(name: &str, value: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(value);
    *hasher.finalize().as_bytes()
}

/// A cell that was not written since has a checksum of its value alone.
fn is_whole(name: &str, value: &[u8], sum: &[u8; 32]) -> bool {
    *sum == cell_sum(name, value) || sum == blake3::hash(value).as_bytes()
}

/// Whether any cell fails its checksum; there are few.
fn damaged_cells(conn: &Connection) -> rusqlite::Result<bool> {
    let mut cells = conn.prepare_cached("select name, value, sum from cell")?;
    let mut rows = cells.query([])?;
    while let Some(row) = rows.next()? {
        // A name that is no text any more is damaged as well.
        let Ok(name) = row.get::<_, String>(0) else { return Ok(true) };
        let (value, sum): (Vec<u8>, [u8; 32]) = (row.get(1)?, row.get(2)?);
        if !is_whole(&name, &value, &sum) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl DurableCell for Cell {
    fn load(&self) -> BoxFuture<'_, Result<Option<Vec<u8>>>> {
        let name = self.name.clone();
        Box::pin(self.store.read(move |conn| {
            let found: Option<(Vec<u8>, [u8; 32])> = conn
                .prepare_cached("select value, sum from cell where name = ?1")
                .and_then(|mut s| s.query_row([&name], |r| Ok((r.get(0)?, r.get(1)?))).optional())
                .map_err(store_error)?;
            match found {
                Some((value, sum)) if !is_whole(&name, &value, &sum) => {
                    Err(corrupt(format!("cell `{name}` fails its checksum")))
                }
                Some((value, _)) => Ok(Some(value)),
                // It may be there under a name that was damaged.
                None if damaged_cells(conn).map_err(store_error)? => {
                    Err(corrupt(format!("cell `{name}` is not there, and another one fails its checksum")))
                }
                None => Ok(None),
            }
        }))
    }

    fn store_synced(&self, value: Vec<u8>) -> BoxFuture<'_, Result<()>> {
        let name = self.name.clone();
        Box::pin(self.store.0.writer.write(value.len(), move |conn, _| {
            let sum = cell_sum(&name, &value);
            conn.prepare_cached("insert or replace into cell values (?1, ?2, ?3)")?
                .execute(params![name, value, sum])?;
            Ok(())
        }))
    }
}
