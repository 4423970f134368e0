//! Locks and elections on etcd: what the textbook's sketch does wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use mainstay_chaos::proxy::TcpMode;
use mainstay_clock::{Clock as _, Deadline, Runtime, SystemClock};
use mainstay_coordination::{Coordinator, ErrorKind, LossReason};
use mainstay_etcd::EtcdLeases;
use mainstay_store::LeaseStore;
use mainstay_store::lease::{Fencing, Released, Renewed};

use crate::world::{
    RENEWED, SHORT, TTL, Test, World, ask, direct, node, open, short, sleep, take, through, until, within,
};

pub(crate) const TESTS: &[Test] = &[
    ("f03_a_grant_that_comes_too_late_is_given_back", |w| Box::pin(f03(w))),
    ("f15_without_any_notification_a_timer_wakes", |w| Box::pin(f15(w))),
    ("f17_nothing_is_renewed_after_the_release", |w| Box::pin(f17(w))),
    ("f27_a_dropped_guard_is_released_in_the_background", |w| Box::pin(f27(w))),
    ("k01_a_renewal_never_extends_somebody_elses_lease", |w| Box::pin(k01(w))),
    ("k02_a_leader_is_told_that_it_lost", |w| Box::pin(k02(w))),
    ("k03_the_renewer_ends_with_its_term", |w| Box::pin(k03(w))),
    ("k04_work_that_hangs_does_not_hold_for_ever", |w| Box::pin(k04(w))),
    ("k05_a_follower_waits_for_a_leader_that_is_gone_without_a_word", |w| Box::pin(k05(w))),
    ("k06_a_renewal_that_failed_is_repeated", |w| Box::pin(k06(w))),
    ("k07_a_restarted_node_inherits_nothing", |w| Box::pin(k07(w))),
    ("k08_a_resignation_hands_over_by_one_notification", |w| Box::pin(k08(w))),
    ("k09_every_grant_has_a_token", |w| Box::pin(k09(w))),
    ("k10_a_leader_that_was_read_is_only_a_hint", |w| Box::pin(k10(w))),
    ("k11_the_store_says_what_it_holds_and_a_namespace_is_required", |w| Box::pin(k11(w))),
    ("k12_work_stops_before_the_lease_passes_on", |w| Box::pin(k12(w))),
    ("k13_a_release_after_the_end_does_not_hide_the_works_result", |w| Box::pin(k13(w))),
    ("k14_the_callers_deadline_decides_how_long_it_waits", |w| Box::pin(k14(w))),
    ("k15_work_is_dropped_when_its_right_is_lost", |w| Box::pin(k15(w))),
    ("k16_several_names_in_any_order_do_not_deadlock", |w| Box::pin(k16(w))),
    ("k17_held_and_unreachable_are_two_errors", |w| Box::pin(k17(w))),
    ("observers_see_every_leader_and_value", |w| Box::pin(observes(w))),
    ("many_waiters_of_one_name_are_served_without_polling", |w| Box::pin(parked(w))),
];

async fn f03(world: World) {
    let proxy = world.proxy().await;
    let prefix = world.prefix();
    let store = through(&[&proxy], &prefix, Duration::from_secs(3)).await;
    let node = node(&store, "a");
    let lock = node.mutex("n").ttl(SHORT).build().unwrap();
    // Each request takes longer than a quarter of the ttl, and an acquisition needs several.
    proxy.set_mode(TcpMode::Latency { least: Duration::from_millis(400), jitter: Duration::ZERO });
    let late = lock.try_acquire().await.unwrap_err();
    assert!(matches!(late.kind(), ErrorKind::Expired | ErrorKind::Unreachable), "{late}");
    proxy.set_mode(TcpMode::Pass);
    until("it was given back", || async { node.in_background() == 0 }).await;
    let direct = open(world.config(&prefix)).await;
    until("nobody holds", || async { direct.inspect("app/n").await.unwrap().holders.is_empty() }).await;
}

async fn f15(world: World) {
    let (proxy, prefix) = (world.proxy().await, world.prefix());
    let here = open(world.config(&prefix)).await;
    let there = through(&[&proxy], &prefix, Duration::from_secs(2)).await;
    let held = node(&here, "a").mutex("n").ttl(SHORT).build().unwrap().try_acquire().await.unwrap();
    let waiter = node(&there, "b").mutex("n").fair().build().unwrap();
    let work = async {
        until("it is in line", || async { here.inspect("app/n").await.unwrap().waiting == 1 }).await;
        // The word about the release is lost, and the connection with it.
        proxy.set_mode(TcpMode::RepliesLost);
        held.release().await.unwrap();
        sleep(700).await;
        proxy.set_mode(TcpMode::Pass);
    };
    let (guard, ()) = tokio::join!(waiter.acquire(within(60)), work);
    assert!(guard.unwrap().check().is_ok());
}

