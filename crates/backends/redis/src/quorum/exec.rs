//! Rounds over all servers: everybody is asked at once, a majority decides, the rest is heard in the
//! background.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{Join, Ready, join, ready};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use mainstay_store::lease::{AcquireRequest, Acquired, Released, Renewed, Since};
use mainstay_store::{Error, ErrorKind, Outcome, Result};
use redis::Cmd;

use super::debts::Debt;
use super::state::{Round, Step, Vote};
use super::{DRIFT_DIVISOR, DRIFT_FLOOR, RedisQuorum, Redlock};
use crate::answer::{self, Asked, Kept};
use crate::check::millis;
use crate::keys::Keys;
use crate::node::{Purpose, locked};
use crate::ops::{Op, Open};
use crate::release::found_all;
use crate::scripts::{Call, USUAL};
use crate::store::{acquire_keys, mark, release_args, renew_args, required};

/// Between two tries to give leases back on a server that did not answer.
const RELEASE_PAUSE: Duration = Duration::from_millis(200);

/// The servers that have not answered yet, each with its place.
type Pending<F> = FuturesUnordered<Join<Ready<usize>, F>>;

/// An acquisition as every server is asked for it.
struct Asking {
    request: AcquireRequest,
    keys: Arc<[Keys]>,
    call: Call,
}

/// Why a server did not grant.
enum Why {
    Failed(Error),
    Refused(Asked),
}

/// Who stands in the way on some of the servers.
struct Seen<'a> {
    count: usize,
    by: &'a str,
    remaining: Option<Duration>,
    since: Option<Since>,
}

impl RedisQuorum {
    /// Asks every server at once.
    pub(super) fn all<F: Future>(&self, ask: impl Fn(Self, usize) -> F) -> Pending<F> {
        (0..self.0.nodes.len()).map(|at| join(ready(at), ask(self.clone(), at))).collect()
    }

    /// Goes on in the background, counted.
    fn behind(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.0.background.fetch_add(1, Ordering::AcqRel);
        let own = self.clone();
        self.0.rt.spawn(name, async move {
            work.await;
            own.0.background.fetch_sub(1, Ordering::AcqRel);
        });
    }

