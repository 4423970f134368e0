//! Leases on one Redis.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_store::lease::{
    AcquireRequest, Acquired, Fencing, Guarantees, LeaseInfo, Line, Released, Renewed, Server, Share,
    Transferred, WATCHED, check_limit, mismatch,
};
use mainstay_store::{BoxFuture, Error, ErrorKind, FencingToken, LeaseStore, Outcome, Result};
use redis::{Cmd, ToRedisArgs};

use crate::answer::{self, Asked, Kept, SHARED};
use crate::check::{check, millis};
use crate::config::{Builder, Options};
use crate::crowd::{Crowd, Kind, Way, Words, may_join};
use crate::health::Health;
use crate::keys::Keys;
use crate::node::ears::Known;
use crate::node::{Failure, Node, Purpose, Reply};
use crate::ops::{Op, Ops};
use crate::release::found_all;
use crate::scan;

/// A [`LeaseStore`] on one Redis (6.0 or later, no cluster node). Clones share the connection. Callers share it
/// too: from the fifth at once they stand in line, and up to 32 go to the server as one call, each answered for
/// itself. One that is dropped while it stands in line has sent nothing.
///
/// Guarantees: as [`LeaseStore`], with [`Fencing::WhileStateSurvives`]: the counter behind tokens never
/// expires and never falls behind the server's clock, so tokens also grow over a lost data set as long as
/// that clock did not go back. Every decision is one script; only the server's time is used. A request whose
/// answer was lost can be repeated, and a release leaves a mark that refuses what is still on its way.
/// Whoever stands in line is overtaken by nobody who comes through this store, whatever the share; a place ends one ttl
/// after it was last asked for. Several names are tried, never put in line.
/// Existing clients of the string family ([`KeyProfile`](crate::KeyProfile)) and this store exclude each
/// other on the same key.
///
/// Not guaranteed: that clients of other make, who know no line, overtake nobody; that a lease survives a failover, a
/// restart without an append-only file or an eviction; that it lasts as long as promised when the server's clock jumps.
/// Check tokens at the resource ([`fence`](crate::fence)). Only what was acquired through this value or a clone can be renewed and
/// released. Leases of clients of other make are seen by [`inspect`](LeaseStore::inspect), not by
/// [`list`](LeaseStore::list), which walks the whole key space.
///
/// ```no_run
/// use std::time::Duration;
/// use mainstay_clock::Runtime;
/// use mainstay_redis::RedisLeases;
/// use mainstay_store::LeaseStore;
/// use mainstay_store::lease::{AcquireRequest, Acquired};
///
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let store = RedisLeases::builder("redis://127.0.0.1/").build(&Runtime::system())?;
/// let ask = AcquireRequest::exclusive("billing/nightly", "host-7", "op-1", Duration::from_secs(5));
/// assert!(matches!(store.acquire(ask).await?, Acquired::Granted(_)));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct RedisLeases(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: Node,
    options: Options,
    ops: Ops,
    crowd: Crowd,
}

impl RedisLeases {
    /// A store on the server at `url`: `redis://[user:password@]host:port/[db]`, or `unix://`.
    pub fn builder(url: &str) -> Builder {
        Builder::new(url)
    }

