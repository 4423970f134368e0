//! Sessions over replicas in memory: the catalogue of what goes wrong.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, Deadline};
use mainstay_consistency::ErrorKind;
use mainstay_consistency::session::{
    CallError, Consistency, Guarantees, Plan, Router, RouterBuilder, Session, SessionConsistency,
    SessionEvent, SessionToken, Verdict, Why, verdict,
};
use mainstay_store::memory::{MemoryCluster, MemoryNode};
use mainstay_store::replicated::{Judgment, Mark, Observed, Position, Role, TimelineSwitch};
use mainstay_store::{BoxFuture, Error, ReplicatedStore};

const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const MS: Duration = Duration::from_millis(1);

/// What a node is asked, and whether it answers.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    asked: AtomicU64,
    hangs: AtomicBool,
    position_hangs: AtomicBool,
}

/// A connection to a node that counts what it is asked.
#[derive(Clone, Debug)]
pub(crate) struct Conn {
    pub(crate) node: MemoryNode,
    meter: Arc<Meter>,
}

impl Conn {
    async fn turn(&self, hangs: &AtomicBool) {
        self.meter.asked.fetch_add(1, Ordering::SeqCst);
        // Two awaits, so that a future can be dropped between them.
        tokio::task::yield_now().await;
        if hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

impl ReplicatedStore for Conn {
    fn commit_position(&self) -> BoxFuture<'_, mainstay_store::Result<Mark>> {
        Box::pin(async {
            self.turn(&self.meter.position_hangs).await;
            self.node.commit_position().await
        })
    }

    fn observe(&self) -> BoxFuture<'_, mainstay_store::Result<Observed>> {
        Box::pin(async {
            self.turn(&self.meter.hangs).await;
            self.node.observe().await
        })
    }

    fn wait<'a>(
        &'a self,
        wanted: &'a Mark,
        limit: Duration,
    ) -> BoxFuture<'a, mainstay_store::Result<Judgment>> {
        Box::pin(async move {
            self.turn(&self.meter.hangs).await;
            self.node.wait(wanted, limit).await
        })
    }

    fn incarnation(&self) -> Option<u64> {
        self.node.incarnation()
    }
}

/// A primary `0` with two replicas, and a router over them.
pub(crate) struct World {
    pub(crate) clock: VirtualClock,
    pub(crate) cluster: MemoryCluster,
    pub(crate) router: Router<Conn>,
    meters: Vec<Arc<Meter>>,
    events: Arc<Mutex<Vec<SessionEvent>>>,
}

impl World {
    pub(crate) fn new(setup: impl FnOnce(RouterBuilder<Conn>) -> RouterBuilder<Conn>) -> Self {
        let clock = VirtualClock::new();
        let cluster = MemoryCluster::new(Arc::new(clock.clone()), "orders", 2);
        let events: Arc<Mutex<Vec<SessionEvent>>> = Arc::default();
        let heard = Arc::clone(&events);
        let mut builder = Router::builder("orders", Arc::new(clock.clone()))
            .on_event(move |e| heard.lock().unwrap().push(e.clone()));
        let mut meters = Vec::new();
        for i in 0..3 {
            let meter = Arc::new(Meter::default());
            builder = builder
                .shared(&format!("n{i}"), Conn { node: cluster.node(i).unwrap(), meter: Arc::clone(&meter) });
            meters.push(meter);
        }
        let router = setup(builder).build().unwrap();
        Self { clock, cluster, router, meters, events }
    }

    fn asked(&self) -> u64 {
        self.meters.iter().map(|m| m.asked.load(Ordering::SeqCst)).sum()
    }

    fn lag(&self, d: Duration) {
        (1..3).for_each(|i| self.cluster.set_lag(i, d).unwrap());
    }

    pub(crate) fn heard(&self, wanted: impl Fn(&SessionEvent) -> bool) -> usize {
        self.events.lock().unwrap().iter().filter(|e| wanted(e)).count()
    }
}

pub(crate) fn on_paused<F: Future>(future: F) -> F::Output {
    let rt = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    rt.block_on(future)
}

pub(crate) async fn put(
    session: &mut Session<Conn>,
    key: &str,
    value: &[u8],
) -> Result<Mark, CallError<Error>> {
    session.write(async |c: &mut Conn| c.node.write(key, value).await).await
}

pub(crate) async fn get(session: &mut Session<Conn>, key: &str) -> Result<Option<Vec<u8>>, CallError<Error>> {
    session.read(async |c: &mut Conn| Ok(c.node.read(key).value)).await
}

pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T, CallError<Error>>) -> ErrorKind {
    match result {
        Err(CallError::Refused(error)) => error.kind(),
        other => panic!("not refused: {other:?}"),
    }
}

pub(crate) fn mark(timeline: &str, n: u64) -> Mark {
    Mark { system: "db".into(), timeline: timeline.into(), position: Position::Lsn(n) }
}

pub(crate) fn mark_of(timeline: &str, position: Position) -> Mark {
    Mark { system: "db".into(), timeline: timeline.into(), position }
}

pub(crate) fn switch(timeline: &str, n: u64, next: &str) -> TimelineSwitch {
    TimelineSwitch { timeline: timeline.into(), position: Position::Lsn(n), next: next.into() }
}

#[test]
fn s8_a_write_gives_its_token_and_no_cache_can_lose_it() {
    on_paused(async {
        let w = World::new(|b| b);
        w.router.poll_once().await;
        let simple = SessionConsistency::new(w.router.clone());
        let write = async |c: &mut Conn| c.node.write("k", b"1").await;
        let (at, token) = simple.write(&SessionToken::new(), write).await.unwrap();
        assert_eq!(token.positions(), [at]);
    });
}