    /// Hears those that had not answered when the majority had decided.
    pub(super) fn drain<F>(&self, mut pending: FuturesUnordered<F>)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        if !pending.is_empty() {
            self.behind("redis-stragglers", async move { while pending.next().await.is_some() {} });
        }
    }

    async fn ask(self, at: usize, asking: Arc<Asking>) -> Result<Asked> {
        let node = &self.0.nodes[at];
        let (op, keys, life) = (asking.request.op_id.as_str(), &asking.keys, node.life());
        let again = || self.0.ops.repeats(op, at);
        match node.run_if(&asking.call, Purpose::Grant, self.patience(asking.request.ttl), again).await {
            Ok(reply) => {
                if !reply.doubt {
                    self.0.ops.settled(op, at);
                }
                let asked = answer::asked(node.name(), keys, reply.value);
                if matches!(asked, Ok(Asked::Granted(_))) {
                    self.0.ops.holds(op, at, life);
                }
                asked
            }
            Err(failure) => {
                if !failure.doubt {
                    self.0.ops.settled(op, at);
                }
                Err(failure.error)
            }
        }
    }

    async fn raise(
        self,
        at: usize,
        op: String,
        keys: Arc<[Keys]>,
        to: Vec<u64>,
        limit: Duration,
    ) -> Result<bool> {
        let node = &self.0.nodes[at];
        let fill = |cmd: &mut Cmd| {
            cmd.arg(2 * keys.len());
            for key in keys.iter() {
                cmd.arg(&key.lock).arg(key.fence());
            }
            cmd.arg(&op);
            for counter in &to {
                cmd.arg(counter);
            }
        };
        let reply = node.eval(&node.scripts().raise, Purpose::Other, limit, fill).await;
        Ok(answer::count(node.name(), reply.map_err(|f| f.error)?.value)? == 1)
    }

    /// Written once for all servers.
    fn asking(&self, request: &AcquireRequest, keys: &[Keys], required: &[(Keys, String)]) -> Call {
        let op = request.op_id.as_str();
        self.0.nodes[0].scripts().acquire.call(USUAL, |cmd| {
            acquire_keys(cmd, op, keys, required);
            cmd.arg(op).arg(millis(request.ttl)).arg("quorum").arg(keys.len());
            cmd.arg(answer::about(&request.owner, &request.note, Some(self.0.rt.clock().wall())));
            for (_, counter) in required {
                cmd.arg(counter);
            }
        })
    }

    pub(super) async fn grant(&self, request: AcquireRequest) -> Result<Acquired> {
        let keys = self.check(&request)?;
        let required = required(&self.0.options, &request)?;
        let sent = self.0.rt.clock().now();
        let Some(earlier) = self.0.ops.asked(&request.op_id, &keys, request.ttl, request.share, sent) else {
            let text = format!("op id `{:.8}..` already stands for other names", request.op_id);
            return Err(Error::new(ErrorKind::ApiMisuse, text));
        };
        let known = earlier.iter().filter_map(|g| answer::counter(self.0.options.epoch, g.token)).collect();
        let call = self.asking(&request, &keys, &required);
        let asking = Arc::new(Asking { request, keys, call });
        let drift = asking.request.ttl / DRIFT_DIVISOR + DRIFT_FLOOR;
        let deadline = sent.saturating_add(asking.request.ttl.saturating_sub(drift));
        let mut round = Round::new(self.0.nodes.len(), self.0.fenced).again(known);
        let mut pending = self.all(|own, at| own.ask(at, Arc::clone(&asking)));
        let mut step = Step::Wait;
        // Nobody is waited for once it is decided.
        while step == Step::Wait {
            let Some((at, answer)) = pending.next().await else { break };
            step = round.vote(at, vote(answer));
        }
        if let Step::Raise(behind, to) = step {
            step = self.lift(&asking, &mut round, &behind, &to).await;
        }
        let now = self.0.rt.clock().now();
        match step {
            Step::Won(counters) if now < deadline => {
                self.follow(&asking, round, pending);
                let grants = answer::grants(&asking.request, self.0.options.epoch, &counters);
                self.0.ops.granted(&asking.request.op_id, &grants);
                Ok(Acquired::Granted(grants))
            }
            step => {
                // Where a majority granted in vain nobody is in the way: all are heard, to say what is left.
                let in_vain = round.grants() >= self.needed();
                while in_vain || !self.is_clear(&round) {
                    let Some((at, answer)) = pending.next().await else { break };
                    round.vote(at, vote(answer));
                }
                self.withdraw(&asking.request.op_id, &round).await;
                // Who has answered meanwhile is in no doubt any more.
                while let Some((at, answer)) = pending.next().now_or_never().flatten() {
                    round.vote(at, vote(answer));
                }
                self.drain(pending);
                if matches!(step, Step::Won(_)) {
                    let text = "a majority granted, so late that the lease was over; it is given back";
                    let error = Error::new(ErrorKind::Unavailable, text);
                    return Err(error.with_outcome(self.left_by(&asking.request.op_id)));
                }
                self.refusal(&asking.request.op_id, round)
            }
        }
    }

    /// The second phase.
    async fn lift(&self, asking: &Asking, round: &mut Round<Why>, behind: &[usize], to: &[u64]) -> Step {
        let one = |at: &usize| {
            let (op, keys) = (asking.request.op_id.clone(), Arc::clone(&asking.keys));
            self.clone().raise(*at, op, keys, to.to_vec(), self.patience(asking.request.ttl))
        };
        let mut pending: FuturesUnordered<_> = behind.iter().map(one).collect();
        let mut step = Step::Wait;
        while step == Step::Wait {
            let Some(lifted) = pending.next().await else { break };
            step = round.raised(lifted.unwrap_or(false));
        }
        self.drain(pending);
        step
    }

    /// Won: those that answer later belong to the lease, and are lifted so that the next round finds them
    /// equal.
    fn follow<F>(&self, asking: &Arc<Asking>, mut round: Round<Why>, mut pending: Pending<F>)
    where
        F: Future<Output = Result<Asked>> + Send + 'static,
    {
        if pending.is_empty() {
            return;
        }
        let (own, asking) = (self.clone(), Arc::clone(asking));
        self.behind("redis-stragglers", async move {
            while let Some((at, answer)) = pending.next().await {
                round.vote(at, vote(answer));
                if let Some(to) = round.straggler(at).filter(|_| own.0.fenced) {
                    let (op, keys) = (asking.request.op_id.clone(), Arc::clone(&asking.keys));
                    // Best effort: it saves the next round its second phase.
                    let patience = own.patience(asking.request.ttl);
                    let _ = own.clone().raise(at, op, keys, to.to_vec(), patience).await;
                }
            }
        });
    }

    /// A failed round gives back what it got, so that it does not stand in anybody's way, its own next round
    /// included. No mark is left: the same op may ask again.
    async fn withdraw(&self, op_id: &str, round: &Round<Why>) {
        let Some(op) = self.0.ops.get(op_id) else { return };
        // What was granted before and is asked for again in vain may still be held.
        if !op.grants.is_empty() || (round.grants() == 0 && !op.in_doubt()) {
            return;
        }
        let call = self.releasing(op_id, &op, 0);
        let op = Arc::new(op);
        let mut pending = self
            .all(|own, at| own.release_on(at, op_id.to_owned(), Arc::clone(&op), (Arc::clone(&call), false)));
        let mut heard = 0;
        while heard < self.needed() {
            let Some((_, answer)) = pending.next().await else { break };
            heard += usize::from(answer.is_ok());
        }
        self.drain(pending);
    }

    /// Whether it can be said why nothing was granted: others hold it, or too few answer.
    fn is_clear(&self, round: &Round<Why>) -> bool {
        let held = round.refusals().filter(|w| matches!(w, Why::Refused(_))).count();
        held > self.0.nodes.len() - self.needed() || held + round.grants() >= self.needed()
    }

    /// What is left of an acquisition that granted nothing; forgotten if nothing can be.
    fn left_by(&self, op_id: &str) -> Outcome {
        self.0.ops.refused(op_id);
        let doubt = self.0.ops.get(op_id).is_some_and(|op| op.in_doubt());
        if doubt { Outcome::Unknown } else { Outcome::NotApplied }
    }

    /// Held by others, or not to be had.
    fn refusal(&self, op_id: &str, round: Round<Why>) -> Result<Acquired> {
        let outcome = self.left_by(op_id);
        let clear = self.is_clear(&round);
        let mut holders: BTreeMap<&[u8], Seen<'_>> = BTreeMap::new();
        let (mut answered, mut cancelled) = (round.grants(), false);
        for why in round.refusals() {
            match why {
                Why::Failed(error) if error.kind() != ErrorKind::Unavailable => {
                    let text = format!("a redis of the quorum failed: {error}");
                    return Err(Error::new(error.kind(), text).with_outcome(error.outcome()));
                }
                Why::Failed(_) => continue,
                Why::Refused(Asked::Held { value, by, remaining, since }) => {
                    let first = Seen { count: 0, by, remaining: *remaining, since: *since };
                    let seen = holders.entry(value).or_insert(first);
                    seen.count += 1;
                    // Free when the last one is; without an expiry nobody knows.
                    seen.remaining = seen.remaining.zip(*remaining).map(|(a, b)| a.max(b));
                }
                Why::Refused(_) => cancelled = true,
            }
            answered += 1;
        }
        match holders.into_values().max_by_key(|seen| seen.count) {
            Some(Seen { count, by, remaining, since }) if clear => {
                // Split: nobody holds it, and those who tried give back what they got.
                let split = count < self.needed();
                let pause = || Redlock::default().pause(&**self.0.rt.rng());
                let (remaining, since) = if split { (Some(pause()), None) } else { (remaining, since) };
                Ok(Acquired::Held { by: by.to_owned(), remaining, since })
            }
            _ if cancelled => Asked::Cancelled.refusal(op_id),
            _ => {
                let failed = round.refusals().find_map(|w| match w {
                    Why::Failed(error) => Some(error.to_string()),
                    Why::Refused(_) => None,
                });
                let cause = failed.map(|text| Error::new(ErrorKind::Unavailable, text));
                Err(self.unreachable(answered, cause).with_outcome(outcome))
            }
        }
    }

    pub(super) async fn extend(&self, op_id: &str) -> Result<Renewed> {
        let Some(op) = self.0.ops.get(op_id).filter(|op| !op.grants.is_empty()) else {
            return Ok(Renewed::Lost);
        };
        let (sent, limit, ttl) = (self.0.rt.clock().now(), self.patience(op.ttl), millis(op.ttl));
        let shared = Arc::new(op);
        let mut pending = self.all(|own, at| {
            let (op, id) = (Arc::clone(&shared), op_id.to_owned());
            async move {
                let node = &own.0.nodes[at];
                let life = node.life();
                let fill = |cmd: &mut Cmd| renew_args(cmd, &id, &op.keys, ttl);
                let reply = node.eval(&node.scripts().renew, Purpose::Other, limit, fill).await;
                let kept = answer::renewed(node.name(), reply.map_err(|f| f.error)?.value)?;
                if let Kept::At(seconds, micros) = kept {
                    node.told_time(sent, seconds, micros);
                    own.0.ops.holds(&id, at, life);
                }
                Ok(kept)
            }
        });
        let (mut yes, mut no, mut ended, mut last) = (0, 0, Renewed::Lost, None);
        while let Some((_, answer)) = pending.next().await {
            match answer {
                Ok(Kept::At(..)) => yes += 1,
                Ok(Kept::Gone) => no += 1,
                Ok(Kept::Broken) => (no, ended) = (no + 1, Renewed::Broken),
                Err(error) => last = Some(error),
            }
            if yes >= self.needed() {
                self.drain(pending);
                self.0.ops.renewed(op_id, sent);
                return Ok(Renewed::Renewed(shared.grants.clone()));
            }
            if no > self.0.nodes.len() - self.needed() {
                self.drain(pending);
                return Ok(ended);
            }
        }
        Err(self.unreachable(yes + no, last).with_outcome(Outcome::Unknown))
    }

    /// Written once for all servers that are told the same.
    fn releasing(&self, op_id: &str, op: &Op, mark: i64) -> Arc<Call> {
        let fill = |cmd: &mut Cmd| release_args(cmd, op_id, &op.keys, mark);
        Arc::new(self.0.nodes[0].scripts().release.call(USUAL, fill))
    }

    /// Gives back on one server, as `call` says. Where it `may_precede` an acquisition that is still on its way, another call
    /// refuses that one.
    async fn release_on(
        self,
        at: usize,
        op_id: String,
        op: Arc<Op>,
        (call, may_precede): (Arc<Call>, bool),
    ) -> Result<bool> {
        let node = &self.0.nodes[at];
        // One that is forgotten by now was asked for nobody knows how often since.
        let forgotten = || if op.open[at] > 0 { Open::Several } else { Open::None };
        let open = self.0.ops.releases(&op_id, at).unwrap_or_else(forgotten);
        let mark = i64::try_from(mark(&op, self.patience(op.ttl))).unwrap_or(i64::MAX);
        let call = match open {
            Open::Once if may_precede => self.releasing(&op_id, &op, -mark),
            Open::Several if may_precede => self.releasing(&op_id, &op, mark),
            _ => call,
        };
        let reply = node.run(&call, Purpose::Other, self.patience(op.ttl)).await;
        found_all((&self.0.ops, &op_id), &op, (node, at), reply).await
    }

    /// Tries a give-back again until the server answers or the lease has ended there by itself.
    fn owe(&self, at: usize, debt: Debt) {
        if locked(&self.0.debts[at]).owe(debt) {
            let payer = Payer { own: self.clone(), at, tries: true };
            self.behind("redis-debts", payer.run());
        }
    }

    pub(super) async fn give_back(&self, op_id: &str) -> Result<Released> {
        let Some(op) = self.0.ops.get(op_id).map(Arc::new) else { return Ok(Released::AlreadyGone) };
        let until = self.0.rt.clock().now().saturating_add(op.ttl);
        let plain = self.releasing(op_id, &op, 0);
        let mut pending = self
            .all(|own, at| own.release_on(at, op_id.to_owned(), Arc::clone(&op), (Arc::clone(&plain), true)));
        let (mut clean, mut gone, mut failed, mut last) = (0, 0, Vec::new(), None);
        let mut answer = None;
        while let Some((at, freed)) = pending.next().await {
            match freed {
                Ok(true) => clean += 1,
                Ok(false) => gone += 1,
                Err(error) => {
                    failed.push(at);
                    last = Some(error);
                }
            }
            if clean >= self.needed() {
                answer = Some(Released::Clean);
            } else if gone > self.0.nodes.len() - self.needed() {
                answer = Some(Released::AlreadyGone);
            }
            if answer.is_some() {
                break;
            }
        }
        let Some(answer) = answer else {
            return Err(self.unreachable(clean + gone, last).with_outcome(Outcome::Unknown));
        };
        self.0.ops.released(op_id);
        let (own, id) = (self.clone(), op_id.to_owned());
        if !pending.is_empty() || !failed.is_empty() {
            self.behind("redis-stragglers", async move {
                while let Some((at, freed)) = pending.next().await {
                    if freed.is_err() {
                        failed.push(at);
                    }
                }
                for at in failed {
                    own.owe(at, Debt { op_id: id.clone(), op: Arc::clone(&op), until });
                }
            });
        }
        Ok(answer)
    }
}

