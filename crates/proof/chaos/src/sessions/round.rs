//! Failover after failover, with workers that do not stop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Instant, Runtime, SeededRng};
use mainstay_consistency::session::{CallError, Router, Session, SessionEvent, SessionToken, TokenKeys};
use mainstay_sim::check::{judge, session_guarantees};
use mainstay_sim::history::Recorder;
use mainstay_sim::verdict::Verdict;
use mainstay_store::replicated::Judgment;
use mainstay_store::{Error, ReplicatedStore as _};

use super::worker::{Common, Tally, Worker, count, read, write};
use super::{Plan, Reading, Rig, Totals};

/// Sessions per failover whose writes are known to be lost, or known to be kept.
const WITNESSES: usize = 4;
/// How long servers may take to be asked again after a failover.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);
/// Least time between two failovers: long enough that every worker has read and written.
const DWELL: Duration = Duration::from_millis(500);

struct Campaign<'a, R: Rig> {
    rig: &'a mut R,
    plan: &'a Plan,
    common: Arc<Common<R>>,
    totals: Totals,
    end: Instant,
}

/// A session whose last write is known to be lost, or known to be kept.
struct Witness<R: Rig> {
    session: Session<R::Conn>,
    key: String,
    version: i64,
    token: SessionToken,
}

/// Runs a campaign on `rig` and says what was counted.
///
/// # Errors
/// The servers do not do as they are told.
///
/// # Cancel safety
/// Dropping the future leaves workers that end when the servers do.
pub async fn campaign<R>(rig: &mut R, plan: &Plan, rt: &Runtime) -> io::Result<Totals>
where
    R: Rig + 'static,
{
    let keys: Vec<String> = (0..plan.workers).map(|i| format!("w{i}")).collect();
    let witnesses: Vec<String> = (0..WITNESSES).map(|i| format!("x{i}")).collect();
    rig.prepare(&[keys.clone(), witnesses].concat())?;
    let tally = Arc::new(Tally::default());
    let router = router(rig, rt, &tally)?;
    router.poll_once().await;
    let poller = router.start(rt);
    let clock = Arc::clone(rt.clock());
    let tokens = TokenKeys::builder("campaign").key(1, [7; 32]).build().map_err(io::Error::other)?;
    let common = Arc::new(Common {
        router,
        clock: Arc::clone(&clock),
        tokens,
        recorder: Recorder::new(Arc::clone(&clock)),
        versions: AtomicI64::new(0),
        tally,
        keys,
        reading: plan.reading,
    });
    let tasks: Vec<_> = (0..plan.workers)
        .map(|i| {
            let rng = Arc::new(SeededRng::new(plan.seed.wrapping_mul(1_000).wrapping_add(i as u64)));
            rt.spawn("session-worker", Worker::new(Arc::clone(&common), i, rng).run())
        })
        .collect();
    let end = clock.now().saturating_add(plan.limit);
    let mut campaign = Campaign { rig, plan, common, totals: Totals::default(), end };
    let done = campaign.run().await;
    campaign.stop().await;
    tasks.into_iter().for_each(mainstay_clock::TaskHandle::abort);
    drop(poller);
    done.map(|()| campaign.totals)
}

fn router<R: Rig>(rig: &R, rt: &Runtime, tally: &Arc<Tally>) -> io::Result<Router<R::Conn>> {
    let heard = Arc::clone(tally);
    let builder = Router::builder("campaign", Arc::clone(rt.clock()))
        .call_timeout(Duration::from_secs(2))
        .on_event(move |event| {
            if matches!(event, SessionEvent::ToReplica { .. }) {
                count(&heard.replica_reads);
            }
        });
    rig.nodes(builder).build().map_err(io::Error::other)
}

impl<R: Rig + 'static> Campaign<'_, R> {
    async fn run(&mut self) -> io::Result<()> {
        while !self.is_done() {
            self.dwell().await;
            self.fail_over().await?;
            self.dwell().await;
            self.judge();
            self.count();
            self.plan.keep.keep(&self.totals);
        }
        Ok(())
    }

    fn reads(&self) -> u64 {
        self.common.tally.reads.load(Ordering::Relaxed)
    }

    fn is_done(&self) -> bool {
        let enough = self.reads() >= self.plan.reads && self.totals.failovers >= self.plan.failovers;
        enough || self.common.clock.now() >= self.end
    }

    /// Lets the workers work for the reads that belong to half a failover.
    async fn dwell(&self) {
        let share = self.plan.reads / self.plan.failovers.max(1) / 2;
        let wanted = self.reads() + share;
        let least = self.common.clock.now().saturating_add(DWELL);
        loop {
            let now = self.common.clock.now();
            if now >= self.end || (self.reads() >= wanted && now >= least) {
                return;
            }
            self.common.clock.sleep(LOOK).await;
        }
    }

    async fn fail_over(&mut self) -> io::Result<()> {
        let lossy = self.totals.failovers.is_multiple_of(2);
        let settled = if lossy {
            self.rig.isolate()?;
            self.witnesses().await?
        } else {
            let witnesses = self.witnesses().await?;
            self.rig.settle()?;
            witnesses
        };
        self.rig.take_over()?;
        self.totals.failovers += 1;
        if lossy {
            self.totals.lossy += 1;
            self.totals.doomed += settled.len() as u64;
            self.no_node_has(&settled).await?;
        } else {
            self.totals.kept += settled.len() as u64;
        }
        for witness in settled {
            self.question(witness, lossy).await?;
        }
        Ok(())
    }