#[test]
fn s13_what_a_write_returns_is_given_and_its_token_is_carried_on() {
    on_paused(async {
        let w = World::new(|b| b.max_wait(MS));
        w.lag(HOUR);
        w.router.poll_once().await;
        let simple = SessionConsistency::new(w.router.clone());
        let write = async |c: &mut Conn| c.node.write("k", b"1").await.map(|mark| (mark, "returned"));
        let ((first, returned), token) = simple.write(&SessionToken::new(), write).await.unwrap();
        assert_eq!(returned, "returned");
        // The next call begins where this one ended, and so does the one after it.
        let write = async |c: &mut Conn| c.node.write("k", b"2").await;
        let (second, token) = simple.write(&token, write).await.unwrap();
        assert!(token.positions() == [second.clone()] && second.position > first.position);
        let read = async |c: &mut Conn| Ok::<_, Error>(c.node.read("k").value);
        let (value, token) = simple.read(&token, read).await.unwrap();
        assert_eq!((value.as_deref(), token.positions()), (Some(&b"2"[..]), &[second][..]));
    });
}

#[test]
fn s9_without_a_known_position_reads_go_to_the_primary() {
    on_paused(async {
        let w = World::new(|b| b);
        w.lag(HOUR);
        w.router.poll_once().await;
        w.cluster.primary().write("k", b"1").await.unwrap();
        let keys = super::session_tokens::keys();
        let mut session = w.router.session().resume_sealed("", &keys);
        assert_eq!(get(&mut session, "k").await.unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(w.heard(|e| *e == SessionEvent::ToPrimary { why: Why::TokenRefused }), 1);
        // And the fresh token is that of what was read.
        assert_eq!(session.token().await.unwrap().positions().len(), 1);
    });
}

/// Tokens of two writers: of the one that wrote first, and of the one that wrote last.
async fn two_tokens(w: &World) -> (SessionToken, SessionToken) {
    w.lag(HOUR);
    w.router.poll_once().await;
    let (mut a, mut b) = (w.router.session(), w.router.session());
    put(&mut a, "k", b"1").await.unwrap();
    put(&mut b, "k", b"2").await.unwrap();
    (a.token().await.unwrap(), b.token().await.unwrap())
}

#[test]
fn s10_a_token_that_comes_late_takes_nothing_back() {
    on_paused(async {
        let (old, new) = two_tokens(&World::new(|b| b)).await;
        let mut joined = new.clone();
        joined.merge(&old).unwrap();
        assert_eq!(joined, new);
    });
}

#[test]
fn p13_a_replica_that_caught_up_clears_nothing_for_the_others() {
    on_paused(async {
        let w = World::new(|b| b.max_wait(MS));
        let (_, new) = two_tokens(&w).await;
        w.cluster.set_lag(1, Duration::ZERO).unwrap();
        w.router.poll_once().await;
        let mut session = w.router.session().resume(&new).unwrap();
        for _ in 0..6 {
            assert_eq!(get(&mut session, "k").await.unwrap().as_deref(), Some(&b"2"[..]));
        }
        assert_eq!(session.token().await.unwrap(), new);
    });
}

#[test]
fn p15_of_the_tokens_of_concurrent_writers_the_join_is_the_newest_in_every_order() {
    on_paused(async {
        let w = World::new(|b| b);
        w.router.poll_once().await;
        let mut writers: Vec<_> = (0..4).map(|_| w.router.session()).collect();
        let mut tokens = Vec::new();
        for writer in &mut writers {
            put(writer, "k", b"1").await.unwrap();
            tokens.push(writer.token().await.unwrap());
        }
        let newest = tokens[3].clone();
        for first in 0..4 {
            for step in [1, 3] {
                let mut joined = SessionToken::new();
                (0..4).for_each(|i| joined.merge(&tokens[(first + i * step) % 4]).unwrap());
                assert_eq!(joined, newest, "from {first} by {step}");
            }
        }
    });
}

#[test]
fn s11_a_position_covers_the_whole_store_not_a_key() {
    on_paused(async {
        let w = World::new(|b| b.max_wait(MS));
        w.lag(HOUR);
        w.router.poll_once().await;
        w.cluster.primary().write("list", b"[1]").await.unwrap();
        let mut session = w.router.session();
        put(&mut session, "item", b"1").await.unwrap();
        assert_eq!(
            get(&mut session, "list").await.unwrap().as_deref(),
            Some(&b"[1]"[..]),
            "a key it never wrote"
        );
    });
}

#[test]
fn s12_p40_what_was_read_is_found_again_on_every_node() {
    on_paused(async {
        let w = World::new(|b| b.max_wait(MS));
        w.cluster.set_lag(2, HOUR).unwrap();
        w.router.poll_once().await;
        w.cluster.primary().write("k", b"1").await.unwrap();
        // Node 1 shows it although its sample, and that of node 2, are older than the write.
        let mut session = w.router.session();
        let mut found = false;
        for _ in 0..8 {
            let value = get(&mut session, "k").await.unwrap();
            assert!(!found || value.is_some(), "a later read saw less");
            found |= value.is_some();
        }
        assert!(found);
        w.router.poll_once().await;
        let token = session.token().await.unwrap();
        assert_eq!(token.positions(), [w.cluster.node(1).unwrap().observe().await.unwrap().mark]);
        // Another handle that goes on from there.
        let mut other = w.router.session().resume(&token).unwrap();
        for _ in 0..8 {
            assert!(get(&mut other, "k").await.unwrap().is_some());
        }
    });
}

#[test]
fn s14_p11_a_replica_that_never_gets_there_costs_max_wait_and_no_more() {
    on_paused(async {
        let w = World::new(|b| b.max_wait(50 * MS));
        w.lag(HOUR);
        w.router.poll_once().await;
        let mut session = w.router.session();
        put(&mut session, "k", b"1").await.unwrap();
        let start = w.clock.now();
        assert!(get(&mut session, "k").await.unwrap().is_some());
        // The timers of tokio are a millisecond coarse.
        let took = w.clock.now().saturating_duration_since(start);
        assert!(took >= 50 * MS && took <= 51 * MS, "{took:?}");
        // A deadline of the caller counts, too.
        let end = Deadline::after(w.clock.now(), 10 * MS);
        let mut session = session.within(end);
        let start = w.clock.now();
        let _ = get(&mut session, "k").await;
        assert!(w.clock.now().saturating_duration_since(start) <= 11 * MS);
        assert_eq!(w.heard(|e| *e == SessionEvent::ToPrimary { why: Why::Behind }), 2);
    });
}

#[test]
fn p11_a_node_that_hangs_holds_up_neither_reads_nor_the_samples_of_others() {
    on_paused(async {
        let w = World::new(|b| b.max_wait(50 * MS).call_timeout(100 * MS));
        w.router.poll_once().await;
        w.meters[1].hangs.store(true, Ordering::SeqCst);
        w.router.poll_once().await;
        let eligible = |i: usize| w.router.status()[i].eligible;
        assert!(!eligible(1) && eligible(2), "{:?}", w.router.status());
        let mut session = w.router.session();
        put(&mut session, "k", b"1").await.unwrap();
        let start = w.clock.now();
        assert!(get(&mut session, "k").await.unwrap().is_some());
        assert!(w.clock.now().saturating_duration_since(start) <= 50 * MS);
    });
}

#[test]
fn s15_p7_sl3_a_failover_that_lost_the_write_says_so_before_the_closure_runs() {
    on_paused(async {
        let w = World::new(|b| b.max_wait(MS));
        let mut session = w.router.session();
        w.router.poll_once().await;
        put(&mut session, "k", b"1").await.unwrap();
        w.lag(HOUR);
        put(&mut session, "k", b"2").await.unwrap();
        w.cluster.fail_over(1).unwrap();
        // The new history grows past the old position: a position alone would pass.
        for _ in 0..5 {
            w.cluster.primary().write("other", b"x").await.unwrap();
        }
        w.router.poll_once().await;
        let mut ran = false;
        let lost = session.read(async |c: &mut Conn| {
            ran = true;
            Ok::<_, Error>(c.node.read("k").value)
        });
        assert!(lost.await.unwrap_err().is_lost());
        assert!(!ran);
        assert_eq!(
            kind(put(&mut session, "k", b"3").await),
            ErrorKind::WriteLost,
            "no write follows a lost one"
        );
        let primary =
            session.read_at(&Consistency::Primary, async |c: &mut Conn| Ok(c.node.read("k").value)).await;
        assert_eq!(kind(primary), ErrorKind::WriteLost, "the primary does not have it either");
        assert!(session.accept_loss() && !session.accept_loss());
        assert_eq!(get(&mut session, "k").await.unwrap().as_deref(), Some(&b"1"[..]));
        put(&mut session, "k", b"3").await.unwrap();
        assert_eq!(get(&mut session, "k").await.unwrap().as_deref(), Some(&b"3"[..]));
    });
}

/// A write that no replica had acknowledged, as with `w:1`: it may be rolled back, and then nothing is promised.
#[test]
fn p23_a_write_that_only_the_primary_acknowledged_is_promised_until_it_is_rolled_back() {
    on_paused(async {
        let w = World::new(|b| b.max_wait(MS));
        w.lag(HOUR);
        w.router.poll_once().await;
        let mut session = w.router.session();
        put(&mut session, "k", b"1").await.unwrap();
        let token = session.token().await.unwrap();
        // As long as its primary stands the write is found, by whoever holds the token, although no replica has it.
        let mut other = w.router.session().resume(&token).unwrap();
        assert_eq!(get(&mut other, "k").await.unwrap().as_deref(), Some(&b"1"[..]));
        // The promoted one never had it: it is said to be rolled back, and by the old primary nobody is answered.
        w.cluster.fail_over(1).unwrap();
        w.router.poll_once().await;
        for session in [&mut session, &mut other] {
            assert_eq!(kind(get(session, "k").await), ErrorKind::WriteLost);
        }
        let mut third = w.router.session().resume(&token).unwrap();
        assert_eq!(kind(get(&mut third, "k").await), ErrorKind::WriteLost);
    });
}

#[test]
fn sl4_no_write_follows_a_read_that_was_lost() {
    on_paused(async {
        let w = World::new(|b| b.max_wait(MS));
        w.router.poll_once().await;
        w.cluster.set_cut(1, true).unwrap();
        w.cluster.primary().write("k", b"1").await.unwrap();
        for resolved in [true, false] {
            // Reads it from node 2, which alone has it besides the primary.
            let mut session = w.router.session();
            let on_two =
                Consistency::AtLeast(SessionToken::at(w.cluster.primary().observe().await.unwrap().mark));
            w.router.poll_once().await;
            let read =
                session.read_at(&on_two, async |c: &mut Conn| Ok::<_, Error>(c.node.read("k").value)).await;
            assert!(read.unwrap().is_some());
            if resolved {
                session.token().await.unwrap();
                // Without the guarantee nobody asks.
                let mut careless = w.router.session().guarantees(Guarantees::READ_YOUR_WRITES);
                careless.read_at(&on_two, async |_: &mut Conn| Ok::<_, Error>(())).await.unwrap();
                put(&mut careless, "j", b"0").await.unwrap();
                continue;
            }
            w.cluster.fail_over(1).unwrap();
            w.cluster.rejoin(2).unwrap();
            w.cluster.rejoin(0).unwrap();
            assert_eq!(
                kind(put(&mut session, "j", b"2").await),
                ErrorKind::Unproven,
                "its position was never known"
            );
            w.router.poll_once().await;
            assert!(session.accept_loss());
            put(&mut session, "j", b"2").await.unwrap();
        }
    });
}

#[test]
fn sl6_a_failover_that_kept_the_write_is_no_loss() {
    on_paused(async {
        let w = World::new(|b| b);
        w.router.poll_once().await;
        let mut session = w.router.session();
        put(&mut session, "k", b"1").await.unwrap();
        for to in [1, 2, 0] {
            w.cluster.fail_over(to).unwrap();
            (0..3).for_each(|n| w.cluster.rejoin(n).unwrap());
            w.router.poll_once().await;
            assert_eq!(get(&mut session, "k").await.unwrap().as_deref(), Some(&b"1"[..]));
        }
        assert_eq!(session.token().await.unwrap().positions().len(), 1, "one history is left of four");
    });
}

#[test]
fn p6_p33_a_sample_counts_for_one_life_of_one_server() {
    on_paused(async {
        let w = World::new(|b| b.max_wait(MS).trust(HOUR));
        w.lag(HOUR);
        w.cluster.set_lag(2, Duration::ZERO).unwrap();
        let mut session = w.router.session();
        w.router.poll_once().await;
        put(&mut session, "k", b"1").await.unwrap();
        w.router.poll_once().await;
        assert!(get(&mut session, "k").await.unwrap().is_some(), "from node 2");
        w.cluster.fail_over(1).unwrap();
        w.cluster.rejoin(2).unwrap();
        w.cluster.rejoin(0).unwrap();
        // No poll since: the sample of node 2 still says that it has the write.
        assert_eq!(kind(get(&mut session, "k").await), ErrorKind::WriteLost);
    });
}

#[test]
fn p9_p42_of_two_that_claim_to_be_primary_the_later_history_counts_and_a_fork_is_alarmed() {
    let primary =
        |timeline: &str, n, history| Observed::new(mark(timeline, n), history).with_role(Role::Primary);
    let old = primary("1", 90, vec![]);
    let new = primary("2", 60, vec![switch("1", 50, "2")]);
    assert_eq!(verdict(&old.mark, &new), Verdict::Lost { since: Some(Position::Lsn(50)) });
    assert_eq!(
        verdict(&new.mark, &old),
        Verdict::Behind { by: None },
        "an old primary never satisfies, nor says Lost"
    );
    on_paused(async {
        // Two standbys promoted to the same number at different places.
        let scripts = BTreeMap::from([
            ("a", primary("2", 60, vec![switch("1", 50, "2")])),
            ("b", primary("2", 70, vec![switch("1", 55, "2")])),
        ]);
        let events: Arc<Mutex<Vec<SessionEvent>>> = Arc::default();
        let heard = Arc::clone(&events);
        let mut builder = Router::builder("db", Arc::new(VirtualClock::new()));
        for (name, observed) in scripts {
            builder = builder.shared(name, Fixed(observed));
        }
        let router = builder.on_event(move |e| heard.lock().unwrap().push(e.clone())).build().unwrap();
        router.poll_once().await;
        router.poll_once().await;
        let status = router.status();
        assert!(!status[0].forked && status[1].forked && !status[1].eligible, "{status:?}");
        let forks =
            events.lock().unwrap().iter().filter(|e| matches!(e, SessionEvent::Forked { .. })).count();
        assert_eq!(forks, 1, "said once");
    });
}

/// A node that always says the same.
#[derive(Clone, Debug)]
struct Fixed(Observed);

impl ReplicatedStore for Fixed {
    fn commit_position(&self) -> BoxFuture<'_, mainstay_store::Result<Mark>> {
        Box::pin(async { Ok(self.0.mark.clone()) })
    }

    fn observe(&self) -> BoxFuture<'_, mainstay_store::Result<Observed>> {
        Box::pin(async { Ok(self.0.clone()) })
    }

    fn wait<'a>(&'a self, _: &'a Mark, _: Duration) -> BoxFuture<'a, mainstay_store::Result<Judgment>> {
        Box::pin(async { Ok(Judgment::Behind) })
    }
}

