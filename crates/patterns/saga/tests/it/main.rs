//! Integration tests of the saga crate.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod definition;
mod engine;
mod exhaust;
#[cfg(feature = "tower")]
mod inbound;
mod people;
mod remote;
mod world;
