//! The writer: a thread-free batching core with two drivers.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_store::journal::Calendar;
use mainstay_store::{Error, ErrorKind, Outcome, Result};
use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot, watch};

use crate::desk::Desk;
use crate::error::{store_error, sync_failed};
use crate::lockfile::LockFile;

/// Most jobs of one transaction: bounds how long one sync makes others wait.
const MAX_BATCH: usize = 1_024;
/// Most payload of one transaction.
const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// Jobs that may wait for the writer; more callers wait in their own tasks.
const QUEUE: usize = 4_096;
/// A checkpoint is due after this many commits; about 4 MiB of log at usual sizes.
pub(crate) const CHECKPOINT_EVERY: u32 = 256;

/// The time shown is kept this often: a run that begins with a calendar that was set back may begin this much behind the
/// time that claims and messages were written with, and no more. Each time is one more page of one commit.
const KEEP_TIME_EVERY: i64 = 1_000;

/// What a checkpoint leaves when it met a sync that failed.
type Stop = Arc<OnceLock<Failure>>;

/// Bytes of a frame of the log: a page and its head.
const FRAME: u64 = 4_096 + 24;
/// How long commits may wait for readers that keep the log from starting over, once it is twice too long.
const READERS_WAIT: Duration = Duration::from_millis(50);

/// Why a transaction did not happen, or may have.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    kind: ErrorKind,
    outcome: Outcome,
    text: String,
}

impl Failure {
    fn error(&self) -> Error {
        Error::new(self.kind, self.text.clone()).with_outcome(self.outcome)
    }
}

/// A unit of work inside a batch.
pub(crate) struct Job {
    bytes: usize,
    work: Box<dyn Work>,
}

/// Work and the caller that waits for it.
trait Work: Send {
    /// Whether it may be run again after its writes were taken back.
    fn repeats(&self) -> bool;

    /// Runs it; after a failure its writes must be taken back.
    fn run(&mut self, pen: &mut Pen) -> Option<Failure>;

    /// Answers, once the fate of the transaction is known.
    fn answer(self: Box<Self>, fate: &std::result::Result<(), Failure>);
}

struct Asked<T, F> {
    sender: oneshot::Sender<Result<T>>,
    work: F,
    repeats: bool,
    /// What it came to when it ran last; none while it did not run.
    result: Option<Result<T>>,
}

impl<T, F> Work for Asked<T, F>
where
    T: Send + 'static,
    F: FnMut(&mut Pen) -> std::result::Result<T, Step> + Send,
{
    fn repeats(&self) -> bool {
        self.repeats
    }

    fn run(&mut self, pen: &mut Pen) -> Option<Failure> {
        let (result, failed) = match (self.work)(pen) {
            Ok(value) => (Ok(value), None),
            Err(Step::Refuse(error)) => (Err(error), None),
            Err(Step::Failed(e)) => {
                let failed = failure(&e, Outcome::NotApplied);
                (Err(failed.error()), Some(failed))
            }
            Err(Step::Ended) => {
                let text = "the work ended the transaction it shares".to_owned();
                let failed = Failure { kind: ErrorKind::ApiMisuse, outcome: Outcome::Unknown, text };
                (Err(failed.error()), Some(failed))
            }
        };
        self.result = Some(result);
        failed
    }

    fn answer(self: Box<Self>, fate: &std::result::Result<(), Failure>) {
        let result = match (self.result, fate) {
            (Some(Err(error)), _) => Err(error),
            (_, Err(failure)) => Err(failure.error()),
            (Some(done), Ok(())) => done,
            // Not run, and yet committed: nobody asks for that.
            (None, Ok(())) => Err(Error::new(ErrorKind::Unavailable, "the work was not run")),
        };
        // The caller may be gone; the write stands.
        let _ = self.sender.send(result);
    }
}

/// What work writes with, inside the transaction of its batch.
pub(crate) struct Pen {
    pub(crate) conn: Connection,
    /// The time of this transaction: never before that of an earlier one.
    pub(crate) now: i64,
    pub(crate) desk: Desk,
}

