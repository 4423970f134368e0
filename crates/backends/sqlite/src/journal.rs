//! The journal: writes here, reads in `query`.

use std::any::Any;
use std::time::Duration;

use mainstay_clock::WallTime;
use mainstay_store::journal::{
    Append, Appended, AppendedWith, Audit, ClaimRequest, Claimed, Create, Created, Cursor, EventPage, Filter,
    Hash, Loaded, MAX_ID_BYTES, MAX_LOG_BYTES, MAX_POSTS, MAX_RECORD_BYTES, MAX_RECORDS, NewRecord, Page,
    PageCursor, Posted, PurgeRequest, Purged, PutDefinition, Reply, Row, SagaStatus, StatusCount,
    StoredAudit, StoredDefinition, Summary, TxResult, TxWork, Uid,
};
use mainstay_store::{BoxFuture, Error, ErrorKind, Journal, Result};
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::corrupt;
use crate::query;
use crate::store::SqliteStore;
use crate::writer::Step;

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

/// A saga's head as the writer needs it.
struct Head {
    rid: i64,
    epoch: i64,
    next_seq: u64,
    bytes: usize,
    posts: i64,
    status: String,
    due: Option<i64>,
}

fn head(conn: &Connection, uid: &Uid) -> rusqlite::Result<Option<Head>> {
    conn.prepare_cached("select rid, epoch, next_seq, bytes, posts, status, due from saga where uid = ?1")?
        .query_row([uid.as_str()], |r| {
            Ok(Head {
                rid: r.get(0)?,
                epoch: r.get(1)?,
                next_seq: r.get(2)?,
                bytes: r.get(3)?,
                posts: r.get(4)?,
                status: r.get(5)?,
                due: r.get(6)?,
            })
        })
        .optional()
}

fn write_log(
    conn: &Connection,
    rid: i64,
    seq: u64,
    now: i64,
    status: SagaStatus,
    records: &[NewRecord],
) -> rusqlite::Result<()> {
    if records.is_empty() {
        return Ok(());
    }
    let packed = query::pack(records);
    let sum = query::checksum(rid, seq, now, &packed);
    conn.prepare_cached(
        "insert into log (rid, seq, at, status, sum, records) values (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![rid, seq, now, status.as_str(), sum, packed])?;
    Ok(())
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

fn create(conn: &Connection, c: &Create, now: i64) -> Write<Created> {
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
        if let Some(reply) = &c.reply {
            keep_reply(conn, reply, now)?;
        }
        let status =
            SagaStatus::parse(&status).ok_or_else(|| corrupt(format!("status `{status}` is unknown")))?;
        return Ok(Created::Same { uid, status });
    }
    if let Some((lock, by)) = held(conn, 0, &c.locks)? {
        return Ok(Created::LockHeld { lock, by });
    }
    if let Some(owner) = &c.owner {
        extend_node(conn, &owner.node, owner.incarnation, owner.ttl, now)?;
    }
    insert_saga(conn, c, now)
}

fn insert_saga(conn: &Connection, c: &Create, now: i64) -> Write<Created> {
    let epoch = i64::from(c.owner.is_some());
    let next_seq = 1 + c.records.len() as u64;
    let row = &c.row;
    let parent = c.parent.as_ref();
    conn.prepare_cached(
        "insert into saga (uid, definition, version, definition_hash, id, input_hash, epoch, next_seq, bytes, owner,
         incarnation, strikes, created, updated, status, retrying, paused, due, next_try, step, attempt, error, parent,
         parent_step) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, 0, ?12, ?12, ?13, ?14, ?15, ?16, ?17, ?18,
         ?19, ?20, ?21, ?22)",
    )?
    .execute(params![
        c.uid.as_str(), c.definition, c.version, c.definition_hash.0, c.id, c.input_hash.0, epoch, next_seq,
        size(&c.records), c.owner.as_ref().map(|o| &o.node), c.owner.as_ref().map_or(0, |o| int(o.incarnation)), now,
        row.status.as_str(), row.retrying, row.paused, due(row), row.next_try.map(WallTime::unix_millis), row.step,
        row.attempt, row.error, parent.map(|p| p.0.as_str()), parent.map(|p| &p.1)
    ])?;
    let rid = conn.last_insert_rowid();
    for (key, value) in &row.attrs {
        conn.prepare_cached("insert into attr values (?1, ?2, ?3)")?.execute(params![rid, key, value])?;
    }
    take_locks(conn, rid, &c.locks)?;
    write_log(conn, rid, 1, now, row.status, &c.records)?;
    if let Some(reply) = &c.reply {
        keep_reply(conn, reply, now)?;
    }
    Ok(Created::Created { epoch: u64::try_from(epoch).unwrap_or(0), next_seq })
}

/// A finished saga is never due.
fn due(row: &Row) -> Option<i64> {
    row.due.filter(|_| !row.status.is_final()).map(WallTime::unix_millis)
}

