//! The recipes that need records, over the store of a backend.

#![allow(clippy::unwrap_used, reason = "a suite is a test: a failed call is a failed check")]

use mainstay_clock::Deadline;
use mainstay_coordination::Coordinator;
use mainstay_coordination::cron::Ran;
use mainstay_coordination::membership::{Change, Departure, Event};

/// Members, a job, a barrier, a double barrier and a latch between `a` and `b`: two nodes on one store, each over a
/// connection of its own and with records. Each wait ends at `limit`. How many recipes were tried.
///
/// # Panics
/// When one does not do what it is for.
///
/// # Cancel safety
/// For tests: dropped, it leaves leases that end by themselves.
pub async fn between(a: &Coordinator, b: &Coordinator, limit: Deadline) -> usize {
    members(a, b).await;
    job(a, b).await;
    barriers(a, b, limit).await;
    latch(a, b, limit).await;
    5
}

async fn members(a: &Coordinator, b: &Coordinator) {
    let mut watch = b.group("workers").build().unwrap().watch();
    assert!(matches!(watch.next().await.unwrap(), Event::Snapshot(s) if s.members.is_empty()));
    let member = a.group("workers").build().unwrap().try_join("w1", "10.0.0.7").await.unwrap();
    let Event::Delta(joined) = watch.next().await.unwrap() else { panic!("a change") };
    assert!(matches!(joined.change, Change::Joined(m) if m.meta == b"10.0.0.7"));
    assert!(b.group("workers").build().unwrap().try_join("w1", "").await.is_err(), "the name lives");
    member.leave().await.unwrap();
    let Event::Delta(left) = watch.next().await.unwrap() else { panic!("a change") };
    assert!(matches!(left.change, Change::Gone { how: Departure::Left, .. }));
}

/// A slot is run once, also when it is asked for again.
async fn job(a: &Coordinator, b: &Coordinator) {
    let jobs = [a.cron("report").build().unwrap(), b.cron("report").build().unwrap()];
    let slot = jobs[0].now().await.unwrap();
    let ran =
        tokio::join!(jobs[0].run_once_per(slot, async |_| ()), jobs[1].run_once_per(slot, async |_| ()));
    let done = [ran.0.unwrap(), ran.1.unwrap()].into_iter().filter(|r| *r == Ran::Done(())).count();
    assert_eq!(done, 1);
    assert_eq!(jobs[1].run_once_per(slot, async |_| ()).await.unwrap(), Ran::Taken);
}

async fn barriers(a: &Coordinator, b: &Coordinator, limit: Deadline) {
    let (x, y) = (a.barrier("phase", 2).build().unwrap(), b.barrier("phase", 2).build().unwrap());
    let (one, two) = tokio::join!(x.wait("a", limit), y.wait("b", limit));
    assert_eq!(one.unwrap(), two.unwrap());
    let (one, two) = tokio::join!(x.enter("a", limit), y.enter("b", limit));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.passage(), two.passage());
    let (one, two) = tokio::join!(one.leave(limit), two.leave(limit));
    assert_eq!(one.unwrap().members, two.unwrap().members);
}

/// Ids are counted, not calls.
async fn latch(a: &Coordinator, b: &Coordinator, limit: Deadline) {
    let (x, y) = (a.latch("loaded", 2).unwrap(), b.latch("loaded", 2).unwrap());
    let count = async {
        y.count_down("1").await.unwrap();
        y.count_down("1").await.unwrap();
        y.count_down("2").await.unwrap()
    };
    let (waited, counted) = tokio::join!(x.wait(limit), count);
    assert_eq!(waited.unwrap(), counted);
}
