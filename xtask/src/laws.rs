//! The laws of replicated data over every type: `cargo xtask laws`.
//!
//! A run goes on where the last one ended; the seeds that were tried stand in the target folder, so ten million schedules
//! are made of many runs. A violation names its type and its seed, and stops before its batch is counted.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, bail};

use crate::{bench, cargo};

/// Seeds of one batch: a minute or so, which is what an interrupted run loses.
const BATCH: u64 = 20_000;
/// Replicas and operations for which every schedule is run, in the first batch of a run.
const OPERATIONS: &str = "4";
/// What the harness does not run itself: laws about single parts, each a test of its own.
const OTHERS: [&str; 10] = ["l11_", "l13_", "l14_", "l15_", "l16_", "l17_", "l18_", "l19_", "l20_", "l21_"];

/// What earlier runs tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Done {
    /// The first seed that was not tried.
    next: u64,
    /// Schedules of all types.
    schedules: u64,
}

impl Done {
    const NONE: Self = Self { next: 1, schedules: 0 };

    fn read(text: &str) -> anyhow::Result<Self> {
        let number = |name: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
            found.with_context(|| format!("no line `{name} N`; remove the file to begin anew"))
        };
        Ok(Self { next: number("next seed")?, schedules: number("schedules")? })
    }

    fn load(file: &Path) -> anyhow::Result<Self> {
        match std::fs::read_to_string(file) {
            Ok(text) => Self::read(&text).with_context(|| file.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::NONE),
            Err(error) => Err(error).with_context(|| file.display().to_string()),
        }
    }

    fn text(self) -> String {
        format!("next seed {}\nschedules {}\n", self.next, self.schedules)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Options {
    /// Schedules of this run, of all types together.
    schedules: u64,
    /// The first seed, if not that of the file.
    from: Option<u64>,
}

impl Options {
    fn read(words: &[String]) -> anyhow::Result<Self> {
        let mut options = Self { schedules: BATCH, from: None };
        for pair in words.chunks(2) {
            let [name, value] = pair else { bail!("{} lacks a value", pair[0]) };
            let value: u64 = value.parse().with_context(|| format!("{name} {value}"))?;
            match name.as_str() {
                "--from" => options.from = Some(value),
                "--schedules" => options.schedules = value,
                _ => bail!("`{name}` is no option of laws: --schedules N, --from SEED"),
            }
        }
        Ok(options)
    }
}

/// Runs batches until so many schedules were tried.
///
/// # Errors
/// A law is broken: the lines above name the type, the seed and the smallest schedule.
pub(crate) fn laws(words: &[String]) -> anyhow::Result<()> {
    let options = Options::read(words)?;
    let file = bench::target().join("laws.txt");
    let mut done = Done::load(&file)?;
    let mut next = options.from.unwrap_or(done.next);
    let (mut tried, mut types) = (0, 1);
    while tried < options.schedules {
        let seeds = (options.schedules - tried).div_ceil(types).clamp(1, BATCH);
        let (found, schedules) = batch(next, seeds, tried == 0)?;
        (types, tried, next) = (found, tried + schedules, next + seeds);
        // A run from a seed of its own repeats what was counted, or leaves a hole: it counts for nothing.
        if options.from.is_none() {
            done = Done { next, schedules: done.schedules + schedules };
            std::fs::write(&file, done.text()).with_context(|| file.display().to_string())?;
        }
        println!("{tried} of {} schedules, up to seed {}", options.schedules, next - 1);
    }
    println!("no law is broken; totals of all runs: {} schedules ({})", done.schedules, file.display());
    Ok(())
}

/// So many seeds of every type; how many types there were, and their schedules.
fn batch(from: u64, seeds: u64, first: bool) -> anyhow::Result<(u64, u64)> {
    let mut test = cargo();
    test.args(["test", "--release", "-p", "mainstay-consistency", "--all-features", "--test", "it", "--"]);
    test.args(["--nocapture", "l1_to_l12"]);
    if first {
        test.args(OTHERS);
    }
    test.env("MAINSTAY_LAWS_SEED", from.to_string()).env("MAINSTAY_LAWS_SCHEDULES", seeds.to_string());
    test.env("MAINSTAY_LAWS_OPERATIONS", if first { OPERATIONS } else { "1" });
    let mut child = test.stdout(Stdio::piped()).spawn().context("cargo cannot be started")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let (mut types, mut schedules, mut out) = (0, 0, std::io::stdout().lock());
    for line in BufReader::new(output).lines() {
        let line = line?;
        if let Some(count) = counted(&line) {
            (types, schedules) = (types + 1, schedules + count);
        } else {
            writeln!(out, "{line}")?;
        }
    }
    if !child.wait()?.success() {
        let replay =
            "the lines above name the type and the seed; replay it with `laws --from SEED --schedules 1`";
        bail!("a law is broken, or the tests do not build: {replay}");
    }
    if types == 0 {
        bail!("no type was tried");
    }
    Ok((types, schedules))
}

/// Reads `AwSet < u64 >: 150 schedules from seed 1, 1800 changes`.
fn counted(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once(": ")?;
    let (count, rest) = rest.split_once(' ')?;
    rest.starts_with("schedules from seed ").then(|| count.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::{Done, Options, counted};

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_was_tried_is_read_back_and_a_broken_file_is_refused() {
        let done = Done { next: 20_001, schedules: 440_000 };
        assert_eq!(Done::read(&done.text()).unwrap(), done);
        assert!(Done::read("next seed many\nschedules 1\n").is_err());
        assert!(Done::read("").is_err());
    }

    #[test]
    fn options_that_are_none_are_refused_by_name() {
        assert_eq!(
            Options::read(&words("--schedules 7 --from 9")).unwrap(),
            Options { schedules: 7, from: Some(9) }
        );
        for bad in ["--schedule 1", "--from", "--from x"] {
            assert!(Options::read(&words(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn schedules_are_read_from_the_lines_of_the_types() {
        assert_eq!(counted("AwMap<u64, DotFun<u64>>: 150 schedules from seed 1, 1800 changes"), Some(150));
        assert_eq!(counted("EwFlag: all 4272 schedules of 4 operations"), None);
        assert_eq!(counted("test laws::l17 ... ok"), None);
    }
}
