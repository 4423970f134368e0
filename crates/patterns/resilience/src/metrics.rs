//! From events to the `metrics` facade (feature `metrics`).
//!
//! | metric | labels | meaning |
//! |---|---|---|
//! | `mainstay_breaker_state` | name, state | 1 for the state it is in, 0 for the others; of a [`Registry`]: how many of its keys are in it |
//! | `mainstay_breaker_transitions_total` | name, state | transitions into the state |
//! | `mainstay_breaker_calls_total` | name, outcome | attempts by how they counted |
//! | `mainstay_breaker_call_duration_seconds` | name | duration of attempts |
//! | `mainstay_calls_total` | name, outcome | whole calls of a policy |
//! | `mainstay_call_duration_seconds` | name | duration of whole calls |
//! | `mainstay_rejected_total` | name, reason | refusals; once also where a part and its policy share a name |
//! | `mainstay_retry_attempts_total` | name | further attempts |
//! | `mainstay_hedges_total` | name | second attempts |
//! | `mainstay_bulkhead_in_flight`, `_limit`, `_queued` | name | from [`MetricsListener::bulkhead`] |
//! | `mainstay_retry_budget_tokens` | name | from [`MetricsListener::budget`] |
//!
//! [`Registry`]: crate::breaker::Registry
//!
//! Counters are looked up once, when a policy is built with the listener; a call then adds to what it holds. Gauges of
//! bulkheads, budgets and windows are read, not heard: call the methods for them whenever somebody scrapes.
//!
//! With [`Naming::Resilience4j`] breakers, bulkheads and retries report under the names of Resilience4j's
//! Prometheus exporter, so that boards made for it go on working.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::breaker::{BreakerSnapshot, State};
use crate::budget::BudgetSnapshot;
use crate::bulkhead::BulkheadSnapshot;
use crate::{Event, Kind, Listener, Outcome, Rejected, Source};

/// Most names that become labels of their own; later ones share `other`, and
/// `mainstay_metric_names_overflow_total` counts them. A board with more lines than this shows nothing.
const MAX_NAMES: usize = 200;

/// Which names the metrics have.
///
/// Breakers report the same facts under both. What Resilience4j has no name for (budgets, hedges, refusals by their reason)
/// keeps ours.
///
/// ```
/// use mainstay_resilience::{Breaker, metrics::{MetricsListener, Naming}};
///
/// let grafana = MetricsListener::with_naming(Naming::Resilience4j);
/// let breaker = Breaker::builder("payments").listener(grafana.clone()).build().unwrap();
/// grafana.breaker(&breaker.snapshot()); // resilience4j_circuitbreaker_state{name="payments", ...}
/// assert_eq!(Naming::default(), Naming::Mainstay);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Naming {
    /// Ours.
    #[default]
    Mainstay,
    /// Those of Resilience4j.
    Resilience4j,
}

/// A listener that counts into the recorder of the `metrics` facade. Looks its counters up once per policy.
///
/// ```
/// use mainstay_resilience::{Breaker, metrics::MetricsListener};
///
/// let metrics = MetricsListener::new();
/// let breaker = Breaker::builder("payments").listener(metrics.clone()).build().unwrap();
/// breaker.admit().unwrap().success();
/// metrics.breaker(&breaker.snapshot()); // with every scrape
/// assert_eq!(breaker.snapshot().lifetime.successes, Some(1));
/// ```
#[derive(Debug)]
pub struct MetricsListener {
    naming: Naming,
    names: Mutex<BTreeSet<String>>,
    parts: Arc<Parts>,
}

/// The parts that tell of their own refusals: what the policy around them says of those under the same name is a copy.
#[derive(Debug, Default)]
struct Parts(Mutex<BTreeSet<(Kind, String)>>);

