//! Integration tests.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod limits;
mod manual;
