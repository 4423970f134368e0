//! Transactions whose commit has a position, and reads that begin after a judgment.

use std::fmt;
use std::pin::pin;

use futures_util::future::join;
use futures_util::stream::StreamExt as _;
use mainstay_store::replicated::{Judgment, Mark, Position};
use mainstay_store::{Error, Outcome, ReplicatedStore as _, Result};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::config::Commits;
use super::lsn;
use super::node::{Last, Node, strange};
use crate::error::store_error;

/// Sets what counts at the moment of the commit, and fails in a transaction that has failed: without it, `COMMIT`
/// would answer `ROLLBACK` and no error.
const GUARD_SYNCED: &str = "
select set_config('synchronous_commit', case current_setting('synchronous_commit') when 'off' then 'on'
                                        else current_setting('synchronous_commit') end, true)";
const GUARD_ANY: &str = "select current_setting('synchronous_commit')";
/// In one message with the guard: one round trip. The flushed position is at or past our commit and holds after a
/// failover; the inserted one would include what others have not committed.
const COMMIT: &str = "; commit;
select pg_current_wal_flush_lsn(), pg_current_wal_insert_lsn(), left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)";

/// A transaction that has no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum TransactionError<E> {
    /// The closure failed; what it did was undone.
    Inner(E),
    /// The store failed. Its [`outcome`](Error::outcome) says whether the transaction may have been committed.
    Store(Error),
}

impl<E> TransactionError<E> {
    /// Whether what the closure wrote is there.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Inner(_) => Outcome::NotApplied,
            Self::Store(error) => error.outcome(),
        }
    }
}

impl<E: fmt::Display> fmt::Display for TransactionError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inner(error) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for TransactionError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Inner(error) => error.source(),
            Self::Store(error) => std::error::Error::source(error),
        }
    }
}

impl<E> From<Error> for TransactionError<E> {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// What became of a read that was to come after a position.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "it was read or it was not")]
pub enum Checked<T> {
    /// The node has the position; this was read after that was certain.
    Read(T),
    /// It has not, and nothing was read.
    Refused(Judgment),
}

/// What a commit said.
struct Said {
    synced: bool,
    flush: u64,
    insert: u64,
    timeline: u32,
}

impl Node {
    /// Runs `f` in a transaction, commits it, and keeps the position that contains it for
    /// [`commit_position`](mainstay_store::ReplicatedStore::commit_position).
    ///
    /// Reads that belong to the write happen inside, on the same connection. `f` must not commit by itself. Unless the
    /// endpoint allows otherwise, the commit is waited for, whatever the session or `f` has set.
    ///
    /// # Errors
    /// [`TransactionError::Inner`] when `f` fails: the transaction is undone. [`TransactionError::Store`] with
    /// `NotApplied` when a statement had failed and `f` went on, or a deferred constraint fails; with `Unknown` when the
    /// answer to the commit is missing.
    ///
    /// # Cancel safety
    /// Dropped, the connection is closed: before the commit was sent nothing took effect, later it may have.
    pub async fn write<T, E, F>(&mut self, f: F) -> std::result::Result<T, TransactionError<E>>
    where
        F: AsyncFnOnce(&Client) -> std::result::Result<T, E>,
    {
        self.whole(async { self.driver().batch_execute("begin").await.map_err(store_error) })
            .await
            .map_err(|e| e.with_outcome(Outcome::NotApplied))?;
        self.start();
        match f(self.driver()).await {
            Ok(out) => {
                self.commit().await?;
                Ok(out)
            }
            Err(inner) => {
                // Else the connection is closed, which undoes it as well.
                let _ = self.roll_back().await;
                Err(TransactionError::Inner(inner))
            }
        }
    }