    /// With the defaults.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new(url: &str, rt: &Runtime) -> std::result::Result<Self, crate::ConfigError> {
        Self::builder(url).build(rt)
    }

    pub(crate) fn on(node: Node, options: Options, rt: &Runtime) -> Self {
        let crowd = Crowd::new(node.clone(), rt, options.request_timeout);
        Self(Arc::new(Shared { node, options, ops: Ops::new(1), crowd }))
    }

    /// Connects, and says what is wrong with the server if it must not be used.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when it cannot be reached or is a replica, [`ErrorKind::Unsupported`] when
    /// it is too old, a cluster node, or does not let us in.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing.
    pub async fn ready(&self) -> Result<()> {
        self.0.node.ready().await
    }

    /// What was noticed about the server.
    #[must_use]
    pub fn health(&self) -> Health {
        self.0.node.health()
    }

    fn keys(&self, names: &[String]) -> Result<Arc<[Keys]>> {
        self.0.options.all_keys(names)
    }

    pub(crate) fn node(&self) -> &Node {
        &self.0.node
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(crate) fn patience(&self) -> Duration {
        self.0.options.request_timeout
    }

    /// Alone, or with others who ask at the same time.
    async fn ask(&self, request: &AcquireRequest, keys: &Arc<[Keys]>) -> std::result::Result<Reply, Failure> {
        let plain = request.share == Share::Exclusive && request.require.is_empty() && !joins(request);
        if !plain || !may_join(keys) {
            return self.ask_alone(request, keys).await;
        }
        let words = || Words {
            keys: Arc::clone(keys),
            op: request.op_id.clone(),
            millis: millis(request.ttl),
            about: answer::about(&request.owner, &request.note, None),
        };
        match self.0.crowd.enter(Kind::Acquire, (&self.0.ops, &request.op_id), words) {
            Way::Alone(_one) => self.ask_alone(request, keys).await,
            Way::Together(waiting) => waiting.answer().await,
        }
    }

    async fn ask_alone(
        &self,
        request: &AcquireRequest,
        keys: &[Keys],
    ) -> std::result::Result<Reply, Failure> {
        let node = &self.0.node;
        let op = request.op_id.as_str();
        let (ttl, about) = (millis(request.ttl), answer::about(&request.owner, &request.note, None));
        match request.share {
            Share::Exclusive => {
                let required =
                    required(&self.0.options, request).map_err(|error| Failure { error, doubt: false })?;
                let fill = |cmd: &mut Cmd| {
                    acquire_keys(cmd, op, keys, &required);
                    let how = if joins(request) { "join" } else { "clock" };
                    cmd.arg(op).arg(ttl).arg(how).arg(keys.len()).arg(&about);
                    for (_, counter) in &required {
                        cmd.arg(counter);
                    }
                };
                node.eval(&node.scripts().acquire, Purpose::Grant, self.patience(), fill).await
            }
            Share::Shared | Share::Permit { .. } => {
                let (limit, count) = match request.share {
                    Share::Permit { limit, count } => (limit, count),
                    _ => (0, 1),
                };
                let key = &keys[0];
                let fill = |cmd: &mut Cmd| {
                    cmd.arg(8).arg(key.tombstone(op)).arg(&key.lock).arg(key.fence()).arg(key.sharers());
                    cmd.arg(key.ends()).arg(key.info()).arg(key.line()).arg(key.places());
                    cmd.arg(op).arg(ttl).arg(limit).arg(&about).arg(SHARED).arg(count);
                    cmd.arg(if joins(request) { "join" } else { "try" });
                };
                node.eval(&node.scripts().share, Purpose::Grant, self.patience(), fill).await
            }
        }
    }

    async fn grant(&self, request: AcquireRequest) -> Result<Acquired> {
        check(&request)?;
        supported(&request)?;
        let keys = self.keys(&request.names)?;
        let (ops, op) = (&self.0.ops, request.op_id.as_str());
        if ops.asked(op, &keys, request.ttl, request.share, self.0.node.clock().now()).is_none() {
            let text = format!("op id `{op:.8}..` already stands for other names");
            return Err(Error::new(ErrorKind::ApiMisuse, text));
        }
        // Dropped from here on, the request stays open: a release then leaves a tombstone, and leaves the line.
        let joins = joins(&request);
        let was_in_line = joins && ops.get(op).is_some_and(|op| op.waits);
        if joins {
            ops.waits(op, true);
        }
        let life = self.0.node.life();
        let answered = match self.ask(&request, &keys).await {
            Ok(reply) => {
                if !reply.doubt {
                    ops.settled(op, 0);
                }
                answer::asked(self.0.node.name(), &keys, reply.value)
            }
            Err(failure) => {
                if !failure.doubt {
                    ops.settled(op, 0);
                }
                Err(failure.error)
            }
        };
        match answered {
            Ok(Asked::Granted(counters)) if counters.len() == keys.len() => {
                let grants = answer::grants(&request, self.0.options.epoch, &counters);
                ops.granted(op, &grants);
                ops.holds(op, 0, life);
                Ok(Acquired::Granted(grants))
            }
            Ok(other) => {
                if joins && !matches!(other, Asked::Queued { .. }) {
                    ops.waits(op, was_in_line);
                }
                ops.refused(op);
                other.refusal(op)
            }
            Err(error) => {
                // What may still land may stand in line.
                if joins && error.outcome() == Outcome::NotApplied {
                    ops.waits(op, was_in_line);
                }
                ops.refused(op);
                Err(error)
            }
        }
    }

    async fn extend(&self, op_id: &str) -> Result<Renewed> {
        let Some(op) = self.0.ops.get(op_id).filter(|op| !op.grants.is_empty()) else {
            return Ok(Renewed::Lost);
        };
        let (node, ttl) = (&self.0.node, millis(op.ttl));
        let (sent, life) = (node.clock().now(), node.life());
        let reply = if op.share == Share::Exclusive {
            let fill = |cmd: &mut Cmd| renew_args(cmd, op_id, &op.keys, ttl);
            node.eval(&node.scripts().renew, Purpose::Other, self.patience(), fill).await
        } else {
            let key = &op.keys[0];
            let fill = |cmd: &mut Cmd| {
                cmd.arg(3).arg(&key.lock).arg(key.sharers()).arg(key.ends());
                cmd.arg(op_id).arg(ttl).arg(SHARED);
            };
            node.eval(&node.scripts().share_renew, Purpose::Other, self.patience(), fill).await
        };
        let reply = reply.map_err(|failure| failure.error)?;
        let (seconds, micros) = match answer::renewed(node.name(), reply.value)? {
            Kept::At(seconds, micros) => (seconds, micros),
            Kept::Broken => return Ok(Renewed::Broken),
            Kept::Gone => return Ok(Renewed::Lost),
        };
        node.told_time(sent, seconds, micros);
        self.0.ops.renewed(op_id, sent);
        self.0.ops.holds(op_id, 0, life);
        Ok(Renewed::Renewed(op.grants))
    }

    async fn give_back(&self, op_id: &str) -> Result<Released> {
        let Some(op) = self.0.ops.get(op_id) else { return Ok(Released::AlreadyGone) };
        let node = &self.0.node;
        let mark = if op.in_doubt() { mark(&op, self.patience()) } else { 0 };
        self.0.ops.releases(op_id, 0);
        let reply = if op.share == Share::Exclusive {
            self.free(op_id, &op.keys, mark).await
        } else {
            let key = &op.keys[0];
            let fill = |cmd: &mut Cmd| {
                cmd.arg(5).arg(key.tombstone(op_id)).arg(&key.lock).arg(key.sharers()).arg(key.ends());
                cmd.arg(key.channel()).arg(op_id).arg(mark).arg(SHARED);
            };
            node.eval(&node.scripts().share_release, Purpose::Other, self.patience(), fill).await
        };
        // A name that was broken or taken over makes the whole hold a doubtful one.
        let all = found_all((&self.0.ops, op_id), &op, (node, 0), reply).await?;
        if op.waits {
            // Behind the mark: nothing comes in between any more.
            self.step_out(op_id, &op.keys[0]).await?;
        }
        self.0.ops.released(op_id);
        Ok(if all { Released::Clean } else { Released::AlreadyGone })
    }

    async fn step_out(&self, op_id: &str, key: &Keys) -> Result<()> {
        let node = &self.0.node;
        let fill = |cmd: &mut Cmd| {
            cmd.arg(2).arg(key.line()).arg(key.places()).arg(op_id);
        };
        let reply = node.eval(&node.scripts().leave, Purpose::Other, self.patience(), fill).await;
        answer::count(node.name(), reply.map_err(|failure| failure.error)?.value).map(drop)
    }

    async fn leave_line(&self, op_id: &str) -> Result<()> {
        let Some(op) = self.0.ops.get(op_id).filter(|op| op.waits) else { return Ok(()) };
        self.step_out(op_id, &op.keys[0]).await?;
        // What may still be on its way would stand there again, until it is released.
        if !op.in_doubt() {
            self.0.ops.waits(op_id, false);
            self.0.ops.refused(op_id);
        }
        Ok(())
    }

    async fn hand_over(&self, name: &str, token: FencingToken, to: &str) -> Result<Transferred> {
        let (node, key) = (&self.0.node, self.0.options.keys(name)?);
        let Some(counter) = answer::counter(self.0.options.epoch, token) else {
            return Ok(Transferred::NoSuchCandidate);
        };
        let fill = |cmd: &mut Cmd| {
            cmd.arg(6).arg(&key.lock).arg(key.fence()).arg(key.info()).arg(key.line()).arg(key.places());
            cmd.arg(key.broken()).arg(counter).arg(to);
        };
        let reply = node.eval(&node.scripts().transfer, Purpose::Other, self.patience(), fill).await;
        match answer::count(node.name(), reply.map_err(|failure| failure.error)?.value)? {
            1 => Ok(Transferred::Moved),
            0 => Ok(Transferred::NoSuchCandidate),
            _ => Err(answer::ran_out(name)),
        }
    }

    /// Alone, or with others who free something at the same time.
    async fn free(&self, op_id: &str, keys: &Arc<[Keys]>, mark: u64) -> std::result::Result<Reply, Failure> {
        let node = &self.0.node;
        let words =
            || Words { keys: Arc::clone(keys), op: op_id.to_owned(), millis: mark, about: Vec::new() };
        let _one = if may_join(keys) {
            match self.0.crowd.enter(Kind::Release, (&self.0.ops, op_id), words) {
                Way::Alone(one) => Some(one),
                Way::Together(waiting) => return waiting.answer().await,
            }
        } else {
            None
        };
        let fill = |cmd: &mut Cmd| release_args(cmd, op_id, keys, mark);
        node.eval(&node.scripts().release, Purpose::Other, self.patience(), fill).await
    }

    async fn share_from_now(&self, op_id: &str) -> Result<bool> {
        let Some(op) = self.0.ops.get(op_id).filter(|op| !op.grants.is_empty()) else { return Ok(false) };
        let [key] = &*op.keys else {
            return Err(Error::new(ErrorKind::Unsupported, "a shared lease on Redis has one name"));
        };
        if matches!(op.share, Share::Permit { .. }) {
            return Ok(false);
        }
        let node = &self.0.node;
        let fill = |cmd: &mut Cmd| {
            cmd.arg(6).arg(&key.lock).arg(key.fence()).arg(key.sharers()).arg(key.ends()).arg(key.info());
            cmd.arg(key.channel()).arg(op_id).arg(SHARED);
        };
        let reply = node.eval(&node.scripts().downgrade, Purpose::Other, self.patience(), fill).await;
        let done = answer::count(node.name(), reply.map_err(|failure| failure.error)?.value)? == 1;
        if done {
            self.0.ops.shares(op_id);
        }
        Ok(done)
    }

    async fn give_limit(&self, name: &str, limit: u32) -> Result<()> {
        check_limit(limit)?;
        let (node, key) = (&self.0.node, self.0.options.keys(name)?);
        let fill = |cmd: &mut Cmd| {
            cmd.arg(4).arg(&key.lock).arg(key.sharers()).arg(key.places()).arg(key.channel());
            cmd.arg(limit).arg(SHARED);
        };
        let reply = node.eval(&node.scripts().resize, Purpose::Other, self.patience(), fill).await;
        match answer::count(node.name(), reply.map_err(|failure| failure.error)?.value)? {
            1 => Ok(()),
            _ => Err(mismatch(name, "is no semaphore")),
        }
    }

    async fn burn(&self, name: &str) -> Result<FencingToken> {
        let (node, key) = (&self.0.node, self.0.options.keys(name)?);
        let fill = |cmd: &mut Cmd| break_args(cmd, &key, "burn");
        let reply = node.eval(&node.scripts().break_lease, Purpose::Other, self.patience(), fill).await;
        let reply = reply.map_err(|failure| failure.error)?;
        match answer::asked(node.name(), std::slice::from_ref(&key), reply.value)? {
            Asked::Granted(counters) => {
                Ok(answer::token(self.0.options.epoch, counters.first().copied().unwrap_or(0)))
            }
            Asked::Held { by, .. } => {
                let text = format!("`{name}` is held by {by}, which only its own client can read and end");
                Err(Error::new(ErrorKind::Unsupported, text))
            }
            Asked::Cancelled | Asked::Queued { .. } => {
                Err(Error::new(ErrorKind::Internal, "a break neither waits nor is it cancelled"))
            }
        }
    }

    async fn write(&self, name: &str, token: FencingToken, value: &[u8]) -> Result<bool> {
        let (node, key) = (&self.0.node, self.0.options.keys(name)?);
        let Some(counter) = answer::counter(self.0.options.epoch, token) else { return Ok(false) };
        let fill = |cmd: &mut Cmd| annotate_args(cmd, &key, counter, value);
        let reply = node.eval(&node.scripts().annotate, Purpose::Other, self.patience(), fill).await;
        Ok(answer::count(node.name(), reply.map_err(|failure| failure.error)?.value)? == 1)
    }

    async fn look(&self, name: &str) -> Result<LeaseInfo> {
        look(&self.0.node, &self.0.options, name, self.patience()).await.map(|i| i.info)
    }
}

