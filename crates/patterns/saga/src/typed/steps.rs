//! One step of the typed builder: its options and its closures.

use std::future::Future;
use std::marker::PhantomData;
use std::time::Duration;

use mainstay_store::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{ForwardBuilder, Inputs, Node, Parts};
use crate::definition::{OnUnknown, RetryData, StepData, StepKind};
use crate::step::{Known, LocalStep, StepCx, StepError, Told, UndoError};

type Action = Box<dyn Fn(StepCx, Value) -> BoxFuture<'static, Result<Value, StepError>> + Send + Sync>;
type Undo =
    Box<dyn Fn(StepCx, Told<Value>, Value) -> BoxFuture<'static, Result<(), UndoError>> + Send + Sync>;
type Status = Box<dyn Fn(StepCx, Value) -> BoxFuture<'static, Known<Value>> + Send + Sync>;

/// The closures of one step.
pub(super) struct Closures {
    action: Action,
    undo: Option<Undo>,
    status: Option<Status>,
}

/// A step that is being set up.
pub(super) struct Draft {
    pub(super) data: StepData,
    pub(super) closures: Closures,
}

impl Draft {
    pub(super) fn new<I, T, F, Fut>(kind: StepKind, name: &str, input: &I, action: F) -> Self
    where
        I: Inputs,
        T: Serialize + 'static,
        F: Fn(StepCx, I::Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StepError>> + Send + 'static,
    {
        let mut data = StepData::new(name);
        data.kind = kind;
        data.input = Some(input.reference());
        let closures = Closures { action: erase::<I::Value, T, F, Fut>(action), undo: None, status: None };
        Self { data, closures }
    }

    fn retry(&mut self, attempts: u32, base: Duration, cap: Duration) {
        self.data.retry = Some(RetryData::new(attempts, base, cap));
    }

    fn status<I, T, F, Fut>(&mut self, status: F)
    where
        I: DeserializeOwned,
        T: Serialize + 'static,
        F: Fn(StepCx, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Known<T>> + Send + 'static,
    {
        self.data.local_status = true;
        self.closures.status = Some(Box::new(move |cx, input| {
            // Given by a person, and not what the step takes: nothing can be said.
            let Ok(input) = serde_json::from_value(input) else {
                return Box::pin(async { Known::Unclear });
            };
            let answer = status(cx, input);
            Box::pin(async move {
                match answer.await {
                    // An output that cannot be written down is as good as lost.
                    Known::Did(output) => serde_json::to_value(output).map_or(Known::Unclear, Known::Did),
                    Known::Never => Known::Never,
                    Known::Unclear => Known::Unclear,
                }
            })
        }));
    }
}

/// Sets up one compensable step. `S` is `fn(I) -> T`: what the step takes and what it returns.
#[must_use = "a step takes effect with `add`"]
pub struct StepBuilder<'b, S> {
    parts: &'b mut Parts,
    draft: Draft,
    types: PhantomData<fn() -> S>,
}

impl<'b, S> StepBuilder<'b, S> {
    pub(super) fn new(parts: &'b mut Parts, draft: Draft) -> Self {
        Self { parts, draft, types: PhantomData }
    }
}

impl<I: DeserializeOwned + Send + 'static, T: Serialize + DeserializeOwned + Send + 'static>
    StepBuilder<'_, fn(I) -> T>
{
    /// How it is reversed. Must accept [`Told::Maybe`] and must be idempotent.
    pub fn undo<F, Fut>(self, undo: F) -> Self
    where
        F: Fn(StepCx, Told<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), UndoError>> + Send + 'static,
    {
        self.reversed(move |cx, told, _| Box::pin(undo(cx, told)))
    }

    /// The same for an undo that needs the input that the step acted with, such as one that is told [`Told::Maybe`] and has no output
    /// to go by. What a person gave the step when they retried it with another input is what it acted with; and when they retry
    /// the undo with another input, the undo is told that one.
    ///
    /// ```
    /// use mainstay_saga::{Saga, StepCx, StepError, Told, UndoError};
    ///
    /// async fn book(_: StepCx, seat: String) -> Result<u64, StepError> {
    ///     Ok(seat.len() as u64)
    /// }
    /// async fn free(_: StepCx, told: Told<u64>, seat: String) -> Result<(), UndoError> {
    ///     match told {
    ///         Told::Did(_booking) => {}
    ///         Told::Maybe => assert!(!seat.is_empty(), "whatever was booked was booked for this seat"),
    ///     }
    ///     Ok(())
    /// }
    /// let mut b = Saga::<String>::builder("trip", 1);
    /// b.step("book", b.input(), book).undo_with_input(free).add();
    /// assert!(b.no_deadline().build().is_ok());
    /// ```
    pub fn undo_with_input<F, Fut>(self, undo: F) -> Self
    where
        F: Fn(StepCx, Told<T>, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), UndoError>> + Send + 'static,
    {
        self.reversed(move |cx, told, input| match serde_json::from_value(input) {
            Ok(input) => Box::pin(undo(cx, told, input)),
            // A person gave it, and only a person can give another one.
            Err(e) => {
                let text = format!("the input does not fit the step: {e}");
                Box::pin(async move { Err(UndoError::refused_for_good(text)) })
            }
        })
    }

    fn reversed(
        mut self,
        undo: impl Fn(StepCx, Told<T>, Value) -> BoxFuture<'static, Result<(), UndoError>> + Send + Sync + 'static,
    ) -> Self {
        self.draft.data.local_undo = true;
        self.draft.closures.undo = Some(Box::new(move |cx, told, input| {
            let told = match told {
                // An output that cannot be read back is as good as lost.
                Told::Did(value) => serde_json::from_value(value).map_or(Told::Maybe, Told::Did),
                Told::Maybe => Told::Maybe,
            };
            undo(cx, told, input)
        }));
        self
    }

    /// Why it needs no undo.
    pub fn no_undo(mut self, reason: &str) -> Self {
        self.draft.data.no_undo = Some(reason.to_owned());
        self
    }

    /// Waits for `node` without taking its output.
    pub fn after<U>(mut self, node: &Node<U>) -> Self {
        self.draft.data.after.push(node.name.clone());
        self
    }

    /// Longest time of one attempt, and of one undo attempt.
    pub fn timeout(mut self, d: Duration) -> Self {
        self.draft.data.timeout = Some(d);
        self
    }

    /// Longest time of one undo attempt, where it is another one.
    pub fn undo_timeout(mut self, d: Duration) -> Self {
        self.draft.data.undo_timeout = Some(d);
        self
    }

    /// Attempts of the action, the first included, with the first and the largest delay.
    pub fn retry(mut self, attempts: u32, base: Duration, cap: Duration) -> Self {
        self.draft.retry(attempts, base, cap);
        self
    }

    /// Attempts of the undo before a person is asked, with the first and the largest delay.
    pub fn undo_retry(mut self, attempts: u32, base: Duration, cap: Duration) -> Self {
        self.draft.data.undo_retry = Some(RetryData::new(attempts, base, cap));
        self
    }

    /// Asks a person instead of undoing a step of which nobody knows whether it happened.
    pub fn ask_when_unknown(mut self) -> Self {
        self.draft.data.on_unknown = OnUnknown::Ask;
        self
    }

    /// Says whether an action happened of which nobody knows. It is given the action's key and input; it must change nothing. Asked
    /// before the step is undone as [`Told::Maybe`], and before a person is asked.
    ///
    /// ```
    /// use mainstay_saga::{Known, Saga, StepCx, StepError, Told, UndoError};
    ///
    /// async fn charge(_: StepCx, cents: u64) -> Result<String, StepError> {
    ///     Err(StepError::unknown(format!("{cents}: no answer")))
    /// }
    /// async fn refund(_: StepCx, _: Told<String>) -> Result<(), UndoError> {
    ///     Ok(())
    /// }
    /// async fn look_up(cx: StepCx, _: u64) -> Known<String> {
    ///     Known::Did(format!("receipt of {}", cx.idempotency_key))
    /// }
    /// let mut b = Saga::<u64>::builder("order", 1);
    /// b.step("charge", b.input(), charge).undo(refund).status(look_up).add();
    /// assert!(b.no_deadline().build().unwrap().definition().steps()[0].local_status);
    /// ```
    pub fn status<F, Fut>(mut self, status: F) -> Self
    where
        F: Fn(StepCx, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Known<T>> + Send + 'static,
    {
        self.draft.status::<I, T, F, Fut>(status);
        self
    }

    /// Guards its attempts, and those of its undo, by the policy of this name: see
    /// [`EngineBuilder::policies`](crate::engine::EngineBuilder::policies).
    pub fn policy(mut self, name: &str) -> Self {
        self.draft.data.policy = Some(name.to_owned());
        self
    }

    /// Text for whoever has to act.
    pub fn runbook(mut self, text: &str) -> Self {
        self.draft.data.runbook = Some(text.to_owned());
        self
    }

    /// Adds the step.
    pub fn add(self) -> Node<T> {
        Node { name: self.parts.add(self.draft), output: PhantomData }
    }
}

/// Sets up the pivot. `S` is the saga's input and `fn(I) -> T`: what the step takes and what it returns.
#[must_use = "the pivot takes effect with `add`"]
pub struct PivotBuilder<S> {
    parts: Parts,
    draft: Draft,
    types: PhantomData<fn() -> S>,
}

impl<S> PivotBuilder<S> {
    pub(super) fn new(parts: Parts, draft: Draft) -> Self {
        Self { parts, draft, types: PhantomData }
    }
}

impl<In, I: DeserializeOwned + Send + 'static, T: Serialize + DeserializeOwned + Send + 'static>
    PivotBuilder<(In, fn(I) -> T)>
{
    /// Longest time of one attempt.
    pub fn timeout(mut self, d: Duration) -> Self {
        self.draft.data.timeout = Some(d);
        self
    }

    /// Attempts, the first included, with the first and the largest delay. When they are spent and nobody knows whether it happened, a
    /// person is asked.
    pub fn retry(mut self, attempts: u32, base: Duration, cap: Duration) -> Self {
        self.draft.retry(attempts, base, cap);
        self
    }

    /// As [`StepBuilder::status`]: asked before a person is.
    pub fn status<F, Fut>(mut self, status: F) -> Self
    where
        F: Fn(StepCx, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Known<T>> + Send + 'static,
    {
        self.draft.status::<I, T, F, Fut>(status);
        self
    }

    /// Guards its attempts by the policy of this name, as [`StepBuilder::policy`] does.
    pub fn policy(mut self, name: &str) -> Self {
        self.draft.data.policy = Some(name.to_owned());
        self
    }

    /// Text for whoever has to act.
    pub fn runbook(mut self, text: &str) -> Self {
        self.draft.data.runbook = Some(text.to_owned());
        self
    }

    /// Adds the pivot: its output, and the builder of what follows.
    pub fn add(mut self) -> (Node<T>, ForwardBuilder<In>) {
        let pivot = self.parts.add(self.draft);
        let node = Node { name: pivot.clone(), output: PhantomData };
        (node, ForwardBuilder { parts: self.parts, pivot, input: PhantomData })
    }
}

/// Sets up one step after the pivot. `S` is `fn(I) -> T`: what the step takes and what it returns.
#[must_use = "a step takes effect with `add`"]
pub struct RetriableBuilder<'b, S> {
    parts: &'b mut Parts,
    draft: Draft,
    types: PhantomData<fn() -> S>,
}

impl<'b, S> RetriableBuilder<'b, S> {
    pub(super) fn new(parts: &'b mut Parts, draft: Draft) -> Self {
        Self { parts, draft, types: PhantomData }
    }
}

impl<I: DeserializeOwned + Send + 'static, T: Serialize + DeserializeOwned + Send + 'static>
    RetriableBuilder<'_, fn(I) -> T>
{
    /// Waits for `node` without taking its output.
    pub fn after<U>(mut self, node: &Node<U>) -> Self {
        self.draft.data.after.push(node.name.clone());
        self
    }

    /// Longest time of one attempt.
    pub fn timeout(mut self, d: Duration) -> Self {
        self.draft.data.timeout = Some(d);
        self
    }

    /// Attempts before a person is told, the first included, at least
    /// [`RETRIABLE_ATTEMPTS`](crate::definition::RETRIABLE_ATTEMPTS), with the first and the largest delay. It is repeated still.
    pub fn retry(mut self, attempts: u32, base: Duration, cap: Duration) -> Self {
        self.draft.retry(attempts, base, cap);
        self
    }

    /// As [`StepBuilder::status`]: asked before a person is, when the step is done and its output lost.
    pub fn status<F, Fut>(mut self, status: F) -> Self
    where
        F: Fn(StepCx, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Known<T>> + Send + 'static,
    {
        self.draft.status::<I, T, F, Fut>(status);
        self
    }

    /// Guards its attempts by the policy of this name, as [`StepBuilder::policy`] does.
    pub fn policy(mut self, name: &str) -> Self {
        self.draft.data.policy = Some(name.to_owned());
        self
    }

    /// Text for whoever has to act.
    pub fn runbook(mut self, text: &str) -> Self {
        self.draft.data.runbook = Some(text.to_owned());
        self
    }

    /// Adds the step.
    pub fn add(self) -> Node<T> {
        Node { name: self.parts.add(self.draft), output: PhantomData }
    }
}

fn erase<I, T, F, Fut>(action: F) -> Action
where
    I: DeserializeOwned,
    T: Serialize + 'static,
    F: Fn(StepCx, I) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, StepError>> + Send + 'static,
{
    Box::new(move |cx, input| {
        match serde_json::from_value(input) {
            // Never called: certainly no effect.
            Err(e) => {
                let text = format!("the input does not fit the step: {e}");
                Box::pin(async move { Err(StepError::rejected(text)) })
            }
            Ok(input) => {
                let work = action(cx, input);
                Box::pin(async move {
                    let output = work.await?;
                    serde_json::to_value(output).map_err(|_| StepError::output_lost())
                })
            }
        }
    })
}

impl LocalStep for Closures {
    fn act(&self, cx: StepCx, input: Value) -> BoxFuture<'_, Result<Value, StepError>> {
        (self.action)(cx, input)
    }

    fn undo(&self, cx: StepCx, effect: Told<Value>, input: Value) -> BoxFuture<'_, Result<(), UndoError>> {
        match &self.undo {
            Some(undo) => undo(cx, effect, input),
            None => Box::pin(async { Ok(()) }),
        }
    }

    fn status(&self, cx: StepCx, input: Value) -> BoxFuture<'_, Known<Value>> {
        match &self.status {
            Some(status) => status(cx, input),
            None => Box::pin(async { Known::Unclear }),
        }
    }
}
