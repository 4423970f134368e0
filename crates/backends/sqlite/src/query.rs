//! Reads of the journal, and the format of its log rows.

use std::collections::BTreeMap;

use mainstay_clock::WallTime;
use mainstay_store::Result;
use mainstay_store::journal::{
    Audit, Cursor, EventPage, Filter, Hash, JournalEvent, Loaded, MAX_EVENT_BYTES, NewRecord, Page,
    PageCursor, Post, Record, Reply, Row, SagaStatus, StatusChange, StatusCount, StoredAudit,
    StoredDefinition, Summary, Uid, Unreadable,
};
use mainstay_store::{Error, ErrorKind};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

use crate::error::{corrupt, store_error};

/// A cursor is the row of the log and the record in it; a row never has more than this many records.
const CURSOR_BITS: u32 = 14;
const CURSOR_END: u64 = (1 << CURSOR_BITS) - 1;

/// Several records in one row: kind, length, bytes, each little-endian.
pub(crate) fn pack(records: &[NewRecord]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(records.iter().map(|r| r.bytes.len() + 6).sum());
    for record in records {
        packed.extend_from_slice(&record.kind.to_le_bytes());
        packed.extend_from_slice(&u32::try_from(record.bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        packed.extend_from_slice(&record.bytes);
    }
    packed
}

fn unpack(mut packed: &[u8]) -> Option<Vec<(u16, Vec<u8>)>> {
    let mut records = Vec::new();
    while !packed.is_empty() {
        let (head, rest) = packed.split_at_checked(6)?;
        let kind = u16::from_le_bytes([head[0], head[1]]);
        let len = u32::from_le_bytes([head[2], head[3], head[4], head[5]]);
        let (bytes, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        records.push((kind, bytes.to_vec()));
        packed = rest;
    }
    Some(records)
}

/// Guards a row against bit rot and against rows that moved.
pub(crate) fn checksum(rid: i64, seq: u64, at: i64, previous: i64, packed: &[u8]) -> [u8; 8] {
    let mut head = [0; 32];
    for (part, n) in head.chunks_exact_mut(8).zip([
        rid.to_le_bytes(),
        seq.to_le_bytes(),
        at.to_le_bytes(),
        previous.to_le_bytes(),
    ]) {
        part.copy_from_slice(&n);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head).update(packed);
    let mut sum = [0; 8];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    sum
}

struct LogRow {
    n: u64,
    rid: i64,
    seq: u64,
    at: i64,
    status: String,
    previous: i64,
    sum: [u8; 8],
    packed: Vec<u8>,
}

impl LogRow {
    const COLUMNS: &'static str = "l.n, l.rid, l.seq, l.at, l.status, l.previous, l.sum, l.records";

    fn read(r: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            n: r.get(0)?,
            rid: r.get(1)?,
            seq: r.get(2)?,
            at: r.get(3)?,
            status: r.get(4)?,
            previous: r.get(5)?,
            sum: r.get(6)?,
            packed: r.get(7)?,
        })
    }

    fn records(&self) -> Result<Vec<Record>> {
        if checksum(self.rid, self.seq, self.at, self.previous, &self.packed) != self.sum {
            return Err(corrupt(format!("log row {} fails its checksum", self.n)));
        }
        let unpacked =
            unpack(&self.packed).ok_or_else(|| corrupt(format!("log row {} is cut short", self.n)))?;
        let at = WallTime::from_unix_millis(self.at);
        let records = unpacked.into_iter().zip(self.seq..);
        Ok(records.map(|((kind, bytes), seq)| Record { seq, kind, at, bytes }).collect())
    }
}

const SUMMARY: &str = "s.uid, s.id, s.definition, s.version, s.definition_hash, s.input_hash, s.epoch, s.next_seq,
  s.owner, s.created, s.updated, s.status, s.retrying, s.paused, s.due, s.next_try, s.step, s.attempt, s.error,
  s.parent, s.parent_step, s.rid, s.overdue";

fn read_summary(r: &rusqlite::Row<'_>) -> rusqlite::Result<(i64, Summary)> {
    let status: String = r.get(11)?;
    let status = SagaStatus::parse(&status).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(
            11,
            rusqlite::types::Type::Text,
            format!("status `{status}`").into(),
        )
    })?;
    let time = |i: usize| -> rusqlite::Result<Option<WallTime>> {
        Ok(r.get::<_, Option<i64>>(i)?.map(WallTime::from_unix_millis))
    };
    let parent: Option<String> = r.get(19)?;
    let parent_step: Option<String> = r.get(20)?;
    let summary = Summary {
        uid: Uid::new(r.get::<_, String>(0)?),
        id: r.get(1)?,
        definition: r.get(2)?,
        version: r.get(3)?,
        definition_hash: Hash(r.get(4)?),
        input_hash: Hash(r.get(5)?),
        epoch: r.get(6)?,
        next_seq: r.get(7)?,
        owner: r.get(8)?,
        created: time(9)?.unwrap_or_default(),
        updated: time(10)?.unwrap_or_default(),
        row: Row {
            status,
            retrying: r.get(12)?,
            paused: r.get(13)?,
            overdue: r.get(22)?,
            due: time(14)?,
            next_try: time(15)?,
            step: r.get(16)?,
            attempt: r.get(17)?,
            error: r.get(18)?,
            attrs: BTreeMap::new(),
        },
        parent: parent.map(|p| (Uid::new(p), parent_step.unwrap_or_default())),
    };
    Ok((r.get(21)?, summary))
}