    /// Reads in a read-only transaction of one snapshot, taken after this call: begin it after the judgment. What
    /// would change something fails on a primary exactly as on a standby.
    ///
    /// # Errors
    /// [`TransactionError::Inner`] when `f` fails, [`TransactionError::Store`] when the server does.
    ///
    /// # Cancel safety
    /// Dropped, the connection is closed.
    pub async fn read<T, E, F>(&mut self, f: F) -> std::result::Result<T, TransactionError<E>>
    where
        F: AsyncFnOnce(&Client) -> std::result::Result<T, E>,
    {
        self.start();
        // Sent together with the first statement of `f`, each with a sync of its own: no round trip more.
        let begin = self.driver().batch_execute("begin isolation level repeatable read read only");
        let (begun, out) = join(begin, f(self.driver())).await;
        begun.map_err(|e| store_error(e).with_outcome(Outcome::NotApplied))?;
        let ended = self.roll_back().await;
        let out = out.map_err(TransactionError::Inner)?;
        ended.map_err(|e| e.with_outcome(Outcome::NotApplied))?;
        Ok(out)
    }

    /// Judges on this connection whether the node has `wanted`, and reads only then. For programs without a router:
    /// judgment and snapshot come in this order from one server, whatever stands before it.
    ///
    /// # Errors
    /// As for [`read`](Node::read), and when the node cannot be asked.
    ///
    /// # Cancel safety
    /// As for [`read`](Node::read).
    pub async fn read_after<T, E, F>(
        &mut self,
        wanted: &Mark,
        f: F,
    ) -> std::result::Result<Checked<T>, TransactionError<E>>
    where
        F: AsyncFnOnce(&Client) -> std::result::Result<T, E>,
    {
        match self.observe().await?.judge(wanted) {
            Judgment::Satisfied => self.read(f).await.map(Checked::Read),
            other => Ok(Checked::Refused(other)),
        }
    }

    async fn roll_back(&self) -> Result<()> {
        self.whole(async { self.driver().batch_execute("rollback").await.map_err(store_error) }).await
    }

    async fn commit(&self) -> Result<()> {
        // Whatever happens from here on, an earlier position says nothing about this commit.
        self.remember(Last::Untold);
        let guard = if self.shared.commits == Commits::Synced { GUARD_SYNCED } else { GUARD_ANY };
        let message = format!("{guard}{COMMIT}");
        let sent = self.shared.pool.within("a commit", Outcome::Unknown, send(self.driver(), &message)).await;
        match sent {
            Ok(said) => {
                self.finish();
                let position = match said {
                    Said { synced: true, flush, .. } => Position::Lsn(flush),
                    Said { insert, .. } => self.unsynced(insert),
                };
                self.remember(Last::At(self.mark(said.timeline, position)));
                Ok(())
            }
            Err(error) if error.outcome() == Outcome::NotApplied => {
                self.remember(Last::Nothing);
                let _ = self.roll_back().await;
                Err(error)
            }
            // It is there; only the position is missing, and the session will go to the primary for it.
            Err(error) if error.outcome() == Outcome::Applied => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Sends the guard, the commit and the question for the position, and counts how far the server came.
async fn send(client: &Client, message: &str) -> Result<Said> {
    let stream = client.simple_query_raw(message).await.map_err(store_error)?;
    let mut stream = pin!(stream);
    let (mut done, mut synced, mut said) = (0_u32, true, None);
    while let Some(next) = stream.next().await {
        match next {
            Ok(SimpleQueryMessage::CommandComplete(_)) => done += 1,
            Ok(SimpleQueryMessage::Row(row)) if done == 0 => synced = row.get(0) != Some("off"),
            Ok(SimpleQueryMessage::Row(row)) => said = read(&row, synced),
            Ok(_) => {}
            Err(e) => {
                let error = store_error(e);
                // The second statement is the commit.
                return Err(if done >= 2 { error.with_outcome(Outcome::Applied) } else { error });
            }
        }
    }
    said.ok_or_else(|| {
        strange("where it has committed").with_outcome(if done >= 2 {
            Outcome::Applied
        } else {
            Outcome::Unknown
        })
    })
}

fn read(row: &SimpleQueryRow, synced: bool) -> Option<Said> {
    let timeline = u32::from_str_radix(row.get(2)?, 16).ok()?;
    Some(Said { synced, flush: lsn::parse(row.get(0)?)?, insert: lsn::parse(row.get(1)?)?, timeline })
}
