//! Locks and elections on rows: what the textbook's sketch does wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use mainstay_chaos::proxy::TcpMode;
use mainstay_chaos::recipes;
use mainstay_clock::{Clock, Deadline, Runtime, SystemClock};
use mainstay_coordination::{Coordinator, ErrorKind, LossReason};
use mainstay_postgres::{PostgresLeases, Wake};
use mainstay_sim::servers::Postgres;
use mainstay_store::LeaseStore;
use mainstay_store::lease::{Fencing, Released, Renewed};

use crate::rows::proxied;
use crate::world::{RENEWED, SILENCE, TTL, Test, World, ask, direct, open, opened, take, until};

pub(crate) const TESTS: &[Test] = &[
    ("f03_a_grant_that_comes_too_late_is_given_back", |w| Box::pin(f03(w))),
    ("f15_without_any_notification_a_timer_wakes", |w| Box::pin(f15(w))),
    ("f17_nothing_is_renewed_after_the_release", |w| Box::pin(f17(w))),
    ("f26_a_store_that_lost_its_state_and_its_clock_grants_nothing_to_whoever_saw_more", |w| {
        Box::pin(f26(w))
    }),
    ("f27_a_dropped_guard_is_released_in_the_background", |w| Box::pin(f27(w))),
    ("k01_a_renewal_never_extends_somebody_elses_lease", |w| Box::pin(k01(w))),
    ("k02_a_leader_is_told_that_it_lost", |w| Box::pin(k02(w))),
    ("k03_the_renewer_ends_with_its_term_and_there_is_one_for_the_next", |w| Box::pin(k03(w))),
    ("k04_work_that_hangs_does_not_hold_for_ever", |w| Box::pin(k04(w))),
    ("k05_a_follower_waits_for_a_leader_that_is_gone_without_a_word", |w| Box::pin(k05(w))),
    ("k06_a_renewal_that_failed_is_repeated", |w| Box::pin(k06(w))),
    ("k07_a_restarted_node_inherits_nothing", |w| Box::pin(k07(w))),
    ("k08_a_resignation_hands_over_by_one_notification", |w| Box::pin(k08(w))),
    ("k09_every_grant_has_a_token", |w| Box::pin(k09(w))),
    ("k11_the_store_says_what_it_holds_and_a_namespace_is_required", |w| Box::pin(k11(w))),
    ("k12_work_stops_before_the_lease_passes_on", |w| Box::pin(k12(w))),
    ("k10_a_leader_that_was_read_is_only_a_hint", |w| Box::pin(k10(w))),
    ("k13_a_release_after_the_end_does_not_hide_the_works_result", |w| Box::pin(k13(w))),
    ("k14_the_callers_deadline_decides_how_long_it_waits", |w| Box::pin(k14(w))),
    ("k15_work_is_dropped_when_its_right_is_lost", |w| Box::pin(k15(w))),
    ("k16_several_names_in_any_order_do_not_deadlock", |w| Box::pin(k16(w))),
    ("k17_held_and_unreachable_are_two_errors", |w| Box::pin(k17(w))),
    ("members_jobs_barriers_and_latches_hold_between_two_stores", |w| Box::pin(recorded(w))),
];

/// Of leases whose end is waited for.
const SHORT: Duration = Duration::from_secs(6);

fn node(store: &PostgresLeases, owner: &str) -> Coordinator {
    let store = Arc::new(store.clone());
    Coordinator::builder(store, Runtime::system()).namespace("app").owner(owner).build().unwrap()
}

fn within(seconds: u64) -> Deadline {
    Deadline::after(SystemClock::new().now(), Duration::from_secs(seconds))
}

async fn sleep(millis: u64) {
    SystemClock::new().sleep(Duration::from_millis(millis)).await;
}

