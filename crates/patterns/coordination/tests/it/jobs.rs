//! Jobs of a schedule under random schedules of faults: which slots were started, by whom, and when.
//!
//! `cargo xtask sim cron --seed N` replays a seed that was printed, `--seeds N` runs more. Nodes crash, stand still, lose
//! the store and have clocks that are a day off; requests and answers get lost, late and doubled. Each seed draws how the
//! job is built: starts kept apart, long runs stopped, missed slots run late, or a store that tells no time.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use mainstay_sim::Sim;
use mainstay_sim::check::{epochs_grow, mutual_exclusion};
use mainstay_sim::sim::{FaultKind, Faults, Report, World};

use crate::runner::{Bug, HEALED, JOB, Mode, Runner, Shared};
use crate::seeds::{WITHIN, found};
use crate::slots::{SETTLED, slots};

/// Reached in every campaign, or it proves nothing.
const REACHED: [&str; 11] = [
    "a dropped start",
    "a refused write",
    "a stopped run",
    "at least",
    "at most",
    "kept",
    "latest",
    "overlapped",
    "own clock",
    "superseded",
    "taken",
];

/// Slots after everything has settled: more than a start keeps others away and the last one may wait.
const CALM: Duration = Duration::from_secs(16);

async fn scenario(world: World, bug: Bug) {
    let mode = match Mode::of(&world) {
        // The guard keeps the time of a run, too: without it the first thing to be found would be that.
        Mode::AtMost if bug == Bug::Unguarded => Mode::Latest,
        mode => mode,
    };
    world.points().reached(mode.name());
    let process = world.process();
    process.begin("mode", JOB).arg(mode.name()).ok_with(world.store_clock().wall().unix_millis());
    process.begin("nodes", JOB).ok_with(i64::try_from(world.nodes()).unwrap());
    let shared: Arc<Shared> = Arc::default();
    world.start_all(move |node| Runner::new(node, mode, bug, Arc::clone(&shared)).run());
    world.finished().await;
}

fn campaign(name: &str, bug: Bug, seeds: Range<u64>) -> Report {
    let faults = Faults::all()
        .without(FaultKind::MessageLost)
        .without(FaultKind::MessageDuplicated)
        .healing_after(HEALED);
    let mut builder = Sim::builder(name).seeds(seeds).nodes(3).faults(faults).liveness(SETTLED + CALM);
    if bug == Bug::None {
        builder = REACHED.into_iter().fold(builder, mainstay_sim::sim::SimBuilder::sometimes);
    }
    builder
        .build()
        .unwrap()
        .run(move |world| scenario(world, bug))
        .check(slots)
        .check(mutual_exclusion)
        .check(epochs_grow)
        .judge()
}

/// The campaign behind a recorded seed, if it is one of these.
pub(crate) fn replayed(name: &str, seeds: Range<u64>) -> Option<Report> {
    let bug = match name {
        "cron" => Bug::None,
        "cron-blind" => Bug::BlindWrites,
        "cron-drops-missed" => Bug::DropsMissed,
        "cron-not-apart" => Bug::NotApart,
        "cron-not-stopped" => Bug::NotStopped,
        "cron-own-time" => Bug::OwnTime,
        "cron-unfenced" => Bug::Unfenced,
        "cron-unguarded" => Bug::Unguarded,
        _ => return None,
    };
    Some(campaign(name, bug, seeds))
}

/// How many seeds of a batch; a search asks for more by its own switches.
const BATCH: u64 = 500;

#[test]
fn f20_f25_a_slot_is_started_once_in_order_and_in_time_and_none_is_lost_in_silence() {
    campaign("cron", Bug::None, 0..BATCH).assert_pass();
}

#[test]
fn f20_f25_whatever_a_job_does_wrong_is_found() {
    found(&campaign("cron-blind", Bug::BlindWrites, WITHIN), "was started twice");
    found(&campaign("cron-drops-missed", Bug::DropsMissed, WITHIN), "was passed over");
    found(&campaign("cron-not-apart", Bug::NotApart, WITHIN), "after another one");
    found(&campaign("cron-not-stopped", Bug::NotStopped, WITHIN), "the run of slot");
    found(&campaign("cron-own-time", Bug::OwnTime, WITHIN), "was due between");
    found(&campaign("cron-unfenced", Bug::Unfenced, WITHIN), "the resource took slot");
    found(&campaign("cron-unguarded", Bug::Unguarded, WITHIN), "is held 2 of 1");
}

#[test]
fn one_seed_of_a_job_is_one_execution() {
    let traced = |seeds: Range<u64>| {
        let faults = Faults::all().healing_after(HEALED);
        let sim = Sim::builder("cron-traced").seeds(seeds).nodes(3).faults(faults).build().unwrap();
        sim.run(|world| scenario(world, Bug::None)).check(slots).traced().judge().trace
    };
    assert_eq!(traced(0..20), traced(0..20));
    assert_ne!(traced(0..20), traced(1..21));
}