impl Parts {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<(Kind, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what `source` tells has been counted under the same name.
    fn has_told(&self, source: &Source, rejected: &Rejected) -> bool {
        match rejected.told_by {
            Some(kind) if source.kind() == Kind::Policy && source.name() == rejected.policy() => {
                self.lock().contains(&(kind, rejected.policy().to_owned()))
            }
            _ => false,
        }
    }
}

impl MetricsListener {
    /// With our names: the table above.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_naming(Naming::Mainstay)
    }

    /// With these names. A process may have both, on different policies.
    #[must_use]
    pub fn with_naming(naming: Naming) -> Arc<Self> {
        Arc::new(Self { naming, names: Mutex::new(BTreeSet::new()), parts: Arc::default() })
    }

    fn label(&self, name: &str) -> String {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.contains(name) || names.len() < MAX_NAMES {
            names.insert(name.to_owned());
            return name.to_owned();
        }
        counter!("mainstay_metric_names_overflow_total").increment(1);
        "other".to_owned()
    }

    /// Reports what is read, not heard: call it when metrics are scraped. The breaker of one key of a registry reports
    /// nothing here: one gauge cannot show them all, and their states are counted as they change.
    pub fn breaker(&self, s: &BreakerSnapshot) {
        if s.key.is_some() {
            return;
        }
        let name = self.label(&s.name);
        show_state(self.naming, &name, s.state);
        if self.naming == Naming::Resilience4j {
            let share =
                |x: f64| if s.counts.total < u64::from(s.config.min_calls()) { -1.0 } else { x * 100.0 };
            gauge!("resilience4j_circuitbreaker_failure_rate", "name" => name.clone())
                .set(share(s.counts.failure_rate()));
            gauge!("resilience4j_circuitbreaker_slow_call_rate", "name" => name.clone())
                .set(share(s.counts.slow_rate()));
            let kinds = [("failed", s.counts.failures), ("successful", s.counts.total - s.counts.failures)];
            for (kind, n) in kinds {
                gauge!("resilience4j_circuitbreaker_buffered_calls", "name" => name.clone(), "kind" => kind)
                    .set(n as f64);
            }
        }
    }

    /// Reports what is read, not heard: call it when metrics are scraped.
    pub fn bulkhead(&self, s: &BulkheadSnapshot) {
        let name = self.label(&s.name);
        if self.naming == Naming::Resilience4j {
            let free = f64::from(s.limit.saturating_sub(s.in_flight));
            gauge!("resilience4j_bulkhead_available_concurrent_calls", "name" => name.clone()).set(free);
            gauge!("resilience4j_bulkhead_max_allowed_concurrent_calls", "name" => name)
                .set(f64::from(s.limit));
            return;
        }
        gauge!("mainstay_bulkhead_in_flight", "name" => name.clone()).set(f64::from(s.in_flight));
        gauge!("mainstay_bulkhead_limit", "name" => name.clone()).set(f64::from(s.limit));
        gauge!("mainstay_bulkhead_queued", "name" => name).set(f64::from(s.queued));
    }

    /// Reports what is read, not heard: call it when metrics are scraped.
    pub fn budget(&self, s: &BudgetSnapshot) {
        gauge!("mainstay_retry_budget_tokens", "name" => self.label(&s.name)).set(s.available);
    }
}

impl Listener for MetricsListener {
    fn event(&self, _: &Source, _: &Event<'_>) {}

    fn bind(&self, source: &Source) -> Option<Arc<dyn Listener>> {
        let label = self.label(source.name());
        if source.kind() != Kind::Policy && label == source.name() {
            self.parts.lock().insert((source.kind(), label.clone()));
        }
        let keys = source.is_keyed().then(|| Keys::new(self.naming, &label));
        let bound = Bound::new(self.naming, source.kind(), label);
        Some(Arc::new(Bound { keys, parts: Arc::clone(&self.parts), ..bound }))
    }
}

fn state_name(naming: Naming) -> &'static str {
    match naming {
        Naming::Mainstay => "mainstay_breaker_state",
        Naming::Resilience4j => "resilience4j_circuitbreaker_state",
    }
}