fn add_attrs(conn: &Connection, rid: i64, summary: &mut Summary) -> rusqlite::Result<()> {
    let mut statement = conn.prepare_cached("select key, value from attr where rid = ?1")?;
    let attrs = statement.query_map([rid], |r| Ok((r.get(0)?, r.get(1)?)))?;
    summary.row.attrs = attrs.collect::<rusqlite::Result<_>>()?;
    Ok(())
}

fn find(conn: &Connection, uid: &Uid) -> rusqlite::Result<Option<(i64, Summary)>> {
    let sql = format!("select {SUMMARY} from saga s where s.uid = ?1");
    let found = conn.prepare_cached(&sql)?.query_row([uid.as_str()], read_summary).optional()?;
    let Some((rid, mut summary)) = found else { return Ok(None) };
    add_attrs(conn, rid, &mut summary)?;
    Ok(Some((rid, summary)))
}

pub(crate) fn summary(conn: &Connection, uid: &Uid) -> Result<Option<Summary>> {
    Ok(find(conn, uid).map_err(store_error)?.map(|(_, s)| s))
}

/// The rows of a saga's log, oldest first: followed from the newest back.
fn log_of(conn: &Connection, uid: &Uid, rid: i64) -> Result<Vec<LogRow>> {
    let sql = format!("select {} from log l where l.n = ?1", LogRow::COLUMNS);
    let mut statement = conn.prepare_cached(&sql).map_err(store_error)?;
    let newest = conn
        .prepare_cached("select last_n from saga where rid = ?1")
        .and_then(|mut s| s.query_row([rid], |r| r.get::<_, i64>(0)));
    let mut n = newest.map_err(store_error)?;
    let mut rows: Vec<LogRow> = Vec::new();
    while n > 0 {
        let row = statement.query_row([n], LogRow::read).optional().map_err(store_error)?;
        let broken = || corrupt(format!("the log of saga {uid} has a gap at row {n}"));
        let row = row.filter(|row| row.rid == rid && row.previous < n).ok_or_else(broken)?;
        n = row.previous;
        rows.push(row);
    }
    rows.reverse();
    Ok(rows)
}

/// One transaction, so that head, log and inbox belong together.
pub(crate) fn load(conn: &Connection, uid: &Uid) -> Result<Option<Loaded>> {
    let tx = conn.unchecked_transaction().map_err(store_error)?;
    let Some((rid, summary)) = find(&tx, uid).map_err(store_error)? else { return Ok(None) };
    let rows = log_of(&tx, uid, rid)?;
    let mut records: Vec<Record> = Vec::new();
    for row in &rows {
        let expected = records.len() as u64 + 1;
        if row.seq != expected {
            return Err(corrupt(format!("the log of saga {uid} has a gap before record {}", row.seq)));
        }
        records.extend(row.records()?);
    }
    if records.len() as u64 + 1 != summary.next_seq {
        return Err(corrupt(format!(
            "the log of saga {uid} ends at {}, its head is {}",
            records.len(),
            summary.next_seq
        )));
    }
    let posts = posts_of(&tx, rid)?;
    Ok(Some(Loaded { summary, records, posts }))
}

