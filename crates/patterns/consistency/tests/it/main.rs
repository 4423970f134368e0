//! Integration tests of the consistency crate.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod catalogue_crdt;
mod catalogue_network;
mod catalogue_sketch;
mod clocks;
mod collection;
mod documents;
mod forged;
mod future;
mod laws;
mod laws_parts;
mod laws_planted;
mod rivals;
mod session_campaign;
mod session_carrier;
mod session_leader;
mod session_seen;
mod session_tokens;
mod sessions;
mod speed;
mod tables;
mod theirs;
mod versions;
mod wire;

use std::sync::Arc;

use mainstay_consistency::hlc::Hlc;
use mainstay_consistency::laws::ManualClock;
use mainstay_consistency::{Actor, ActorId};

fn actor(node: u64) -> Actor {
    Actor::new(ActorId::new(node, 1, 0))
}

/// A clock that shows `ms`, and its hand.
fn clock(ms: i64) -> (Hlc, Arc<ManualClock>) {
    let wall = Arc::new(ManualClock::new(ms));
    (Hlc::builder(wall.clone()).build().unwrap(), wall)
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}
