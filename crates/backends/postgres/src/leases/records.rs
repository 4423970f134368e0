//! Records in a table beside the leases, for recipes that remember more than a lease can.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_clock::WallTime;
use mainstay_store::{BoxFuture, Error, ErrorKind, Outcome, PutIf, RecordStore, Result, VersionedRecord};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::PostgresLeases;
use super::single::{Parameter, micros, settle};
use crate::error::store_error;
use crate::schema::MAKING;

/// The table and its statements, made once.
#[derive(Debug)]
pub(super) struct Records {
    create: String,
    get: String,
    insert: String,
    update: String,
    delete: String,
    list: String,
    /// The table is there.
    made: AtomicBool,
}

/// A row that counts: neither deleted nor over.
const LIVES: &str = "r.value is not null and (r.expires_at is null or r.expires_at > clock_timestamp())";

impl Records {
    pub(super) fn new(lease: &str) -> Self {
        let table = format!("{lease}_record");
        let end = "clock_timestamp() + $3 * interval '1 microsecond'";
        Self {
            create: format!(
                "{MAKING}
                 create table if not exists {table} (
                   key text collate \"C\" primary key, version int8 not null, value bytea, expires_at timestamptz);
                 comment on table {table} is 'mainstay records, version 1'"
            ),
            get: format!("select key, version, value from {table} r where key = $1 and {LIVES}"),
            // A deleted or ended row keeps its version, so that it is never reused.
            insert: format!(
                "insert into {table} as r (key, version, value, expires_at) values ($1, 1, $2, {end})
                 on conflict (key) do update set version = r.version + 1, value = excluded.value, expires_at = {end}
                 where not ({LIVES}) returning version"
            ),
            update: format!(
                "update {table} r set version = version + 1, value = $2, expires_at = {end}
                 where key = $1 and version = $4 and {LIVES} returning version"
            ),
            delete: format!(
                "update {table} r set value = null, expires_at = null
                 where key = $1 and version = $2 and {LIVES} returning version"
            ),
            list: format!(
                "select key, version, value from {table} r
                 where starts_with(key, $1) and key > $2 and {LIVES} order by key limit $3"
            ),
            made: AtomicBool::new(false),
        }
    }
}

fn record(row: &Row) -> VersionedRecord {
    let version = u64::try_from(row.get::<_, i64>(1)).unwrap_or(0);
    VersionedRecord { key: row.get(0), version, value: row.get(2) }
}

fn version(n: u64) -> Result<i64> {
    i64::try_from(n).map_err(|_| Error::new(ErrorKind::ApiMisuse, "no record has a version like this"))
}

impl PostgresLeases {
    /// One statement on a table that is made first if need be.
    async fn recorded(&self, sql: &str, parameters: &[Parameter<'_>], outcome: Outcome) -> Result<Vec<Row>> {
        let records = &self.0.records;
        let lent = self.0.pool.lend().await?;
        let work = async {
            if !records.made.load(Ordering::Acquire) {
                let made = lent.client().batch_execute(&records.create).await;
                // Beside a program that does not take its turn, one finds the other's rows in the catalog.
                let raced = |e: &tokio_postgres::Error| {
                    matches!(e.code(), Some(&SqlState::UNIQUE_VIOLATION | &SqlState::DUPLICATE_TABLE))
                };
                match made {
                    Err(e) if raced(&e) => {}
                    other => other.map_err(store_error)?,
                }
                records.made.store(true, Ordering::Release);
            }
            Ok(lent.client().query_typed(sql, parameters).await)
        };
        let answer = self.0.pool.within("a statement on records", outcome, work).await?;
        let (lent, rows) = settle(lent, answer)?;
        lent.give_back();
        Ok(rows)
    }

    async fn read(&self, key: &str) -> Result<Option<VersionedRecord>> {
        let rows = self.recorded(&self.0.records.get, &[(&key, Type::TEXT)], Outcome::NotApplied).await?;
        Ok(rows.first().map(record))
    }

    async fn put(
        &self,
        key: &str,
        expected: Option<u64>,
        value: &[u8],
        ttl: Option<Duration>,
    ) -> Result<PutIf> {
        let (ttl, old) = (ttl.map(micros), expected.map(version).transpose()?);
        let mut parameters: Vec<Parameter<'_>> =
            vec![(&key, Type::TEXT), (&value, Type::BYTEA), (&ttl, Type::INT8)];
        let records = &self.0.records;
        let sql = match &old {
            None => &records.insert,
            Some(old) => {
                parameters.push((old, Type::INT8));
                &records.update
            }
        };
        let rows = self.recorded(sql, &parameters, Outcome::Unknown).await?;
        match rows.first() {
            Some(row) => Ok(PutIf::Stored(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))),
            None => self.read(key).await.map(PutIf::Conflict),
        }
    }
}

/// In the database of the leases, as durable as they are. A role that may not make tables finds
/// `<leases>_record` made.
impl RecordStore for PostgresLeases {
    fn now(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(async {
            let sql = "select (extract(epoch from clock_timestamp()) * 1000)::int8";
            let rows = self.recorded(sql, &[], Outcome::NotApplied).await?;
            Ok(rows.first().map(|row| WallTime::from_unix_millis(row.get(0))))
        })
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<VersionedRecord>>> {
        let key = key.to_owned();
        Box::pin(async move { self.read(&key).await })
    }

    fn put_if(
        &self,
        key: &str,
        expected: Option<u64>,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<PutIf>> {
        let key = key.to_owned();
        Box::pin(async move { self.put(&key, expected, &value, ttl).await })
    }

    fn delete_if(&self, key: &str, expected: u64) -> BoxFuture<'_, Result<bool>> {
        let key = key.to_owned();
        Box::pin(async move {
            let old = version(expected)?;
            let parameters: [Parameter<'_>; 2] = [(&key, Type::TEXT), (&old, Type::INT8)];
            let rows = self.recorded(&self.0.records.delete, &parameters, Outcome::Unknown).await?;
            Ok(!rows.is_empty())
        })
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<VersionedRecord>>> {
        let (prefix, after) = (prefix.to_owned(), after.unwrap_or_default().to_owned());
        Box::pin(async move {
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let parameters: [Parameter<'_>; 3] =
                [(&prefix, Type::TEXT), (&after, Type::TEXT), (&limit, Type::INT8)];
            let rows = self.recorded(&self.0.records.list, &parameters, Outcome::NotApplied).await?;
            Ok(rows.iter().map(record).collect())
        })
    }
}
