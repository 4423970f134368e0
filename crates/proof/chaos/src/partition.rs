//! Who holds while one member of a store's cluster is cut off from the others.

#![allow(clippy::unwrap_used, reason = "a suite is a test: a failed call is a failed check")]

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, Deadline, Runtime};
use mainstay_coordination::{Coordinator, ErrorKind, Guard};
use mainstay_sim::check::{epochs_grow, judge, mutual_exclusion};
use mainstay_sim::history::{Effect, Ended, Event, Op, Recorder};
use mainstay_sim::verdict::Verdict;

use crate::proxy::TcpMesh;

/// What all want.
const NAME: &str = "shared";
/// One step of guarded work.
const STEP: Duration = Duration::from_millis(20);
/// Steps of a hold on the side that goes on.
const STEPS: u32 = 10;
/// Longest wait for one grant: elections and the whole ttl after one fit in.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two tries of the side that is cut off.
const AGAIN: Duration = Duration::from_millis(100);
/// Grants that the side which goes on must get while the other one is cut off.
const GRANTS: u64 = 5;
/// Refusals that the side which is cut off must get.
const REFUSALS: u64 = 2;

/// Which words of the member that is cut off are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a link has two directions")]
pub enum Cut {
    /// Its own and those of the others.
    Both,
    /// Those of the others: it hears nobody.
    Deaf,
    /// Its own: nobody hears it.
    Mute,
}

impl Cut {
    /// Cuts `member` off from the others.
    pub fn apply(self, mesh: &TcpMesh, member: usize) {
        for other in (0..mesh.doors().len()).filter(|other| *other != member) {
            if self != Self::Deaf {
                mesh.cut(member, other);
            }
            if self != Self::Mute {
                mesh.cut(other, member);
            }
        }
    }
}

/// What was seen.
#[derive(Debug)]
#[non_exhaustive]
pub struct Seen {
    /// Grants to the side that went on, while the other one was cut off.
    pub grants: u64,
    /// What the side that was cut off was told meanwhile, by code, and how often.
    pub refusals: BTreeMap<&'static str, u64>,
    /// What the checkers of exclusion and of growing tokens say of the whole history.
    pub verdict: Verdict,
}

struct Campaign {
    rt: Runtime,
    ttl: Duration,
    recorder: Recorder,
    /// The largest token that the shared resource has seen.
    fence: Mutex<u64>,
    is_cut: AtomicBool,
    is_over: AtomicBool,
    grants: AtomicU64,
    refusals: Mutex<BTreeMap<&'static str, u64>>,
}

/// Runs three nodes, each over a store that knows one member of a cluster of three. `nodes[lone]` holds when its member
/// is cut off from the others by `cut`; it must stop at its deadline, be refused from then on with
/// [`ErrorKind::Unreachable`], and get the lock again after the links are healed. The other two must get it in turn as
/// soon as it has ended.
///
/// # Panics
/// When a side does not do that in its time.
///
/// # Cancel safety
/// For tests: dropped, it leaves the links as they are and leases that end by themselves.
pub async fn contend(
    rt: &Runtime,
    nodes: &[Coordinator; 3],
    mesh: &TcpMesh,
    lone: usize,
    cut: Cut,
    ttl: Duration,
) -> Seen {
    let campaign = Campaign {
        rt: rt.clone(),
        ttl,
        recorder: Recorder::new(std::sync::Arc::clone(rt.clock())),
        fence: Mutex::default(),
        is_cut: AtomicBool::new(false),
        is_over: AtomicBool::new(false),
        grants: AtomicU64::default(),
        refusals: Mutex::default(),
    };
    let first = campaign.acquire(&nodes[lone]).await;
    let others = [(lone + 1) % 3, (lone + 2) % 3];
    let ((), (), ()) = tokio::join!(
        campaign.cut_off(&nodes[lone], first, mesh, lone, cut),
        campaign.go_on(&nodes[others[0]]),
        campaign.go_on(&nodes[others[1]]),
    );
    let events = campaign.recorder.take();
    Seen {
        grants: campaign.grants.into_inner(),
        refusals: campaign.refusals.into_inner().unwrap(),
        verdict: judge(&events, mutual_exclusion()).and(judge(&events, epochs_grow())),
    }
}

impl Campaign {
    fn clock(&self) -> &dyn Clock {
        &**self.rt.clock()
    }

    fn within(&self, limit: Duration) -> Deadline {
        Deadline::after(self.clock().now(), limit)
    }

