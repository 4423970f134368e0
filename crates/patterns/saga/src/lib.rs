//! Durable sagas.
//!
//! A saga is data: a [`definition`] (a graph of steps), a log of facts ([`wire`]), a pure [`fold`] from
//! facts to state and a pure [`next`] from state to commands. Nothing is replayed as code, so there are no
//! determinism rules.

pub mod definition;
mod error;
pub mod fold;
pub mod next;
pub mod wire;

pub use error::{Error, ErrorKind};
