//! What every journal must do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock, WallTime};
use mainstay_store::journal::{
    Append, Appended, Audit, ClaimRequest, Claimant, Create, Created, Cursor, Filter, Hash, MAX_EVENT_BYTES,
    MAX_POSTS, MAX_RECORD_BYTES, NewRecord, Posted, PurgeRequest, PutDefinition, Reply, Row, SagaStatus,
    StoredAudit, StoredDefinition, Uid,
};
use mainstay_store::{ErrorKind, Journal};

struct Suite<'a> {
    journal: Arc<dyn Journal>,
    clock: &'a dyn Clock,
}

fn record(kind: u16) -> NewRecord {
    NewRecord { kind, bytes: format!("record {kind}").into_bytes() }
}

fn claimant(node: &str, incarnation: u64) -> Claimant {
    Claimant { node: node.to_owned(), incarnation, ttl: Duration::from_secs(10) }
}

fn finished() -> Row {
    let mut row = Row::running(WallTime::default());
    row.status = SagaStatus::Completed;
    row.due = None;
    row
}

impl Suite<'_> {
    fn row(&self) -> Row {
        Row::running(self.clock.wall())
    }

    fn create(&self, id: &str) -> Create {
        Create {
            uid: Uid::new(format!("uid-{id}")),
            id: id.to_owned(),
            definition: "order".to_owned(),
            version: 1,
            definition_hash: Hash::of(b"definition"),
            input_hash: Hash::of(id.as_bytes()),
            records: vec![record(1)],
            row: self.row(),
            owner: Some(claimant("a", 1)),
            reply: None,
            parent: None,
            locks: Vec::new(),
        }
    }

    /// A saga claimed by node `a`; its uid and epoch.
    async fn created(&self, id: &str) -> (Uid, u64) {
        let create = self.create(id);
        let uid = create.uid.clone();
        match self.journal.create(create).await.unwrap() {
            Created::Created { epoch, next_seq: 2 } => (uid, epoch),
            other => panic!("created expected, got {other:?}"),
        }
    }

    async fn append(&self, append: Append) -> Appended {
        self.journal.append(append).await.unwrap()
    }

    async fn claim(&self, node: &str, incarnation: u64) -> Vec<(Uid, u64)> {
        let request = ClaimRequest { claimant: claimant(node, incarnation), limit: 100 };
        let claimed = self.journal.claim(request).await.unwrap();
        claimed.into_iter().map(|c| (c.saga, c.epoch)).collect()
    }
}

/// Runs every check of the journal contract, each on a fresh journal from `make`.
///
/// # Panics
/// When a check fails.
pub async fn journal(make: &dyn Fn() -> Arc<dyn Journal>, clock: &dyn Clock) -> usize {
    let suite = || Suite { journal: make(), clock };
    start_is_idempotent(&suite()).await;
    requests_are_idempotent(&suite()).await;
    appends_are_fenced(&suite()).await;
    a_stale_item_never_fails_its_neighbors(&suite()).await;
    claims_follow_leases_and_incarnations(&suite()).await;
    a_later_due_saga_of_an_earlier_run_is_taken_up_when_it_is_due(&suite()).await;
    strikes_count_claims_without_progress(&suite()).await;
    the_store_tells_its_time(&suite()).await;
    the_inbox_is_idempotent_and_bounded(&suite()).await;
    no_append_puts_a_message_to_sleep(&suite()).await;
    a_message_that_came_before_the_end_is_drained_after_it(&suite()).await;
    locks_come_with_the_append_or_not_at_all(&suite()).await;
    pages_miss_nothing_under_inserts(&suite()).await;
    what_waits_for_a_person_is_listed_and_counted(&suite()).await;
    events_never_appear_behind_a_cursor(&suite()).await;
    a_status_that_changes_without_a_record_is_heard(&suite()).await;
    the_need_of_a_person_is_counted_from_its_begin(&suite()).await;
    purge_leaves_tombstones(&suite()).await;
    definitions_never_change(&suite()).await;
    the_audit_is_a_chain(&suite()).await;
    sizes_are_bounded(&suite()).await;
    ids_are_data(&suite()).await;
    22
}

