//! One server: one ordered connection for all callers, made again when it breaks.

pub(crate) mod ears;
mod report;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_clock::{Clock, Instant, Runtime};
use mainstay_store::lease::Server;
use mainstay_store::{Error, ErrorKind, Result};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, RedisError, Value};

use crate::health::Health;
use crate::scripts::{Call, Script, Scripts, USUAL};
use crate::{ConfigError, error, tls};
use ears::Ears;
use report::OLDEST;
pub(crate) use report::Report;

/// Requests of one connection that wait to be written; more wait for a place. They are written together.
const BUFFER: usize = 1_024;
/// After a connection could not be made, callers are told so for this long without another try.
const PAUSE: Duration = Duration::from_millis(50);
/// A connection that answered nothing for this long though it was asked is given up. Shorter silences keep
/// it: what waits in it stays in order, so that a release cannot overtake its acquisition.
const SILENCE: Duration = Duration::from_secs(5);
/// A server clock that ran this much apart from boot time between two renewals has jumped.
const JUMP: Duration = Duration::from_secs(1);

/// Whether a server may be used, and for how long from now it must not grant.
pub(crate) type Admit = Arc<dyn Fn(&Report) -> Result<Duration> + Send + Sync>;

/// What a caller wants of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A lease: refused while the server may have forgotten others.
    Grant,
    /// Anything else.
    Other,
}

/// A reply, and whether an earlier sending of the same request may still take effect.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) value: Value,
    pub(crate) doubt: bool,
}

/// A failed call, and the same question.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) doubt: bool,
}

/// What came of one sending.
#[derive(Debug)]
pub(crate) enum Once {
    Answered(Value),
    /// The connection broke: it may have taken effect.
    Broken(Error),
    /// Nothing was sent, or the server said no: it has not taken effect.
    Refused(Error),
    /// No answer in time: it may take effect yet.
    Unheard(Error),
}

#[derive(Clone)]
struct Link {
    connection: MultiplexedConnection,
    number: u64,
    /// It grants nothing before.
    silent_until: Instant,
    /// Boot time in nanoseconds of the first request after the last reply; 0 when there is none.
    unanswered: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Seen {
    health: Health,
    version: String,
    evicts: bool,
    retry_at: Instant,
    /// Server time minus boot time at the last look, in microseconds, and by how much that may be wrong.
    offset: Option<(i64, Duration)>,
}

/// One server. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Node(Arc<Inner>);

struct Inner {
    client: Client,
    name: String,
    timeout: Duration,
    clock: Arc<dyn Clock>,
    admit: Admit,
    scripts: Scripts,
    live: Mutex<Option<Link>>,
    connecting: tokio::sync::Mutex<()>,
    links: AtomicU64,
    seen: Mutex<Seen>,
    ears: Ears,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("name", &self.0.name).finish_non_exhaustive()
    }
}

impl Node {
    pub(crate) fn new(url: &str, timeout: Duration, rt: &Runtime) -> std::result::Result<Self, ConfigError> {
        Self::admitted(url, timeout, rt, Arc::new(|_| Ok(Duration::ZERO)))
    }

    pub(crate) fn admitted(
        url: &str,
        timeout: Duration,
        rt: &Runtime,
        admit: Admit,
    ) -> std::result::Result<Self, ConfigError> {
        let client = tls::client(url)?;
        let name = client.get_connection_info().addr().to_string();
        let refused = |e: RedisError| ConfigError::new("url", "(not shown)", format!("no {e}"));
        let ears = Ears::new(&client, name.clone(), timeout).map_err(refused)?;
        Ok(Self(Arc::new(Inner {
            client,
            name,
            timeout,
            clock: Arc::clone(rt.clock()),
            admit,
            scripts: Scripts::new(),
            live: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(()),
            links: AtomicU64::new(0),
            seen: Mutex::default(),
            ears,
        })))
    }

    /// Its address, for people.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    pub(crate) fn scripts(&self) -> &Scripts {
        &self.0.scripts
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    pub(crate) fn ears(&self) -> &Ears {
        &self.0.ears
    }

    pub(crate) fn health(&self) -> Health {
        let mut health = locked(&self.0.seen).health.clone();
        health.connected = locked(&self.0.live).is_some();
        health
    }

    /// Which life of the server this is: another one may have forgotten what this one knows. None where keys may vanish
    /// without that.
    pub(crate) fn life(&self) -> Option<u64> {
        let seen = locked(&self.0.seen);
        (!seen.evicts).then_some(seen.health.restarts)
    }

    /// The server as it names itself, without a version when it does not answer.
    pub(crate) async fn server(&self) -> Server {
        let answers = self.ready().await.is_ok();
        let version = if answers { locked(&self.0.seen).version.clone() } else { String::new() };
        Server::new("Redis", self.name(), version, OLDEST)
    }

    /// Connects if need be.
    pub(crate) async fn ready(&self) -> Result<()> {
        self.link().await.map(drop)
    }

