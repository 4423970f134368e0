//! The journal: writes here, reads in `query`.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::WallTime;
use mainstay_store::journal::{
    Append, Appended, AppendedWith, Audit, ClaimRequest, Claimed, Create, Created, Cursor, EventPage, Filter,
    Hash, Loaded, MAX_ID_BYTES, MAX_LOG_BYTES, MAX_POSTS, MAX_RECORD_BYTES, MAX_RECORDS, NewRecord, Page,
    PageCursor, Post, Posted, PurgeRequest, Purged, PutDefinition, Reply, Row, SagaStatus, StatusCount,
    StoredAudit, StoredDefinition, Summary, TxResult, TxWork, Uid,
};
use mainstay_store::{BoxFuture, Error, ErrorKind, Journal, Result};
use rusqlite::{Connection, OptionalExtension, params};

use crate::desk::Head;
use crate::error::corrupt;
use crate::query;
use crate::store::SqliteStore;
use crate::writer::{Pen, Step};

type Write<T> = std::result::Result<T, Step>;

/// Transactional work for [`Journal::append_with`]: runs in a SAVEPOINT on the writer, together with the
/// append. It must be short, must not end the transaction, and runs at most once per call.
///
/// ```
/// use mainstay_sqlite::tx;
/// use mainstay_store::journal::TxWork;
///
/// let work = tx(|conn| {
///     conn.execute("insert into stock values ('apple', 1)", [])?;
///     Ok(Vec::new())
/// });
/// assert!(matches!(work, TxWork::Sync(_)));
/// ```
pub fn tx(work: impl FnOnce(&Connection) -> TxResult + Send + 'static) -> TxWork {
    TxWork::Sync(Box::new(move |any: &mut dyn Any| match any.downcast_ref::<Connection>() {
        Some(conn) => work(conn),
        None => Err("this work needs a SQLite journal".into()),
    }))
}

fn check_id(what: &str, id: &str) -> Result<()> {
    if id.is_empty() || id.len() > MAX_ID_BYTES {
        let text = format!("{what} has {} bytes; allowed: 1 to {MAX_ID_BYTES}", id.len());
        return Err(Error::new(ErrorKind::TooLarge, text));
    }
    Ok(())
}

fn check_records(records: &[NewRecord], have: u64, bytes: usize) -> Result<()> {
    let refuse = |text: String| Err(Error::new(ErrorKind::TooLarge, text));
    if let Some(big) = records.iter().find(|r| r.bytes.len() > MAX_RECORD_BYTES) {
        return refuse(format!(
            "a record has {} bytes; at most {MAX_RECORD_BYTES} are allowed",
            big.bytes.len()
        ));
    }
    if have + records.len() as u64 > MAX_RECORDS {
        return refuse(format!("the saga would have more than {MAX_RECORDS} records"));
    }
    if bytes + size(records) > MAX_LOG_BYTES {
        return refuse(format!("the saga's log would exceed {MAX_LOG_BYTES} bytes"));
    }
    Ok(())
}

fn size(records: &[NewRecord]) -> usize {
    records.iter().map(|r| r.bytes.len()).sum()
}

fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}

