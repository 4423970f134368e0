//! Integration tests of the prover: it proves itself first.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod brute;
mod checkers;
mod lock;
mod meta;
mod orders;
mod power;
mod session;
