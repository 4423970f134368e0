//! Integration tests of the NATS store, against real servers.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod ahead;
mod cluster;
mod conformance;
mod drops;
mod fences;
mod recipes;
mod secured;
mod single;
mod waiting;
mod world;

use std::process::ExitCode;

use mainstay_sim::servers::{self, Cover, NatsKit, Trial};

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
        cluster::TESTS,
        conformance::TESTS,
        drops::TESTS,
        fences::TESTS,
        recipes::TESTS,
        secured::TESTS,
        single::TESTS,
        waiting::TESTS,
    ];
    // The program reads its clock without the C library, and nobody sets the clock of the machine.
    println!("NOT TESTED nats-server: jumps of its wall clock");
    servers::run(vec![
        cover("nats-server", NatsKit::new().is_some(), &tests.concat()),
        cover("nats-server with clocks of its own", ahead::is_there(), ahead::TESTS),
        cover("nats-server 2.9", single::old().is_some(), single::OLD),
    ])
}
