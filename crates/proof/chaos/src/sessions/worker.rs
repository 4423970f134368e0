//! One user: reads, writes, hands over, and remembers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, Rng};
use mainstay_consistency::ErrorKind;
use mainstay_consistency::session::{CallError, Consistency, Router, Session, TokenKeys};
use mainstay_sim::history::{Process, Recorder};
use mainstay_store::Error;

use super::{Reading, Rig};

/// Between two tries while servers are gone.
const PAUSE: Duration = Duration::from_millis(5);
/// One step of so many is a write, and one a hand-over: reads are what is counted.
const WRITE_ONE_IN: u64 = 24;

/// Counters that all workers share.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) reads: AtomicU64,
    pub(super) replica_reads: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) handovers: AtomicU64,
    pub(super) told_lost: AtomicU64,
    pub(super) told_unproven: AtomicU64,
    pub(super) unavailable: AtomicU64,
    pub(super) stale: AtomicU64,
    pub(super) stop: AtomicBool,
    pub(super) ended: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What all workers have.
pub(super) struct Common<R: Rig> {
    pub(super) router: Router<R::Conn>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) tokens: TokenKeys,
    pub(super) recorder: Recorder,
    /// Versions are unique: one that was lost is never written again.
    pub(super) versions: AtomicI64,
    pub(super) tally: Arc<Tally>,
    pub(super) keys: Vec<String>,
    pub(super) reading: Reading,
}

pub(super) struct Worker<R: Rig> {
    common: Arc<Common<R>>,
    number: usize,
    session: Session<R::Conn>,
    rng: Arc<dyn Rng>,
    process: Process,
    sessions: u64,
    /// The least version that the session may see, per key.
    floors: BTreeMap<usize, i64>,
}

pub(super) async fn read<R: Rig>(
    session: &mut Session<R::Conn>,
    key: &str,
    reading: Reading,
) -> Result<i64, CallError<Error>> {
    match reading {
        Reading::Session => session.read(async |c: &mut R::Conn| R::read(c, key).await).await,
        Reading::Naive => {
            session.read_at(&Consistency::MinLatency, async |c: &mut R::Conn| R::read(c, key).await).await
        }
    }
}

pub(super) async fn write<R: Rig>(
    session: &mut Session<R::Conn>,
    key: &str,
    version: i64,
) -> Result<(), CallError<Error>> {
    session.write(async |c: &mut R::Conn| R::write(c, key, version).await).await
}

impl<R: Rig> Worker<R> {
    pub(super) fn new(common: Arc<Common<R>>, number: usize, rng: Arc<dyn Rng>) -> Self {
        let (session, process) = (common.router.session(), common.recorder.process());
        let mut worker = Self { common, number, session, rng, process, sessions: 0, floors: BTreeMap::new() };
        worker.new_session();
        worker
    }

    /// What was lost has been said: to the checker, another session begins.
    fn new_session(&mut self) {
        self.sessions += 1;
        self.floors.clear();
        let name = format!("{}-{}", self.number, self.sessions);
        self.process = self.common.recorder.process().in_session(&name);
    }

    /// Works until it is told to stop.
    pub(super) async fn run(mut self) {
        while !self.common.tally.stop.load(Ordering::Relaxed) {
            let calm = match self.rng.below(WRITE_ONE_IN) {
                0 => self.write().await,
                1 => self.hand_over().await,
                _ => self.read().await,
            };
            if !calm {
                self.common.clock.sleep(PAUSE).await;
            }
        }
        count(&self.common.tally.ended);
    }

    async fn write(&mut self) -> bool {
        let common = Arc::clone(&self.common);
        // Nobody else writes it, so versions are in the order of the log.
        let key = &common.keys[self.number];
        let version = common.versions.fetch_add(1, Ordering::Relaxed) + 1;
        let call = self.process.begin("write", key);
        match write::<R>(&mut self.session, key, version).await {
            Ok(()) => {
                call.ok_with(version);
                count(&common.tally.writes);
                self.floors.insert(self.number, version);
                true
            }
            Err(error) => {
                // Inside the closure it may have happened.
                if matches!(error, CallError::Inner(_)) {
                    drop(call)
                } else {
                    call.fail()
                }
                self.failed(&error)
            }
        }
    }

    async fn read(&mut self) -> bool {
        let common = Arc::clone(&self.common);
        let all = common.keys.len() as u64;
        let own = self.rng.below(2) == 0;
        let at = if own { self.number } else { usize::try_from(self.rng.below(all)).unwrap_or(0) };
        let call = self.process.begin("read", &common.keys[at]);
        match read::<R>(&mut self.session, &common.keys[at], common.reading).await {
            Ok(version) => {
                call.ok_with(version);
                count(&common.tally.reads);
                let floor = self.floors.entry(at).or_insert(version);
                if version < *floor {
                    count(&common.tally.stale);
                    eprintln!(
                        "stale: {} is {version}, the session knew {floor}: {:?}",
                        common.keys[at], self.session
                    );
                }
                *floor = (*floor).max(version);
                true
            }
            Err(error) => {
                call.fail();
                self.failed(&error)
            }
        }
    }

    /// The next request of the same user, elsewhere.
    async fn hand_over(&mut self) -> bool {
        let token = match self.session.token().await {
            Ok(token) => token,
            Err(error) => return self.failed(&CallError::Refused(error)),
        };
        let text = self.common.tokens.seal(&token, self.common.clock.wall());
        self.session = self.common.router.session().resume_sealed(&text, &self.common.tokens);
        count(&self.common.tally.handovers);
        true
    }

    fn failed(&mut self, error: &CallError<Error>) -> bool {
        let tally = &self.common.tally;
        match error {
            CallError::Refused(e) if e.kind() == ErrorKind::WriteLost => count(&tally.told_lost),
            CallError::Refused(e) if e.kind() == ErrorKind::Unproven => count(&tally.told_unproven),
            _ => {
                count(&tally.unavailable);
                return false;
            }
        }
        if self.session.accept_loss() {
            self.new_session();
        }
        false
    }
}
