//! One suite per contract. A backend's `tests/it` calls it with fresh stores; every check panics with
//! what it expected.

#![allow(clippy::unwrap_used, reason = "a suite is a test: a failed call is a failed check")]

mod journal;
mod leases;
mod records;
mod replicated;

pub use journal::journal;
pub use leases::{Sections, leases, mutex, since_when};
pub use records::{cell, records};
pub use replicated::{Cluster, replicated};
