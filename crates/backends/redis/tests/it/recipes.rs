//! Locks and elections on one Redis and on a quorum: what the original sketch got wrong.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_chaos::proxy::TcpMode;
use mainstay_clock::{Clock as _, Deadline, SystemClock};
use mainstay_coordination::cron::Ran;
use mainstay_coordination::membership::{Change, Departure, Event};
use mainstay_coordination::{Coordinator, ErrorKind as LockError, LossReason};
use mainstay_sim::servers::Server;
use mainstay_store::LeaseStore;
use mainstay_store::lease::{AcquireRequest, Acquired, Fencing, Released, Renewed, Share};

use crate::Test;
use crate::quorum::{quorum, servers};
use crate::single::proxied;
use crate::world::{
    ANSWER, coordinator, exists, ms, number, other, pause, redis, run, scripts_run, soon, store,
    store_within, take, text, until,
};

pub(crate) const TESTS: &[Test] = &[
    ("k03_f17_nothing_is_sent_after_the_release", f17),
    ("f03_a_grant_that_comes_too_late_is_given_back", f03),
    ("f27_a_dropped_guard_is_given_back_behind_its_owners_back", f27),
    ("k01_a_lease_of_somebody_else_is_never_extended", k01),
    ("k02_k15_a_loss_is_told_and_ends_the_work", k02),
    ("k04_a_hold_with_a_limit_ends_though_the_work_hangs", k04),
    ("k06_k12_a_guard_outlives_its_ttl_and_a_renewal_without_an_answer", k06),
    ("k07_a_restarted_node_of_the_same_name_is_a_new_candidate", k07),
    ("k08_a_leader_that_resigns_is_followed_at_once", k08),
    ("k09_k17_every_right_has_a_token_and_held_is_not_unreachable", k09),
    ("k10_a_value_is_seen_by_others_and_ends_with_its_term", k10),
    ("k11_two_applications_on_one_redis_do_not_meet", k11),
    ("k13_a_release_after_the_end_says_so_and_hides_nothing", k13),
    ("k16_several_names_are_taken_in_one_order", k16),
    ("members_are_seen_and_told_apart_also_on_a_quorum", members),
    ("a_slot_is_run_once_and_barriers_and_latches_open", recorded),
    ("readers_and_permits_share_and_a_writer_waits_for_both", sharing),
    ("a_permit_that_comes_back_wakes_who_waits", permit),
    ("what_changed_before_a_watch_is_polled_is_told", armed),
    ("what_is_free_is_watched_without_a_loop", quiet),
    ("several_names_are_waited_for_without_polling", several),
    ("f35_a_leader_hands_over_to_a_candidate_that_waits", hand_over),
    ("a_waiting_writer_stops_new_readers", writer),
    ("f19_who_gives_up_waiting_leaves_no_place", given_up),
];

const TTL: Duration = Duration::from_secs(30);
/// A third of it is a renewal that is waited for, and the rest is for a machine that stands still.
const RENEWED: Duration = Duration::from_secs(9);

fn f17() {
    let server = redis(&[]);
    run(async {
        let lock = coordinator(store(&server), "me").mutex("a").ttl(RENEWED).build().unwrap();
        let guard = lock.acquire(soon()).await.unwrap();
        let mut other = other(&server).await;
        let before = scripts_run(&mut other).await;
        guard.renewed(guard.deadline()).await;
        assert!(scripts_run(&mut other).await > before, "a renewal is seen");
        assert_eq!(guard.release().await.unwrap(), Released::Clean);
        let after = scripts_run(&mut other).await;
        pause(RENEWED / 2).await;
        assert_eq!(scripts_run(&mut other).await, after);
    });
}

fn f03() {
    let server = redis(&[]);
    run(async {
        let (proxy, store) = proxied(&server, ANSWER).await;
        let locks = coordinator(store, "me");
        let lock = locks.mutex("a").ttl(ms(200)).build().unwrap();
        proxy.set_mode(TcpMode::Latency { least: ms(250), jitter: Duration::ZERO });
        let late = lock.try_acquire().await.unwrap_err();
        assert!(matches!(late.kind(), LockError::Expired | LockError::Unreachable), "{late}");
        proxy.set_mode(TcpMode::Pass);
        until("it was given back", async || locks.in_background() == 0).await;
        assert!(!exists(&mut other(&server).await, "test/a").await);
    });
}

