//! `ring plan|diff|simulate|advise|where|verify`: placement on the command line, on files.

mod advise;
mod chart;
mod diff;
mod input;
mod lookup;
mod plan;
mod simulate;
mod verify;

use std::process::ExitCode;

use clap::Subcommand;
use mainstay_partition::ErrorKind;

use crate::cli::Output;
use crate::error::{Code, Error, Result};

/// Arguments of `ring`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Plan the way from a slot map to a target fleet: fewest moves, proven, in waves. A dry run unless
    /// --write is given.
    Plan(plan::Args),
    /// Show what differs between two slot maps.
    Diff(diff::Args),
    /// Show shares of a placement, and what a change of the fleet would move, before it is used.
    Simulate(simulate::Args),
    /// Recommend a placement, with reasons.
    Advise(advise::Args),
    /// Show who holds a key.
    Where(lookup::Args),
    /// Check a map, compare two, or compare a profile with another system's own answers.
    Verify(verify::Args),
}

/// Runs `ring`.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.verb {
        Verb::Plan(verb) => plan::run(verb, args.output),
        Verb::Diff(verb) => diff::run(verb, args.output),
        Verb::Simulate(verb) => simulate::run(verb, args.output),
        Verb::Advise(verb) => advise::run(verb, args.output),
        Verb::Where(verb) => lookup::run(verb, args.output),
        Verb::Verify(verb) => verify::run(verb, args.output),
    }
}

/// An error of the library with the code of its page.
fn refused(error: impl Into<mainstay_partition::Error>) -> Error {
    let error = error.into();
    let code = match error.kind() {
        ErrorKind::TooFewNodes { .. } | ErrorKind::TooFewZones { .. } => Code::PlacementImpossible,
        ErrorKind::Conflict | ErrorKind::StaleEpoch { .. } => Code::PlacementConflict,
        ErrorKind::Internal => Code::Internal,
        _ => Code::PlacementInput,
    };
    Error::with(code, "the placement is refused", error)
}

/// A part as a percentage.
fn percent(part: f64) -> String {
    format!("{:.2}%", part * 100.0)
}