/// Epoch, sequence and locks, evaluated where the append happens.
fn admit(conn: &Connection, a: &Append) -> Write<std::result::Result<Head, Appended>> {
    let Some(head) = head(conn, &a.saga)? else { return Ok(Err(Appended::Fenced)) };
    if head.epoch != int(a.epoch) {
        return Ok(Err(Appended::Fenced));
    }
    if head.next_seq != a.expected_seq {
        return Ok(Err(Appended::Conflict { next_seq: head.next_seq }));
    }
    if let Some((lock, by)) = held(conn, head.rid, &a.take_locks)? {
        return Ok(Err(Appended::LockHeld { lock, by }));
    }
    Ok(Ok(head))
}

fn append(conn: &Connection, a: &Append, head: &Head, now: i64) -> Write<Appended> {
    check_records(&a.records, head.next_seq - 1, head.bytes)?;
    let next_seq = head.next_seq + a.records.len() as u64;
    let row = &a.row;
    let is_final = row.status.is_final();
    write_log(conn, head.rid, head.next_seq, now, row.status, &a.records)?;
    let mut drained = 0;
    for number in &a.drain {
        drained += conn
            .prepare_cached(
                "update post set drained = 1, bytes = x'' where number = ?1 and rid = ?2 and drained = 0",
            )?
            .execute(params![int(*number), head.rid])?;
    }
    let posts = head.posts - i64::try_from(drained).unwrap_or(0);
    // Most appends change neither: then no index is touched.
    if head.status != row.status.as_str() || head.due != due(row) {
        conn.prepare_cached("update saga set status = ?2, due = ?3 where rid = ?1")?.execute(params![
            head.rid,
            row.status.as_str(),
            due(row)
        ])?;
    }
    conn.prepare_cached(
        "update saga set next_seq = ?2, bytes = ?3, updated = ?4, retrying = ?5, paused = ?6, next_try = ?7,
         step = ?8, attempt = ?9, error = ?10, posts = ?11, strikes = 0,
         owner = case when ?12 then null else owner end where rid = ?1",
    )?
    .execute(params![
        head.rid,
        next_seq,
        head.bytes + size(&a.records),
        now,
        row.retrying,
        row.paused,
        row.next_try.map(WallTime::unix_millis),
        row.step,
        row.attempt,
        row.error,
        posts,
        is_final
    ])?;
    take_locks(conn, head.rid, &a.take_locks)?;
    for lock in &a.free_locks {
        conn.prepare_cached("delete from lock where name = ?1 and rid = ?2")?
            .execute(params![lock, head.rid])?;
    }
    if is_final {
        conn.prepare_cached("delete from lock where rid = ?1")?.execute([head.rid])?;
    }
    for reply in &a.replies {
        keep_reply(conn, reply, now)?;
    }
    for entry in &a.audit {
        put_audit(conn, entry, now)?;
    }
    Ok(Appended::Appended { next_seq, posts: posts > 0 })
}

fn append_with(
    conn: &mut Connection,
    mut a: Append,
    work: mainstay_store::journal::SyncWork,
    now: i64,
) -> Write<AppendedWith> {
    let head = match admit(conn, &a)? {
        Ok(head) => head,
        Err(refused) => return Ok(AppendedWith::Append(refused, Vec::new())),
    };
    conn.execute_batch("savepoint work")?;
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(conn)))
        .unwrap_or_else(|_| Err("the work panicked".into()));
    if conn.is_autocommit() {
        return Err(Step::Ended);
    }
    let made = match done {
        Ok(made) => made,
        Err(why) => {
            conn.execute_batch("rollback to work; release work")?;
            return Ok(AppendedWith::WorkFailed(why));
        }
    };
    a.records.extend(made.iter().cloned());
    match append(conn, &a, &head, now) {
        Ok(appended) => {
            conn.execute_batch("release work")?;
            Ok(AppendedWith::Append(appended, made))
        }
        Err(Step::Refuse(error)) => {
            // The effect goes with the records that could not be kept.
            conn.execute_batch("rollback to work; release work")?;
            Err(Step::Refuse(error))
        }
        failed => failed.map(|appended| AppendedWith::Append(appended, made)),
    }
}

fn post(conn: &Connection, uid: &Uid, message: &str, kind: u16, bytes: &[u8], now: i64) -> Write<Posted> {
    check_id("the message id", message)?;
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(Error::new(ErrorKind::TooLarge, format!("a message has {} bytes", bytes.len())).into());
    }
    let Some(head) = head(conn, uid)? else { return Ok(Posted::NoSuchSaga) };
    let known = conn
        .prepare_cached("select 1 from post where rid = ?1 and message = ?2")?
        .exists(params![head.rid, message])?;
    if known {
        return Ok(Posted::Duplicate);
    }
    let status = SagaStatus::parse(&head.status)
        .ok_or_else(|| corrupt(format!("status `{}` is unknown", head.status)))?;
    if status.is_final() {
        return Ok(Posted::Final(status));
    }
    if usize::try_from(head.posts).unwrap_or(usize::MAX) >= MAX_POSTS {
        return Ok(Posted::InboxFull);
    }
    conn.prepare_cached("insert into post (rid, message, kind, at, bytes) values (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![head.rid, message, kind, now, bytes])?;
    conn.prepare_cached("update saga set posts = posts + 1, due = min(ifnull(due, ?2), ?2) where rid = ?1")?
        .execute(params![head.rid, now])?;
    Ok(Posted::Posted)
}