/// Runs batches on a connection.
pub(crate) struct Core {
    pen: Pen,
    calendar: Calendar,
    clock: Arc<dyn Clock>,
    meter: Arc<Meter>,
    /// The time on file.
    kept: i64,
    /// After a failed sync nothing is certain any more; the process must reopen the file.
    broken: Stop,
    commits: u32,
    /// Freed with the last write, not before.
    _lock: LockFile,
    /// Counts commits, for those who wait for one. Last: whoever waits for its end waits for the lock.
    changed: watch::Sender<u64>,
}

impl Pen {
    /// Runs a statement that is needed with every batch: it is prepared once.
    fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        self.conn.prepare_cached(sql)?.execute([]).map(drop)
    }
}

impl Core {
    pub(crate) fn new(
        conn: Connection,
        clock: Arc<dyn Clock>,
        changed: watch::Sender<u64>,
        lock: LockFile,
    ) -> Result<Self> {
        let (last, kept): (i64, i64) = conn
            .query_row(
                "select max(at, ifnull((select at from log order by n desc limit 1), 0),
                        ifnull((select at from audit order by seq desc limit 1), 0)), at from calendar",
                [],
                |r| Ok((r.get(0)?, r.get(1)?)),
            )
            .map_err(store_error)?;
        let pen = Pen { desk: Desk::open(&conn)?, conn, now: last };
        Ok(Self {
            pen,
            calendar: Calendar::new(Arc::clone(&clock), last),
            clock,
            kept,
            meter: Arc::default(),
            broken: Stop::default(),
            commits: 0,
            _lock: lock,
            changed,
        })
    }

    /// Runs `jobs` in one transaction and answers each.
    fn run(&mut self, mut jobs: Vec<Job>) {
        let fate = self.transact(&mut jobs);
        for job in jobs {
            job.work.answer(&fate);
        }
    }

    /// Most batches run as they are. Only where something fails, or may and could not be run again, each job is run on its
    /// own: a mark before it and one behind, and a copy of every page that it changes first.
    fn transact(&mut self, jobs: &mut [Job]) -> std::result::Result<(), Failure> {
        self.pen.now = self.calendar.now();
        if let Some(why) = self.broken.get() {
            return Err(why.clone());
        }
        if jobs.len() == 1 || jobs.iter().all(|job| job.work.repeats()) {
            self.begin()?;
            let Some(why) = jobs.iter_mut().find_map(|job| job.work.run(&mut self.pen)) else {
                return self.commit();
            };
            self.roll_back();
            if jobs.len() == 1 {
                return Err(why);
            }
            if let Some(why) = self.broken.get() {
                return Err(why.clone());
            }
        }
        self.begin()?;
        if let Some(why) = jobs.iter_mut().find_map(|job| self.isolate(job)) {
            self.roll_back();
            return Err(why);
        }
        self.commit()
    }

    fn begin(&self) -> std::result::Result<(), Failure> {
        self.pen.execute("begin immediate").map_err(|e| failure(&e, Outcome::NotApplied))
    }

    /// Runs one job of several: what fails leaves no trace, and its neighbors go on.
    ///
    /// A failure that ended the whole transaction (a full disk, an I/O error) is the answer.
    fn isolate(&mut self, job: &mut Job) -> Option<Failure> {
        if let Err(e) = self.pen.execute("savepoint job") {
            return Some(failure(&e, Outcome::NotApplied));
        }
        let mark = self.pen.desk.mark();
        let Some(why) = job.work.run(&mut self.pen) else {
            return self.pen.execute("release job").err().map(|e| failure(&e, Outcome::NotApplied));
        };
        self.pen.desk.forget_all();
        self.pen.desk.back_to(mark);
        let back = !self.pen.conn.is_autocommit()
            && self.pen.execute("rollback to job").and_then(|()| self.pen.execute("release job")).is_ok();
        (!back).then_some(why)
    }

    fn commit(&mut self) -> std::result::Result<(), Failure> {
        let keep = self.pen.now >= self.kept.saturating_add(KEEP_TIME_EVERY);
        let Pen { conn, desk, now } = &mut self.pen;
        let written = desk.write_tally(conn).and_then(|()| if keep { keep_time(conn, *now) } else { Ok(()) });
        if let Err(e) = written {
            self.roll_back();
            return Err(failure(&e, Outcome::NotApplied));
        }
        let begun = self.clock.now();
        let Err(e) = self.pen.execute("commit") else {
            self.meter.add(self.clock.now().saturating_duration_since(begun));
            if keep {
                self.kept = self.pen.now;
            }
            self.commits += 1;
            self.changed.send_modify(|n| *n += 1);
            return Ok(());
        };
        let full = e.sqlite_error_code() == Some(ErrorCode::DiskFull);
        self.roll_back();
        // A frame that could not be written is no commit: SQLite writes the one that commits last, and no reader
        // looks behind it. With room again the log goes on from the last commit.
        if full && self.broken.get().is_none() {
            return Err(failure(&e, Outcome::NotApplied));
        }
        // A sync that failed is not tried again: the lost pages are marked clean already.
        let unknown = failure(&e, Outcome::Unknown);
        stop(&self.broken, &unknown);
        Err(unknown)
    }

    /// Lets a log of `frames` start over when it is longer than `max`.
    fn shorten(&self, frames: i64, max: i64) {
        if frames <= max {
            return;
        }
        // Beside the commits nearly all was moved; between two of them the rest is small.
        let left = checkpoint_now(&self.pen.conn, &self.broken);
        if left <= max.saturating_mul(2) {
            return;
        }
        // All is moved, but readers stand in the log: they are waited for, shortly.
        let restarted = self.pen.conn.busy_timeout(READERS_WAIT).and_then(|()| {
            self.pen.conn.query_row("pragma wal_checkpoint(restart)", [], |r| r.get::<_, i64>(0))
        });
        if let Err(error) = &restarted
            && sync_failed(error)
        {
            stop(&self.broken, &failure(error, Outcome::Unknown));
        } else if !matches!(restarted, Ok(0)) {
            let bytes = left.unsigned_abs() * FRAME;
            tracing::warn!(target: "mainstay::sqlite", bytes, "a reader keeps the log from starting over");
        }
        if let Err(error) = self.pen.conn.busy_timeout(crate::open::BUSY) {
            tracing::warn!(target: "mainstay::sqlite", %error, "the busy timeout is not restored");
        }
    }

    fn roll_back(&mut self) {
        self.pen.desk.forget_all();
        self.pen.desk.back_to(0);
        if !self.pen.conn.is_autocommit()
            && let Err(e) = self.pen.execute("rollback")
        {
            stop(&self.broken, &failure(&e, Outcome::Unknown));
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if self.broken.get().is_some() {
            leave_log(&self.pen.conn);
        }
    }
}

