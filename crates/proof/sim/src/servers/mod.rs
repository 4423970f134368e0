//! Real servers as private children of a test: found, started, paused, killed and cleaned up.
//!
//! Every server runs in a folder of its own, on a loopback address drawn for this test process, as an
//! unprivileged user when the tests run as root, and dies with the thread that started it. Start it in the main
//! thread of the test target; [`run`] does the rest.
//!
//! A server that is not installed registers no test: [`run`] prints `NOT COVERED redis: 3 tests` and passes,
//! unless [`REQUIRE`] is set, as `cargo xtask test` does; then it fails.

mod address;
mod find;
mod process;
mod report;

pub use address::free_address;
pub use find::find;
pub use process::{Launch, Server, Setup};
pub use report::{Cover, REQUIRE, Trial, run};
