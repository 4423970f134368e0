//! Integration tests of every recipe.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod barrier;
mod cron;
mod drops;
mod election;
mod faulty;
mod latch;
mod locks;
mod loss;
mod membership;
mod world;
