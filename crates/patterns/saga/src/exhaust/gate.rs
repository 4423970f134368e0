//! A process that can be killed and frozen: its tasks are dropped, or not polled.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use mainstay_clock::virtual_time::Changes;
use mainstay_clock::{Spawn, TaskFuture, TaskHandle};

/// One process.
#[derive(Clone)]
pub(super) struct Process(Arc<Shared>);

struct Shared {
    frozen: AtomicBool,
    thawed: Changes,
    tasks: Mutex<Vec<tokio::task::AbortHandle>>,
}

impl Process {
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared {
            frozen: AtomicBool::new(false),
            thawed: Changes::default(),
            tasks: Mutex::default(),
        }))
    }

    /// Drops every task where it stands.
    pub(super) fn kill(&self) {
        let tasks = std::mem::take(&mut *self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }

    pub(super) fn set_frozen(&self, frozen: bool) {
        self.0.frozen.store(frozen, Ordering::Release);
        self.0.thawed.bump();
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").finish_non_exhaustive()
    }
}

impl Spawn for Process {
    #[allow(clippy::disallowed_methods, reason = "the kit is the runtime of the process it kills")]
    fn spawn(&self, _name: &'static str, task: TaskFuture) -> TaskHandle {
        let gated = Gated { task, process: self.clone(), thaw: None };
        let handle = tokio::spawn(gated).abort_handle();
        let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|t| !t.is_finished());
        tasks.push(handle.clone());
        TaskHandle::new(move || handle.abort())
    }
}

struct Gated {
    task: TaskFuture,
    process: Process,
    thaw: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Future for Gated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(thaw) = &mut self.thaw {
                if thaw.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.thaw = None;
            }
            let seen = self.process.0.thawed.count();
            if !self.process.0.frozen.load(Ordering::Acquire) {
                return self.task.as_mut().poll(cx);
            }
            let process = self.process.clone();
            self.thaw = Some(Box::pin(async move {
                process.0.thawed.after(seen).await;
            }));
        }
    }
}
