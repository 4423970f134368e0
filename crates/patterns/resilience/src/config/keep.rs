//! From one file to the next without losing what its policies know.

use std::sync::Arc;

use super::build::{self, Budgets, With};
use super::spec::{BudgetUse, BulkheadSpec, Spec};
use super::{Built, FileError, Policies};
use crate::policy::{LimitSlot, PolicyBuilder};
use crate::{Breaker, Bulkhead, Policy};

/// What is to become of a target.
enum Plan<'a> {
    /// Nothing about it has changed.
    Keep(&'a Policy),
    /// Built with new parts, which have been checked; old ones take their places where they can.
    New {
        name: &'a str,
        builder: Box<PolicyBuilder>,
        fresh: Policy,
        spec: &'a Spec,
        old: Option<(&'a Spec, &'a Policy)>,
    },
}

/// Everything is built and checked before anything that runs is touched.
pub(super) fn rebuild(
    policies: &Policies,
    before: &Policies,
    built: &Built,
    with: &With<'_>,
) -> Result<Built, FileError> {
    let budgets = budgets(policies, before, built, with)?;
    let mut plans = Vec::new();
    for (name, spec) in &policies.targets {
        let old = before.targets.get(name).zip(built.get(name.as_str()));
        if let Some((_, policy)) =
            old.filter(|(was, policy)| *was == spec && has_budget(spec, policy, &budgets))
        {
            plans.push((name, Plan::Keep(policy)));
            continue;
        }
        let builder = Box::new(build::policy(name, spec, &budgets, with).map_err(build::of(name))?);
        let fresh = (*builder).clone().build().map_err(build::of(name))?;
        plans.push((name, Plan::New { name, builder, fresh, spec, old }));
    }
    let policy = |plan| match plan {
        Plan::Keep(policy) => Ok(policy.clone()),
        Plan::New { fresh, old: None, .. } => Ok(fresh),
        Plan::New { name, builder, fresh, spec, old: Some((was, policy)) } => {
            adopt(*builder, &fresh, (spec, was), policy).build().map_err(build::of(name))
        }
    };
    plans.into_iter().map(|(name, plan)| Ok((Arc::from(name.as_str()), policy(plan)?))).collect()
}

/// The named budgets: what they have earned stays where their rule does.
fn budgets(
    policies: &Policies,
    before: &Policies,
    built: &Built,
    with: &With<'_>,
) -> Result<Budgets, FileError> {
    let mut budgets = Budgets::new();
    for (name, spec) in &policies.budgets {
        let same = before.budgets.get(name) == Some(spec);
        let uses = |old: &Spec| same && matches!(&old.budget, BudgetUse::Named(used) if used == name);
        let user = before
            .targets
            .iter()
            .filter(|(_, old)| uses(old))
            .find_map(|(target, _)| built.get(target.as_str()));
        let budget = match user.and_then(Policy::budget) {
            Some(budget) => budget.clone(),
            None => build::budget(name, spec, with).map_err(build::of(name))?,
        };
        budgets.insert(name.clone(), budget);
    }
    Ok(budgets)
}

/// Whether an unchanged target still spends the budget of its name.
fn has_budget(spec: &Spec, policy: &Policy, budgets: &Budgets) -> bool {
    let BudgetUse::Named(name) = &spec.budget else { return true };
    budgets.get(name).map(|b| b.id()) == policy.budget().map(|b| b.id())
}

/// Puts the parts of `old` into the places of new ones, with the new settings where a part can take them.
fn adopt(
    mut builder: PolicyBuilder,
    fresh: &Policy,
    (spec, was): (&Spec, &Spec),
    old: &Policy,
) -> PolicyBuilder {
    let core = old.core();
    if let (Some(new), Some(old)) = (fresh.breaker(), &core.breaker) {
        let same = spec.breaker == was.breaker && spec.attempt_timeout == was.attempt_timeout;
        if same || takes(old, new) {
            builder = builder.breaker(old);
        }
    }
    if let (Some(new), Some(old)) = (&spec.bulkhead, &core.bulkhead)
        && resizes(old, new, was.bulkhead.as_ref())
    {
        builder = builder.bulkhead(old);
    }
    if let (Some(new), Some(old)) = (&spec.attempt_bulkhead, &core.attempt_bulkhead)
        && resizes(old, new, was.attempt_bulkhead.as_ref())
    {
        builder = builder.attempt_bulkhead(old);
    }
    if let (true, Some(rate)) = (spec.send_rate == was.send_rate, &core.send_rate) {
        builder = builder.send_rate(rate);
    }
    if let (true, Some(plan)) = (spec.hedge == was.hedge, &core.hedge) {
        builder = builder.hedge_plan(Arc::clone(plan));
    }
    let same = [
        (LimitSlot::Throttle, spec.throttle == was.throttle),
        (LimitSlot::Rate, spec.rate == was.rate),
        (LimitSlot::Adaptive, spec.adaptive == was.adaptive),
    ];
    for (slot, same) in same {
        if let (true, Some(limiter)) = (same, &core.limits[slot.index()]) {
            builder = builder.limit(slot, Arc::clone(limiter));
        }
    }
    let own = (&spec.budget, &was.budget) == (&BudgetUse::Own, &BudgetUse::Own);
    match (own && fresh.budget().is_some(), old.budget()) {
        (true, Some(budget)) => builder.kept_budget(budget),
        _ => builder,
    }
}

/// Whether a running breaker takes the settings of a new one. Another kind of window it cannot.
fn takes(old: &Breaker, new: &Breaker) -> bool {
    let config = new.config();
    old.reconfigure(|running| *running = config).is_ok()
}

/// Whether a running bulkhead takes new settings. A line where there was none, or another wait limit, it cannot.
fn resizes(old: &Bulkhead, spec: &BulkheadSpec, was: Option<&BulkheadSpec>) -> bool {
    let Some(was) = was else { return false };
    if spec == was {
        return true;
    }
    let (queue, queued) = (spec.queue.unwrap_or(0), was.queue.unwrap_or(0));
    let fits = if queue == 0 { queued == 0 } else { queued > 0 && spec.wait == was.wait };
    let sized = |limit| old.resize(limit).is_ok() && (queue == 0 || old.resize_queue(queue).is_ok());
    fits && spec.limit.is_some_and(sized)
}
