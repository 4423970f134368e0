//! Faults on purpose.
//!
//! [`proxy`] stands between a caller and a service on loopback and does what networks do: it drops, delays,
//! duplicates and loses replies of work that was done. What it does is drawn from a seed, request by request.
//! `sessions` (feature of that name) kills the primaries of replicated stores under sessions that read from their
//! replicas.

pub mod proxy;
#[cfg(feature = "sessions")]
pub mod sessions;