fn keep_time(conn: &Connection, now: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("update calendar set at = ?1")?.execute([now]).map(drop)
}

fn failure(e: &rusqlite::Error, outcome: Outcome) -> Failure {
    let kind = match e.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => ErrorKind::Full,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ErrorKind::Corrupt,
        _ => ErrorKind::Unavailable,
    };
    Failure { kind, outcome, text: format!("the transaction failed: {e}") }
}

/// Upper bounds of the classes of commits, in microseconds: from memory to a disk in trouble.
const CLASSES: [u64; 12] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 2_500_000];

/// Counts commits by how long they took.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Not cumulative; the last is beyond all bounds.
    classes: [AtomicU64; CLASSES.len() + 1],
    nanos: AtomicU64,
}

impl Meter {
    fn add(&self, took: Duration) {
        let class = CLASSES.iter().position(|us| took <= Duration::from_micros(*us)).unwrap_or(CLASSES.len());
        self.classes[class].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// What a store says of its writes since it was opened.
///
/// ```
/// use mainstay_clock::Runtime;
/// use mainstay_sqlite::SqliteStore;
/// use mainstay_store::RecordStore;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let dir = tempfile::tempdir().unwrap();
/// let store = SqliteStore::builder(dir.path().join("node.db")).open(&Runtime::system()).unwrap();
/// store.put_if("k", None, b"v".to_vec(), None).await.unwrap();
/// let writes = store.writes();
/// assert!(writes.commits >= 1 && writes.queued == 0);
/// assert!(writes.commits_within.iter().all(|(_, below)| *below <= writes.commits));
/// # });
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Writes {
    /// Writes that wait for the next commit.
    pub queued: usize,
    /// Transactions that were committed. Each is one sync, which all writes in it share.
    pub commits: u64,
    /// How long commits took together.
    pub commit_time: Duration,
    /// How many took at most so long, by growing bounds.
    pub commits_within: Vec<(Duration, u64)>,
}

/// Hands jobs to the core.
#[derive(Clone)]
pub(crate) struct Writer {
    way: Way,
    meter: Arc<Meter>,
}

#[derive(Clone)]
enum Way {
    Inline(Arc<Mutex<Core>>),
    Thread(mpsc::Sender<Job>),
}

impl Writer {
    pub(crate) fn inline(core: Core) -> Self {
        let meter = Arc::clone(&core.meter);
        Self { way: Way::Inline(Arc::new(Mutex::new(core))), meter }
    }

    /// What happened so far.
    pub(crate) fn writes(&self) -> Writes {
        let queued = match &self.way {
            Way::Inline(_) => 0,
            Way::Thread(queue) => queue.max_capacity() - queue.capacity(),
        };
        let counts: Vec<u64> = self.meter.classes.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        let mut below = 0;
        let within = CLASSES.iter().zip(&counts).map(|(us, count)| {
            below += count;
            (Duration::from_micros(*us), below)
        });
        Writes {
            queued,
            commits_within: within.collect(),
            commits: counts.iter().sum(),
            commit_time: Duration::from_nanos(self.meter.nanos.load(Ordering::Relaxed)),
        }
    }

    /// Starts the writer thread. `checkpoint` runs off the commit path, on a thread of its own.
    pub(crate) fn thread(mut core: Core, checkpoint: Connection, max_wal_bytes: u64) -> Result<Self> {
        let meter = Arc::clone(&core.meter);
        let max_frames = i64::try_from(max_wal_bytes / FRAME).unwrap_or(i64::MAX);
        let (sender, mut jobs) = mpsc::channel::<Job>(QUEUE);
        let (due, checkpoints) = std::sync::mpsc::sync_channel::<()>(1);
        let frames = Arc::new(AtomicI64::new(0));
        let (measured, broken) = (Arc::clone(&frames), Arc::clone(&core.broken));
        let unable = |e: std::io::Error| {
            Error::new(ErrorKind::Unavailable, "a thread cannot be started").with_source(e)
        };
        std::thread::Builder::new()
            .name("mainstay-checkpoint".to_owned())
            .spawn(move || {
                while checkpoints.recv().is_ok() {
                    // Beside the commits: it moves what it can, but never catches up with a busy writer.
                    measured.store(checkpoint_now(&checkpoint, &broken), Ordering::Relaxed);
                }
                if broken.get().is_some() {
                    leave_log(&checkpoint);
                }
            })
            .map_err(unable)?;
        std::thread::Builder::new()
            .name("mainstay-writer".to_owned())
            .spawn(move || {
                while let Some(first) = jobs.blocking_recv() {
                    core.run(batch(first, &mut jobs));
                    if core.commits >= CHECKPOINT_EVERY {
                        core.commits = 0;
                        let long = frames.swap(0, Ordering::Relaxed);
                        core.shorten(long, max_frames);
                        // Full means that one is due already.
                        let _ = due.try_send(());
                    }
                }
            })
            .map_err(unable)?;
        Ok(Self { way: Way::Thread(sender), meter })
    }

    /// Runs `work` in a transaction and answers once it is committed.
    ///
    /// An error of `work` is its answer when it is a refusal made before anything was written
    /// ([`Step::Refuse`]); a failed statement takes back what this work wrote, and nothing of its neighbors. Where a
    /// neighbor's statement fails, all is taken back and `work` is run again.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl Fn(&Connection, i64) -> std::result::Result<T, Step> + Send + 'static,
    ) -> Result<T> {
        self.work(bytes, move |pen| work(&pen.conn, pen.now)).await
    }

    /// As [`Writer::write`], with the writer's desk.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl Fn(&mut Pen) -> std::result::Result<T, Step> + Send + 'static,
    ) -> Result<T> {
        self.ask(bytes, true, work).await
    }