/// SQLite integers are signed; our counters never come near the limit.
fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Appends `records` to the log of the saga whose head is `head`; the number of the new row. A row without records says
/// that the status changed.
fn write_log(pen: &mut Pen, head: &Head, status: SagaStatus, records: &[NewRecord]) -> rusqlite::Result<i64> {
    if records.is_empty() && head.status == status {
        return Ok(head.last_n);
    }
    let (n, now) = (pen.desk.n(), pen.now);
    let packed = query::pack(records);
    let sum = query::checksum(head.rid, head.next_seq, now, head.last_n, &packed);
    pen.conn
        .prepare_cached(
            "insert into log (n, rid, seq, at, status, previous, sum, records) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![n, head.rid, head.next_seq, now, status.as_str(), head.last_n, sum, packed])?;
    Ok(n)
}

fn held(conn: &Connection, rid: i64, locks: &[String]) -> rusqlite::Result<Option<(String, Uid)>> {
    for lock in locks {
        let by: Option<String> = conn
            .prepare_cached(
                "select s.uid from lock l join saga s on s.rid = l.rid where l.name = ?1 and l.rid <> ?2",
            )?
            .query_row(params![lock, rid], |r| r.get(0))
            .optional()?;
        if let Some(by) = by {
            return Ok(Some((lock.clone(), Uid::new(by))));
        }
    }
    Ok(None)
}

fn take_locks(conn: &Connection, rid: i64, locks: &[String]) -> rusqlite::Result<()> {
    for lock in locks {
        conn.prepare_cached("insert into lock values (?1, ?2) on conflict do nothing")?
            .execute(params![lock, rid])?;
    }
    Ok(())
}

fn keep_reply(conn: &Connection, reply: &Reply, now: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("insert or replace into reply values (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        reply.key,
        reply.request.0,
        reply.status,
        reply.body,
        now
    ])?;
    Ok(())
}

fn put_audit(conn: &Connection, entry: &Audit, now: i64) -> rusqlite::Result<()> {
    let (seq, previous): (u64, Hash) = conn
        .prepare_cached("select seq, chain from audit order by seq desc limit 1")?
        .query_row([], |r| Ok((r.get(0)?, Hash(r.get(1)?))))
        .optional()?
        .unwrap_or((0, Hash([0; 32])));
    let seq = seq + 1;
    let chain = mainstay_store::journal::StoredAudit::chain_of(
        &previous,
        seq,
        WallTime::from_unix_millis(now),
        entry,
    );
    conn.prepare_cached("insert into audit values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?.execute(
        params![
            seq,
            now,
            entry.who,
            entry.action,
            entry.target,
            entry.reason,
            entry.before,
            entry.after,
            entry.request_id,
            chain.0
        ],
    )?;
    Ok(())
}

/// `(epoch, until)` of the caller, raised; refused when a newer run of the node is known.
fn extend_node(conn: &Connection, node: &str, incarnation: u64, ttl: Duration, now: i64) -> Write<()> {
    let changed = conn
        .prepare_cached(
            "insert into node values (?1, ?2, ?3) on conflict (name) do update
             set incarnation = excluded.incarnation, until = excluded.until where incarnation <= excluded.incarnation",
        )?
        .execute(params![node, int(incarnation), now.saturating_add(millis(ttl))])?;
    if changed == 0 {
        return Err(Error::new(ErrorKind::ApiMisuse, format!("a newer run of node `{node}` exists")).into());
    }
    Ok(())
}

/// As [`extend_node`], but a claim that was extended a moment ago is not written again: it keeps at least
/// seven eighths of `ttl`. For creates, whose callers conclude nothing about their other claims.
fn hold_node(conn: &Connection, node: &str, incarnation: u64, ttl: Duration, now: i64) -> Write<()> {
    let enough = now.saturating_add(millis(ttl - ttl / 8));
    let holds = conn
        .prepare_cached("select 1 from node where name = ?1 and incarnation = ?2 and until >= ?3")?
        .exists(params![node, int(incarnation), enough])?;
    if holds { Ok(()) } else { extend_node(conn, node, incarnation, ttl, now) }
}

