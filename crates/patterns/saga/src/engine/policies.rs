//! Policies that steps name: a breaker, a bulkhead, a rate around each attempt of a step and of its undo.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, PoisonError};

use mainstay_clock::{Deadline, Instant};
use mainstay_resilience::{Attempt, CallContext, CallError, Policy, Verdict as Health};
use mainstay_store::BoxFuture;

use super::calls::{CallEnd, CallResult, cut};
use super::drive::Drive;
use super::{Engine, EngineBuilder, Inner};
use crate::definition::Definition;
use crate::wire::{AttemptRef, Completed, UndoVerdict, Verdict};
use crate::{Error, ErrorKind};

/// Policies by name.
pub(super) type Policies = BTreeMap<Arc<str>, Policy>;

/// The half of a step that an attempt is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Action,
    Undo,
}

impl EngineBuilder {
    /// Policies that steps may name ([`StepData::policy`](crate::definition::StepData::policy)), each by its own
    /// name. What one refuses was never sent: no effect, worth repeating, and no attempt used up. An undo is guarded
    /// like its action.
    ///
    /// A policy must make one attempt of one: repetitions of a saga are durable, and each is on the log before it is made.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use mainstay_clock::{Runtime, SystemClock};
    /// use mainstay_resilience::{Bulkhead, Policy};
    /// use mainstay_saga::{Engine, ErrorKind, Saga, StepCx, StepError, Told, UndoError};
    /// use mainstay_store::memory::MemoryJournal;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let mut b = Saga::<u32>::builder("order", 1);
    /// b.step("charge", b.input(), |_: StepCx, n: u32| async move { Ok::<_, StepError>(n) })
    ///     .undo(|_: StepCx, _: Told<u32>| async { Ok::<(), UndoError>(()) })
    ///     .policy("payments")
    ///     .add();
    /// let saga = b.no_deadline().build().unwrap();
    /// let journal = Arc::new(MemoryJournal::new(Arc::new(SystemClock::new())));
    /// let builder = || Engine::builder(journal.clone(), Runtime::system()).register(&saga);
    ///
    /// let places = Bulkhead::builder("payments", 8).build().unwrap();
    /// let named = |name: &str| Policy::builder(name).bulkhead(&places).build().unwrap();
    /// let error = builder().policies([named("payment")]).open().await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Config);
    /// assert!(error.to_string().contains("(known: `payment`)"), "{error}");
    /// assert!(builder().policies([named("payments")]).open().await.is_ok());
    /// # });
    /// ```
    #[must_use]
    pub fn policies(mut self, policies: impl IntoIterator<Item = Policy>) -> Self {
        self.policies.extend(policies);
        self
    }
}

/// Policies by name, each of which makes one attempt of one.
///
/// # Errors
/// [`ErrorKind::Config`] for one that repeats, and for two of one name.
pub(super) fn by_name(policies: impl IntoIterator<Item = Policy>) -> Result<Policies, Error> {
    let mut all = Policies::new();
    for policy in policies {
        let (name, snapshot) = (Arc::from(policy.name()), policy.snapshot());
        if snapshot.max_attempts > 1 || snapshot.hedged {
            let why = "repeats calls; a saga repeats its steps itself, so give it neither retry nor hedge";
            return Err(Error::new(ErrorKind::Config, format!("policy `{name}` {why}")));
        }
        if let Some(twice) = all.insert(name, policy) {
            let why = format!("there are two policies called `{}`", twice.name());
            return Err(Error::new(ErrorKind::Config, why));
        }
    }
    Ok(all)
}

/// Refuses a definition whose steps name a policy that is not there.
///
/// # Errors
/// [`ErrorKind::Config`] with the policies that there are.
pub(super) fn check(definition: &Definition, policies: &Policies) -> Result<(), Error> {
    for step in definition.steps() {
        let Some(name) = step.policy.as_deref().filter(|n| !policies.contains_key(*n)) else { continue };
        let (step, saga, named) = (&step.name, definition.name(), named(policies));
        let why =
            format!("step `{step}` of `{saga}` names the policy `{name}`, which nobody knows ({named})");
        return Err(Error::new(ErrorKind::Config, why));
    }
    Ok(())
}

/// The names that there are, as far as they are few.
fn named(policies: &Policies) -> String {
    /// Whoever has more of them knows where they stand.
    const MOST: usize = 8;
    let names: Vec<String> = policies.keys().take(MOST).map(|name| format!("`{name}`")).collect();
    match names.as_slice() {
        [] => "none is known".to_owned(),
        _ if policies.len() > MOST => format!("known: {} and others", names.join(", ")),
        _ => format!("known: {}", names.join(", ")),
    }
}

