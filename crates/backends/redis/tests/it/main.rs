//! Integration tests of the Redis stores, against real servers.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod conformance;
mod fences;
mod interop;
mod single;
mod world;

use std::process::ExitCode;

use mainstay_sim::servers::{self, Cover, Trial, find};

/// A test of this target.
pub(crate) type Test = (&'static str, fn());

fn cover(server: &str, program: &str, tests: &[Test]) -> Cover {
    let trial = |(name, run): &Test| {
        let run = *run;
        Trial::test(*name, move || {
            run();
            Ok(())
        })
    };
    let trials = if find(program).is_some() { tests.iter().map(trial).collect() } else { Vec::new() };
    Cover::new(server, tests.len(), trials)
}

fn main() -> ExitCode {
    let redis: Vec<Test> = [conformance::TESTS, fences::TESTS, interop::TESTS, single::TESTS].concat();
    servers::run(vec![cover("redis", "redis-server", &redis)])
}
