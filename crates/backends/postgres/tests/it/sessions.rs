//! Session advisory locks, among them those of other clients.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock, Deadline, Instant, Runtime, SeededRng, Sleep, SystemClock, Tick, WallTime};
use mainstay_coordination::Coordinator;
use mainstay_postgres::{AdvisoryKey, KeyProfile, Names, PostgresConfig, PostgresSessions};
use mainstay_sim::conformance;
use mainstay_store::lease::{AcquireRequest, Acquired, Line, Released, Renewed, Share, ToldBy};
use mainstay_store::{ErrorKind, LeaseStore};
use tokio::sync::watch;

use crate::world::{Test, World, ask, take, until};

pub(crate) const TESTS: &[Test] = &[
    ("sessions_conform", |w| Box::pin(conforms(w))),
    ("psql_excludes_ours_and_is_excluded_under_every_profile", |w| Box::pin(psql(w))),
    ("a_holder_that_is_killed_hands_over_at_once", |w| Box::pin(killed(w))),
    ("f28_a_dropped_guard_frees_its_session_lock_at_once", |w| Box::pin(f28_dropped(w))),
    ("f28_a_lock_that_nobody_renews_is_given_up_after_its_ttl", |w| Box::pin(f28_ttl(w))),
    ("f39_two_acquisitions_of_one_process_exclude_each_other", |w| Box::pin(f39(w))),
    ("t08_an_acquisition_dropped_while_it_waits_leaves_no_place_in_the_queue", |w| Box::pin(t08(w))),
    ("a_lost_connection_is_a_lost_lock", |w| Box::pin(lost(w))),
    ("a_watch_of_a_free_session_lock_waits_until_somebody_takes_it", |w| Box::pin(free(w))),
    ("a_session_lock_that_was_told_held_is_never_waited_for_when_it_is_free", |w| Box::pin(told(w))),
    ("sessions_are_bounded", |w| Box::pin(bounded(w))),
];

async fn sessions(world: &World, profile: KeyProfile) -> PostgresSessions {
    let config = world.config().connections(16).build().unwrap();
    PostgresSessions::open(config, profile, Names::Bare, &Runtime::system()).await.unwrap()
}

/// The suite's clock: its sleeps move it, the sleeps of the store wait for that.
#[derive(Clone, Debug)]
struct Hand {
    now: watch::Sender<u64>,
    moves: bool,
    /// Sleeps up to this long are over at once, and move nothing.
    brief: Duration,
}

impl Clock for Hand {
    fn now(&self) -> Instant {
        Instant::from_nanos(*self.now.borrow())
    }

    fn wall(&self) -> WallTime {
        SystemClock::new().wall()
    }

    fn tick(&self) -> Tick {
        Tick::system()
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        if self.moves {
            self.now.send_modify(|now| *now = (*now).max(deadline.as_nanos()));
            return Box::pin(async {});
        }
        if deadline.saturating_duration_since(self.now()) <= self.brief {
            return Box::pin(async {});
        }
        let mut now = self.now.subscribe();
        Box::pin(async move {
            // The sender lives as long as the test.
            let _ = now.wait_for(|now| *now >= deadline.as_nanos()).await;
        })
    }
}

async fn conforms(world: World) {
    let suite = Hand { now: watch::Sender::new(0), moves: true, brief: Duration::ZERO };
    let own = Hand { moves: false, ..suite.clone() };
    let rt = Runtime::on_tokio(Arc::new(own), Arc::new(SeededRng::new(1)));
    let config = world.config().connections(16).build().unwrap();
    let store = PostgresSessions::open(config, KeyProfile::Sqlx, Names::Whole, &rt).await.unwrap();
    let sections = conformance::leases(&store, &suite).await;
    assert_eq!(sections.ran, ["mutex", "break_lease", "line", "list", "watch"]);
    assert_eq!(sections.refused, ["annotate", "permit", "shared", "transfer"]);
    // The server's calendar, which no clock of the suite moves.
    assert_eq!(conformance::since_when(&store, &SystemClock::new()).await, ToldBy::Store);
}