fn f27() {
    let (server, three) = (redis(&[]), servers(3));
    run(async {
        let stores: [Arc<dyn LeaseStore>; 2] = [Arc::new(store(&server)), Arc::new(quorum(&three))];
        for store in stores {
            let rt = mainstay_clock::Runtime::system();
            let locks = mainstay_coordination::Coordinator::builder(Arc::clone(&store), rt);
            let locks = locks.namespace("test").owner("me").build().unwrap();
            drop(locks.mutex("a").ttl(TTL).build().unwrap().acquire(soon()).await.unwrap());
            until("it is free", async || store.inspect("test/a").await.unwrap().holders.is_empty()).await;
            until("nothing goes on", async || locks.in_background() == 0).await;
        }
    });
}

fn k01() {
    let server = redis(&[]);
    run(async {
        let (paused, next) = (store(&server), store(&server));
        take(&paused, "a", "paused", ms(100)).await;
        pause(ms(101)).await;
        take(&next, "a", "next", TTL).await;
        let mut other = other(&server).await;
        let before = number(&mut other, &["PTTL", "a"]).await;
        assert_eq!(paused.renew("paused").await.unwrap(), Renewed::Lost);
        assert!(number(&mut other, &["PTTL", "a"]).await <= before);
        assert_eq!(text(&mut other, &["GET", "a"]).await, "next");
    });
}

fn k02() {
    let server = redis(&[]);
    run(async {
        let locks = coordinator(store(&server), "me");
        let lock = locks.mutex("a").ttl(RENEWED).build().unwrap();
        let guard = lock.acquire(soon()).await.unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let (work, breaker) = (Arc::clone(&done), store(&server));
        let run = guard.run(|_| async move {
            pause(Duration::from_secs(600)).await;
            work.store(true, Ordering::SeqCst);
        });
        let (result, burned) = tokio::join!(run, breaker.break_lease("test/a"));
        let error = result.unwrap_err();
        assert_eq!(*error.kind(), LockError::Lost(LossReason::Forced), "told by the next renewal");
        assert_eq!(guard.lost().await, LossReason::Forced);
        assert!(!done.load(Ordering::SeqCst));
        assert!(burned.unwrap() > guard.token());
        // A store that does not answer: the holder stops by its own clock.
        let lock = locks.mutex("a").ttl(ms(600)).build().unwrap();
        let guard = lock.acquire(soon()).await.unwrap();
        server.pause().unwrap();
        let reason = guard.lost().await;
        server.resume().unwrap();
        assert_eq!(reason, LossReason::DeadlinePassed);
    });
}

