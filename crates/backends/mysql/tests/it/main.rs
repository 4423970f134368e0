//! Integration tests: rules by vectors, and positions of real MariaDB servers.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod positions;
mod sessions;
mod vectors;
mod world;

use std::process::ExitCode;

use mainstay_sim::servers::{self, Cover, MariaDbKit, Trial};

/// A test that needs servers.
pub(crate) type Test = (&'static str, fn(&MariaDbKit));

fn main() -> ExitCode {
    let kit = MariaDbKit::new().unwrap();
    let plain = |(name, run): &(&'static str, fn())| {
        let run = *run;
        Trial::test(*name, move || {
            run();
            Ok(())
        })
    };
    let rules: Vec<Trial> = vectors::TESTS.iter().map(plain).collect();
    let tests = [positions::TESTS, sessions::TESTS].concat();
    let mut trials = Vec::new();
    if let Some(kit) = &kit {
        for (name, run) in &tests {
            let (run, kit) = (*run, kit.clone());
            trials.push(Trial::test(*name, move || {
                run(&kit);
                Ok(())
            }));
        }
    }
    servers::run(vec![Cover::new("rules", rules.len(), rules), Cover::new("mariadb", tests.len(), trials)])
}
