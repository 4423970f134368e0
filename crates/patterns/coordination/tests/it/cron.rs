//! Jobs of a schedule.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, Deadline, WallTime};
use mainstay_coordination::cron::{Due, Every, Job, Missed, Overlap, Ran, Schedule, Start};
use mainstay_coordination::{Coordinator, ErrorKind, LossReason};
use mainstay_store::{LeaseStore, RecordStore};

use crate::drops::{dropped_after, settled};
use crate::faulty::Faulty;
use crate::world::{TTL, World, virtually};

const MINUTE: Duration = Duration::from_secs(60);

fn job(w: &World, owner: &str) -> Job {
    w.node(owner).cron("report").ttl(TTL).build().unwrap()
}

fn slot(n: i64) -> WallTime {
    WallTime::from_unix_millis(1_800_000_000_000 + n * 60_000)
}

fn every() -> Every {
    Every::new(MINUTE).unwrap()
}

#[test]
fn a_slot_is_run_once_whoever_asks_and_whatever_the_clocks_say() {
    virtually(|w| async move {
        let runs = RefCell::new(Vec::new());
        for owner in ["a", "b", "c"] {
            let ran = job(&w, owner).run_once_per(slot(5), async |_| runs.borrow_mut().push(owner)).await;
            assert_eq!(ran.unwrap() == Ran::Done(()), owner == "a");
        }
        // A clock behind: an earlier slot is not run any more.
        let late =
            job(&w, "b").run_once_per(slot(4), async |_| runs.borrow_mut().push("late")).await.unwrap();
        assert_eq!(late, Ran::Taken);
        let next =
            job(&w, "b").run_once_per(slot(6), async |_| runs.borrow_mut().push("next")).await.unwrap();
        assert_eq!(next, Ran::Done(()));
        assert_eq!(*runs.borrow(), ["a", "next"]);
        settled(&w, &w.node("z")).await;
        w.freed("cron/report").await;
    });
}

#[test]
fn of_many_at_the_same_moment_one_runs() {
    virtually(|w| async move {
        for n in 0..20 {
            let jobs: Vec<Job> = ["a", "b", "c", "d"].into_iter().map(|o| job(&w, o)).collect();
            let clock = &w.clock;
            let run = async |job: &Job| {
                job.run_once_per(slot(n), async |_| clock.sleep(Duration::from_secs(1)).await).await.unwrap()
            };
            let (a, b, c, d) = tokio::join!(run(&jobs[0]), run(&jobs[1]), run(&jobs[2]), run(&jobs[3]));
            let done = [a, b, c, d].into_iter().filter(|r| *r == Ran::Done(())).count();
            assert_eq!(done, 1, "slot {n}");
        }
    });
}

#[test]
fn a_run_that_takes_too_long_is_stopped_and_the_next_slot_goes_on() {
    virtually(|w| async move {
        let job = w.node("a").cron("report").ttl(TTL).at_most(Duration::from_secs(25)).build().unwrap();
        let start = w.clock.now();
        let error = job.run_once_per(slot(1), |_| std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Lost(LossReason::HeldTooLong));
        assert_eq!(w.clock.now().saturating_duration_since(start).as_secs(), 25);
        w.freed("cron/report").await;
        assert_eq!(job.run_once_per(slot(1), async |_| ()).await.unwrap(), Ran::Taken);
        assert_eq!(job.run_once_per(slot(2), async |_| ()).await.unwrap(), Ran::Done(()));
    });
}

#[test]
fn f20_the_time_of_a_run_is_kept_after_an_early_end_by_the_stores_clock() {
    virtually(|w| async move {
        let build = |node: Coordinator, overlap| {
            node.cron("report").ttl(TTL).at_least(MINUTE).overlap(overlap).build().unwrap()
        };
        let first = build(w.node("a"), Overlap::Skip);
        let start = w.clock.now();
        assert_eq!(first.run_once_per(slot(1), async |_| ()).await.unwrap(), Ran::Done(()));
        // Nothing is renewed: the process may be gone.
        drop(first);
        // A machine whose clock is an hour ahead sees other slots, and is kept away all the same.
        let ahead = VirtualClock::new();
        ahead.jump_wall(3_600_000);
        let store = Arc::new(w.store.clone()) as Arc<dyn LeaseStore>;
        let skips = build(w.node_on(Arc::clone(&store), ahead.clone(), "b"), Overlap::Skip);
        assert_eq!(skips.run_once_per(slot(61), async |_| ()).await.unwrap(), Ran::Kept);
        let waits = build(w.node("c"), Overlap::Wait);
        assert_eq!(waits.run_once_per(slot(62), async |_| ()).await.unwrap(), Ran::Done(()));
        let waited = w.clock.now().saturating_duration_since(start);
        assert!(waited >= MINUTE && waited < MINUTE + TTL, "{waited:?}");
    });
}

