//! Everything beyond one exclusive name: the rules run on what was loaded under the rows' locks.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::{join3, join5};
use mainstay_clock::{Instant, WallTime};
use mainstay_store::lease::table::{Entry, Table};
use mainstay_store::lease::{Fencing, LeaseInfo, Share, Since};
use mainstay_store::{FencingToken, Outcome, Result};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::PostgresLeases;
use super::single::{Parameter, dated, duration, micros, settle, token, unix_millis};
use crate::error::store_error;
use crate::op::Op;
use crate::pool::Lent;
use crate::schema::COUNTER_BITS;

/// What a transaction may see and change.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    /// The names whose rows are locked.
    pub(super) names: Vec<String>,
    /// The operation that asks.
    pub(super) own: Option<Op>,
    /// The operation that must not arrive any more.
    pub(super) released: Option<Op>,
    /// Whether a token is burned for each name.
    pub(super) burn: bool,
}

impl Scope {
    pub(super) fn name(name: &str) -> Self {
        Self { names: vec![name.to_owned()], own: None, released: None, burn: false }
    }
}

/// What was loaded.
#[derive(Default)]
struct Loaded {
    now: i64,
    floor: i64,
    /// Whether the server syncs what is committed.
    synced: bool,
    rows: BTreeMap<String, LeaseRow>,
    entries: BTreeMap<Op, Entry>,
    /// Which places are there, and what they were.
    places: BTreeMap<(String, Op), PlaceRow>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct LeaseRow {
    op: Option<Op>,
    owner: String,
    token: i64,
    until: i64,
    ttl: i64,
    note: String,
    released: Option<Op>,
    names: i32,
    annotation: Option<Vec<u8>>,
    crowd_until: i64,
    /// Milliseconds since 1970; the server writes it whenever the operation changes.
    granted: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PlaceRow {
    owner: String,
    token: Option<i64>,
    share: i16,
    permits: i64,
    number: Option<i64>,
    until: i64,
    ttl: i64,
    note: String,
    names: i32,
    /// Milliseconds since 1970.
    granted: Option<i64>,
}

/// What never ends, in micros since 1970: past the year 2250, and a day below where nanoseconds overflow.
const NEVER: i64 = 9_000_000_000_000_000;

/// A point in time as micros since 1970; what never was is 0.
fn us(column: &str) -> String {
    format!(
        "case when isfinite({column}) then (extract(epoch from {column}) * 1000000)::int8
              when {column} > 'epoch' then {NEVER} else 0 end"
    )
}

/// The same back.
fn at(column: &str) -> String {
    format!(
        "case when {column} >= {NEVER} then 'infinity' when {column} > 0
              then timestamptz 'epoch' + {column} * interval '1 microsecond' else '-infinity' end"
    )
}

fn instant(micros: i64) -> Instant {
    Instant::from_nanos(u64::try_from(micros).unwrap_or(0).saturating_mul(1_000))
}

fn since(instant: Instant) -> i64 {
    i64::try_from(instant.as_nanos().div_ceil(1_000)).unwrap_or(i64::MAX)
}

fn number(n: FencingToken) -> i64 {
    i64::try_from(n.get()).unwrap_or(i64::MAX)
}

fn op(row: &Row, column: usize) -> Option<Op> {
    row.get::<_, Option<&[u8]>>(column).and_then(Op::from_slice)
}

impl Loaded {
    fn lease(&mut self, row: &Row) {
        let lease = LeaseRow {
            op: op(row, 1),
            owner: row.get(2),
            token: row.get(3),
            until: row.get(4),
            ttl: row.get(5),
            note: row.get(6),
            released: op(row, 7),
            names: row.get(8),
            annotation: row.get(9),
            crowd_until: row.get(10),
            granted: row.get(11),
        };
        let name: String = row.get(0);
        if let Some(op) = lease.op.filter(|_| lease.until > self.now) {
            let place = PlaceRow {
                owner: lease.owner.clone(),
                token: Some(lease.token),
                share: 0,
                permits: 0,
                number: None,
                until: lease.until,
                ttl: lease.ttl,
                note: lease.note.clone(),
                names: lease.names,
                granted: lease.granted,
            };
            self.entry(&name, op, &place);
        }
        self.rows.insert(name, lease);
    }

    fn place(&mut self, row: &Row) {
        let place = PlaceRow {
            owner: row.get(2),
            token: row.get(3),
            share: row.get(4),
            permits: row.get(5),
            number: row.get(6),
            until: row.get(7),
            ttl: row.get(8),
            note: row.get(9),
            names: row.get(10),
            granted: row.get(11),
        };
        let Some(op) = op(row, 1) else { return };
        let name: String = row.get(0);
        self.entry(&name, op, &place);
        self.places.insert((name, op), place);
    }

    /// One name of an operation; its entry gathers them.
    fn entry(&mut self, name: &str, op: Op, place: &PlaceRow) {
        let share = Share::of_columns(u8::try_from(place.share).unwrap_or(u8::MAX), place.permits);
        let entry = self.entries.entry(op).or_insert_with(|| Entry {
            op_id: op.text(),
            owner: place.owner.clone(),
            names: BTreeMap::new(),
            share,
            ttl: duration(place.ttl),
            until: instant(place.until),
            note: place.note.clone(),
            number: place.number.and_then(|n| u64::try_from(n).ok()),
            since: dated(place.granted),
        });
        entry.names.insert(name.to_owned(), place.token.map(token));
        entry.until = entry.until.min(instant(place.until));
        // Names that are not loaded, or were broken, still count: they are no longer held with these.
        let seen = entry.names.keys().filter(|n| !n.starts_with('\0')).count();
        let all = usize::try_from(place.names).unwrap_or(0);
        entry.names.retain(|n, _| !n.starts_with('\0'));
        for missing in seen..all {
            entry.names.insert(format!("\0{missing}"), None);
        }
    }

    /// The names of its own operation are known by name.
    fn own(&mut self, scope: &Scope) {
        let Some(entry) = scope.own.and_then(|op| self.entries.get_mut(&op)) else { return };
        for name in &scope.names {
            if entry.names.contains_key(name) {
                continue;
            }
            let stand_in = entry.names.keys().find(|n| n.starts_with('\0')).cloned();
            if stand_in.is_some_and(|n| entry.names.remove(&n).is_some()) {
                entry.names.insert(name.clone(), None);
            }
        }
    }

    fn table(&self) -> Table {
        let stored = self.rows.values().map(|row| row.token).max().unwrap_or(0);
        let last = token(stored.max(self.floor.saturating_sub(1)));
        let arrivals = self.places.values().filter_map(|p| p.number).max().unwrap_or(0);
        let notes = self.rows.iter().filter_map(|(name, row)| Some((name.clone(), row.annotation.clone()?)));
        let arrivals = u64::try_from(arrivals).unwrap_or(0);
        let mut table = Table::load(last, arrivals, self.entries.values().cloned(), notes);
        table.tick(instant(self.now));
        table.date(Since::store(WallTime::from_unix_millis(self.now / 1_000)));
        table
    }

    /// The rows and places as they are to be, after the rules ran.
    fn after(
        &self,
        scope: &Scope,
        table: &Table,
    ) -> (BTreeMap<String, LeaseRow>, BTreeMap<(String, Op), PlaceRow>) {
        let ops: BTreeSet<Op> = self.entries.keys().copied().chain(scope.own).collect();
        let mut places = BTreeMap::new();
        let mut rows = self.rows.clone();
        for (name, row) in &mut rows {
            if scope.burn {
                row.token = row.token.max(number(table.last_token()));
            }
            row.released = scope.released.or(row.released);
            row.annotation = table.annotation(name).map(<[u8]>::to_vec);
            (row.op, row.until, row.crowd_until) = (None, 0, 0);
        }
        for op in ops {
            let Some(entry) = table.entry(&op.text()) else { continue };
            let names = i32::try_from(entry.names.len()).unwrap_or(i32::MAX);
            for (name, held) in &entry.names {
                let Some(row) = rows.get_mut(name) else { continue };
                let token = held.map(number);
                let until = since(entry.until);
                row.token = row.token.max(token.unwrap_or(0));
                if entry.share == Share::Exclusive && entry.number.is_none() {
                    if token.is_some() {
                        (row.op, row.owner, row.until) = (Some(op), entry.owner.clone(), until);
                        (row.ttl, row.note, row.names) = (micros(entry.ttl), entry.note.clone(), names);
                    }
                    continue;
                }
                if token.is_none() && entry.number.is_none() {
                    continue;
                }
                row.crowd_until = row.crowd_until.max(until);
                places.insert((name.clone(), op), place_row(&entry, token, names));
            }
        }
        (rows, places)
    }
}

fn place_row(entry: &Entry, token: Option<i64>, names: i32) -> PlaceRow {
    let (share, permits) = entry.share.columns();
    PlaceRow {
        owner: entry.owner.clone(),
        token,
        share: share.into(),
        permits,
        number: entry.number.and_then(|n| i64::try_from(n).ok()),
        until: since(entry.until),
        ttl: micros(entry.ttl),
        note: entry.note.clone(),
        names,
        granted: entry.since.map(|since| since.at.unix_millis()),
    }
}

impl PostgresLeases {
    /// Where an operation holds or waits.
    pub(super) async fn scope_of(&self, op: Op, released: Option<Op>) -> Result<Scope> {
        let lent = self.0.pool.lend().await?;
        let (lease, place) = (&self.0.tables.lease, &self.0.tables.place);
        let sql = format!(
            "select name from {lease} where op_id = $1 union select name from {place} where op_id = $1"
        );
        let bytes = op.bytes();
        let parameters: [Parameter<'_>; 1] = [(&bytes, Type::BYTEA)];
        let found = lent.client().query_typed(&sql, &parameters);
        let found = self.0.pool.within("a look", Outcome::NotApplied, async { Ok(found.await) }).await?;
        let (lent, rows) = settle(lent, found)?;
        lent.give_back();
        let names = rows.iter().map(|row| row.get(0)).collect();
        Ok(Scope { names, own: Some(op), released, burn: false })
    }

    /// Names that somebody holds, in byte order.
    pub(super) async fn held_names(&self, prefix: &str, limit: usize) -> Result<Vec<String>> {
        let lent = self.0.pool.lend().await?;
        let (lease, place) = (&self.0.tables.lease, &self.0.tables.place);
        let sql = format!(
            "select name from {lease} l where name >= $1 and starts_with(name, $1)
               and (op_id is not null and expires_at > clock_timestamp() or crowd_until > clock_timestamp() and exists
                 (select from {place} p where p.name = l.name and p.token is not null and p.expires_at > clock_timestamp()))
             order by name limit $2"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let parameters: [Parameter<'_>; 2] = [(&prefix, Type::TEXT), (&limit, Type::INT8)];
        let found = lent.client().query_typed(&sql, &parameters);
        let found = self.0.pool.within("a look", Outcome::NotApplied, async { Ok(found.await) }).await?;
        let (lent, rows) = settle(lent, found)?;
        lent.give_back();
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// What is known about these names, without locking anything.
    pub(super) async fn look(&self, names: &[String]) -> Result<Vec<LeaseInfo>> {
        let lent = self.0.pool.lend().await?;
        let ((now, lease), place) = (self.loads(""), self.load_places());
        let parameters: [Parameter<'_>; 1] = [(&names, Type::TEXT_ARRAY)];
        let client = lent.client();
        let found = join3(
            client.query_typed_one(&now, &[]),
            client.query_typed(&lease, &parameters),
            client.query_typed(&place, &parameters),
        );
        let found = self.0.pool.within("a look", Outcome::NotApplied, async { Ok(found.await) }).await?;
        let (lent, now) = settle(lent, found.0)?;
        let (lent, rows) = settle(lent, found.1)?;
        let (lent, places) = settle(lent, found.2)?;
        lent.give_back();
        let mut loaded = Loaded { now: now.get(0), floor: 0, ..Loaded::default() };
        rows.iter().for_each(|row| loaded.lease(row));
        places.iter().for_each(|row| loaded.place(row));
        let table = loaded.table();
        let info = |(name, row): (&String, &LeaseRow)| {
            let mut info = table.inspect(name);
            info.last_token = token(row.token);
            info
        };
        Ok(loaded.rows.iter().map(info).collect())
    }

    fn loads(&self, lock: &str) -> (String, String) {
        let lease = &self.0.tables.lease;
        // A floor fails on a standby, where looking is allowed.
        let floor = if lock.is_empty() { "0::int8".to_owned() } else { self.0.tables.floor() };
        let now = format!(
            "select (extract(epoch from clock_timestamp()) * 1000000)::int8, {floor}, \
             current_setting('synchronous_commit') <> 'off'"
        );
        let rows = format!(
            "select name, op_id, owner, token, {until}, ttl, note, released_op, names, annotation, {crowd}, {granted}
             from {lease} where name = any($1) order by name {lock}",
            until = us("expires_at"),
            crowd = us("crowd_until"),
            granted = unix_millis("granted_at"),
        );
        (now, rows)
    }

    fn load_places(&self) -> String {
        format!(
            "select name, op_id, owner, token, share, permits, number, {until}, ttl, note, names, {granted}
             from {place} where name = any($1)",
            until = us("expires_at"),
            granted = unix_millis("granted_at"),
            place = self.0.tables.place,
        )
    }

    /// Locks the rows of `scope`, runs `work` on what is there, and writes back what changed.
    pub(super) async fn exclusively<T>(
        &self,
        scope: Scope,
        work: impl Fn(&mut Table) -> Result<T>,
    ) -> Result<T> {
        let lent = self.0.pool.lend().await?;
        let transaction = async {
            let loaded = self.load(&lent, &scope).await.map_err(store_error)?;
            let mut table = loaded.table();
            let before = table.last_token();
            let arrived = scope.own.is_some_and(|op| {
                scope.released.is_none()
                    && !loaded.entries.contains_key(&op)
                    && loaded.rows.values().any(|row| row.released == Some(op))
            });
            let done = if arrived {
                let text = "this acquisition was released before it arrived";
                Err(mainstay_store::Error::new(mainstay_store::ErrorKind::ApiMisuse, text))
            } else {
                work(&mut table)
            };
            if table.last_token().get() >> COUNTER_BITS != before.get() >> COUNTER_BITS {
                // Undone with the connection: a carry would forge an epoch.
                let text = "the range of fencing tokens is used up for this name";
                return Err(mainstay_store::Error::new(mainstay_store::ErrorKind::TooLarge, text));
            }
            if self.0.fencing == Fencing::Strict && !loaded.synced && table.last_token() != before {
                // Undone with the connection as well: a token that a crash forgets would be drawn again.
                let text = "`synchronous_commit` was switched off while Strict fencing is promised; no token is drawn";
                let error = mainstay_store::Error::new(mainstay_store::ErrorKind::Unsupported, text);
                return Err(error.with_outcome(Outcome::NotApplied));
            }
            let (rows, places) = loaded.after(&scope, &table);
            self.write(lent.client(), &loaded, &rows, &places).await.map_err(store_error)?;
            Ok((done, table.take_changed()))
        };
        // Whatever fails here drops the connection, and with it the transaction.
        let (done, changed) = self.0.pool.within("a transaction", Outcome::Unknown, transaction).await?;
        self.tell(&lent, changed.iter().filter(|name| !name.starts_with('\0')));
        lent.give_back();
        done
    }

    async fn load(&self, lent: &Lent, scope: &Scope) -> std::result::Result<Loaded, tokio_postgres::Error> {
        let client = lent.client();
        let lease = &self.0.tables.lease;
        let ((now, rows), places) = (self.loads("for update"), self.load_places());
        let make = format!(
            "insert into {lease} (name, token) select n, 0 from (select distinct n collate \"C\" as n
             from unnest($1::text[]) as t(n) order by 1) as s on conflict (name) do nothing"
        );
        let names: [Parameter<'_>; 1] = [(&scope.names, Type::TEXT_ARRAY)];
        // Sent together, run in order: the clock is read under the locks.
        let (begun, made, rows, places, now) = join5(
            client.batch_execute("begin isolation level read committed"),
            client.execute_typed(&make, &names),
            client.query_typed(&rows, &names),
            client.query_typed(&places, &names),
            client.query_typed_one(&now, &[]),
        )
        .await;
        begun?;
        made?;
        let (rows, places, now) = (rows?, places?, now?);
        let mut loaded =
            Loaded { now: now.get(0), floor: now.get(1), synced: now.get(2), ..Loaded::default() };
        rows.iter().for_each(|row| loaded.lease(row));
        places.iter().for_each(|row| loaded.place(row));
        loaded.own(scope);
        Ok(loaded)
    }

    /// Writes what differs and commits. Sent together; the first failure counts, and then the commit is none.
    async fn write(
        &self,
        client: &tokio_postgres::Client,
        before: &Loaded,
        rows: &BTreeMap<String, LeaseRow>,
        places: &BTreeMap<(String, Op), PlaceRow>,
    ) -> std::result::Result<(), tokio_postgres::Error> {
        let rows: Vec<_> = rows.iter().filter(|(name, row)| before.rows.get(*name) != Some(row)).collect();
        let gone: Vec<_> =
            before.places.keys().filter(|key| places.get(*key) != before.places.get(*key)).collect();
        let new: Vec<_> =
            places.iter().filter(|(key, place)| before.places.get(*key) != Some(place)).collect();
        let (leases, leave, join) = (
            self.write_leases(client, &rows),
            self.remove_places(client, &gone),
            self.write_places(client, &new),
        );
        let (leases, left, joined) = join3(leases, leave, join).await;
        leases?;
        left?;
        joined?;
        client.batch_execute("commit").await
    }

    async fn write_leases(
        &self,
        client: &tokio_postgres::Client,
        rows: &[(&String, &LeaseRow)],
    ) -> std::result::Result<(), tokio_postgres::Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "update {lease} l set op_id = u.op, owner = u.owner, token = u.token, expires_at = {until}, ttl = u.ttl,
               granted_at = case when l.op_id is not distinct from u.op then l.granted_at else clock_timestamp() end,
               note = u.note, released_op = u.released, names = u.names, annotation = u.annotation, crowd_until = {crowd}
             from unnest($1::text[], $2::bytea[], $3::text[], $4::int8[], $5::int8[], $6::int8[], $7::text[], $8::bytea[],
                         $9::int4[], $10::bytea[], $11::int8[])
               as u(name, op, owner, token, until, ttl, note, released, names, annotation, crowd)
             where l.name = u.name",
            lease = self.0.tables.lease,
            until = at("u.until"),
            crowd = at("u.crowd"),
        );
        let bytes = |op: Option<Op>| op.map(|op| op.bytes().to_vec());
        let names: Vec<&str> = rows.iter().map(|(name, _)| name.as_str()).collect();
        let column = |f: fn(&LeaseRow) -> i64| -> Vec<i64> { rows.iter().map(|(_, row)| f(row)).collect() };
        let text = |f: fn(&LeaseRow) -> &str| -> Vec<&str> { rows.iter().map(|(_, row)| f(row)).collect() };
        let (ops, owners) = (rows.iter().map(|(_, r)| bytes(r.op)).collect::<Vec<_>>(), text(|r| &r.owner));
        let (tokens, untils, ttls) = (column(|r| r.token), column(|r| r.until), column(|r| r.ttl));
        let (notes, crowds) = (text(|r| &r.note), column(|r| r.crowd_until));
        let released: Vec<_> = rows.iter().map(|(_, r)| bytes(r.released)).collect();
        let counts: Vec<i32> = rows.iter().map(|(_, r)| r.names).collect();
        let annotations: Vec<_> = rows.iter().map(|(_, r)| r.annotation.as_deref()).collect();
        let parameters: [Parameter<'_>; 11] = [
            (&names, Type::TEXT_ARRAY),
            (&ops, Type::BYTEA_ARRAY),
            (&owners, Type::TEXT_ARRAY),
            (&tokens, Type::INT8_ARRAY),
            (&untils, Type::INT8_ARRAY),
            (&ttls, Type::INT8_ARRAY),
            (&notes, Type::TEXT_ARRAY),
            (&released, Type::BYTEA_ARRAY),
            (&counts, Type::INT4_ARRAY),
            (&annotations, Type::BYTEA_ARRAY),
            (&crowds, Type::INT8_ARRAY),
        ];
        client.execute_typed(&sql, &parameters).await.map(drop)
    }

    async fn remove_places(
        &self,
        client: &tokio_postgres::Client,
        gone: &[&(String, Op)],
    ) -> std::result::Result<(), tokio_postgres::Error> {
        if gone.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "delete from {place} p using unnest($1::text[], $2::bytea[]) as u(name, op)
             where p.name = u.name and p.op_id = u.op",
            place = self.0.tables.place
        );
        let names: Vec<&str> = gone.iter().map(|(name, _)| name.as_str()).collect();
        let ops: Vec<&[u8]> = gone.iter().map(|(_, op)| op.bytes()).collect();
        let parameters: [Parameter<'_>; 2] = [(&names, Type::TEXT_ARRAY), (&ops, Type::BYTEA_ARRAY)];
        client.execute_typed(&sql, &parameters).await.map(drop)
    }

    async fn write_places(
        &self,
        client: &tokio_postgres::Client,
        new: &[(&(String, Op), &PlaceRow)],
    ) -> std::result::Result<(), tokio_postgres::Error> {
        if new.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "insert into {place} (name, op_id, owner, token, share, permits, number, expires_at, ttl, note, names, granted_at)
             select name, op, owner, token, share, permits, number, {until}, ttl, note, names,
               timestamptz 'epoch' + granted * interval '1 millisecond'
             from unnest($1::text[], $2::bytea[], $3::text[], $4::int8[], $5::int2[], $6::int8[], $7::int8[], $8::int8[],
                         $9::int8[], $10::text[], $11::int4[], $12::int8[])
               as u(name, op, owner, token, share, permits, number, until, ttl, note, names, granted)",
            place = self.0.tables.place,
            until = at("u.until"),
        );
        let names: Vec<&str> = new.iter().map(|((name, _), _)| name.as_str()).collect();
        let ops: Vec<&[u8]> = new.iter().map(|((_, op), _)| op.bytes()).collect();
        let text = |f: fn(&PlaceRow) -> &str| -> Vec<&str> { new.iter().map(|(_, row)| f(row)).collect() };
        let column = |f: fn(&PlaceRow) -> i64| -> Vec<i64> { new.iter().map(|(_, row)| f(row)).collect() };
        let some =
            |f: fn(&PlaceRow) -> Option<i64>| -> Vec<_> { new.iter().map(|(_, row)| f(row)).collect() };
        let (owners, notes) = (text(|r| &r.owner), text(|r| &r.note));
        let (tokens, numbers) = (some(|r| r.token), some(|r| r.number));
        let (permits, untils, ttls) = (column(|r| r.permits), column(|r| r.until), column(|r| r.ttl));
        let shares: Vec<i16> = new.iter().map(|(_, row)| row.share).collect();
        let counts: Vec<i32> = new.iter().map(|(_, row)| row.names).collect();
        let granted = some(|r| r.granted);
        let parameters: [Parameter<'_>; 12] = [
            (&names, Type::TEXT_ARRAY),
            (&ops, Type::BYTEA_ARRAY),
            (&owners, Type::TEXT_ARRAY),
            (&tokens, Type::INT8_ARRAY),
            (&shares, Type::INT2_ARRAY),
            (&permits, Type::INT8_ARRAY),
            (&numbers, Type::INT8_ARRAY),
            (&untils, Type::INT8_ARRAY),
            (&ttls, Type::INT8_ARRAY),
            (&notes, Type::TEXT_ARRAY),
            (&counts, Type::INT4_ARRAY),
            (&granted, Type::INT8_ARRAY),
        ];
        client.execute_typed(&sql, &parameters).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{at, duration, instant, since, us};

    #[test]
    fn time_goes_out_and_comes_back_in_micros() {
        assert_eq!(since(instant(1_767_225_600_000_001)), 1_767_225_600_000_001);
        assert_eq!(since(instant(-5)), 0);
        assert_eq!(duration(1_500_000), Duration::from_millis(1_500));
        assert!(us("c").contains("isfinite(c)") && at("c").contains("-infinity"));
    }
}