/// Resilience4j calls the holds by other names.
fn state_label(naming: Naming, state: State) -> &'static str {
    match (naming, state) {
        (Naming::Resilience4j, State::ForcedClosed) => "disabled",
        _ => state.name(),
    }
}

/// One state is 1, all others 0: the old one is cleared.
fn show_state(naming: Naming, name: &str, now: State) {
    for state in State::ALL {
        let gauge: Gauge =
            gauge!(state_name(naming), "name" => name.to_owned(), "state" => state_label(naming, state));
        gauge.set(if state == now { 1.0 } else { 0.0 });
    }
}

/// One key of a registry in the count of keys per state, from its making until it is forgotten.
#[derive(Debug)]
struct Keys {
    gauges: [Gauge; State::ALL.len()],
    state: Mutex<State>,
}

impl Keys {
    fn new(naming: Naming, name: &str) -> Self {
        let gauges = State::ALL.map(|state| {
            gauge!(state_name(naming), "name" => name.to_owned(), "state" => state_label(naming, state))
        });
        let keys = Self { gauges, state: Mutex::new(State::Closed) };
        // Nought is a number too: a board shows every state from the start.
        State::ALL.into_iter().for_each(|state| keys.add(state, 0.0));
        keys.add(State::Closed, 1.0);
        keys
    }

    fn add(&self, state: State, n: f64) {
        if let Some(gauge) = State::ALL.iter().position(|s| *s == state).and_then(|i| self.gauges.get(i)) {
            gauge.increment(n);
        }
    }

    fn go(&self, to: State) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.add(std::mem::replace(&mut state, to), -1.0);
        self.add(to, 1.0);
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let state = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.add(state, -1.0);
    }
}

/// The counters of one policy.
#[derive(Debug)]
struct Bound {
    naming: Naming,
    name: String,
    parts: Arc<Parts>,
    /// Of the breaker of one key.
    keys: Option<Keys>,
    success: Kept,
    failure: Kept,
    timeout: Kept,
    ignored: Kept,
    abandoned: Kept,
    late: Kept,
    /// Of a whole call under the names of Resilience4j: succeeded without and with a retry, failed likewise.
    retried: Option<[Counter; 4]>,
    retries: Counter,
    hedges: Counter,
}

/// Where one outcome is counted and, if its time says anything, measured.
#[derive(Debug)]
struct Kept {
    calls: Counter,
    duration: Option<Histogram>,
}

impl Bound {
    fn new(naming: Naming, kind: Kind, name: String) -> Self {
        match (naming, kind) {
            (Naming::Mainstay, Kind::Breaker) => {
                Self::ours("mainstay_breaker_calls_total", "mainstay_breaker_call_duration_seconds", name)
            }
            (Naming::Mainstay, _) => {
                Self::ours("mainstay_calls_total", "mainstay_call_duration_seconds", name)
            }
            (Naming::Resilience4j, _) => Self::theirs(kind, name),
        }
    }

