//! The metastable scenario, in discrete events: a server whose capacity falls to a tenth for ten seconds, under
//! an open Poisson load, and what the client's policy makes of it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mainstay_clock::{Deadline, Rng as _, SeededRng};
use mainstay_resilience::{Breaker, Budget, CallContext, Classify, Policy, Retry, Verdict};

use crate::des::{DesClock, World};
use crate::world::is_soak;

const RATE: f64 = 700.0;
const CAPACITY: f64 = 1_000.0;
const TIMEOUT: Duration = Duration::from_secs(1);
/// Jobs in the queue from which an arrival is shed.
const SHED_AT: usize = 200;

/// The server refused the request at once.
#[derive(Debug)]
struct Shed;

impl Classify for Shed {
    fn verdict(&self) -> Verdict {
        Verdict::RETRYABLE
    }
}

/// One job: answered through its cell, served even when nobody waits any more.
struct Job {
    until: Deadline,
    reply: Rc<RefCell<Reply>>,
}

#[derive(Default)]
struct Reply {
    done: bool,
    waker: Option<Waker>,
}

/// One unbounded FIFO queue, one worker.
struct Server {
    clock: DesClock,
    queue: VecDeque<Job>,
    idle: Option<Waker>,
    sent: Vec<u32>,
    drop_expired: bool,
    shed: bool,
    brownout: (f64, f64),
}

impl Server {
    fn capacity(&self) -> f64 {
        let t = self.clock.seconds();
        if t >= self.brownout.0 && t < self.brownout.1 { CAPACITY / 10.0 } else { CAPACITY }
    }

    /// The next job to serve; skips, at no cost, what nobody can use any more.
    fn next(&mut self) -> Option<Job> {
        loop {
            let job = self.queue.pop_front()?;
            if !self.drop_expired || !job.until.is_over(&self.clock) {
                return Some(job);
            }
        }
    }
}

type Shared = Rc<RefCell<Server>>;

