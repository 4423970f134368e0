//! Integration tests of the saga crate.

mod definition;
mod engine;
mod world;