    /// As [`Writer::work`], of work that is run once at most, whatever its neighbors do.
    pub(crate) async fn work_once<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&mut Pen) -> std::result::Result<T, Step> + Send + 'static,
    ) -> Result<T> {
        let mut work = Some(work);
        let once = move |pen: &mut Pen| work.take().map_or(Err(Step::Ended), |work| work(pen));
        self.ask(bytes, false, once).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        bytes: usize,
        repeats: bool,
        work: impl FnMut(&mut Pen) -> std::result::Result<T, Step> + Send + 'static,
    ) -> Result<T> {
        let (sender, answer) = oneshot::channel();
        let job = Job { bytes, work: Box::new(Asked { sender, work, repeats, result: None }) };
        match &self.way {
            Way::Inline(core) => {
                let mut core = core.lock().unwrap_or_else(PoisonError::into_inner);
                core.run(vec![job]);
                if core.commits >= CHECKPOINT_EVERY {
                    core.commits = 0;
                    checkpoint_now(&core.pen.conn, &core.broken);
                }
            }
            Way::Thread(queue) => {
                let closed = |_| Error::new(ErrorKind::Unavailable, "the writer has stopped");
                queue.send(job).await.map_err(closed)?;
            }
        }
        let lost =
            |_| Error::new(ErrorKind::Unavailable, "the writer has stopped").with_outcome(Outcome::Unknown);
        answer.await.map_err(lost)?
    }
}

