//! PostgreSQL as a lease store and as a replicated store, against real servers.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod clock;
mod cluster;
mod conformance;
mod failover;
mod fences;
mod forks;
mod lives;
mod nodes;
mod recipes;
mod rows;
mod secured;
mod sessions;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use mainstay_clock::{Clock as _, SystemClock};
use mainstay_sim::servers::{Cover, PostgresKit, Trial, run};
use world::{Test, World};

/// No test takes as long on a machine that builds beside.
const LIMIT: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    let tests: Vec<Test> = [
        conformance::TESTS,
        failover::TESTS,
        fences::TESTS,
        forks::TESTS,
        lives::TESTS,
        nodes::TESTS,
        recipes::TESTS,
        rows::TESTS,
        secured::TESTS,
        sessions::TESTS,
    ]
    .concat();
    // Servers die with the thread that starts them: this one, which ends last.
    let world = PostgresKit::new().unwrap().map(World::start);
    let covers = |plain: Vec<Trial>, shifted: Vec<Trial>| {
        let shifted = Cover::new("postgresql with faketime", clock::TESTS.len(), shifted);
        run(vec![Cover::new("postgresql", tests.len(), plain), shifted])
    };
    let Some(world) = world else { return covers(Vec::new(), Vec::new()) };
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
    let shifted = if clock::is_there() { clock::TESTS } else { &[] };
    covers(tests.iter().map(trial).collect(), shifted.iter().map(trial).collect())
}
