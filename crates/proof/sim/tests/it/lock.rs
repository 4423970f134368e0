//! The reference protocol of a fenced lock, on the real contracts, and bugs planted in it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::{Clock, Instant, Rng};
use mainstay_sim::Sim;
use mainstay_sim::check::{counter, epochs_grow, mutual_exclusion, rate, recovers_within};
use mainstay_sim::history::{Effect, Process};
use mainstay_sim::sim::{FaultKind, Faults, Node, Report, World};
use mainstay_store::lease::{AcquireRequest, Acquired, Line, Renewed};
use mainstay_store::{Error, ErrorKind, LeaseStore, Outcome};

const TTL: Duration = Duration::from_secs(3);
const KEY: &str = "account";

/// What is wrong with the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
    /// The deadline counts from the reply, not from before the request.
    DeadlineFromReply,
    /// No allowance for clocks that drift.
    NoDriftAllowance,
    /// The resource accepts every token.
    ResourceIgnoresToken,
    /// The resource accepts the token before the newest one too.
    ResourceOffByOne,
    /// A renewal that said "lost" is taken for one that worked.
    LostIgnored,
    /// A renewal without an answer is taken for one that worked.
    RenewUnknownAsOk,
    /// A renewal's deadline counts from its reply.
    RenewFromReply,
    /// An acquisition without an answer is taken for a grant.
    UnknownAsGrant,
    /// A lock that somebody else holds is taken.
    HeldAsGrant,
    /// Releases whatever is there, not what it holds.
    BreaksOnRelease,
    /// Everybody uses one op id.
    SharedOpId,
    /// Reads before it holds the lock.
    ReadsBeforeLock,
    /// Reads under the lock without showing the token: until the first write of the new holder, a late one of the old
    /// holder is still accepted, and the new holder overwrites it with what it read before.
    ReadsUnannounced,
    /// Takes a write that failed for one that worked.
    FailedWriteAsOk,
    /// Repeats a write without an answer under a new key.
    RepeatsWrite,
    /// The recorder takes "unknown" for "failed".
    UnknownAsFail,
    /// Invents its own tokens.
    OwnTokens,
    /// Asks again at once, without a pause.
    Spins,
    /// Waits for a hint and never looks by itself.
    HintOnly,
    /// Stands in line and never asks again.
    NeverAsksAgain,
    /// Gives up for ever after an error.
    GivesUp,
    /// Never releases, with a lease of ten minutes.
    KeepsForTenMinutes,
    /// Works on after its deadline, against a resource that accepts every token.
    NoDeadlineAndNoFence,
    /// A wall clock measures the lease.
    WallClockDeadline,
}

/// A counter that is read and written under the lock; it refuses smaller tokens.
#[derive(Default)]
pub(crate) struct Resource {
    token: u64,
    value: i64,
    seen: std::collections::BTreeSet<String>,
}

impl Resource {
    /// The value, for the holder of `token` and of later ones only.
    fn announced(&mut self, token: u64) -> Result<i64, Error> {
        if token < self.token {
            return Err(Error::new(ErrorKind::ApiMisuse, "a larger token was seen"));
        }
        self.token = token;
        Ok(self.value)
    }
}

type Shared = Arc<Mutex<Resource>>;

struct Worker {
    node: Node,
    bug: Bug,
    resource: Shared,
    store: Arc<dyn LeaseStore>,
    clock: Arc<dyn Clock>,
    process: Process,
    rng: Arc<dyn Rng>,
}

struct Held {
    op_id: String,
    token: u64,
    deadline: Instant,
    wall_deadline: i64,
}

impl Worker {
    fn new(node: Node, bug: Bug, resource: Shared) -> Self {
        let (store, clock, process, rng) = (node.lease_store(), node.clock(), node.process(), node.rng());
        Self { node, bug, resource, store, clock, process, rng }
    }

    fn ttl(&self) -> Duration {
        if self.bug == Bug::KeepsForTenMinutes { Duration::from_secs(600) } else { TTL }
    }

    fn deadline(&self, sent: Instant) -> Instant {
        let allowance = if self.bug == Bug::NoDriftAllowance { Duration::ZERO } else { self.ttl() / 25 };
        sent.saturating_add(self.ttl() - allowance)
    }

