//! The profiles against the real systems: nginx, HAProxy, a Redis Cluster node.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod haproxy;
mod http;
mod keys;
mod nginx;
mod redis;

use std::process::ExitCode;

use mainstay_sim::servers;

fn main() -> ExitCode {
    // Servers die with the thread that starts them: this one, which ends last.
    servers::run(vec![haproxy::cover(), nginx::cover(), redis::cover()])
}
