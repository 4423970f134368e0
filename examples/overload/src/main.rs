//! The metastable failure, on a real server: capacity 1000/s, load 700/s, and for a while a tenth of the
//! capacity. Times are a tenth of the scenario's (a timeout of 100 ms, a brown-out of one second).
//!
//! Three attempts with backoff and jitter keep the server overloaded for ever after. The defaults (a budget, a
//! breaker, the deadline on the wire) and a server that drops what is too late recover.
//!
//! `--seconds N` runs longer, `--svg FILE` writes both curves as a plot.

mod client;
mod plot;
mod server;

use std::time::Duration;

use anyhow::{Context as _, ensure};

use client::Curve;

/// Times of the scenario are multiplied by this.
const SCALE: f64 = 0.1;
/// When the brown-out begins and ends, in seconds of the scenario.
const BROWN_OUT: (f64, f64) = (20.0, 30.0);
/// A run counts only if it began healthy. A machine that is too slow or too busy for that gets the same scenario in slow
/// motion: all times are multiplied by this, and all rates divided.
const PACES: [f64; 4] = [1.0, 1.0, 2.0, 4.0];

/// How slow the motion is.
#[derive(Clone, Copy, Debug)]
struct Pace(f64);

impl Pace {
    /// A duration of the scenario in real time.
    fn time(self, seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds * SCALE * self.0)
    }

    /// A rate per second, in real time.
    fn rate(self, per_second: f64) -> f64 {
        per_second / self.0
    }

    /// The second of the scenario after so many of real time.
    fn second(self, real: f64) -> usize {
        (real / SCALE / self.0) as usize
    }
}

/// Whether the protections are on, at the client and at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Protected,
    Unprotected,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (mut seconds, mut svg) = (50_usize, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--seconds" => seconds = value.parse().context("--seconds")?,
            "--svg" => svg = Some(value),
            _ => anyhow::bail!("usage: overload [--seconds N] [--svg FILE]"),
        }
    }
    ensure!((45..=600).contains(&seconds), "--seconds takes 45 to 600");
    let mut healthy = None;
    for pace in PACES.map(Pace) {
        let (unprotected, protected) =
            (one(Mode::Unprotected, pace, seconds).await?, one(Mode::Protected, pace, seconds).await?);
        let before = protected.share(5..18).min(unprotected.share(5..18));
        if before > 0.9 {
            healthy = Some((unprotected, protected));
            break;
        }
        // Nothing has failed yet at that time: the machine did something else.
        println!("the machine is too slow or too busy for {pace:?}: {before:.2} before the brown-out");
    }
    let (unprotected, protected) = healthy.context("no run began healthy")?;
    if let Some(path) = svg {
        std::fs::write(&path, plot::svg(&unprotected, &protected, BROWN_OUT))
            .with_context(|| path.clone())?;
        println!("plot: {path}");
    }
    ensure!(unprotected.recovery(30).is_none(), "unprotected recovered: {:?}", unprotected.recovery(30));
    ensure!(protected.recovery(30).is_some(), "protected did not recover");
    Ok(())
}

async fn one(mode: Mode, pace: Pace, seconds: usize) -> anyhow::Result<Curve> {
    let server = server::start(mode, pace).await?;
    let curve = client::run(mode, &server, seconds).await?;
    let verdict = match curve.recovery(30) {
        Some(s) => format!("recovered {s} s after the brown-out"),
        None => "never recovered".to_owned(),
    };
    println!(
        "{mode:?}: {verdict}; {:.0} % before, {:.0} % at the end, peak amplification {:.2}",
        100.0 * curve.share(5..18),
        100.0 * curve.share(seconds - 8..seconds - 3),
        curve.amplification(),
    );
    Ok(curve)
}