fn create(pen: &mut Pen, c: &Create) -> Write<Created> {
    let (conn, now) = (&pen.conn, pen.now);
    check_id("the id", &c.id)?;
    check_records(&c.records, 0, 0)?;
    if let Some(reply) = &c.reply
        && let Some(old) = query::reply(conn, &reply.key)?
    {
        return Ok(if old.request == reply.request {
            Created::Replayed(old)
        } else {
            Created::ReplyMismatch
        });
    }
    let existing: Option<(String, [u8; 32], String)> = conn
        .prepare_cached(
            "select uid, input_hash, status from saga where definition = ?1 and id = ?2
             union all select uid, input_hash, status from tombstone where definition = ?1 and id = ?2 limit 1",
        )?
        .query_row(params![c.definition, c.id], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
        .optional()?;
    if let Some((uid, stored, status)) = existing {
        let uid = Uid::new(uid);
        if stored != c.input_hash.0 {
            return Ok(Created::Conflict { uid, stored: Hash(stored), given: c.input_hash });
        }
        if let Some(reply) = c.reply_of(&uid) {
            keep_reply(conn, &reply, now)?;
        }
        let status =
            SagaStatus::parse(&status).ok_or_else(|| corrupt(format!("status `{status}` is unknown")))?;
        return Ok(Created::Same { uid, status });
    }
    if let Some((lock, by)) = held(conn, 0, &c.locks)? {
        return Ok(Created::LockHeld { lock, by });
    }
    if let Some(owner) = &c.owner {
        hold_node(conn, &owner.node, owner.incarnation, owner.ttl, now)?;
    }
    insert_saga(pen, c)
}

fn insert_saga(pen: &mut Pen, c: &Create) -> Write<Created> {
    let now = pen.now;
    let row = &c.row;
    let mut head = Head {
        rid: pen.desk.rid(),
        epoch: i64::from(c.owner.is_some()),
        next_seq: 1,
        bytes: size(&c.records),
        posts: 0,
        status: row.status,
        due: due(row),
        overdue: row.overdue,
        last_n: 0,
        definition: pen.desk.name(&c.definition),
    };
    head.last_n = write_log(pen, &head, row.status, &c.records)?;
    head.next_seq += c.records.len() as u64;
    let parent = c.parent.as_ref();
    let conn = &pen.conn;
    conn.prepare_cached(
        "insert into saga (rid, uid, definition, version, definition_hash, id, input_hash, epoch, next_seq, bytes, owner,
         incarnation, strikes, created, updated, status, retrying, paused, due, next_try, step, attempt, error, parent,
         parent_step, last_n, ended, needs_since, overdue) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, 0, ?13,
         ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27)",
    )?
    .execute(params![
        head.rid, c.uid.as_str(), c.definition, c.version, c.definition_hash.0, c.id, c.input_hash.0, head.epoch,
        head.next_seq, head.bytes, c.owner.as_ref().map(|o| &o.node),
        c.owner.as_ref().map_or(0, |o| int(o.incarnation)), now, row.status.as_str(), row.retrying, row.paused,
        head.due, row.next_try.map(WallTime::unix_millis), row.step, row.attempt, row.error,
        parent.map(|p| p.0.as_str()), parent.map(|p| &p.1), head.last_n, ended(row, now),
        needs(row.status).then_some(now), row.overdue
    ])?;
    for (key, value) in &row.attrs {
        conn.prepare_cached("insert into attr values (?1, ?2, ?3)")?
            .execute(params![head.rid, key, value])?;
    }
    take_locks(conn, head.rid, &c.locks)?;
    if let Some(reply) = &c.reply {
        keep_reply(conn, reply, now)?;
    }
    pen.desk.ended(&head);
    let created = Created::Created { epoch: u64::try_from(head.epoch).unwrap_or(0), next_seq: head.next_seq };
    pen.desk.keep(&c.uid, head);
    Ok(created)
}

/// When a saga that ends now ended: what the purge looks for.
fn ended(row: &Row, now: i64) -> Option<i64> {
    row.status.is_final().then_some(now)
}

fn needs(status: SagaStatus) -> bool {
    status == SagaStatus::NeedsAttention
}

/// A finished saga is never due.
fn due(row: &Row) -> Option<i64> {
    row.due.filter(|_| !row.status.is_final()).map(WallTime::unix_millis)
}

/// When the saga is due after an append that drained what it drains: at once while a post waits that its writer has not
/// seen.
fn due_after(conn: &Connection, a: &Append, head: &Head, now: i64) -> rusqlite::Result<Option<i64>> {
    let due = due(&a.row);
    if head.posts == 0 || a.row.status.is_final() {
        return Ok(due);
    }
    let unseen = conn
        .prepare_cached("select 1 from post where rid = ?1 and drained = 0 and number > ?2")?
        .exists(params![head.rid, int(a.seen)])?;
    Ok(if unseen { Some(at_once(due, now)) } else { due })
}