#[test]
fn the_time_of_a_run_that_crashed_is_kept_beyond_its_lease() {
    virtually(|w| async move {
        let node = w.node("a");
        let first = node.cron("report").ttl(TTL).at_least(MINUTE).build().unwrap();
        let Start::Go(turn) = first.start(slot(1), Deadline::NONE).await.unwrap() else {
            panic!("it is free")
        };
        // Without a word, as a crash: only the leases of the store are left.
        drop(turn);
        settled(&w, &node).await;
        w.freed("cron/report").await;
        assert_eq!(w.holder("cron-kept/report").await, "a");
        let second = w.node("b").cron("report").ttl(TTL).at_least(MINUTE).build().unwrap();
        w.clock.sleep(MINUTE - TTL).await;
        assert_eq!(second.run_once_per(slot(2), async |_| ()).await.unwrap(), Ran::Kept);
        w.clock.sleep(TTL).await;
        assert_eq!(second.run_once_per(slot(3), async |_| ()).await.unwrap(), Ran::Done(()));
    });
}

#[test]
fn a_slot_whose_lease_came_after_a_later_slot_was_run_is_not_run_any_more() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        store.acquisitions(vec![crate::faulty::Fault::Waits]);
        let slow = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let slow = slow.cron("report").ttl(TTL).build().unwrap();
        // The slot is taken, its lease is not there yet, and the next slot is run by another node.
        let earlier = slow.start(slot(1), Deadline::NONE);
        let later = async {
            while w.records.get("test/cron/report").await.unwrap().is_none() {
                tokio::task::yield_now().await;
            }
            let later = job(&w, "b").run_once_per(slot(2), async |_| ()).await.unwrap();
            store.held_answers.notify_one();
            later
        };
        let (earlier, later) = tokio::join!(earlier, later);
        assert_eq!(later, Ran::Done(()));
        assert!(matches!(earlier, Ok(Start::Superseded)), "{earlier:?}");
    });
}

#[test]
fn an_earlier_run_is_waited_for_or_the_slot_is_dropped_and_of_those_who_wait_the_latest_runs() {
    virtually(|w| async move {
        let clock = &w.clock;
        let long = job(&w, "a");
        let skips = job(&w, "b");
        let waits = |o| w.node(o).cron("report").ttl(TTL).overlap(Overlap::Wait).build().unwrap();
        let (one, two) = (waits("c"), waits("d"));
        let after = async |seconds, n, job: &Job| {
            clock.sleep(Duration::from_secs(seconds)).await;
            job.run_once_per(slot(n), async |_| ()).await.unwrap()
        };
        let hour = async |_| clock.sleep(Duration::from_secs(300)).await;
        let (ran, skipped, earlier, latest) = tokio::join!(
            long.run_once_per(slot(1), hour),
            after(60, 2, &skips),
            after(120, 3, &one),
            after(180, 4, &two)
        );
        assert_eq!(ran.unwrap(), Ran::Done(()));
        assert_eq!(skipped, Ran::Overlapped);
        assert_eq!((earlier, latest), (Ran::Superseded, Ran::Done(())));
        assert_eq!(skips.run_once_per(slot(2), async |_| ()).await.unwrap(), Ran::Taken, "dropped for good");
    });
}

#[test]
fn f20_what_is_due_is_judged_by_the_stores_time() {
    virtually(|w| async move {
        w.clock.jump_wall(slot(10).unix_millis() - w.clock.wall().unix_millis() + 5_000);
        let wrong = VirtualClock::new();
        wrong.jump_wall(-86_400_000);
        let node = w.node_on(Arc::new(w.store.clone()), wrong, "a");
        let job = node.cron("report").ttl(TTL).build().unwrap();
        let now = job.now().await.unwrap();
        assert_eq!(job.due(&every()).await.unwrap(), Due::Slot(every().latest(now).unwrap()));
    });
}

