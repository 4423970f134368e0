//! Tests of the fault proxy.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod forced;
mod http;
mod tcp;
