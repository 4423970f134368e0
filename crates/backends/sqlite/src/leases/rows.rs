//! Operations as rows: loaded into a table, run, and written back where they changed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstay_clock::{Clock, Instant, WallTime};
use mainstay_store::lease::table::{Entry, Table};
use mainstay_store::lease::{Share, Since};
use mainstay_store::{Error, ErrorKind, FencingToken, Result};
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::store_error;

/// The version this program writes.
const VERSION: i64 = 1;

const TABLES: &str = "
begin immediate;
create table meta (
  one integer primary key check (one = 1), boot text not null, epoch integer not null, token integer not null,
  arrivals integer not null);
create table op (
  op_id text primary key, owner text not null, share integer not null, permits integer not null, ttl integer not null,
  until integer not null, note text not null, number integer) without rowid;
create table op_name (name text not null, op_id text not null, token integer, primary key (name, op_id)) without rowid;
create index op_name_op on op_name (op_id);
create index op_until on op (until);
create table annotation (name text primary key, value blob not null) without rowid;
pragma user_version = 1;
commit;
";

/// Records beside the leases; programs that know none leave them alone.
const RECORDS: &str = "create table if not exists kv (
  key text primary key, version integer not null, value blob, expires integer, sum blob) without rowid;
create index if not exists kv_expires on kv (expires) where expires is not null;";

/// Since when a lease is held, in milliseconds since the epoch; programs that know nothing of it leave it unknown.
const SINCE: &str = "alter table op add column since integer";

/// What changed last, for watchers in other processes; programs that know nothing of it tell nobody, and their changes
/// are found by the watchers' timers.
const CHANGES: &str = "create table if not exists change (
  number integer primary key, name text not null, origin integer not null);";
/// Changes that are kept: a watcher that missed more looks at everything.
const KEPT: i64 = 1_024;

/// Ended operations forgotten with one transaction: more than one transaction makes, so the file stays small.
const SWEEP: i64 = 64;
/// Bits of a token below its epoch.
const COUNTER_BITS: u32 = 48;
/// Largest epoch: a token is a positive number of 64 bits.
const MAX_EPOCH: i64 = (1 << 15) - 1;

/// The kernel's name of this boot of the machine.
fn boot_id() -> Result<String> {
    let unknown = |e| {
        let text = "this machine does not name its boots, so a lease file cannot tell them apart";
        Error::new(ErrorKind::Unsupported, text).with_source(e)
    };
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(unknown).map(|id| id.trim().to_owned())
}

/// Makes the tables, and gives what another boot left a full ttl of grace. The epoch of tokens is `base` and the boots.
pub(super) fn prepare(conn: &Connection, now: Instant, base: u16) -> Result<()> {
    let version: i64 = conn.query_row("pragma user_version", [], |r| r.get(0)).map_err(store_error)?;
    if version > VERSION {
        let text = format!("the lease file has schema version {version}; this program knows up to {VERSION}");
        return Err(Error::new(ErrorKind::NewerVersion, text));
    }
    if version == 0
        && let Err(e) = conn.execute_batch(TABLES)
    {
        // Another process may have made them in between; then everything is there.
        let _ = conn.execute_batch("rollback");
        let made: i64 = conn.query_row("pragma user_version", [], |r| r.get(0)).map_err(store_error)?;
        if made != VERSION {
            return Err(store_error(e));
        }
    }
    for (table, sql) in [("kv", RECORDS), ("change", CHANGES)] {
        let made: Option<i64> = conn
            .query_row("select 1 from sqlite_master where name = ?1", [table], |r| r.get(0))
            .optional()
            .map_err(store_error)?;
        if made.is_none() {
            conn.execute_batch(sql).map_err(store_error)?;
        }
    }
    let boot = boot_id()?;
    let graced = conn.execute_batch("begin immediate").and_then(|()| {
        // Looked at under the lock: another process may be making it.
        let dated = conn
            .query_row("select 1 from pragma_table_info('op') where name = 'since'", [], |_| Ok(()))
            .optional()?;
        if dated.is_none() {
            conn.execute_batch(SINCE)?;
        }
        let known: Option<String> = conn.query_row("select boot from meta", [], |r| r.get(0)).optional()?;
        if known.is_none() {
            conn.execute("insert into meta values (1, ?1, 0, 0, 0)", [&boot])?;
        } else if known.as_ref() != Some(&boot) {
            conn.execute("update meta set boot = ?1, epoch = epoch + 1", [&boot])?;
            conn.execute("update op set until = ?1 + ttl", [number(now.as_nanos())])?;
        }
        conn.execute_batch("commit")
    });
    graced.map_err(|e| {
        // Nothing was changed, or the commit failed and says so.
        let _ = conn.execute_batch("rollback");
        store_error(e)
    })?;
    let boots: i64 = conn.query_row("select epoch from meta", [], |r| r.get(0)).map_err(store_error)?;
    if boots.saturating_add(base.into()) > MAX_EPOCH {
        let text =
            format!("`epoch` is {base} and the file knows of {boots} boots; allowed: {MAX_EPOCH} together");
        return Err(Error::new(ErrorKind::ApiMisuse, text));
    }
    Ok(())
}

