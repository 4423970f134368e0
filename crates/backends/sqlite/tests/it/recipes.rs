//! Locks and elections on a lease file: what the original sketch got wrong, and what goes wrong in the field.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, Deadline, Runtime, SeededRng};
use mainstay_coordination::{Coordinator, Election, ErrorKind, Lock, LossReason};
use mainstay_sqlite::{Driver, SqliteLeases};
use mainstay_store::lease::{
    AcquireRequest, Acquired, Fencing, Guarantees, LeaseInfo, Released, Renewed, Transferred,
};
use mainstay_store::{BoxFuture, FencingToken, LeaseStore, Result};

use crate::conformance::Files;
use crate::field::World;

const TTL: Duration = Duration::from_secs(10);

/// A file that can be cut off: what is asked then is never answered.
#[derive(Debug)]
struct Cut {
    store: SqliteLeases,
    is_cut: AtomicBool,
    renewals: AtomicU32,
}

impl Cut {
    fn new(store: SqliteLeases) -> Arc<Self> {
        Arc::new(Self { store, is_cut: AtomicBool::new(false), renewals: AtomicU32::new(0) })
    }

    fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::SeqCst);
    }

    fn reached<'a, T: Send + 'a>(&'a self, answer: BoxFuture<'a, Result<T>>) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            if self.is_cut.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            answer.await
        })
    }
}

impl LeaseStore for Cut {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        self.reached(self.store.acquire(request))
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        self.renewals.fetch_add(1, Ordering::SeqCst);
        self.reached(self.store.renew(op_id))
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        self.reached(self.store.release(op_id))
    }

    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        self.reached(self.store.leave(op_id))
    }

    fn annotate(&self, name: &str, token: FencingToken, value: Vec<u8>) -> BoxFuture<'_, Result<bool>> {
        self.reached(self.store.annotate(name, token, value))
    }

    fn transfer(&self, name: &str, token: FencingToken, to: &str) -> BoxFuture<'_, Result<Transferred>> {
        self.reached(self.store.transfer(name, token, to))
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        self.reached(self.store.inspect(name))
    }

    fn watch(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        self.store.watch(name)
    }

    fn guarantees(&self) -> Guarantees {
        self.store.guarantees()
    }
}

/// A node on a handle of its own: another process, as far as the file is concerned.
fn node(w: &World, owner: &str) -> Coordinator {
    on(w, Arc::new(w.open()), owner)
}

fn on(w: &World, store: Arc<dyn LeaseStore>, owner: &str) -> Coordinator {
    let rt = Runtime::on_tokio(Arc::new(w.clock.clone()), Arc::new(SeededRng::new(w.seed())));
    Coordinator::builder(store, rt).namespace("app").owner(owner).build().unwrap()
}

fn lock(w: &World, owner: &str) -> Lock {
    node(w, owner).mutex("n").ttl(TTL).build().unwrap()
}

fn election(w: &World, owner: &str) -> Election {
    node(w, owner).election("boss").ttl(TTL).build().unwrap()
}

fn within(clock: &VirtualClock, d: Duration) -> Deadline {
    Deadline::after(clock.now(), d)
}

async fn holder(w: &World) -> Option<String> {
    let info = w.open().inspect("app/n").await.unwrap();
    info.holders.into_iter().next().map(|h| h.owner)
}

async fn freed(w: &World) {
    for _ in 0..1_000 {
        if holder(w).await.is_none() {
            return;
        }
        w.clock.sleep(Duration::from_millis(10)).await;
    }
    panic!("it is still held");
}

#[tokio::test(start_paused = true)]
async fn k01_a_renewal_never_extends_somebody_elses_lease() {
    let w = World::new();
    let (paused, next) = (w.open(), w.open());
    let ask = |op: &str| AcquireRequest::exclusive("app/n", op, op, TTL);
    assert!(matches!(paused.acquire(ask("paused")).await.unwrap(), Acquired::Granted(_)));
    w.clock.sleep(TTL).await;
    assert!(matches!(next.acquire(ask("next")).await.unwrap(), Acquired::Granted(_)));
    let before = next.inspect("app/n").await.unwrap();
    assert_eq!(paused.renew("paused").await.unwrap(), Renewed::Lost);
    assert_eq!(next.inspect("app/n").await.unwrap(), before);
}