#[test]
fn missed_slots_are_dropped_or_the_latest_is_run_and_a_new_job_has_missed_nothing() {
    virtually(|w| async move {
        w.clock.jump_wall(slot(0).unix_millis() - w.clock.wall().unix_millis() + 30_000);
        let build = |name: &str, missed| w.node("a").cron(name).ttl(TTL).missed(missed).build().unwrap();
        let latest = async |n| {
            every().latest(build("x", Missed::Skip).now().await.unwrap()).map(|s| (n, s)).unwrap().1
        };
        let (skips, runs) = (build("skips", Missed::Skip), build("runs", Missed::RunLatest));
        for job in [&skips, &runs] {
            let Due::Wait { next, missed: None, pause } = job.due(&every()).await.unwrap() else {
                panic!("a new job waits for its first slot")
            };
            assert!(pause <= MINUTE && next > latest(0).await);
        }
        // Nobody looks for a while.
        w.clock.sleep(MINUTE * 10).await;
        let due = latest(1).await;
        assert!(matches!(skips.due(&every()).await.unwrap(), Due::Wait { missed: Some(m), .. } if m == due));
        assert_eq!(runs.due(&every()).await.unwrap(), Due::Slot(due));
        assert_eq!(runs.run_once_per(due, async |_| ()).await.unwrap(), Ran::Done(()));
        let Due::Wait { pause, missed: None, .. } = runs.due(&every()).await.unwrap() else { panic!("done") };
        w.clock.sleep(pause).await;
        let Due::Slot(next) = runs.due(&every()).await.unwrap() else { panic!("the next one is due") };
        assert_eq!(next.saturating_duration_since(due), MINUTE);
    });
}

#[test]
fn a_scheduler_that_asks_and_waits_runs_every_slot() {
    virtually(|w| async move {
        let jobs = [job(&w, "a"), job(&w, "b")];
        let ran = RefCell::new(Vec::new());
        let drive = async |job: &Job| {
            while ran.borrow().len() < 30 {
                match job.due(&every()).await.unwrap() {
                    Due::Wait { pause, .. } => w.clock.sleep(pause).await,
                    Due::Slot(slot) => {
                        let run =
                            job.run_once_per(slot, async |_| ran.borrow_mut().push(slot)).await.unwrap();
                        assert!(matches!(run, Ran::Done(()) | Ran::Taken | Ran::Overlapped), "{run:?}");
                    }
                    other => panic!("{other:?}"),
                }
            }
        };
        tokio::join!(drive(&jobs[0]), drive(&jobs[1]));
        let slots = ran.borrow();
        assert!(slots.windows(2).all(|s| s[1].saturating_duration_since(s[0]) == MINUTE), "{slots:?}");
    });
}

#[test]
fn f04_a_claim_whose_answer_was_lost_is_still_ours() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        store.acquisitions(vec![crate::faulty::Fault::AppliedThenUnknown]);
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let job = node.cron("report").ttl(TTL).overlap(Overlap::Wait).build().unwrap();
        assert_eq!(job.run_once_per(slot(1), async |_| ()).await.unwrap(), Ran::Done(()));
    });
}

#[test]
fn f19_a_start_and_a_finish_dropped_at_every_await_point_leave_no_lease() {
    virtually(|w| async move {
        let node = w.node("a");
        let job = node.cron("report").ttl(TTL).at_least(Duration::from_secs(1)).build().unwrap();
        let (mut n, mut ended) = (0, false);
        for polls in 1..40 {
            n += 1;
            ended = dropped_after(job.start(slot(n), Deadline::NONE), polls).await;
            settled(&w, &node).await;
            w.freed("cron/report").await;
            // The time of a run may be kept: it ends by itself.
            w.freed("cron-kept/report").await;
            n += 1;
            let Start::Go(turn) = job.start(slot(n), Deadline::NONE).await.unwrap() else { panic!("{n}") };
            ended &= dropped_after(turn.finish(), polls).await;
            settled(&w, &node).await;
            w.freed("cron/report").await;
            w.freed("cron-kept/report").await;
        }
        assert!(ended, "the last round must run to its end");
    });
}

#[test]
fn what_cannot_hold_is_refused_when_a_job_is_built() {
    virtually(|w| async move {
        let node = w.node("a");
        let field = |b: mainstay_coordination::cron::Builder| b.build().unwrap_err().field();
        assert_eq!(field(node.cron("")), "name");
        assert_eq!(field(node.cron("x").at_least(Duration::from_secs(86_401))), "at_least");
        assert_eq!(field(node.cron("x").at_least(MINUTE).at_most(TTL)), "at_least");
        assert_eq!(field(node.cron("x").at_most(Duration::ZERO)), "max_hold");
        let rt = mainstay_clock::Runtime::system();
        let bare =
            Coordinator::builder(Arc::new(w.store.clone()), rt).namespace("t").owner("a").build().unwrap();
        assert_eq!(field(bare.cron("x")), "records");
        assert_eq!(bare.latch("x", 1).unwrap_err().field(), "records");
        assert_eq!(bare.barrier("x", 1).build().unwrap_err().field(), "records");
    });
}