async fn start_is_idempotent(s: &Suite<'_>) {
    let (uid, _) = s.created("one").await;
    let mut again = s.create("one");
    again.uid = Uid::new("another uid");
    let status = SagaStatus::Running;
    assert_eq!(s.journal.create(again.clone()).await.unwrap(), Created::Same { uid: uid.clone(), status });
    again.input_hash = Hash::of(b"other");
    let (stored, given) = (Hash::of(b"one"), Hash::of(b"other"));
    assert_eq!(s.journal.create(again).await.unwrap(), Created::Conflict { uid, stored, given });
}

async fn requests_are_idempotent(s: &Suite<'_>) {
    let reply = Reply { key: "k".to_owned(), request: Hash::of(b"r"), status: 202, body: b"body".to_vec() };
    let mut create = s.create("one");
    create.reply = Some(reply.clone());
    assert!(matches!(s.journal.create(create.clone()).await.unwrap(), Created::Created { .. }));
    let mut other = s.create("two");
    other.reply = Some(reply.clone());
    assert_eq!(s.journal.create(other.clone()).await.unwrap(), Created::Replayed(reply.clone()));
    assert_eq!(s.journal.reply("k").await.unwrap(), Some(reply.clone()));
    other.reply = Some(Reply { request: Hash::of(b"x"), ..reply.clone() });
    assert_eq!(s.journal.create(other).await.unwrap(), Created::ReplyMismatch);
    assert!(s.journal.find("order", "two").await.unwrap().is_none());
    // Another request for a saga that exists: its reply names that saga, whoever repeats it.
    let mut again = s.create("one");
    again.uid = Uid::new("never-made");
    let made = Reply { key: "k2".to_owned(), body: b"never-made one".to_vec(), ..reply };
    again.reply = Some(made.clone());
    let status = SagaStatus::Running;
    assert_eq!(
        s.journal.create(again.clone()).await.unwrap(),
        Created::Same { uid: create.uid.clone(), status }
    );
    let kept = Reply { body: format!("{} one", create.uid).into_bytes(), ..made };
    assert_eq!(s.journal.reply("k2").await.unwrap(), Some(kept.clone()));
    assert_eq!(s.journal.create(again).await.unwrap(), Created::Replayed(kept));
}

async fn appends_are_fenced(s: &Suite<'_>) {
    let (uid, epoch) = s.created("one").await;
    let two = Append::new(uid.clone(), epoch, 2, vec![record(2), record(3)], s.row());
    assert_eq!(s.append(two.clone()).await, Appended::Appended { next_seq: 4, posts: false });
    assert_eq!(s.append(two).await, Appended::Conflict { next_seq: 4 });
    let stale = Append::new(uid.clone(), epoch - 1, 4, vec![record(4)], s.row());
    assert_eq!(s.append(stale).await, Appended::Fenced);
    let nobody = Append::new(Uid::new("nobody"), 1, 1, vec![record(4)], s.row());
    assert_eq!(s.append(nobody).await, Appended::Fenced);
    let loaded = s.journal.load(&uid).await.unwrap().unwrap();
    let kinds: Vec<(u64, u16)> = loaded.records.iter().map(|r| (r.seq, r.kind)).collect();
    assert_eq!(kinds, [(1, 1), (2, 2), (3, 3)]);
    assert_eq!(loaded.records[1].bytes, b"record 2");
    let summary = s.journal.summary(&uid).await.unwrap().unwrap();
    assert_eq!(summary, loaded.summary);
    assert_eq!((summary.epoch, summary.next_seq), (epoch, 4));
}

async fn a_stale_item_never_fails_its_neighbors(s: &Suite<'_>) {
    const ITEMS: usize = 64;
    const STALE: usize = 17;
    let mut sagas = Vec::new();
    for i in 0..ITEMS {
        sagas.push(s.created(&i.to_string()).await);
    }
    let appends = sagas.iter().enumerate().map(|(i, (uid, epoch))| {
        let epoch = if i == STALE { epoch + 1 } else { *epoch };
        s.journal.append(Append::new(uid.clone(), epoch, 2, vec![record(2)], s.row()))
    });
    let results = futures_util::future::join_all(appends).await;
    for (i, result) in results.into_iter().enumerate() {
        let expected =
            if i == STALE { Appended::Fenced } else { Appended::Appended { next_seq: 3, posts: false } };
        assert_eq!(result.unwrap(), expected, "item {i}");
    }
}

