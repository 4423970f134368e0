//! Anti-entropy without sockets: what to send to whom, and what to do with what came.
//!
//! [`AntiEntropy`] holds one replicated value. The caller owns time and network: it calls
//! [`on_tick`](AntiEntropy::on_tick) every few hundred milliseconds and [`on_msg`](AntiEntropy::on_msg) for what
//! arrived, and sends what they answer. Messages may be lost, doubled, delayed and reordered.
//!
//! | message | when | what happens |
//! |---|---|---|
//! | root | nothing new to send | equal digests: silence, otherwise one of the repairs |
//! | delta | changes that the peer has not acknowledged | the joined interval, applied without gaps |
//! | ack | a delta arrived, or stability moved | how far, and what the sender knows |
//! | known | contexts differ and the log no longer reaches back | contexts by actor; the answer is what they lack |
//! | ranges, items | contexts agree, contents do not | hashes of ranges of changes, split until they fit; then the items |
//!
//! A digest covers the contents, not only the context: a removal mints no dot, so replicas with equal contexts can hold
//! different elements. A piece claims only the dots it carries: one element sent with a whole context would delete
//! everything else.
//!
//! # Forgetting
//! A tombstone may go when no member can still bring back what it hides. A change is *stable* here when every
//! configured member acknowledged a context with it and this replica knows everything those contexts know; it may be
//! *collected* when every member reported it stable. What was collected travels with every delta, and a receiver
//! collects as much before it joins. No wall clock takes part, so one member that is away stops all collection: that is
//! what [`AntiEntropy::remove_member`] is for. A removed member that returns is refused until it
//! [rejoins](AntiEntropy::rejoin) with a full state, and is told which of its changes were not accepted.
//!
//! Reads are causally consistent, and collection is invisible, as long as deltas flow; while a repair is under way a
//! replica may show parts of it. So it may where [`news`](AntiEntropy::news) tells a peer what is new before it is known
//! what that has.
//!
//! Sources: Almeida, Shoker, Baquero (2018) for delta intervals; Meyer, "Range-Based Set Reconciliation" (2023) for the
//! ranges; Bauwens, Gonzalez Boix, "Flec" and "Improving the Reactivity of Pure Operation-Based CRDTs" (2021) for causal
//! stability.

mod config;
mod engine;
mod event;
mod log;
mod message;
mod peer;
mod replicated;
mod stability;

pub use config::{AntiEntropyConfig, Builder};
pub use engine::AntiEntropy;
pub use event::{Event, Outgoing, Rejoined, Step};
pub(crate) use replicated::sendable;
pub use replicated::{Admitted, Place, Replicated};

pub use crate::crdt::{Item, Lattice};
pub use crate::hash::DigestKey;