fn at_once(due: Option<i64>, now: i64) -> i64 {
    due.map_or(now, |due| due.min(now))
}

/// Epoch, sequence and locks, evaluated where the append happens.
fn admit(pen: &mut Pen, a: &Append) -> Write<std::result::Result<Head, Appended>> {
    let Some(head) = pen.desk.head(&pen.conn, &a.saga)? else { return Ok(Err(Appended::Fenced)) };
    if head.epoch != int(a.epoch) {
        return Ok(Err(Appended::Fenced));
    }
    if head.next_seq != a.expected_seq {
        return Ok(Err(Appended::Conflict { next_seq: head.next_seq }));
    }
    if let Some((lock, by)) = held(&pen.conn, head.rid, &a.take_locks)? {
        return Ok(Err(Appended::LockHeld { lock, by }));
    }
    Ok(Ok(head))
}

fn append(pen: &mut Pen, a: &Append, mut head: Head) -> Write<Appended> {
    check_records(&a.records, head.next_seq - 1, head.bytes)?;
    head.last_n = write_log(pen, &head, a.row.status, &a.records)?;
    head.next_seq += a.records.len() as u64;
    head.bytes += size(&a.records);
    let (conn, now) = (&pen.conn, pen.now);
    for number in &a.drain {
        let drained = conn
            .prepare_cached(
                "update post set drained = 1, bytes = x'' where number = ?1 and rid = ?2 and drained = 0",
            )?
            .execute(params![int(*number), head.rid])?;
        head.posts -= i64::try_from(drained).unwrap_or(0);
    }
    let (before, due) = (head.status, due_after(conn, a, &head, now)?);
    if before != a.row.status || head.due != due || head.overdue != a.row.overdue {
        (head.status, head.due, head.overdue) = (a.row.status, due, a.row.overdue);
        move_saga(conn, &head, &a.row, now)?;
    } else {
        write_row(conn, &head, &a.row, now)?;
    }
    keep_side_effects(conn, a, &head, now)?;
    if before != head.status {
        if before.is_final() {
            pen.desk.count(Arc::clone(&head.definition), before, -1);
        }
        pen.desk.ended(&head);
    }
    let (next_seq, posts) = (head.next_seq, head.posts > 0);
    pen.desk.keep(&a.saga, head);
    Ok(Appended::Appended { next_seq, posts })
}

/// All columns that an append may change, those that indexes stand on included.
fn move_saga(conn: &Connection, head: &Head, row: &Row, now: i64) -> rusqlite::Result<()> {
    let is_final = head.status.is_final();
    conn.prepare_cached(
        "update saga set next_seq = ?2, bytes = ?3, updated = ?4, retrying = ?5, paused = ?6, next_try = ?7,
         step = ?8, attempt = ?9, error = ?10, posts = ?11, last_n = ?12, strikes = 0, status = ?13, due = ?14,
         ended = ?15, owner = case when ?16 then null else owner end,
         needs_since = case when ?17 then ifnull(needs_since, ?4) end, overdue = ?18 where rid = ?1",
    )?
    .execute(params![
        head.rid, head.next_seq, head.bytes, now, row.retrying, row.paused, row.next_try.map(WallTime::unix_millis),
        row.step, row.attempt, row.error, head.posts, head.last_n, head.status.as_str(), head.due,
        is_final.then_some(now), is_final, needs(head.status), head.overdue
    ])?;
    Ok(())
}

/// The columns that change with every append, and that no index stands on: none is touched.
fn write_row(conn: &Connection, head: &Head, row: &Row, now: i64) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "update saga set next_seq = ?2, bytes = ?3, updated = ?4, retrying = ?5, paused = ?6, next_try = ?7,
         step = ?8, attempt = ?9, error = ?10, posts = ?11, last_n = ?12, strikes = 0 where rid = ?1",
    )?
    .execute(params![
        head.rid,
        head.next_seq,
        head.bytes,
        now,
        row.retrying,
        row.paused,
        row.next_try.map(WallTime::unix_millis),
        row.step,
        row.attempt,
        row.error,
        head.posts,
        head.last_n
    ])?;
    Ok(())
}

