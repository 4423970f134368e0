//! Integration tests of the partition crate.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