#[tokio::test(start_paused = true)]
async fn k02_k15_a_loss_is_told_and_ends_the_work() {
    let w = World::new();
    let guard = lock(&w, "a").try_acquire().await.unwrap();
    let done = AtomicBool::new(false);
    let work = guard.run(|_| async {
        w.clock.sleep(TTL * 60).await;
        done.store(true, Ordering::SeqCst);
    });
    let breaker = w.open();
    let (result, burned) = tokio::join!(work, breaker.break_lease("app/n"));
    assert_eq!(*result.unwrap_err().kind(), ErrorKind::Lost(LossReason::Forced), "told by the next renewal");
    assert_eq!(guard.lost().await, LossReason::Forced);
    assert!(!done.load(Ordering::SeqCst) && burned.unwrap() > guard.token());
}

#[tokio::test(start_paused = true)]
async fn k03_f17_the_renewer_ends_with_its_guard_and_nothing_is_sent_after_the_release() {
    let w = World::new();
    let cut = Cut::new(w.open());
    let lock = on(&w, Arc::clone(&cut) as Arc<dyn LeaseStore>, "a").mutex("n").ttl(TTL).build().unwrap();
    let guard = lock.try_acquire().await.unwrap();
    w.clock.sleep(TTL).await;
    assert!(cut.renewals.load(Ordering::SeqCst) >= 2);
    assert_eq!(guard.release().await.unwrap(), Released::Clean);
    let before = cut.renewals.load(Ordering::SeqCst);
    let again = lock.try_acquire().await.unwrap();
    w.clock.sleep(TTL / 2).await;
    assert_eq!(cut.renewals.load(Ordering::SeqCst), before + 1, "one renewer for one guard");
    drop(again);
    freed(&w).await;
    w.clock.sleep(TTL * 5).await;
    assert_eq!(cut.renewals.load(Ordering::SeqCst), before + 1);
}

#[tokio::test(start_paused = true)]
async fn k04_work_that_hangs_does_not_hold_for_ever() {
    let w = World::new();
    let lock = node(&w, "a").mutex("n").ttl(TTL).max_hold(TTL * 2).build().unwrap();
    let guard = lock.try_acquire().await.unwrap();
    let hung = guard.run(|_| std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(*hung.kind(), ErrorKind::Lost(LossReason::HeldTooLong));
    let token = guard.token();
    drop(guard);
    let next = self::lock(&w, "b").acquire(within(&w.clock, TTL * 2)).await.unwrap();
    assert!(next.token() > token);
}

/// Says that work is there until it is dropped.
struct Mark<'a>(&'a AtomicBool);

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn k05_k12_a_leader_that_is_cut_off_stops_before_the_next_one_begins() {
    let w = World::new();
    let cut = Cut::new(w.open());
    let leading =
        on(&w, Arc::clone(&cut) as Arc<dyn LeaseStore>, "a").election("boss").ttl(TTL).build().unwrap();
    let leader = leading.campaign(within(&w.clock, TTL)).await.unwrap();
    w.clock.sleep(TTL * 5).await;
    leader.check().unwrap();
    let running = AtomicBool::new(true);
    let mark = Mark(&running);
    let work = leader.run(|_| async move {
        let _mark = mark;
        std::future::pending::<()>().await;
    });
    let follower = election(&w, "b");
    let next = async {
        cut.cut(true);
        let early = follower.campaign(within(&w.clock, TTL / 10)).await.unwrap_err();
        assert!(matches!(early.kind(), ErrorKind::TimedOut { .. }), "it still leads: {early}");
        let term = follower.campaign(within(&w.clock, TTL * 6)).await.unwrap();
        (term, running.load(Ordering::SeqCst))
    };
    let (done, (term, overlapped)) = tokio::join!(work, next);
    assert_eq!(*done.unwrap_err().kind(), ErrorKind::Lost(LossReason::DeadlinePassed));
    assert!(!overlapped, "the work had ended when the lease passed on");
    assert!(term.token() > leader.token());
}