    fn ours(calls: &'static str, duration: &'static str, name: String) -> Self {
        let duration = histogram!(duration, "name" => name.clone());
        let kept = |outcome: &'static str| Kept {
            calls: counter!(calls, "name" => name.clone(), "outcome" => outcome),
            duration: Some(duration.clone()),
        };
        Self::with(Naming::Mainstay, &name, ["success", "failure", "failure", "ignored"].map(kept), kept)
    }

    /// Boards read the calls of a breaker from the count of the timer, one timer per kind.
    fn theirs(kind: Kind, name: String) -> Self {
        let breaker = kind == Kind::Breaker;
        let calls = if breaker {
            "resilience4j_circuitbreaker_calls_total"
        } else {
            "resilience4j_timelimiter_calls_total"
        };
        let counted = |kind: &'static str| Kept {
            calls: counter!(calls, "name" => name.clone(), "kind" => kind),
            duration: None,
        };
        let kept = |kind: &'static str| Kept {
            duration: Some(if breaker {
                histogram!("resilience4j_circuitbreaker_calls_seconds", "name" => name.clone(), "kind" => kind)
            } else {
                histogram!("mainstay_call_duration_seconds", "name" => name.clone())
            }),
            ..counted(kind)
        };
        let timeout = if breaker { "failed" } else { "timeout" };
        let mut bound = Self::with(
            Naming::Resilience4j,
            &name,
            ["successful", "failed", timeout, "ignored"].map(kept),
            counted,
        );
        bound.retried = (kind == Kind::Policy).then(|| {
            let kinds = [
                "successful_without_retry",
                "successful_with_retry",
                "failed_without_retry",
                "failed_with_retry",
            ];
            kinds.map(
                |kind| counter!("resilience4j_retry_calls_total", "name" => name.clone(), "kind" => kind),
            )
        });
        bound
    }

    fn with(
        naming: Naming,
        name: &str,
        [success, failure, timeout, ignored]: [Kept; 4],
        kept: impl Fn(&'static str) -> Kept,
    ) -> Self {
        Self {
            naming,
            success,
            failure,
            timeout,
            ignored,
            abandoned: kept("abandoned"),
            late: kept("late"),
            retried: None,
            retries: counter!("mainstay_retry_attempts_total", "name" => name.to_owned()),
            hedges: counter!("mainstay_hedges_total", "name" => name.to_owned()),
            name: name.to_owned(),
            parts: Arc::default(),
            keys: None,
        }
    }

    fn call(&self, outcome: Outcome, seconds: f64, attempts: u32) {
        let kept = match outcome {
            Outcome::Success | Outcome::SlowSuccess => &self.success,
            Outcome::Failure => &self.failure,
            Outcome::Timeout(_) => &self.timeout,
            Outcome::Ignored => &self.ignored,
            Outcome::Abandoned => &self.abandoned,
            Outcome::Late => &self.late,
        };
        kept.calls.increment(1);
        if let Some(duration) = &kept.duration {
            duration.record(seconds);
        }
        if let Some(retried) = &self.retried {
            let failed = match outcome {
                Outcome::Success | Outcome::SlowSuccess => 0,
                Outcome::Failure | Outcome::Timeout(_) => 2,
                Outcome::Ignored | Outcome::Abandoned | Outcome::Late => return,
            };
            retried[failed + usize::from(attempts > 1)].increment(1);
        }
    }
}

impl Listener for Bound {
    fn event(&self, source: &Source, event: &Event<'_>) {
        match event {
            Event::Call { outcome, elapsed, attempts } => {
                self.call(*outcome, elapsed.as_secs_f64(), *attempts);
            }
            Event::Hedged { .. } => self.hedges.increment(1),
            Event::HedgeWon | Event::Missed { .. } => {}
            Event::Rejected(rejected) if self.parts.has_told(source, rejected) => {}
            Event::Rejected(rejected) => {
                if self.naming == Naming::Resilience4j && source.kind() == Kind::Breaker {
                    let name = self.name.clone();
                    counter!("resilience4j_circuitbreaker_not_permitted_calls_total", "name" => name, "kind" => "not_permitted")
                        .increment(1);
                } else {
                    let reason = rejected.why().code();
                    counter!("mainstay_rejected_total", "name" => self.name.clone(), "reason" => reason)
                        .increment(1);
                }
            }
            Event::Retry { .. } => self.retries.increment(1),
            Event::Transition(t) => {
                match &self.keys {
                    Some(keys) => keys.go(t.to()),
                    None => show_state(self.naming, &self.name, t.to()),
                }
                let (name, state) = (self.name.clone(), t.to().name());
                counter!("mainstay_breaker_transitions_total", "name" => name, "state" => state).increment(1);
            }
        }
    }
}
