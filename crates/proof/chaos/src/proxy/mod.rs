//! A fault proxy for HTTP and for plain TCP, and doors between the members of a cluster.
//!
//! The n-th request of a proxy meets the same fault for the same seed. Which request is the n-th is up to the
//! callers' timing: a seed repeats the schedule, not the interleaving.

mod http;
mod mesh;
mod plan;
mod tcp;

pub use http::{HttpProxy, Injected};
pub use mesh::TcpMesh;
pub use plan::{Counts, Fault, Forced, HttpFaults, HttpFaultsBuilder};
pub use tcp::{TcpMode, TcpProxy};

/// Connections of one proxy at the same time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 1_024;