/// The name of a writer that does not say where a commit went.
pub(crate) const MUTE: &str = "mute";

/// A node that says what it is told to.
#[derive(Clone, Debug)]
pub(crate) struct Told(pub(crate) Arc<Mutex<Observed>>);

impl Told {
    pub(crate) fn new(observed: Observed) -> Self {
        Self(Arc::new(Mutex::new(observed)))
    }

    pub(crate) fn say(&self, observed: Observed) {
        *self.0.lock().unwrap() = observed;
    }
}

impl ReplicatedStore for Told {
    fn commit_position(&self) -> BoxFuture<'_, mainstay_store::Result<Mark>> {
        Box::pin(async {
            let observed = self.0.lock().unwrap();
            if observed.writer.as_deref() == Some(MUTE) {
                return Err(Error::new(mainstay_store::ErrorKind::Unavailable, "the answer was lost"));
            }
            Ok(observed.mark.clone())
        })
    }

    fn observe(&self) -> BoxFuture<'_, mainstay_store::Result<Observed>> {
        Box::pin(async { Ok(self.0.lock().unwrap().clone()) })
    }

    fn wait<'a>(&'a self, _: &'a Mark, _: Duration) -> BoxFuture<'a, mainstay_store::Result<Judgment>> {
        Box::pin(async { Ok(Judgment::Behind) })
    }

    fn incarnation(&self) -> Option<u64> {
        Some(self.0.lock().unwrap().incarnation)
    }
}

