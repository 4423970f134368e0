//! Durable sagas.
//!
//! A saga is data: a [`definition`] (a graph of steps), a log of facts ([`wire`]), a pure [`fold`] from
//! facts to state and a pure [`next`] from state to commands. Nothing is replayed as code, so there are no
//! determinism rules.
//!
//! - [`Saga`]: a definition and its closures, with types; [`definition`]: the same as TOML or JSON.
//! - [`Engine`]: claims sagas, drives them, records what happens; [`engine::Attention`]: what a person may do.
//! - [`participant`]: the contract with whoever a step calls, and what each reply means.
//! - `http` (feature `http`): the caller of participants over HTTP, with its address rules.
//! - `inbound` (feature `tower`): the participant's half as middleware.
//! - [`seal`]: records and messages that the store cannot read.
//! - `exhaust` (feature `test-util`): every crash, failure, repetition and order of a saga of yours, tried.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use mainstay_clock::Runtime;
//! use mainstay_saga::engine::StartOptions;
//! use mainstay_saga::{Engine, Outcome, Saga, StepCx, StepError, Told, UndoError};
//! use mainstay_store::memory::MemoryJournal;
//!
//! async fn reserve(_: StepCx, items: u32) -> Result<u32, StepError> { Ok(items) }
//! async fn release(_: StepCx, _: Told<u32>) -> Result<(), UndoError> { Ok(()) }
//! async fn ship(_: StepCx, _: u32) -> Result<(), StepError> { Err(StepError::rejected("no carrier")) }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let mut b = Saga::<u32>::builder("order", 1);
//! let held = b.step("reserve", b.input(), reserve).undo(release).add();
//! b.step("ship", &held, ship).no_undo("a refused shipment never left").add();
//! let saga = b.deadline(Duration::from_secs(20)).build()?;
//!
//! // Durable with `mainstay_sqlite::SqliteStore` in its place.
//! let runtime = Runtime::system();
//! let journal = Arc::new(MemoryJournal::new(Arc::clone(runtime.clock())));
//! let engine = Engine::builder(journal, runtime).register(&saga).open().await?;
//! let outcome = engine.start_saga(&saga, &3, StartOptions::id("order-1")).await?.outcome().await?;
//! assert!(matches!(outcome, Outcome::Compensated { .. }));
//! # Ok(()) })
//! # }
//! ```
//!
//! The page `docs/saga.md` has the defaults with their reasons, the table of replies, and what a person may do.

mod canonical;
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