    fn request(&self, op_id: &str) -> AcquireRequest {
        let line = if self.bug == Bug::NeverAsksAgain { Line::Join } else { Line::Try };
        AcquireRequest { line, ..AcquireRequest::exclusive(KEY, self.node.name(), op_id, self.ttl()) }
    }

    async fn acquire(&self, op_id: &str) -> Option<Held> {
        let wall = self.clock.wall().unix_millis();
        let mut sent = self.clock.now();
        let call = self.process.begin("acquire", KEY).via(&self.node.via());
        let answer = self.store.acquire(self.request(op_id)).await;
        if matches!(self.bug, Bug::DeadlineFromReply) {
            sent = self.clock.now();
        }
        let grant = match answer {
            Ok(Acquired::Granted(grants)) => grants[0].token.get(),
            Ok(_) if self.bug == Bug::HeldAsGrant => 1,
            Err(e) if self.bug == Bug::UnknownAsGrant && e.outcome() == Outcome::Unknown => 1,
            Ok(_) => {
                call.fail();
                return None;
            }
            Err(error) => {
                call.error(&error, true);
                // It may have worked: give back whatever it was.
                drop(self.store.release(op_id).await);
                return None;
            }
        };
        let token = if self.bug == Bug::OwnTokens { self.node.incarnation() + 1 } else { grant };
        let deadline = self.deadline(sent);
        let until = self.node.observed(deadline);
        call.with(|op| {
            op.epoch = Some(token);
            op.op_id = Some(op_id.into());
            op.until_ns = Some(until);
        })
        .ok();
        let wall_deadline = wall + i64::try_from(self.ttl().as_millis()).unwrap();
        Some(Held { op_id: op_id.to_owned(), token, deadline, wall_deadline })
    }

    async fn renew(&self, held: &mut Held) -> bool {
        let mut sent = self.clock.now();
        let call = self.process.begin("renew", KEY).via(&self.node.via());
        let answer = self.store.renew(&held.op_id).await;
        let renewed = match &answer {
            Ok(Renewed::Renewed(_)) => true,
            Ok(Renewed::Broken | Renewed::Closed | Renewed::Lost) => self.bug == Bug::LostIgnored,
            Err(e) => self.bug == Bug::RenewUnknownAsOk && e.outcome() == Outcome::Unknown,
        };
        if !renewed {
            match answer {
                Err(error) => call.error(&error, true),
                Ok(_) => call.fail(),
            }
            // An error leaves the old deadline; "lost" ends it now.
            return self.clock.now() < held.deadline;
        }
        // An answer that comes after the deadline renews nothing: it was over.
        if self.clock.now() >= held.deadline && !matches!(self.bug, Bug::LostIgnored | Bug::RenewUnknownAsOk)
        {
            call.fail();
            return false;
        }
        if matches!(self.bug, Bug::RenewFromReply | Bug::RenewUnknownAsOk) {
            sent = self.clock.now();
        }
        held.deadline = self.deadline(sent);
        let until = self.node.observed(held.deadline);
        call.with(|op| {
            op.epoch = Some(held.token);
            op.op_id = Some(held.op_id.as_str().into());
            op.until_ns = Some(until);
        })
        .ok();
        true
    }

    fn lost(&self, held: &Held) {
        let event = self.process.begin("lost", KEY).with(|op| {
            op.epoch = Some(held.token);
            op.op_id = Some(held.op_id.as_str().into());
        });
        event.ok();
    }

    async fn release(&self, held: &Held) {
        if self.bug == Bug::KeepsForTenMinutes {
            return;
        }
        let call = self.process.begin("release", KEY).via(&self.node.via()).with(|op| {
            op.epoch = Some(held.token);
            op.op_id = Some(held.op_id.as_str().into());
        });
        let answer = match self.bug {
            Bug::BreaksOnRelease => self.store.break_lease(KEY).await.map(drop),
            _ => self.store.release(&held.op_id).await.map(drop),
        };
        match answer {
            Ok(()) => call.ok(),
            Err(error) => call.error(&error, true),
        }
    }

    fn holds(&self, held: &Held) -> bool {
        match self.bug {
            Bug::NoDeadlineAndNoFence => true,
            Bug::WallClockDeadline => self.clock.wall().unix_millis() < held.wall_deadline,
            _ => self.clock.now() < held.deadline,
        }
    }

