//! Integration tests of the saga crate.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod aside;
mod bounds;
mod branches;
mod builder;
mod cancel;
mod claims;
mod definition;
#[cfg(feature = "http")]
mod dial;
mod edited;
mod engine;
mod exhaust;
#[cfg(feature = "tower")]
mod inbound;
mod inbox;
mod known;
mod lossy;
mod oracle;
mod order;
mod people;
mod policies;
mod remote;
mod room;
mod seal;
mod simulated;
mod slots;
mod told;
mod undo;
mod vanished;
mod world;