/// What happens to those who connect to a node from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Door {
    #[default]
    Open,
    /// Nobody gets through until it is something else.
    Held,
    Shut,
}

pub(crate) type Doors = Arc<Mutex<Vec<Door>>>;
pub(crate) type Heard = Arc<Mutex<Vec<SessionEvent>>>;

/// As [`told`], with a door before each node. Who stands before a door that is held waits there also after it opened
/// for others, until no door is held.
pub(crate) fn told_behind_doors(nodes: &[Told]) -> (Router<Told>, Heard, Doors) {
    let doors: Doors = Arc::new(Mutex::new(vec![Door::Open; nodes.len()]));
    let events: Heard = Arc::default();
    let heard = Arc::clone(&events);
    let mut builder = Router::builder("db", Arc::new(VirtualClock::new())).max_wait(MS);
    for (i, node) in nodes.iter().enumerate() {
        let (node, doors) = (node.clone(), Arc::clone(&doors));
        builder = builder.node(&format!("n{i}"), move || {
            let (node, doors) = (node.clone(), Arc::clone(&doors));
            Box::pin(async move {
                while doors.lock().unwrap()[i] == Door::Held {
                    tokio::task::yield_now().await;
                }
                match doors.lock().unwrap()[i] {
                    Door::Shut => Err(Error::new(mainstay_store::ErrorKind::Unavailable, "the pool is full")),
                    _ => Ok(node),
                }
            })
        });
    }
    (builder.on_event(move |e| heard.lock().unwrap().push(e.clone())).build().unwrap(), events, doors)
}

