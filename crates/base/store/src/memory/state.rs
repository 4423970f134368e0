//! The in-memory journal as a plain state machine: time goes in, answers come out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstay_clock::WallTime;

use crate::journal::{
    Append, Appended, Audit, ClaimRequest, Claimed, Create, Created, Cursor, EventPage, Filter, Hash,
    JournalEvent, Loaded, MAX_EVENT_BYTES, MAX_ID_BYTES, MAX_LOG_BYTES, MAX_POSTS, MAX_RECORD_BYTES,
    MAX_RECORDS, NewRecord, Page, PageCursor, Post, Posted, PurgeRequest, Purged, PutDefinition, Record,
    Reply, SagaStatus, StatusChange, StatusCount, StoredAudit, StoredDefinition, Summary, Uid,
};
use crate::{Error, ErrorKind, Result};

struct Saga {
    summary: Summary,
    /// Number in creation order, for pages.
    number: u64,
    incarnation: u64,
    strikes: u32,
    bytes: usize,
    /// Since when it needs attention.
    needs_since: Option<i64>,
    records: Vec<Record>,
    posts: Vec<Post>,
    messages: BTreeSet<String>,
}

impl Saga {
    /// Whoever looks for due sagas finds it now.
    fn due_at_once(&mut self, now: i64) {
        let (due, now) = (&mut self.summary.row.due, WallTime::from_unix_millis(now));
        *due = Some(due.map_or(now, |due| due.min(now)));
    }

    /// After its row was written.
    fn count_need(&mut self, now: i64) {
        let needs = self.summary.row.status == SagaStatus::NeedsAttention;
        self.needs_since = needs.then(|| self.needs_since.unwrap_or(now));
    }
}

struct Tombstone {
    uid: Uid,
    input_hash: Hash,
    status: SagaStatus,
    at: i64,
}

#[derive(Default)]
pub(super) struct State {
    sagas: BTreeMap<Uid, Saga>,
    ids: BTreeMap<(String, String), Uid>,
    tombstones: BTreeMap<(String, String), Tombstone>,
    /// Node name to incarnation and end of its lease.
    nodes: BTreeMap<String, (u64, i64)>,
    locks: BTreeMap<String, Uid>,
    replies: BTreeMap<String, (Reply, i64)>,
    definitions: BTreeMap<(String, u32), StoredDefinition>,
    events: BTreeMap<u64, JournalEvent>,
    changes: BTreeMap<u64, StatusChange>,
    last_event: u64,
    audit: Vec<StoredAudit>,
    created: u64,
    post_number: u64,
}

fn check_id(what: &str, id: &str) -> Result<()> {
    if id.is_empty() || id.len() > MAX_ID_BYTES {
        let text = format!("{what} has {} bytes; allowed: 1 to {MAX_ID_BYTES}", id.len());
        return Err(Error::new(ErrorKind::TooLarge, text));
    }
    Ok(())
}

fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}

