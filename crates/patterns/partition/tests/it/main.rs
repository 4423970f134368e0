//! Integration tests of the partition crate.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod balance;
mod bounded_loads;
mod catalogue;
mod compat_formulas;
mod compat_vectors;
mod fleet;
mod laws;
mod memory;
mod planner;
mod steer;
mod topology;