async fn claims_follow_leases_and_incarnations(s: &Suite<'_>) {
    let (uid, epoch) = s.created("one").await;
    assert!(s.claim("b", 1).await.is_empty(), "node a lives");
    assert!(s.claim("a", 1).await.is_empty(), "this very run holds it");
    // The same node again, a newer run: takes over what is due at once, the rest when it is due, and the
    // older run is refused.
    assert_eq!(s.claim("a", 2).await, [(uid.clone(), epoch + 1)]);
    let old = ClaimRequest { claimant: claimant("a", 1), limit: 1 };
    assert_eq!(s.journal.claim(old).await.unwrap_err().kind(), ErrorKind::ApiMisuse);
    assert!(!s.journal.renew_node("a", 1, Duration::from_secs(9)).await.unwrap());
    assert!(s.journal.renew_node("a", 2, Duration::from_secs(10)).await.unwrap());
    let zombie = Append::new(uid.clone(), epoch, 2, vec![record(9)], s.row());
    assert_eq!(s.append(zombie).await, Appended::Fenced);
    // A lease that ended.
    s.clock.sleep(Duration::from_secs(11)).await;
    assert_eq!(s.claim("b", 1).await, [(uid.clone(), epoch + 2)]);
    // Handed back: free at once.
    s.journal.hand_back("b", 1, std::slice::from_ref(&uid)).await.unwrap();
    assert_eq!(s.claim("c", 1).await, [(uid.clone(), epoch + 3)]);
    // Finished: never due again.
    let end = Append::new(uid, epoch + 3, 2, vec![record(2)], finished());
    assert!(matches!(s.append(end).await, Appended::Appended { .. }));
    s.clock.sleep(Duration::from_secs(11)).await;
    assert!(s.claim("d", 1).await.is_empty());
}

/// A claim at the start of a run meets sagas that are not due yet; they must not be forgotten.
async fn a_later_due_saga_of_an_earlier_run_is_taken_up_when_it_is_due(s: &Suite<'_>) {
    let (uid, epoch) = s.created("waits").await;
    let mut waits = s.row();
    waits.due = Some(s.clock.wall().saturating_add(Duration::from_secs(5)));
    assert!(matches!(
        s.append(Append::new(uid.clone(), epoch, 2, vec![record(2)], waits)).await,
        Appended::Appended { .. }
    ));
    assert!(s.claim("a", 2).await.is_empty(), "it is not due");
    s.clock.sleep(Duration::from_secs(6)).await;
    assert_eq!(s.claim("a", 2).await, [(uid, epoch + 1)]);
}

async fn strikes_count_claims_without_progress(s: &Suite<'_>) {
    let (uid, _) = s.created("one").await;
    let strikes = async |run: u64| {
        let request = ClaimRequest { claimant: claimant("a", run), limit: 1 };
        let claimed = s.journal.claim(request).await.unwrap().remove(0);
        (claimed.strikes, claimed.epoch)
    };
    assert_eq!(strikes(2).await.0, 1);
    let (two, epoch) = strikes(3).await;
    assert_eq!(two, 2);
    s.append(Append::new(uid.clone(), epoch, 2, vec![record(2)], s.row())).await;
    assert_eq!(strikes(4).await.0, 1, "progress clears the strikes");
    assert_eq!(strikes(5).await.0, 2);
    s.journal.hand_back("a", 5, std::slice::from_ref(&uid)).await.unwrap();
    assert_eq!(strikes(6).await.0, 1, "a holder that gives back did not die of it");
}

async fn the_store_tells_its_time(s: &Suite<'_>) {
    let (uid, epoch) = s.created("waits").await;
    let now = s.journal.now().await.unwrap().expect("every store of ours tells its time");
    let mut waits = s.row();
    waits.due = Some(now.saturating_add(Duration::from_secs(5)));
    s.append(Append::new(uid.clone(), epoch, 2, vec![record(2)], waits)).await;
    assert!(s.claim("a", 2).await.is_empty(), "not due by the time the store told");
    s.clock.sleep(Duration::from_secs(6)).await;
    assert!(s.journal.now().await.unwrap() >= Some(now.saturating_add(Duration::from_secs(6))));
    assert_eq!(s.claim("a", 2).await, [(uid, epoch + 1)]);
}

