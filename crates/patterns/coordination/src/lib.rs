//! Fenced locks and elections on any lease store.
//!
//! A lease alone is not mutual exclusion: a holder that was paused wakes up after its lease passed on and
//! goes on working. Two things here close that hole. Work that runs under a [`Guard`] is dropped before the
//! lease can pass on, judged by this machine's boot clock. And every grant carries a fencing token that
//! only grows, so that whatever the work writes to can refuse a late writer.
//!
//! - [`lock`]: a mutex, readers and a writer, a semaphore, several names at once.
//! - [`election`]: one leader at a time, with a term.
//! - [`membership`]: who is there, with metadata; joined, left and expired are told apart.
//! - [`cron`]: a job that one of many runs, once for each slot of a schedule.
//! - [`barrier`] and [`latch`]: waiting for each other, and for a number of events.
//! - [`Coordinator`]: where all of them come from; it names the store, the namespace and the owner.
//!
//! How to use them, with what each store guarantees: `docs/lock.md`,
//! `docs/election.md`, `docs/membership.md`, `docs/cron.md` and `docs/barrier.md`.
//!
//! Decisions are made in state machines without I/O (`lock/state.rs`, `guard/state.rs`); what surrounds
//! them sends, waits and wakes.

#![forbid(unsafe_code)]

pub mod barrier;
mod coordinator;
pub mod cron;
pub mod election;
mod error;
#[cfg(feature = "tower")]
mod fencing;
mod guard;
pub mod latch;
pub mod lock;
pub mod membership;
mod record;

pub use coordinator::{Builder, Coordinator};
pub use election::{Election, Leader, Term};
pub use error::{Error, ErrorKind, LossReason};
#[cfg(feature = "tower")]
pub use fencing::{Fencing, FencingFuture, FencingLayer};
pub use guard::{Fence, Guard, SharedGuard};
pub use lock::{Lock, Stats};
pub use mainstay_store::ConfigError;
