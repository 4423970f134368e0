//! The real binary, over real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod audit;
mod bad_input;
mod bound;
mod browser;
mod client;
mod clients;
mod command_line;
mod console;
mod crash;
mod cron;
mod demo;
mod edge;
mod end_to_end;
mod fleet;
mod golden;
mod harness;
mod hold;
mod ledger;
mod machine;
mod namespaces;
mod power;
mod recorder;
mod reload;
mod ring;
mod security;
mod shipped;
mod slow;
mod supply;
mod tls;
mod webdriver;
