//! Integration tests of the SQLite store.

mod barrier;
mod conformance;
mod durability;