fn k04() {
    let server = redis(&[]);
    run(async {
        // It is renewed once before.
        let locks = coordinator(store(&server), "me");
        let lock = locks.mutex("a").ttl(RENEWED).max_hold(RENEWED / 2).build().unwrap();
        let guard = lock.acquire(soon()).await.unwrap();
        let lost = guard.run(|_| std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(*lost.kind(), LockError::Lost(LossReason::HeldTooLong));
        drop(guard);
        until("it is free", async || store(&server).inspect("test/a").await.unwrap().holders.is_empty())
            .await;
    });
}

fn k06() {
    let server = redis(&[]);
    run(async {
        let ttl = Duration::from_secs(12);
        // A third of the ttl, less than a sixth for an answer, and the renewal has failed at half of it.
        let store = store_within(&server, ms(1_500));
        let lock = coordinator(store, "me").mutex("a").ttl(ttl).build().unwrap();
        let guard = lock.acquire(soon()).await.unwrap();
        let known = guard.renewed(guard.deadline()).await;
        server.pause().unwrap();
        // The next renewal is sent a third of a ttl later and meets silence.
        pause(ttl / 2).await;
        server.resume().unwrap();
        tokio::select! {
            biased;
            renewed = guard.renewed(known) => assert!(renewed.instant() > known.instant()),
            reason = guard.lost() => panic!("{reason}"),
        }
        assert_eq!(guard.release().await.unwrap(), Released::Clean);
    });
}

fn k09() {
    let server = redis(&[]);
    run(async {
        let locks = coordinator(store(&server), "me");
        let kinds = || [locks.mutex("m"), locks.read("r"), locks.semaphore("s", 2)];
        let mut last = [mainstay_store::FencingToken::ZERO; 3];
        for _ in 0..3 {
            for (kind, last) in kinds().into_iter().zip(&mut last) {
                let guard = kind.ttl(TTL).build().unwrap().acquire(soon()).await.unwrap();
                assert!(guard.token() > *last);
                *last = guard.token();
                guard.release().await.unwrap();
            }
        }
        let mutex = locks.mutex("m").ttl(TTL).build().unwrap();
        let held = mutex.acquire(soon()).await.unwrap();
        assert!(matches!(mutex.try_acquire().await.unwrap_err().kind(), LockError::Contended { .. }));
        server.pause().unwrap();
        let silent = mutex.try_acquire().await.unwrap_err();
        server.resume().unwrap();
        assert_eq!(*silent.kind(), LockError::Unreachable);
        held.release().await.unwrap();
    });
}

fn k07() {
    let server = redis(&[]);
    run(async {
        let election = |_| coordinator(store(&server), "node-7").election("e").ttl(ms(500)).build().unwrap();
        let first = election(1).campaign(soon()).await.unwrap();
        let token = first.token();
        // The process dies: nothing is renewed and nothing is given back.
        std::mem::forget(first);
        server.pause().unwrap();
        pause(ms(501)).await;
        server.resume().unwrap();
        let second = election(2).campaign(soon()).await.unwrap();
        assert!(second.token() > token, "the same name, another term");
    });
}

fn k08() {
    let server = redis(&[]);
    run(async {
        // A lease so long that only the resignation can be the reason.
        let long = Duration::from_secs(600);
        let build = |owner: &str| coordinator(store(&server), owner).election("e").ttl(long).build().unwrap();
        let (first, second) = (build("n1"), build("n2"));
        let term = first.campaign(soon()).await.unwrap();
        let resign = async {
            pause(ms(200)).await;
            term.resign().await.unwrap()
        };
        let (next, resigned) = tokio::join!(second.campaign(soon()), resign);
        assert_eq!(resigned, Released::Clean);
        next.unwrap().resign().await.unwrap();
    });
}

fn k10() {
    let server = redis(&[]);
    run(async {
        let build = |owner: &str| coordinator(store(&server), owner).election("e").ttl(TTL).build().unwrap();
        let (leading, watching) = (build("n1"), build("n2"));
        let term = leading.campaign(soon()).await.unwrap();
        let known = watching.leader().await.unwrap();
        let (seen, proclaimed) =
            tokio::join!(watching.changed(known.as_ref()), term.proclaim(b"10.0.0.7".to_vec()));
        proclaimed.unwrap();
        let seen = seen.unwrap().unwrap();
        assert_eq!((seen.value.as_deref(), seen.token), (Some(&b"10.0.0.7"[..]), term.token()));
        let (gone, resigned) = tokio::join!(watching.changed(Some(&seen)), term.resign());
        assert_eq!((gone.unwrap(), resigned.unwrap()), (None, Released::Clean));
    });
}

fn k11() {
    let server = redis(&[]);
    run(async {
        let build = |namespace: &str| {
            let store = Arc::new(store(&server));
            mainstay_coordination::Coordinator::builder(store, mainstay_clock::Runtime::system())
                .namespace(namespace)
                .owner("me")
                .build()
        };
        let (one, two) = (build("billing").unwrap(), build("search").unwrap());
        let first = one.mutex("leader").build().unwrap().try_acquire().await.unwrap();
        let second = two.mutex("leader").build().unwrap().try_acquire().await.unwrap();
        assert!(build("").is_err());
        assert_eq!(one.guarantees().fencing, Fencing::WhileStateSurvives);
        let refused = one.mutex("x").require(Fencing::Strict).build().unwrap_err();
        assert_eq!(refused.field(), "require");
        first.release().await.unwrap();
        second.release().await.unwrap();
    });
}

fn k13() {
    let server = redis(&[]);
    run(async {
        let lock = coordinator(store(&server), "me").mutex("a").ttl(TTL).build().unwrap();
        let guard = lock.acquire(soon()).await.unwrap();
        let result = guard.run(|_| async { 42 }).await;
        let mut other = other(&server).await;
        number(&mut other, &["DEL", "test/a"]).await;
        assert_eq!(guard.release().await.unwrap(), Released::AlreadyGone);
        assert_eq!(result.unwrap(), 42);
        assert!(!exists(&mut other, "test/a").await);
    });
}

fn k16() {
    let (server, three) = (redis(&[]), servers(3));
    run(async {
        let many = [coordinator(store(&server), "a"), coordinator(quorum(&three), "a")];
        for locks in many {
            let cross = async |first: &str, second: &str| {
                for _ in 0..10 {
                    let both = locks.multi([first, second]).ttl(TTL).build().unwrap();
                    let guard = both.acquire(soon()).await.unwrap();
                    assert_eq!(guard.tokens().count(), 2);
                    guard.release().await.unwrap();
                }
            };
            tokio::join!(cross("x", "y"), cross("y", "x"));
        }
    });
}

fn sharing() {
    let server = redis(&[]);
    run(async {
        let locks = coordinator(store(&server), "me");
        let reader = locks.read("a").ttl(TTL).build().unwrap();
        let readers = [reader.acquire(soon()).await.unwrap(), reader.acquire(soon()).await.unwrap()];
        let writer = locks.write("a").ttl(TTL).build().unwrap();
        let LockError::Contended { holder, remaining, .. } =
            writer.try_acquire().await.unwrap_err().kind().clone()
        else {
            panic!("a writer waits for readers")
        };
        assert_eq!(holder, "me");
        assert!(remaining.is_some_and(|d| d <= TTL));
        let highest = readers.iter().map(mainstay_coordination::Guard::token).max().unwrap();
        let (guard, ()) = tokio::join!(writer.acquire(soon()), async {
            for reader in readers {
                pause(ms(50)).await;
                assert_eq!(reader.release().await.unwrap(), Released::Clean);
            }
        });
        assert!(guard.unwrap().token() > highest);
        let permit = locks.semaphore("s", 2).ttl(TTL).build().unwrap();
        let (one, two) = (permit.acquire(soon()).await.unwrap(), permit.acquire(soon()).await.unwrap());
        assert!(matches!(permit.try_acquire().await.unwrap_err().kind(), LockError::Contended { .. }));
        one.release().await.unwrap();
        permit.try_acquire().await.unwrap().release().await.unwrap();
        two.release().await.unwrap();
    });
}

fn members() {
    let (server, three) = (redis(&[]), servers(3));
    run(async {
        let of = |kind: usize, owner: &str| match kind {
            0 => coordinator(store(&server), owner),
            _ => coordinator(quorum(&three), owner),
        };
        for kind in 0..2 {
            let (here, there) = (of(kind, "a"), of(kind, "b"));
            let group = |locks: &Coordinator| locks.group("workers").ttl(TTL).build().unwrap();
            let mut watch = group(&there).watch();
            let Event::Snapshot(empty) = watch.next().await.unwrap() else {
                panic!("a snapshot comes first")
            };
            assert!(empty.members.is_empty());
            let mut next = async || match watch.next().await.unwrap() {
                Event::Delta(delta) => delta.change,
                Event::Snapshot(_) => panic!("one is enough"),
            };
            let leaves = group(&here).try_join("leaves", "10.0.0.7").await.unwrap();
            assert!(matches!(next().await, Change::Joined(m) if m.meta == b"10.0.0.7"));
            let live = group(&there).try_join("leaves", "").await.unwrap_err();
            assert!(matches!(live.kind(), LockError::Contended { .. }), "{live}");
            leaves.leave().await.unwrap();
            assert!(matches!(next().await, Change::Gone { how: Departure::Left, .. }));
            // The process dies as soon as it is seen: its connections, and what would renew, with it.
            let process = Process::start();
            let gone = process.run(async || {
                let member = of(kind, "c").group("workers").ttl(RENEWED).build().unwrap();
                let member = member.try_join("dies", "").await.unwrap();
                let gone = member.incarnation();
                std::mem::forget(member);
                gone
            });
            assert!(matches!(next().await, Change::Joined(_)));
            drop(process);
            let how = next().await;
            assert!(
                matches!(&how, Change::Gone { member, how: Departure::Expired | Departure::Unknown } if member.incarnation == gone),
                "{how:?}"
            );
        }
    });
}

/// What is as good as another process: a runtime whose tasks end with it.
struct Process(Option<tokio::runtime::Runtime>);

impl Process {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Self(Some(runtime.unwrap()))
    }

    /// What `work` comes to there; whoever asks waits for it.
    fn run<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        let runtime = self.0.as_ref().unwrap();
        std::thread::scope(|scope| scope.spawn(|| runtime.block_on(work())).join().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn recorded() {
    let server = redis(&[]);
    run(async {
        let node = |owner: &str| {
            let (leases, records) = (Arc::new(store(&server)), Arc::new(store(&server)));
            Coordinator::builder(leases, mainstay_clock::Runtime::system())
                .records(records)
                .namespace("test")
                .owner(owner)
                .build()
                .unwrap()
        };
        let (a, b) = (node("a"), node("b"));
        let job = |c: &Coordinator| c.cron("report").ttl(TTL).build().unwrap();
        let slot = job(&a).now().await.unwrap();
        let (one, two) = (job(&a), job(&b));
        let ran = tokio::join!(one.run_once_per(slot, async |_| ()), two.run_once_per(slot, async |_| ()));
        let done = [ran.0.unwrap(), ran.1.unwrap()].into_iter().filter(|r| *r == Ran::Done(())).count();
        assert_eq!(done, 1);
        let barrier = |c: &Coordinator| c.barrier("phase", 2).ttl(TTL).build().unwrap();
        let (x, y) = (barrier(&a), barrier(&b));
        let (x, y) = tokio::join!(x.wait("a", soon()), y.wait("b", soon()));
        assert_eq!(x.unwrap(), y.unwrap());
        let (x, y) = (a.latch("loaded", 2).unwrap(), b.latch("loaded", 2).unwrap());
        let count = async {
            y.count_down("1").await.unwrap();
            y.count_down("1").await.unwrap();
            y.count_down("2").await.unwrap()
        };
        let (waited, counted) = tokio::join!(x.wait(soon()), count);
        assert_eq!(waited.unwrap(), counted);
    });
}

/// Less than half of the longest silence that a waiter believes, which is the least that a timer would take.
const WOKEN: Duration = Duration::from_secs(14);

fn permit() {
    let server = redis(&[]);
    run(async {
        let (here, there) = (coordinator(store(&server), "a"), coordinator(store(&server), "b"));
        let of = |locks: &Coordinator| locks.semaphore("s", 2).ttl(TTL);
        let (ours, theirs) = (of(&here).build().unwrap(), of(&there).fair().build().unwrap());
        let held = [ours.acquire(soon()).await.unwrap(), ours.acquire(soon()).await.unwrap()];
        let [first, second] = held;
        let clock = SystemClock::new();
        let give = async {
            pause(ms(500)).await;
            let at = clock.now();
            first.release().await.unwrap();
            at
        };
        let (third, given) = tokio::join!(theirs.acquire(soon()), give);
        let third = third.unwrap();
        let waited = clock.now().saturating_duration_since(given);
        assert!(waited < WOKEN, "woken by no timer: {waited:?}");
        // A larger semaphore has room, too, for whoever waits in its line.
        let more = async {
            pause(ms(500)).await;
            let at = clock.now();
            ours.resize(3).await.unwrap();
            at
        };
        let (fourth, given) = tokio::join!(theirs.acquire(soon()), more);
        let waited = clock.now().saturating_duration_since(given);
        assert!(waited < WOKEN, "woken by no timer: {waited:?}");
        for guard in [second, third, fourth.unwrap()] {
            assert_eq!(guard.release().await.unwrap(), Released::Clean);
        }
    });
}

/// Whether the hint comes before a timer would.
async fn told(hint: impl Future<Output = mainstay_store::Result<()>>) -> bool {
    tokio::select! {
        biased;
        told = hint => told.map(|()| true).unwrap(),
        () = pause(WOKEN) => false,
    }
}

fn armed() {
    let server = redis(&[]);
    run(async {
        let (ours, theirs) = (store(&server), store(&server));
        let permit = |op: &str| AcquireRequest {
            share: Share::Permit { limit: 2, count: 1 },
            ..AcquireRequest::exclusive("s", op, op, TTL)
        };
        for op in ["p1", "p2"] {
            assert!(matches!(ours.acquire(permit(op)).await.unwrap(), Acquired::Granted(_)));
        }
        assert!(told(theirs.watch("s")).await, "nobody has looked yet, and something may have been missed");
        let hint = theirs.watch("s");
        ours.release("p1").await.unwrap();
        assert!(told(hint).await, "a permit came back after the watch was made");
        // A bell is rung by taking and giving back what is free.
        assert!(told(theirs.watch("bell")).await);
        let hint = theirs.watch("bell");
        take(&ours, "bell", "ring", TTL).await;
        ours.release("ring").await.unwrap();
        assert!(told(hint).await, "it was rung after the watch was made");
    });
}

/// How many commands a server ran so far.
async fn commands_run(server: &Server) -> i64 {
    let info: String = redis::cmd("INFO").arg("stats").query_async(&mut other(server).await).await.unwrap();
    let line = info.lines().find_map(|l| l.strip_prefix("total_commands_processed:"));
    line.unwrap().trim().parse().unwrap()
}

fn quiet() {
    let (server, three) = (redis(&[]), servers(3));
    run(async {
        let one = Coordinator::builder(Arc::new(store(&server)), mainstay_clock::Runtime::system())
            .records(Arc::new(store(&server)))
            .namespace("test")
            .owner("a")
            .build()
            .unwrap();
        for (locks, asked) in [(one, &server), (coordinator(quorum(&three), "a"), &three[0])] {
            let election = locks.election("boss").ttl(TTL).build().unwrap();
            let mut members = locks.group("workers").ttl(TTL).build().unwrap().watch();
            members.next().await.unwrap();
            let latch = locks.latch("loaded", 2);
            let opened = async {
                match &latch {
                    Ok(latch) => drop(latch.wait(soon()).await),
                    // A majority keeps no records.
                    Err(_) => std::future::pending().await,
                }
            };
            let before = commands_run(asked).await;
            tokio::select! {
                biased;
                leader = election.changed(None) => panic!("{leader:?}"),
                member = members.next() => panic!("{member:?}"),
                () = opened => panic!("nobody counted"),
                () = pause(Duration::from_secs(2)) => {}
            }
            let ran = commands_run(asked).await - before;
            // Each looks once a second, and once more when it begins.
            assert!(ran < 400, "{ran} commands of three watchers in two seconds");
        }
    });
}

fn several() {
    let (server, three) = (redis(&[]), servers(3));
    run(async {
        let of = |kind: usize, owner: &str| match kind {
            0 => (coordinator(store(&server), owner), &server),
            _ => (coordinator(quorum(&three), owner), &three[0]),
        };
        for kind in 0..2 {
            let ((here, asked), (there, _)) = (of(kind, "a"), of(kind, "b"));
            let held = here.mutex("y").ttl(TTL).build().unwrap().acquire(soon()).await.unwrap();
            let both = there.multi(["x", "y"]).ttl(TTL).build().unwrap();
            let mut raw = other(asked).await;
            let give = async {
                pause(ms(500)).await;
                let before = scripts_run(&mut raw).await;
                pause(Duration::from_secs(2)).await;
                let ran = scripts_run(&mut raw).await - before;
                held.release().await.unwrap();
                ran
            };
            let (guard, ran) = tokio::join!(both.acquire(soon()), give);
            assert!(ran <= 6, "{ran} questions in two seconds in which nothing changed");
            assert_eq!(guard.unwrap().release().await.unwrap(), Released::Clean);
        }
    });
}

/// Waits until so many stand in line.
async fn stand(store: &dyn LeaseStore, name: &str, count: u32) {
    let waiting = async || store.inspect(name).await.unwrap().waiting == count;
    until("they stand in line", waiting).await;
}

fn hand_over() {
    let server = redis(&[]);
    run(async {
        let look = store(&server);
        let election =
            |owner: &str| coordinator(store(&server), owner).election("boss").ttl(TTL).build().unwrap();
        let (first, second, third) = (election("a"), election("b"), election("c"));
        let term = first.campaign(soon()).await.unwrap();
        let (nobody, refused) = term.transfer("b").await.unwrap_err();
        assert!(matches!(refused.kind(), LockError::Contended { .. }), "{refused}");
        let old = nobody.token();
        let lead = async {
            stand(&look, "test/election/boss", 1).await;
            let next = third.campaign(soon()).await.unwrap();
            assert!(next.token() > old);
            next.resign().await.unwrap();
        };
        let hand = async {
            stand(&look, "test/election/boss", 2).await;
            nobody.transfer("c").await.map_err(|(_, error)| error).unwrap();
        };
        let (after, (), ()) = tokio::join!(second.campaign(soon()), lead, hand);
        let after = after.unwrap();
        assert_eq!(
            second.leader().await.unwrap().unwrap().owner,
            "b",
            "it came before, and was passed over once"
        );
        after.resign().await.unwrap();
        assert_eq!(look.inspect("test/election/boss").await.unwrap().waiting, 0);
    });
}

fn writer() {
    let server = redis(&[]);
    run(async {
        let look = store(&server);
        let of = |owner: &str| coordinator(store(&server), owner);
        let reading = of("a").read("r").ttl(TTL).build().unwrap().acquire(soon()).await.unwrap();
        let writer = of("b").write("r").ttl(TTL).fair().build().unwrap();
        let newcomer = of("c").read("r").ttl(TTL).build().unwrap();
        let come = async {
            stand(&look, "test/r", 1).await;
            let refused = newcomer.try_acquire().await.unwrap_err();
            let LockError::Contended { holder, .. } = refused.kind() else { panic!("{refused}") };
            assert_eq!(holder, "b", "whoever waits is in the way");
            reading.release().await.unwrap();
        };
        let (written, ()) = tokio::join!(writer.acquire(soon()), come);
        assert_eq!(written.unwrap().release().await.unwrap(), Released::Clean);
        newcomer.try_acquire().await.unwrap().release().await.unwrap();
    });
}

fn given_up() {
    let server = redis(&[]);
    run(async {
        let look = store(&server);
        let holder = coordinator(store(&server), "a").mutex("n").ttl(TTL).build().unwrap();
        let held = holder.acquire(soon()).await.unwrap();
        let locks = coordinator(store(&server), "b");
        let lock = locks.mutex("n").ttl(TTL).fair().build().unwrap();
        tokio::select! {
            biased;
            got = lock.acquire(soon()) => panic!("{got:?}"),
            () = stand(&look, "test/n", 1) => {}
        }
        until("it is out", async || locks.in_background() == 0).await;
        assert_eq!(look.inspect("test/n").await.unwrap().waiting, 0);
        let mut raw = other(&server).await;
        assert!(!exists(&mut raw, "{test/n}:line").await && !exists(&mut raw, "{test/n}:places").await);
        let late = lock.acquire(Deadline::after(SystemClock::new().now(), ms(500))).await.unwrap_err();
        assert!(matches!(late.kind(), LockError::TimedOut { .. }), "{late}");
        until("it is out", async || locks.in_background() == 0).await;
        assert!(!exists(&mut raw, "{test/n}:line").await);
        held.release().await.unwrap();
        assert_eq!(holder.try_acquire().await.unwrap().release().await.unwrap(), Released::Clean);
    });
}
