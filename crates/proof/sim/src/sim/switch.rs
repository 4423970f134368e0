//! Replays and searches: switches of the environment, and the file of recorded seeds.

use std::time::Duration;

use super::{ConfigError, Sim};

/// What the environment asked for, beside the options.
#[derive(Clone, Debug, Default)]
pub(super) struct Search {
    /// Search for this long instead of a range of seeds.
    pub(super) minutes: Option<f64>,
    /// One seed is replayed: say everything, demand nothing of the campaign.
    pub(super) replay: bool,
}

#[allow(clippy::disallowed_methods, reason = "the switches of a replay; nothing that is released links this")]
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

fn number<T: std::str::FromStr>(name: &'static str, allowed: &'static str) -> Result<Option<T>, ConfigError> {
    let Some(text) = env(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| ConfigError::new(name, &text, allowed))
}

pub(super) fn search() -> Search {
    let minutes = env("MAINSTAY_MINUTES").and_then(|m| m.parse().ok());
    Search { minutes, replay: env("MAINSTAY_SEED").is_some() }
}

/// Applies the switches, unless they name another suite.
pub(super) fn apply(sim: &mut Sim) -> Result<(), ConfigError> {
    if env("MAINSTAY_SUITE").is_some_and(|s| s != sim.options.suite) {
        return Ok(());
    }
    if let Some(seed) = number::<u64>("MAINSTAY_SEED", "a seed: 0 to 2^64 - 1")? {
        sim.seeds = seed..seed.saturating_add(1);
        return rest(sim);
    }
    let from = number::<u64>("MAINSTAY_FROM", "the first seed of a search")?;
    let count = sim.seeds.end - sim.seeds.start;
    let count = number::<u64>("MAINSTAY_SEEDS", "how many seeds")?.unwrap_or(count).max(1);
    let start = from.unwrap_or(sim.seeds.start);
    sim.seeds = start..start.saturating_add(count);
    if number::<f64>("MAINSTAY_MINUTES", "minutes")?.is_some() {
        sim.seeds = sim.seeds.start..u64::MAX;
    }
    rest(sim)
}

/// The switches that change a run, whatever its seed.
fn rest(sim: &mut Sim) -> Result<(), ConfigError> {
    if let Some(nodes) = number("MAINSTAY_NODES", "how many nodes")? {
        sim.options.nodes = nodes;
    }
    if let Some(ops) = number("MAINSTAY_OPS", "how many operations")? {
        sim.options.ops = ops;
    }
    if let Some(without) = env("MAINSTAY_WITHOUT") {
        sim.options.without.extend(without.split(',').map(str::to_owned));
    }
    Ok(())
}

/// A line of a `seeds.txt`: `SUITE SEED VERDICT why`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recorded {
    /// The suite.
    pub suite: String,
    /// The seed.
    pub seed: u64,
    /// The verdict it must give: `PASS`, `FAIL` or `UNKNOWN`.
    pub verdict: String,
    /// What was found with it.
    pub why: String,
}

/// A line that is no recorded seed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("line {line} of the seeds is not `SUITE SEED VERDICT why`")]
pub struct SeedLineError {
    /// Its number, from 1.
    pub line: usize,
}

/// Reads a `seeds.txt`. Empty lines and lines that begin with `#` are skipped.
///
/// # Errors
/// [`SeedLineError`] naming the first line that is none.
///
/// ```
/// use mainstay_sim::sim::seed_lines;
///
/// let lines = seed_lines("# found\nlock 7 FAIL renews after its deadline\n").unwrap();
/// assert_eq!((lines[0].seed, lines[0].verdict.as_str()), (7, "FAIL"));
/// ```
pub fn seed_lines(text: &str) -> Result<Vec<Recorded>, SeedLineError> {
    let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#'));
    lines
        .map(|(i, line)| {
            let error = SeedLineError { line: i + 1 };
            let mut words = line.splitn(4, ' ');
            let mut word = || words.next().map(str::to_owned).ok_or(error.clone());
            let (suite, seed, verdict) = (word()?, word()?, word()?);
            let seed = seed.parse().map_err(|_| error.clone())?;
            if !["FAIL", "PASS", "UNKNOWN"].contains(&verdict.as_str()) {
                return Err(error);
            }
            Ok(Recorded { suite, seed, verdict, why: words.next().unwrap_or_default().to_owned() })
        })
        .collect()
}

/// When a search by time ends.
#[derive(Debug)]
pub(super) struct Until(Option<mainstay_clock::Instant>);

impl Until {
    pub(super) fn new(search: &Search) -> Self {
        let length = search.minutes.map(|m| Duration::try_from_secs_f64(m * 60.0).unwrap_or_default());
        Self(length.map(|d| mainstay_clock::os_boot_now().saturating_add(d)))
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.is_some_and(|end| mainstay_clock::os_boot_now() >= end)
    }
}
