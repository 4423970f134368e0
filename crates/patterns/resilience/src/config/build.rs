//! From [`Spec`] to policies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_clock::backoff::Jitter;

use super::spec::{BreakerSpec, BudgetSpec, BudgetUse, BulkheadSpec, Idempotent, RetrySpec, Spec};
use super::{Built, FileError, Policies};
use crate::breaker::HalfOpen;
use crate::hedge::Hedge;
use crate::limit::{AdaptiveLimiter, Algorithm, ClientThrottle, RateLimiter, SendRate};
use crate::policy::{LimitSlot, PolicyBuilder};
use crate::retry::RetryBuilder;
use crate::{Breaker, Budget, Bulkhead, ConfigError, Listener, Policy, Retry};

pub(super) type Budgets = BTreeMap<String, Budget>;

/// What every part of a policy is built with.
pub(super) struct With<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) listener: Option<&'a Arc<dyn Listener>>,
}

impl With<'_> {
    /// `builder`, with the listener if there is one.
    fn heard<B>(&self, builder: B, f: impl FnOnce(B, Arc<dyn Listener>) -> B) -> B {
        set(builder, self.listener.cloned(), f)
    }
}

/// Names the target or budget whose setting was refused.
pub(super) fn of(target: &str) -> impl FnOnce(ConfigError) -> FileError {
    let target = target.to_owned();
    move |error| FileError::Config { target, error }
}

pub(super) fn all(policies: &Policies, with: &With<'_>) -> Result<Built, FileError> {
    let mut budgets = Budgets::new();
    for (name, spec) in &policies.budgets {
        budgets.insert(name.clone(), budget(name, spec, with).map_err(of(name))?);
    }
    let mut built = Built::new();
    for (name, spec) in &policies.targets {
        let policy = policy(name, spec, &budgets, with).and_then(PolicyBuilder::build).map_err(of(name))?;
        built.insert(Arc::from(name.as_str()), policy);
    }
    Ok(built)
}

pub(super) fn budget(name: &str, spec: &BudgetSpec, with: &With<'_>) -> Result<Budget, ConfigError> {
    let mut builder = Budget::builder(name).runtime(with.runtime);
    let plain = spec.ratio.is_some() || spec.floor.is_some() || spec.credit.is_some();
    if let Some(preset) = &spec.preset {
        if plain || spec.in_flight.is_some() || spec.grpc.is_some() {
            return Err(ConfigError::new("preset", preset, "no other key beside it"));
        }
        builder = match preset.as_str() {
            "aws" => builder.aws(),
            "aws_legacy" => builder.aws_legacy(),
            "finagle" => builder.finagle(),
            other => return Err(ConfigError::new("preset", other, "aws, aws_legacy or finagle")),
        };
        return builder.build();
    }
    // Neither has numbers that fit everybody: each says its own.
    let own = |field| ConfigError::new(field, "nothing", "a number: this rule has no default");
    match (&spec.in_flight, &spec.grpc) {
        (Some(rule), None) if !plain => {
            let share = rule.share.ok_or_else(|| own("share"))?;
            return builder.in_flight(share, rule.at_least.ok_or_else(|| own("at_least"))?).build();
        }
        (None, Some(rule)) if !plain => {
            let max = rule.max.ok_or_else(|| own("max"))?;
            return builder.grpc(max, rule.ratio.ok_or_else(|| own("ratio"))?).build();
        }
        (None, None) => {}
        (in_flight, _) => {
            let field = if in_flight.is_some() { "in_flight" } else { "grpc" };
            return Err(ConfigError::new(field, "a table", "no other key beside it: one rule per budget"));
        }
    }
    if spec.ratio.is_some() || spec.floor.is_some() {
        builder = builder.ratio(spec.ratio.unwrap_or(0.2), spec.floor.unwrap_or(10.0));
    }
    set(builder, spec.credit, |b, credit| b.credit(credit)).build()
}

