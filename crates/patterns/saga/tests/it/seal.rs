//! Payloads that a store never sees.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Clock as _;
use mainstay_saga::engine::{ActionRequest, StartOptions};
use mainstay_saga::seal::{Place, Seal, SealedJournal};
use mainstay_saga::wire::{Operation, POST_ACTION};
use mainstay_saga::{ErrorKind, Outcome};
use mainstay_store::journal::{
    Append, AppendedWith, AsyncWork, ClaimRequest, Claimant, NewRecord, Row, TxResult, TxWork,
};
use mainstay_store::{BoxFuture, Error, ErrorKind as StoreErrorKind, Journal, Result};
use serde_json::json;

use crate::bounds::{Looks, is_calm};
use crate::world::{Act, World, order};

const SECRET: &str = "4111-1111";

/// A cipher to see through, bound to the place.
#[derive(Debug)]
struct Toy(u8);

impl Toy {
    fn sum(&self, place: &Place<'_>) -> u8 {
        place.to_bytes().iter().fold(self.0, |sum, b| sum.rotate_left(1) ^ b)
    }
}

impl Seal for Toy {
    fn seal(&self, place: &Place<'_>, plain: &[u8]) -> Result<Vec<u8>> {
        let sum = self.sum(place);
        Ok(plain.iter().map(|b| b ^ self.0).chain([sum]).collect())
    }

    fn open(&self, place: &Place<'_>, sealed: &[u8]) -> Result<Vec<u8>> {
        match sealed.split_last() {
            Some((sum, rest)) if *sum == self.sum(place) => Ok(rest.iter().map(|b| b ^ self.0).collect()),
            _ => Err(Error::new(StoreErrorKind::Corrupt, "the seal does not fit")),
        }
    }
}

fn sealed(world: &World, key: u8) -> SealedJournal {
    SealedJournal::new(Arc::clone(&world.journal), Arc::new(Toy(key)))
}

/// Every payload that the store holds.
async fn stored(world: &World) -> Vec<Vec<u8>> {
    let events = world.journal.events(None, 1_000).await.unwrap().events;
    let mut all: Vec<Vec<u8>> = events.iter().map(|e| e.record.bytes.clone()).collect();
    if let Some(event) = events.first() {
        all.extend(world.journal.inbox(&event.saga).await.unwrap().into_iter().map(|p| p.bytes));
    }
    all
}

fn shows(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}

#[tokio::test(start_paused = true)]
async fn a_store_never_sees_what_is_sealed_and_the_engine_misses_nothing() {
    let world = World::new();
    world.script("charge", &[Act::Hang]);
    let engine = world.engine_on(Arc::new(sealed(&world, 9)), &order()).await;
    let input = json!({"card": SECRET});
    let handle = engine.start("order", input.clone(), StartOptions::id("one")).await.unwrap();
    world.clock.sleep(Duration::from_millis(10)).await;
    engine.shutdown(Duration::ZERO).await;
    // A message waits in the inbox while nobody is there.
    let journal = sealed(&world, 9);
    let (uid, text) = (handle.uid().clone(), format!("{{\"why\":\"{SECRET}\"}}"));
    journal.post(&uid, "m", POST_ACTION + 90, text.clone().into_bytes()).await.unwrap();
    let seen = stored(&world).await;
    assert!(seen.len() > 3, "{}", seen.len());
    assert!(seen.iter().all(|bytes| !shows(bytes, SECRET) && !shows(bytes, "reserve") && bytes[0] == 0));
    assert_eq!(journal.inbox(&uid).await.unwrap()[0].bytes, text.as_bytes());

    // Another run, after the crash, reads all of it.
    world.script("charge", &[Act::Done]);
    let engine = world.engine_on(Arc::new(sealed(&world, 9)), &order()).await;
    let Outcome::Completed { outputs } = engine.outcome(&uid).await.unwrap() else { panic!("not completed") };
    assert_eq!(outputs[0].1, json!({"step": "reserve"}));
    let events = sealed(&world, 9).events(None, 1_000).await.unwrap();
    assert!(events.unreadable.is_empty() && shows(&events.events[0].record.bytes, SECRET));
    assert!(
        sealed(&world, 8).events(None, 1_000).await.unwrap().events.is_empty(),
        "with another key nothing"
    );
    // The same start is the same saga: its hash is of what was given, not of what was stored.
    let again = engine.start("order", input, StartOptions::id("one")).await.unwrap();
    assert_eq!((again.uid(), again.is_new()), (&uid, false));
}

