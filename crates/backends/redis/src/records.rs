//! Records on one Redis, for recipes that remember more than a lease can.

use std::time::Duration;

use mainstay_clock::WallTime;
use mainstay_store::{BoxFuture, Error, ErrorKind, Outcome, PutIf, RecordStore, Result, VersionedRecord};
use redis::{Cmd, Value};

use crate::check::millis;
use crate::error::garbled;
use crate::keys::RECORD;
use crate::node::Purpose;
use crate::scan;
use crate::store::RedisLeases;

/// A reply of the script that writes.
enum Put {
    Conflict(Option<(u64, Vec<u8>)>),
    Stored(u64),
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(n) => u64::try_from(*n).ok(),
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

fn put(reply: &Value) -> Option<Put> {
    let Value::Array(parts) = reply else { return None };
    Some(match parts.as_slice() {
        [Value::Int(0)] => Put::Conflict(None),
        [Value::Int(0), version, Value::BulkString(value)] => {
            Put::Conflict(Some((number(version)?, value.clone())))
        }
        [Value::Int(1), version] => Put::Stored(number(version)?),
        _ => return None,
    })
}

impl RedisLeases {
    async fn read(&self, key: &str) -> Result<Option<VersionedRecord>> {
        let keys = self.options().record_keys(key)?;
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(keys.record()).arg("v").arg("d");
        let reply = self.node().ask(&cmd).await?;
        let parts = match &reply {
            Value::Array(parts) => parts.as_slice(),
            _ => &[],
        };
        match parts {
            [Value::Nil, Value::Nil] => Ok(None),
            [version, Value::BulkString(value)] => {
                let version = number(version).ok_or_else(|| garbled(self.node().name(), &reply))?;
                Ok(Some(VersionedRecord { key: key.to_owned(), version, value: value.clone() }))
            }
            _ => Err(garbled(self.node().name(), &reply)),
        }
    }

    async fn put(
        &self,
        key: &str,
        expected: Option<u64>,
        value: &[u8],
        ttl: Option<Duration>,
    ) -> Result<PutIf> {
        let (node, keys) = (self.node(), self.options().record_keys(key)?);
        let expected = expected.map_or_else(String::new, |v| v.to_string());
        let fill = |cmd: &mut Cmd| {
            cmd.arg(2).arg(keys.record()).arg(keys.versions());
            cmd.arg(&expected).arg(value).arg(ttl.map_or(0, millis));
        };
        let reply = node.eval(&node.scripts().record_put, Purpose::Other, self.patience(), fill).await;
        let reply = reply.map_err(|failure| failure.error)?;
        match put(&reply.value).ok_or_else(|| garbled(node.name(), &reply.value))? {
            Put::Stored(version) => Ok(PutIf::Stored(version)),
            // The same question was sent before, and its answer was lost: the record may be its work.
            Put::Conflict(_) if reply.doubt => {
                let text = format!("redis {} lost an answer", node.name());
                Err(Error::new(ErrorKind::Unavailable, text).with_outcome(Outcome::Unknown))
            }
            Put::Conflict(current) => Ok(PutIf::Conflict(current.map(|(version, value)| VersionedRecord {
                key: key.to_owned(),
                version,
                value,
            }))),
        }
    }

    async fn delete(&self, key: &str, expected: u64) -> Result<bool> {
        let (node, keys) = (self.node(), self.options().record_keys(key)?);
        let fill = |cmd: &mut Cmd| {
            cmd.arg(1).arg(keys.record()).arg(expected.to_string());
        };
        let reply = node.eval(&node.scripts().record_delete, Purpose::Other, self.patience(), fill).await;
        let reply = reply.map_err(|failure| failure.error)?;
        match reply.value {
            Value::Int(0) if reply.doubt => {
                let text = format!("redis {} lost an answer", node.name());
                Err(Error::new(ErrorKind::Unavailable, text).with_outcome(Outcome::Unknown))
            }
            Value::Int(n) => Ok(n == 1),
            other => Err(garbled(node.name(), &other)),
        }
    }

    async fn time(&self) -> Result<WallTime> {
        let reply = self.node().ask(&redis::cmd("TIME")).await?;
        let told = match &reply {
            Value::Array(parts) => match parts.as_slice() {
                [seconds, micros] => number(seconds).zip(number(micros)),
                _ => None,
            },
            _ => None,
        };
        let (seconds, micros) = told.ok_or_else(|| garbled(self.node().name(), &reply))?;
        let ms = seconds.saturating_mul(1_000).saturating_add(micros / 1_000);
        Ok(WallTime::from_unix_millis(i64::try_from(ms).unwrap_or(i64::MAX)))
    }
}

/// A record is a hash beside the key of its name, and a counter that outlives it. It survives what the server's
/// settings let survive, like everything else there.
impl RecordStore for RedisLeases {
    fn now(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(async { self.time().await.map(Some) })
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
        Box::pin(async move { self.delete(&key, expected).await })
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<VersionedRecord>>> {
        let (prefix, after) = (prefix.to_owned(), after.unwrap_or_default().to_owned());
        Box::pin(async move {
            let names = scan::with_side(self.node(), &self.options().profile, RECORD).await?;
            let mut found = Vec::new();
            for name in names.into_iter().filter(|name| name.starts_with(&prefix) && *name > after) {
                if found.len() >= limit {
                    break;
                }
                found.extend(self.read(&name).await?);
            }
            Ok(found)
        })
    }
}
