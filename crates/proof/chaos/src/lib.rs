//! Faults on purpose.
//!
//! [`proxy`] stands between a caller and a service on loopback and does what networks do: it drops, delays,
//! duplicates and loses replies of work that was done. What it does is drawn from a seed, request by request.
//! Feature `coordination`: `recipes` asks of every store what recipes need that remember more than a lease, and
//! `partition` who holds while the cluster of a store is cut in two.
//! `sessions` (feature of that name) kills the primaries of replicated stores under sessions that read from their
//! replicas.

#[cfg(feature = "coordination")]
pub mod partition;
pub mod proxy;
#[cfg(feature = "coordination")]
pub mod recipes;
#[cfg(feature = "sessions")]
pub mod sessions;
