//! Records and cells.

use std::time::Duration;

use mainstay_store::{BoxFuture, DurableCell, PutIf, RecordStore, Result, VersionedRecord};
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::{corrupt, store_error};
use crate::store::SqliteStore;

/// `(version, value)`: a missing value is a deleted or expired record whose version lives on.
fn read(conn: &Connection, key: &str, now: i64) -> rusqlite::Result<Option<(u64, Option<Vec<u8>>)>> {
    conn.prepare_cached("select version, value, expires from kv where key = ?1")?
        .query_row([key], |r| {
            let expires: Option<i64> = r.get(2)?;
            let value: Option<Vec<u8>> = r.get(1)?;
            Ok((r.get(0)?, value.filter(|_| expires.is_none_or(|e| e > now))))
        })
        .optional()
}

impl RecordStore for SqliteStore {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<VersionedRecord>>> {
        let key = key.to_owned();
        // On the writer: its clock decides what has expired.
        Box::pin(self.0.writer.write(0, move |conn, now| {
            let found = read(conn, &key, now)?;
            Ok(found.and_then(|(version, value)| Some(VersionedRecord { key, version, value: value? })))
        }))
    }

    fn put_if(
        &self,
        key: &str,
        expected: Option<u64>,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<PutIf>> {
        let key = key.to_owned();
        Box::pin(self.0.writer.write(value.len(), move |conn, now| {
            let found = read(conn, &key, now)?;
            let version = found.as_ref().map_or(0, |(v, _)| *v);
            let current = found.and_then(|(version, value)| {
                Some(VersionedRecord { key: key.clone(), version, value: value? })
            });
            if current.as_ref().map(|c| c.version) != expected {
                return Ok(PutIf::Conflict(current));
            }
            let expires = ttl.map(|d| now.saturating_add(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)));
            conn.prepare_cached("insert or replace into kv values (?1, ?2, ?3, ?4)")?.execute(params![
                key,
                version + 1,
                value,
                expires
            ])?;
            Ok(PutIf::Stored(version + 1))
        }))
    }

    fn delete_if(&self, key: &str, expected: u64) -> BoxFuture<'_, Result<bool>> {
        let key = key.to_owned();
        Box::pin(self.0.writer.write(0, move |conn, now| {
            let held = read(conn, &key, now)?.is_some_and(|(v, value)| v == expected && value.is_some());
            if held {
                // The version stays, so that it is never reused.
                conn.prepare_cached("update kv set value = null, expires = null where key = ?1")?
                    .execute([&key])?;
            }
            Ok(held)
        }))
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<VersionedRecord>>> {
        let (prefix, after) = (prefix.to_owned(), after.unwrap_or_default().to_owned());
        Box::pin(self.0.writer.write(0, move |conn, now| {
            let found = conn
                .prepare_cached(
                    "select key, version, value from kv where substr(key, 1, length(?1)) = ?1 and key > ?2
                     and value is not null and (expires is null or expires > ?3) order by key limit ?4",
                )?
                .query_map(params![prefix, after, now, limit], |r| {
                    Ok(VersionedRecord { key: r.get(0)?, version: r.get(1)?, value: r.get(2)? })
                })?
                .collect::<rusqlite::Result<_>>()?;
            Ok(found)
        }))
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

impl DurableCell for Cell {
    fn load(&self) -> BoxFuture<'_, Result<Option<Vec<u8>>>> {
        let name = self.name.clone();
        Box::pin(self.store.read(move |conn| {
            let found: Option<(Vec<u8>, [u8; 32])> = conn
                .prepare_cached("select value, sum from cell where name = ?1")
                .and_then(|mut s| s.query_row([&name], |r| Ok((r.get(0)?, r.get(1)?))).optional())
                .map_err(store_error)?;
            match found {
                Some((value, sum)) if *blake3::hash(&value).as_bytes() != sum => {
                    Err(corrupt(format!("cell `{name}` fails its checksum")))
                }
                found => Ok(found.map(|(value, _)| value)),
            }
        }))
    }

    fn store_synced(&self, value: Vec<u8>) -> BoxFuture<'_, Result<()>> {
        let name = self.name.clone();
        Box::pin(self.store.0.writer.write(value.len(), move |conn, _| {
            let sum = *blake3::hash(&value).as_bytes();
            conn.prepare_cached("insert or replace into cell values (?1, ?2, ?3)")?
                .execute(params![name, value, sum])?;
            Ok(())
        }))
    }
}
