//! Side-by-side benchmarks: ours, the floor, and the rivals, in one run.
//!
//! `cargo xtask bench [NAME] [--smoke]` builds and runs this program. A suite is a module with a `SUITE`;
//! it gets its options and fills a section.

mod child;
mod consistency;
mod coordination;
mod floor;
mod load;
mod machine;
mod partition;
mod piece;
mod report;
mod resilience;
mod saga;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use report::Section;

/// A group of benchmarks with its own section in BENCHMARKS.md.
struct Suite {
    name: &'static str,
    about: &'static str,
    run: fn(&Options, &mut Section) -> anyhow::Result<()>,
}

/// Every suite, by name.
const SUITES: &[Suite] = &[
    consistency::SUITE,
    coordination::SUITE,
    partition::SUITE,
    partition::REDIS,
    resilience::SUITE,
    saga::SUITE,
];

/// How suites are run.
#[derive(Debug)]
struct Options {
    /// Shows that everything still runs: short, without gates, nothing is written.
    smoke: bool,
    /// Seconds per point.
    seconds: f64,
    /// Points are measured this often; the best and the median are shown.
    repeat: usize,
    /// Where built programs of rivals are; absent ones are named as not measured.
    rivals: Option<PathBuf>,
    /// Built `mainstay` to measure, for suites over HTTP.
    server: Option<PathBuf>,
    /// A program that each block of points runs through, for machines that are shared: it waits for quiet.
    through: Option<String>,
    /// Where measured pieces are kept until the report.
    pieces: Option<PathBuf>,
    /// Pieces to measure now; a report needs all of them. Empty: all.
    only: Vec<String>,
    /// BENCHMARKS.md, unless smoking.
    write: Option<PathBuf>,
    /// Suites asked for; empty: all.
    names: Vec<String>,
}

impl Options {
    fn read(mut words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut options = Self {
            smoke: false,
            seconds: 5.0,
            repeat: 3,
            rivals: None,
            server: None,
            through: None,
            pieces: None,
            only: Vec::new(),
            write: None,
            names: Vec::new(),
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} lacks a value"));
            match word.as_str() {
                "--smoke" => (options.smoke, options.seconds, options.repeat) = (true, 0.3, 1),
                "--seconds" => options.seconds = value()?.parse().context("--seconds")?,
                "--repeat" => options.repeat = value()?.parse().context("--repeat")?,
                "--rivals" => options.rivals = Some(value()?.into()),
                "--server" => options.server = Some(value()?.into()),
                "--through" => options.through = Some(value()?),
                "--pieces" => options.pieces = Some(value()?.into()),
                "--only" => options.only.push(value()?),
                "--write" => options.write = Some(value()?.into()),
                name if SUITES.iter().any(|s| s.name == name) => options.names.push(word),
                _ => bail!("`{word}` is neither an option nor a suite; suites: {}", suite_names()),
            }
        }
        if options.repeat == 0 || options.seconds.is_nan() || options.seconds <= 0.0 {
            bail!("--repeat and --seconds must be positive");
        }
        Ok(options)
    }
}

fn suite_names() -> String {
    SUITES.iter().map(|s| s.name).collect::<Vec<_>>().join(", ")
}

/// The program `mainstay-bench`: runs the suites.
#[must_use]
pub fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(missed) => {
            eprintln!("{missed} goals missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the suites; the number of missed gates.
fn run() -> anyhow::Result<usize> {
    let mut words = std::env::args().skip(1).peekable();
    if words.next_if_eq("child").is_some() {
        child::serve(words)?;
        return Ok(0);
    }
    let options = Options::read(words)?;
    let mut missed = 0;
    for suite in SUITES {
        if !options.names.is_empty() && !options.names.iter().any(|n| n == suite.name) {
            continue;
        }
        println!("\n# {}\n", suite.name);
        let mut section = Section::new(options.smoke);
        (suite.run)(&options, &mut section).with_context(|| format!("suite {}", suite.name))?;
        if options.smoke || !options.only.is_empty() {
            continue;
        }
        missed += section.missed();
        if let Some(file) = &options.write {
            section.write(file, suite.name, suite.about, &machine::conditions(suite.name, &options))?;
        }
    }
    Ok(missed)
}

/// The program `mainstay-bench-calls`: our guarded calls, one line per way to make one.
#[must_use]
pub fn calls() -> ExitCode {
    match resilience::calls(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