    /// Runs a script; `fill` adds the number of keys, the keys and the arguments. A connection that broke is
    /// made again once.
    ///
    /// # Cancel safety
    /// What was sent may take effect.
    pub(crate) async fn eval(
        &self,
        script: &Script,
        purpose: Purpose,
        patience: Duration,
        fill: impl FnOnce(&mut Cmd),
    ) -> std::result::Result<Reply, Failure> {
        self.run(&script.call(USUAL, fill), purpose, patience).await
    }

    /// The same, of a call that may go to several servers.
    ///
    /// # Cancel safety
    /// What was sent may take effect.
    pub(crate) async fn run(
        &self,
        call: &Call,
        purpose: Purpose,
        patience: Duration,
    ) -> std::result::Result<Reply, Failure> {
        self.run_if(call, purpose, patience, || true).await
    }

    /// The same, sent again only if that is allowed then.
    ///
    /// # Cancel safety
    /// What was sent may take effect.
    pub(crate) async fn run_if(
        &self,
        call: &Call,
        purpose: Purpose,
        patience: Duration,
        again: impl Fn() -> bool,
    ) -> std::result::Result<Reply, Failure> {
        let mut doubt = false;
        loop {
            match self.once(call, purpose, patience).await {
                Once::Answered(value) => return Ok(Reply { value, doubt }),
                Once::Broken(_) if !doubt && again() => doubt = true,
                Once::Broken(error) | Once::Unheard(error) => return Err(Failure { error, doubt: true }),
                Once::Refused(error) => return Err(Failure { error, doubt }),
            }
        }
    }

    /// The same, sent once.
    ///
    /// # Cancel safety
    /// What was sent may take effect.
    pub(crate) async fn once(&self, call: &Call, purpose: Purpose, patience: Duration) -> Once {
        let mut link = match self.link().await {
            Ok(link) => link,
            Err(error) => return Once::Refused(error),
        };
        let sent = self.0.clock.now();
        if purpose == Purpose::Grant && sent < link.silent_until {
            return Once::Refused(self.silent(&link));
        }
        // Only the first of a series is remembered.
        let _ = link.unanswered.compare_exchange(0, sent.as_nanos(), Ordering::Relaxed, Ordering::Relaxed);
        match send(&mut link.connection, call, patience).await {
            Ok(Value::ServerError(error)) => {
                if matches!(error.code(), "READONLY" | "NOAUTH" | "MOVED") {
                    self.give_up(link.number);
                }
                Once::Refused(error::by_server(self.name(), &error))
            }
            Ok(value) => {
                link.unanswered.store(0, Ordering::Relaxed);
                Once::Answered(value)
            }
            Err(error) if error.is_timeout() => {
                let first = Instant::from_nanos(link.unanswered.load(Ordering::Relaxed));
                let silent = self.0.clock.now().saturating_duration_since(first);
                if first != Instant::ZERO && silent > SILENCE {
                    self.give_up(link.number);
                }
                Once::Unheard(error::sent(self.name(), error))
            }
            Err(error) => {
                self.give_up(link.number);
                Once::Broken(error::sent(self.name(), error))
            }
        }
    }

    /// Runs a plain command that changes nothing.
    pub(crate) async fn ask(&self, cmd: &Cmd) -> Result<Value> {
        let link = self.link().await?;
        match link.connection.clone().send_packed_command(cmd).await {
            Ok(Value::ServerError(error)) => Err(error::by_server(self.name(), &error)),
            Ok(value) => Ok(value),
            Err(error) => {
                if !error.is_timeout() {
                    self.give_up(link.number);
                }
                Err(error::sent(self.name(), error).with_outcome(mainstay_store::Outcome::NotApplied))
            }
        }
    }

    /// The server told its time, in the reply to a request sent at `sent`: has it jumped? An answer that took long says
    /// that much less about when it was given, and is no jump.
    pub(crate) fn told_time(&self, sent: Instant, seconds: i64, micros: i64) {
        let now = self.0.clock.now();
        let half = now.saturating_duration_since(sent) / 2;
        let boot = i64::try_from(sent.saturating_add(half).as_nanos() / 1_000).unwrap_or(i64::MAX);
        let offset = seconds.saturating_mul(1_000_000).saturating_add(micros).saturating_sub(boot);
        let mut seen = locked(&self.0.seen);
        let before = seen.offset.replace((offset, half));
        if let Some(jumped) = before.and_then(|before| jump(before, (offset, half))) {
            seen.health.clock_jumps += 1;
            seen.health.last_jump_ms = jumped / 1_000;
            drop(seen);
            tracing::warn!(
                node = self.name(),
                jumped_ms = jumped / 1_000,
                "the clock of a redis jumped: leases there ended early or last too long"
            );
        }
    }

    fn silent(&self, link: &Link) -> Error {
        let left = link.silent_until.saturating_duration_since(self.0.clock.now());
        let text = format!(
            "redis {} restarted and may have forgotten leases: it grants nothing for {left:?}",
            self.name()
        );
        Error::new(ErrorKind::Unavailable, text).with_retry_after(left)
    }

