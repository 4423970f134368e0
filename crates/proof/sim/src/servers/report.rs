//! What was covered, and by name what was not.

use std::process::ExitCode;

use libtest_mimic::Arguments;

pub use libtest_mimic::Trial;

/// The environment variable under which an absent server is a failure. `cargo xtask test` sets it.
pub const REQUIRE: &str = "MAINSTAY_REQUIRE_SERVERS";

/// Tests at once for each core, unless the caller says how many: they wait for servers, for leases to end and for each
/// other, and one per core left nine tenths of two cores idle (etcd, November 2026).
const AT_ONCE: usize = 3;

/// The tests of one server.
#[derive(Debug)]
pub struct Cover {
    server: String,
    tests: usize,
    trials: Vec<Trial>,
}

impl Cover {
    /// `tests` is how many tests the server has, whether it is there or not; `trials` are those that can run.
    #[must_use]
    pub fn new(server: impl Into<String>, tests: usize, trials: Vec<Trial>) -> Self {
        Self { server: server.into(), tests, trials }
    }
}

/// Runs the trials, several at once for each core, and prints `NOT COVERED name: n tests` for what is missing.
///
/// The result is the exit code for `main` of a test target with `harness = false`. Missing tests fail it when
/// [`REQUIRE`] is set.
#[must_use]
pub fn run(covers: Vec<Cover>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    arguments.test_threads.get_or_insert(cores * AT_ONCE);
    let mut missing = false;
    let mut trials = Vec::new();
    for cover in covers {
        if cover.trials.len() < cover.tests {
            missing = true;
            println!("NOT COVERED {}: {} tests", cover.server, cover.tests - cover.trials.len());
        }
        trials.extend(cover.trials);
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if missing && std::env::var_os(REQUIRE).is_some() {
        eprintln!("{REQUIRE} is set: every server must be there");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