impl State {
    pub(super) fn create(&mut self, create: Create, now: i64) -> Result<Created> {
        check_id("the id", &create.id)?;
        check_records(&create.records, 0, 0)?;
        if let Some(reply) = &create.reply
            && let Some((old, _)) = self.replies.get(&reply.key)
        {
            let same = old.request == reply.request;
            return Ok(if same { Created::Replayed(old.clone()) } else { Created::ReplyMismatch });
        }
        let key = (create.definition.clone(), create.id.clone());
        let existing =
            match (self.ids.get(&key).map(|uid| &self.sagas[uid].summary), self.tombstones.get(&key)) {
                (Some(s), _) => Some((s.uid.clone(), s.input_hash, s.row.status)),
                (None, Some(t)) => Some((t.uid.clone(), t.input_hash, t.status)),
                (None, None) => None,
            };
        if let Some((uid, stored, status)) = existing {
            let given = create.input_hash;
            return Ok(if stored == given {
                self.keep_reply(create.reply_of(&uid), now);
                Created::Same { uid, status }
            } else {
                Created::Conflict { uid, stored, given }
            });
        }
        if let Some(held) = self.held(&create.uid, &create.locks) {
            return Ok(Created::LockHeld { lock: held.0, by: held.1 });
        }
        for lock in &create.locks {
            self.locks.insert(lock.clone(), create.uid.clone());
        }
        if let Some(owner) = &create.owner {
            self.extend_node(&owner.node, owner.incarnation, owner.ttl, now)?;
        }
        self.created += 1;
        let at = WallTime::from_unix_millis(now);
        let uid = create.uid.clone();
        let mut saga = Saga {
            summary: Summary {
                uid: uid.clone(),
                id: create.id,
                definition: create.definition,
                version: create.version,
                definition_hash: create.definition_hash,
                input_hash: create.input_hash,
                epoch: u64::from(create.owner.is_some()),
                next_seq: 1,
                owner: create.owner.as_ref().map(|o| o.node.clone()),
                created: at,
                updated: at,
                row: create.row,
                parent: create.parent,
            },
            number: self.created,
            incarnation: create.owner.as_ref().map_or(0, |o| o.incarnation),
            strikes: 0,
            bytes: 0,
            needs_since: None,
            records: Vec::new(),
            posts: Vec::new(),
            messages: BTreeSet::new(),
        };
        saga.count_need(now);
        self.sagas.insert(uid.clone(), saga);
        self.ids.insert(key, uid.clone());
        self.write_records(&uid, create.records, now);
        self.keep_reply(create.reply, now);
        let summary = &self.sagas[&uid].summary;
        Ok(Created::Created { epoch: summary.epoch, next_seq: summary.next_seq })
    }

    fn keep_reply(&mut self, reply: Option<Reply>, now: i64) {
        if let Some(reply) = reply {
            self.replies.insert(reply.key.clone(), (reply, now));
        }
    }

    fn held(&self, uid: &Uid, locks: &[String]) -> Option<(String, Uid)> {
        let other = |l: &&String| self.locks.get(*l).is_some_and(|by| by != uid);
        locks.iter().find(other).map(|l| (l.clone(), self.locks[l].clone()))
    }

    fn write_records(&mut self, uid: &Uid, records: Vec<NewRecord>, now: i64) {
        let Some(saga) = self.sagas.get_mut(uid) else { return };
        for new in records {
            let at = WallTime::from_unix_millis(now);
            let record = Record { seq: saga.summary.next_seq, kind: new.kind, at, bytes: new.bytes };
            saga.summary.next_seq += 1;
            saga.bytes += record.bytes.len();
            self.last_event += 1;
            let event = JournalEvent {
                cursor: Cursor(self.last_event),
                saga: uid.clone(),
                id: saga.summary.id.clone(),
                definition: saga.summary.definition.clone(),
                record: record.clone(),
                status: saga.summary.row.status,
            };
            self.events.insert(self.last_event, event);
            saga.records.push(record);
        }
    }

    pub(super) fn append(&mut self, append: Append, now: i64) -> Result<Appended> {
        let Some(saga) = self.sagas.get(&append.saga) else { return Ok(Appended::Fenced) };
        if saga.summary.epoch != append.epoch {
            return Ok(Appended::Fenced);
        }
        if saga.summary.next_seq != append.expected_seq {
            return Ok(Appended::Conflict { next_seq: saga.summary.next_seq });
        }
        check_records(&append.records, saga.summary.next_seq - 1, saga.bytes)?;
        if let Some((lock, by)) = self.held(&append.saga, &append.take_locks) {
            return Ok(Appended::LockHeld { lock, by });
        }
        for lock in append.take_locks {
            self.locks.insert(lock, append.saga.clone());
        }
        for lock in &append.free_locks {
            if self.locks.get(lock) == Some(&append.saga) {
                self.locks.remove(lock);
            }
        }
        let last = append.row.status.is_final();
        if let Some(saga) = self.sagas.get_mut(&append.saga) {
            let silent = append.records.is_empty() && saga.summary.row.status != append.row.status;
            saga.summary.row = append.row;
            saga.summary.updated = WallTime::from_unix_millis(now);
            saga.count_need(now);
            if silent {
                self.last_event += 1;
                let change = StatusChange {
                    cursor: Cursor(self.last_event),
                    saga: append.saga.clone(),
                    id: saga.summary.id.clone(),
                    definition: saga.summary.definition.clone(),
                    at: saga.summary.updated,
                    status: saga.summary.row.status,
                };
                self.changes.insert(self.last_event, change);
            }
            saga.strikes = 0;
            saga.posts.retain(|p| !append.drain.contains(&p.number));
            if last {
                saga.summary.owner = None;
            } else if saga.posts.iter().any(|p| p.number > append.seen) {
                saga.due_at_once(now);
            }
        }
        self.write_records(&append.saga, append.records, now);
        for reply in append.replies {
            self.keep_reply(Some(reply), now);
        }
        for entry in append.audit {
            self.put_audit(entry, now);
        }
        if last {
            self.locks.retain(|_, by| *by != append.saga);
        }
        let saga = &self.sagas[&append.saga];
        Ok(Appended::Appended { next_seq: saga.summary.next_seq, posts: !saga.posts.is_empty() })
    }