#[tokio::test(start_paused = true)]
async fn k06_a_renewal_that_failed_is_repeated() {
    let w = World::new();
    let cut = Cut::new(w.open());
    let lock = on(&w, Arc::clone(&cut) as Arc<dyn LeaseStore>, "a").mutex("n").ttl(TTL).build().unwrap();
    let guard = lock.try_acquire().await.unwrap();
    let known = guard.deadline();
    cut.cut(true);
    w.clock.sleep(TTL / 2).await;
    assert!(cut.renewals.load(Ordering::SeqCst) >= 1 && guard.check().is_ok());
    cut.cut(false);
    tokio::select! {
        biased;
        renewed = guard.renewed(known) => assert!(renewed.instant() > known.instant()),
        reason = guard.lost() => panic!("{reason}: a renewal that failed is repeated"),
    }
    assert_eq!(guard.release().await.unwrap(), Released::Clean);
}

#[tokio::test(start_paused = true)]
async fn k07_a_restarted_node_of_the_same_name_is_a_new_candidate() {
    let w = World::new();
    let first = election(&w, "node-7").campaign(within(&w.clock, TTL)).await.unwrap();
    let after = election(&w, "node-7");
    assert!(after.campaign(within(&w.clock, TTL)).await.is_err(), "the same name leads nothing yet");
    let token = first.token();
    first.resign().await.unwrap();
    assert!(after.campaign(within(&w.clock, TTL)).await.unwrap().token() > token);
}

#[tokio::test(start_paused = true)]
async fn k08_a_resignation_hands_over_at_once() {
    let w = World::new();
    let store = Arc::new(w.open());
    let build =
        |owner| on(&w, Arc::clone(&store) as Arc<dyn LeaseStore>, owner).election("boss").ttl(TTL).build();
    let term = build("a").unwrap().campaign(within(&w.clock, TTL)).await.unwrap();
    let follower = build("b").unwrap();
    let resign = async {
        w.clock.sleep(TTL / 10).await;
        term.resign().await.unwrap();
        w.clock.now()
    };
    let (next, resigned) = tokio::join!(follower.campaign(within(&w.clock, TTL * 6)), resign);
    next.unwrap().check().unwrap();
    let waited = w.clock.now().saturating_duration_since(resigned);
    assert!(waited < TTL / 100, "no ttl was waited for: {waited:?}");
}

