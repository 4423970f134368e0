//! Callers that come together share one transaction and one sync.
//!
//! A caller leaves its job in the queue and then waits for the connection. Whoever gets it runs all jobs
//! that are there; the others find theirs done.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainstay_clock::Clock;
use mainstay_store::lease::Watchers;
use mainstay_store::lease::table::Table;
use mainstay_store::{Error, ErrorKind, Outcome, Result};
use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use super::rows::{Scope, Session};
use crate::config::Driver;
use crate::error::{store_error, sync_failed};
use crate::writer::{CHECKPOINT_EVERY, Step, leave_log};

/// Most jobs of one transaction: bounds how long one sync makes the first of them wait.
const MAX_BATCH: usize = 256;

/// A job whose result waits for the commit.
trait Job: Send {
    /// Runs in the transaction of its batch. May be run again in one of its own.
    fn run(&mut self, session: &mut Session<'_>) -> rusqlite::Result<()>;

    /// The transaction's fate is known.
    fn finish(self: Box<Self>, fate: &std::result::Result<(), Fate>);
}

/// Why a transaction did not happen, or may have.
#[derive(Clone)]
struct Fate {
    kind: ErrorKind,
    outcome: Outcome,
    text: String,
}

impl Fate {
    fn of(error: rusqlite::Error, outcome: Outcome) -> Self {
        let text = format!("the transaction failed: {error}");
        Self { kind: store_error(error).kind(), outcome, text }
    }

    fn error(&self) -> Error {
        Error::new(self.kind, self.text.clone()).with_outcome(self.outcome)
    }
}

struct Asked<T, F> {
    scope: Scope,
    work: F,
    result: Option<Result<T>>,
    changed: BTreeSet<String>,
    watchers: Arc<Watchers>,
    sender: oneshot::Sender<Result<T>>,
}

impl<T, F> Job for Asked<T, F>
where
    T: Send,
    F: Fn(&mut Table) -> Result<T> + Send,
{
    fn run(&mut self, session: &mut Session<'_>) -> rusqlite::Result<()> {
        let (result, changed) = session.run(&self.scope, &self.work)?;
        (self.result, self.changed) = (Some(result), changed);
        Ok(())
    }

    fn finish(self: Box<Self>, fate: &std::result::Result<(), Fate>) {
        // Here, not where the answer arrives: whoever asked may be gone.
        self.changed.iter().for_each(|name| self.watchers.fire(name));
        settle(self.sender, self.result, fate);
    }
}

/// A job on records.
struct Recorded<T, F> {
    work: F,
    result: Option<Result<T>>,
    sender: oneshot::Sender<Result<T>>,
}

impl<T, F> Job for Recorded<T, F>
where
    T: Send,
    F: Fn(&Connection, i64) -> std::result::Result<T, Step> + Send,
{
    fn run(&mut self, session: &mut Session<'_>) -> rusqlite::Result<()> {
        self.result = Some(match (self.work)(session.conn, session.wall) {
            Ok(value) => Ok(value),
            Err(Step::Failed(error)) => return Err(error),
            Err(Step::Refuse(error)) => Err(error),
            Err(Step::Ended) => Err(Error::new(ErrorKind::Internal, "records end no transaction")),
        });
        Ok(())
    }

    fn finish(self: Box<Self>, fate: &std::result::Result<(), Fate>) {
        settle(self.sender, self.result, fate);
    }
}

/// Tells a caller, who may be gone; what was committed stands.
fn settle<T>(
    sender: oneshot::Sender<Result<T>>,
    result: Option<Result<T>>,
    fate: &std::result::Result<(), Fate>,
) {
    let _ = sender.send(match (fate, result) {
        (Ok(()), Some(result)) => result,
        (Err(fate), _) => Err(fate.error()),
        (Ok(()), None) => Err(Error::new(ErrorKind::Internal, "a job was committed without being run")),
    });
}

/// The connection, and what became of it.
struct Held {
    conn: Connection,
    /// Since the last checkpoint.
    commits: u32,
    /// After a failed sync nothing is certain any more; the process must reopen the file.
    stopped: Option<Fate>,
}

impl Held {
    fn stop(&mut self, why: &Fate) {
        let text = format!("the lease file was given up after: {}", why.text);
        self.stopped = Some(Fate { outcome: Outcome::NotApplied, text, ..why.clone() });
        leave_log(&self.conn);
    }

