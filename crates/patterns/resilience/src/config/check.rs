//! The rules of [`lint`](crate::lint) over a file.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Policies;
use super::spec::{BreakerSpec, BudgetUse, Idempotent, RetrySpec, Spec};
use crate::lint::{Finding, Rule, order};

/// Defaults of the builders that the rules compare with.
const ATTEMPTS: u32 = 3;
const BASE: Duration = Duration::from_millis(50);
const CAP: Duration = Duration::from_secs(2);
const WINDOW: Duration = Duration::from_secs(10);
const MIN_CALLS: u32 = 20;
/// What the dependency did; everything else that can end a call is the own side's refusal.
const RETRYABLE: [&str; 3] = ["failure", "throttled", "timeout"];

pub(super) fn all(policies: &Policies) -> Vec<Finding> {
    let mut found: Vec<Finding> =
        policies.targets.iter().flat_map(|(name, spec)| target(policies, name, spec)).collect();
    found.sort_by(|a, b| (a.target(), a.rule()).cmp(&(b.target(), b.rule())));
    found
}

fn target(policies: &Policies, name: &str, spec: &Spec) -> Vec<Finding> {
    let mut found = order(name, spec.order.as_deref().unwrap_or_default());
    let mut find = |rule, what: String| found.push(Finding::new(rule, name, what));
    if spec.breaker.is_some() && spec.attempt_timeout.is_none() {
        find(Rule::M3, "there is a breaker and no attempt_timeout".to_owned());
    }
    if let (Some(attempt), Some(deadline)) = (spec.attempt_timeout, spec.deadline)
        && spec.attempts() > 1
        && attempt >= deadline
    {
        find(
            Rule::M4,
            format!("attempt_timeout {attempt:?} leaves no time of deadline {deadline:?} for a retry"),
        );
    }
    if let Some(retry) = &spec.retry {
        for on in retry.on.iter().flatten().filter(|on| !RETRYABLE.contains(&on.as_str())) {
            find(Rule::M5, format!("retry.on contains `{on}`, which the dependency did not do"));
        }
    }
    if let Some(outer) = nested(policies, name, spec) {
        find(Rule::M6, format!("retries inside the retries of `{outer}` without one named budget for both"));
    }
    if (spec.attempts() > 1 || spec.hedge.is_some()) && spec.idempotent == Idempotent::Never {
        find(Rule::M7, "retry or hedge of an operation that is not declared idempotent".to_owned());
    }
    if let (Some(breaker), Some(attempt)) = (&spec.breaker, spec.attempt_timeout)
        && let Some(lease) = breaker.probe_lease.filter(|lease| *lease < attempt)
    {
        find(Rule::M8, format!("probe_lease {lease:?} is shorter than attempt_timeout {attempt:?}"));
    }
    contradictions(spec).into_iter().for_each(|what| find(Rule::M9, what));
    found
}

/// The nearest target around this one whose retries multiply with its own. Layers without a retry in between make no
/// difference.
fn nested<'a>(policies: &'a Policies, name: &'a str, spec: &'a Spec) -> Option<&'a str> {
    if spec.attempts() <= 1 {
        return None;
    }
    // Names may lead in a circle.
    let (mut seen, mut next) = (BTreeSet::from([name]), spec.within.as_deref());
    while let Some(name) = next.filter(|name| seen.insert(name)) {
        let outer = policies.targets.get(name)?;
        let shared =
            matches!((&spec.budget, &outer.budget), (BudgetUse::Named(a), BudgetUse::Named(b)) if a == b);
        if outer.attempts() > 1 && !shared {
            return Some(name);
        }
        next = outer.within.as_deref();
    }
    None
}

fn contradictions(spec: &Spec) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(breaker) = &spec.breaker
        && let Some(most) = breaker.most_calls(spec.expected_rate)
    {
        let needed = breaker.min_calls.unwrap_or(MIN_CALLS);
        if f64::from(needed) > most {
            found.push(format!(
                "min_calls {needed} cannot be reached: the window holds about {most:.0} calls"
            ));
        }
    }
    if let Some(retry) = &spec.retry {
        let (base, cap) = retry.delays();
        if base > cap {
            found.push(format!("retry.base {base:?} is above retry.cap {cap:?}"));
        }
        if let Some(deadline) = spec.deadline.filter(|d| base > *d) {
            found.push(format!("retry.base {base:?} is above deadline {deadline:?}"));
        }
    }
    found
}

impl Spec {
    /// Executions of the operation per call, at most.
    fn attempts(&self) -> u32 {
        self.retry.as_ref().map_or(1, |retry| retry.attempts.unwrap_or(ATTEMPTS))
    }
}

impl RetrySpec {
    /// Base and cap, with the defaults filled in.
    pub(super) fn delays(&self) -> (Duration, Duration) {
        (self.base.unwrap_or(BASE), self.cap.unwrap_or(CAP))
    }
}

impl BreakerSpec {
    /// Calls that the window can hold: its size, or what is expected to come in its time.
    fn most_calls(&self, rate: Option<f64>) -> Option<f64> {
        match (self.consecutive, self.count) {
            (Some(_), _) => None,
            (_, Some(count)) => Some(f64::from(count)),
            _ => rate.map(|rate| rate * self.window.unwrap_or(WINDOW).as_secs_f64()),
        }
    }
}