#[tokio::test(start_paused = true)]
async fn k09_every_grant_has_a_token() {
    let w = World::new();
    let locks = node(&w, "a");
    assert_ne!(election(&w, "a").campaign(within(&w.clock, TTL)).await.unwrap().token().get(), 0);
    for lock in [locks.mutex("n"), locks.semaphore("s", 2), locks.read("r")] {
        assert_ne!(lock.build().unwrap().try_acquire().await.unwrap().token().get(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn f23_k10_a_value_is_seen_with_its_leader_and_ends_with_its_term() {
    let w = World::new();
    let (leading, watching) = (election(&w, "a"), election(&w, "b"));
    let term = leading.campaign(within(&w.clock, TTL)).await.unwrap();
    let known = watching.leader().await.unwrap();
    let (seen, told) = tokio::join!(watching.changed(known.as_ref()), term.proclaim(b"10.0.0.7".to_vec()));
    told.unwrap();
    let seen = seen.unwrap().unwrap();
    assert_eq!((seen.value.as_deref(), seen.token), (Some(&b"10.0.0.7"[..]), term.token()));
    let (gone, resigned) = tokio::join!(watching.changed(Some(&seen)), term.resign());
    assert_eq!((gone.unwrap(), resigned.unwrap()), (None, Released::Clean));
}

#[tokio::test(start_paused = true)]
async fn k11_the_file_says_what_it_holds_and_two_applications_do_not_meet() {
    let w = World::new();
    let store: Arc<dyn LeaseStore> = Arc::new(w.open());
    let build = |namespace: &str| {
        let rt = Runtime::on_tokio(Arc::new(w.clock.clone()), Arc::new(SeededRng::new(w.seed())));
        Coordinator::builder(Arc::clone(&store), rt).namespace(namespace).owner("me").build()
    };
    let (one, two) = (build("billing").unwrap(), build("search").unwrap());
    let _first = one.mutex("leader").build().unwrap().try_acquire().await.unwrap();
    let _second = two.mutex("leader").build().unwrap().try_acquire().await.unwrap();
    assert_eq!(build("").unwrap_err().field(), "namespace");
    assert_eq!(one.guarantees().fencing, Fencing::Strict);
    assert!(one.mutex("x").require(Fencing::Strict).build().is_ok());
}

#[tokio::test(start_paused = true)]
async fn k13_a_release_after_the_end_says_so_and_hides_nothing() {
    let w = World::new();
    let guard = lock(&w, "a").try_acquire().await.unwrap();
    let result = guard.run(|_| async { 42 }).await;
    w.open().break_lease("app/n").await.unwrap();
    let next = lock(&w, "b").try_acquire().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::AlreadyGone);
    assert_eq!(result.unwrap(), 42);
    assert_eq!(holder(&w).await.as_deref(), Some("b"), "untouched");
    next.check().unwrap();
}

#[tokio::test(start_paused = true)]
async fn k14_the_callers_deadline_decides_how_long_it_waits() {
    let w = World::new();
    let held = lock(&w, "a").try_acquire().await.unwrap();
    let late = lock(&w, "b").acquire(within(&w.clock, TTL / 4)).await.unwrap_err();
    assert!(matches!(late.kind(), ErrorKind::TimedOut { .. }), "{late}");
    let release = async {
        w.clock.sleep(TTL * 6).await;
        held.release().await.unwrap();
    };
    let patient = lock(&w, "b");
    let (got, ()) = tokio::join!(patient.acquire(within(&w.clock, TTL * 7)), release);
    got.unwrap().check().unwrap();
}

#[tokio::test(start_paused = true)]
async fn k16_several_names_are_taken_in_one_order() {
    let w = World::new();
    let busy = AtomicU32::new(0);
    let all = (0..4).map(async |n| {
        let names = if n % 2 == 0 { ["x", "y", "z"] } else { ["z", "y", "x"] };
        let lock = node(&w, &format!("n{n}")).multi(names).ttl(TTL).build().unwrap();
        for _ in 0..5 {
            let guard = lock.acquire(within(&w.clock, TTL * 60)).await.unwrap();
            assert_eq!(busy.fetch_add(1, Ordering::SeqCst), 0, "two holders");
            assert_eq!(guard.tokens().count(), 3);
            w.clock.sleep(Duration::from_millis(10)).await;
            busy.fetch_sub(1, Ordering::SeqCst);
            assert_eq!(guard.release().await.unwrap(), Released::Clean);
        }
    });
    futures_util::future::join_all(all).await;
}

#[tokio::test(start_paused = true)]
async fn k17_held_and_unreachable_are_two_errors() {
    let w = World::new();
    let _held = lock(&w, "a").try_acquire().await.unwrap();
    let cut = Cut::new(w.open());
    let lock = on(&w, Arc::clone(&cut) as Arc<dyn LeaseStore>, "b").mutex("n").ttl(TTL).build().unwrap();
    let refused = lock.try_acquire().await.unwrap_err();
    let ErrorKind::Contended { holder, remaining, since } = refused.kind() else { panic!("{refused}") };
    assert_eq!(holder, "a");
    assert!(remaining.is_some_and(|d| d <= TTL) && since.is_some());
    cut.cut(true);
    assert_eq!(*lock.try_acquire().await.unwrap_err().kind(), ErrorKind::Unreachable);
}

#[tokio::test(start_paused = true)]
async fn f05_f19_an_acquisition_that_is_dropped_at_any_point_leaves_nothing() {
    let w = World::new();
    let held = lock(&w, "a").try_acquire().await.unwrap();
    let waiting = node(&w, "b");
    for polls in 1..6 {
        for name in ["n", "free"] {
            let lock = waiting.mutex(name).ttl(TTL).build().unwrap();
            let mut asking = Box::pin(lock.acquire(within(&w.clock, TTL * 60)));
            for _ in 0..polls {
                if asking.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        while waiting.in_background() > 0 {
            w.clock.sleep(Duration::from_millis(10)).await;
        }
        let store = w.open();
        let (line, free) = (store.inspect("app/n").await.unwrap(), store.inspect("app/free").await.unwrap());
        assert_eq!((line.waiting, free.waiting, free.holders), (0, 0, Vec::new()), "after {polls} polls");
    }
    held.check().unwrap();
    assert_eq!(held.release().await.unwrap(), Released::Clean);
}

#[tokio::test(start_paused = true)]
async fn f06_a_ttl_that_cannot_hold_is_refused_when_the_lock_is_built() {
    let w = World::new();
    for ttl in [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(99)] {
        assert_eq!(node(&w, "a").mutex("n").ttl(ttl).build().unwrap_err().field(), "ttl");
    }
}

#[tokio::test(start_paused = true)]
async fn f08_one_of_two_takes_over_what_ran_out() {
    let w = World::new();
    let stores: Vec<SqliteLeases> = (0..3).map(|_| w.open()).collect();
    let ask = |op: &str| AcquireRequest::exclusive("app/n", op, op, TTL);
    let mut last = FencingToken::ZERO;
    for round in 0..10 {
        let ops = [format!("x{round}"), format!("y{round}"), format!("z{round}")];
        let asked =
            futures_util::future::join_all(stores.iter().zip(&ops).map(|(s, op)| s.acquire(ask(op)))).await;
        let granted: Vec<FencingToken> = asked
            .into_iter()
            .filter_map(|answer| match answer.unwrap() {
                Acquired::Granted(grants) => Some(grants[0].token),
                _ => None,
            })
            .collect();
        assert!(granted.len() == 1 && granted[0] > last, "{granted:?} after {last}");
        last = granted[0];
        // Nobody gives it back: it runs out.
        w.clock.sleep(TTL).await;
    }
}

#[tokio::test(start_paused = true)]
async fn f14_a_file_of_a_newer_program_is_refused() {
    let w = World::new();
    drop(w.open());
    rusqlite::Connection::open(&w.file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let rt = Runtime::on_tokio(Arc::new(w.clock.clone()), Arc::new(SeededRng::new(1)));
    let refused = SqliteLeases::builder(&w.file).driver(Driver::Inline).open(&rt).unwrap_err();
    assert_eq!(refused.kind(), mainstay_store::ErrorKind::NewerVersion);
}

#[tokio::test(start_paused = true)]
async fn f15_the_end_of_a_dead_holder_is_told_by_nobody_and_found_by_a_timer() {
    let w = World::new();
    let dead = AcquireRequest::exclusive("app/n", "dead", "dead", TTL);
    assert!(matches!(w.open().acquire(dead).await.unwrap(), Acquired::Granted(_)));
    let start = w.clock.now();
    let guard = lock(&w, "b").acquire(within(&w.clock, TTL * 2)).await.unwrap();
    let waited = w.clock.now().saturating_duration_since(start);
    assert!((TTL..TTL + Duration::from_millis(100)).contains(&waited), "{waited:?}");
    guard.check().unwrap();
}

#[tokio::test(start_paused = true)]
async fn f21_the_permit_of_the_dead_comes_back_at_its_own_end() {
    let w = World::new();
    let cut = Cut::new(w.open());
    let permits =
        |store: Arc<dyn LeaseStore>, owner| on(&w, store, owner).semaphore("s", 2).ttl(TTL).build().unwrap();
    let ghost = permits(Arc::clone(&cut) as Arc<dyn LeaseStore>, "dead").try_acquire().await.unwrap();
    let alive = permits(Arc::new(w.open()), "alive");
    let _one = alive.try_acquire().await.unwrap();
    cut.cut(true);
    assert!(alive.try_acquire().await.is_err());
    let _two = alive.acquire(within(&w.clock, TTL + TTL / 10)).await.unwrap();
    assert!(ghost.check().is_err(), "it stopped before");
    assert!(alive.try_acquire().await.is_err(), "two hold it again");
}

#[tokio::test(start_paused = true)]
async fn f25_who_was_paused_finds_its_right_gone_and_the_next_token_outranks_it() {
    let w = World::new();
    let mine = VirtualClock::new();
    let rt = Runtime::on_tokio(Arc::new(mine.clone()), Arc::new(SeededRng::new(w.seed())));
    let paused = Coordinator::builder(Arc::new(w.open()), rt).namespace("app").owner("a").build().unwrap();
    let guard = paused.mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap();
    mine.pause();
    w.clock.sleep(TTL * 2).await;
    let next = lock(&w, "b").try_acquire().await.unwrap();
    mine.jump_boot(TTL * 2);
    mine.resume();
    let late = guard.run(|_| async { "wrote" }).await.unwrap_err();
    assert!(matches!(late.kind(), ErrorKind::Lost(_)), "{late}");
    assert!(next.token() > guard.token(), "the resource refuses whatever it still sends");
}

#[tokio::test(start_paused = true)]
async fn f27_a_dropped_guard_is_given_back_in_the_background() {
    let w = World::new();
    let locks = node(&w, "a");
    drop(locks.mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap());
    freed(&w).await;
    assert_eq!(locks.in_background(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f38_tokens_come_in_the_order_of_the_holders() {
    let files = Files::new();
    let file = files.fresh();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for engine in 0..4 {
        let store = SqliteLeases::builder(&file).open(&Runtime::system()).unwrap();
        let order = Arc::clone(&order);
        tasks.spawn(async move {
            let mut had = 0;
            for round in 0.. {
                let op = format!("{engine}-{round}");
                // No machine stands still for so long.
                let ask = AcquireRequest::exclusive("n", "me", &op, Duration::from_secs(600));
                let Acquired::Granted(grants) = store.acquire(ask).await.unwrap() else { continue };
                order.lock().unwrap().push(grants[0].token);
                store.release(&op).await.unwrap();
                had += 1;
                if had == 10 {
                    return;
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let order = order.lock().unwrap();
    assert!(order.len() == 40 && order.windows(2).all(|two| two[0] < two[1]), "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn f39_two_acquisitions_of_one_process_are_two() {
    let w = World::new();
    let locks = node(&w, "a");
    let first = locks.mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap();
    let second = locks.mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap_err();
    assert!(matches!(second.kind(), ErrorKind::Contended { holder, .. } if holder == "a"), "{second}");
    assert_eq!(first.release().await.unwrap(), Released::Clean);
}

/// The file is held up by somebody else for longer than a lease lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f03_a_grant_that_comes_too_late_is_given_back() {
    let files = Files::new();
    let file = files.fresh();
    let store = SqliteLeases::builder(&file).open(&Runtime::system()).unwrap();
    let locks = Coordinator::builder(Arc::new(store.clone()), Runtime::system());
    let locks = locks.namespace("app").owner("a").build().unwrap();
    let lock = locks.mutex("n").ttl(Duration::from_millis(200)).build().unwrap();
    let busy = rusqlite::Connection::open(&file).unwrap();
    busy.execute_batch("begin immediate").unwrap();
    let late = lock.try_acquire().await.unwrap_err();
    assert!(matches!(late.kind(), ErrorKind::Expired | ErrorKind::Unreachable), "{late}");
    busy.execute_batch("commit").unwrap();
    let clock = mainstay_clock::SystemClock::new();
    while locks.in_background() > 0 {
        clock.sleep(Duration::from_millis(10)).await;
    }
    assert!(store.inspect("app/n").await.unwrap().holders.is_empty());
}
