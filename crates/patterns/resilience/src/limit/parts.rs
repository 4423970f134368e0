//! What all limits are built from: a name, a clock, and somebody who hears refusals.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Instant, Runtime};

use crate::event::{Ear, Kind, Listener};
use crate::streak::Streak;
use crate::{Reason, Rejected};

/// The settings that the builder of every limit has.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    name: Arc<str>,
    pub(super) runtime: Option<Runtime>,
    pub(super) listener: Option<Arc<dyn Listener>>,
}

impl Parts {
    pub(super) fn new(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), runtime: None, listener: None }
    }

    /// The runtime that was set, or the system's.
    pub(super) fn runtime(&self) -> Runtime {
        self.runtime.clone().unwrap_or_else(Runtime::system)
    }

    /// Who speaks for the limit.
    pub(super) fn voice(self) -> Voice {
        Voice {
            streak: Streak::new(),
            ear: Ear::new(Kind::Limit, &self.name, self.listener.as_ref()),
            name: self.name,
        }
    }
}

/// Refuses in the name of a limit.
#[derive(Debug)]
pub(super) struct Voice {
    pub(super) name: Arc<str>,
    streak: Streak,
    ear: Ear,
}

impl Voice {
    /// A refusal, told to the listener; `wait` is when to come back, if known.
    #[cold]
    pub(super) fn refuse(&self, why: Reason, wait: Option<Duration>, now: Instant) -> Rejected {
        let since = self.streak.hit(now);
        let rejected = Rejected::new(Arc::clone(&self.name), why);
        self.ear.told(rejected.with_retry_after(wait).with_since(Some(since)))
    }
}
