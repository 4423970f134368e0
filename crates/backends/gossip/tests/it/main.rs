//! Integration tests of gossip: fleets in virtual time, real sockets, real processes.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod disk;
mod fleet;
mod membership;
mod net;
mod packets;
mod real;

use std::process::ExitCode;

use mainstay_sim::servers::{self, Cover, Trial};

/// A test of this target.
pub(crate) type Test = (&'static str, fn());

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match &args[..] {
        [_, what, path] if what == disk::WRITER => return disk::write_snapshots(path),
        [_, what, path] if what == disk::CARELESS => return disk::write_carelessly(path),
        _ => {}
    }
    let tests = [disk::TESTS, fleet::TESTS, membership::TESTS, packets::TESTS, real::TESTS].concat();
    let trial = |(name, run): &Test| {
        let run = *run;
        Trial::test(*name, move || {
            run();
            Ok(())
        })
    };
    let trials = tests.iter().map(trial).collect();
    servers::run(vec![Cover::new("sockets", tests.len(), trials)])
}