/// The policy of one target with new parts, to be built.
pub(super) fn policy(
    name: &str,
    spec: &Spec,
    budgets: &Budgets,
    with: &With<'_>,
) -> Result<PolicyBuilder, ConfigError> {
    let mut policy = with.heard(Policy::builder(name).runtime(with.runtime), PolicyBuilder::listener);
    policy = set(policy, spec.deadline, PolicyBuilder::deadline);
    policy = set(policy, spec.attempt_timeout, PolicyBuilder::attempt_timeout);
    policy = match spec.idempotent {
        Idempotent::Always => policy.idempotent(),
        Idempotent::Never => policy,
        Idempotent::PerCall => policy.idempotent_per_call(),
    };
    policy = match &spec.budget {
        BudgetUse::Named(name) => match budgets.get(name) {
            Some(budget) => policy.budget(budget),
            None => return Err(ConfigError::new("budget", name, "a name of [budgets]")),
        },
        BudgetUse::None => policy.without_budget(),
        BudgetUse::Own => policy,
    };
    if let Some(spec) = &spec.retry {
        policy = policy.retry(retry(spec)?);
    }
    if let Some(breaker_spec) = &spec.breaker {
        policy = policy.breaker(&breaker(name, breaker_spec, spec.attempt_timeout, with)?);
    }
    if let Some(spec) = &spec.bulkhead {
        policy = policy.bulkhead(&bulkhead(name, spec, with)?);
    }
    if let Some(spec) = &spec.attempt_bulkhead {
        policy = policy.attempt_bulkhead(&bulkhead(&format!("{name} attempts"), spec, with)?);
    }
    if let Some(spec) = &spec.hedge {
        let mut builder = match (spec.percentile, spec.after) {
            (Some(p), after) => set(Hedge::at_percentile(p), after, |b, after| b.initially(after)),
            (None, Some(after)) => Hedge::after(after),
            (None, None) => return Err(ConfigError::new("hedge", "nothing", "after or percentile")),
        };
        builder = set(builder, spec.window, |b, window| b.window(window));
        policy = policy.hedge_plan(builder.build()?.plan());
    }
    limits(policy, name, spec, with)
}

fn bulkhead(name: &str, spec: &BulkheadSpec, with: &With<'_>) -> Result<Bulkhead, ConfigError> {
    let limit =
        spec.limit.ok_or_else(|| ConfigError::new("limit", "nothing", "a number: no size fits all"))?;
    let mut builder = Bulkhead::builder(name, limit).runtime(with.runtime);
    builder = with.heard(builder, |b, listener| b.listener(listener));
    if let Some(queue) = spec.queue.filter(|n| *n > 0) {
        let wait =
            spec.wait.ok_or_else(|| ConfigError::new("wait", "nothing", "a duration, with a queue"))?;
        builder = builder.queue(queue, wait);
    }
    builder.build()
}

fn set<B, V>(builder: B, value: Option<V>, f: impl FnOnce(B, V) -> B) -> B {
    match value {
        Some(value) => f(builder, value),
        None => builder,
    }
}

fn retry(spec: &RetrySpec) -> Result<Retry, ConfigError> {
    let (base, cap) = spec.delays();
    let own = spec.base.is_some() || spec.cap.is_some() || spec.growth.is_some();
    let mut builder = match (spec.preset.as_deref(), spec.growth.as_deref()) {
        (Some("aws"), _) if !own => Retry::aws(),
        (Some("aws"), _) => {
            return Err(ConfigError::new(
                "preset",
                "aws",
                "no base, cap or growth beside it: it has its own",
            ));
        }
        (Some(other), _) => return Err(ConfigError::new("preset", other, "aws")),
        (None, None | Some("exponential")) => Retry::exponential(base, cap),
        (None, Some("linear")) => Retry::linear(base, cap),
        (None, Some("constant")) => Retry::constant(base),
        (None, Some(other)) => {
            return Err(ConfigError::new("growth", other, "exponential, linear or constant"));
        }
    };
    if let Some(jitter) = &spec.jitter {
        builder = builder.jitter(match jitter.as_str() {
            "decorrelated" => Jitter::Decorrelated,
            "equal" => Jitter::Equal,
            "full" => Jitter::Full,
            "none" => Jitter::None,
            other => return Err(ConfigError::new("jitter", other, "full, equal, decorrelated or none")),
        });
    }
    builder = set(builder, spec.attempts, RetryBuilder::attempts);
    builder = set(builder, spec.total_time, RetryBuilder::total_time);
    builder = set(builder, spec.max_retry_after, RetryBuilder::max_retry_after);
    builder = set(builder, spec.min_attempt_time, RetryBuilder::min_attempt_time);
    if let Some(on) = spec.on.clone() {
        builder = builder.when(move |failed| {
            let kind = match failed.verdict {
                _ if failed.timed_out => "timeout",
                crate::Verdict::Throttled { .. } => "throttled",
                _ => "failure",
            };
            on.iter().any(|on| on == kind)
        });
    }
    builder.build()
}