/// Why work gives up.
pub(crate) enum Step {
    /// The work ended the transaction that it shares with others.
    Ended,
    /// A statement failed.
    Failed(rusqlite::Error),
    /// Refused before anything was written.
    Refuse(Error),
}

impl From<rusqlite::Error> for Step {
    fn from(e: rusqlite::Error) -> Self {
        Self::Failed(e)
    }
}

impl From<Error> for Step {
    fn from(e: Error) -> Self {
        Self::Refuse(e)
    }
}

/// A passive checkpoint; the frames in the log after it. A sync that fails in it stops the store.
fn checkpoint_now(conn: &Connection, broken: &Stop) -> i64 {
    if broken.get().is_some() {
        return 0;
    }
    conn.query_row("pragma wal_checkpoint(passive)", [], |r| r.get(1)).unwrap_or_else(|error| {
        tracing::warn!(target: "mainstay::sqlite", %error, "checkpoint failed");
        if sync_failed(&error) {
            stop(broken, &failure(&error, Outcome::Unknown));
        }
        0
    })
}

/// A sync that failed is not tried again: the lost pages are marked clean already.
fn stop(broken: &Stop, why: &Failure) {
    let text = format!("the store stopped after: {}", why.text);
    // The first reason stays.
    let _ = broken.set(Failure { outcome: Outcome::NotApplied, text, ..why.clone() });
}

/// The last connection to close would move the log, and sync.
pub(crate) fn leave_log(conn: &Connection) {
    if let Err(error) = conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
    {
        tracing::warn!(target: "mainstay::sqlite", %error, "the log may be moved when the file is closed");
    }
}

/// Whatever is queued, within the limits; nothing is waited for.
fn batch(first: Job, jobs: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let mut bytes = first.bytes;
    let mut batch = vec![first];
    while batch.len() < MAX_BATCH && bytes < MAX_BATCH_BYTES {
        let Ok(job) = jobs.try_recv() else { break };
        bytes += job.bytes;
        batch.push(job);
    }
    batch
}