    /// Moves the log into the file; what fails in it is no failure of a commit, but a sync that fails ends all.
    fn checkpoint(&mut self) {
        self.commits += 1;
        if self.commits < CHECKPOINT_EVERY {
            return;
        }
        self.commits = 0;
        if let Err(error) = self.conn.query_row("pragma wal_checkpoint(passive)", [], |_| Ok(())) {
            tracing::warn!(target: "mainstay::sqlite", %error, "checkpoint failed");
            if sync_failed(&error) {
                self.stop(&Fate::of(error, Outcome::Unknown));
            }
        }
    }
}

#[derive(Clone)]
pub(super) struct Combiner {
    held: Arc<Mutex<Held>>,
    queue: Arc<Mutex<Vec<Box<dyn Job>>>>,
    clock: Arc<dyn Clock>,
    driver: Driver,
    /// Which handle wrote a change.
    origin: i64,
    /// Added to the epoch of every token.
    epoch: u16,
    /// Told after every change of this process.
    pub(super) watchers: Arc<Watchers>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Combiner {
    pub(super) fn new(
        conn: Connection,
        driver: Driver,
        clock: Arc<dyn Clock>,
        origin: i64,
        epoch: u16,
    ) -> Self {
        let held = Arc::new(Mutex::new(Held { conn, commits: 0, stopped: None }));
        Self { held, queue: Arc::default(), clock, driver, origin, epoch, watchers: Arc::default() }
    }

    /// Runs `work` on the operations of `scope` and answers once that is committed.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        scope: Scope,
        work: impl Fn(&mut Table) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, answer) = oneshot::channel();
        let (changed, watchers) = (BTreeSet::new(), Arc::clone(&self.watchers));
        self.done(Box::new(Asked { scope, work, result: None, changed, watchers, sender }), answer).await
    }

    /// Runs `work` on the records and answers once that is committed.
    pub(super) async fn record<T: Send + 'static>(
        &self,
        work: impl Fn(&Connection, i64) -> std::result::Result<T, Step> + Send + 'static,
    ) -> Result<T> {
        let (sender, answer) = oneshot::channel();
        self.done(Box::new(Recorded { work, result: None, sender }), answer).await
    }

    async fn done<T>(&self, job: Box<dyn Job>, answer: oneshot::Receiver<Result<T>>) -> Result<T> {
        locked(&self.queue).push(job);
        let this = self.clone();
        match self.driver {
            Driver::Inline => this.drain(),
            // Not awaited: the answer comes with whichever thread runs the job.
            Driver::Thread => drop(tokio::task::spawn_blocking(move || this.drain())),
        }
        let lost = |_| {
            Error::new(ErrorKind::Unavailable, "the lease file was closed").with_outcome(Outcome::Unknown)
        };
        answer.await.map_err(lost)?
    }

    /// Reads something outside a transaction.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Connection) -> T + Send + 'static,
    ) -> Result<T> {
        if self.driver == Driver::Inline {
            return Ok(look(&locked(&self.held).conn));
        }
        let held = Arc::clone(&self.held);
        let ended = |_| Error::new(ErrorKind::Internal, "a look panicked");
        tokio::task::spawn_blocking(move || look(&locked(&held).conn)).await.map_err(ended)
    }

    fn drain(&self) {
        let mut held = locked(&self.held);
        loop {
            let mut batch: Vec<Box<dyn Job>> = {
                let mut queue = locked(&self.queue);
                let most = queue.len().min(MAX_BATCH);
                queue.drain(..most).collect()
            };
            if batch.is_empty() {
                return;
            }
            let fate = self.transact(&mut held, &mut batch);
            if batch.len() > 1 && matches!(&fate, Err(f) if f.outcome == Outcome::NotApplied) {
                // One of them spoiled it for the others: each for itself.
                for mut job in batch {
                    let fate = self.transact(&mut held, std::slice::from_mut(&mut job));
                    job.finish(&fate);
                }
            } else {
                batch.into_iter().for_each(|job| job.finish(&fate));
            }
        }
    }

    fn transact(&self, held: &mut Held, jobs: &mut [Box<dyn Job>]) -> std::result::Result<(), Fate> {
        if let Some(why) = &held.stopped {
            return Err(why.clone());
        }
        let (conn, undone) = (&held.conn, |e| Fate::of(e, Outcome::NotApplied));
        conn.execute_batch("begin immediate").map_err(undone)?;
        let done = (|| {
            let mut session = Session::begin(conn, &*self.clock, self.epoch)?;
            for job in jobs {
                job.run(&mut session)?;
            }
            session.end(self.origin)
        })();
        if let Err(e) = done {
            let rolled_back = conn.execute_batch("rollback");
            return Err(undone(rolled_back.err().unwrap_or(e)));
        }
        let Err(e) = conn.execute_batch("commit") else {
            held.checkpoint();
            return Ok(());
        };
        let full = e.sqlite_error_code() == Some(ErrorCode::DiskFull);
        let back = conn.is_autocommit() || conn.execute_batch("rollback").is_ok();
        // A frame that could not be written is no commit; see the writer of the journal.
        if full && back {
            return Err(undone(e));
        }
        // After a failed sync nobody knows, and asking again would prove nothing.
        let unknown = Fate::of(e, Outcome::Unknown);
        held.stop(&unknown);
        Err(unknown)
    }
}