/// Locks, replies and audit entries of an append.
fn keep_side_effects(conn: &Connection, a: &Append, head: &Head, now: i64) -> rusqlite::Result<()> {
    take_locks(conn, head.rid, &a.take_locks)?;
    for lock in &a.free_locks {
        conn.prepare_cached("delete from lock where name = ?1 and rid = ?2")?
            .execute(params![lock, head.rid])?;
    }
    if head.status.is_final() {
        conn.prepare_cached("delete from lock where rid = ?1")?.execute([head.rid])?;
    }
    for reply in &a.replies {
        keep_reply(conn, reply, now)?;
    }
    for entry in &a.audit {
        put_audit(conn, entry, now)?;
    }
    Ok(())
}

fn append_with(pen: &mut Pen, mut a: Append, work: mainstay_store::journal::SyncWork) -> Write<AppendedWith> {
    let head = match admit(pen, &a)? {
        Ok(head) => head,
        Err(refused) => return Ok(AppendedWith::Append(refused, Vec::new())),
    };
    pen.conn.execute_batch("savepoint work")?;
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&mut pen.conn)))
        .unwrap_or_else(|_| Err("the work panicked".into()));
    if pen.conn.is_autocommit() {
        return Err(Step::Ended);
    }
    let made = match done {
        Ok(made) => made,
        Err(why) => {
            pen.conn.execute_batch("rollback to work; release work")?;
            return Ok(AppendedWith::WorkFailed(why));
        }
    };
    a.records.extend(made.iter().cloned());
    match append(pen, &a, head) {
        Ok(appended) => {
            pen.conn.execute_batch("release work")?;
            Ok(AppendedWith::Append(appended, made))
        }
        Err(Step::Refuse(error)) => {
            // The effect goes with the records that could not be kept.
            pen.conn.execute_batch("rollback to work; release work")?;
            Err(Step::Refuse(error))
        }
        failed => failed.map(|appended| AppendedWith::Append(appended, made)),
    }
}

fn post(pen: &mut Pen, uid: &Uid, message: &str, kind: u16, bytes: &[u8]) -> Write<Posted> {
    let (conn, now) = (&pen.conn, pen.now);
    check_id("the message id", message)?;
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(Error::new(ErrorKind::TooLarge, format!("a message has {} bytes", bytes.len())).into());
    }
    let Some(mut head) = pen.desk.head(conn, uid)? else { return Ok(Posted::NoSuchSaga) };
    let known: Option<bool> = conn
        .prepare_cached("select drained from post where rid = ?1 and message = ?2")?
        .query_row(params![head.rid, message], |r| r.get(0))
        .optional()?;
    if let Some(drained) = known {
        if !drained && !head.status.is_final() {
            make_due(pen, uid, head)?;
        }
        return Ok(Posted::Duplicate);
    }
    if head.status.is_final() {
        return Ok(Posted::Final(head.status));
    }
    if usize::try_from(head.posts).unwrap_or(usize::MAX) >= MAX_POSTS {
        return Ok(Posted::InboxFull);
    }
    conn.prepare_cached("insert into post (rid, message, kind, at, bytes) values (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![head.rid, message, kind, now, bytes])?;
    head.posts += 1;
    make_due(pen, uid, head)?;
    Ok(Posted::Posted)
}

/// A saga with `head.posts` posts, due at once.
fn make_due(pen: &mut Pen, uid: &Uid, mut head: Head) -> rusqlite::Result<()> {
    head.due = Some(at_once(head.due, pen.now));
    pen.conn
        .prepare_cached("update saga set posts = ?2, due = ?3 where rid = ?1")?
        .execute(params![head.rid, head.posts, head.due])?;
    pen.desk.keep(uid, head);
    Ok(())
}

