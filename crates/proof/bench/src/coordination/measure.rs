//! Pairs of acquire and release, in turns.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use futures_util::future::{BoxFuture, join_all};
use mainstay_clock::{Clock as _, SystemClock};
use mainstay_store::LeaseStore;
use mainstay_store::lease::{AcquireRequest, Acquired, Released};

use super::TTL;
use crate::load::{self, Histogram};

/// What takes and gives back locks.
pub(super) trait Locks: Send + Sync {
    fn acquire<'a>(&'a self, name: &'a str, op: &'a str) -> BoxFuture<'a, anyhow::Result<()>>;
    fn release<'a>(&'a self, name: &'a str, op: &'a str) -> BoxFuture<'a, anyhow::Result<()>>;
}

/// A store of ours.
pub(super) struct Ours(pub(super) Arc<dyn LeaseStore>);

impl Locks for Ours {
    fn acquire<'a>(&'a self, name: &'a str, op: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            match self.0.acquire(AcquireRequest::exclusive(name, "bench", op, TTL)).await? {
                Acquired::Granted(_) => Ok(()),
                other => bail!("not granted: {other:?}"),
            }
        })
    }

    fn release<'a>(&'a self, _name: &'a str, op: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            match self.0.release(op).await? {
                Released::Clean => Ok(()),
                Released::AlreadyGone => bail!("gone before its release"),
            }
        })
    }
}

/// Of one client in one situation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) pairs: f64,
}

/// One turn of so many callers.
pub(super) async fn turn(
    locks: &Arc<dyn Locks>,
    callers: usize,
    time: Duration,
    salt: usize,
) -> anyhow::Result<Figures> {
    let clock = SystemClock::new();
    let end = clock.now().saturating_add(time);
    let began = clock.now();
    // Tasks of their own, so that callers use all cores as those of a service do.
    let tasks = (0..callers).map(|caller| {
        let locks = Arc::clone(locks);
        #[allow(clippy::disallowed_methods, reason = "the result of the task is awaited")]
        tokio::task::spawn(async move {
            let mut times = Histogram::new();
            let name = format!("bench/{caller}");
            let mut count = 0_usize;
            while clock.now() < end {
                // An op id is used once: the same one later is refused.
                let op = format!("{:016x}{caller:08x}{salt:02x}{count:06x}", began.as_nanos());
                let sent = clock.now();
                locks.acquire(&name, &op).await?;
                times.add(clock.now().saturating_duration_since(sent));
                locks.release(&name, &op).await?;
                count += 1;
            }
            anyhow::Ok(times)
        })
    });
    let mut all = Histogram::new();
    for done in join_all(tasks).await {
        all.merge(&done??);
    }
    let seconds = clock.now().saturating_duration_since(began).as_secs_f64();
    Ok(Figures { p50_us: all.micros(0.5), p99_us: all.micros(0.99), pairs: all.count() as f64 / seconds })
}

impl From<&load::Figures> for Figures {
    fn from(f: &load::Figures) -> Self {
        Self { p50_us: f.p50, p99_us: f.p99, pairs: f.done as f64 / f.seconds }
    }
}

/// The median turn by each figure; none where there was no turn.
pub(super) fn median(turns: &[Figures]) -> Option<Figures> {
    let middle = |value: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = turns.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    Some(Figures {
        p50_us: middle(|f| f.p50_us)?,
        p99_us: middle(|f| f.p99_us)?,
        pairs: middle(|f| f.pairs)?,
    })
}
