//! The real binary, over real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod command_line;
mod crash;
mod demo;
mod edge;
mod end_to_end;
mod harness;
mod ledger;
mod ring;
mod security;