#[tokio::test(start_paused = true)]
async fn a_log_that_does_not_open_is_set_aside_and_no_other_one() {
    let world = World::new();
    world.script("charge", &[Act::Hang]);
    let engine = world.engine_on(Arc::new(sealed(&world, 9)), &order()).await;
    let lost = world.start(&engine, &order(), "one").await;
    world.clock.sleep(Duration::from_millis(10)).await;
    engine.shutdown(Duration::ZERO).await;
    world.script("charge", &[Act::Done]);
    let (looks, seen) = Looks::on(&world);
    let other = SealedJournal::new(seen, Arc::new(Toy(8)));
    let engine = world.engine_on(Arc::new(other), &order()).await;
    assert_eq!(engine.outcome(lost.uid()).await.unwrap(), Outcome::NeedsAttention { steps: Vec::new() });
    let row = world.journal.summary(lost.uid()).await.unwrap().unwrap().row;
    assert!(row.error.as_deref().unwrap().contains("the seal does not fit"), "{row:?}");
    let fine = world.start(&engine, &order(), "two").await;
    assert!(matches!(fine.outcome().await.unwrap(), Outcome::Completed { .. }));
    // What comes then under the old key is there, and makes nobody look again and again.
    sealed(&world, 9).post(lost.uid(), "old", POST_ACTION, b"{}".to_vec()).await.unwrap();
    world.clock.sleep(Duration::from_secs(5)).await;
    looks.take();
    world.clock.sleep(Duration::from_secs(100)).await;
    is_calm(&looks, 100);
    let inbox = world.journal.inbox(lost.uid()).await.unwrap();
    assert!(inbox.len() == 1 && inbox[0].bytes.len() > 1, "the key may come back: {inbox:?}");
    // A person can give it up all the same, though its inbox holds what this key does not open.
    let abandon = ActionRequest::new("ann", "the key is gone", Operation::Abandon);
    engine.attention().act(lost.uid(), abandon).await.unwrap();
    assert!(matches!(engine.outcome(lost.uid()).await.unwrap(), Outcome::Abandoned { .. }));
}

