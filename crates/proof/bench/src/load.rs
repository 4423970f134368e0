//! The load and how it is measured: one file for every system.
//!
//! The programs under `rivals/` include it too, so it uses nothing but the standard library and tokio.

#![allow(clippy::disallowed_methods, reason = "programs of rivals know no clock of ours")]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Slots per doubling: a percentile is off by less than one in 128.
const SLOTS: usize = 128;
/// Doublings above the first `SLOTS` nanoseconds: up to about an hour.
const OCTAVES: usize = 36;

/// Counts of durations, log-linear, of constant size.
#[derive(Clone)]
pub(crate) struct Histogram(Vec<u64>);

impl Histogram {
    pub(crate) fn new() -> Self {
        Self(vec![0; SLOTS * (OCTAVES + 1)])
    }

    fn slot(nanos: u64) -> usize {
        let octave = (64 - (nanos | 1).leading_zeros() as usize).saturating_sub(SLOTS.ilog2() as usize + 1);
        let within = (nanos >> octave) as usize;
        (octave * SLOTS + within).min(SLOTS * (OCTAVES + 1) - 1)
    }

    pub(crate) fn add(&mut self, d: Duration) {
        let nanos = u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        self.0[Self::slot(nanos)] += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a += b);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The smallest duration that at least `share` of all do not exceed, in microseconds.
    pub(crate) fn micros(&self, share: f64) -> f64 {
        let wanted = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (slot, n) in self.0.iter().enumerate() {
            seen += n;
            if seen >= wanted {
                // Slots of an octave count from its own half; the first octave counts from zero.
                let octave = (slot / SLOTS).saturating_sub(1);
                let within = slot - octave * SLOTS;
                return ((within as u64 + 1) << octave) as f64 / 1_000.0;
            }
        }
        0.0
    }
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) seconds: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) rss_kib: u64,
    pub(crate) peak_kib: u64,
    /// Resident memory after a tenth of a counted run.
    pub(crate) early_kib: u64,
    pub(crate) cpu_seconds: f64,
}

impl Figures {
    /// One line that the caller understands.
    pub(crate) fn line(&self) -> String {
        format!(
            "{{\"done\":{},\"failed\":{},\"seconds\":{:.4},\"p50\":{:.1},\"p99\":{:.1},\"p999\":{:.1},\"rss_kib\":{},\"peak_kib\":{},\"early_kib\":{},\"cpu_seconds\":{:.3}}}",
            self.done,
            self.failed,
            self.seconds,
            self.p50,
            self.p99,
            self.p999,
            self.rss_kib,
            self.peak_kib,
            self.early_kib,
            self.cpu_seconds
        )
    }
}

/// What a program is asked to run.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// `ok`, or `undo`: the last step says no and everything is undone.
    pub(crate) workload: String,
    pub(crate) concurrency: usize,
    pub(crate) seconds: f64,
    /// Ends after this many instead, when not zero.
    pub(crate) count: u64,
    /// An empty folder on the disk under test.
    pub(crate) dir: String,
    /// Which settings of the system.
    pub(crate) variant: String,
    /// Where its server listens, for systems that have one.
    pub(crate) server: String,
}

impl Order {
    /// Reads `--name value` pairs.
    pub(crate) fn read(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut order = Self {
            workload: "ok".to_owned(),
            concurrency: 1,
            seconds: 1.0,
            count: 0,
            dir: ".".to_owned(),
            variant: String::new(),
            server: String::new(),
        };
        let mut arguments = arguments;
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} lacks a value"))?;
            let bad = |e: &dyn std::fmt::Display| format!("{name} {value}: {e}");
            match name.as_str() {
                "--workload" => order.workload = value,
                "--concurrency" => order.concurrency = value.parse().map_err(|e| bad(&e))?,
                "--seconds" => order.seconds = value.parse().map_err(|e| bad(&e))?,
                "--count" => order.count = value.parse().map_err(|e| bad(&e))?,
                "--dir" => order.dir = value,
                "--variant" => order.variant = value,
                "--server" => order.server = value,
                _ => return Err(format!("{name} is unknown")),
            }
        }
        if order.concurrency == 0 || !order.seconds.is_finite() {
            return Err("--concurrency and --seconds must be positive".to_owned());
        }
        Ok(order)
    }

    pub(crate) fn fails(&self) -> bool {
        self.workload == "undo"
    }
}

