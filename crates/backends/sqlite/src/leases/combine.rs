//! Callers that come together share one transaction and one sync.
//!
//! A caller leaves its job in the queue and then waits for the connection. Whoever gets it runs all jobs
//! that are there; the others find theirs done.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainstay_clock::Clock;
use mainstay_store::lease::table::Table;
use mainstay_store::{Error, ErrorKind, Outcome, Result};
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::rows::{Scope, Session};
use crate::config::Driver;
use crate::error::store_error;

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
    sender: oneshot::Sender<Result<T>>,
}

impl<T, F> Job for Asked<T, F>
where
    T: Send,
    F: Fn(&mut Table) -> Result<T> + Send,
{
    fn run(&mut self, session: &mut Session<'_>) -> rusqlite::Result<()> {
        self.result = Some(session.run(&self.scope, &self.work)?);
        Ok(())
    }

    fn finish(self: Box<Self>, fate: &std::result::Result<(), Fate>) {
        let result = match (fate, self.result) {
            (Ok(()), Some(result)) => result,
            (Err(fate), _) => Err(fate.error()),
            (Ok(()), None) => Err(Error::new(ErrorKind::Internal, "a job was committed without being run")),
        };
        // The caller may be gone; what was committed stands.
        let _ = self.sender.send(result);
    }
}

#[derive(Clone)]
pub(super) struct Combiner {
    conn: Arc<Mutex<Connection>>,
    queue: Arc<Mutex<Vec<Box<dyn Job>>>>,
    clock: Arc<dyn Clock>,
    driver: Driver,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Combiner {
    pub(super) fn new(conn: Connection, driver: Driver, clock: Arc<dyn Clock>) -> Self {
        Self { conn: Arc::new(Mutex::new(conn)), queue: Arc::default(), clock, driver }
    }

    /// Runs `work` on the operations of `scope` and answers once that is committed.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        scope: Scope,
        work: impl Fn(&mut Table) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, answer) = oneshot::channel();
        locked(&self.queue).push(Box::new(Asked { scope, work, result: None, sender }));
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
            return Ok(look(&locked(&self.conn)));
        }
        let conn = Arc::clone(&self.conn);
        let ended = |_| Error::new(ErrorKind::Internal, "a look panicked");
        tokio::task::spawn_blocking(move || look(&locked(&conn))).await.map_err(ended)
    }

    fn drain(&self) {
        let conn = locked(&self.conn);
        loop {
            let mut batch: Vec<Box<dyn Job>> = {
                let mut queue = locked(&self.queue);
                let most = queue.len().min(MAX_BATCH);
                queue.drain(..most).collect()
            };
            if batch.is_empty() {
                return;
            }
            let fate = self.transact(&conn, &mut batch);
            if batch.len() > 1 && matches!(&fate, Err(f) if f.outcome == Outcome::NotApplied) {
                // One of them spoiled it for the others: each for itself.
                for mut job in batch {
                    let fate = self.transact(&conn, std::slice::from_mut(&mut job));
                    job.finish(&fate);
                }
            } else {
                batch.into_iter().for_each(|job| job.finish(&fate));
            }
        }
    }

    fn transact(&self, conn: &Connection, jobs: &mut [Box<dyn Job>]) -> std::result::Result<(), Fate> {
        let undone = |e| Fate::of(e, Outcome::NotApplied);
        conn.execute_batch("begin immediate").map_err(undone)?;
        let done = (|| {
            let mut session = Session::begin(conn, &*self.clock)?;
            for job in jobs {
                job.run(&mut session)?;
            }
            session.end()
        })();
        if let Err(e) = done {
            let rolled_back = conn.execute_batch("rollback");
            return Err(undone(rolled_back.err().unwrap_or(e)));
        }
        conn.execute_batch("commit").map_err(|e| {
            // After a failed sync nobody knows; a transaction that is still open did not happen.
            let open = !conn.is_autocommit();
            let outcome = if open && conn.execute_batch("rollback").is_ok() {
                Outcome::NotApplied
            } else {
                Outcome::Unknown
            };
            Fate::of(e, outcome)
        })
    }
}