fn posts_of(conn: &Connection, rid: i64) -> Result<Vec<Post>> {
    conn.prepare_cached(
        "select number, message, kind, at, bytes from post where rid = ?1 and drained = 0 order by number",
    )
    .and_then(|mut s| {
        s.query_map([rid], |r| {
            Ok(Post {
                number: r.get(0)?,
                message: r.get(1)?,
                kind: r.get(2)?,
                at: WallTime::from_unix_millis(r.get(3)?),
                bytes: r.get(4)?,
            })
        })?
        .collect()
    })
    .map_err(store_error)
}

/// What waits in the inbox of a saga, without a look at its log.
pub(crate) fn inbox(conn: &Connection, uid: &Uid) -> Result<Vec<Post>> {
    let rid = conn
        .prepare_cached("select rid from saga where uid = ?1")
        .and_then(|mut s| s.query_row([uid.as_str()], |r| r.get(0)).optional())
        .map_err(store_error)?;
    rid.map_or(Ok(Vec::new()), |rid| posts_of(conn, rid))
}

/// Conditions with their bound values: nothing of a filter ever becomes SQL text.
#[derive(Default)]
struct Where {
    sql: Vec<String>,
    values: Vec<Value>,
}

impl Where {
    fn add(&mut self, sql: &str, value: impl Into<Value>) {
        self.values.push(value.into());
        self.sql.push(sql.replace('?', &format!("?{}", self.values.len())));
    }

    /// `few`: the definition has few sagas, see [`is_rare`].
    fn of(filter: &Filter, few: bool) -> Self {
        let mut w = Self::default();
        if !filter.status.is_empty() {
            // Names of a closed set, not input.
            let names: Vec<String> = filter.status.iter().map(|s| format!("'{s}'")).collect();
            w.sql.push(format!("s.status in ({})", names.join(", ")));
        }
        if filter.attention {
            // As in the index, literally: a planner proves no more.
            w.sql.push("(s.status = 'needs_attention' or s.overdue = 1)".to_owned());
        }
        let flags = [
            ("s.retrying = ?", filter.retrying),
            ("s.paused = ?", filter.paused),
            ("s.overdue = ?", filter.overdue),
        ];
        for (sql, flag) in flags {
            flag.into_iter().for_each(|f| w.add(sql, i64::from(f)));
        }
        // The sign keeps the planner from the index by definition and id, which would mean to sort all of them.
        let definition = if few || filter.id.is_some() { "s.definition = ?" } else { "+s.definition = ?" };
        let texts = [
            (definition, &filter.definition),
            ("s.step = ?", &filter.step),
            ("s.id = ?", &filter.id),
            ("instr(s.error, ?) > 0", &filter.error_contains),
        ];
        for (sql, text) in texts {
            text.iter().for_each(|t| w.add(sql, t.clone()));
        }
        let numbers = [
            ("s.attempt >= ?", filter.attempt_gte.map(i64::from)),
            ("s.attempt <= ?", filter.attempt_lte.map(i64::from)),
            ("s.created >= ?", filter.created_gte.map(WallTime::unix_millis)),
            ("s.created <= ?", filter.created_lte.map(WallTime::unix_millis)),
        ];
        for (sql, number) in numbers {
            number.into_iter().for_each(|n| w.add(sql, n));
        }
        if filter.id.is_some() && filter.definition.is_none() {
            // Ids are indexed below definitions: one look-up for each.
            w.sql.push(format!("s.definition in ({DEFINITIONS})"));
        }
        // The first attribute leads, see `page_sql`.
        if let Some((key, value)) = filter.attrs.first_key_value() {
            w.add("a0.key = ?", key.clone());
            w.add("a0.value = ?", value.clone());
            w.sql.push("a0.rid = s.rid".to_owned());
        }
        for (key, value) in filter.attrs.iter().skip(1) {
            w.values.push(key.clone().into());
            let key_at = w.values.len();
            let sql = format!(
                "exists (select 1 from attr a where a.rid = s.rid and a.key = ?{key_at} and a.value = ?)"
            );
            w.values.push(value.clone().into());
            let at = w.values.len();
            w.sql.push(sql.replace("= ?)", &format!("= ?{at})")));
        }
        w
    }
}

/// The definitions that there are sagas of, by one look-up each instead of a scan.
const DEFINITIONS: &str = "with recursive d(name) as (select min(definition) from saga union all
  select (select min(definition) from saga where definition > d.name) from d where d.name is not null)
  select name from d where name is not null";