    fn give_up(&self, number: u64) {
        let mut live = locked(&self.0.live);
        if live.as_ref().is_some_and(|l| l.number == number) {
            *live = None;
        }
    }

    async fn link(&self) -> Result<Link> {
        if let Some(link) = locked(&self.0.live).clone() {
            return Ok(link);
        }
        let _one = self.0.connecting.lock().await;
        if let Some(link) = locked(&self.0.live).clone() {
            return Ok(link);
        }
        let retry_at = locked(&self.0.seen).retry_at;
        let left = retry_at.saturating_duration_since(self.0.clock.now());
        if !left.is_zero() {
            let text = format!("redis {} could not be reached a moment ago", self.name());
            return Err(Error::new(ErrorKind::Unavailable, text).with_retry_after(left));
        }
        // Apart: it is large, seldom, and would be moved with every call.
        match Box::pin(self.connect()).await {
            Ok(link) => {
                *locked(&self.0.live) = Some(link.clone());
                Ok(link)
            }
            Err(error) => {
                locked(&self.0.seen).retry_at = self.0.clock.now().saturating_add(PAUSE);
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Link> {
        let failed = |e: RedisError| error::unreachable(self.name(), e);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.0.timeout))
            .set_response_timeout(Some(self.0.timeout))
            .set_pipeline_buffer_size(BUFFER);
        let mut connection =
            self.0.client.get_multiplexed_async_connection_with_config(&config).await.map_err(failed)?;
        let info: String = redis::cmd("INFO").query_async(&mut connection).await.map_err(failed)?;
        let mut load = redis::pipe();
        for script in self.0.scripts.all() {
            load.cmd("SCRIPT").arg("LOAD").arg(script.source).ignore();
        }
        // Where that is forbidden, the first call of each sends its source.
        let _: std::result::Result<(), RedisError> = load.query_async(&mut connection).await;
        let mut fsync = redis::cmd("CONFIG");
        fsync.arg("GET").arg("appendfsync");
        // Often forbidden; then nothing is assumed.
        let fsync: Vec<String> = fsync.query_async(&mut connection).await.unwrap_or_default();
        let report = Report::read(self.name(), &info, fsync.get(1).map_or("", String::as_str))?;
        let silence = (self.0.admit)(&report)?;
        if report.evicts {
            tracing::warn!(node = self.name(), "this redis evicts keys when memory gets short: leases too");
        }
        let now = self.0.clock.now();
        let mut seen = locked(&self.0.seen);
        if !seen.health.run_id.is_empty() && seen.health.run_id != report.run_id {
            seen.health.restarts += 1;
            tracing::warn!(node = self.name(), "a redis restarted: what it had not kept is gone");
        }
        seen.health.run_id = report.run_id;
        (seen.version, seen.evicts) = (report.version, report.evicts);
        seen.offset = None;
        Ok(Link {
            connection,
            number: self.0.links.fetch_add(1, Ordering::Relaxed),
            silent_until: now.saturating_add(silence),
            unanswered: Arc::default(),
        })
    }
}

/// Sends by digest, and once by source to a server that has forgotten the script.
async fn send(
    connection: &mut MultiplexedConnection,
    call: &Call,
    patience: Duration,
) -> std::result::Result<Value, RedisError> {
    connection.set_response_timeout(patience);
    let reply = connection.send_packed_command(&call.by_digest).await?;
    if !matches!(&reply, Value::ServerError(e) if e.code() == "NOSCRIPT") {
        return Ok(reply);
    }
    connection.send_packed_command(&call.by_source()).await
}

/// By how many microseconds a clock jumped between two looks, each with what it leaves open; none when it need not have.
fn jump(before: (i64, Duration), now: (i64, Duration)) -> Option<i64> {
    let jumped = now.0.saturating_sub(before.0);
    let least = JUMP.saturating_add(before.1).saturating_add(now.1);
    (u128::from(jumped.unsigned_abs()) >= least.as_micros()).then_some(jumped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_took_long_is_no_jump() {
        let (quick, slow) = (Duration::from_millis(1), Duration::from_secs(3));
        // Offsets in seconds, what each leaves open, whether it jumped.
        for (before, now, jumped) in [
            ((10, quick), (10, quick), false),
            ((10, quick), (12, quick), true),
            ((10, quick), (8, quick), true),
            ((10, quick), (12, slow), false),
            ((10, slow), (12, quick), false),
            ((10, slow), (16, slow), false),
            ((10, slow), (17, slow), true),
            ((10, slow), (3, slow), true),
        ] {
            let micros = |(seconds, open): (i64, Duration)| (seconds * 1_000_000, open);
            let found = jump(micros(before), micros(now));
            assert_eq!(found, jumped.then_some((now.0 - before.0) * 1_000_000), "{before:?} {now:?}");
        }
    }
}