/// What may be claimed, by kind of owner: each walks one range of the index by owner.
const CLAIMABLE: [&str; 3] = [
    "select rid, uid, epoch, strikes from saga
     where owner = ?2 and incarnation < ?3 and due <= ?1 order by due limit ?4",
    "select rid, uid, epoch, strikes from saga where owner is null and incarnation = 0 and due <= ?1 order by due limit ?4",
    "select rid, uid, epoch, strikes from saga
     where owner in (select name from node where name <> ?2) and due <= ?1 and not exists (
       select 1 from node where name = saga.owner and until > ?1 and node.incarnation <= saga.incarnation)
     order by due limit ?4",
];

/// Bits of a claim epoch below the base: no saga is claimed as often, and a participant that reads its fencing token as a
/// double still tells one from the next.
const CLAIM_BITS: u32 = 32;

fn claim(pen: &mut Pen, c: &ClaimRequest, epoch: u16) -> Write<Vec<Claimed>> {
    let (conn, now, me) = (&pen.conn, pen.now, &c.claimant);
    extend_node(conn, &me.node, me.incarnation, me.ttl, now)?;
    let mut due = Vec::new();
    for sql in CLAIMABLE {
        let left = c.limit - due.len();
        let mut statement = conn.prepare_cached(sql)?;
        let found = statement.query_map(params![now, me.node, int(me.incarnation), left], |r| {
            Ok((r.get::<_, i64>(0)?, r.get::<_, String>(1)?, r.get::<_, i64>(2)?, r.get::<_, u32>(3)?))
        })?;
        for row in found {
            due.push(row?);
        }
    }
    let floor = i64::from(epoch) << CLAIM_BITS;
    let mut claimed = Vec::with_capacity(due.len());
    for (rid, uid, epoch, strikes) in due {
        let epoch = epoch.max(floor) + 1;
        conn.prepare_cached(
            "update saga set epoch = ?2, owner = ?3, incarnation = ?4, strikes = ?5, due = ?6 where rid = ?1",
        )?
        .execute(params![rid, epoch, me.node, int(me.incarnation), strikes + 1, now])?;
        let epoch = u64::try_from(epoch).unwrap_or(0);
        let saga = Uid::new(uid);
        pen.desk.forget(&saga);
        claimed.push(Claimed { saga, epoch, strikes: strikes + 1 });
    }
    Ok(claimed)
}

/// Finished sagas of one status and definition, the oldest first.
pub(crate) const OLD_SAGAS: &str =
    "select rid from saga where status = ?1 and definition = ?2 and ended < ?3 order by ended limit ?4";
/// Identities and replies that nobody asks for any more: as many as the batch allows.
pub(crate) const OLD_IDENTITIES: [&str; 2] = [
    "delete from tombstone where (definition, id) in
       (select definition, id from tombstone where at < ?1 order by at limit ?2)",
    "delete from reply where key in (select key from reply where at < ?1 order by at limit ?2)",
];

/// A finished saga to be purged.
struct Old {
    rid: i64,
    definition: Arc<str>,
    status: SagaStatus,
}

fn old_sagas(conn: &Connection, p: &PurgeRequest) -> Write<Vec<Old>> {
    let mut old = Vec::new();
    for (definition, status, _) in query::tally(conn)? {
        let definition: Arc<str> = definition.into();
        let before = if status == SagaStatus::Completed { p.completed_before } else { p.compensated_before };
        let mut statement = conn.prepare_cached(OLD_SAGAS)?;
        let left = p.limit.saturating_sub(old.len());
        let found = statement
            .query_map(params![status.as_str(), definition, before.unix_millis(), left], |r| r.get(0))?;
        for rid in found {
            old.push(Old { rid: rid?, definition: Arc::clone(&definition), status });
        }
    }
    Ok(old)
}