/// So few sagas that all of them may be sorted for a page.
const RARE: i64 = 2_000;

/// Whether a definition has few sagas. A page of one that has many is found by going back from the newest saga; a
/// page of one that has few by sorting them.
fn is_rare(conn: &Connection, definition: &str) -> rusqlite::Result<bool> {
    let sql = "select count(*) from (select 1 from saga where definition = ?1 limit ?2)";
    let count: i64 = conn.prepare_cached(sql)?.query_row(params![definition, RARE], |r| r.get(0))?;
    Ok(count < RARE)
}

/// The statement of a page: rows come newest first from an index, so that a page costs what it shows and what is
/// passed over on the way.
fn page_sql(
    conn: &Connection,
    filter: &Filter,
    after: Option<&PageCursor>,
    limit: usize,
) -> Result<(String, Vec<Value>)> {
    let few = filter.definition.as_deref().map(|d| is_rare(conn, d)).transpose().map_err(store_error)?;
    let mut w = Where::of(filter, few.unwrap_or(false));
    // Where attributes are asked for, their index has the order.
    let (from, rid) = match filter.attrs.is_empty() {
        true => ("saga s", "s.rid"),
        false => ("attr a0 cross join saga s", "a0.rid"),
    };
    if let Some(PageCursor(text)) = after {
        let before: i64 = text.parse().map_err(|_| {
            Error::new(ErrorKind::ApiMisuse, format!("`{text}` is no cursor of this journal"))
        })?;
        w.add(&format!("{rid} < ?"), before);
    }
    let conditions = if w.sql.is_empty() { "1".to_owned() } else { w.sql.join(" and ") };
    // One more than asked for tells whether there is a next page.
    let limit = limit.saturating_add(1);
    let sql = format!("select {SUMMARY} from {from} where {conditions} order by {rid} desc limit {limit}");
    Ok((sql, w.values))
}

pub(crate) fn page(
    conn: &Connection,
    filter: &Filter,
    after: Option<&PageCursor>,
    limit: usize,
) -> Result<Page> {
    let (sql, values) = page_sql(conn, filter, after, limit)?;
    let mut found: Vec<(i64, Summary)> = conn
        .prepare_cached(&sql)
        .and_then(|mut s| s.query_map(params_from_iter(values), read_summary)?.collect())
        .map_err(store_error)?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|(rid, _)| PageCursor(rid.to_string()));
    let mut rows = Vec::with_capacity(found.len());
    for (rid, mut summary) in found {
        add_attrs(conn, rid, &mut summary).map_err(store_error)?;
        rows.push(summary);
    }
    Ok(Page { rows, next })
}

const TALLY: &str = "select definition, status, count from tally where count > 0";

/// Finished sagas by definition and status, counted as they finish.
pub(crate) fn tally(conn: &Connection) -> Result<Vec<(String, SagaStatus, u64)>> {
    let rows: Vec<(String, String, u64)> = conn
        .prepare_cached(TALLY)
        .and_then(|mut s| s.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?.collect())
        .map_err(store_error)?;
    rows.into_iter()
        .map(|(definition, status, count)| {
            let known = SagaStatus::parse(&status);
            Ok((definition, known.ok_or_else(|| corrupt(format!("status `{status}` is unknown")))?, count))
        })
        .collect()
}

/// The oldest finished saga of a status and definition.
pub(crate) const OLDEST: &str = "select ended from saga where status = ?1 and definition = ?2 and ended is not null order by ended limit 1";

/// Counts what has not finished, by the index of statuses.
fn open_counts() -> String {
    let open: Vec<&str> = SagaStatus::ALL.iter().filter(|s| !s.is_final()).map(|s| s.as_str()).collect();
    // Names of a closed set, not input.
    format!(
        "select definition, status, sum(retrying), count(*), min(ifnull(needs_since, updated)), sum(overdue) from saga indexed by saga_status
         where status in ('{}') group by definition, status",
        open.join("', '")
    )
}

