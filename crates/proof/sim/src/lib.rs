//! How we know: histories, checkers, conformance suites and, with feature `virtual-time`, a simulator.
//!
//! - [`history`]: what happened, as JSON lines, with outcomes as the callers knew them.
//! - [`check`]: streaming, object-safe checkers; [`verdict`]: what they answer. An empty history is never a
//!   pass.
//! - `power` (feature `power`): records what a real process does to its files and cuts the power at any point.
//! - [`conformance`]: one suite per contract of the store crate, one section per capability.
//! - `sim` (feature `virtual-time`): the real library code on virtual time that jumps, with seeded faults;
//!   one seed is one execution.
//!
//! Without the feature nothing here needs tokio's `test-util`, so a release binary may judge histories.

pub mod check;
pub mod conformance;
pub mod history;
#[cfg(feature = "power")]
pub mod power;
#[cfg(feature = "servers")]
pub mod servers;
#[cfg(feature = "virtual-time")]
pub mod sim;
pub mod verdict;

#[cfg(feature = "virtual-time")]
pub use sim::Sim;