/// A router over these nodes, and what it decided.
pub(crate) fn told(nodes: &[Told]) -> (Router<Told>, Arc<Mutex<Vec<SessionEvent>>>) {
    let events: Arc<Mutex<Vec<SessionEvent>>> = Arc::default();
    let heard = Arc::clone(&events);
    let mut builder = Router::builder("db", Arc::new(VirtualClock::new())).max_wait(MS);
    for (i, node) in nodes.iter().enumerate() {
        builder = builder.shared(&format!("n{i}"), node.clone());
    }
    (builder.on_event(move |e| heard.lock().unwrap().push(e.clone())).build().unwrap(), events)
}

/// The place of the last read: a replica, or why not.
pub(crate) fn placed(events: &Mutex<Vec<SessionEvent>>) -> Result<String, Why> {
    let events = events.lock().unwrap();
    let last = events.iter().rev().find_map(|e| match e {
        SessionEvent::ToReplica { node, .. } => Some(Ok(node.clone())),
        SessionEvent::ToPrimary { why } => Some(Err(*why)),
        _ => None,
    });
    last.unwrap()
}

pub(crate) async fn nothing(session: &mut Session<Told>) -> Result<(), CallError<Error>> {
    session.read(async |_: &mut Told| Ok(())).await
}

#[test]
fn sl6_p19_a_history_that_a_sample_does_not_know_is_no_loss() {
    on_paused(async {
        let at = |timeline: &str, n| mark_of(timeline, Position::Offset(n));
        let moved =
            TimelineSwitch { timeline: "aaaa".into(), position: Position::Offset(50), next: "bbbb".into() };
        let old = Observed::new(at("aaaa", 55), vec![]).with_role(Role::Primary);
        let (a, b) = (Told::new(old), Told::new(Observed::new(at("aaaa", 50), vec![])));
        let (router, events) = told(&[a, b.clone()]);
        router.poll_once().await;
        // The failover is younger than the samples, and the old primary still answers as one.
        b.say(Observed::new(at("bbbb", 60), vec![moved]).with_role(Role::Primary).with_incarnation(1));
        let mut session = router.session().resume(&SessionToken::at(at("bbbb", 58))).unwrap();
        nothing(&mut session).await.unwrap();
        assert_eq!(placed(&events), Err(Why::Unknown));
        // What the failover lost is lost, and what nobody knows is lost on the verified primary.
        for (timeline, n) in [("aaaa", 51), ("cccc", 1)] {
            let mut session = router.session().resume(&SessionToken::at(at(timeline, n))).unwrap();
            assert_eq!(kind(nothing(&mut session).await), ErrorKind::WriteLost, "{timeline}");
        }
    });
}

#[test]
fn p33_a_replica_that_was_restarted_while_it_was_connected_to_is_judged_again() {
    let bounded = Consistency::Bounded(Duration::from_secs(1));
    let ryw = Consistency::Session(Guarantees::READ_YOUR_WRITES);
    let mr = Consistency::Session(Guarantees::MONOTONIC_READS);
    for how in [ryw, mr, bounded] {
        on_paused(async {
            let life = |n, life| Observed::new(mark("1", n), vec![]).with_incarnation(life);
            let primary = Told::new(life(100, 1).with_role(Role::Primary));
            let replica = Told::new(life(100, 1));
            let (router, events, doors) = told_behind_doors(&[primary, replica.clone()]);
            router.poll_once().await;
            let mut session = router.session();
            if how == Consistency::Session(Guarantees::READ_YOUR_WRITES) {
                session = session.resume(&SessionToken::at(mark("1", 90))).unwrap();
            }
            let read = async |session: &mut Session<Told>| {
                session.read_at(&how, async |_: &mut Told| Ok::<_, Error>(())).await.unwrap();
            };
            // What this read saw has no position yet: the next one stays where it was.
            read(&mut session).await;
            assert_eq!(placed(&events), Ok("n1".to_owned()), "{how:?}");
            doors.lock().unwrap()[1] = Door::Held;
            let restart = async {
                tokio::task::yield_now().await;
                replica.say(life(80, 2));
                doors.lock().unwrap()[1] = Door::Open;
                router.poll_once().await;
            };
            tokio::join!(restart, read(&mut session));
            assert_eq!(placed(&events), Err(Why::Behind), "{how:?}");
        });
    }
}

#[test]
fn a_past_that_cannot_be_read_makes_the_primary_unproven() {
    on_paused(async {
        let primary = Observed::new(mark("2", 100), vec![]).with_role(Role::Primary);
        let (router, _) = told(&[Told::new(primary), Told::new(Observed::new(mark("2", 100), vec![]))]);
        router.poll_once().await;
        let mut session = router.session().resume(&SessionToken::at(mark("1", 5))).unwrap();
        assert_eq!(kind(nothing(&mut session).await), ErrorKind::Unproven);
        let wrote = session.write(async |_: &mut Told| Ok::<_, Error>(())).await;
        assert_eq!(kind(wrote), ErrorKind::Unproven);
        assert!(session.accept_loss());
        nothing(&mut session).await.unwrap();
    });
}

#[test]
fn p39_a_commit_that_nobody_waited_for_is_the_primarys_until_it_is_flushed() {
    on_paused(async {
        let primary = |start, durable| {
            let observed = Observed::new(mark("1", 120), vec![]).with_role(Role::Primary);
            observed.with_incarnation(start).with_durable(Position::Lsn(durable))
        };
        let (a, b) =
            (Told::new(primary(7, 80)), Told::new(Observed::new(mark("1", 100), vec![]).with_incarnation(3)));
        let (router, events) = told(&[a.clone(), b]);
        router.poll_once().await;
        let token = SessionToken::at(mark_of("1", Position::LsnUnsynced { lsn: 90, start: 7 }));
        let mut early = router.session().resume(&token).unwrap().guarantees(Guarantees::READ_YOUR_WRITES);
        nothing(&mut early).await.unwrap();
        assert_eq!(placed(&events), Err(Why::Behind), "the replica may have it, and cannot tell");
        // Flushed: a position like every other, and the crash that follows takes nothing.
        a.say(primary(7, 95));
        router.poll_once().await;
        nothing(&mut early).await.unwrap();
        assert_eq!(placed(&events), Ok("n1".to_owned()));
        a.say(primary(8, 119));
        router.poll_once().await;
        nothing(&mut early).await.unwrap();
        // Who did not see the flush before the crash cannot know.
        let mut late = router.session().resume(&token).unwrap();
        assert_eq!(kind(nothing(&mut late).await), ErrorKind::WriteLost);
    });
}