fn claim(conn: &Connection, c: &ClaimRequest, now: i64) -> Write<Vec<Claimed>> {
    let me = &c.claimant;
    extend_node(conn, &me.node, me.incarnation, me.ttl, now)?;
    let due: Vec<(i64, String, i64, u32)> = conn
        .prepare_cached(
            "select rid, uid, epoch, strikes from saga where due is not null and due <= ?1 and (owner is null
               or (owner = ?2 and ?3 and incarnation < ?4)
               or (owner <> ?2 and not exists (select 1 from node where name = saga.owner and until > ?1
                   and node.incarnation <= saga.incarnation)))
             order by due limit ?5",
        )?
        .query_map(params![now, me.node, c.take_own, int(me.incarnation), c.limit], |r| {
            Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut claimed = Vec::with_capacity(due.len());
    for (rid, uid, epoch, strikes) in due {
        conn.prepare_cached(
            "update saga set epoch = ?2, owner = ?3, incarnation = ?4, strikes = ?5, due = ?6 where rid = ?1",
        )?
        .execute(params![rid, epoch + 1, me.node, int(me.incarnation), strikes + 1, now])?;
        let epoch = u64::try_from(epoch + 1).unwrap_or(0);
        claimed.push(Claimed { saga: Uid::new(uid), epoch, strikes: strikes + 1 });
    }
    Ok(claimed)
}

fn purge(conn: &Connection, p: &PurgeRequest) -> Write<Purged> {
    let old: Vec<i64> = conn
        .prepare_cached(
            "select rid from saga where (status = 'completed' and updated < ?1)
             or (status in ('compensated', 'abandoned') and updated < ?2) limit ?3",
        )?
        .query_map(
            params![p.completed_before.unix_millis(), p.compensated_before.unix_millis(), p.limit],
            |r| r.get(0),
        )?
        .collect::<rusqlite::Result<_>>()?;
    for rid in &old {
        conn.prepare_cached(
            "insert or replace into tombstone select definition, id, uid, input_hash, status, updated from saga where rid = ?1",
        )?
        .execute([rid])?;
        conn.prepare_cached(
            "update purged set last_n = max(last_n, ifnull((select max(n) from log where rid = ?1), 0))",
        )?
        .execute([rid])?;
        for sql in [
            "delete from log where rid = ?1",
            "delete from post where rid = ?1",
            "delete from attr where rid = ?1",
            "delete from saga where rid = ?1",
        ] {
            conn.prepare_cached(sql)?.execute([rid])?;
        }
    }
    let before = p.tombstones_before.unix_millis();
    let mut tombstones = conn.prepare_cached("delete from tombstone where at < ?1")?.execute([before])?;
    tombstones += conn.prepare_cached("delete from reply where at < ?1")?.execute([before])?;
    Ok(Purged { sagas: old.len(), tombstones })
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
    fn create(&self, c: Create) -> BoxFuture<'_, Result<Created>> {
        Box::pin(self.0.writer.write(size(&c.records), move |conn, now| create(conn, &c, now)))
    }

    fn append(&self, a: Append) -> BoxFuture<'_, Result<Appended>> {
        Box::pin(self.0.writer.write(size(&a.records), move |conn, now| match admit(conn, &a)? {
            Ok(head) => append(conn, &a, &head, now),
            Err(refused) => Ok(refused),
        }))
    }

    fn append_with(&self, a: Append, work: TxWork) -> BoxFuture<'_, Result<AppendedWith>> {
        Box::pin(async move {
            let TxWork::Sync(work) = work else {
                return Err(Error::new(ErrorKind::Unsupported, "SQLite runs synchronous work only"));
            };
            self.0.writer.write(size(&a.records), move |conn, now| append_with(conn, a, work, now)).await
        })
    }

    fn post(&self, saga: &Uid, message: &str, kind: u16, bytes: Vec<u8>) -> BoxFuture<'_, Result<Posted>> {
        let (saga, message) = (saga.clone(), message.to_owned());
        Box::pin(
            self.0.writer.write(bytes.len(), move |conn, now| post(conn, &saga, &message, kind, &bytes, now)),
        )
    }

    fn claim(&self, c: ClaimRequest) -> BoxFuture<'_, Result<Vec<Claimed>>> {
        Box::pin(self.0.writer.write(0, move |conn, now| claim(conn, &c, now)))
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
                    "update saga set owner = null where uid = ?1 and owner = ?2 and incarnation = ?3",
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
        Box::pin(self.read(move |conn| query::page(conn, &filter, after.as_ref(), limit)))
    }

    fn counts(&self) -> BoxFuture<'_, Result<Vec<StatusCount>>> {
        Box::pin(self.read(query::counts))
    }

    fn purge(&self, p: PurgeRequest) -> BoxFuture<'_, Result<Purged>> {
        Box::pin(self.0.writer.write(0, move |conn, _| purge(conn, &p)))
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