    pub(super) fn post(
        &mut self,
        uid: &Uid,
        message: String,
        kind: u16,
        bytes: Vec<u8>,
        now: i64,
    ) -> Result<Posted> {
        check_id("the message id", &message)?;
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(Error::new(ErrorKind::TooLarge, format!("a message has {} bytes", bytes.len())));
        }
        let Some(saga) = self.sagas.get_mut(uid) else { return Ok(Posted::NoSuchSaga) };
        if saga.messages.contains(&message) {
            if saga.posts.iter().any(|p| p.message == message) && !saga.summary.row.status.is_final() {
                saga.due_at_once(now);
            }
            return Ok(Posted::Duplicate);
        }
        if saga.summary.row.status.is_final() {
            return Ok(Posted::Final(saga.summary.row.status));
        }
        if saga.posts.len() >= MAX_POSTS {
            return Ok(Posted::InboxFull);
        }
        self.post_number += 1;
        saga.messages.insert(message.clone());
        let at = WallTime::from_unix_millis(now);
        saga.posts.push(Post { number: self.post_number, message, kind, at, bytes });
        saga.due_at_once(now);
        Ok(Posted::Posted)
    }

    fn extend_node(&mut self, node: &str, incarnation: u64, ttl: Duration, now: i64) -> Result<()> {
        let until = now.saturating_add(millis(ttl));
        match self.nodes.get_mut(node) {
            Some((known, _)) if *known > incarnation => {
                let text = format!("a newer run of node `{node}` exists");
                Err(Error::new(ErrorKind::ApiMisuse, text))
            }
            _ => {
                self.nodes.insert(node.to_owned(), (incarnation, until));
                Ok(())
            }
        }
    }

    pub(super) fn claim(&mut self, request: &ClaimRequest, now: i64) -> Result<Vec<Claimed>> {
        let me = &request.claimant;
        self.extend_node(&me.node, me.incarnation, me.ttl, now)?;
        let nodes = &self.nodes;
        let free = |saga: &Saga| match &saga.summary.owner {
            None => true,
            Some(owner) if *owner == me.node => saga.incarnation < me.incarnation,
            Some(owner) => nodes
                .get(owner)
                .is_none_or(|(incarnation, until)| *until <= now || saga.incarnation < *incarnation),
        };
        let mut due: Vec<(i64, Uid)> = self
            .sagas
            .values()
            .filter(|s| !s.summary.row.status.is_final() && free(s))
            .filter_map(|s| Some((s.summary.row.due?.unix_millis(), s.summary.uid.clone())))
            .filter(|(due, _)| *due <= now)
            .collect();
        due.sort();
        due.truncate(request.limit);
        let mut claimed = Vec::with_capacity(due.len());
        for (_, uid) in due {
            if let Some(saga) = self.sagas.get_mut(&uid) {
                saga.summary.epoch += 1;
                saga.summary.owner = Some(me.node.clone());
                saga.incarnation = me.incarnation;
                saga.strikes += 1;
                saga.summary.row.due = Some(WallTime::from_unix_millis(now));
                claimed.push(Claimed { saga: uid, epoch: saga.summary.epoch, strikes: saga.strikes });
            }
        }
        Ok(claimed)
    }

    pub(super) fn renew(&mut self, node: &str, incarnation: u64, ttl: Duration, now: i64) -> bool {
        self.extend_node(node, incarnation, ttl, now).is_ok()
    }

    pub(super) fn hand_back(&mut self, node: &str, incarnation: u64, sagas: &[Uid]) {
        for uid in sagas {
            if let Some(saga) = self.sagas.get_mut(uid)
                && saga.summary.owner.as_deref() == Some(node)
                && saga.incarnation == incarnation
            {
                saga.summary.owner = None;
                saga.strikes = 0;
            }
        }
    }

    pub(super) fn load(&self, uid: &Uid) -> Option<Loaded> {
        self.sagas.get(uid).map(|s| Loaded {
            summary: s.summary.clone(),
            records: s.records.clone(),
            posts: s.posts.clone(),
        })
    }

    pub(super) fn find(&self, definition: &str, id: &str) -> Option<Summary> {
        let uid = self.ids.get(&(definition.to_owned(), id.to_owned()))?;
        self.sagas.get(uid).map(|s| s.summary.clone())
    }

    pub(super) fn query(&self, filter: &Filter, after: Option<&PageCursor>, limit: usize) -> Result<Page> {
        let before = match after {
            None => u64::MAX,
            Some(PageCursor(text)) => text.parse().map_err(|_| {
                Error::new(ErrorKind::ApiMisuse, format!("`{text}` is no cursor of this journal"))
            })?,
        };
        let mut found: Vec<&Saga> =
            self.sagas.values().filter(|s| s.number < before && matches(filter, &s.summary)).collect();
        found.sort_by_key(|s| std::cmp::Reverse(s.number));
        let more = found.len() > limit;
        found.truncate(limit);
        let next = found.last().filter(|_| more).map(|s| PageCursor(s.number.to_string()));
        Ok(Page { rows: found.into_iter().map(|s| s.summary.clone()).collect(), next })
    }

    pub(super) fn counts(&self) -> Vec<StatusCount> {
        let mut counts: BTreeMap<(String, SagaStatus), StatusCount> = BTreeMap::new();
        for saga in self.sagas.values() {
            let summary = &saga.summary;
            let status = summary.row.status;
            let oldest = saga.needs_since.map_or(summary.updated, WallTime::from_unix_millis);
            let count = counts.entry((summary.definition.clone(), status)).or_insert_with(|| StatusCount {
                definition: summary.definition.clone(),
                status,
                retrying: 0,
                overdue: 0,
                count: 0,
                oldest,
            });
            count.count += 1;
            count.retrying += u64::from(summary.row.retrying);
            count.overdue += u64::from(summary.row.overdue);
            count.oldest = count.oldest.min(oldest);
        }
        counts.into_values().collect()
    }

    pub(super) fn purge(&mut self, purge: PurgeRequest) -> Purged {
        let old: Vec<Uid> = self
            .sagas
            .values()
            .filter(|s| match s.summary.row.status {
                SagaStatus::Completed => s.summary.updated < purge.completed_before,
                SagaStatus::Compensated | SagaStatus::Abandoned => {
                    s.summary.updated < purge.compensated_before
                }
                _ => false,
            })
            .map(|s| s.summary.uid.clone())
            .take(purge.limit)
            .collect();
        for uid in &old {
            if let Some(saga) = self.sagas.remove(uid) {
                let key = (saga.summary.definition.clone(), saga.summary.id.clone());
                self.ids.remove(&key);
                let at = saga.summary.updated.unix_millis();
                let (input_hash, status) = (saga.summary.input_hash, saga.summary.row.status);
                self.tombstones.insert(key, Tombstone { uid: uid.clone(), input_hash, status, at });
                self.events.retain(|_, e| e.saga != *uid);
                self.changes.retain(|_, c| c.saga != *uid);
            }
        }
        let before = purge.tombstones_before.unix_millis();
        let count = self.tombstones.len() + self.replies.len();
        self.tombstones.retain(|_, t| t.at >= before);
        self.replies.retain(|_, (_, at)| *at >= before);
        Purged { sagas: old.len(), tombstones: count - self.tombstones.len() - self.replies.len() }
    }

    pub(super) fn put_definition(&mut self, definition: StoredDefinition) -> PutDefinition {
        let key = (definition.name.clone(), definition.version);
        match self.definitions.get(&key) {
            Some(old) if old.hash != definition.hash => PutDefinition::Conflict { stored: old.hash },
            Some(_) => {
                self.definitions.insert(key, definition);
                PutDefinition::Same
            }
            None => {
                self.definitions.insert(key, definition);
                PutDefinition::Stored
            }
        }
    }

    pub(super) fn definitions(&self) -> Vec<StoredDefinition> {
        self.definitions.values().cloned().collect()
    }

    pub(super) fn reply(&self, key: &str) -> Option<Reply> {
        self.replies.get(key).map(|(r, _)| r.clone())
    }

    pub(super) fn events(&self, after: Option<Cursor>, limit: usize) -> EventPage {
        let after = after.unwrap_or_default();
        let mut bytes = 0;
        let fits = |(_, e): &(&u64, &JournalEvent)| {
            let first = bytes == 0;
            bytes += e.record.bytes.len();
            first || bytes <= MAX_EVENT_BYTES
        };
        let after_it = self.events.range(after.0 + 1..);
        let events: Vec<JournalEvent> =
            after_it.clone().take(limit).take_while(fits).map(|(_, e)| e.clone()).collect();
        let last = events.last().map(|e| e.cursor);
        let end = last.filter(|_| after_it.clone().nth(events.len()).is_some()).map_or(u64::MAX, |c| c.0);
        let changes: Vec<StatusChange> = self
            .changes
            .range(after.0 + 1..)
            .take_while(|(n, _)| **n < end)
            .map(|(_, c)| c.clone())
            .collect();
        // Purged events leave holes; a hole right behind the reader means that it missed some.
        let first =
            events.first().map(|e| e.cursor).into_iter().chain(changes.first().map(|c| c.cursor)).min();
        let reset = after.0 > 0 && first.is_some_and(|c| c.0 != after.0 + 1);
        let next = last.into_iter().chain(changes.last().map(|c| c.cursor)).max().unwrap_or(after);
        EventPage { events, unreadable: Vec::new(), changes, next, reset }
    }

    pub(super) fn last_cursor(&self) -> Cursor {
        Cursor(self.last_event)
    }

    pub(super) fn audit(&self, after: u64, limit: usize) -> Vec<StoredAudit> {
        self.audit.iter().filter(|a| a.seq > after).take(limit).cloned().collect()
    }

    pub(super) fn put_audit(&mut self, entry: Audit, now: i64) {
        let seq = self.audit.len() as u64 + 1;
        let at = WallTime::from_unix_millis(now);
        let previous = self.audit.last().map_or(Hash([0; 32]), |a| a.chain);
        let chain = StoredAudit::chain_of(&previous, seq, at, &entry);
        self.audit.push(StoredAudit { seq, at, entry, chain });
    }
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
    if bytes + records.iter().map(|r| r.bytes.len()).sum::<usize>() > MAX_LOG_BYTES {
        return refuse(format!("the saga's log would exceed {MAX_LOG_BYTES} bytes"));
    }
    Ok(())
}

fn matches(filter: &Filter, summary: &Summary) -> bool {
    fn is<T: PartialEq>(want: Option<&T>, have: &T) -> bool {
        want.is_none_or(|w| w == have)
    }
    let row = &summary.row;
    (filter.status.is_empty() || filter.status.contains(&row.status))
        && is(filter.retrying.as_ref(), &row.retrying)
        && is(filter.paused.as_ref(), &row.paused)
        && is(filter.overdue.as_ref(), &row.overdue)
        && (!filter.attention || row.waits_for_person())
        && is(filter.definition.as_ref(), &summary.definition)
        && filter.step.as_ref().is_none_or(|s| row.step.as_ref() == Some(s))
        && is(filter.id.as_ref(), &summary.id)
        && filter.attempt_gte.is_none_or(|n| row.attempt >= n)
        && filter.attempt_lte.is_none_or(|n| row.attempt <= n)
        && filter.error_contains.as_ref().is_none_or(|t| row.error.as_ref().is_some_and(|e| e.contains(t)))
        && filter.attrs.iter().all(|(k, v)| row.attrs.get(k) == Some(v))
        && filter.created_gte.is_none_or(|t| summary.created >= t)
        && filter.created_lte.is_none_or(|t| summary.created <= t)
}
