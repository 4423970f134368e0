//! What the stories share: a runtime whose time passes only when nothing else is left to do. A machine that stands still
//! changes nothing in them, and they take no time.

use std::sync::Arc;

use mainstay::clock::virtual_time::VirtualClock;
use mainstay::clock::{Runtime, SystemRng};

/// A runtime on virtual time, inside a tokio runtime that was started paused. A service has `Runtime::system()`, which
/// every policy takes by itself.
#[must_use]
pub fn virtual_runtime() -> Runtime {
    Runtime::on_tokio(Arc::new(VirtualClock::new()), Arc::new(SystemRng::new()))
}