/// What one server knows of a name.
pub(crate) async fn look(
    node: &Node,
    options: &Options,
    name: &str,
    patience: Duration,
) -> Result<answer::Inspected> {
    let key = options.keys(name)?;
    let fill = |cmd: &mut Cmd| {
        cmd.arg(6).arg(&key.lock).arg(key.fence()).arg(key.info()).arg(key.sharers()).arg(key.ends());
        cmd.arg(key.places());
    };
    let reply = node.eval(&node.scripts().inspect, Purpose::Other, patience, fill).await;
    // Looking changes nothing, so nothing is in doubt.
    let reply = reply.map_err(|failure| failure.error.with_outcome(Outcome::NotApplied))?;
    answer::inspected(node.name(), options.epoch, name, reply.value)
}

/// Keys and counters that a request requires.
pub(crate) fn required(options: &Options, request: &AcquireRequest) -> Result<Vec<(Keys, String)>> {
    let one = |(name, token): &(String, FencingToken)| {
        // A token of another epoch is nobody's here.
        let counter = answer::counter(options.epoch, *token).map_or("none".to_owned(), |c| c.to_string());
        Ok((options.keys(name)?, counter))
    };
    request.require.iter().map(one).collect()
}

/// How long a release refuses its own acquisition, in milliseconds: until nothing of it can be on its way.
pub(crate) fn mark(op: &Op, patience: Duration) -> u64 {
    millis(op.ttl.saturating_add(patience.saturating_mul(2)))
}