/// Costs as much as there are unfinished sagas, however many are kept that finished.
pub(crate) fn counts(conn: &Connection) -> Result<Vec<StatusCount>> {
    let tx = conn.unchecked_transaction().map_err(store_error)?;
    let mut counts: Vec<StatusCount> = tx
        .prepare_cached(&open_counts())
        .and_then(|mut s| {
            s.query_map([], |r| {
                let status: String = r.get(1)?;
                Ok(StatusCount {
                    definition: r.get(0)?,
                    status: SagaStatus::parse(&status).unwrap_or(SagaStatus::NeedsAttention),
                    retrying: r.get(2)?,
                    count: r.get(3)?,
                    oldest: WallTime::from_unix_millis(r.get(4)?),
                    overdue: r.get(5)?,
                })
            })?
            .collect()
        })
        .map_err(store_error)?;
    for (definition, status, count) in tally(&tx)? {
        let oldest: Option<i64> = tx
            .prepare_cached(OLDEST)
            .and_then(|mut s| s.query_row(params![status.as_str(), definition], |r| r.get(0)).optional())
            .map_err(store_error)?;
        let oldest = WallTime::from_unix_millis(oldest.unwrap_or_default());
        counts.push(StatusCount { definition, status, retrying: 0, overdue: 0, count, oldest });
    }
    counts.sort_by(|a, b| (&a.definition, a.status.as_str()).cmp(&(&b.definition, b.status.as_str())));
    Ok(counts)
}

pub(crate) fn definitions(conn: &Connection) -> Result<Vec<StoredDefinition>> {
    conn.prepare_cached("select name, version, hash, bytes from definition order by name, version")
        .and_then(|mut s| {
            s.query_map([], |r| {
                Ok(StoredDefinition {
                    name: r.get(0)?,
                    version: r.get(1)?,
                    hash: Hash(r.get(2)?),
                    bytes: r.get(3)?,
                })
            })?
            .collect()
        })
        .map_err(store_error)
}

pub(crate) fn reply(conn: &Connection, key: &str) -> rusqlite::Result<Option<Reply>> {
    conn.prepare_cached("select key, request, status, body from reply where key = ?1")?
        .query_row([key], |r| {
            Ok(Reply { key: r.get(0)?, request: Hash(r.get(1)?), status: r.get(2)?, body: r.get(3)? })
        })
        .optional()
}

pub(crate) fn last_cursor(conn: &Connection) -> Result<Cursor> {
    let n: Option<u64> = conn
        .prepare_cached("select max(n) from log")
        .and_then(|mut s| s.query_row([], |r| r.get(0)))
        .map_err(store_error)?;
    Ok(n.map_or_else(Cursor::default, |n| Cursor(n << CURSOR_BITS | CURSOR_END)))
}

pub(crate) fn events(conn: &Connection, after: Option<Cursor>, limit: usize) -> Result<EventPage> {
    let tx = conn.unchecked_transaction().map_err(store_error)?;
    let after = after.unwrap_or_default();
    let from = after.0 >> CURSOR_BITS;
    let purged: u64 = tx.query_row("select last_n from purged", [], |r| r.get(0)).map_err(store_error)?;
    let sql = format!(
        "select {}, s.uid, s.id, s.definition from log l join saga s on s.rid = l.rid where l.n >= ?1 order by l.n limit ?2",
        LogRow::COLUMNS
    );
    let mut statement = tx.prepare_cached(&sql).map_err(store_error)?;
    let rows = statement
        .query_map(params![from, limit.saturating_add(1)], |r| {
            Ok((LogRow::read(r)?, r.get::<_, String>(8)?, r.get(9)?, r.get(10)?))
        })
        .map_err(store_error)?;
    let mut bytes = 0;
    let reset = after.0 > 0 && from < purged;
    let mut page =
        EventPage { events: Vec::new(), unreadable: Vec::new(), changes: Vec::new(), next: after, reset };
    // One by one: what does not fit is not read.
    for row in rows {
        let (row, uid, id, definition): (LogRow, String, String, String) = row.map_err(store_error)?;
        let end = Cursor(row.n << CURSOR_BITS | CURSOR_END);
        let saga = Uid::new(uid.as_str());
        let records = match row.records() {
            Ok(records) => records,
            Err(_) if end <= after => continue,
            Err(why) => {
                let why = why.to_string();
                page.unreadable.push(Unreadable { cursor: end, saga, id, definition, why });
                page.next = end;
                continue;
            }
        };
        let status = SagaStatus::parse(&row.status).unwrap_or(SagaStatus::NeedsAttention);
        if records.is_empty() && end > after {
            let at = WallTime::from_unix_millis(row.at);
            page.changes.push(StatusChange { cursor: end, saga, id, definition, at, status });
            page.next = end;
            continue;
        }
        for (i, record) in records.into_iter().enumerate() {
            let cursor = Cursor(row.n << CURSOR_BITS | i as u64);
            if cursor <= after {
                continue;
            }
            let first = page.events.is_empty();
            bytes += record.bytes.len();
            if page.events.len() >= limit || (bytes > MAX_EVENT_BYTES && !first) {
                return Ok(page);
            }
            page.next = cursor;
            page.events.push(JournalEvent {
                cursor,
                saga: saga.clone(),
                id: id.clone(),
                definition: definition.clone(),
                record,
                status,
            });
        }
        // Past the whole row: nothing can be added to it.
        page.next = page.next.max(end);
    }
    Ok(page)
}

