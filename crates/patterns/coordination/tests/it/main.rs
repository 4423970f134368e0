//! Integration tests of locks and elections.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod drops;
mod election;
mod faulty;
mod locks;
mod loss;
mod world;
