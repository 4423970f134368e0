//! The real binary, over real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod browser;
mod command_line;
mod console;
mod crash;
mod demo;
mod edge;
mod end_to_end;
mod harness;
mod ledger;
mod security;
mod webdriver;
