//! Integration tests of locks and elections.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod drops;
mod election;
mod faulty;
#[cfg(feature = "tower")]
mod fencing;
mod holder;
mod leases;
mod locks;
mod loss;
mod majority;
/// The state machine of the Redis quorum itself: the majority of the simulation runs what that backend runs.
#[path = "../../../../backends/redis/src/quorum/state.rs"]
mod round;
mod stores;
mod world;