    /// Waits for the lock, however often the store fails meanwhile.
    async fn acquire(&self, node: &Coordinator) -> Guard {
        let lock = node.mutex(NAME).ttl(self.ttl).fair().build().unwrap();
        let limit = self.within(PATIENCE);
        loop {
            let asked = self.recorder.stamp();
            match lock.acquire(limit).await {
                Ok(guard) => {
                    self.note("acquire", asked, self.recorder.stamp(), &guard);
                    return guard;
                }
                Err(error) => assert!(!limit.is_over(self.clock()), "not granted in {PATIENCE:?}: {error:?}"),
            }
            self.clock().sleep(AGAIN).await;
        }
    }

    fn note(&self, f: &str, from: u64, to: u64, guard: &Guard) {
        let token = guard.token().get();
        let mut op = Op::new(token, f, NAME, from, Some(to), Ended::Ok);
        (op.epoch, op.op_id) = (Some(token), Some(token.to_string().into()));
        self.recorder.push(Event::Op(op));
    }

    /// Works under the guard, up to so many steps; whether it did the last one.
    async fn work(&self, guard: &Guard, steps: u32) -> bool {
        let begun = AtomicU64::new(self.recorder.stamp());
        let last = AtomicU64::new(begun.load(Ordering::SeqCst));
        let work = guard.run(async |fence| {
            for n in 0..steps {
                self.clock().sleep(STEP).await;
                self.write(fence.token().get(), n);
                // A step is as old as the look at the guard before it: how long the machine stood still since is
                // nothing that a guard can know, and what the fence is for.
                last.store(begun.load(Ordering::SeqCst), Ordering::SeqCst);
            }
        });
        let done = self.stamping(&begun, work).await;
        let last = last.into_inner();
        self.note("release", last, last, guard);
        let end = guard.deadline().instant().as_nanos();
        assert!(last <= end, "the work went on {} ns after its deadline", last - end);
        done.is_ok()
    }

    /// Stores when `work` was polled last.
    async fn stamping<T>(&self, polled: &AtomicU64, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|cx| {
            polled.store(self.recorder.stamp(), Ordering::SeqCst);
            work.as_mut().poll(cx)
        })
        .await
    }

    /// What guards its own data by the token.
    fn write(&self, token: u64, n: u32) {
        let mut fence = self.fence.lock().unwrap();
        let mut effect = Effect::new("data", NAME, &format!("{token}/{n}"), 1, 0);
        (effect.epoch, effect.accepted) = (Some(token), token >= *fence);
        *fence = token.max(*fence);
        self.recorder.effect(effect);
    }

    async fn cut_off(&self, node: &Coordinator, first: Guard, mesh: &TcpMesh, lone: usize, cut: Cut) {
        let cutting = async {
            self.clock().sleep(STEP * STEPS).await;
            self.is_cut.store(true, Ordering::SeqCst);
            cut.apply(mesh, lone);
        };
        let (finished, ()) = tokio::join!(self.work(&first, u32::MAX), cutting);
        assert!(!finished, "nobody can renew it");
        drop(first);
        let lock = node.mutex(NAME).ttl(self.ttl).build().unwrap();
        let limit = self.within(PATIENCE * 2);
        let unreachable = || self.refusals.lock().unwrap().get("lock_unreachable").copied().unwrap_or(0);
        while self.grants.load(Ordering::SeqCst) < GRANTS || unreachable() < REFUSALS {
            assert!(!limit.is_over(self.clock()), "one side stands still");
            match lock.try_acquire().await {
                Ok(guard) => panic!("the side that is cut off was granted {}", guard.token()),
                // The old leader may know of the last holder and not yet that it leads no more.
                Err(e) if matches!(e.kind(), ErrorKind::Unreachable | ErrorKind::Contended { .. }) => {
                    *self.refusals.lock().unwrap().entry(e.code()).or_default() += 1;
                }
                Err(e) => panic!("neither granted nor unreachable: {e}"),
            }
            self.clock().sleep(AGAIN).await;
        }
        self.is_cut.store(false, Ordering::SeqCst);
        mesh.heal();
        let limit = self.within(PATIENCE);
        loop {
            let again = self.acquire(node).await;
            let done = self.work(&again, STEPS).await;
            // The store may still be electing.
            let _ = again.release().await;
            if done {
                break;
            }
            assert!(!limit.is_over(self.clock()), "healed, it is never held as long as it works");
        }
        self.is_over.store(true, Ordering::SeqCst);
    }

    async fn go_on(&self, node: &Coordinator) {
        while !self.is_over.load(Ordering::SeqCst) {
            let guard = self.acquire(node).await;
            self.grants.fetch_add(u64::from(self.is_cut.load(Ordering::SeqCst)), Ordering::SeqCst);
            self.work(&guard, STEPS).await;
            // Unanswered, it ends by itself.
            let _ = guard.release().await;
        }
    }
}
