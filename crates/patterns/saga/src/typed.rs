//! The typed builder: a definition and its closures in one value.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use mainstay_store::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::definition::{
    Definition, DefinitionData, DefinitionError, OnUnknown, RetryData, StepData, StepKind,
};
use crate::engine::{Engine, EngineBuilder, Handle, StartOptions};
use crate::step::{LocalStep, StepCx, StepError, Told, UndoError};
use crate::{Error, ErrorKind};

/// The future output of a step, or the saga's input.
#[derive(Debug)]
pub struct Node<T> {
    name: String,
    output: PhantomData<fn() -> T>,
}

/// What a step takes: a [`Node`], or a tuple of up to three.
pub trait Inputs {
    /// What the closure is given.
    type Value: DeserializeOwned + Send + 'static;

    /// The reference in the definition.
    fn reference(&self) -> Value;
}

impl<T: DeserializeOwned + Send + 'static> Inputs for Node<T> {
    type Value = T;

    fn reference(&self) -> Value {
        Value::String(format!("${}", self.name))
    }
}

impl<I: Inputs> Inputs for &I {
    type Value = I::Value;

    fn reference(&self) -> Value {
        (**self).reference()
    }
}

impl<A: Inputs, B: Inputs> Inputs for (A, B) {
    type Value = (A::Value, B::Value);

    fn reference(&self) -> Value {
        json!([self.0.reference(), self.1.reference()])
    }
}

impl<A: Inputs, B: Inputs, C: Inputs> Inputs for (A, B, C) {
    type Value = (A::Value, B::Value, C::Value);

    fn reference(&self) -> Value {
        json!([self.0.reference(), self.1.reference(), self.2.reference()])
    }
}

/// A saga whose steps are closures, with the input type `In`.
///
/// ```
/// use mainstay_saga::{Saga, StepCx, StepError, Told, UndoError};
///
/// async fn reserve(_: StepCx, order: u32) -> Result<String, StepError> {
///     Ok(format!("hold-{order}"))
/// }
/// async fn release(_: StepCx, _: Told<String>) -> Result<(), UndoError> {
///     Ok(())
/// }
///
/// let mut b = Saga::<u32>::builder("order", 1);
/// let hold = b.step("reserve", b.input(), reserve).undo(release).add();
/// b.step("charge", &hold, |_: StepCx, hold: String| async move { Ok::<_, StepError>(hold.len()) })
///     .no_undo("charging nothing in this example")
///     .add();
/// let saga = b.no_deadline().build()?;
/// assert_eq!(saga.definition().steps().len(), 2);
/// # Ok::<(), mainstay_saga::definition::DefinitionError>(())
/// ```
///
/// What cannot be undone cannot be followed by what must be: after the pivot there is no way to add a
/// compensable step.
///
/// ```compile_fail
/// use mainstay_saga::{Saga, StepCx, StepError};
///
/// let b = Saga::<u32>::builder("order", 1);
/// let input = b.input();
/// let (shipped, mut forward) = b.pivot("ship", input, |_: StepCx, n: u32| async move { Ok::<_, StepError>(n) });
/// forward.step("charge", &shipped, |_: StepCx, n: u32| async move { Ok::<_, StepError>(n) });
/// ```
pub struct Saga<In> {
    definition: Definition,
    steps: Vec<(String, Arc<dyn LocalStep>)>,
    input: PhantomData<fn(In)>,
}

impl<In> Clone for Saga<In> {
    fn clone(&self) -> Self {
        Self { definition: self.definition.clone(), steps: self.steps.clone(), input: PhantomData }
    }
}

impl<In> std::fmt::Debug for Saga<In> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saga").field("name", &self.definition.name()).finish_non_exhaustive()
    }
}

impl<In: Serialize + DeserializeOwned + Send + 'static> Saga<In> {
    /// Starts to define version `version` of the saga called `name`.
    #[must_use]
    pub fn builder(name: &str, version: u32) -> SagaBuilder<In> {
        SagaBuilder {
            parts: Parts { data: DefinitionData::new(name, version), steps: Vec::new() },
            input: PhantomData,
        }
    }

    /// The definition as data.
    #[must_use]
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// The closures, by step name.
    #[must_use]
    pub fn steps(&self) -> &[(String, Arc<dyn LocalStep>)] {
        &self.steps
    }
}