async fn the_inbox_is_idempotent_and_bounded(s: &Suite<'_>) {
    let (uid, epoch) = s.created("one").await;
    let post = async |message: &str| s.journal.post(&uid, message, 7, b"hello".to_vec()).await.unwrap();
    assert_eq!(post("m1").await, Posted::Posted);
    assert_eq!(post("m1").await, Posted::Duplicate);
    let loaded = s.journal.load(&uid).await.unwrap().unwrap();
    assert_eq!(
        (loaded.posts.len(), loaded.posts[0].kind, loaded.posts[0].bytes.as_slice()),
        (1, 7, &b"hello"[..])
    );
    assert_eq!(s.journal.inbox(&uid).await.unwrap(), loaded.posts, "the same without the log");
    assert!(s.journal.inbox(&Uid::new("?")).await.unwrap().is_empty());
    let mut append = Append::new(uid.clone(), epoch, 2, vec![record(2)], s.row());
    assert_eq!(s.append(append.clone()).await, Appended::Appended { next_seq: 3, posts: true });
    append.expected_seq = 3;
    append.drain = vec![loaded.posts[0].number];
    assert_eq!(s.append(append).await, Appended::Appended { next_seq: 4, posts: false });
    assert_eq!(post("m1").await, Posted::Duplicate, "a drained message is still known");
    for i in 0..MAX_POSTS {
        assert_eq!(post(&format!("x{i}")).await, Posted::Posted);
    }
    assert_eq!(post("one too many").await, Posted::InboxFull);
    assert_eq!(s.journal.post(&Uid::new("?"), "m", 7, Vec::new()).await.unwrap(), Posted::NoSuchSaga);
    s.append(Append::new(uid.clone(), epoch, 4, vec![record(3)], finished())).await;
    assert_eq!(post("late").await, Posted::Final(SagaStatus::Completed));
}

/// An append that knows nothing of a message, or of one of two, and says "not due": its holder may die right then, and
/// whoever looks for due sagas must find this one.
async fn no_append_puts_a_message_to_sleep(s: &Suite<'_>) {
    let (uid, epoch) = s.created("one").await;
    let posts = async || s.journal.load(&uid).await.unwrap().unwrap().posts;
    let idle = || Row { status: SagaStatus::NeedsAttention, due: None, ..s.row() };
    let later = || Row { due: Some(s.clock.wall().saturating_add(Duration::from_secs(3_600))), ..s.row() };
    let append = async |seq: u64, row: Row, drain: Vec<u64>, seen: u64| {
        let records = vec![record(2)];
        let append = Append { drain, seen, ..Append::new(uid.clone(), epoch, seq, records, row) };
        assert!(matches!(s.append(append).await, Appended::Appended { .. }));
        s.journal.summary(&uid).await.unwrap().unwrap().row.due
    };
    let is_due = async |due: Option<WallTime>| due.is_some() && due <= s.journal.now().await.unwrap();
    let post = async |message: &str| s.journal.post(&uid, message, 7, b"hello".to_vec()).await.unwrap();
    assert_eq!(post("m1").await, Posted::Posted);
    assert!(is_due(append(2, idle(), Vec::new(), 0).await).await, "a waiting message");
    assert!(is_due(append(3, later(), Vec::new(), 0).await).await, "as late as the row says");
    let seen = posts().await[0].number;
    assert_eq!(append(4, idle(), Vec::new(), seen).await, None, "seen, and left for later");
    assert_eq!(post("m1").await, Posted::Duplicate);
    let due = s.journal.summary(&uid).await.unwrap().unwrap().row.due;
    assert!(is_due(due).await, "who repeats a message that waits is heard");
    assert_eq!(post("m2").await, Posted::Posted);
    assert!(is_due(append(5, idle(), Vec::new(), seen).await).await, "one was seen, the other not");
    assert!(is_due(append(6, idle(), vec![seen], 0).await).await, "one was drained, the other not");
    // What the holder leaves when it dies is found without another message.
    s.clock.sleep(Duration::from_secs(11)).await;
    assert_eq!(s.claim("b", 1).await, [(uid.clone(), epoch + 1)]);
    let last = posts().await[0].number;
    let drained =
        Append { drain: vec![last], ..Append::new(uid.clone(), epoch + 1, 7, vec![record(3)], idle()) };
    assert_eq!(s.append(drained).await, Appended::Appended { next_seq: 8, posts: false });
    assert_eq!(post("m2").await, Posted::Duplicate);
    let row = s.journal.summary(&uid).await.unwrap().unwrap().row;
    assert_eq!(row.due, None, "nothing waits any more");
}

