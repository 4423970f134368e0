//! Integration tests of the store crate.

mod barrier;
mod conformance;