fn purge(pen: &mut Pen, p: &PurgeRequest) -> Write<Purged> {
    let conn = &pen.conn;
    let old = old_sagas(conn, p)?;
    for Old { rid, .. } in &old {
        conn.prepare_cached(
            "insert or replace into tombstone select definition, id, uid, input_hash, status, updated from saga where rid = ?1",
        )?
        .execute([rid])?;
        conn.prepare_cached(
            "update purged set last_rid = max(last_rid, ?1),
             last_n = max(last_n, ifnull((select last_n from saga where rid = ?1), 0))",
        )?
        .execute([rid])?;
        for sql in [
            "with recursive row (n) as (
               select last_n from saga where rid = ?1 union all
               select previous from log join row using (n) where previous > 0)
             delete from log where n in (select n from row) and rid = ?1",
            "delete from post where rid = ?1",
            "delete from attr where rid = ?1",
            "delete from saga where rid = ?1",
        ] {
            conn.prepare_cached(sql)?.execute([rid])?;
        }
    }
    let before = p.tombstones_before.unix_millis();
    let mut tombstones = 0;
    for sql in OLD_IDENTITIES {
        tombstones += conn.prepare_cached(sql)?.execute(params![before, p.limit])?;
    }
    let sagas = old.len();
    for Old { definition, status, .. } in old {
        pen.desk.count(definition, status, -1);
    }
    Ok(Purged { sagas, tombstones })
}

fn put_definition(conn: &Connection, d: &StoredDefinition) -> Write<PutDefinition> {
    let old: Option<[u8; 32]> = conn
        .prepare_cached("select hash from definition where name = ?1 and version = ?2")?
        .query_row(params![d.name, d.version], |r| r.get(0))
        .optional()?;
    if let Some(stored) = old.filter(|h| *h != d.hash.0) {
        return Ok(PutDefinition::Conflict { stored: Hash(stored) });
    }
    conn.prepare_cached("insert or replace into definition values (?1, ?2, ?3, ?4)")?
        .execute(params![d.name, d.version, d.hash.0, d.bytes])?;
    Ok(if old.is_some() { PutDefinition::Same } else { PutDefinition::Stored })
}

impl Journal for SqliteStore {
    fn now(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(self.0.writer.write(0, |_, now| Ok(Some(WallTime::from_unix_millis(now)))))
    }