pub(crate) fn audit(conn: &Connection, after: u64, limit: usize) -> Result<Vec<StoredAudit>> {
    conn.prepare_cached(
        "select seq, at, who, action, target, reason, before, after, request_id, chain from audit where seq > ?1 order by seq limit ?2",
    )
    .and_then(|mut s| {
        // No entry is behind the largest number that there is.
        s.query_map(params![i64::try_from(after).unwrap_or(i64::MAX), limit], |r| {
            Ok(StoredAudit {
                seq: r.get(0)?,
                at: WallTime::from_unix_millis(r.get(1)?),
                entry: Audit {
                    who: r.get(2)?,
                    action: r.get(3)?,
                    target: r.get(4)?,
                    reason: r.get(5)?,
                    before: r.get(6)?,
                    after: r.get(7)?,
                    request_id: r.get(8)?,
                },
                chain: Hash(r.get(9)?),
            })
        })?
        .collect()
    })
    .map_err(store_error)
}

#[cfg(test)]
mod tests {
    use mainstay_clock::{Rng as _, SeededRng};

    use super::*;

    /// Bytes behind a checksum that fits are still bytes: no panic, and nothing that was not written.
    #[test]
    fn sec_30_the_decoder_of_log_rows_survives_any_bytes() {
        let rng = SeededRng::new(30);
        let bytes = |n| (0..rng.below(n)).map(|_| rng.below(256) as u8).collect::<Vec<_>>();
        let (mut refused, mut read) = (0, 0);
        for _ in 0..20_000 {
            let records: Vec<NewRecord> =
                (0..rng.below(4)).map(|kind| NewRecord { kind: kind as u16, bytes: bytes(20) }).collect();
            let mut packed = pack(&records);
            let back: Vec<_> = records.iter().map(|r| (r.kind, r.bytes.clone())).collect();
            assert_eq!(unpack(&packed), Some(back));
            match rng.below(3) {
                0 => packed.truncate(rng.below(packed.len() as u64 + 1) as usize),
                1 => packed.extend(bytes(12)),
                _ => packed.iter_mut().for_each(|b| *b ^= u8::from(rng.below(8) == 0) << rng.below(8)),
            }
            match unpack(&packed) {
                // A row is read whole or not at all.
                Some(found) => {
                    assert_eq!(found.iter().map(|(_, b)| 6 + b.len()).sum::<usize>(), packed.len());
                    read += 1;
                }
                None => refused += 1,
            }
        }
        assert!(refused > 1_000 && read > 1_000, "{refused} {read}");
    }

    /// How a page is found, as SQLite tells.
    fn plan(conn: &Connection, filter: &Filter) -> String {
        let (sql, values) = page_sql(conn, filter, Some(&PageCursor("1000000".to_owned())), 50).unwrap();
        let mut statement = conn.prepare(&format!("explain query plan {sql}")).unwrap();
        let lines = statement.query_map(params_from_iter(values), |r| r.get::<_, String>(3)).unwrap();
        lines.collect::<rusqlite::Result<Vec<_>>>().unwrap().join("; ")
    }