async fn f03(world: World) {
    let proxy = proxied(&world).await;
    let config = direct(&Postgres::url_at(proxy.address())).table(&world.table());
    let store = open(config.wake(Wake::Timers)).await;
    let node = node(&store, "a");
    take(&store, "app/warm", "op").await.unwrap();
    let lock = node.mutex("n").ttl(Duration::from_millis(200)).build().unwrap();
    proxy.set_mode(TcpMode::Latency { least: Duration::from_millis(250), jitter: Duration::ZERO });
    let late = lock.try_acquire().await.unwrap_err();
    assert!(matches!(late.kind(), ErrorKind::Expired | ErrorKind::Unreachable), "{late}");
    proxy.set_mode(TcpMode::Pass);
    until("it was given back", || async { node.in_background() == 0 }).await;
    assert!(store.inspect("app/n").await.unwrap().holders.is_empty());
}

async fn f15(world: World) {
    let table = world.table();
    let config = || direct(&world.primary.url()).table(&table).wake(Wake::Timers);
    let (here, there) = (open(config()).await, open(config()).await);
    let held = node(&here, "a").mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap();
    let waiter = node(&there, "b").mutex("n").build().unwrap();
    let work = async {
        sleep(100).await;
        held.release().await.unwrap();
    };
    let (guard, ()) = tokio::join!(waiter.acquire(within(60)), work);
    assert!(guard.unwrap().check().is_ok());
}

async fn f17(world: World) {
    let table = world.table();
    let store = open(direct(&world.primary.url()).table(&table)).await;
    let lock = node(&store, "a").mutex("n").ttl(RENEWED).build().unwrap();
    let guard = lock.try_acquire().await.unwrap();
    let first = guard.token();
    guard.renewed(guard.deadline()).await;
    assert_eq!(guard.release().await.unwrap(), Released::Clean);
    let row = || world.primary.sql(&format!("select token, op_id is null, expires_at from {table}")).unwrap();
    let before = row();
    // Longer than the time between two renewals.
    sleep(4_500).await;
    assert_eq!(row(), before);
    assert_eq!(before.trim(), format!("{first}|t|-infinity"));
}

async fn f26(world: World) {
    let clock = crate::world::ServerClock::make(&world, "f26_lost").await;
    let table = world.table();
    let store = open(direct(&clock.url(&world)).table(&table)).await;
    let lock = node(&store, "a").mutex("n").build().unwrap();
    lock.try_acquire().await.unwrap().release().await.unwrap();
    world.primary.sql(&format!("truncate f26_lost.{table}")).unwrap();
    clock.jump(-3_600_000_000).await;
    let refused = lock.try_acquire().await.unwrap_err();
    assert_eq!(refused.kind(), &ErrorKind::StoreRegressed);
    until("what was granted is given back", || async {
        store.inspect("app/n").await.unwrap().holders.is_empty()
    })
    .await;
    // And by what a holder is told it can see that all is older than its own.
    let token = take(&store, "b", "op").await.unwrap();
    world.primary.sql(&format!("truncate f26_lost.{table}")).unwrap();
    assert_eq!(store.renew("op").await.unwrap(), Renewed::Lost);
    assert!(store.inspect("b").await.unwrap().last_token < token);
}

async fn f27(world: World) {
    let store = world.store().await;
    let node = node(&store, "a");
    let lock = node.mutex("n").build().unwrap();
    drop(lock.try_acquire().await.unwrap());
    until("it is free", || async { node.in_background() == 0 }).await;
    lock.try_acquire().await.unwrap().release().await.unwrap();
}

async fn k01(world: World) {
    let clock = crate::world::ServerClock::make(&world, "k01").await;
    let store = open(direct(&clock.url(&world)).table(&world.table())).await;
    take(&store, "n", "paused").await.unwrap();
    clock.sleep(TTL).await;
    let token = take(&store, "n", "next").await.unwrap();
    clock.sleep(TTL / 2).await;
    let before = store.inspect("n").await.unwrap().holders[0].remaining;
    assert_eq!(store.renew("paused").await.unwrap(), mainstay_store::lease::Renewed::Lost);
    let info = store.inspect("n").await.unwrap();
    assert_eq!(info.holders[0].token, token);
    assert!(info.holders[0].remaining <= before, "nothing was added");
}

/// Says that work is there until it is dropped.
struct Mark(Arc<AtomicBool>);