/// Tries what a server has not answered for.
struct Payer {
    own: RedisQuorum,
    at: usize,
    /// Whether it does so still.
    tries: bool,
}

impl Drop for Payer {
    fn drop(&mut self) {
        if self.tries {
            locked(&self.own.0.debts[self.at]).abandoned();
        }
    }
}

impl Payer {
    async fn run(mut self) {
        let (own, at) = (self.own.clone(), self.at);
        let clock = own.0.rt.clock();
        loop {
            clock.sleep(RELEASE_PAUSE).await;
            // One answer says that the others will be answered, too.
            loop {
                let next = locked(&own.0.debts[at]).next(clock.now());
                let Some(debt) = next else {
                    self.tries = false;
                    return;
                };
                let op = &debt.op;
                let call = own.releasing(&debt.op_id, op, 0);
                let paid = own.clone().release_on(at, debt.op_id.clone(), Arc::clone(op), (call, true));
                if paid.await.is_err() {
                    locked(&own.0.debts[at]).later(debt);
                    break;
                }
            }
        }
    }
}

fn vote(answer: Result<Asked>) -> Vote<Why> {
    match answer {
        Ok(Asked::Granted(counters)) => Vote::Granted(counters),
        Ok(other) => Vote::Refused(Why::Refused(other)),
        Err(error) => Vote::Refused(Why::Failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use mainstay_clock::Runtime;
    use mainstay_store::lease::AcquireRequest;

    use super::*;

    /// Each is moved to its place before it is polled, once per server: what connects a server is no part of them.
    #[tokio::test]
    async fn what_is_asked_of_every_server_is_small() {
        const TTL: Duration = Duration::from_secs(1);
        let urls = ["redis://127.0.0.1:1", "redis://127.0.0.1:2", "redis://127.0.0.1:3"];
        let store = RedisQuorum::builder(urls).trust_restarts().build(&Runtime::system()).unwrap();
        let request = AcquireRequest::exclusive("a", "n1", "op", TTL);
        let keys = store.check(&request).unwrap();
        assert!(store.0.ops.asked("op", &keys, TTL, request.share, store.0.rt.clock().now()).is_some());
        let op = Arc::new(store.0.ops.get("op").unwrap());
        let call = store.asking(&request, &keys, &[]);
        let asking = Arc::new(Asking { request, keys, call });
        let release = store.releasing("op", &op, 0);
        let sizes = [
            size_of_val(&store.clone().ask(0, asking)),
            size_of_val(&store.clone().release_on(0, "op".to_owned(), op, (release, true))),
        ];
        assert!(sizes.iter().all(|size| *size <= 2_048), "{sizes:?}");
    }
}