    /// Reads, and announces the token by the same step: no older one is accepted from then on.
    async fn read(&self, token: u64) -> Result<i64, Error> {
        let resource = Arc::clone(&self.resource);
        self.node
            .call(move || {
                let answer = resource.lock().unwrap().announced(token);
                Box::pin(async move { answer })
            })
            .await
    }

    /// Reads without a token.
    async fn peek(&self) -> Result<i64, Error> {
        let resource = Arc::clone(&self.resource);
        self.node
            .call(move || {
                let value = resource.lock().unwrap().value;
                Box::pin(async move { Ok(value) })
            })
            .await
    }

    async fn write(&self, token: u64, key: &str, value: i64) -> Result<(), Error> {
        let (resource, world, bug) = (Arc::clone(&self.resource), self.node.world().clone(), self.bug);
        let key = key.to_owned();
        self.node
            .call(move || {
                let (resource, world, key) = (Arc::clone(&resource), world.clone(), key.clone());
                Box::pin(async move { apply(&resource, &world, bug, token, &key, value) })
            })
            .await
    }

    /// One turn: lock, read, think, write, unlock.
    async fn turn(&self, i: u64) -> Option<()> {
        let mut op_id = format!("{}-{}-{i}", self.node.name(), self.node.incarnation());
        if self.bug == Bug::SharedOpId {
            op_id = "the-lock".to_owned();
        }
        let early = if self.bug == Bug::ReadsBeforeLock { self.peek().await.ok() } else { None };
        let mut held = self.acquire(&op_id).await?;
        let result = self.work(&mut held, i, early).await;
        if self.rng.below(3) == 0 && self.holds(&held) {
            // Some let it end by itself: their claim is all there is.
            self.clock.sleep_until(held.deadline).await;
        } else if self.holds(&held) {
            self.release(&held).await;
        } else {
            self.lost(&held);
        }
        result
    }

    async fn work(&self, held: &mut Held, i: u64, early: Option<i64>) -> Option<()> {
        let value = match early {
            Some(value) => value,
            None if self.bug == Bug::ReadsUnannounced => self.peek().await.ok()?,
            None => self.read(held.token).await.ok()?,
        };
        // Some work is longer than the lease: it renews on the way.
        for _ in 0..self.rng.below(4) {
            self.clock.sleep(TTL / 3).await;
            if !self.renew(held).await {
                return None;
            }
        }
        if !self.holds(held) {
            return None;
        }
        let key = format!("{}/{i}", held.op_id);
        let call = self.process.begin("add", KEY).via(&self.node.via());
        match self.write(held.token, &key, value + 1).await {
            Ok(()) => call.ok(),
            Err(_) if self.bug == Bug::FailedWriteAsOk => call.ok(),
            Err(_) if self.bug == Bug::UnknownAsFail => call.fail(),
            Err(error) if self.bug == Bug::RepeatsWrite && error.outcome() == Outcome::Unknown => {
                match self.write(held.token, &format!("{key}/again"), value + 2).await {
                    Ok(()) => call.ok(),
                    Err(error) => call.error(&error, true),
                }
            }
            Err(error) => call.error(&error, true),
        }
        Some(())
    }

    async fn run(self) {
        for i in 0.. {
            let done = self.turn(i).await;
            match (done, self.bug) {
                (None, Bug::GivesUp) => return std::future::pending().await,
                (None, Bug::HintOnly) => drop(self.store.watch(KEY).await),
                (None, Bug::NeverAsksAgain) => std::future::pending().await,
                (_, Bug::Spins) => {}
                // A hint shortens the wait; it is never the only wake-up.
                _ => {
                    let jitter = Duration::from_millis(20 + self.rng.below(150));
                    tokio::select! {
                        biased;
                        _ = self.store.watch(KEY), if done.is_none() => {}
                        () = self.clock.sleep(jitter) => {}
                    }
                }
            }
        }
    }
}

