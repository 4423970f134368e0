//! Clock, randomness and tasks in one value.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::{Clock, Rng};

/// A future that can be spawned.
pub type TaskFuture = Pin<Box<dyn Future<Output = ()> + Send + 'static>>;

/// Starts named background tasks.
pub trait Spawn: Send + Sync + fmt::Debug {
    /// Starts `task` in the background. `name` is for people: logs and task dumps.
    fn spawn(&self, name: &'static str, task: TaskFuture) -> TaskHandle;
}

/// A running task. Dropping the handle lets the task go on; [`abort`](TaskHandle::abort) ends it.
pub struct TaskHandle {
    abort: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl TaskHandle {
    /// A handle whose [`abort`](TaskHandle::abort) calls `abort`.
    #[must_use]
    pub fn new(abort: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { abort: Some(Box::new(abort)) }
    }

    /// Drops the task at its current await point.
    pub fn abort(mut self) {
        if let Some(abort) = self.abort.take() {
            abort();
        }
    }
}

impl fmt::Debug for TaskHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle").finish_non_exhaustive()
    }
}

/// What code needs from the outside world besides its stores: time, randomness and background tasks.
///
/// ```
/// # #[cfg(feature = "tokio")] {
/// use mainstay_clock::Runtime;
///
/// let rt = Runtime::system();
/// assert!(rt.clock().now() <= rt.clock().now());
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Runtime {
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    tasks: Arc<dyn Spawn>,
}

impl Runtime {
    /// Puts a runtime together from its parts.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, rng: Arc<dyn Rng>, tasks: Arc<dyn Spawn>) -> Self {
        Self { clock, rng, tasks }
    }

    /// The system clock, OS entropy and the ambient tokio runtime.
    #[cfg(feature = "tokio")]
    #[must_use]
    pub fn system() -> Self {
        Self::new(
            Arc::new(crate::SystemClock::new()),
            Arc::new(crate::SystemRng::new()),
            Arc::new(TokioTasks),
        )
    }

    /// The same tasks with another clock and generator; for nodes of a simulation.
    #[cfg(feature = "tokio")]
    #[must_use]
    pub fn on_tokio(clock: Arc<dyn Clock>, rng: Arc<dyn Rng>) -> Self {
        Self::new(clock, rng, Arc::new(TokioTasks))
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The random number generator.
    #[must_use]
    pub fn rng(&self) -> &Arc<dyn Rng> {
        &self.rng
    }

    /// Starts `task` in the background.
    ///
    /// # Panics
    /// With the tokio runtime: when called outside one.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> TaskHandle {
        self.tasks.spawn(name, Box::pin(task))
    }
}

/// Tasks on the ambient tokio runtime.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug)]
struct TokioTasks;

#[cfg(feature = "tokio")]
impl Spawn for TokioTasks {
    #[allow(clippy::disallowed_methods, reason = "the one place that spawns on tokio")]
    fn spawn(&self, _name: &'static str, task: TaskFuture) -> TaskHandle {
        let handle = tokio::spawn(task).abort_handle();
        TaskHandle::new(move || handle.abort())
    }
}
