//! Fenced leases on Redis, on one server or on a quorum of independent ones; and positions of its replicas, for sessions.
//!
//! - [`RedisLeases`]: one server. Its keys are those of the clients that exist (`SET key value NX PX`), so a
//!   team can move one service at a time; beside each lock lives a counter, so that every lease has a fencing
//!   token.
//! - [`RedisQuorum`]: a majority of independent servers, any minority of which may die, with tokens that grow
//!   strictly.
//! - [`RedisReplicas`]: a primary and its replicas, for sessions that read their own writes from any of them.
//! - [`fence`]: the check of that token where the data lives.
//!
//! What a store here promises is in its `guarantees()`; what it does not is in the documentation of its type. The page
//! `docs/redis.md` has both side by side, with the keys; `docs/sessions.md` is about replicas.

mod answer;
mod check;
mod config;
mod crowd;
mod error;
pub mod fence;
mod health;
mod keys;
mod node;
mod ops;
mod quorum;
mod records;
mod release;
mod replicas;
mod scan;
mod scripts;
mod store;
mod tls;

pub use config::Builder;
pub use health::Health;
pub use keys::KeyProfile;
pub use mainstay_store::ConfigError;
pub use mainstay_store::lease::Names;
pub use quorum::{Builder as QuorumBuilder, RedisQuorum, Redlock};
pub use replicas::{RedisEndpoint, RedisReplicas, ReplicasBuilder};
pub use store::RedisLeases;