/// Which operations a request may see and change: those that share a name with it.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope {
    pub(super) names: Vec<String>,
    pub(super) op: Option<String>,
    pub(super) prefix: Option<(String, usize)>,
}

impl Scope {
    pub(super) fn name(name: &str) -> Self {
        Self { names: vec![name.to_owned()], ..Self::default() }
    }

    pub(super) fn op(op_id: &str) -> Self {
        Self { op: Some(op_id.to_owned()), ..Self::default() }
    }
}

/// One transaction.
pub(super) struct Session<'a> {
    pub(super) conn: &'a Connection,
    now: Instant,
    /// For records, in milliseconds since the epoch.
    pub(super) wall: i64,
    token: FencingToken,
    arrivals: u64,
    changed: bool,
    /// Names that watchers are told of.
    told: BTreeSet<String>,
}

/// What others changed since a number.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// More than is remembered.
    Anything,
    /// These names.
    Of(Vec<String>),
}

/// What changed after `number`, other than by `origin`, and the number of the last change.
pub(super) fn news(conn: &Connection, number: i64, origin: i64) -> rusqlite::Result<(News, i64)> {
    let (first, last): (i64, i64) = conn
        .prepare_cached("select coalesce(min(number), 0), coalesce(max(number), 0) from change")?
        .query_row([], |r| Ok((r.get(0)?, r.get(1)?)))?;
    if first > number + 1 {
        return Ok((News::Anything, last));
    }
    let names = conn
        .prepare_cached("select distinct name from change where number > ?1 and origin <> ?2")?
        .query_map([number, origin], |r| r.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    Ok((News::Of(names), last))
}

fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn natural(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

impl<'a> Session<'a> {
    /// `base` is added to the epoch of the file.
    pub(super) fn begin(conn: &'a Connection, clock: &dyn Clock, base: u16) -> rusqlite::Result<Self> {
        let (epoch, token, arrivals): (i64, i64, i64) = conn
            .prepare_cached("select epoch, token, arrivals from meta")?
            .query_row([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
        // A clock that went back costs nothing: the stored token is the floor then.
        let wall = clock.wall().unix_millis();
        let micros = natural(wall).saturating_mul(1_000);
        let floor = ((natural(epoch) + u64::from(base)) << COUNTER_BITS)
            | ((micros / 16) & ((1 << COUNTER_BITS) - 1));
        let token = FencingToken::new(natural(token).max(floor));
        Ok(Self {
            conn,
            now: clock.now(),
            wall,
            token,
            arrivals: natural(arrivals),
            changed: false,
            told: BTreeSet::new(),
        })
    }

    /// Loads the operations of `scope`, runs `work` on them and writes back what it changed; with the names that
    /// changed.
    pub(super) fn run<T>(
        &mut self,
        scope: &Scope,
        work: impl Fn(&mut Table) -> Result<T>,
    ) -> rusqlite::Result<(Result<T>, BTreeSet<String>)> {
        let names = self.names(scope)?;
        let before = self.load(&names, scope.op.as_deref())?;
        let notes = self.annotations(&names)?;
        let entries = before.values().flatten().cloned();
        let mut table = Table::load(self.token, self.arrivals, entries, notes.clone());
        table.tick(self.now);
        table.date(Since::store(WallTime::from_unix_millis(self.wall)));
        let result = work(&mut table);
        for (op_id, old) in &before {
            let new = table.entry(op_id);
            if new == *old {
                continue;
            }
            let elsewhere = |entry: &Entry| entry.names.keys().any(|name| !names.contains(name));
            match new {
                // The values of `names` are written below.
                None if old.as_ref().is_some_and(elsewhere) => self.forget(op_id)?,
                new => self.write(op_id, new.as_ref())?,
            }
        }
        for name in &names {
            let (old, new) = (notes.get(name).map(Vec::as_slice), table.annotation(name));
            if old != new {
                self.annotate(name, new)?;
            }
        }
        if (table.last_token(), table.arrivals()) != (self.token, self.arrivals) {
            (self.token, self.arrivals) = (table.last_token(), table.arrivals());
            self.changed = true;
        }
        let changed = table.take_changed();
        self.told.extend(changed.iter().cloned());
        Ok((result, changed))
    }

    /// Writes the counters if they moved and what changed, and forgets some of what ended under names that nobody asks
    /// for.
    pub(super) fn end(self, origin: i64) -> rusqlite::Result<()> {
        let ended: Vec<String> = self
            .conn
            .prepare_cached("select op_id from op where until <= ?1 limit ?2")?
            .query_map(params![number(self.now.as_nanos()), SWEEP], |r| r.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for op_id in ended {
            self.forget(&op_id)?;
        }
        if self.changed {
            self.conn
                .prepare_cached("update meta set token = ?1, arrivals = ?2")?
                .execute(params![number(self.token.get()), number(self.arrivals)])?;
        }
        if !self.told.is_empty() {
            let mut tell = self.conn.prepare_cached("insert into change (name, origin) values (?1, ?2)")?;
            for name in &self.told {
                tell.execute(params![name, origin])?;
            }
            self.conn
                .prepare_cached("delete from change where number <= (select max(number) from change) - ?1")?
                .execute([KEPT])?;
        }
        Ok(())
    }

    fn names(&self, scope: &Scope) -> rusqlite::Result<BTreeSet<String>> {
        let mut names: BTreeSet<String> = scope.names.iter().cloned().collect();
        if let Some(op) = &scope.op {
            let mut of = self.conn.prepare_cached("select name from op_name where op_id = ?1")?;
            for name in of.query_map([op], |r| r.get(0))? {
                names.insert(name?);
            }
        }
        if let Some((prefix, limit)) = &scope.prefix {
            let mut of = self.conn.prepare_cached(
                "select distinct name from op_name where name >= ?1 and substr(name, 1, length(?1)) = ?1
                 and token is not null and op_id in (select op_id from op where until > ?2) order by name limit ?3",
            )?;
            let most = i64::try_from(*limit).unwrap_or(i64::MAX);
            for name in of.query_map(params![prefix, number(self.now.as_nanos()), most], |r| r.get(0))? {
                names.insert(name?);
            }
        }
        Ok(names)
    }

    /// The operations that share one of `names`, and the one asked for even if there is none.
    fn load(
        &self,
        names: &BTreeSet<String>,
        op: Option<&str>,
    ) -> rusqlite::Result<BTreeMap<String, Option<Entry>>> {
        let mut found: BTreeMap<String, Option<Entry>> = BTreeMap::new();
        if let Some(op) = op {
            found.insert(op.to_owned(), None);
        }
        let mut of = self.conn.prepare_cached("select op_id from op_name where name = ?1")?;
        for name in names {
            for op_id in of.query_map([name], |r| r.get(0))? {
                found.insert(op_id?, None);
            }
        }
        for (op_id, entry) in &mut found {
            *entry = self.entry(op_id)?;
        }
        Ok(found)
    }

    fn entry(&self, op_id: &str) -> rusqlite::Result<Option<Entry>> {
        let entry = self
            .conn
            .prepare_cached(
                "select owner, share, permits, ttl, until, note, number, since from op where op_id = ?1",
            )?
            .query_row([op_id], |r| {
                let share = Share::of_columns(r.get(1)?, r.get(2)?);
                Ok(Entry {
                    op_id: op_id.to_owned(),
                    owner: r.get(0)?,
                    names: BTreeMap::new(),
                    share,
                    ttl: Duration::from_nanos(natural(r.get(3)?)),
                    until: Instant::from_nanos(natural(r.get(4)?)),
                    note: r.get(5)?,
                    number: r.get::<_, Option<i64>>(6)?.map(natural),
                    since: r.get::<_, Option<i64>>(7)?.map(|ms| Since::store(WallTime::from_unix_millis(ms))),
                })
            })
            .optional()?;
        let Some(mut entry) = entry else { return Ok(None) };
        let mut of = self.conn.prepare_cached("select name, token from op_name where op_id = ?1")?;
        let rows = of.query_map([op_id], |r| Ok((r.get(0)?, r.get::<_, Option<i64>>(1)?)))?;
        for row in rows {
            let (name, token) = row?;
            entry.names.insert(name, token.map(|t| FencingToken::new(natural(t))));
        }
        Ok(Some(entry))
    }

    fn write(&self, op_id: &str, entry: Option<&Entry>) -> rusqlite::Result<()> {
        self.conn.prepare_cached("delete from op_name where op_id = ?1")?.execute([op_id])?;
        let Some(entry) = entry else {
            self.conn.prepare_cached("delete from op where op_id = ?1")?.execute([op_id])?;
            return Ok(());
        };
        let (share, permits) = entry.share.columns();
        let ttl = i64::try_from(entry.ttl.as_nanos()).unwrap_or(i64::MAX);
        self.conn
            .prepare_cached(
                "insert or replace into op (op_id, owner, share, permits, ttl, until, note, number, since)
                 values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                op_id,
                entry.owner,
                share,
                permits,
                ttl,
                number(entry.until.as_nanos()),
                entry.note,
                entry.number.map(number),
                entry.since.map(|since| since.at.unix_millis())
            ])?;
        let mut name =
            self.conn.prepare_cached("insert into op_name (name, op_id, token) values (?1, ?2, ?3)")?;
        for (of, token) in &entry.names {
            name.execute(params![of, op_id, token.map(|t| number(t.get()))])?;
        }
        Ok(())
    }

    /// Removes an operation that ended, and the values of its names that nobody holds then: nobody may ever ask for
    /// those again.
    fn forget(&self, op_id: &str) -> rusqlite::Result<()> {
        let names: Vec<String> = self
            .conn
            .prepare_cached("select name from op_name where op_id = ?1 and token is not null")?
            .query_map([op_id], |r| r.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        self.write(op_id, None)?;
        let mut drop = self.conn.prepare_cached(
            "delete from annotation where name = ?1
             and not exists (select 1 from op_name where name = ?1 and token is not null)",
        )?;
        for name in names {
            drop.execute([name])?;
        }
        Ok(())
    }

    fn annotations(&self, names: &BTreeSet<String>) -> rusqlite::Result<BTreeMap<String, Vec<u8>>> {
        let mut of = self.conn.prepare_cached("select value from annotation where name = ?1")?;
        let mut found = BTreeMap::new();
        for name in names {
            if let Some(value) = of.query_row([name], |r| r.get(0)).optional()? {
                found.insert(name.clone(), value);
            }
        }
        Ok(found)
    }

    fn annotate(&self, name: &str, value: Option<&[u8]>) -> rusqlite::Result<()> {
        match value {
            Some(value) => self
                .conn
                .prepare_cached("insert or replace into annotation (name, value) values (?1, ?2)")?
                .execute(params![name, value])?,
            None => self.conn.prepare_cached("delete from annotation where name = ?1")?.execute([name])?,
        };
        Ok(())
    }
}