#[test]
fn p40_what_a_standby_showed_ahead_is_no_more_than_there_was_when_its_history_was_left() {
    on_paused(async {
        let a = Told::new(Observed::new(mark("1", 200), vec![]).with_role(Role::Primary));
        let b = Told::new(Observed::new(mark("1", 95), vec![]));
        let (router, events) = told(&[a, b.clone()]);
        router.poll_once().await;
        let token = SessionToken::at(mark_of("1", Position::LsnRead { lsn: 90, ahead: 20 }));
        let mut session = router.session().resume(&token).unwrap();
        nothing(&mut session).await.unwrap();
        assert_eq!(placed(&events), Err(Why::Behind), "it may have seen up to 110");
        // The history ends at 100: nobody has 110, and nothing that was replayed is lost.
        b.say(Observed::new(mark("2", 101), vec![switch("1", 100, "2")]).with_role(Role::Primary));
        router.poll_once().await;
        let mut session = router.session().resume(&token).unwrap();
        nothing(&mut session).await.unwrap();
        assert_eq!(session.token().await.unwrap().positions(), [mark("2", 101)]);
    });
}

#[test]
fn p16_a_token_of_another_store_is_foreign_at_once() {
    on_paused(async {
        let w = World::new(|b| b);
        w.router.poll_once().await;
        let mut session = w.router.session().resume(&SessionToken::at(mark("1", 1))).unwrap();
        let start = w.clock.now();
        assert_eq!(kind(get(&mut session, "k").await), ErrorKind::ForeignToken);
        assert_eq!(kind(put(&mut session, "k", b"1").await), ErrorKind::ForeignToken);
        assert_eq!(w.clock.now(), start, "nothing was waited for");
    });
}

#[test]
fn p17_p39_a_position_past_the_end_of_the_primary_is_lost_not_satisfied() {
    on_paused(async {
        let w = World::new(|b| b.max_wait(MS));
        w.router.poll_once().await;
        let position = Position::Counter(u64::MAX);
        let far = Mark { system: "orders".into(), timeline: "1".into(), position };
        let mut session = w.router.session().resume(&SessionToken::at(far)).unwrap();
        assert_eq!(kind(get(&mut session, "k").await), ErrorKind::WriteLost);
    });
}

#[test]
fn p18_an_unreadable_token_never_reads_from_a_replica() {
    on_paused(async {
        let w = World::new(|b| b);
        w.router.poll_once().await;
        let keys = super::session_tokens::keys();
        for text in ["garbage", "AAAA", &"A".repeat(600), "\u{e9}"] {
            let mut session = w.router.session().resume_sealed(text, &keys);
            get(&mut session, "k").await.unwrap();
        }
        assert_eq!(w.heard(|e| matches!(e, SessionEvent::ToReplica { .. })), 0);
        assert_eq!(
            w.heard(|e| matches!(e, SessionEvent::TokenRefused { .. })),
            4,
            "counted, each with its reason"
        );
    });
}

#[test]
fn p24_reads_inside_a_write_use_its_connection() {
    on_paused(async {
        let w = World::new(|b| b);
        w.lag(HOUR);
        w.router.poll_once().await;
        let mut session = w.router.session();
        let read = session.write(async |c: &mut Conn| {
            c.node.write("k", b"1").await?;
            Ok::<_, Error>(c.node.read("k").value)
        });
        assert!(read.await.unwrap().is_some());
    });
}

/// A cache in front of the replicas: its key is what was asked, and the token that it was asked with.
#[test]
fn p26_a_cache_whose_key_has_the_token_in_it_keeps_nothing_from_before_a_write() {
    on_paused(async {
        let w = World::new(|b| b.max_wait(MS));
        w.router.poll_once().await;
        let mut session = w.router.session();
        let mut cache = std::collections::BTreeMap::new();
        let keys = super::session_tokens::keys();
        let now = mainstay_clock::WallTime::from_unix_millis(1_767_225_600_000);
        put(&mut session, "k", b"1").await.unwrap();
        let before = keys.seal(&session.token().await.unwrap(), now);
        cache.insert(("k", before.clone()), get(&mut session, "k").await.unwrap());
        // Whoever knows no more asks the same question, and hits.
        let again = keys.seal(&session.token().await.unwrap(), now);
        assert_eq!(cache.get(&("k", again)), Some(&Some(b"1".to_vec())));
        put(&mut session, "k", b"2").await.unwrap();
        let after = keys.seal(&session.token().await.unwrap(), now);
        assert_eq!(
            cache.get(&("k", after)),
            None,
            "what is cached from before the write answers nobody after it"
        );
        assert_eq!(get(&mut session, "k").await.unwrap().as_deref(), Some(&b"2"[..]));
    });
}

#[test]
fn p28_p41_a_write_without_an_answer_gives_no_position_and_the_next_read_goes_to_the_primary() {
    on_paused(async {
        let w = World::new(|b| b.call_timeout(100 * MS));
        w.lag(HOUR);
        w.router.poll_once().await;
        let mut session = w.router.session();
        // It took effect, and the reply was lost.
        let failed = session.write(async |c: &mut Conn| {
            c.node.write("k", b"1").await?;
            Err::<(), _>(Error::new(mainstay_store::ErrorKind::Unavailable, "the reply was lost"))
        });
        assert!(matches!(failed.await, Err(CallError::Inner(_))));
        let token = session.token().await.unwrap();
        assert!(token.is_owed() && token.positions().is_empty());
        assert_eq!(get(&mut session, "k").await.unwrap().as_deref(), Some(&b"1"[..]));
        assert!(!session.token().await.unwrap().is_owed());

        // The same when only the position is missing.
        w.meters[0].position_hangs.store(true, Ordering::SeqCst);
        put(&mut session, "k", b"2").await.unwrap();
        let token = session.token().await.unwrap();
        assert!(token.is_owed());
        let mut other = w.router.session().resume(&token).unwrap();
        assert_eq!(get(&mut other, "k").await.unwrap().as_deref(), Some(&b"2"[..]));
    });
}