impl EngineBuilder {
    /// Registers a saga with its closures.
    #[must_use]
    pub fn register<In>(self, saga: &Saga<In>) -> Self {
        self.definition(saga.definition.clone(), saga.steps.clone())
    }
}

impl Engine {
    /// Starts a registered saga. See [`Engine::start`] for its guarantees.
    ///
    /// # Errors
    /// As [`Engine::start`], and [`ErrorKind::ApiMisuse`] for an input that is no JSON value.
    ///
    /// # Cancel safety
    /// A dropped future may have started the saga: repeat with the same id.
    pub async fn start_saga<In: Serialize>(
        &self,
        saga: &Saga<In>,
        input: &In,
        mut options: StartOptions,
    ) -> Result<Handle, Error> {
        let value = serde_json::to_value(input)
            .map_err(|e| Error::new(ErrorKind::ApiMisuse, format!("the input is no JSON value: {e}")))?;
        options.version.get_or_insert(saga.definition.version());
        self.start(saga.definition.name(), value, options).await
    }
}

struct Parts {
    data: DefinitionData,
    steps: Vec<(String, Arc<dyn LocalStep>)>,
}

impl Parts {
    fn build<In>(self) -> Result<Saga<In>, DefinitionError> {
        let definition = Definition::from_data(self.data)?;
        Ok(Saga { definition, steps: self.steps, input: PhantomData })
    }
}

/// Builds the part of a saga before its pivot.
pub struct SagaBuilder<In> {
    parts: Parts,
    input: PhantomData<fn(In)>,
}

