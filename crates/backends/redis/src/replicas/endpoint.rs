//! A server of a replicated Redis, as sessions use it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join3;
use mainstay_clock::Deadline;
use mainstay_store::replicated::{Judgment, Mark, Observed, Position, ReplicatedStore, Role};
use mainstay_store::{BoxFuture, Error, ErrorKind, Outcome, Result};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, Pipeline, RedisError};

use super::info::{Info, is_loading};
use super::link::{Line, Link};
use crate::error;

/// Between two looks while waiting for a replica: it starts at a usual lag and ends where looking costs little.
const LOOKS: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(10)];

/// One server of a [`RedisReplicas`](super::RedisReplicas), primary or replica. Clones share its connection, and each
/// remembers its own last write and read.
///
/// Commands go through [`write`](Self::write) and [`read`](Self::read), which ask for the position in the same round
/// trip: after a write (after its `EXEC`, not inside it, where the offset is the one before), before a read, and behind
/// it.
#[derive(Clone)]
pub struct RedisEndpoint {
    line: Arc<Line>,
    written: Written,
    /// The life that the last read met.
    met: Option<u64>,
    /// At or past all that the last read saw.
    read: Option<Mark>,
    acknowledged: Option<u32>,
}

/// What is known of the last write of a handle.
#[derive(Clone, Debug)]
enum Written {
    Nothing,
    At(Mark),
    Unknown,
}

impl fmt::Debug for RedisEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisEndpoint").field("name", &self.line.name).finish_non_exhaustive()
    }
}

/// An answer about replication, and the life that it was given in.
struct Told {
    info: Info,
    life: u64,
}

impl RedisEndpoint {
    pub(crate) fn new(line: Line) -> Self {
        Self { line: Arc::new(line), written: Written::Nothing, met: None, read: None, acknowledged: None }
    }

