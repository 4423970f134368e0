//! Integration tests of the SQLite store.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod barrier;
mod batches;
mod batching;
mod calendar;
mod conformance;
mod durability;
mod field;
mod leases;
mod power;
mod recipes;
mod restore;