/// A session of `psql` that stays.
struct Psql {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Psql {
    fn start(world: &World) -> Self {
        let mut command = world.primary.psql();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, to, from }
    }

    fn ask(&mut self, sql: &str) -> String {
        writeln!(self.to, "{sql};").unwrap();
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        // It may have ended with its server.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn psql(world: World) {
    let mut psql = Psql::start(&world);
    let profiles = [
        KeyProfile::Sqlx,
        KeyProfile::NodeSha256,
        KeyProfile::Dlock,
        KeyProfile::Medallion { hashing: false },
        KeyProfile::Medallion { hashing: true },
        KeyProfile::Raw(28_319),
        KeyProfile::RawPair(1_000, -1),
    ];
    for (i, profile) in profiles.into_iter().enumerate() {
        let store = sessions(&world, profile).await;
        let name = format!("space/jobs-{i}");
        let arguments = match profile.key(&format!("jobs-{i}")).unwrap() {
            AdvisoryKey::Int8(n) => format!("'{n}'::int8"),
            AdvisoryKey::Pair(a, b) => format!("'{a}'::int4, '{b}'::int4"),
        };
        assert_eq!(psql.ask(&format!("select pg_try_advisory_lock({arguments})")), "t");
        let Acquired::Held { by, .. } = store.acquire(ask(&name, "ours")).await.unwrap() else {
            panic!("{profile:?}: not excluded")
        };
        assert!(by.starts_with("psql (pid "), "{by}");
        assert_eq!(psql.ask(&format!("select pg_advisory_unlock({arguments})")), "t");
        assert!(take(&store, &name, "ours").await.is_some());
        assert_eq!(psql.ask(&format!("select pg_try_advisory_lock({arguments})")), "f", "{profile:?}");
        assert_eq!(store.release("ours").await.unwrap(), Released::Clean);
        assert_eq!(psql.ask(&format!("select pg_try_advisory_lock({arguments})")), "t");
        assert_eq!(psql.ask(&format!("select pg_advisory_unlock({arguments})")), "t");
    }
    let medallion = sessions(&world, KeyProfile::Medallion { hashing: false }).await;
    let refused = medallion.acquire(ask("space/longer than nine", "op")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ApiMisuse);
    let shared = AcquireRequest { share: Share::Shared, ..ask("space/s", "op") };
    assert_eq!(medallion.acquire(shared).await.unwrap_err().kind(), ErrorKind::Unsupported);
}

/// Time stands still for the store and for whoever waits, so no timer can be why something is heard: a waiter asks again
/// after 50 ms or more. Only what it does not listen to after a hint for nothing passes, 8 ms after four of them.
fn still() -> Runtime {
    let still = Hand { now: watch::Sender::new(0), moves: false, brief: Duration::from_millis(10) };
    Runtime::on_tokio(Arc::new(still), Arc::new(SeededRng::new(1)))
}

/// The holder is another process, and it dies by SIGKILL.
async fn killed(world: World) {
    let (clock, rt) = (SystemClock::new(), still());
    let config = world.config().connections(16).build().unwrap();
    let store = PostgresSessions::open(config, KeyProfile::Raw(77), Names::Bare, &rt).await.unwrap();
    let node = Coordinator::builder(Arc::new(store), rt).namespace("space").owner("b").build().unwrap();
    let lock = node.mutex("n").build().unwrap();
    let mut times = Vec::new();
    for _ in 0..10 {
        let mut psql = Psql::start(&world);
        assert_eq!(psql.ask("select pg_try_advisory_lock(77)"), "t");
        let waiting = lock.acquire(Deadline::NONE);
        let kill = async {
            until("the waiter stands in the queue", || async {
                let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted and objid = 77";
                world.primary.sql(waits).unwrap().trim() == "1"
            })
            .await;
            let at = clock.now();
            psql.child.kill().unwrap();
            at
        };
        let (guard, at) = tokio::join!(waiting, kill);
        times.push(clock.now().saturating_duration_since(at));
        guard.unwrap().release().await.unwrap();
    }
    times.sort();
    println!("hand-over after the kill of the holder: {times:?}");
}

async fn f28_dropped(world: World) {
    let store = Arc::new(sessions(&world, KeyProfile::Raw(28)).await);
    let node = Coordinator::builder(store, Runtime::system()).namespace("space").owner("a").build().unwrap();
    let lock = node.mutex("n").build().unwrap();
    let guard = lock.try_acquire().await.unwrap();
    let held = || async { world.primary.sql("select pg_try_advisory_lock(28)").unwrap().trim() == "f" };
    assert!(held().await);
    drop(guard);
    until("it is free", || async { !held().await }).await;
}

async fn f28_ttl(world: World) {
    let store = sessions(&world, KeyProfile::Raw(29)).await;
    let short = AcquireRequest { ttl: Duration::from_millis(200), ..ask("space/n", "op") };
    assert!(matches!(store.acquire(short).await.unwrap(), Acquired::Granted(_)));
    until("its process gave it up", || async {
        world.primary.sql("select pg_try_advisory_lock(29)").unwrap().trim() == "t"
    })
    .await;
    assert_eq!(store.renew("op").await.unwrap(), Renewed::Lost);
    assert_eq!(store.release("op").await.unwrap(), Released::AlreadyGone);
}

async fn f39(world: World) {
    let store = sessions(&world, KeyProfile::Sqlx).await;
    let first = take(&store, "space/n", "a").await.unwrap();
    assert!(take(&store, "space/n", "b").await.is_none(), "a session of its own for each");
    assert_eq!(store.release("a").await.unwrap(), Released::Clean);
    // The session that is used again holds nothing of before.
    let second = take(&store, "space/n", "b").await.unwrap();
    assert!(second > first);
    assert!(take(&store, "space/m", "c").await.is_some());
    assert_eq!(store.release("b").await.unwrap(), Released::Clean);
    assert!(take(&store, "space/n", "d").await.is_some());
}

async fn t08(world: World) {
    let store = sessions(&world, KeyProfile::Raw(8)).await;
    take(&store, "space/n", "holder").await.unwrap();
    for polls in 1..60 {
        let op = format!("waits-{polls}");
        let join = AcquireRequest { line: Line::Join, ..ask("space/n", &op) };
        let mut asked = store.acquire(join);
        let mut left = polls;
        let ended = std::future::poll_fn(|cx| {
            left -= 1;
            let ended = asked.as_mut().poll(cx).is_ready();
            if ended || left == 0 { std::task::Poll::Ready(ended) } else { std::task::Poll::Pending }
        })
        .await;
        drop(asked);
        store.leave(&op).await.unwrap();
        assert_eq!(store.release(&op).await.unwrap(), Released::AlreadyGone);
        until("the queue is empty", || async { store.inspect("space/n").await.unwrap().waiting == 0 }).await;
        if ended {
            break;
        }
    }
    assert_eq!(store.release("holder").await.unwrap(), Released::Clean);
    assert!(take(&store, "space/n", "next").await.is_some(), "nobody was granted it meanwhile");
}

async fn lost(world: World) {
    let store = sessions(&world, KeyProfile::Raw(31)).await;
    let token = take(&store, "space/n", "op").await.unwrap();
    let end =
        "select pg_terminate_backend(pid, 5000) from pg_locks where locktype = 'advisory' and objid = 31";
    world.primary.sql(end).unwrap();
    assert_eq!(store.renew("op").await.unwrap(), Renewed::Closed);
    assert_eq!(store.release("op").await.unwrap(), Released::AlreadyGone);
    assert!(take(&store, "space/n", "op-2").await.unwrap() > token);
}

async fn timeless(config: PostgresConfig) -> PostgresSessions {
    PostgresSessions::open(config, KeyProfile::Sqlx, Names::Whole, &still()).await.unwrap()
}

/// How often a watch of `name` resolves while another one asks the server a hundred times.
async fn vain(store: &PostgresSessions, name: &str, other: &PostgresSessions) -> usize {
    let mut vain = 0;
    let follow = async {
        loop {
            let hint = store.watch(name);
            store.inspect(name).await.unwrap();
            hint.await.unwrap();
            vain += 1;
        }
    };
    let asks = async {
        for _ in 0..100 {
            other.inspect(name).await.unwrap();
        }
    };
    tokio::select! {
        biased;
        () = follow => {}
        () = asks => {}
    }
    vain
}

async fn free(world: World) {
    let config = world.config().connections(16).build().unwrap();
    let (ours, theirs) = (timeless(config.clone()).await, timeless(config).await);
    let name = "watch-free/n";
    // Whoever begins to listen looks once more.
    let first = vain(&ours, name, &theirs).await;
    assert!(first <= 2, "{first} hints about a lock that nobody touched");
    for round in 0..3 {
        let hint = ours.watch(name);
        assert!(ours.inspect(name).await.unwrap().holders.is_empty());
        let (heard, taken) = tokio::join!(hint, take(&theirs, name, "op"));
        heard.unwrap();
        assert!(taken.is_some(), "round {round}");
        let hint = ours.watch(name);
        assert_eq!(ours.inspect(name).await.unwrap().holders.len(), 1);
        let (heard, released) = tokio::join!(hint, theirs.release("op"));
        heard.unwrap();
        assert_eq!(released.unwrap(), Released::Clean);
    }
    // Of two names one is free: only the other is worth waiting for.
    assert!(take(&theirs, "watch-free/z", "op-z").await.is_some());
    let both = || AcquireRequest { names: vec![name.into(), "watch-free/z".into()], ..ask(name, "both") };
    assert!(matches!(ours.acquire(both()).await.unwrap(), Acquired::Held { .. }));
    let again = vain(&ours, name, &theirs).await;
    assert!(again <= 1, "{again} hints about the free one of two");
    let hint = ours.watch("watch-free/z");
    assert!(matches!(ours.acquire(both()).await.unwrap(), Acquired::Held { .. }));
    assert_eq!(theirs.release("op-z").await.unwrap(), Released::Clean);
    hint.await.unwrap();
}

/// It is let go between the answer and the first look: a watch that then waited for a change would wait for ever.
async fn told(world: World) {
    let config = world.config().connections(16).build().unwrap();
    let (ours, theirs) = (timeless(config.clone()).await, timeless(config).await);
    let name = "watch-told/n";
    let key = match KeyProfile::Sqlx.key(name).unwrap() {
        AdvisoryKey::Int8(n) => n,
        AdvisoryKey::Pair(..) => unreachable!("one number"),
    };
    let mut psql = Psql::start(&world);
    for round in 0..5 {
        let op = format!("op-{round}");
        assert!(take(&theirs, name, &op).await.is_some());
        let hint = ours.watch(name);
        assert!(take(&ours, name, "late").await.is_none());
        assert_eq!(theirs.release(&op).await.unwrap(), Released::Clean);
        hint.await.unwrap();

        assert!(take(&theirs, name, &op).await.is_some());
        let hint = ours.watch(name);
        assert_eq!(ours.inspect(name).await.unwrap().holders.len(), 1);
        assert_eq!(theirs.release(&op).await.unwrap(), Released::Clean);
        hint.await.unwrap();

        // Told while it is waited for already: another client took what was free at the first look.
        let mut hint = ours.watch(name);
        assert!(ours.inspect(name).await.unwrap().holders.is_empty());
        let other = async {
            assert_eq!(psql.ask(&format!("select pg_try_advisory_lock({key})")), "t");
            assert!(take(&ours, name, "late").await.is_none());
            assert_eq!(psql.ask(&format!("select pg_advisory_unlock({key})")), "t");
        };
        let (heard, ()) = tokio::join!(&mut hint, other);
        heard.unwrap();
    }
}

async fn bounded(world: World) {
    let config = world.config().connections(2).build().unwrap();
    let store =
        PostgresSessions::open(config, KeyProfile::Sqlx, Names::Whole, &Runtime::system()).await.unwrap();
    // Whatever the table, keys are those of the database: names that no other test has.
    for op in ["bounded/a", "bounded/b"] {
        assert!(take(&store, op, op).await.is_some());
    }
    let full = store.acquire(ask("bounded/c", "c")).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Full);
    assert!(full.is_retryable());
    store.release("bounded/a").await.unwrap();
    assert!(take(&store, "bounded/c", "c").await.is_some());
}