#[test]
fn p36_more_of_another_server_is_not_the_same_history() {
    let gtids = |of: &[(&str, u64)]| Position::Gtid(of.iter().map(|(s, n)| ((*s).to_owned(), *n)).collect());
    let at = |position| Mark { system: "db".into(), timeline: "m".into(), position };
    let node = Observed::new(at(gtids(&[("a", 6), ("b", 4056)])), vec![]);
    assert_eq!(verdict(&at(gtids(&[("a", 7)])), &node), Verdict::Behind { by: Some(1) });
    assert_eq!(verdict(&at(gtids(&[("a", 6)])), &node), Verdict::Satisfied);
}

#[test]
fn a_satisfied_replica_is_read_without_a_round_trip() {
    on_paused(async {
        let w = World::new(|b| b);
        w.router.poll_once().await;
        let mut session = w.router.session();
        put(&mut session, "k", b"1").await.unwrap();
        w.router.poll_once().await;
        let before = w.asked();
        for _ in 0..100 {
            assert!(get(&mut session, "k").await.unwrap().is_some());
        }
        assert_eq!(w.asked() - before, 0);
        assert_eq!(w.heard(|e| matches!(e, SessionEvent::ToPrimary { .. })), 0, "all from replicas");
    });
}

#[test]
fn a_short_deadline_of_one_caller_makes_nobody_forget_the_primary() {
    on_paused(async {
        let clock = VirtualClock::new();
        let life = Observed::new(mark("1", 100), vec![]).with_incarnation(1);
        let (primary, hangs) = (Told::new(life.with_role(Role::Primary)), Arc::new(AtomicBool::new(false)));
        let held = Arc::clone(&hangs);
        let builder = Router::builder("db", Arc::new(clock.clone())).node("n0", move || {
            let (primary, held) = (primary.clone(), Arc::clone(&held));
            Box::pin(async move {
                if held.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                Ok(primary)
            })
        });
        let router = builder.build().unwrap();
        router.poll_once().await;
        hangs.store(true, Ordering::SeqCst);
        let known = || router.status()[0].mark.is_some();
        let nothing = async |_: &mut Told| Ok::<_, Error>(());
        let mut hasty = router.session().within(Deadline::after(clock.now(), MS));
        assert!(hasty.read_at(&Consistency::Primary, nothing).await.is_err());
        assert!(known(), "one millisecond says nothing about a node");
        assert!(router.session().read_at(&Consistency::Primary, nothing).await.is_err());
        assert!(!known(), "its whole time does");
    });
}

#[test]
fn a_plan_says_what_the_next_read_does_and_asks_nobody() {
    on_paused(async {
        let w = World::new(|b| b);
        let all = Consistency::Session(Guarantees::ALL);
        let mut session = w.router.session();
        assert_eq!(session.plan(&all), Plan::Primary(Why::NoReplica));
        w.router.poll_once().await;
        put(&mut session, "k", b"1").await.unwrap();
        w.router.poll_once().await;
        let before = w.asked();
        let Plan::Replica(name) = session.plan(&all) else { panic!("{:?}", session.plan(&all)) };
        assert!(["n1", "n2"].contains(&name), "{name}");
        assert_eq!(session.plan(&Consistency::Primary), Plan::Primary(Why::Asked));
        w.lag(HOUR);
        put(&mut session, "k", b"2").await.unwrap();
        let asked = w.asked();
        assert!(matches!(session.plan(&all), Plan::WaitFor("n1" | "n2")), "{:?}", session.plan(&all));
        assert_eq!((asked - before, w.asked() - asked), (1, 0), "only the write asks, for its position");
        w.cluster.fail_over(1).unwrap();
        w.router.poll_once().await;
        assert_eq!(session.plan(&all), Plan::Refused(ErrorKind::WriteLost));
        assert!(get(&mut session, "k").await.unwrap_err().is_lost(), "the read says what the plan said");
    });
}

#[test]
fn bounded_staleness_is_measured_by_the_routers_own_clock() {
    on_paused(async {
        let w = World::new(|b| b);
        w.lag(Duration::from_secs(2));
        let value = async |c: &mut Conn| Ok::<_, Error>(c.node.read("k").value);
        for n in 0..40_u8 {
            w.cluster.primary().write("k", &[n]).await.unwrap();
            w.router.poll_once().await;
            w.clock.sleep(100 * MS).await;
        }
        let mut session = w.router.session();
        let bound = |d| Consistency::Bounded(d);
        assert!(session.read_at(&bound(3000 * MS), value).await.unwrap().is_some());
        assert_eq!(w.heard(|e| matches!(e, SessionEvent::ToReplica { .. })), 1);
        let fresh = session.read_at(&bound(1000 * MS), value).await.unwrap();
        assert_eq!(fresh.as_deref(), Some(&[39][..]), "no replica is that fresh");
        assert_eq!(w.heard(|e| matches!(e, SessionEvent::ToReplica { .. })), 1);
        assert!(session.read_at(&Consistency::MinLatency, value).await.is_ok());
        assert_eq!(w.heard(|e| matches!(e, SessionEvent::ToReplica { .. })), 2);
    });
}

#[test]
fn guarantees_that_were_not_asked_for_cost_nothing() {
    on_paused(async {
        let w = World::new(|b| b.max_wait(MS));
        w.lag(HOUR);
        w.router.poll_once().await;
        let mut session = w.router.session().guarantees(Guarantees::MONOTONIC_READS);
        put(&mut session, "k", b"1").await.unwrap();
        assert_eq!(get(&mut session, "k").await.unwrap(), None, "its own write was not asked for");
        let token = SessionToken::at(w.cluster.primary().observe().await.unwrap().mark);
        let at_least = Consistency::AtLeast(token);
        let read = session.read_at(&at_least, async |c: &mut Conn| Ok::<_, Error>(c.node.read("k").value));
        assert!(read.await.unwrap().is_some(), "a token that was asked for is");
    });
}