impl Mark {
    fn on(flag: &Arc<AtomicBool>) -> Self {
        flag.store(true, Ordering::SeqCst);
        Self(Arc::clone(flag))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

async fn k02(world: World) {
    let store = world.store().await;
    let election = node(&store, "a").election("boss").ttl(RENEWED).build().unwrap();
    let term = election.campaign(within(60)).await.unwrap();
    let burned = store.break_lease("app/election/boss").await.unwrap();
    assert_eq!(term.lost().await, LossReason::TakenOver);
    assert!(term.token() < burned);
    assert!(term.check().is_err() && term.proclaim("late").await.is_err());
}

async fn k03(world: World) {
    let table = world.table();
    let store = open(direct(&world.primary.url()).table(&table)).await;
    let election = node(&store, "a").election("boss").ttl(SHORT).build().unwrap();
    let first = election.campaign(within(60)).await.unwrap().resign().await;
    assert_eq!(first.unwrap(), Released::Clean);
    let long = node(&store, "a").election("boss").ttl(Duration::from_secs(600)).build().unwrap();
    let _term = long.campaign(within(60)).await.unwrap();
    let row = || world.primary.sql(&format!("select token, expires_at from {table}")).unwrap();
    let before = row();
    // Longer than the time between two renewals of the first term.
    sleep(3_000).await;
    assert_eq!(row(), before, "nobody renews for the term that ended");
}

async fn k15(world: World) {
    let store = world.store().await;
    let guard = node(&store, "a").mutex("n").ttl(RENEWED).build().unwrap().try_acquire().await.unwrap();
    let running = Arc::new(AtomicBool::new(false));
    let mark = Mark::on(&running);
    store.break_lease("app/n").await.unwrap();
    let work = guard.run(|_| async move {
        let _mark = mark;
        std::future::pending::<()>().await;
    });
    assert_eq!(work.await.unwrap_err().kind(), &ErrorKind::Lost(LossReason::TakenOver));
    assert!(!running.load(Ordering::SeqCst), "the work is gone");
}

async fn k04(world: World) {
    let store = world.store().await;
    // It is renewed once before.
    let lock = node(&store, "a").mutex("n").ttl(RENEWED).max_hold(RENEWED / 2).build().unwrap();
    let guard = lock.try_acquire().await.unwrap();
    let hung = guard.run(|_| std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(hung.kind(), &ErrorKind::Lost(LossReason::HeldTooLong));
    until("somebody else gets it", || async { take(&store, "app/n", "next").await.is_some() }).await;
}

async fn k05(world: World) {
    let proxy = proxied(&world).await;
    let table = world.table();
    let config = direct(&Postgres::url_at(proxy.address())).table(&table).wake(Wake::Timers);
    let cut_off = opened(config.request_timeout(SILENCE)).await;
    let there = open(direct(&world.primary.url()).table(&table)).await;
    let leader =
        node(&cut_off, "a").election("boss").ttl(SHORT).build().unwrap().campaign(within(60)).await.unwrap();
    proxy.set_mode(TcpMode::Blackhole);
    let follower = node(&there, "b").election("boss").build().unwrap();
    let short = Deadline::after(SystemClock::new().now(), Duration::from_millis(100));
    assert!(follower.campaign(short).await.is_err(), "it still leads");
    assert!(follower.campaign(within(60)).await.unwrap().token() > leader.token());
}

async fn k08(world: World) {
    let table = world.table();
    let config = || direct(&world.primary.url()).table(&table);
    let (here, there) = (open(config()).await, open(config()).await);
    let clock = SystemClock::new();
    // A lease so long that only a notification can be the reason.
    let long = Duration::from_secs(600);
    let leader =
        node(&here, "a").election("boss").ttl(long).build().unwrap().campaign(within(60)).await.unwrap();
    let follower = node(&there, "b").election("boss").ttl(long).build().unwrap();
    let resign = async {
        until("the follower listens", || async {
            let sql =
                format!("select count(*) from pg_stat_activity where query like 'listen \"{table}:app\"%'");
            world.primary.sql(&sql).unwrap().trim() == "2"
        })
        .await;
        leader.resign().await.unwrap();
        clock.now()
    };
    let (term, at) = tokio::join!(follower.campaign(within(60)), resign);
    let term = term.unwrap();
    println!("hand-over after a resignation: {:?}", clock.now().saturating_duration_since(at));
    assert_eq!(follower.leader().await.unwrap().unwrap().token, term.token());
    term.resign().await.unwrap();
}

async fn k06(world: World) {
    let proxy = proxied(&world).await;
    let config = direct(&Postgres::url_at(proxy.address())).table(&world.table());
    let store = opened(config.request_timeout(Duration::from_millis(1_500)).wake(Wake::Timers)).await;
    let lock = node(&store, "a").mutex("n").ttl(Duration::from_secs(12)).build().unwrap();
    let guard = lock.acquire(within(60)).await.unwrap();
    let known = guard.deadline();
    proxy.set_mode(TcpMode::Blackhole);
    // A third of the ttl, less than a sixth for an answer, and the renewal has failed at half of it.
    sleep(6_000).await;
    proxy.set_mode(TcpMode::Pass);
    tokio::select! {
        biased;
        renewed = guard.renewed(known) => assert!(renewed.instant() > known.instant()),
        reason = guard.lost() => panic!("{reason}: a renewal that failed is repeated"),
    }
    assert_eq!(guard.release().await.unwrap(), Released::Clean);
}

async fn k12(world: World) {
    let proxy = proxied(&world).await;
    let table = world.table();
    let config = direct(&Postgres::url_at(proxy.address())).table(&table);
    let cut_off = opened(config.request_timeout(Duration::from_secs(1)).wake(Wake::Timers)).await;
    let other = open(direct(&world.primary.url()).table(&table)).await;
    let guard = node(&cut_off, "a").mutex("n").ttl(SHORT).build().unwrap().acquire(within(60)).await.unwrap();
    let running = Arc::new(AtomicBool::new(false));
    let mark = Mark::on(&running);
    let work = guard.run(|_| async move {
        let _mark = mark;
        std::future::pending::<()>().await;
    });
    let next = async {
        proxy.set_mode(TcpMode::Blackhole);
        let lock = node(&other, "b").mutex("n").build().unwrap();
        let taken = lock.acquire(within(60)).await.unwrap();
        (taken, running.load(Ordering::SeqCst))
    };
    let (done, (taken, overlapped)) = tokio::join!(work, next);
    assert_eq!(done.unwrap_err().kind(), &ErrorKind::Lost(LossReason::DeadlinePassed));
    assert!(!overlapped, "the work had ended when the lease passed on");
    assert!(taken.token() > guard.token());
}

async fn k07(world: World) {
    let store = world.store().await;
    let before = node(&store, "node-7").election("boss").ttl(TTL).build().unwrap();
    let term = before.campaign(within(60)).await.unwrap();
    // The same name, another process.
    let after = node(&store, "node-7").election("boss").ttl(TTL).build().unwrap();
    let short = Deadline::after(SystemClock::new().now(), Duration::from_millis(200));
    assert!(after.campaign(short).await.is_err(), "it leads nothing yet");
    let first = term.token();
    term.resign().await.unwrap();
    assert!(after.campaign(within(60)).await.unwrap().token() > first);
}

async fn k09(world: World) {
    let store = world.store().await;
    let node = node(&store, "a");
    let strict = node.mutex("n").require(Fencing::Strict).build().unwrap();
    assert_ne!(strict.try_acquire().await.unwrap().token().get(), 0);
    let term = node.election("boss").build().unwrap().campaign(within(60)).await.unwrap();
    assert_ne!(term.token().get(), 0);
    for permit in [node.semaphore("s", 2), node.read("r")] {
        assert_ne!(permit.build().unwrap().try_acquire().await.unwrap().token().get(), 0);
    }
}

async fn k11(world: World) {
    let store = world.store().await;
    let declared = store.guarantees();
    assert_eq!(declared.fencing, Fencing::Strict);
    assert!(declared.failover.contains("standby") && declared.clock.contains("server"));
    let short = node(&store, "a").mutex("n").ttl(Duration::from_millis(10)).build();
    assert!(short.is_err(), "shorter than the store's shortest");
    let nameless = Coordinator::builder(Arc::new(store), Runtime::system()).owner("a").build();
    assert!(nameless.is_err(), "two applications on one server must not elect together");
}

async fn k10(world: World) {
    let store = world.store().await;
    let election = node(&store, "a").election("boss").build().unwrap();
    let term = election.campaign(within(60)).await.unwrap();
    let read = election.leader().await.unwrap().unwrap();
    assert_eq!(read.token, term.token());
    term.resign().await.unwrap();
    let next = node(&store, "b").election("boss").build().unwrap().campaign(within(60)).await.unwrap();
    assert!(read.token < next.token(), "what was read is out of date, and its token says so");
    next.resign().await.unwrap();
    assert!(election.leader().await.unwrap().is_none());
}

async fn k13(world: World) {
    let store = world.store().await;
    let guard = node(&store, "a").mutex("n").build().unwrap().try_acquire().await.unwrap();
    let result = guard.run(|_| async { 42 }).await.unwrap();
    store.break_lease("app/n").await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::AlreadyGone);
    assert_eq!(result, 42);
}

async fn k14(world: World) {
    let store = world.store().await;
    let _held = node(&store, "a").mutex("n").build().unwrap().try_acquire().await.unwrap();
    let lock = node(&store, "b").mutex("n").build().unwrap();
    let clock = SystemClock::new();
    let start = clock.now();
    let late = lock.acquire(Deadline::after(start, Duration::from_millis(300))).await.unwrap_err();
    assert_eq!(late.kind(), &ErrorKind::TimedOut { holder: Some("a".to_owned()) });
    assert!(clock.now().saturating_duration_since(start) >= Duration::from_millis(300));
}

async fn k16(world: World) {
    let table = world.table();
    let busy = Arc::new(AtomicU32::new(0));
    let mut tasks = Vec::new();
    for n in 0..6 {
        let store = open(direct(&world.primary.url()).table(&table).connections(2)).await;
        let busy = Arc::clone(&busy);
        tasks.push(async move {
            let names = if n % 2 == 0 { ["x", "y", "z"] } else { ["z", "y", "x"] };
            let lock = node(&store, &format!("n{n}")).multi(names).build().unwrap();
            for _ in 0..5 {
                let guard = lock.acquire(within(60)).await.unwrap();
                assert_eq!(busy.fetch_add(1, Ordering::SeqCst), 0, "two holders");
                assert_eq!(guard.tokens().count(), 3);
                busy.fetch_sub(1, Ordering::SeqCst);
                assert_eq!(guard.release().await.unwrap(), Released::Clean);
            }
        });
    }
    futures_util::future::join_all(tasks).await;
}

async fn k17(world: World) {
    let proxy = proxied(&world).await;
    let config = direct(&Postgres::url_at(proxy.address())).table(&world.table());
    let store = opened(config.request_timeout(Duration::from_secs(4)).wake(Wake::Timers)).await;
    store.acquire(ask("app/n", "them")).await.unwrap();
    let lock = node(&store, "a").mutex("n").build().unwrap();
    let held = lock.try_acquire().await.unwrap_err();
    let ErrorKind::Contended { holder, remaining, .. } = held.kind() else { panic!("{held}") };
    assert!(holder == "them" && remaining.is_some());
    proxy.set_mode(TcpMode::Blackhole);
    assert_eq!(lock.try_acquire().await.unwrap_err().kind(), &ErrorKind::Unreachable);
    proxy.set_mode(TcpMode::Pass);
    proxy.set_upstream(None);
    proxy.cut();
    assert_eq!(lock.try_acquire().await.unwrap_err().kind(), &ErrorKind::Unreachable);
}

async fn recorded(world: World) {
    let table = world.table();
    let make = async |owner: &str| {
        let store = Arc::new(open(direct(&world.primary.url()).table(&table)).await);
        let builder = Coordinator::builder(Arc::clone(&store) as Arc<dyn LeaseStore>, Runtime::system());
        builder.records(store).namespace("app").owner(owner).build().unwrap()
    };
    let (a, b) = (make("a").await, make("b").await);
    assert_eq!(recipes::between(&a, &b, within(60)).await, 5);
}
