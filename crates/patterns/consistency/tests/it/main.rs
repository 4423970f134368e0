//! Integration tests of the consistency crate.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
