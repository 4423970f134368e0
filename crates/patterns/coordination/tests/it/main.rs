//! Integration tests of every recipe.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod barrier;
mod cron;
mod drops;
mod election;
mod faulty;
#[cfg(feature = "tower")]
mod fencing;
mod groups;
mod holder;
mod jobs;
mod latch;
mod leases;
mod locks;
mod loss;
mod majority;
mod member;
mod membership;
mod parked;
mod presence;
/// The state machine of the Redis quorum itself: the majority of the simulation runs what that backend runs.
#[path = "../../../../backends/redis/src/quorum/state.rs"]
mod round;
mod runner;
mod seeds;
mod semaphores;
mod shares;
mod slots;
mod stores;
mod twisted;
mod world;
