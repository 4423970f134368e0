//! Leases on PostgreSQL, and sessions over its streaming replicas.
//!
//! - [`PostgresLeases`]: rows with a ttl and fencing tokens; the default, works through connection poolers.
//! - [`PostgresSessions`]: session advisory locks, bound to a connection instead of a ttl: the next holder
//!   starts as soon as the server sees that the holder's process is gone. [`AdvisoryKey`] makes the keys that
//!   other libraries use, so that theirs and ours exclude each other.
//! - [`fence`]: what refuses a late writer where the data is: a predicate, a trigger, a table of tokens, and the
//!   row lock that makes data in the same database safe without any token in it.
//! - [`replicas`]: positions of a primary and its standbys, for sessions that read their own writes.
//!
//! Tokens carry the timeline of the cluster above a counter, so that they keep growing after a promotion that
//! lost grants, and after a restore to an earlier point in time. PostgreSQL 14 or later.
//! The page `docs/postgres.md` has the table of what goes wrong and what follows.

#![forbid(unsafe_code)]

mod config;
mod connect;
mod error;
pub mod fence;
mod leases;
mod listen;
mod op;
mod pool;
pub mod replicas;
mod schema;
mod session;
mod tls;

pub use config::{Builder, PostgresConfig, Wake};
pub use connect::{Connected, Connector, Dial};
pub use leases::PostgresLeases;
pub use mainstay_store::ConfigError;
pub use mainstay_store::lease::Names;
pub use session::{AdvisoryKey, KeyError, KeyProfile, PostgresSessions};
