//! Durable sagas.
//!
//! A saga is data: a [`definition`] (a graph of steps), a log of facts ([`wire`]), a pure [`fold`] from
//! facts to state and a pure [`next`] from state to commands. Nothing is replayed as code, so there are no
//! determinism rules.

pub mod definition;
pub mod engine;
mod error;
#[cfg(feature = "test-util")]
pub mod exhaust;
pub mod fold;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "tower")]
pub mod inbound;
pub mod next;
pub mod participant;
mod row;
pub mod seal;
#[cfg(any(feature = "http", feature = "tower"))]
pub mod signature;
mod step;
mod typed;
pub mod wire;

pub use engine::{Engine, Handle, Outcome};
pub use error::{Error, ErrorKind};
pub use step::{Known, LocalStep, StepCx, StepError, Told, UndoError};
pub use typed::{
    ForwardBuilder, Inputs, Node, PivotBuilder, RetriableBuilder, Saga, SagaBuilder, StepBuilder,
};
