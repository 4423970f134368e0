//! Everything between a service and its next failure.
//!
//! This crate re-exports the others; it adds nothing. Start with [`saga`], or with [`resilience`] and
//! `use mainstay::prelude::*`.
//!
//! - [`clock`]: time, deadlines, randomness, backoff schedules; the one error of refused settings.
//! - [`store`]: the contracts backends implement.
//! - [`resilience`]: retries, breakers, bulkheads, deadlines, composed by one policy.
//! - [`coordination`]: fenced locks and elections on any lease store.
//! - [`partition`]: who owns a key, who else holds it, what moves when the fleet changes.
//! - [`consistency`]: clocks, conflict resolution, replicated data that converges.
//! - [`saga`]: durable sagas.
//! - [`prelude`]: what most programs name.
//! - `redis` (feature): leases on one Redis or a quorum, and sessions over its replicas.
//! - `mysql` (feature): sessions over replicas of MariaDB and MySQL.
//! - `etcd` (feature): leases and fences on etcd, with the keys of its own locks and elections.
//! - `nats` (feature): leases on a NATS key-value bucket, and fences in streams.
//! - `gossip` (feature): replicated values over sealed datagrams, with membership.
//! - `postgres` (feature): leases, session locks and fences on PostgreSQL.
//! - `sqlite` (feature): the embedded store.
//!
//! Features add, and change nothing that compiled without them. Beside one for each backend there are:
//!
//! - `definitions`: saga definitions written in TOML.
//! - `documents`: texts, lists and maps that several people edit at once, in [`consistency`].
//! - `http`: the caller of HTTP participants, in [`saga`].
//! - `laws`: the laws of replicated data, to be run over types and merge functions of yours, in [`consistency`].
//! - `metrics`: the listener of policies that speaks to the facade `metrics`, in [`resilience`].
//! - `policies`: policies as TOML, with their linter, in [`resilience`].
//! - `simd`: vectors chosen at run time for rendezvous hashing, in [`partition`].
//! - `tokens`: session tokens as sealed text, in [`consistency`].
//! - `tower`: policies as layers, the participant's half of a saga, session tokens in headers and cookies, and the check
//!   of fencing tokens.

pub use mainstay_clock as clock;
pub use mainstay_consistency as consistency;
pub use mainstay_coordination as coordination;
#[cfg(feature = "etcd")]
pub use mainstay_etcd as etcd;
#[cfg(feature = "gossip")]
pub use mainstay_gossip as gossip;
#[cfg(feature = "mysql")]
pub use mainstay_mysql as mysql;
#[cfg(feature = "nats")]
pub use mainstay_nats as nats;
pub use mainstay_partition as partition;
#[cfg(feature = "postgres")]
pub use mainstay_postgres as postgres;
#[cfg(feature = "redis")]
pub use mainstay_redis as redis;
pub use mainstay_resilience as resilience;
pub use mainstay_saga as saga;
#[cfg(feature = "sqlite")]
pub use mainstay_sqlite as sqlite;
pub use mainstay_store as store;

pub mod prelude;

#[cfg(doctest)]
mod doc_tests;