fn breaker(
    name: &str,
    spec: &BreakerSpec,
    attempt_timeout: Option<Duration>,
    with: &With<'_>,
) -> Result<Breaker, ConfigError> {
    let mut builder = with.heard(Breaker::builder(name).runtime(with.runtime), |b, l| b.listener(l));
    builder = match (spec.window, spec.count, spec.consecutive) {
        (None, None, None) => builder,
        (Some(window), None, None) => builder.window(window),
        (None, Some(count), None) => builder.count_window(count),
        (None, None, Some(run)) => builder.consecutive(run),
        _ => return Err(ConfigError::new("window", "several kinds", "one of window, count and consecutive")),
    };
    builder = set(builder, spec.failure_rate, |b, rate| b.failure_rate(rate));
    builder = set(builder, spec.min_calls, |b, n| b.min_calls(n));
    builder = match (spec.slow_after, spec.slow_rate) {
        (Some(after), rate) => builder.slow(after, rate.unwrap_or(0.8)),
        (None, Some(rate)) => {
            return Err(ConfigError::new("slow_rate", rate, "only together with slow_after"));
        }
        (None, None) => builder,
    };
    let base = spec.open_for.unwrap_or(Duration::from_secs(2));
    let cap = spec.open_cap.unwrap_or(base.max(Duration::from_secs(30)));
    builder = builder.growing_open(base, spec.open_growth.unwrap_or(2.0), cap);
    builder = set(builder, spec.jitter, |b, share| b.jitter(share));
    builder = builder.half_open(half_open(spec)?);
    builder = set(builder, spec.probe_lease, |b, lease| b.probe_lease(lease));
    set(builder, attempt_timeout, |b, d| b.attempt_timeout(d)).build()
}

/// One of three rules, told by the keys that are there.
fn half_open(spec: &BreakerSpec) -> Result<HalfOpen, ConfigError> {
    let permits = spec.permits.unwrap_or(3);
    match (spec.ramp, spec.required, spec.samples, spec.sample_rate) {
        (Some(_), Some(required), ..) => {
            Err(ConfigError::new("required", required, "nothing together with ramp: stages decide"))
        }
        (Some(_), _, Some(samples), _) => {
            Err(ConfigError::new("samples", samples, "nothing together with ramp: stages decide"))
        }
        (None, Some(required), Some(_), _) => {
            Err(ConfigError::new("required", required, "nothing together with samples: their share decides"))
        }
        (_, _, None, Some(rate)) => Err(ConfigError::new("sample_rate", rate, "only together with samples")),
        (Some(stage), None, None, None) => Ok(HalfOpen::progressive(permits, stage)),
        (None, None, Some(samples), rate) => Ok(HalfOpen::ratio(permits, samples, rate.unwrap_or(0.5))),
        (None, required, None, None) => Ok(HalfOpen::permits(permits).required(required.unwrap_or(permits))),
    }
}

fn limits(
    mut policy: PolicyBuilder,
    name: &str,
    spec: &Spec,
    with: &With<'_>,
) -> Result<PolicyBuilder, ConfigError> {
    if let Some(spec) = &spec.rate {
        let mut builder = with.heard(RateLimiter::builder(name).runtime(with.runtime), |b, l| b.listener(l));
        builder = builder.rate(spec.cells.unwrap_or(0), spec.per.unwrap_or(Duration::from_secs(1)));
        let limiter = set(builder, spec.burst, |b, burst| b.burst(burst)).build()?;
        policy = policy.limit(LimitSlot::Rate, Arc::new(limiter));
    }
    if let Some(spec) = &spec.adaptive {
        let mut builder =
            with.heard(AdaptiveLimiter::builder(name).runtime(with.runtime), |b, l| b.listener(l));
        builder = builder.algorithm(match spec.algorithm.as_deref() {
            None | Some("gradient") => Algorithm::gradient(),
            Some("aimd") => Algorithm::aimd(),
            Some("vegas") => Algorithm::Vegas,
            Some(other) => return Err(ConfigError::new("algorithm", other, "gradient, vegas or aimd")),
        });
        builder = set(builder, spec.initial, |b, n| b.initial(n));
        builder = set(builder, spec.min, |b, n| b.min(n));
        let limiter = set(builder, spec.max, |b, n| b.max(n)).build()?;
        policy = policy.limit(LimitSlot::Adaptive, Arc::new(limiter));
    }
    if let Some(longest) = spec.send_rate {
        let builder = with.heard(SendRate::builder(name).runtime(with.runtime), |b, l| b.listener(l));
        policy = policy.send_rate(&set(builder, longest, |b, d| b.longest_wait(d)).build()?);
    }
    if let Some(spec) = &spec.throttle {
        let mut builder =
            with.heard(ClientThrottle::builder(name).runtime(with.runtime), |b, l| b.listener(l));
        builder = set(builder, spec.k, |b, k| b.k(k));
        builder = set(builder, spec.window, |b, window| b.window(window));
        let throttle = set(builder, spec.trickle, |b, share| b.trickle(share)).build()?;
        policy = policy.limit(LimitSlot::Throttle, Arc::new(throttle));
    }
    Ok(policy)
}
