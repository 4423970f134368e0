//! Integration tests.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

#[cfg(feature = "serde")]
mod configs;
mod des;
mod fallbacks;
mod fleets;
mod hedges;
#[cfg(feature = "tower")]
mod layers;
mod limits;
mod manual;
mod outliers;
mod overload;
