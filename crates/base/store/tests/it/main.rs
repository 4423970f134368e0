//! Integration tests of the store crate.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod barrier;
mod conformance;
#[cfg(unix)]
mod fenced_file;
