//! Time, deadlines, randomness and backoff schedules.
//!
//! This crate is the only one that reads the clock of the operating system or its entropy. Everything
//! else is handed a [`Clock`] and an [`Rng`], usually together as a [`Runtime`], so that the same code
//! runs in production, under virtual time and under a seed.
//!
//! Two kinds of time exist and never mix: [`Instant`] is *boot time* (it goes on while the machine
//! sleeps; every deadline, lease and claim is one), [`WallTime`] is what a calendar shows (it may jump
//! and is only for people and for the wire).
//!
//! Without features the crate has no async runtime; feature `tokio` adds [`SystemClock`] and
//! [`Runtime::system`], feature `test-util` adds [`virtual_time`].

pub mod backoff;
mod clock;
mod config;
mod deadline;
mod instant;
mod rng;
mod runtime;
mod ticker;
#[cfg(feature = "test-util")]
pub mod virtual_time;

#[cfg(feature = "tokio")]
pub use clock::SystemClock;
pub use clock::{Clock, Sleep, Tick, os_boot_now, os_wall_now};
pub use config::ConfigError;
pub use deadline::Deadline;
pub use instant::{Instant, WallTime};
pub use rng::{Rng, SeededRng, SystemRng};
pub use runtime::{Runtime, Spawn, TaskFuture, TaskHandle};
