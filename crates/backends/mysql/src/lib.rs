//! Positions of MariaDB and MySQL replicas, for sessions.

mod error;
pub mod gtid;
mod state;

pub use error::ConfigError;