    /// Its address, for people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.line.name
    }

    /// How many replicas had the last write within the limit of
    /// [`acknowledge`](super::ReplicasBuilder::acknowledge). No durability, whatever the number.
    #[must_use]
    pub fn acknowledged(&self) -> Option<u32> {
        self.acknowledged
    }

    /// Runs commands that write, and remembers what position they reached.
    ///
    /// # Errors
    /// What the server refused, and what it did not answer. After an [`Outcome::Unknown`] the commands, or some of
    /// them where they are no transaction, may have taken effect.
    ///
    /// # Cancel safety
    /// What was sent may take effect; the position is unknown then.
    pub async fn write<T: FromRedisValue>(&mut self, commands: &Pipeline) -> Result<T> {
        let link = self.line.link().await?;
        self.written = Written::Unknown;
        self.acknowledged = None;
        let (mut to, mut wait, mut ask) = (link.slow.clone(), link.slow.clone(), link.slow.clone());
        let acknowledge = self.line.store.acknowledge;
        // One connection and one order: each is written when it is first polled.
        let (out, acknowledged, told) = join3(
            commands.query_async::<T>(&mut to),
            async {
                let (replicas, limit) = acknowledge?;
                let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                let mut cmd = redis::cmd("WAIT");
                cmd.arg(replicas).arg(limit).query_async::<u32>(&mut wait).await.ok()
            },
            self.ask(&link, &mut ask),
        )
        .await;
        let partly = commands.len() > 1 && !commands.is_transaction();
        let out = out.map_err(|e| self.failed_write(&link, e, partly))?;
        self.acknowledged = acknowledged;
        // A primary that was demoted meanwhile has thrown the write away, or will.
        if let Ok(told) = told
            && told.info.is_primary
            && !told.info.in_flux
        {
            self.line.store.learn(&link.run_id, &told.info);
            self.written = Written::At(self.mark(&link, &told.info));
        }
        Ok(out)
    }

    fn failed_write(&self, link: &Link, error: RedisError, partly: bool) -> Error {
        let error = self.line.failed(link, error);
        if partly { error.with_outcome(Outcome::Unknown) } else { error }
    }

    /// Runs commands that only read. Redis has no transaction that would refuse writes.
    ///
    /// The answer counts only if the server stayed in one life from before the commands until after them: a replica
    /// that is filled anew in between answers from another history.
    ///
    /// # Errors
    /// What the server refused, and what it did not answer; [`ErrorKind::Unavailable`] when it is being filled anew.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn read<T: FromRedisValue>(&mut self, commands: &Pipeline) -> Result<T> {
        let link = self.line.link().await?;
        let mut connections = [link.connection.clone(), link.connection.clone(), link.connection.clone()];
        let [first, second, third] = &mut connections;
        let (before, out, after) =
            join3(self.ask(&link, first), commands.query_async::<T>(second), self.ask(&link, third)).await;
        let not_applied = |e: Error| e.with_outcome(Outcome::NotApplied);
        let out = out.map_err(|e| not_applied(self.line.failed(&link, e)))?;
        let (before, after) = (before?, after?);
        self.met = Some(after.life);
        if before.life != after.life || before.info.in_flux || after.info.in_flux {
            return Err(not_applied(self.unsettled()));
        }
        self.line.store.learn(&link.run_id, &after.info);
        self.read = Some(self.mark(&link, &after.info));
        Ok(out)
    }

    fn unsettled(&self) -> Error {
        let text = format!("redis {} is being filled anew: what it had is thrown away", self.line.name);
        Error::new(ErrorKind::Unavailable, text)
    }

    async fn ask(&self, link: &Link, connection: &mut MultiplexedConnection) -> Result<Told> {
        let mut cmd = redis::cmd("INFO");
        cmd.arg("replication");
        let turn = self.line.turn();
        let text: String = cmd.query_async(connection).await.map_err(|e| self.line.failed(link, e))?;
        self.told(link, turn, &text)
    }

    fn told(&self, link: &Link, turn: u64, text: &str) -> Result<Told> {
        self.line.answered(link);
        let info =
            Info::read(text).ok_or_else(|| error::garbled(&self.line.name, &"no such INFO replication"))?;
        let life = self.line.see(link, turn, &info);
        Ok(Told { info, life })
    }

    fn mark(&self, link: &Link, info: &Info) -> Mark {
        // Where offsets stand still, the process is all that can be named: only itself can have what it wrote. The offset
        // is where its last history ended, which it has.
        let timeline = if info.counts { info.id.clone() } else { link.run_id.to_string() };
        Mark { system: self.line.store.system.clone(), timeline, position: Position::Offset(info.offset) }
    }

    async fn look(&self) -> Result<(Observed, bool)> {
        let link = self.line.link().await?;
        let mut pipe = redis::pipe();
        pipe.cmd("INFO").arg("persistence").cmd("INFO").arg("replication");
        let (turn, mut connection) = (self.line.turn(), link.connection.clone());
        let answer = pipe.query_async::<(String, String)>(&mut connection).await;
        let (persistence, replication) = answer.map_err(|e| self.line.failed(&link, e))?;
        let Told { info, life } = self.told(&link, turn, &replication)?;
        if info.in_flux || is_loading(&persistence) {
            // It has nothing that anybody could name.
            let mark = Mark { timeline: String::new(), ..self.mark(&link, &info) };
            return Ok((Observed::new(mark, Vec::new()).with_incarnation(life), false));
        }
        let history = self.line.store.learn(&link.run_id, &info);
        let role = if info.is_primary { Role::Primary } else { Role::Replica };
        let mark = self.mark(&link, &info);
        let changes = history.iter().filter(|s| s.position != Position::Offset(u64::MAX)).count() as u64;
        let observed = Observed::new(mark, history).with_role(role).with_incarnation(life);
        Ok((observed.with_changes(changes), info.linked))
    }

    async fn wait_for(&self, wanted: &Mark, limit: Duration) -> Result<Judgment> {
        let clock = self.line.clock();
        let end = Deadline::after(clock.now(), limit);
        let [mut pause, longest] = LOOKS;
        loop {
            let (observed, linked) = self.look().await?;
            let judgment = observed.judge(wanted);
            let left = end.remaining(clock.now()).unwrap_or_default();
            // Nothing comes to a replica that lost its primary.
            if judgment != Judgment::Behind || left.is_zero() || !linked {
                return Ok(judgment);
            }
            clock.sleep(pause.min(left)).await;
            pause = longest.min(pause * 2);
        }
    }
}

impl ReplicatedStore for RedisEndpoint {
    fn commit_position(&self) -> BoxFuture<'_, Result<Mark>> {
        Box::pin(async move {
            match &self.written {
                Written::At(mark) => Ok(mark.clone()),
                Written::Unknown => {
                    let text = format!("redis {} did not tell where its last write is", self.line.name);
                    Err(Error::new(ErrorKind::Unavailable, text))
                }
                // Whatever it has now is at or past nothing.
                Written::Nothing => {
                    let (observed, _) = self.look().await?;
                    if observed.role == Role::Primary {
                        Ok(observed.mark)
                    } else {
                        let text = format!("redis {} is no primary", self.line.name);
                        Err(Error::new(ErrorKind::Unavailable, text))
                    }
                }
            }
        })
    }

    fn observe(&self) -> BoxFuture<'_, Result<Observed>> {
        Box::pin(async move { self.look().await.map(|(observed, _)| observed) })
    }

    fn wait<'a>(&'a self, wanted: &'a Mark, limit: Duration) -> BoxFuture<'a, Result<Judgment>> {
        Box::pin(self.wait_for(wanted, limit))
    }

    fn read_position(&self) -> Option<Mark> {
        self.read.clone()
    }

    fn incarnation(&self) -> Option<u64> {
        self.met.or_else(|| self.line.life())
    }
}