impl<In: DeserializeOwned + Send + 'static> SagaBuilder<In> {
    /// The saga's input, for steps that take it.
    #[must_use]
    pub fn input(&self) -> Node<In> {
        Node { name: "input".to_owned(), output: PhantomData }
    }

    /// Adds a compensable step. It needs `undo` or `no_undo`, and takes effect with `add`.
    pub fn step<I, T, F, Fut>(&mut self, name: &str, input: I, action: F) -> StepBuilder<'_, T>
    where
        I: Inputs,
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Fn(StepCx, I::Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StepError>> + Send + 'static,
    {
        let mut data = StepData::new(name);
        data.input = Some(input.reference());
        StepBuilder {
            parts: &mut self.parts,
            data,
            action: erase::<I, T, F, Fut>(action),
            undo: None,
            output: PhantomData,
        }
    }

    /// Adds the point of no return; it waits for every step so far. After it the saga only goes forward.
    pub fn pivot<I, T, F, Fut>(self, name: &str, input: I, action: F) -> (Node<T>, ForwardBuilder<In>)
    where
        I: Inputs,
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Fn(StepCx, I::Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StepError>> + Send + 'static,
    {
        let mut parts = self.parts;
        let mut data = StepData::new(name);
        data.kind = StepKind::Pivot;
        data.input = Some(input.reference());
        data.after = parts.data.steps.iter().map(|s| s.name.clone()).collect();
        parts
            .steps
            .push((name.to_owned(), Arc::new(Closure { action: erase::<I, T, F, Fut>(action), undo: None })));
        parts.data.steps.push(data);
        let node = Node { name: name.to_owned(), output: PhantomData };
        (node, ForwardBuilder { parts, pivot: name.to_owned(), input: PhantomData })
    }

    /// How long the saga may go forward.
    #[must_use]
    pub fn deadline(mut self, d: Duration) -> Self {
        self.parts.data.deadline = Some(d);
        self
    }

    /// Says that it may take for ever.
    #[must_use]
    pub fn no_deadline(mut self) -> Self {
        self.parts.data.no_deadline = true;
        self
    }

    /// Checks the definition.
    ///
    /// # Errors
    /// [`DefinitionError`] with every problem found.
    pub fn build(self) -> Result<Saga<In>, DefinitionError> {
        self.parts.build()
    }
}

/// Builds the part of a saga after its pivot: steps that must finish.
pub struct ForwardBuilder<In> {
    parts: Parts,
    pivot: String,
    input: PhantomData<fn(In)>,
}

impl<In> ForwardBuilder<In> {
    /// Adds a retriable step. Its participant must honor the idempotency key.
    pub fn retriable<I, T, F, Fut>(&mut self, name: &str, input: I, action: F) -> Node<T>
    where
        I: Inputs,
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Fn(StepCx, I::Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StepError>> + Send + 'static,
    {
        let mut data = StepData::new(name);
        data.kind = StepKind::Retriable;
        data.input = Some(input.reference());
        data.after = vec![self.pivot.clone()];
        let closure = Closure { action: erase::<I, T, F, Fut>(action), undo: None };
        self.parts.steps.push((name.to_owned(), Arc::new(closure)));
        self.parts.data.steps.push(data);
        Node { name: name.to_owned(), output: PhantomData }
    }

    /// How long the saga may go forward before its pivot is done.
    #[must_use]
    pub fn deadline(mut self, d: Duration) -> Self {
        self.parts.data.deadline = Some(d);
        self
    }

    /// Says that it may take for ever.
    #[must_use]
    pub fn no_deadline(mut self) -> Self {
        self.parts.data.no_deadline = true;
        self
    }

    /// Checks the definition.
    ///
    /// # Errors
    /// [`DefinitionError`] with every problem found.
    pub fn build(self) -> Result<Saga<In>, DefinitionError> {
        self.parts.build()
    }
}

/// Sets up one compensable step.
#[must_use = "a step takes effect with `add`"]
pub struct StepBuilder<'b, T> {
    parts: &'b mut Parts,
    data: StepData,
    action: Action,
    undo: Option<UndoFn>,
    output: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned + Send + 'static> StepBuilder<'_, T> {
    /// How it is reversed. Must accept [`Told::Maybe`] and must be idempotent.
    pub fn undo<F, Fut>(mut self, undo: F) -> Self
    where
        F: Fn(StepCx, Told<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), UndoError>> + Send + 'static,
    {
        self.data.local_undo = true;
        self.undo = Some(Box::new(move |cx, told| {
            let told = match told {
                // An output that cannot be read back is as good as lost.
                Told::Did(value) => serde_json::from_value(value).map_or(Told::Maybe, Told::Did),
                Told::Maybe => Told::Maybe,
            };
            Box::pin(undo(cx, told))
        }));
        self
    }

    /// Why it needs no undo.
    pub fn no_undo(mut self, reason: &str) -> Self {
        self.data.no_undo = Some(reason.to_owned());
        self
    }

    /// Waits for `node` without taking its output.
    pub fn after<U>(mut self, node: &Node<U>) -> Self {
        self.data.after.push(node.name.clone());
        self
    }

    /// Longest time of one attempt, and of one undo attempt.
    pub fn timeout(mut self, d: Duration) -> Self {
        self.data.timeout = Some(d);
        self
    }

    /// Attempts of the action, the first included, with the first and the largest delay.
    pub fn retry(mut self, attempts: u32, base: Duration, cap: Duration) -> Self {
        self.data.retry = Some(RetryData::new(attempts, base, cap));
        self
    }

    /// Attempts of the undo before a person is asked, with the first and the largest delay.
    pub fn undo_retry(mut self, attempts: u32, base: Duration, cap: Duration) -> Self {
        self.data.undo_retry = Some(RetryData::new(attempts, base, cap));
        self
    }

    /// Asks a person instead of undoing a step of which nobody knows whether it happened.
    pub fn ask_when_unknown(mut self) -> Self {
        self.data.on_unknown = OnUnknown::Ask;
        self
    }

    /// Adds the step.
    pub fn add(self) -> Node<T> {
        let name = self.data.name.clone();
        let closure = Closure { action: self.action, undo: self.undo };
        self.parts.steps.push((name.clone(), Arc::new(closure)));
        self.parts.data.steps.push(self.data);
        Node { name, output: PhantomData }
    }
}

type Action = Box<dyn Fn(StepCx, Value) -> BoxFuture<'static, Result<Value, StepError>> + Send + Sync>;
type UndoFn = Box<dyn Fn(StepCx, Told<Value>) -> BoxFuture<'static, Result<(), UndoError>> + Send + Sync>;

struct Closure {
    action: Action,
    undo: Option<UndoFn>,
}

fn erase<I, T, F, Fut>(action: F) -> Action
where
    I: Inputs,
    T: Serialize + 'static,
    F: Fn(StepCx, I::Value) -> Fut + Send + Sync + 'static,
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

impl LocalStep for Closure {
    fn act(&self, cx: StepCx, input: Value) -> BoxFuture<'_, Result<Value, StepError>> {
        (self.action)(cx, input)
    }

    fn undo(&self, cx: StepCx, effect: Told<Value>, _input: Value) -> BoxFuture<'_, Result<(), UndoError>> {
        match &self.undo {
            Some(undo) => undo(cx, effect),
            None => Box::pin(async { Ok(()) }),
        }
    }
}
