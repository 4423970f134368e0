//! Streaming replicas, for sessions that read their own writes: who a server is, what it has, and where a commit went.
//!
//! - [`Endpoint`]: one server and the connections of this process to it; [`Endpoint::lender`] is what a
//!   `mainstay_consistency::session::Router` takes for a node.
//! - [`Node`]: one connection. [`Node::write`] commits with a position, [`Node::read`] reads from one snapshot that is
//!   taken after the judgment, [`Node::read_after`] does both without a router.
//!
//! A position is the system's identifier, the timeline and the place in the log. A failover begins a new timeline, and
//! its history says where it left the old one: a write past that place is lost, and is called so.
//!
//! What the role needs, once per cluster:
//! ```sql
//! GRANT pg_read_all_stats TO app;
//! GRANT EXECUTE ON FUNCTION pg_read_file(text, bigint, bigint, boolean) TO app;
//! ```
//! Without the first, standbys are not read from. Without the second, what was written before a failover is never
//! `Satisfied` after it: replicas are `Behind` and the primary is `Unproven`.
//! The page `docs/sessions.md` says what is promised.

mod config;
mod endpoint;
mod lsn;
mod node;
mod transaction;

pub use config::{EndpointBuilder, EndpointConfig};
pub use endpoint::Endpoint;
pub(crate) use node::Identity;
pub use node::{Node, Report};
pub use transaction::{Checked, TransactionError};
