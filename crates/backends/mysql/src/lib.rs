//! Positions of MariaDB and MySQL replicas, for sessions that read their own writes.
//!
//! - [`MysqlReplicas`]: the servers of one store.
//! - [`MysqlServer`]: one of them, with its idle connections.
//! - [`MysqlConn`]: a connection, as sessions use it.
//! - [`gtid`]: reading and writing the texts of global transaction ids.
//!
//! Run against MariaDB 10.11; for MySQL 8 the rules are checked by documented examples of GTID sets, and nothing was
//! run. The page `docs/sessions.md` says what is promised.

mod config;
mod conn;
mod error;
pub mod gtid;
mod server;
mod state;

pub use config::{MysqlReplicas, ReplicasBuilder};
pub use conn::MysqlConn;
pub use mainstay_store::ConfigError;
pub use server::MysqlServer;
