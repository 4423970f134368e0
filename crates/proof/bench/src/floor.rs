//! The bare floor: what the disk and group commit cost, without any engine.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot};

use crate::load::{self, Figures, Order};

/// Bytes of one record, about what an engine writes per step.
const RECORD: usize = 128;
/// Durable waits of a three-step saga: created, and one per step.
const WAITS: usize = 4;

/// A log file with one flusher: whatever waits goes out with one `fdatasync`.
struct Log(mpsc::Sender<oneshot::Sender<()>>);

impl Log {
    fn open(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join("floor.log");
        let mut file = File::create(&file).with_context(|| file.display().to_string())?;
        let (sender, mut waiting) = mpsc::channel::<oneshot::Sender<()>>(4_096);
        std::thread::spawn(move || {
            while let Some(first) = waiting.blocking_recv() {
                let mut batch = vec![first];
                while let Ok(more) = waiting.try_recv() {
                    batch.push(more);
                }
                let bytes = vec![0x5a; RECORD * batch.len()];
                let done =
                    file.write_all(&bytes).and_then(|()| rustix::fs::fdatasync(&file).map_err(Into::into));
                if done.is_err() {
                    // Dropped senders tell the callers.
                    return;
                }
                for one in batch {
                    // A caller that went away has nothing to learn.
                    let _ = one.send(());
                }
            }
        });
        Ok(Self(sender))
    }

    async fn append(&self) -> bool {
        let (sender, done) = oneshot::channel();
        self.0.send(sender).await.is_ok() && done.await.is_ok()
    }
}

/// Variant `saga`: the durable waits of a three-step saga; otherwise single appends.
pub(crate) fn child(order: &Order) -> anyhow::Result<Figures> {
    let log = std::sync::Arc::new(Log::open(Path::new(&order.dir))?);
    let waits = if order.variant == "saga" { WAITS } else { 1 };
    let runtime = tokio::runtime::Runtime::new()?;
    Ok(runtime.block_on(load::closed_loop(order, move |_| {
        let log = std::sync::Arc::clone(&log);
        async move {
            for _ in 0..waits {
                if !log.append().await {
                    return false;
                }
            }
            true
        }
    })))
}

/// `fdatasync` after 128 bytes, for a moment: the state of the disk around a measured point.
pub(crate) fn probe(dir: &Path, seconds: f64) -> anyhow::Result<Probe> {
    let name = dir.join("probe.log");
    let mut file = File::create(&name).with_context(|| name.display().to_string())?;
    let clock = mainstay_clock::SystemClock::new();
    let now = || mainstay_clock::Clock::now(&clock);
    let began = now();
    let mut times = load::Histogram::new();
    while now().saturating_duration_since(began).as_secs_f64() < seconds {
        let before = now();
        file.write_all(&[0x5a; RECORD])?;
        rustix::fs::fdatasync(&file)?;
        times.add(now().saturating_duration_since(before));
    }
    std::fs::remove_file(&name)?;
    Ok(Probe {
        syncs_per_second: times.count() as f64 / seconds,
        p50: times.micros(0.5),
        p99: times.micros(0.99),
    })
}

/// What [`probe`] found, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) syncs_per_second: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}
