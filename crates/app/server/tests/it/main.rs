//! The real binary, over real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod command_line;
mod edge;
mod harness;
mod security;
