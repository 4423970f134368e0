//! Stands between the engine and the user's closures: injects faults, counts, remembers deliveries.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_store::BoxFuture;
use serde_json::Value;
use tokio::sync::Notify;

use super::plan::{Case, Fault, Stop};
use crate::step::{Known, LocalStep, StepCx, StepError, Told, UndoError};

/// Something that arrives after the end.
#[derive(Clone)]
pub(super) enum Delivery {
    Act(StepCx, Value),
    Undo(StepCx, Told<Value>, Value),
}

/// What one run shares with its probes and its journal.
pub(super) struct Control {
    pub(super) case: Case,
    pub(super) stop: Stop,
    pub(super) clock: Arc<dyn Clock>,
    /// The cut has come: the process is to be killed or frozen.
    pub(super) cut: Notify,
    pub(super) was_cut: AtomicBool,
    pub(super) appends: AtomicU64,
    pub(super) calls: AtomicU64,
    /// Somebody wants to cancel the saga.
    pub(super) cancel: Notify,
    /// Faults that last for ever end here: a person repaired what was broken.
    pub(super) healed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) log: Vec<String>,
    pub(super) undos: BTreeMap<String, u64>,
    /// What actions gave last, by step, heard or not: what a person finds at the participant.
    pub(super) worked: BTreeMap<String, Value>,
    /// How the log and the state in memory differed first.
    pub(super) differs: Option<String>,
    pub(super) late: Vec<(Arc<dyn LocalStep>, Delivery)>,
    once: Vec<(usize, Fault)>,
}

impl Control {
    pub(super) fn new(case: Case, stop: Stop, clock: Arc<dyn Clock>) -> Self {
        Self {
            case,
            stop,
            clock,
            cut: Notify::new(),
            was_cut: AtomicBool::new(false),
            appends: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            cancel: Notify::new(),
            healed: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is the place to cut. True once.
    pub(super) fn cuts(&self, at: Stop) -> bool {
        self.stop == at && !self.was_cut.swap(true, Ordering::AcqRel)
    }

    fn suffers(&self, step: usize, fault: Fault) -> bool {
        !self.healed.load(Ordering::Acquire) && self.case.faults.contains(&(step, fault))
    }

    /// Like [`Control::suffers`], for a fault that strikes once.
    fn suffers_once(&self, step: usize, fault: Fault) -> bool {
        if !self.suffers(step, fault) {
            return false;
        }
        let mut state = self.state();
        let first = !state.once.contains(&(step, fault));
        state.once.push((step, fault));
        first
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("case", &self.case.name).finish_non_exhaustive()
    }
}

/// The user's closure of one step, with faults before and after it.
pub(super) struct Probe {
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) inner: Arc<dyn LocalStep>,
    pub(super) control: Arc<Control>,
}

/// A panic without the noise of the panic hook.
fn panic_quietly() -> ! {
    resume_unwind(Box::new("injected"))
}

impl Probe {
    /// Counts the call; the process may freeze here, before the effect.
    async fn enter(&self, what: &str) {
        let n = self.control.calls.fetch_add(1, Ordering::AcqRel) + 1;
        self.control.state().log.push(format!("{what}{}", self.name));
        if self.control.cuts(Stop::FreezeInCall(n)) {
            self.control.cut.notify_one();
            tokio::task::yield_now().await;
        }
    }

    async fn rank(&self) {
        let rank = self.control.case.ranks.iter().find(|(i, _)| *i == self.index);
        if let Some((_, ms)) = rank {
            self.control.clock.sleep(Duration::from_millis(*ms)).await;
        }
    }

    fn remember(&self, delivery: Delivery) {
        self.control.state().late.push((Arc::clone(&self.inner), delivery));
    }
}

impl LocalStep for Probe {
    fn act(&self, cx: StepCx, input: Value) -> BoxFuture<'_, Result<Value, StepError>> {
        Box::pin(async move {
            self.enter("").await;
            self.rank().await;
            let hit = |fault| self.control.suffers(self.index, fault);
            if self.control.suffers_once(self.index, Fault::Cancelled) {
                self.control.cancel.notify_one();
                // In flight until that is on the log.
                self.control.clock.sleep(Duration::from_millis(10)).await;
            }
            if hit(Fault::Redelivered) {
                self.remember(Delivery::Act(cx.clone(), input.clone()));
            }
            if hit(Fault::Delayed) {
                self.remember(Delivery::Act(cx, input));
                return Err(StepError::unknown("injected: delayed"));
            }
            if hit(Fault::Rejected) {
                return Err(StepError::rejected("injected"));
            }
            if hit(Fault::NotSent) {
                return Err(StepError::not_sent("injected"));
            }
            if hit(Fault::UnknownBefore) {
                return Err(StepError::unknown("injected: before"));
            }
            if hit(Fault::PanicBefore) {
                panic_quietly();
            }
            if hit(Fault::TimeoutBefore) {
                std::future::pending::<()>().await;
            }
            if hit(Fault::ActTwice) {
                drop(self.inner.act(cx.clone(), input.clone()).await);
            }
            let result = self.inner.act(cx, input).await;
            if let Ok(output) = &result {
                self.control.state().worked.insert(self.name.clone(), output.clone());
            }
            let unheard = hit(Fault::UnknownAfter) || hit(Fault::Edited);
            if unheard || self.control.suffers_once(self.index, Fault::UnknownAfterOnce) {
                return Err(StepError::unknown("injected: after"));
            }
            if hit(Fault::PanicAfter) {
                panic_quietly();
            }
            if hit(Fault::TimeoutAfter) {
                std::future::pending::<()>().await;
            }
            if hit(Fault::OutputLost) && result.is_ok() {
                return Err(StepError::output_lost());
            }
            result
        })
    }

    fn undo(&self, cx: StepCx, effect: Told<Value>, input: Value) -> BoxFuture<'_, Result<(), UndoError>> {
        Box::pin(async move {
            self.enter("undo ").await;
            let hit = |fault| self.control.suffers(self.index, fault);
            if hit(Fault::UndoRefused) {
                return Err(UndoError::refused("injected"));
            }
            if hit(Fault::UndoFailsForEver) || self.control.suffers_once(self.index, Fault::UndoFailsOnce) {
                return Err(UndoError::failed("injected"));
            }
            if hit(Fault::Redelivered) {
                self.remember(Delivery::Undo(cx.clone(), effect.clone(), input.clone()));
            }
            if hit(Fault::UndoTwice) {
                self.inner.undo(cx.clone(), effect.clone(), input.clone()).await?;
            }
            let result = self.inner.undo(cx, effect, input).await;
            *self.control.state().undos.entry(self.name.clone()).or_default() += 1;
            if self.control.suffers_once(self.index, Fault::UndoTimeoutAfterOnce) {
                std::future::pending::<()>().await;
            }
            result
        })
    }

    fn status(&self, cx: StepCx, input: Value) -> BoxFuture<'_, Known<Value>> {
        Box::pin(async move {
            self.enter("status ").await;
            self.inner.status(cx, input).await
        })
    }
}

/// Delivers again what was kept back; what the participants answer to it is nobody's business.
pub(super) async fn deliver(late: Vec<(Arc<dyn LocalStep>, Delivery)>) {
    for (step, delivery) in late {
        match delivery {
            Delivery::Act(cx, input) => drop(step.act(cx, input).await),
            Delivery::Undo(cx, told, input) => drop(step.undo(cx, told, input).await),
        }
    }
}