fn apply(resource: &Shared, world: &World, bug: Bug, token: u64, key: &str, value: i64) -> Result<(), Error> {
    let mut resource = resource.lock().unwrap();
    let slack = match bug {
        Bug::ResourceIgnoresToken | Bug::NoDeadlineAndNoFence | Bug::WallClockDeadline => u64::MAX,
        Bug::ResourceOffByOne => 1,
        _ => 0,
    };
    let accepted = token.saturating_add(slack) >= resource.token;
    let mut effect = Effect::new("counter", KEY, key, 1, 0);
    effect.epoch = Some(token);
    effect.accepted = accepted;
    // A repeated request is answered, not applied again.
    if accepted && !resource.seen.insert(key.to_owned()) {
        return Ok(());
    }
    world.effect(effect);
    if !accepted {
        return Err(Error::new(ErrorKind::ApiMisuse, "a larger token was seen"));
    }
    resource.token = resource.token.max(token);
    resource.value = value;
    Ok(())
}

async fn scenario(world: World, bug: Bug) {
    let resource: Shared = Arc::default();
    let shared = Arc::clone(&resource);
    world.start_all(move |node| Worker::new(node, bug, Arc::clone(&shared)).run());
    world.finished().await;
    world.process().begin("stop", KEY).ok();
    (0..world.nodes()).for_each(|i| world.crash(i));
    // What is still on its way arrives before the final look.
    world.until(world.elapsed() + Duration::from_secs(20)).await;
    let total = resource.lock().unwrap().value;
    world.process().begin("total", KEY).ok_with(total);
}

fn faults() -> Faults {
    Faults::all()
        .without(FaultKind::MessageLost)
        .without(FaultKind::MessageDuplicated)
        .healing_after(Duration::from_secs(16))
}

pub(crate) fn campaign(name: &str, bug: Bug, seeds: std::ops::Range<u64>, live: bool) -> Report {
    let mut faults = faults();
    if bug == Bug::RenewFromReply {
        // A slow answer to the last renewal of a hold is rare: more of them.
        faults = Faults::only(&[FaultKind::Slow]).rate(0.3).healing_after(Duration::from_secs(16));
    }
    let mut builder = Sim::builder(name).seeds(seeds).nodes(3).ops(40).faults(faults);
    if live {
        builder = builder.liveness(Duration::from_secs(18));
    }
    let campaign = builder
        .build()
        .unwrap()
        .run(move |world| scenario(world, bug))
        .check(mutual_exclusion)
        .check(epochs_grow)
        .check(counter)
        .check(|| rate("acquire", Duration::from_secs(1), 60));
    let campaign =
        if live { campaign.check(|| recovers_within("acquire", Duration::from_secs(12))) } else { campaign };
    campaign.judge()
}

#[test]
fn pv_5_the_lock_holds_under_every_fault_and_every_fault_fires() {
    campaign("lock", Bug::None, 0..150, true).assert_pass();
}

/// PV-4: each planted bug, and the mode in which it must be found.
const PLANTED: [(Bug, bool); 23] = [
    (Bug::DeadlineFromReply, false),
    (Bug::NoDriftAllowance, false),
    (Bug::ResourceIgnoresToken, false),
    (Bug::ResourceOffByOne, false),
    (Bug::LostIgnored, false),
    (Bug::RenewUnknownAsOk, false),
    (Bug::RenewFromReply, false),
    (Bug::UnknownAsGrant, false),
    (Bug::HeldAsGrant, false),
    (Bug::BreaksOnRelease, false),
    (Bug::SharedOpId, false),
    (Bug::ReadsBeforeLock, false),
    (Bug::FailedWriteAsOk, false),
    (Bug::RepeatsWrite, false),
    (Bug::UnknownAsFail, false),
    (Bug::OwnTokens, false),
    (Bug::Spins, false),
    (Bug::HintOnly, true),
    (Bug::NeverAsksAgain, true),
    (Bug::GivesUp, true),
    (Bug::KeepsForTenMinutes, true),
    (Bug::NoDeadlineAndNoFence, false),
    (Bug::WallClockDeadline, false),
];

/// Seeds within which every planted bug must be found.
const WITHIN: u64 = 1_000;

#[test]
fn pv_4_every_bug_planted_in_the_lock_is_found() {
    let mut missed = Vec::new();
    for (bug, live) in PLANTED {
        let report = campaign("lock-planted", bug, 0..WITHIN, live);
        match report.failures.first() {
            Some(f) => {
                println!("{bug:?}: found with seed {}: {}", f.seed, first_line(&f.verdict.to_string()))
            }
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found within {WITHIN} seeds: {missed:?}");
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