#[test]
fn settings_that_cannot_hold_are_refused_by_name() {
    on_paused(async {
        let builder = || Router::<Fixed>::builder("db", Arc::new(VirtualClock::new()));
        let node = || Fixed(Observed::new(mark("1", 1), vec![]));
        let field = |b: RouterBuilder<Fixed>| b.build().unwrap_err().field();
        assert_eq!(field(builder()), "nodes");
        assert_eq!(field(builder().shared("a", node()).shared("a", node())), "nodes");
        let one = || builder().shared("a", node());
        assert_eq!(field(one().max_wait(Duration::ZERO)), "max_wait");
        assert_eq!(field(one().poll_every(Duration::ZERO)), "poll_every");
        assert_eq!(field(one().call_timeout(Duration::MAX)), "call_timeout");
        assert_eq!(field(one().trust(MS)), "trust");
        assert_eq!(field(one().max_waiters(0)), "max_waiters");
    });
}

/// Polls `future` at most `polls` times; whether it was done.
async fn dropped_after<F: Future>(future: F, polls: usize) -> bool {
    let mut future = std::pin::pin!(future);
    for _ in 0..polls {
        let once = std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_ready()));
        if once.await {
            return true;
        }
        tokio::task::yield_now().await;
    }
    false
}

#[test]
fn every_future_is_dropped_at_every_await_and_the_session_stays_true() {
    on_paused(async {
        for (polls, polled) in (0..24).flat_map(|polls| [(polls, false), (polls, true)]) {
            let w = World::new(|b| b.max_wait(20 * MS).max_waiters(1));
            w.lag(HOUR);
            let mut session = w.router.session();
            assert!(!dropped_after(w.router.poll_once(), polls.min(3)).await);
            if polled {
                w.router.poll_once().await;
            }
            let wrote = session.write(async |c: &mut Conn| {
                let mark = c.node.write("k", b"1").await;
                tokio::task::yield_now().await;
                mark
            });
            let _ = dropped_after(wrote, polls).await;
            let happened = w.cluster.primary().read("k").value.is_some();
            let _ = dropped_after(get(&mut session, "k"), polls).await;
            let _ = dropped_after(session.token(), polls).await;
            // However far it came: what happened is seen, and no place of a waiter is gone.
            let start = w.clock.now();
            assert_eq!(get(&mut session, "k").await.unwrap().is_some(), happened, "{polls} polls, {polled}");
            assert!(w.clock.now().saturating_duration_since(start) <= 21 * MS);
            w.router.poll_once().await;
            put(&mut session, "k", b"2").await.unwrap();
            w.lag(10 * MS);
            let start = w.clock.now();
            assert_eq!(get(&mut session, "k").await.unwrap().as_deref(), Some(&b"2"[..]));
            assert!(w.clock.now() > start, "it could wait: the one place is free");
        }
    });
}

/// The futures of sessions can be spawned, also with closures that borrow.
#[test]
fn sessions_move_between_threads() {
    fn sendable<F: Future + Send>(future: F) -> F {
        future
    }
    on_paused(async {
        let w = World::new(|b| b);
        let (mut session, key) = (w.router.session(), String::from("k"));
        let work = sendable(async move {
            session.write(async |c: &mut Conn| c.node.write(&key, b"1").await).await.unwrap();
            let read = session.read(async |c: &mut Conn| Ok::<_, Error>(c.node.read(&key).value)).await;
            session.token().await.unwrap();
            read.unwrap()
        });
        assert!(work.await.is_some());
        sendable(w.router.poll_once()).await;
    });
}

#[test]
fn p7_p41_a_write_that_was_acknowledged_without_a_position_and_lost_is_said() {
    on_paused(async {
        for (lost, reads) in [(true, true), (true, false), (false, true), (false, false)] {
            let w = World::new(|b| b.call_timeout(100 * MS).max_wait(MS));
            w.router.poll_once().await;
            if lost {
                w.lag(HOUR);
            }
            let mut session = w.router.session();
            w.meters[0].position_hangs.store(true, Ordering::SeqCst);
            put(&mut session, "k", b"1").await.unwrap();
            assert!(session.token().await.unwrap().is_owed());
            if lost {
                w.cluster.fail_over(1).unwrap();
                w.cluster.rejoin(0).unwrap();
                w.router.poll_once().await;
                let refused = if reads {
                    kind(get(&mut session, "k").await)
                } else {
                    kind(put(&mut session, "j", b"2").await)
                };
                assert_eq!(refused, ErrorKind::Unproven, "reads: {reads}");
                assert!(session.accept_loss());
            }
            // Nothing stands in the way when it is there, or after it was given up.
            if reads {
                assert_eq!(get(&mut session, "k").await.unwrap().is_some(), !lost);
                assert!(!session.token().await.unwrap().is_owed());
            }
            w.meters[0].position_hangs.store(false, Ordering::SeqCst);
            put(&mut session, "k", b"3").await.unwrap();
            assert_eq!(get(&mut session, "k").await.unwrap().as_deref(), Some(&b"3"[..]));
        }
    });
}

#[test]
fn a_loss_that_was_not_accepted_is_not_what_a_later_call_speaks_of() {
    on_paused(async {
        let observed = |n: u64, life| Observed::new(mark("1", n), vec![]).with_incarnation(life);
        let (primary, replica) =
            (Told::new(observed(50, 1).with_role(Role::Primary)), Told::new(observed(50, 1)));
        let (router, _, doors) = told_behind_doors(&[primary.clone(), replica]);
        router.poll_once().await;
        let mut session = router.session().resume(&SessionToken::at(mark("1", 60))).unwrap();
        assert_eq!(kind(nothing(&mut session).await), ErrorKind::WriteLost);
        // It had only not been said yet: the next read finds it, and what it saw is asked for when nobody answers.
        primary.say(observed(70, 1).with_role(Role::Primary));
        nothing(&mut session).await.unwrap();
        *doors.lock().unwrap() = vec![Door::Shut; 2];
        assert_eq!(session.token().await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(!session.accept_loss(), "an old position is nothing to go on from");
    });
}