/// One message, of an old key or of somebody who may write to the store, set its saga aside with "the log is unreadable".
#[tokio::test(start_paused = true)]
async fn a_message_that_does_not_open_is_noted_and_its_saga_goes_on() {
    let world = World::new();
    world.script("charge", &[Act::Hang]);
    let strict = || Arc::new(sealed(&world, 9).only_sealed());
    let engine = world.engine_on(strict(), &order()).await;
    let handle = world.start(&engine, &order(), "one").await;
    world.clock.sleep(Duration::from_millis(10)).await;
    engine.shutdown(Duration::ZERO).await;
    let uid = handle.uid();
    sealed(&world, 8).post(uid, "old", POST_ACTION, b"{}".to_vec()).await.unwrap();
    let cancel = json!({"message": "forged", "who": "eve", "reason": "", "action": "cancel"}).to_string();
    world.journal.post(uid, "forged", POST_ACTION, cancel.into_bytes()).await.unwrap();
    world.script("charge", &[Act::Done]);
    let engine = world.engine_on(strict(), &order()).await;
    let outcome = engine.outcome(uid).await.unwrap();
    assert!(matches!(outcome, Outcome::Completed { .. }), "{outcome:?}");
    let loaded = sealed(&world, 9).load(uid).await.unwrap().unwrap();
    assert!(loaded.posts.is_empty(), "{:?}", loaded.posts);
    for message in ["old", "forged"] {
        let told = format!("message `{message}` cannot be read: its seal does not open");
        assert!(loaded.records.iter().any(|r| shows(&r.bytes, &told)), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_seal_can_be_put_on_a_journal_that_is_in_use_and_can_insist() {
    let world = World::new();
    world.script("charge", &[Act::Hang]);
    let (engine, handle) = world.begin(&order()).await;
    world.clock.sleep(Duration::from_millis(10)).await;
    engine.shutdown(Duration::ZERO).await;
    let strict = sealed(&world, 9).only_sealed();
    assert_eq!(strict.load(handle.uid()).await.unwrap_err().kind(), StoreErrorKind::Corrupt);
    world.script("charge", &[Act::Done]);
    let engine = world.engine_on(Arc::new(sealed(&world, 9)), &order()).await;
    assert!(matches!(engine.outcome(handle.uid()).await.unwrap(), Outcome::Completed { .. }));
    let records = world.journal.load(handle.uid()).await.unwrap().unwrap().records;
    assert!(records[0].bytes[0] == b'{' && records.last().unwrap().bytes[0] == 0);
}

/// Records that were moved open nowhere: the place is sealed with them.
#[tokio::test(start_paused = true)]
async fn a_record_that_was_moved_does_not_open() {
    let world = World::new();
    let engine = world.engine_on(Arc::new(sealed(&world, 9)), &order()).await;
    let handle = world.start(&engine, &order(), "one").await;
    handle.outcome().await.unwrap();
    let first = world.journal.load(handle.uid()).await.unwrap().unwrap().records.remove(0);
    let copy = mainstay_store::journal::Uid::new("copy");
    let mut create = crate::seal::create(&world, &copy);
    create.records = vec![NewRecord { kind: first.kind, bytes: first.bytes }];
    world.journal.create(create).await.unwrap();
    let error = sealed(&world, 9).load(&copy).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
}

fn create(world: &World, uid: &mainstay_store::journal::Uid) -> mainstay_store::journal::Create {
    let hash = mainstay_store::journal::Hash::of(b"x");
    mainstay_store::journal::Create {
        uid: uid.clone(),
        id: uid.to_string(),
        definition: "order".to_owned(),
        version: 1,
        definition_hash: hash,
        input_hash: hash,
        records: Vec::new(),
        row: Row { due: None, ..Row::running(world.clock.wall()) },
        owner: Some(Claimant { node: "n".to_owned(), incarnation: 1, ttl: Duration::from_secs(10) }),
        reply: None,
        parent: None,
        locks: Vec::new(),
    }
}

/// A journal with transactions, which shows what it is given to append.
#[derive(Debug)]
struct WithWork(Arc<dyn Journal>);

macro_rules! handed_on {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&self, $($arg: $kind),*) -> BoxFuture<'_, Result<$answer>> { self.0.$name($($arg),*) })*
    };
}

impl Journal for WithWork {
    handed_on! {
        create(c: mainstay_store::journal::Create) -> mainstay_store::journal::Created;
        append(a: Append) -> mainstay_store::journal::Appended;
        claim(c: ClaimRequest) -> Vec<mainstay_store::journal::Claimed>;
        counts() -> Vec<mainstay_store::journal::StatusCount>;
        purge(p: mainstay_store::journal::PurgeRequest) -> mainstay_store::journal::Purged;
        put_definition(d: mainstay_store::journal::StoredDefinition) -> mainstay_store::journal::PutDefinition;
        definitions() -> Vec<mainstay_store::journal::StoredDefinition>;
        last_cursor() -> mainstay_store::journal::Cursor;
        audit(after: u64, limit: usize) -> Vec<mainstay_store::journal::StoredAudit>;
        put_audit(entry: mainstay_store::journal::Audit) -> ();
        reply(key: &str) -> Option<mainstay_store::journal::Reply>;
        load(saga: &mainstay_store::journal::Uid) -> Option<mainstay_store::journal::Loaded>;
        find(definition: &str, id: &str) -> Option<mainstay_store::journal::Summary>;
        changed(after: &mainstay_store::journal::Cursor) -> ();
        hand_back(node: &str, incarnation: u64, sagas: &[mainstay_store::journal::Uid]) -> ();
        renew_node(node: &str, incarnation: u64, ttl: Duration) -> bool;
        post(saga: &mainstay_store::journal::Uid, message: &str, kind: u16, bytes: Vec<u8>)
            -> mainstay_store::journal::Posted;
        events(after: Option<&mainstay_store::journal::Cursor>, limit: usize) -> mainstay_store::journal::EventPage;
        query(filter: &mainstay_store::journal::Filter, after: Option<&mainstay_store::journal::PageCursor>, limit: usize)
            -> mainstay_store::journal::Page;
    }

    fn append_with(&self, mut append: Append, work: TxWork) -> BoxFuture<'_, Result<AppendedWith>> {
        Box::pin(async move {
            let mut tx: Box<dyn Any + Send> = Box::new(());
            let made = match work {
                TxWork::Sync(work) => work(tx.as_mut()),
                TxWork::Async(work) => work(tx.as_mut()).await,
            };
            match made {
                Err(why) => Ok(AppendedWith::WorkFailed(why)),
                Ok(made) => {
                    append.records.extend(made.iter().cloned());
                    Ok(AppendedWith::Append(self.0.append(append).await?, made))
                }
            }
        })
    }
}