pub(crate) fn acquire_keys(cmd: &mut Cmd, op: &str, keys: &[Keys], required: &[(Keys, String)]) {
    cmd.arg(1 + 6 * keys.len() + 2 * required.len());
    keys[0].put_tombstone(cmd, op);
    for key in keys {
        key.put_acquired(cmd);
    }
    for (key, _) in required {
        cmd.arg(&key.lock).arg(key.fence());
    }
}

pub(crate) fn renew_args(cmd: &mut Cmd, op: &str, keys: &[Keys], ttl: u64) {
    cmd.arg(3 * keys.len());
    for key in keys {
        cmd.arg(&key.lock).arg(key.info()).arg(key.broken());
    }
    cmd.arg(op).arg(ttl);
}

pub(crate) fn release_args(cmd: &mut Cmd, op: &str, keys: &[Keys], mark: impl ToRedisArgs) {
    cmd.arg(1 + 3 * keys.len());
    keys[0].put_tombstone(cmd, op);
    for key in keys {
        key.put_released(cmd);
    }
    cmd.arg(op).arg(mark);
}

pub(crate) fn break_args(cmd: &mut Cmd, key: &Keys, how: &str) {
    cmd.arg(7).arg(&key.lock).arg(key.fence()).arg(key.info()).arg(key.sharers()).arg(key.ends());
    cmd.arg(key.channel()).arg(key.broken()).arg(how);
}