    #[test]
    fn if_c12_pages_of_lists_are_found_in_order_and_not_by_sorting_what_there_is() {
        let conn = Connection::open_in_memory().unwrap();
        crate::schema::migrate(&conn).unwrap();
        let insert = "insert into saga (uid, definition, version, definition_hash, id, input_hash, epoch, next_seq,
            bytes, incarnation, strikes, created, updated, status, retrying, paused, attempt, last_n)
            select printf('u%d', value), iif(value % 100, 'common', 'rare'), 1, zeroblob(32), printf('i%d', value), zeroblob(32), 1, 1,
            0, 0, 0, 0, 0, 'completed', 0, 0, 0, 0 from generate_series(1, 5000)";
        let series = "with recursive generate_series(value) as (select 1 union all select value + 1 from
            generate_series where value < 5000) select value from generate_series";
        let insert = insert.replace("generate_series(1, 5000)", &format!("({series})"));
        conn.execute_batch(&insert).unwrap();
        let of = |f: &dyn Fn(&mut Filter)| {
            let mut filter = Filter::default();
            f(&mut filter);
            plan(&conn, &filter)
        };
        for ordered in [
            of(&|_| {}),
            of(&|f| f.status = vec![SagaStatus::NeedsAttention]),
            of(&|f| f.attention = true),
            of(&|f| f.definition = Some("common".to_owned())),
            of(&|f| f.error_contains = Some("x".to_owned())),
            of(&|f| f.attrs = [("a", "1"), ("b", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
        ] {
            assert!(!ordered.contains("TEMP B-TREE"), "{ordered}");
        }
        let waiting = of(&|f| f.attention = true);
        assert!(waiting.contains("INDEX saga_attention"), "{waiting}");
        let attrs = of(&|f| f.attrs = [("a".to_owned(), "1".to_owned())].into());
        assert!(attrs.contains("INDEX attr_value (key=? AND value=? AND rid<?)"), "{attrs}");
        let rare = of(&|f| f.definition = Some("rare".to_owned()));
        assert!(rare.contains("(definition=? AND rowid<?)") || rare.contains("(definition=?)"), "{rare}");
        let id = of(&|f| f.id = Some("i7".to_owned()));
        assert!(id.contains("(definition=? AND id=?"), "{id}");
        let ids = |f: Filter| -> Vec<String> {
            page(&conn, &f, None, 2).unwrap().rows.into_iter().map(|s| s.id).collect()
        };
        assert_eq!(ids(Filter { id: Some("i7".to_owned()), ..Filter::default() }), ["i7"]);
        assert_eq!(
            ids(Filter { definition: Some("rare".to_owned()), ..Filter::default() }),
            ["i5000", "i4900"]
        );
        assert_eq!(
            ids(Filter { definition: Some("common".to_owned()), ..Filter::default() }),
            ["i4999", "i4998"]
        );
    }

    fn finished(conn: &Connection, sagas: i64) {
        conn.execute_batch(&format!(
            "with recursive n(i) as (select ifnull(max(rid), 0) + 1 from saga union all
               select i + 1 from n where i <= (select ifnull(max(rid), 0) + {sagas} - 1 from saga))
             insert into saga (rid, uid, definition, version, definition_hash, id, input_hash, epoch, next_seq, bytes,
               incarnation, strikes, created, updated, ended, status, retrying, paused, attempt, last_n)
             select i, printf('u%d', i), iif(i % 3, 'a', 'b'), 1, zeroblob(32), printf('i%d', i), zeroblob(32), 1, 1, 0,
               0, 0, 0, i, i, iif(i % 2, 'completed', 'compensated'), 0, 0, 0, 0 from n;
             delete from tally;
             insert into tally select definition, status, count(*) from saga where ended is not null group by 1, 2;"
        ))
        .unwrap();
    }

    /// Steps of SQLite's machine that counting takes.
    fn effort(conn: &Connection) -> i32 {
        use rusqlite::StatementStatus::VmStep;
        conn.flush_prepared_statement_cache();
        counts(conn).unwrap();
        let steps = |sql: &str| conn.prepare_cached(sql).unwrap().get_status(VmStep);
        steps(&open_counts()) + steps(OLDEST) + steps(TALLY)
    }

    #[test]
    fn if_c12_counting_costs_the_same_however_many_sagas_have_finished() {
        let conn = Connection::open_in_memory().unwrap();
        crate::schema::migrate(&conn).unwrap();
        finished(&conn, 100);
        let few = effort(&conn);
        finished(&conn, 20_000);
        assert_eq!(counts(&conn).unwrap().iter().map(|c| c.count).sum::<u64>(), 20_100);
        assert_eq!(counts(&conn).unwrap().len(), 4);
        let many = effort(&conn);
        assert!(many <= few, "{few} steps for a hundred, {many} for twenty thousand");
    }
}