/// Whoever ended the saga answers what it had not read, and that changes nothing of the end.
async fn a_message_that_came_before_the_end_is_drained_after_it(s: &Suite<'_>) {
    let (uid, epoch) = s.created("one").await;
    let post = async |message: &str| s.journal.post(&uid, message, 7, b"hello".to_vec()).await.unwrap();
    assert_eq!(post("m1").await, Posted::Posted);
    let end = Append::new(uid.clone(), epoch, 2, vec![record(2)], finished());
    assert_eq!(s.append(end).await, Appended::Appended { next_seq: 3, posts: true });
    assert_eq!(post("m1").await, Posted::Duplicate);
    assert_eq!(post("m2").await, Posted::Final(SagaStatus::Completed));
    assert!(s.claim("b", 1).await.is_empty(), "nothing is due after the end");
    let posts = s.journal.inbox(&uid).await.unwrap();
    assert_eq!(posts.iter().map(|p| p.message.as_str()).collect::<Vec<_>>(), ["m1"]);
    let late = Append::new(uid.clone(), epoch, 3, vec![record(3)], finished());
    let late = Append { drain: vec![posts[0].number], ..late };
    assert_eq!(s.append(late).await, Appended::Appended { next_seq: 4, posts: false });
    let there = s.journal.load(&uid).await.unwrap().unwrap();
    assert_eq!((there.records.len(), there.posts.len()), (3, 0));
    let (row, owner) = (&there.summary.row, &there.summary.owner);
    assert_eq!((row.status, row.due, owner), (SagaStatus::Completed, None, &None));
    let counts = s.journal.counts().await.unwrap();
    assert_eq!(counts.iter().map(|c| (c.status, c.count)).collect::<Vec<_>>(), [(SagaStatus::Completed, 1)]);
    s.clock.sleep(Duration::from_secs(1)).await;
    let now = s.clock.wall();
    let purge = PurgeRequest {
        completed_before: now,
        compensated_before: now,
        tombstones_before: WallTime::default(),
        limit: 10,
    };
    assert_eq!(s.journal.purge(purge).await.unwrap().sagas, 1);
}

async fn locks_come_with_the_append_or_not_at_all(s: &Suite<'_>) {
    let (first, epoch) = s.created("one").await;
    let (second, epoch2) = s.created("two").await;
    let mut append = Append::new(first.clone(), epoch, 2, vec![record(2)], s.row());
    append.take_locks = vec!["account/7".to_owned()];
    assert!(matches!(s.append(append).await, Appended::Appended { .. }));
    let mut other = Append::new(second.clone(), epoch2, 2, vec![record(2)], s.row());
    other.take_locks = vec!["account/7".to_owned()];
    let held = Appended::LockHeld { lock: "account/7".to_owned(), by: first.clone() };
    assert_eq!(s.append(other.clone()).await, held);
    assert_eq!(s.journal.summary(&second).await.unwrap().unwrap().next_seq, 2, "nothing was appended");
    let mut third = s.create("three");
    third.locks = vec!["account/7".to_owned()];
    assert!(matches!(s.journal.create(third).await.unwrap(), Created::LockHeld { .. }));
    assert!(s.journal.find("order", "three").await.unwrap().is_none());
    // The end of a saga frees its locks.
    s.append(Append::new(first, epoch, 3, vec![record(3)], finished())).await;
    assert!(matches!(s.append(other).await, Appended::Appended { .. }));
}