/// Serves for ever.
async fn work(server: Shared) {
    loop {
        let job = std::future::poll_fn(|cx| {
            let mut this = server.borrow_mut();
            match this.next() {
                Some(job) => Poll::Ready(job),
                None => {
                    this.idle = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        let (clock, service) = {
            let this = server.borrow();
            (this.clock.clone(), 1.0 / this.capacity())
        };
        let at = clock.seconds() + service;
        clock.until(at).await;
        let mut reply = job.reply.borrow_mut();
        reply.done = true;
        if let Some(waker) = reply.waker.take() {
            waker.wake();
        }
    }
}

/// One request of a client.
struct Request {
    server: Shared,
    until: Deadline,
    reply: Option<Rc<RefCell<Reply>>>,
}

impl Future for Request {
    type Output = Result<(), Shed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(reply) = &self.reply {
            let mut reply = reply.borrow_mut();
            if reply.done {
                return Poll::Ready(Ok(()));
            }
            reply.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let reply = Rc::new(RefCell::new(Reply { done: false, waker: Some(cx.waker().clone()) }));
        self.reply = Some(Rc::clone(&reply));
        let mut server = self.server.borrow_mut();
        let second = server.clock.seconds() as usize;
        count(&mut server.sent, second);
        if server.shed && server.queue.len() >= SHED_AT {
            return Poll::Ready(Err(Shed));
        }
        server.queue.push_back(Job { until: self.until, reply });
        if let Some(worker) = server.idle.take() {
            worker.wake();
        }
        Poll::Pending
    }
}

fn count(seconds: &mut Vec<u32>, second: usize) {
    if seconds.len() <= second {
        seconds.resize(second + 1, 0);
    }
    seconds[second] += 1;
}

/// What a run showed, second by second.
#[derive(Default)]
struct Curve {
    arrivals: Vec<u32>,
    completed: Vec<u32>,
    sent: Vec<u32>,
}

impl Curve {
    fn share(&self, second: usize) -> f64 {
        let completed = self.completed.get(second).copied().unwrap_or(0);
        f64::from(completed) / f64::from(self.arrivals[second])
    }

    /// Seconds from the end of the brown-out until three seconds in a row complete 95 %.
    fn recovery(&self, end: usize) -> Option<usize> {
        let last = self.arrivals.len().saturating_sub(5);
        (end..last).find(|s| (*s..*s + 3).all(|s| self.share(s) >= 0.95)).map(|s| s - end)
    }

    fn amplification(&self, from: usize) -> f64 {
        let peak = |s: usize| f64::from(self.sent[s]) / f64::from(self.arrivals[s]);
        (from..self.arrivals.len()).map(peak).fold(0.0, f64::max)
    }

    fn goodput(&self, seconds: std::ops::Range<usize>) -> f64 {
        let sum = |v: &[u32]| seconds.clone().map(|s| f64::from(v.get(s).copied().unwrap_or(0))).sum::<f64>();
        sum(&self.completed) / sum(&self.arrivals)
    }
}

/// Which protections are on.
#[derive(Clone, Copy)]
struct Setup {
    budget: bool,
    breaker: bool,
    drop_expired: bool,
    shed: bool,
    brownout: f64,
    total: f64,
    rate: fn(f64) -> f64,
}

const PROTECTED: Setup = Setup {
    budget: true,
    breaker: true,
    drop_expired: true,
    shed: true,
    brownout: 10.0,
    total: 60.0,
    rate: |_| RATE,
};
const UNPROTECTED: Setup =
    Setup { budget: false, breaker: false, drop_expired: false, shed: false, total: 180.0, ..PROTECTED };

/// The client: defaults wherever there are any.
fn client(setup: Setup, clock: &DesClock, seed: u64) -> Policy {
    let runtime = clock.runtime(seed);
    let mut policy = Policy::builder("server")
        .runtime(&runtime)
        .idempotent()
        .attempt_timeout(TIMEOUT)
        .retry(Retry::standard().build().unwrap());
    if !setup.budget {
        policy = policy.without_budget();
    }
    if setup.breaker {
        policy = policy.breaker(&Breaker::builder("server").runtime(&runtime).build().unwrap());
    }
    policy.build().unwrap()
}

fn run(setup: Setup, seed: u64) -> Curve {
    let world = World::new();
    let server = Rc::new(RefCell::new(Server {
        clock: world.clock.clone(),
        queue: VecDeque::new(),
        idle: None,
        sent: Vec::new(),
        drop_expired: setup.drop_expired,
        shed: setup.shed,
        brownout: (20.0, 20.0 + setup.brownout),
    }));
    let curve = Rc::new(RefCell::new(Curve::default()));
    let policy = Rc::new(client(setup, &world.clock, seed));
    world.spawn(work(Rc::clone(&server)));
    let (clients, arrivals) = (world.clone(), Rc::clone(&curve));
    let servers = Rc::clone(&server);
    world.spawn(async move {
        let rng = SeededRng::new(seed ^ 0x5eed);
        let mut at = 0.0;
        loop {
            at += -(1.0 - rng.unit()).ln() / (setup.rate)(at);
            if at >= setup.total {
                return;
            }
            clients.clock.until(at).await;
            count(&mut arrivals.borrow_mut().arrivals, at as usize);
            let (policy, server, curve) = (Rc::clone(&policy), Rc::clone(&servers), Rc::clone(&arrivals));
            clients.spawn(async move {
                let cx = CallContext::new();
                let request = |a: mainstay_resilience::Attempt<'_>| Request {
                    server: Rc::clone(&server),
                    until: a.deadline(),
                    reply: None,
                };
                if policy.call(&cx, request).await.is_ok() {
                    count(&mut curve.borrow_mut().completed, at as usize);
                }
            });
        }
    });
    world.run(setup.total + 10.0);
    let mut curve = std::mem::take(&mut *curve.borrow_mut());
    curve.sent = server.borrow().sent.clone();
    curve
}

/// Asserts MS1 over some runs, each a brown-out of so many seconds and a seed.
#[track_caller]
fn recovers(total: f64, runs: impl Iterator<Item = (f64, u64)>) {
    let mut recoveries: Vec<(usize, f64, u64)> = runs
        .map(|(brownout, seed)| {
            let curve = run(Setup { brownout, total, ..PROTECTED }, seed);
            let peak = curve.amplification(22);
            assert!(peak <= 1.3, "brown-out of {brownout} s, seed {seed}: amplification {peak}");
            let end = 20 + brownout.ceil() as usize;
            (curve.recovery(end).unwrap_or(usize::MAX), brownout, seed)
        })
        .collect();
    recoveries.sort_by_key(|r| r.0);
    let (median, worst) = (recoveries[recoveries.len() / 2].0, recoveries[recoveries.len() - 1].0);
    assert!(median <= 2 && worst <= 3, "(recovery, brown-out, seed): {recoveries:?}");
}

#[test]
fn ms1_defaults_recover_within_two_seconds_over_twenty_seeds() {
    recovers(60.0, (0..20).map(|seed| (10.0, seed)));
}

#[test]
fn ms2_recovery_does_not_depend_on_the_length_of_the_brownout() {
    let lengths = || (16..=24).map(|half| f64::from(half) / 2.0);
    if is_soak() {
        // Every length with every seed.
        lengths().for_each(|length| recovers(45.0, (0..20).map(|seed| (length, seed))));
    } else {
        // Twenty seeds over the lengths.
        recovers(45.0, lengths().cycle().zip(100..120));
    }
}

#[test]
fn ms3_the_unprotected_client_never_recovers() {
    let curve = run(UNPROTECTED, 1);
    assert_eq!(curve.recovery(30), None);
    let goodput = curve.goodput(140..178);
    assert!(goodput < 0.02, "{goodput}");
    assert!(curve.amplification(22) > 2.5, "three attempts multiply the load");
    assert!(curve.goodput(5..19) > 0.99, "healthy before the brown-out");
}

// Nested layers.

/// Three layers of three attempts over a dependency that is down, at `rate` calls per second; returns
/// operations per call.
fn nested(budget: Option<&Budget>, world: &World, clients: u32, rate: f64, total: f64) -> f64 {
    let runtime = world.clock.runtime(7);
    let layer = |name: &str| {
        let builder =
            Policy::builder(name).runtime(&runtime).idempotent().retry(Retry::standard().build().unwrap());
        let builder = if budget.is_some() { builder } else { builder.without_budget() };
        Rc::new(builder.build().unwrap())
    };
    let (top, middle, bottom) = (layer("top"), layer("middle"), layer("bottom"));
    let (calls, operations) = (Rc::new(RefCell::new(0_u32)), Rc::new(RefCell::new(0_u32)));
    for client in 0..clients {
        let (clock, budget, spawner) = (world.clock.clone(), budget.cloned(), world.clone());
        let layers = (Rc::clone(&top), Rc::clone(&middle), Rc::clone(&bottom));
        let (calls, operations) = (Rc::clone(&calls), Rc::clone(&operations));
        world.spawn(async move {
            let rng = SeededRng::new(u64::from(client));
            let mut at = 0.0;
            loop {
                at += -(1.0 - rng.unit()).ln() / rate;
                if at >= total {
                    return;
                }
                clock.until(at).await;
                *calls.borrow_mut() += 1;
                let (layers, operations, budget) = (layers.clone(), Rc::clone(&operations), budget.clone());
                spawner.spawn(async move {
                    let mut cx = CallContext::new();
                    if let Some(budget) = &budget {
                        cx = cx.with_budget(budget);
                    }
                    let down = || {
                        *operations.borrow_mut() += 1;
                        std::future::ready(Err::<(), Shed>(Shed))
                    };
                    let (_, middle, bottom) = &layers;
                    let result = layers
                        .0
                        .call(&cx, |a| {
                            let cx = a.nest();
                            async move {
                                middle
                                    .call(&cx, |a| {
                                        let cx = a.nest();
                                        async move { bottom.call(&cx, |_| down()).await.map_err(as_shed) }
                                    })
                                    .await
                                    .map_err(as_shed)
                            }
                        })
                        .await;
                    assert!(result.is_err());
                });
            }
        });
    }
    world.run(total + 60.0);
    let (calls, operations) = (*calls.borrow(), *operations.borrow());
    f64::from(operations) / f64::from(calls)
}

/// The layer above sees its dependency's failure, as over a wire.
fn as_shed(_: mainstay_resilience::CallError<Shed>) -> Shed {
    Shed
}

#[test]
fn rt10_nested_layers_share_one_budget() {
    let naive = nested(None, &World::new(), 1, 100.0, 5.0);
    assert!((naive - 27.0).abs() < 1e-9, "three times three times three: {naive}");

    let world = World::new();
    let runtime = world.clock.runtime(1);
    let bare = Budget::builder("shared").ratio(0.2, 0.0).runtime(&runtime).build().unwrap();
    let amplification = nested(Some(&bare), &world, 1, 700.0, 60.0);
    assert!(amplification > 1.1 && amplification <= 1.2, "floor 0: {amplification}");

    let world = World::new();
    let runtime = world.clock.runtime(1);
    let standard = Budget::builder("shared").runtime(&runtime).build().unwrap();
    let amplification = nested(Some(&standard), &world, 1, 700.0, 60.0);
    assert!(amplification > 1.1 && amplification <= 1.25, "defaults: {amplification}");
}

#[test]
fn m_t2_a_thousand_clients_in_a_total_outage_multiply_by_one_plus_the_ratio() {
    let world = World::new();
    let runtime = world.clock.runtime(1);
    let budget = Budget::builder("shared").ratio(0.2, 0.0).runtime(&runtime).build().unwrap();
    let amplification = nested(Some(&budget), &world, 1_000, 0.7, 30.0);
    assert!(amplification > 1.1 && amplification <= 1.2, "{amplification}");
}

#[test]
fn m_k3_ten_times_the_load_leaves_goodput_and_no_trace() {
    // Ten times the capacity from 20 to 80 s. The server sheds and drops what is too late; the clients have no
    // breaker, because a server that sheds works at full capacity and must not be left alone.
    let setup = Setup {
        breaker: false,
        brownout: 0.0,
        total: 100.0,
        rate: |t| if (20.0..80.0).contains(&t) { 10.0 * CAPACITY } else { RATE },
        ..PROTECTED
    };
    let curve = run(setup, 1);
    let done: f64 = (21..80).map(|s| f64::from(curve.completed[s])).sum::<f64>() / 59.0;
    assert!(done >= 0.9 * CAPACITY, "{done} per second of {CAPACITY}");
    let recovery = curve.recovery(80);
    assert!(recovery.is_some_and(|s| s < 10), "{recovery:?} s until 95 % again");
}

// Partitions.

/// 99th percentile of the email calls' latency in ms, while payments take `payments_take` seconds each; both share a
/// pool of 40 connections, and with `partitioned` each has a bulkhead in front of it.
fn email_p99(payments_take: f64, partitioned: bool) -> f64 {
    use mainstay_resilience::Bulkhead;

    let world = World::new();
    let runtime = world.clock.runtime(3);
    let hour = Duration::from_secs(3_600);
    let pool = Bulkhead::builder("connections", 40).queue(10_000, hour).runtime(&runtime).build().unwrap();
    let latencies = Rc::new(RefCell::new(Vec::new()));
    for (name, limit, rate, takes) in [("payments", 10, 100.0, payments_take), ("email", 20, 200.0, 0.05)] {
        let mut policy = Policy::builder(name).runtime(&runtime);
        if partitioned {
            let own = Bulkhead::builder(name, limit).queue(50, Duration::from_secs(1)).runtime(&runtime);
            policy = policy.bulkhead(&own.build().unwrap());
        }
        let (policy, pool) = (Rc::new(policy.build().unwrap()), pool.clone());
        let (clock, spawner, latencies) = (world.clock.clone(), world.clone(), Rc::clone(&latencies));
        world.spawn(async move {
            let rng = SeededRng::new(11);
            let mut at = 0.0;
            while at < 30.0 {
                at += -(1.0 - rng.unit()).ln() / rate;
                clock.until(at).await;
                let (policy, pool, latencies) = (Rc::clone(&policy), pool.clone(), Rc::clone(&latencies));
                let clock = clock.clone();
                spawner.spawn(async move {
                    let cx = CallContext::new();
                    let (held, timer) = (&pool, &clock);
                    let operation = |_: mainstay_resilience::Attempt<'_>| async move {
                        let free = CallContext::new();
                        let connection = held.acquire(&free).await.map_err(|_| Shed)?;
                        timer.until(timer.seconds() + takes).await;
                        drop(connection);
                        Ok::<_, Shed>(())
                    };
                    let result = policy.call(&cx, operation).await;
                    if takes < 0.1 && result.is_ok() {
                        latencies.borrow_mut().push(clock.seconds() - at);
                    }
                });
            }
        });
    }
    world.run(60.0);
    let mut latencies = latencies.take();
    latencies.sort_by(f64::total_cmp);
    // Calls that never came back are slower than everything else.
    latencies.get(30 * 200 * 99 / 100).copied().unwrap_or(f64::INFINITY) * 1e3
}

#[test]
fn m_k2_a_hung_partition_leaves_the_others_latency_alone() {
    let healthy = email_p99(0.05, true);
    for takes in [2.0, 1e6] {
        let beside = email_p99(takes, true);
        assert!(
            (beside / healthy - 1.0).abs() <= 0.05,
            "{beside} ms beside payments of {takes} s, {healthy} ms alone"
        );
    }
    let together = email_p99(1e6, false);
    assert!(together > 2.0 * healthy, "without partitions the pool is gone: {together} ms");
}
