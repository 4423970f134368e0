//! Integration tests.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod des;
mod fleets;
mod limits;
mod manual;
mod outliers;
mod overload;