    fn create(&self, c: Create) -> BoxFuture<'_, Result<Created>> {
        Box::pin(self.0.writer.work(size(&c.records), move |pen| create(pen, &c)))
    }

    fn append(&self, a: Append) -> BoxFuture<'_, Result<Appended>> {
        Box::pin(self.0.writer.work(size(&a.records), move |pen| match admit(pen, &a)? {
            Ok(head) => append(pen, &a, head),
            Err(refused) => Ok(refused),
        }))
    }

    fn append_with(&self, a: Append, work: TxWork) -> BoxFuture<'_, Result<AppendedWith>> {
        Box::pin(async move {
            let TxWork::Sync(work) = work else {
                return Err(Error::new(ErrorKind::Unsupported, "SQLite runs synchronous work only"));
            };
            self.0.writer.work_once(size(&a.records), move |pen| append_with(pen, a, work)).await
        })
    }

    fn post(&self, saga: &Uid, message: &str, kind: u16, bytes: Vec<u8>) -> BoxFuture<'_, Result<Posted>> {
        let (saga, message) = (saga.clone(), message.to_owned());
        Box::pin(self.0.writer.work(bytes.len(), move |pen| post(pen, &saga, &message, kind, &bytes)))
    }

    fn claim(&self, c: ClaimRequest) -> BoxFuture<'_, Result<Vec<Claimed>>> {
        let base = self.0.config.epoch;
        Box::pin(self.0.writer.work(0, move |pen| claim(pen, &c, base)))
    }

    fn renew_node(&self, node: &str, incarnation: u64, ttl: Duration) -> BoxFuture<'_, Result<bool>> {
        let node = node.to_owned();
        Box::pin(self.0.writer.write(0, move |conn, now| {
            match extend_node(conn, &node, incarnation, ttl, now) {
                Ok(()) => Ok(true),
                Err(Step::Refuse(_)) => Ok(false),
                Err(failed) => Err(failed),
            }
        }))
    }

    fn hand_back(&self, node: &str, incarnation: u64, sagas: &[Uid]) -> BoxFuture<'_, Result<()>> {
        let (node, sagas) = (node.to_owned(), sagas.to_vec());
        Box::pin(self.0.writer.write(0, move |conn, _| {
            for uid in &sagas {
                conn.prepare_cached(
                    "update saga set owner = null, incarnation = 0, strikes = 0
                     where uid = ?1 and owner = ?2 and incarnation = ?3",
                )?
                .execute(params![uid.as_str(), node, int(incarnation)])?;
            }
            Ok(())
        }))
    }

    fn load(&self, saga: &Uid) -> BoxFuture<'_, Result<Option<Loaded>>> {
        let saga = saga.clone();
        Box::pin(self.read(move |conn| query::load(conn, &saga)))
    }

    fn summary<'a>(&'a self, saga: &'a Uid) -> BoxFuture<'a, Result<Option<Summary>>> {
        let saga = saga.clone();
        Box::pin(self.read(move |conn| query::summary(conn, &saga)))
    }

    fn inbox<'a>(&'a self, saga: &'a Uid) -> BoxFuture<'a, Result<Vec<Post>>> {
        let saga = saga.clone();
        Box::pin(self.read(move |conn| query::inbox(conn, &saga)))
    }

    fn find(&self, definition: &str, id: &str) -> BoxFuture<'_, Result<Option<Summary>>> {
        let filter =
            Filter { definition: Some(definition.to_owned()), id: Some(id.to_owned()), ..Filter::default() };
        Box::pin(self.read(move |conn| Ok(query::page(conn, &filter, None, 1)?.rows.into_iter().next())))
    }

    fn query(
        &self,
        filter: &Filter,
        after: Option<&PageCursor>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Page>> {
        let (filter, after) = (filter.clone(), after.cloned());
        Box::pin(self.scan(move |conn| query::page(conn, &filter, after.as_ref(), limit)))
    }

    fn counts(&self) -> BoxFuture<'_, Result<Vec<StatusCount>>> {
        Box::pin(self.scan(query::counts))
    }

    fn purge(&self, p: PurgeRequest) -> BoxFuture<'_, Result<Purged>> {
        Box::pin(self.0.writer.work(0, move |pen| purge(pen, &p)))
    }

    fn put_definition(&self, d: StoredDefinition) -> BoxFuture<'_, Result<PutDefinition>> {
        Box::pin(self.0.writer.write(d.bytes.len(), move |conn, _| put_definition(conn, &d)))
    }

    fn definitions(&self) -> BoxFuture<'_, Result<Vec<StoredDefinition>>> {
        Box::pin(self.read(query::definitions))
    }

    fn reply(&self, key: &str) -> BoxFuture<'_, Result<Option<Reply>>> {
        let key = key.to_owned();
        Box::pin(self.read(move |conn| query::reply(conn, &key).map_err(crate::error::store_error)))
    }

    fn events(&self, after: Option<&Cursor>, limit: usize) -> BoxFuture<'_, Result<EventPage>> {
        let after = after.copied();
        Box::pin(self.read(move |conn| query::events(conn, after, limit)))
    }

    fn last_cursor(&self) -> BoxFuture<'_, Result<Cursor>> {
        Box::pin(self.read(query::last_cursor))
    }

    fn changed(&self, after: &Cursor) -> BoxFuture<'_, Result<()>> {
        let after = *after;
        Box::pin(async move {
            let mut commits = self.0.changed.clone();
            loop {
                // Seen before the look, so that a commit in between is not missed.
                commits.mark_unchanged();
                if self.read(query::last_cursor).await? > after {
                    return Ok(());
                }
                let stopped = |_| Error::new(ErrorKind::Unavailable, "the writer has stopped");
                commits.changed().await.map_err(stopped)?;
            }
        })
    }

    fn audit(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredAudit>>> {
        Box::pin(self.read(move |conn| query::audit(conn, after, limit)))
    }

    fn put_audit(&self, entry: Audit) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.0.writer.write(0, move |conn, now| Ok(put_audit(conn, &entry, now)?)))
    }
}