impl Engine {
    /// Puts other policies in the place of those that steps name. Attempts under way end with what they began with. A policy that is
    /// given again keeps what it knows.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when a registered definition names one that is not among them, and as for
    /// [`EngineBuilder::policies`]; nothing changes.
    pub fn set_policies(&self, policies: impl IntoIterator<Item = Policy>) -> Result<(), Error> {
        let fresh = by_name(policies)?;
        // Held while it is looked at: a definition that comes meanwhile is checked against what is in force then.
        let mut current = self.0.policies.write().unwrap_or_else(PoisonError::into_inner);
        for definition in self.0.registry.all() {
            check(&definition, &fresh)?;
        }
        *current = fresh;
        Ok(())
    }
}

impl Inner {
    fn policy(&self, name: &str) -> Option<Policy> {
        self.policies.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

impl Drive {
    /// A call through the policy that its step names.
    pub(super) fn guarded(
        &self,
        half: Half,
        at: &AttemptRef,
        call: BoxFuture<'static, CallEnd>,
    ) -> BoxFuture<'static, CallEnd> {
        let step = self.step(at).1;
        let Some(name) = &step.policy else { return call };
        let (at, timeout) = match half {
            Half::Action => (at.clone(), step.timeout),
            Half::Undo => (at.clone(), step.undo_timeout),
        };
        let Some(policy) = self.inner.policy(name) else {
            // No definition is registered whose policies are not there.
            let why = format!("the policy `{name}` is not there");
            let result = match half {
                Half::Action => CallResult::Withheld(why, None),
                Half::Undo => CallResult::UndoWithheld(why, None),
            };
            return Box::pin(async move { CallEnd { at, result } });
        };
        let deadline = self.inner.runtime.clock().now().saturating_add(timeout);
        Box::pin(async move {
            match through(&policy, &context(deadline), call).await {
                Ok(end) => end,
                Err(error) => CallEnd { at, result: ended(half, &error) },
            }
        })
    }
}

fn context(deadline: Instant) -> CallContext {
    CallContext::default().with_deadline(Deadline::at(deadline))
}

/// One call through `policy`. Boxed here, where the lifetime has a name: the compiler cannot see otherwise that it is `Send`.
fn through<'a>(
    policy: &'a Policy,
    cx: &'a CallContext,
    call: BoxFuture<'static, CallEnd>,
) -> BoxFuture<'a, Result<CallEnd, CallError<Infallible>>> {
    let mut call = Some(call);
    let once = move |_: Attempt<'_>| -> BoxFuture<'a, Result<CallEnd, Infallible>> {
        let call = call.take().expect("invariant: a policy that repeats was refused");
        Box::pin(async move { Ok(call.await) })
    };
    Box::pin(policy.call_with(cx, judge, once))
}

/// What the end of an attempt says about the health of what it called. A business no blames nobody.
fn judge(end: &Result<CallEnd, Infallible>) -> Health {
    let result = match end {
        Ok(end) => &end.result,
        Err(never) => match *never {},
    };
    match result {
        CallResult::Reported(health) => *health,
        CallResult::Step(verdict, _) => health_of_action(verdict),
        CallResult::Undo(verdict, _) => health_of_undo(verdict),
        // Also what another policy further in refused: nobody was asked.
        _ => Health::Ignore,
    }
}

/// What a report says about the health of who sends it.
pub(super) fn health_of(report: &Completed) -> Health {
    match report {
        Completed::Action(verdict) => health_of_action(verdict),
        Completed::Undo(verdict) => health_of_undo(verdict),
    }
}

fn health_of_action(verdict: &Verdict) -> Health {
    match verdict {
        Verdict::Done { .. } => Health::Ok,
        Verdict::NotSent { .. } | Verdict::Unknown { .. } => Health::RETRYABLE,
        Verdict::ContractBroken { .. } | Verdict::Rejected { .. } => Health::Ignore,
    }
}

fn health_of_undo(verdict: &UndoVerdict) -> Health {
    match verdict {
        UndoVerdict::Undone => Health::Ok,
        UndoVerdict::Failed { .. } => Health::RETRYABLE,
        UndoVerdict::Refused { .. } => Health::Ignore,
    }
}

/// What the saga is told when the policy ended the call.
fn ended(half: Half, error: &CallError<Infallible>) -> CallResult {
    let why = match error.last() {
        CallError::Rejected(rejected) => rejected.to_string(),
        CallError::Timeout(timeout) => timeout.to_string(),
        _ => "the policy ended the call".to_owned(),
    };
    let reason = cut(why);
    match (half, error.was_started()) {
        (Half::Action, true) => CallResult::Step(Verdict::Unknown { reason, interrupted: false }, None),
        (Half::Action, false) => CallResult::Withheld(reason, error.retry_after()),
        (Half::Undo, true) => CallResult::Undo(UndoVerdict::Failed { reason }, None),
        (Half::Undo, false) => CallResult::UndoWithheld(reason, error.retry_after()),
    }
}
