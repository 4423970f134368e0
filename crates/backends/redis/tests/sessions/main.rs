//! The campaign against sessions over Redis: a primary and two replicas, killed and failed over again and again.
//!
//! `cargo xtask sessions` runs long ones; the variables are those of [`target`].

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod rig;

use std::process::ExitCode;

use mainstay_chaos::sessions::target;
use mainstay_sim::servers::RedisKit;
use rig::RedisRig;

fn main() -> ExitCode {
    target("redis", RedisKit::new(), RedisRig::start)
}