async fn pages_miss_nothing_under_inserts(s: &Suite<'_>) {
    for i in 0..25 {
        s.created(&format!("old{i}")).await;
    }
    let mut seen = Vec::new();
    let mut cursor = None;
    let mut rounds = 0_u64;
    loop {
        let page = s.journal.query(&Filter::default(), cursor.as_ref(), 4).await.unwrap();
        seen.extend(page.rows.into_iter().map(|r| r.id));
        s.created(&format!("new{rounds}")).await;
        rounds += 1;
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let unique: BTreeSet<&String> = seen.iter().collect();
    assert_eq!(unique.len(), seen.len(), "nothing twice");
    assert!((0..25).all(|i| seen.contains(&format!("old{i}"))), "nothing skipped");
    let filter =
        Filter { id: Some("old3".to_owned()), status: vec![SagaStatus::Running], ..Filter::default() };
    assert_eq!(s.journal.query(&filter, None, 10).await.unwrap().rows.len(), 1);
    let none = Filter { status: vec![SagaStatus::Completed], ..Filter::default() };
    assert!(s.journal.query(&none, None, 10).await.unwrap().rows.is_empty());
    let counts = s.journal.counts().await.unwrap();
    assert_eq!(counts.iter().map(|c| c.count).sum::<u64>(), 25 + rounds);
}

async fn what_waits_for_a_person_is_listed_and_counted(s: &Suite<'_>) {
    s.created("well").await;
    let (stuck, stuck_epoch) = s.created("stuck").await;
    let (late, epoch) = s.created("late").await;
    let needs = Row { status: SagaStatus::NeedsAttention, due: None, ..s.row() };
    let append = async |uid: &Uid, epoch, seq, row| {
        let records = vec![record(2)];
        let done = s.append(Append::new(uid.clone(), epoch, seq, records, row)).await;
        assert!(matches!(done, Appended::Appended { .. }), "{done:?}");
    };
    let ids = async |filter: Filter| -> Vec<String> {
        s.journal.query(&filter, None, 10).await.unwrap().rows.into_iter().map(|r| r.id).collect()
    };
    let waiting = || Filter { attention: true, ..Filter::default() };
    let overdue = || Filter { overdue: Some(true), ..Filter::default() };
    append(&stuck, stuck_epoch, 2, needs).await;
    assert_eq!((ids(waiting()).await, ids(overdue()).await), (vec!["stuck".to_owned()], Vec::new()));
    append(&late, epoch, 2, Row { overdue: true, ..s.row() }).await;
    assert_eq!(ids(waiting()).await, ["late", "stuck"], "newest first, as every list");
    assert_eq!(ids(overdue()).await, ["late"]);
    let newest = s.journal.query(&waiting(), None, 1).await.unwrap();
    let rest = s.journal.query(&waiting(), newest.next.as_ref(), 1).await.unwrap();
    assert_eq!((rest.rows[0].id.as_str(), rest.next), ("stuck", None));
    assert!(s.journal.summary(&late).await.unwrap().unwrap().row.overdue);
    let total = async || s.journal.counts().await.unwrap().iter().map(|c| c.waiting()).sum::<u64>();
    assert_eq!(total().await, 2);
    append(&late, epoch, 3, s.row()).await;
    assert_eq!((ids(waiting()).await, total().await), (vec!["stuck".to_owned()], 1));
    append(&late, epoch, 4, Row { overdue: true, ..s.row() }).await;
    append(&late, epoch, 5, finished()).await;
    assert_eq!(
        (ids(waiting()).await, total().await),
        (vec!["stuck".to_owned()], 1),
        "what ended waits no more"
    );
}

async fn events_never_appear_behind_a_cursor(s: &Suite<'_>) {
    let (uid, epoch) = s.created("one").await;
    s.append(Append::new(uid.clone(), epoch, 2, vec![record(2), record(3), record(4)], s.row())).await;
    // Reading one by one gives every record once, in order.
    let mut kinds = Vec::new();
    let mut cursor: Option<Cursor> = None;
    loop {
        let page = s.journal.events(cursor.as_ref(), 1).await.unwrap();
        assert!(!page.reset);
        kinds.extend(page.events.iter().map(|e| e.record.kind));
        cursor = Some(page.next);
        if page.events.is_empty() {
            break;
        }
    }
    assert_eq!(kinds, [1, 2, 3, 4]);
    // From any event's own cursor the stream goes on behind it.
    let all = s.journal.events(None, 100).await.unwrap();
    for (i, event) in all.events.iter().enumerate() {
        assert_eq!(s.journal.events(Some(&event.cursor), 100).await.unwrap().events.len(), 3 - i);
    }
    // A page is bounded in bytes too.
    let last = s.journal.last_cursor().await.unwrap();
    let big = || NewRecord { kind: 5, bytes: vec![0; MAX_RECORD_BYTES] };
    for seq in (5..25).step_by(2) {
        s.append(Append::new(uid.clone(), epoch, seq, vec![big(), big()], s.row())).await;
    }
    let (mut at, mut seen, mut pages) = (last, 0, 0);
    while seen < 20 {
        let page = s.journal.events(Some(&at), 100).await.unwrap();
        let bytes: usize = page.events.iter().map(|e| e.record.bytes.len()).sum();
        assert!((1..=MAX_EVENT_BYTES).contains(&bytes), "{bytes} bytes after {seen} events");
        (at, seen, pages) = (page.next, seen + page.events.len(), pages + 1);
    }
    assert_eq!((seen, pages), (20, 3));
    let last = s.journal.last_cursor().await.unwrap();
    assert!(s.journal.events(Some(&last), 10).await.unwrap().events.is_empty());
    let (changed, _) = tokio::join!(s.journal.changed(&last), s.created("two"));
    changed.unwrap();
    assert_eq!(s.journal.events(Some(&last), 10).await.unwrap().events[0].id, "two");
}

/// A saga is set aside: its row says so, its log stays as it is, and whoever follows the events hears of it.
async fn a_status_that_changes_without_a_record_is_heard(s: &Suite<'_>) {
    let (uid, epoch) = s.created("one").await;
    let last = s.journal.last_cursor().await.unwrap();
    let aside = || Row { status: SagaStatus::NeedsAttention, due: None, ..s.row() };
    let append = async |row: Row, records: Vec<NewRecord>, seq: u64| {
        s.append(Append::new(uid.clone(), epoch, seq, records, row)).await
    };
    let (changed, _) = tokio::join!(s.journal.changed(&last), append(aside(), Vec::new(), 2));
    changed.unwrap();
    let page = s.journal.events(Some(&last), 10).await.unwrap();
    assert!(page.events.is_empty() && !page.reset, "{page:?}");
    let change = &page.changes[0];
    assert_eq!((&change.saga, change.id.as_str(), change.definition.as_str()), (&uid, "one", "order"));
    assert_eq!((change.status, page.changes.len()), (SagaStatus::NeedsAttention, 1));
    assert!(change.cursor > last && page.next >= change.cursor);
    // The same once more is no change.
    append(aside(), Vec::new(), 2).await;
    let page = s.journal.events(Some(&page.next), 10).await.unwrap();
    assert!(page.events.is_empty() && page.changes.is_empty(), "{page:?}");
    append(s.row(), vec![record(2)], 2).await;
    let page = s.journal.events(Some(&page.next), 10).await.unwrap();
    assert_eq!((page.events.len(), page.changes.len()), (1, 0));
    // From the beginning, in pages of one.
    let (mut events, mut changes, mut cursor) = (0, 0, None);
    loop {
        let page = s.journal.events(cursor.as_ref(), 1).await.unwrap();
        (events, changes) = (events + page.events.len(), changes + page.changes.len());
        if cursor == Some(page.next) {
            break;
        }
        cursor = Some(page.next);
    }
    assert_eq!((events, changes), (2, 1));
    let loaded = s.journal.load(&uid).await.unwrap().unwrap();
    assert_eq!(
        (loaded.records.len(), loaded.summary.next_seq),
        (2, 3),
        "the log has no more than its records"
    );
}

/// What is tried behind an item appends, and takes nothing from the time that a saga has waited for a person.
async fn the_need_of_a_person_is_counted_from_its_begin(s: &Suite<'_>) {
    let (uid, epoch) = s.created("one").await;
    let append = async |seq: u64, status: SagaStatus, due: Option<WallTime>| {
        let row = Row { status, due, ..s.row() };
        s.append(Append::new(uid.clone(), epoch, seq, vec![record(2)], row)).await;
    };
    let oldest = async || {
        let counts = s.journal.counts().await.unwrap();
        counts.iter().find(|c| c.status == SagaStatus::NeedsAttention).unwrap().oldest
    };
    append(2, SagaStatus::NeedsAttention, None).await;
    let begun = oldest().await;
    for seq in [3, 4] {
        s.clock.sleep(Duration::from_secs(1)).await;
        append(seq, SagaStatus::NeedsAttention, Some(s.clock.wall())).await;
        assert_eq!(oldest().await, begun, "an attempt behind the item");
    }
    append(5, SagaStatus::Compensating, None).await;
    append(6, SagaStatus::NeedsAttention, None).await;
    assert!(oldest().await >= begun.saturating_add(Duration::from_secs(2)), "it needs one anew");
}

async fn purge_leaves_tombstones(s: &Suite<'_>) {
    let (uid, epoch) = s.created("done").await;
    s.created("open").await;
    s.append(Append::new(uid.clone(), epoch, 2, vec![record(2)], finished())).await;
    s.clock.sleep(Duration::from_secs(1)).await;
    let now = s.clock.wall();
    let old = WallTime::default();
    let purge =
        PurgeRequest { completed_before: now, compensated_before: now, tombstones_before: old, limit: 10 };
    assert_eq!(s.journal.purge(purge).await.unwrap().sagas, 1);
    assert!(s.journal.load(&uid).await.unwrap().is_none());
    assert!(s.journal.find("order", "open").await.unwrap().is_some(), "unfinished sagas are never touched");
    let status = SagaStatus::Completed;
    let again = s.journal.create(s.create("done")).await.unwrap();
    assert_eq!(again, Created::Same { uid, status }, "a late duplicate start is still answered");
    let purge = PurgeRequest { tombstones_before: now, ..purge };
    assert_eq!(s.journal.purge(purge).await.unwrap().tombstones, 1);
    let mut fresh = s.create("done");
    fresh.uid = Uid::new("fresh");
    assert!(matches!(s.journal.create(fresh).await.unwrap(), Created::Created { .. }));
}

async fn definitions_never_change(s: &Suite<'_>) {
    let definition =
        StoredDefinition { name: "order".to_owned(), version: 1, hash: Hash::of(b"1"), bytes: b"a".to_vec() };
    assert_eq!(s.journal.put_definition(definition.clone()).await.unwrap(), PutDefinition::Stored);
    let tuned = StoredDefinition { bytes: b"b".to_vec(), ..definition.clone() };
    assert_eq!(s.journal.put_definition(tuned.clone()).await.unwrap(), PutDefinition::Same);
    assert_eq!(s.journal.definitions().await.unwrap(), [tuned]);
    let changed = StoredDefinition { hash: Hash::of(b"2"), ..definition };
    let stored = Hash::of(b"1");
    assert_eq!(s.journal.put_definition(changed).await.unwrap(), PutDefinition::Conflict { stored });
}

async fn the_audit_is_a_chain(s: &Suite<'_>) {
    let entry = |who: &str| Audit {
        who: who.to_owned(),
        action: "retry".to_owned(),
        target: "t".to_owned(),
        reason: "r".to_owned(),
        before: String::new(),
        after: String::new(),
        request_id: String::new(),
    };
    let (uid, epoch) = s.created("one").await;
    s.journal.put_audit(entry("ann")).await.unwrap();
    let mut append = Append::new(uid, epoch, 2, vec![record(2)], s.row());
    append.audit = vec![entry("bob")];
    s.append(append).await;
    let lines = s.journal.audit(0, 10).await.unwrap();
    assert_eq!(lines.iter().map(|l| l.entry.who.as_str()).collect::<Vec<_>>(), ["ann", "bob"]);
    let mut previous = Hash([0; 32]);
    for line in &lines {
        assert_eq!(line.chain, StoredAudit::chain_of(&previous, line.seq, line.at, &line.entry));
        previous = line.chain;
    }
    assert_eq!(s.journal.audit(lines[0].seq, 10).await.unwrap().len(), 1);
    assert!(s.journal.audit(u64::MAX, 10).await.unwrap().is_empty(), "behind the last one");
}

async fn sizes_are_bounded(s: &Suite<'_>) {
    let (uid, epoch) = s.created("one").await;
    let big = NewRecord { kind: 2, bytes: vec![0; MAX_RECORD_BYTES + 1] };
    let append = Append::new(uid.clone(), epoch, 2, vec![big], s.row());
    assert_eq!(s.journal.append(append).await.unwrap_err().kind(), ErrorKind::TooLarge);
    let mut long = s.create("x");
    long.id = "x".repeat(256);
    assert_eq!(s.journal.create(long).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(s.journal.summary(&uid).await.unwrap().unwrap().next_seq, 2);
}

async fn ids_are_data(s: &Suite<'_>) {
    let id = "x'); drop table saga; --/.%#?\u{e9}";
    s.created(id).await;
    assert_eq!(s.journal.find("order", id).await.unwrap().unwrap().id, id);
    let filter = Filter { error_contains: Some("' or 1 = 1 --".to_owned()), ..Filter::default() };
    assert!(s.journal.query(&filter, None, 10).await.unwrap().rows.is_empty());
}