pub(crate) fn annotate_args(cmd: &mut Cmd, key: &Keys, counter: u64, value: &[u8]) {
    cmd.arg(3).arg(&key.lock).arg(key.fence()).arg(key.info()).arg(counter).arg(value);
}

/// Whether it stands in line: who stood first in one line and last in another would hold up both, so several names are
/// tried.
fn joins(request: &AcquireRequest) -> bool {
    request.line == Line::Join && request.names.len() == 1
}

fn supported(request: &AcquireRequest) -> Result<()> {
    let refuse = |text: &str| Err(Error::new(ErrorKind::Unsupported, text));
    if request.share == Share::Exclusive {
        return Ok(());
    }
    if request.names.len() > 1 || !request.require.is_empty() {
        return refuse("a shared lease on Redis has one name and no requirement");
    }
    Ok(())
}

impl LeaseStore for RedisLeases {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        Box::pin(self.grant(request))
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        let op = op_id.to_owned();
        Box::pin(async move { self.extend(&op).await })
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        let op = op_id.to_owned();
        Box::pin(async move { self.give_back(&op).await })
    }

    fn downgrade(&self, op_id: &str) -> BoxFuture<'_, Result<bool>> {
        let op = op_id.to_owned();
        Box::pin(async move { self.share_from_now(&op).await })
    }

    fn resize(&self, name: &str, limit: u32) -> BoxFuture<'_, Result<()>> {
        let name = name.to_owned();
        Box::pin(async move { self.give_limit(&name, limit).await })
    }

    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        let op = op_id.to_owned();
        Box::pin(async move { self.leave_line(&op).await })
    }

    fn transfer(&self, name: &str, token: FencingToken, to: &str) -> BoxFuture<'_, Result<Transferred>> {
        let (name, to) = (name.to_owned(), to.to_owned());
        Box::pin(async move { self.hand_over(&name, token, &to).await })
    }

    fn annotate(&self, name: &str, token: FencingToken, value: Vec<u8>) -> BoxFuture<'_, Result<bool>> {
        let name = name.to_owned();
        Box::pin(async move { self.write(&name, token, &value).await })
    }

    fn break_lease(&self, name: &str) -> BoxFuture<'_, Result<FencingToken>> {
        let name = name.to_owned();
        Box::pin(async move { self.burn(&name).await })
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        let name = name.to_owned();
        Box::pin(async move { self.look(&name).await })
    }

    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            let names = scan::names(&self.0.node, &self.0.options, &prefix).await?;
            let mut found = Vec::new();
            for name in names {
                if found.len() >= limit {
                    break;
                }
                let info = self.look(&name).await?;
                if !info.holders.is_empty() {
                    found.push(info);
                }
            }
            Ok(found)
        })
    }

    fn watch(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        let keys = self.0.options.keys(name);
        // Now, not when it is polled: what changes until then is told.
        let known = keys.as_ref().map_or_else(|_| Known::default(), |keys| self.0.node.ears().known(keys));
        Box::pin(async move { self.0.node.ears().changed(&keys?, known).await })
    }

    fn servers(&self) -> BoxFuture<'_, Result<Vec<Server>>> {
        Box::pin(async { Ok(vec![self.node().server().await]) })
    }

    fn guarantees(&self) -> Guarantees {
        let failover = "a replica that is promoted, a restart without an append-only file, an eviction: the \
                        lease may be gone; tokens grow unless the clock went back";
        let mut guarantees =
            Guarantees::new(Fencing::WhileStateSurvives, "wall clock of the server", failover);
        guarantees.fair = true;
        guarantees.min_ttl = Duration::from_millis(100);
        guarantees.recheck = WATCHED;
        guarantees.native =
            &["annotate", "break_lease", "line", "list", "permit", "shared", "transfer", "watch"];
        guarantees
    }
}
