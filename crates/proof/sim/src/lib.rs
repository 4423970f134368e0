//! How we know: conformance suites that every implementation of a contract runs.

pub mod conformance;
