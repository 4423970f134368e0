//! Tests of the fault proxy.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod http;
mod tcp;
