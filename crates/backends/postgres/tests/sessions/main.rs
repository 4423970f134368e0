//! The campaign against sessions over PostgreSQL: a primary and two standbys, killed and failed over again and again.
//!
//! `cargo xtask sessions` runs long ones; the variables are those of [`target`].

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod rig;

use std::process::ExitCode;

use mainstay_chaos::sessions::target;
use mainstay_sim::servers::PostgresKit;
use rig::PostgresRig;

fn main() -> ExitCode {
    target("postgresql", PostgresKit::new().unwrap(), PostgresRig::start)
}