/// Runs `once` in `order.concurrency` loops, each beginning the next as soon as the last one ended. A tenth
/// of the time warms up and is not counted.
///
/// `once` is given a number that no other call has; true means that it went as the workload wants.
pub(crate) async fn closed_loop<F, W>(order: &Order, once: F) -> Figures
where
    F: Fn(u64) -> W + Send + Sync + 'static,
    W: Future<Output = bool> + Send,
{
    let once = Arc::new(once);
    let next = Arc::new(AtomicU64::new(0));
    let measure = Arc::new(AtomicBool::new(order.count > 0));
    let stop = Arc::new(AtomicBool::new(false));
    let limit = if order.count > 0 { order.count } else { u64::MAX };
    let early = Arc::new(AtomicU64::new(0));
    let loops: Vec<_> = (0..order.concurrency)
        .map(|_| {
            let (once, next) = (Arc::clone(&once), Arc::clone(&next));
            let (measure, stop, early) = (Arc::clone(&measure), Arc::clone(&stop), Arc::clone(&early));
            tokio::spawn(async move {
                let (mut times, mut failed) = (Histogram::new(), 0);
                while !stop.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= limit {
                        break;
                    }
                    if n == limit / 10 {
                        early.store(memory_kib().0, Ordering::Relaxed);
                    }
                    let counts = measure.load(Ordering::Relaxed);
                    let began = Instant::now();
                    let fine = once(n).await;
                    if counts && !stop.load(Ordering::Relaxed) {
                        times.add(began.elapsed());
                        failed += u64::from(!fine);
                    }
                }
                (times, failed)
            })
        })
        .collect();
    if order.count == 0 {
        tokio::time::sleep(Duration::from_secs_f64(order.seconds / 10.0)).await;
        measure.store(true, Ordering::Relaxed);
    }
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let mut seconds = 0.0;
    if order.count == 0 {
        tokio::time::sleep(Duration::from_secs_f64(order.seconds)).await;
        stop.store(true, Ordering::Relaxed);
        seconds = began.elapsed().as_secs_f64();
    }
    let used = cpu_seconds() - cpu;
    let (mut times, mut failed) = (Histogram::new(), 0);
    for one in loops {
        if let Ok((mine, lost)) = one.await {
            times.merge(&mine);
            failed += lost;
        } else {
            failed += 1;
        }
    }
    let (rss_kib, peak_kib) = memory_kib();
    Figures {
        done: times.count() - failed,
        failed,
        seconds: if order.count > 0 { began.elapsed().as_secs_f64() } else { seconds },
        p50: times.micros(0.50),
        p99: times.micros(0.99),
        p999: times.micros(0.999),
        rss_kib,
        peak_kib,
        early_kib: early.load(Ordering::Relaxed),
        cpu_seconds: if order.count > 0 { cpu_seconds() - cpu } else { used },
    }
}

/// Processor time of this process so far.
pub(crate) fn cpu_seconds() -> f64 {
    /// Ticks per second of `/proc/self/stat`, fixed by the kernel's ABI.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS
}

/// Resident memory of this process: now, and at most.
pub(crate) fn memory_kib() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    (field("VmRSS:").unwrap_or(0), field("VmHWM:").unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::{Histogram, Order};
    use std::time::Duration;

    #[test]
    fn percentiles_are_off_by_less_than_a_hundredth() {
        let mut h = Histogram::new();
        for micros in 1..=100_000_u64 {
            h.add(Duration::from_micros(micros));
        }
        for share in [0.01, 0.5, 0.99, 0.999] {
            let (found, true_value) = (h.micros(share), 100_000.0 * share);
            assert!((found - true_value).abs() / true_value < 0.01, "{share}: {found}");
        }
        let mut small = Histogram::new();
        [0, 1, 127, 128, 255, 256].iter().for_each(|n| small.add(Duration::from_nanos(*n)));
        assert_eq!(small.count(), 6);
        assert!(small.micros(1.0) <= 0.258);
    }

    #[test]
    fn orders_are_read_and_nonsense_is_refused() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>().into_iter();
        let order = Order::read(words("--workload undo --concurrency 64 --seconds 2.5")).unwrap();
        assert!(order.fails() && order.concurrency == 64 && order.seconds == 2.5);
        for bad in ["--concurrency 0", "--seconds x", "--what 1", "--dir"] {
            assert!(Order::read(words(bad)).is_err(), "{bad}");
        }
    }
}
