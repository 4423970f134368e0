//! Records in the file of the leases, for recipes that remember more than a lease can.

use std::time::Duration;

use mainstay_clock::WallTime;
use mainstay_store::{BoxFuture, PutIf, RecordStore, Result, VersionedRecord};

use super::SqliteLeases;
use crate::records;

/// In the same transactions as leases, and as durable. Time is the wall clock of the machine, which all processes
/// that share the file have.
impl RecordStore for SqliteLeases {
    fn now(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(async { Ok(Some(self.0.rt.clock().wall())) })
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<VersionedRecord>>> {
        let key = key.to_owned();
        Box::pin(self.0.combiner.record(move |conn, now| records::get(conn, &key, now)))
    }

    fn put_if(
        &self,
        key: &str,
        expected: Option<u64>,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<PutIf>> {
        let key = key.to_owned();
        let put = move |conn: &_, now| records::put_if(conn, (&key, expected), &value, ttl, now);
        Box::pin(self.0.combiner.record(put))
    }

    fn delete_if(&self, key: &str, expected: u64) -> BoxFuture<'_, Result<bool>> {
        let key = key.to_owned();
        Box::pin(self.0.combiner.record(move |conn, now| records::delete_if(conn, &key, expected, now)))
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<VersionedRecord>>> {
        let (prefix, after) = (prefix.to_owned(), after.unwrap_or_default().to_owned());
        let list = move |conn: &_, now| records::list(conn, (&prefix, &after), limit, now);
        Box::pin(self.0.combiner.record(list))
    }
}
