//! Fenced leases on a NATS `JetStream` key-value bucket.
//!
//! - [`NatsLeases`]: one key per name, every write of it conditional on the sequence that was read; fencing
//!   tokens are sequences of the stream, so a later grant has a larger one whatever happened between.
//! - [`NatsLeases`] keeps records too ([`RecordStore`](mainstay_store::RecordStore)), for schedules, barriers and
//!   latches.
//! - [`fence`]: the check of that token where the data lives, if it lives in a stream too.
//!
//! What a store here promises is in its `guarantees()`; what it does not is in the documentation of its type. The page
//! `docs/nats.md` has the table of what goes wrong and what follows.

mod api;
mod board;
mod bucket;
mod check;
mod config;
mod connect;
mod error;
mod exec;
mod feed;
pub mod fence;
mod key;
mod ops;
mod records;
mod scan;
mod state;
mod store;
mod synced;
mod wire;

pub use config::{Builder, Expiry, NatsConfig};
pub use mainstay_store::ConfigError;
pub use mainstay_store::lease::Names;
pub use store::NatsLeases;
