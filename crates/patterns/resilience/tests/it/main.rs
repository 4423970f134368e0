//! Integration tests: the must-pass battery, by its ids.

#![cfg(not(any(loom, shuttle)))]
#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod api;
mod attempts;
mod breaker;
mod breaker_threads;
mod budget;
mod bulkhead;
mod config;
#[cfg(feature = "serde")]
mod configs;
mod des;
mod drops;
mod fallbacks;
mod fleets;
mod hedges;
mod ids;
#[cfg(feature = "tower")]
mod layers;
mod limits;
mod manual;
#[cfg(feature = "metrics")]
mod metrics;
mod outliers;
mod overload;
mod policy;
mod probes;
mod refusals;
mod retry;
mod sketch;
mod timeout;
mod windows;
mod world;