    /// Writes of sessions that end here, each acknowledged.
    async fn witnesses(&self) -> io::Result<Vec<Witness<R>>> {
        let mut all = Vec::new();
        for i in 0..WITNESSES {
            let (mut session, key) = (self.common.router.session(), format!("x{i}"));
            let version = self.common.versions.fetch_add(1, Ordering::Relaxed) + 1;
            self.patiently(async || write::<R>(&mut session, &key, version).await).await?;
            let token = self.token(&mut session).await?;
            all.push(Witness { session, key, version, token });
        }
        Ok(all)
    }

    /// Tries again while servers are gone.
    async fn patiently<T>(&self, mut f: impl AsyncFnMut() -> Result<T, CallError<Error>>) -> io::Result<T> {
        let end = self.common.clock.now().saturating_add(PATIENCE);
        loop {
            match f().await {
                Ok(out) => return Ok(out),
                Err(error) if self.common.clock.now() < end && !error.is_lost() => {
                    self.common.clock.sleep(LOOK).await;
                }
                Err(error) => return Err(io::Error::other(format!("a session still fails: {error}"))),
            }
        }
    }

    /// Where the session is, as soon as somebody can tell.
    async fn token(&self, session: &mut Session<R::Conn>) -> io::Result<SessionToken> {
        let end = self.common.clock.now().saturating_add(PATIENCE);
        loop {
            match session.token().await {
                Ok(token) => return Ok(token),
                Err(error) if self.common.clock.now() < end && error.is_retryable() => {
                    self.common.clock.sleep(LOOK).await;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }

    /// Every node is asked whether it has what is certainly lost.
    async fn no_node_has(&mut self, doomed: &[Witness<R>]) -> io::Result<()> {
        for connecting in self.rig.connections() {
            let Ok(conn) = connecting.await else { continue };
            let Ok(observed) = conn.observe().await else { continue };
            for mark in doomed.iter().flat_map(|w| w.token.positions()) {
                if observed.judge(mark) == Judgment::Satisfied {
                    self.totals.false_satisfied += 1;
                    eprintln!("false Satisfied: {mark:?} by {observed:?}");
                }
            }
        }
        Ok(())
    }

    /// What the session of a witness is told.
    async fn question(&mut self, witness: Witness<R>, lossy: bool) -> io::Result<()> {
        let Witness { mut session, key, version, .. } = witness;
        let reading = self.plan.reading;
        let end = self.common.clock.now().saturating_add(PATIENCE);
        loop {
            match read::<R>(&mut session, &key, reading).await {
                Err(error) if error.is_lost() => {
                    if lossy {
                        self.totals.doomed_told += 1
                    } else {
                        self.totals.kept_called_lost += 1
                    }
                    return Ok(());
                }
                Err(_) if self.common.clock.now() < end => self.common.clock.sleep(LOOK).await,
                Err(error) => return Err(io::Error::other(format!("a witness cannot be heard: {error}"))),
                Ok(found) => {
                    if lossy {
                        self.totals.silent += 1;
                        self.say(|| format!("silent: {key} is {found}, and {version} was lost"));
                    } else if found < version {
                        count(&self.common.tally.stale);
                        self.say(|| format!("stale: {key} is {found}, the session wrote {version}"));
                    } else {
                        self.totals.kept_found += 1;
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Lets the checker of the four guarantees judge what was recorded since the last time.
    fn judge(&mut self) {
        let events = self.common.recorder.take();
        match judge(&events, session_guarantees()) {
            Verdict::Pass(evidence) => self.totals.judged += evidence.judged,
            Verdict::Unknown(_) => {}
            other => {
                self.totals.refuted += 1;
                self.say(|| other.to_string());
            }
        }
    }

    /// Tells a violation; of naive reads they are wanted, and many.
    fn say(&self, text: impl FnOnce() -> String) {
        if self.plan.reading == Reading::Session {
            eprintln!("{}", text());
        }
    }

    fn count(&mut self) {
        let tally = &self.common.tally;
        let take = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.totals.reads = take(&tally.reads);
        self.totals.replica_reads = take(&tally.replica_reads);
        self.totals.writes = take(&tally.writes);
        self.totals.handovers = take(&tally.handovers);
        self.totals.told_lost = take(&tally.told_lost);
        self.totals.told_unproven = take(&tally.told_unproven);
        self.totals.unavailable = take(&tally.unavailable);
        self.totals.stale = take(&tally.stale);
    }

    async fn stop(&mut self) {
        let tally = Arc::clone(&self.common.tally);
        tally.stop.store(true, Ordering::Relaxed);
        let end = self.common.clock.now().saturating_add(PATIENCE);
        while tally.ended.load(Ordering::Relaxed) < self.plan.workers as u64 && self.common.clock.now() < end
        {
            self.common.clock.sleep(LOOK).await;
        }
        self.judge();
        self.count();
        self.plan.keep.keep(&self.totals);
    }
}
