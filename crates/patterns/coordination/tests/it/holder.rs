//! A process that takes a lock, writes to a resource under it, and says what it did.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::{Clock, Deadline, Rng};
use mainstay_coordination::{Coordinator, Error, Guard, Lock};
use mainstay_sim::history::{Effect, Process};
use mainstay_sim::sim::{Node, World};
use mainstay_store::{ErrorKind, LeaseStore};

pub(crate) const TTL: Duration = Duration::from_secs(1);
pub(crate) const KEY: &str = "account";

/// Which rules are in force; each can be left out, to show that the campaign sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// The resource refuses a smaller token than it has seen.
    pub(crate) fenced: bool,
    /// Work runs under the guard, which stops it.
    pub(crate) stops: bool,
    /// A server of a majority that lost its data stays silent for a whole ttl.
    pub(crate) silent: bool,
    /// Processes may stand still longer than the margin: what counts then is when work last ran.
    pub(crate) paused: bool,
}

impl Rules {
    pub(crate) const ALL: Self = Self { fenced: true, stops: true, silent: true, paused: false };
}

/// A counter that refuses smaller tokens, and repeats nothing.
#[derive(Debug, Default)]
pub(crate) struct Resource {
    token: u64,
    pub(crate) value: i64,
    seen: BTreeSet<String>,
}

pub(crate) struct Holder {
    node: Node,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    process: Process,
    via: String,
    lock: Lock,
    rules: Rules,
    resource: Arc<Mutex<Resource>>,
}

/// Work under way; says when it ended, also when it is dropped.
struct Working<'h> {
    holder: &'h Holder,
    token: u64,
    id: String,
    last_ran: u64,
}

impl Working<'_> {
    fn runs(&mut self) {
        self.last_ran = self.holder.node.world().recorder().stamp();
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let end = self.holder.process.begin("release", KEY).with(|op| {
            op.epoch = Some(self.token);
            op.op_id = Some(self.id.as_str().into());
            if self.holder.rules.paused {
                // A process that stands still drops its work late, and does nothing with it until then.
                op.invoke_ns = self.last_ran;
            }
        });
        end.ok();
    }
}

impl Holder {
    pub(crate) fn new(
        node: Node,
        store: Arc<dyn LeaseStore>,
        rules: Rules,
        resource: Arc<Mutex<Resource>>,
    ) -> Self {
        let locks = Coordinator::builder(store, node.runtime()).namespace("sim").owner(node.name());
        let lock = locks.build().unwrap().mutex(KEY).ttl(TTL).build().unwrap();
        let (clock, rng, process, via) = (node.clock(), node.rng(), node.process(), node.via());
        Self { node, clock, rng, process, via, lock, rules, resource }
    }

    pub(crate) async fn run(self) {
        for turn in 0_u64.. {
            let id = format!("{}-{}-{turn}", self.node.name(), self.node.incarnation());
            if let Some(guard) = self.acquire(&id).await {
                self.hold(guard, id).await;
            }
            self.clock.sleep(Duration::from_millis(5 + self.rng.below(100))).await;
        }
    }

    async fn acquire(&self, id: &str) -> Option<Guard> {
        let call = self.process.begin("acquire", KEY).via(&self.via);
        let limit = Deadline::after(self.clock.now(), Duration::from_millis(300 + self.rng.below(2_000)));
        let mut asked = pin!(self.lock.acquire(limit));
        let answer = if self.rng.below(8) == 0 {
            // A caller that loses patience.
            let patience = self.clock.sleep(Duration::from_millis(self.rng.below(400)));
            tokio::select! {
                biased;
                answer = &mut asked => Some(answer),
                () = patience => None,
            }
        } else {
            Some(asked.await)
        };
        let Some(answer) = answer else {
            mainstay_sim::sometimes!(self.node.world(), "a dropped acquisition");
            return None;
        };
        match answer {
            Ok(guard) => {
                let token = guard.token().get();
                call.with(|op| (op.epoch, op.op_id) = (Some(token), Some(id.into()))).ok();
                Some(guard)
            }
            // Whatever was granted is given back by the library.
            Err(_) => {
                call.fail();
                None
            }
        }
    }

    async fn hold(&self, guard: Guard, id: String) {
        let token = guard.token().get();
        let deadline = guard.deadline();
        let last_ran = self.node.world().recorder().stamp();
        let work = self.work(Working { holder: self, token, id, last_ran });
        if self.rules.stops {
            let stopped = matches!(guard.run(|_| work).await, Err(error) if is_lost(&error));
            if stopped {
                mainstay_sim::sometimes!(self.node.world(), "a stopped work");
            }
        } else {
            work.await;
        }
        if guard.deadline().instant() > deadline.instant() {
            mainstay_sim::sometimes!(self.node.world(), "a renewal");
        }
        match self.rng.below(4) {
            0 => drop(guard),
            // It ends with the lease or with the process, whatever the answer is.
            _ => drop(guard.release().await),
        }
    }

    async fn work(&self, mut working: Working<'_>) {
        let (token, id) = (working.token, working.id.clone());
        let mut steps = pin!(self.steps(token, &id));
        poll_fn(|cx| {
            working.runs();
            steps.as_mut().poll(cx)
        })
        .await;
    }

    async fn steps(&self, token: u64, id: &str) {
        let Ok(mut value) = self.ask(token, None).await else { return };
        for write in 0..1 + self.rng.below(3) {
            self.clock.sleep(Duration::from_millis(20 + self.rng.below(500))).await;
            value += 1;
            let call = self.process.begin("add", KEY).via(&self.via);
            match self.ask(token, Some((format!("{id}/{write}"), value))).await {
                Ok(_) => call.ok(),
                Err(error) => return call.error(&error, true),
            }
        }
    }

    /// Reads, or writes the value under its key: both announce the token.
    async fn ask(&self, token: u64, write: Option<(String, i64)>) -> mainstay_store::Result<i64> {
        let (resource, world, fenced) =
            (Arc::clone(&self.resource), self.node.world().clone(), self.rules.fenced);
        self.node
            .call(move || {
                let done = apply(&resource, &world, fenced, token, write.as_ref());
                Box::pin(async move { done })
            })
            .await
    }
}

fn is_lost(error: &Error) -> bool {
    matches!(error.kind(), mainstay_coordination::ErrorKind::Lost(_))
}

fn apply(
    resource: &Mutex<Resource>,
    world: &World,
    fenced: bool,
    token: u64,
    write: Option<&(String, i64)>,
) -> mainstay_store::Result<i64> {
    let mut resource = resource.lock().unwrap();
    let accepted = !fenced || token >= resource.token;
    if let Some((key, _)) = write {
        if accepted && !resource.seen.insert(key.clone()) {
            return Ok(resource.value);
        }
        let mut effect = Effect::new("counter", KEY, key, 1, 0);
        (effect.epoch, effect.accepted) = (Some(token), accepted);
        world.effect(effect);
    }
    if !accepted {
        // Late, and refused: what the fence is for. The state must be reached in every campaign.
        mainstay_sim::sometimes!(world, "a refused write");
        return Err(mainstay_store::Error::new(ErrorKind::ApiMisuse, "a larger token was seen"));
    }
    resource.token = resource.token.max(token);
    if let Some((_, value)) = write {
        resource.value = *value;
    }
    Ok(resource.value)
}