async fn f17(world: World) {
    // A node of its own, whose revision tells whether anything was written.
    let etcd = world.kit.single().unwrap();
    let store = open(direct(&etcd)).await;
    let lock = node(&store, "a").mutex("n").ttl(RENEWED).build().unwrap();
    let guard = lock.try_acquire().await.unwrap();
    guard.renewed(guard.deadline()).await;
    assert_eq!(guard.release().await.unwrap(), Released::Clean);
    let leases = || etcd.ctl(&["lease", "list"]).unwrap();
    let revision = store.inspect("n").await.unwrap().last_token;
    assert_eq!(leases().lines().skip(1).filter(|l| !l.is_empty()).count(), 0, "{}", leases());
    // Longer than the time between two renewals.
    sleep(4_500).await;
    assert_eq!(store.inspect("n").await.unwrap().last_token, revision, "nothing was written");
    assert_eq!(leases().lines().skip(1).filter(|l| !l.is_empty()).count(), 0);
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
    let store = world.store().await;
    store.acquire(short("n", "paused")).await.unwrap();
    until("it ran out", || async { store.inspect("n").await.unwrap().holders.is_empty() }).await;
    let token = take(&store, "n", "next").await.unwrap();
    sleep(1_500).await;
    let before = store.inspect("n").await.unwrap().holders[0].remaining;
    assert_eq!(store.renew("paused").await.unwrap(), Renewed::Lost);
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
    assert_eq!(term.lost().await, LossReason::Forced);
    assert!(term.token() < burned);
    assert!(term.check().is_err() && term.proclaim("late").await.is_err());
}

async fn k03(world: World) {
    let store = world.store().await;
    let election = node(&store, "a").election("boss").ttl(SHORT).build().unwrap();
    let first = election.campaign(within(60)).await.unwrap().resign().await;
    assert_eq!(first.unwrap(), Released::Clean);
    let long = node(&store, "a").election("boss").ttl(Duration::from_secs(60)).build().unwrap();
    let _term = long.campaign(within(60)).await.unwrap();
    let left = async || store.inspect("app/election/boss").await.unwrap().holders[0].remaining;
    let before = left().await;
    sleep(2_100).await;
    assert!(left().await < before, "nobody renews for the term that ended");
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
    let (proxy, prefix) = (world.proxy().await, world.prefix());
    let cut_off = through(&[&proxy], &prefix, Duration::from_secs(2)).await;
    let there = open(world.config(&prefix)).await;
    let election = node(&cut_off, "a").election("boss").ttl(RENEWED).build().unwrap();
    let leader = election.campaign(within(60)).await.unwrap();
    proxy.set_mode(TcpMode::Blackhole);
    let follower = node(&there, "b").election("boss").build().unwrap();
    let early = Deadline::after(SystemClock::new().now(), Duration::from_millis(200));
    assert!(follower.campaign(early).await.is_err(), "it still leads");
    assert!(follower.campaign(within(60)).await.unwrap().token() > leader.token());
}

