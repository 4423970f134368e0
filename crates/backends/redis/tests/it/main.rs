//! Integration tests of the Redis stores, against real servers.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod clock;
mod conformance;
mod crowd;
mod fences;
mod interop;
mod quorum;
mod recipes;
mod replicas;
mod secured;
mod sessions;
mod single;
mod world;

use std::process::ExitCode;

use mainstay_sim::servers::{self, Cover, Trial, find};

/// A test of this target.
pub(crate) type Test = (&'static str, fn());

fn cover(server: &str, is_there: bool, tests: &[Test]) -> Cover {
    let trial = |(name, run): &Test| {
        let run = *run;
        Trial::test(*name, move || {
            run();
            Ok(())
        })
    };
    let trials = if is_there { tests.iter().map(trial).collect() } else { Vec::new() };
    Cover::new(server, tests.len(), trials)
}

fn main() -> ExitCode {
    let tests = [
        conformance::TESTS,
        crowd::TESTS,
        fences::TESTS,
        interop::TESTS,
        quorum::TESTS,
        recipes::TESTS,
        replicas::TESTS,
        secured::TESTS,
        sessions::TESTS,
        single::TESTS,
    ];
    let redis = find("redis-server").is_some() && find("redis-cli").is_some();
    servers::run(vec![
        cover("redis", redis, &tests.concat()),
        cover("redis with faketime", clock::is_there(), clock::TESTS),
    ])
}