fn later<F>(work: F) -> AsyncWork
where
    F: for<'t> FnOnce(&'t mut (dyn Any + Send)) -> BoxFuture<'t, TxResult> + Send + 'static,
{
    Box::new(work)
}

#[tokio::test(start_paused = true)]
async fn what_work_in_a_transaction_records_is_sealed_too() {
    let world = World::new();
    let inner: Arc<dyn Journal> = Arc::new(WithWork(Arc::clone(&world.journal)));
    let journal = SealedJournal::new(inner, Arc::new(Toy(9)));
    let uid = mainstay_store::journal::Uid::new("u");
    let mut create = create(&world, &uid);
    create.records = vec![NewRecord { kind: 1, bytes: b"{}".to_vec() }];
    journal.create(create).await.unwrap();
    let record = |kind| NewRecord { kind, bytes: format!("{{\"n\":\"{SECRET}\"}}").into_bytes() };
    let works = [
        TxWork::Sync(Box::new(move |_: &mut dyn Any| Ok(vec![record(3), record(4)]))),
        TxWork::Async(later(move |_| Box::pin(async move { Ok(vec![record(3), record(4)]) }))),
    ];
    for (work, seq) in works.into_iter().zip([2, 5]) {
        let row = Row { due: None, ..Row::running(world.clock.wall()) };
        let append = Append::new(uid.clone(), 1, seq, vec![record(2)], row);
        let AppendedWith::Append(_, made) = journal.append_with(append, work).await.unwrap() else {
            panic!("the work failed")
        };
        assert_eq!(made, [record(3), record(4)], "as the work made them");
    }
    let raw = world.journal.load(&uid).await.unwrap().unwrap().records;
    assert!(raw.iter().all(|r| !shows(&r.bytes, SECRET)));
    let read = journal.load(&uid).await.unwrap().unwrap().records;
    assert!(read[1..].iter().all(|r| r.bytes == record(1).bytes) && read.len() == 7);
}

/// A key that is not at hand now stops nothing for good.
#[tokio::test(start_paused = true)]
async fn a_seal_that_is_away_is_a_store_that_is_away() {
    #[derive(Debug)]
    struct Away;
    impl Seal for Away {
        fn seal(&self, _: &Place<'_>, _: &[u8]) -> Result<Vec<u8>> {
            Err(Error::new(StoreErrorKind::Unavailable, "the key is not at hand"))
        }

        fn open(&self, _: &Place<'_>, _: &[u8]) -> Result<Vec<u8>> {
            Err(Error::new(StoreErrorKind::Unavailable, "the key is not at hand"))
        }
    }
    let world = World::new();
    let journal = SealedJournal::new(Arc::clone(&world.journal), Arc::new(Away));
    let engine = world.engine_on(Arc::new(journal), &order()).await;
    let refused = engine.start("order", json!({}), StartOptions::id("one")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Store);
    assert!(refused.is_retryable() && format!("{refused:?}").contains("not at hand"), "{refused:?}");
    assert!(world.journal.find("order", "one").await.unwrap().is_none());

    // Nor is anything of a stream passed over: what is sealed can be read when the key is back.
    let engine = world.engine_on(Arc::new(sealed(&world, 9)), &order()).await;
    engine.start("order", json!({}), StartOptions::id("two")).await.unwrap();
    let stream = SealedJournal::new(Arc::clone(&world.journal), Arc::new(Away));
    let refused = stream.events(None, 1_000).await.unwrap_err();
    assert!(refused.is_retryable(), "{refused}");
    assert!(sealed(&world, 9).events(None, 1_000).await.unwrap().unreadable.is_empty());
}
