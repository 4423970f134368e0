//! etcd as a lease store, against real servers.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod ahead;
mod cluster;
mod conformance;
mod fences;
mod interop;
mod leases;
mod recipes;
mod releases;
mod secured;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use mainstay_clock::{Clock as _, SystemClock};
use mainstay_sim::servers::{Cover, EtcdKit, Trial, run};
use world::{Test, World};

/// No test takes as long on a machine that builds beside.
const LIMIT: Duration = Duration::from_secs(400);

/// Cells of the matrix that nothing here can reach.
const NOT_TESTED: [&str; 2] = [
    "wall clock of the server jumps: etcd ignores clock preloads, and the system clock is never set",
    "wall clock of the holder jumps: the same; deadlines are on the boot clock",
];

fn main() -> ExitCode {
    // What takes longest is first: a test that begins last would end alone.
    let tests: Vec<Test> = [
        secured::TESTS,
        cluster::TESTS,
        conformance::TESTS,
        fences::TESTS,
        interop::TESTS,
        leases::TESTS,
        recipes::TESTS,
        releases::TESTS,
    ]
    .concat();
    for cell in NOT_TESTED {
        println!("NOT TESTED etcd: {cell}");
    }
    let covers = |plain: Vec<Trial>, ahead: Vec<Trial>| {
        let ahead = Cover::new("etcd with clocks of its own", ahead::TESTS.len(), ahead);
        run(vec![Cover::new("etcd", tests.len(), plain), ahead])
    };
    // Servers die with the thread that starts them: this one, which ends last.
    let Some(world) = EtcdKit::new().map(World::start) else { return covers(Vec::new(), Vec::new()) };
    let trial = |&(name, test): &Test| {
        let world = world.clone();
        Trial::test(name, move || {
            let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            rt.block_on(async {
                let late = SystemClock::new().sleep(LIMIT);
                tokio::select! {
                    biased;
                    () = test(world) => Ok(()),
                    () = late => Err(format!("not over after {LIMIT:?}").into()),
                }
            })
        })
    };
    let shifted = if ahead::is_there() { ahead::TESTS } else { &[] };
    covers(tests.iter().map(trial).collect(), shifted.iter().map(trial).collect())
}
