//! `demo`: a real node under a real order system, faults, kill -9, and an audit that can fail.

mod audit;
mod board;
mod children;
mod keep;
mod orders;
mod participant;
mod report;
mod run;

use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use mainstay_clock::{Rng as _, SystemRng};

pub(crate) use participant::Args as ParticipantArgs;
pub(crate) use participant::run as run_participant;

use crate::error::{Code, Error, Result};

/// How much goes wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// Nothing.
    None,
    /// 2 % of requests each dropped, failed, answered into the void or doubled; 3 kills of each kind.
    Mild,
    /// 8 % each; 9 kills of participants and 10 of the node.
    Harsh,
}

/// Arguments of `demo`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Fixes the workload and the schedule of faults, not the timing of threads; drawn and printed otherwise.
    #[arg(long)]
    seed: Option<u64>,
    /// How many orders.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    orders: u32,
    /// How much goes wrong.
    #[arg(long, value_enum, default_value_t = Level::Mild)]
    faults: Level,
    /// Keep the node and the services up after the audit, with one order stuck, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Switch the services' barrier off: the audit must fail.
    #[arg(long)]
    break_barrier: bool,
    /// How long it may take until there is a verdict: longer for machines that do much else. Default: two minutes, and
    /// more from a thousand orders on.
    #[arg(long, hide = true, value_parser = humantime::parse_duration)]
    limit: Option<Duration>,
}

/// The demo could not run, or did not end.
const EXIT_NO_VERDICT: u8 = 125;

/// Runs the demo. 0 only if the audit ran and found nothing.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.break_barrier && args.faults == Level::None {
        let why = "--break-barrier needs faults that trip it: use --faults mild or harsh";
        return Err(Error::new(Code::BadValue, why));
    }
    let seed = args.seed.unwrap_or_else(|| SystemRng::new().next_u64() % 1_000_000);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::with(Code::Internal, "cannot start the runtime", e))?;
    // On this thread, which lives as long as the demo: children die with the thread that made them.
    let code = runtime.block_on(run::until_a_signal(args, seed)).unwrap_or_else(|error| {
        eprintln!("mainstay demo: no verdict: {}", error.chain());
        EXIT_NO_VERDICT
    });
    runtime.shutdown_background();
    Ok(ExitCode::from(code))
}