async fn k06(world: World) {
    let proxy = world.proxy().await;
    let store = through(&[&proxy], &world.prefix(), Duration::from_millis(1_500)).await;
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

async fn k07(world: World) {
    let store = world.store().await;
    let before = node(&store, "node-7").election("boss").ttl(TTL).build().unwrap();
    let term = before.campaign(within(60)).await.unwrap();
    // The same name, another process.
    let after = node(&store, "node-7").election("boss").ttl(TTL).build().unwrap();
    let early = Deadline::after(SystemClock::new().now(), Duration::from_millis(200));
    assert!(after.campaign(early).await.is_err(), "it leads nothing yet");
    let first = term.token();
    term.resign().await.unwrap();
    assert!(after.campaign(within(60)).await.unwrap().token() > first);
}

async fn k08(world: World) {
    let [here, there] = world.stores().await;
    let clock = SystemClock::new();
    // A lease so long that only a notification can be the reason.
    let long = Duration::from_secs(600);
    let leader =
        node(&here, "a").election("boss").ttl(long).build().unwrap().campaign(within(60)).await.unwrap();
    let follower = node(&there, "b").election("boss").ttl(long).build().unwrap();
    let resign = async {
        until("the follower is in line", || async {
            here.inspect("app/election/boss").await.unwrap().waiting == 1
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

async fn k11(world: World) {
    let store = world.store().await;
    let declared = store.guarantees();
    assert_eq!((declared.fencing, declared.fair), (Fencing::Strict, true));
    assert!(declared.failover.contains("majority") && declared.clock.contains("monotonic"));
    let refused = node(&store, "a").mutex("n").ttl(Duration::from_millis(1_999)).build();
    assert!(refused.is_err(), "shorter than the store's shortest");
    let nameless = Coordinator::builder(Arc::new(store), Runtime::system()).owner("a").build();
    assert!(nameless.is_err(), "two applications on one cluster must not elect together");
}

async fn k12(world: World) {
    let (proxy, prefix) = (world.proxy().await, world.prefix());
    let cut_off = through(&[&proxy], &prefix, Duration::from_secs(1)).await;
    let other = open(world.config(&prefix)).await;
    let lock = node(&cut_off, "a").mutex("n").ttl(SHORT).build().unwrap();
    let guard = lock.acquire(within(60)).await.unwrap();
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
    assert_eq!(work.await.unwrap_err().kind(), &ErrorKind::Lost(LossReason::Forced));
    assert!(!running.load(Ordering::SeqCst), "the work is gone");
}

async fn k16(world: World) {
    let busy = Arc::new(AtomicU32::new(0));
    let stores: [EtcdLeases; 4] = world.stores().await;
    let tasks = stores.iter().enumerate().map(|(n, store)| {
        let busy = Arc::clone(&busy);
        async move {
            let names = if n % 2 == 0 { ["x", "y", "z"] } else { ["z", "y", "x"] };
            let lock = node(store, &format!("n{n}")).multi(names);
            let lock = if n < 2 { lock.fair() } else { lock };
            let lock = lock.build().unwrap();
            for _ in 0..4 {
                let guard = lock.acquire(within(60)).await.unwrap();
                assert_eq!(busy.fetch_add(1, Ordering::SeqCst), 0, "two holders");
                assert_eq!(guard.tokens().count(), 3);
                busy.fetch_sub(1, Ordering::SeqCst);
                assert_eq!(guard.release().await.unwrap(), Released::Clean);
            }
        }
    });
    futures_util::future::join_all(tasks).await;
}

async fn k17(world: World) {
    let proxy = world.proxy().await;
    let store = through(&[&proxy], &world.prefix(), Duration::from_secs(4)).await;
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

async fn observes(world: World) {
    let [here, there] = world.stores().await;
    let ours = node(&here, "a").election("boss").build().unwrap();
    let watcher = node(&there, "w").election("boss").build().unwrap();
    let term = ours.campaign(within(60)).await.unwrap();
    let clock = SystemClock::new();
    let mut known = watcher.changed(None).await.unwrap();
    assert_eq!(known.as_ref().map(|l| l.token), Some(term.token()));
    let start = clock.now();
    for value in ["one", "two", "three"] {
        let (next, said) = tokio::join!(watcher.changed(known.as_ref()), term.proclaim(value));
        said.unwrap();
        known = next.unwrap();
        assert_eq!(known.as_ref().and_then(|l| l.value.clone()).as_deref(), Some(value.as_bytes()));
    }
    let (next, resigned) = tokio::join!(watcher.changed(known.as_ref()), term.resign());
    resigned.unwrap();
    assert!(next.unwrap().is_none());
    // By its timer alone it would look once in a second or more.
    println!("four changes were seen after {:?}", clock.now().saturating_duration_since(start));
}

async fn parked(world: World) {
    const WAITERS: usize = 40;
    let store = world.store().await;
    let nodes: Vec<Coordinator> = (0..WAITERS).map(|n| node(&store, &format!("n{n}"))).collect();
    let busy = AtomicU32::new(0);
    let served = nodes.iter().map(async |node| {
        let lock = node.mutex("n").fair().build().unwrap();
        let guard = lock.acquire(within(200)).await.unwrap();
        assert_eq!(busy.fetch_add(1, Ordering::SeqCst), 0, "two holders");
        busy.fetch_sub(1, Ordering::SeqCst);
        let token = guard.token();
        guard.release().await.unwrap();
        token
    });
    let mut tokens = futures_util::future::join_all(served).await;
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), WAITERS, "every holder has a token of its own");
    assert!(store.inspect("app/n").await.unwrap().holders.is_empty());
}
