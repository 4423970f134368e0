//! The typed builder: a definition and its closures in one value.

mod steps;

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::definition::{Definition, DefinitionData, DefinitionError, RetryData, StepKind};
use crate::engine::{Engine, EngineBuilder, Handle, StartOptions};
use crate::step::{LocalStep, StepCx, StepError};
use crate::{Error, ErrorKind};
use steps::Draft;

pub use steps::{PivotBuilder, RetriableBuilder, StepBuilder};

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
/// let ship = |_: StepCx, n: u32| async move { Ok::<_, StepError>(n) };
/// let (shipped, mut forward) = b.pivot("ship", input, ship).add();
/// forward.step("charge", &shipped, |_: StepCx, n: u32| async move { Ok::<_, StepError>(n) });
/// ```
///
/// Nor may what has to be done be undone.
///
/// ```compile_fail
/// use mainstay_saga::{Saga, StepCx, StepError, Told, UndoError};
///
/// let b = Saga::<u32>::builder("order", 1);
/// let input = b.input();
/// let ship = |_: StepCx, n: u32| async move { Ok::<_, StepError>(n) };
/// let (shipped, mut forward) = b.pivot("ship", input, ship).add();
/// let mail = forward.retriable("mail", &shipped, |_: StepCx, n: u32| async move { Ok::<_, StepError>(n) });
/// mail.undo(|_: StepCx, _: Told<u32>| async { Ok::<(), UndoError>(()) }).add();
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
    fn add(&mut self, draft: Draft) -> String {
        let name = draft.data.name.clone();
        self.steps.push((name.clone(), Arc::new(draft.closures)));
        self.data.steps.push(draft.data);
        name
    }

    fn build<In>(self) -> Result<Saga<In>, DefinitionError> {
        let definition = Definition::from_data(self.data)?;
        Ok(Saga { definition, steps: self.steps, input: PhantomData })
    }
}

/// Builds the part of a saga before its pivot.
///
/// What a definition says as data can be said here, with three exceptions. The address of a step: what comes over a wire
/// has no type that a compiler checks, so steps over HTTP are data, and a program may give closures to the other steps of
/// that data ([`EngineBuilder::definition`]). `idempotent`: a closure is given the key, and a retriable one must honor
/// it. Templates of inputs: a step takes nodes or tuples of them; implement [`Inputs`] for another shape.
pub struct SagaBuilder<In> {
    parts: Parts,
    input: PhantomData<fn(In)>,
}

fn input_node<In>() -> Node<In> {
    Node { name: "input".to_owned(), output: PhantomData }
}

impl<In: DeserializeOwned + Send + 'static> SagaBuilder<In> {
    /// The saga's input, for steps that take it.
    #[must_use]
    pub fn input(&self) -> Node<In> {
        input_node()
    }

    /// Adds a compensable step. It needs `undo` or `no_undo`, and takes effect with `add`.
    pub fn step<I, T, F, Fut>(
        &mut self,
        name: &str,
        input: I,
        action: F,
    ) -> StepBuilder<'_, fn(I::Value) -> T>
    where
        I: Inputs,
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Fn(StepCx, I::Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StepError>> + Send + 'static,
    {
        StepBuilder::new(&mut self.parts, Draft::new(StepKind::Compensable, name, &input, action))
    }

    /// Adds the point of no return, with `add`; it waits for every step so far. After it the saga only goes forward.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_saga::definition::StepKind;
    /// use mainstay_saga::{Saga, StepCx, StepError};
    ///
    /// async fn ship(_: StepCx, order: u32) -> Result<String, StepError> {
    ///     Ok(format!("parcel-{order}"))
    /// }
    /// async fn mail(_: StepCx, parcel: String) -> Result<(), StepError> {
    ///     assert!(!parcel.is_empty());
    ///     Ok(())
    /// }
    ///
    /// let b = Saga::<u32>::builder("order", 1);
    /// let order = b.input();
    /// let ship = b.pivot("ship", order, ship).timeout(Duration::from_secs(5)).runbook("Ask the carrier.");
    /// let (parcel, mut forward) = ship.add();
    /// let seconds = Duration::from_secs;
    /// forward.retriable("mail", &parcel, mail).retry(20, seconds(1), seconds(60)).add();
    /// let saga = forward.deadline(seconds(60)).build()?;
    /// let steps = saga.definition().steps();
    /// assert_eq!((steps[0].kind, steps[1].kind), (StepKind::Pivot, StepKind::Retriable));
    /// assert_eq!(steps[0].runbook.as_deref(), Some("Ask the carrier."));
    /// # Ok::<(), mainstay_saga::definition::DefinitionError>(())
    /// ```
    #[allow(
        clippy::type_complexity,
        reason = "what it leads to, in full, is what a reader of the signature looks for"
    )]
    pub fn pivot<I, T, F, Fut>(self, name: &str, input: I, action: F) -> PivotBuilder<(In, fn(I::Value) -> T)>
    where
        I: Inputs,
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Fn(StepCx, I::Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StepError>> + Send + 'static,
    {
        let mut draft = Draft::new(StepKind::Pivot, name, &input, action);
        draft.data.after = self.parts.data.steps.iter().map(|s| s.name.clone()).collect();
        PivotBuilder::new(self.parts, draft)
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

    /// Longest time of one attempt of each step that says nothing else, before and after the pivot.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_saga::{Saga, StepCx, StepError};
    ///
    /// let short = Duration::from_millis(50);
    /// let mut b = Saga::<u32>::builder("order", 1)
    ///     .timeout(Duration::from_secs(2))
    ///     .retry(3, short, short)
    ///     .undo_retry(9, short, short);
    /// let act = |_: StepCx, n: u32| async move { Ok::<_, StepError>(n) };
    /// b.step("plain", b.input(), act).no_undo("an example").add();
    /// b.step("slow", b.input(), act).no_undo("an example").timeout(Duration::from_secs(9)).add();
    /// let saga = b.no_deadline().build()?;
    /// let [plain, slow] = saga.definition().steps() else { unreachable!() };
    /// assert_eq!((plain.timeout.as_secs(), slow.timeout.as_secs()), (2, 9));
    /// assert_eq!((plain.retry.attempts, plain.undo_retry.attempts), (3, 9));
    /// # Ok::<(), mainstay_saga::definition::DefinitionError>(())
    /// ```
    #[must_use]
    pub fn timeout(mut self, d: Duration) -> Self {
        self.parts.data.timeout = Some(d);
        self
    }

    /// Attempts of the action of each step that says nothing else, the first included, with the first and the largest delay.
    #[must_use]
    pub fn retry(mut self, attempts: u32, base: Duration, cap: Duration) -> Self {
        self.parts.data.retry = Some(RetryData::new(attempts, base, cap));
        self
    }

    /// The same of undos, before a person is asked.
    #[must_use]
    pub fn undo_retry(mut self, attempts: u32, base: Duration, cap: Duration) -> Self {
        self.parts.data.undo_retry = Some(RetryData::new(attempts, base, cap));
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
    /// The saga's input, for steps that take it.
    #[must_use]
    pub fn input(&self) -> Node<In> {
        input_node()
    }

    /// Adds a retriable step, with `add`. Its participant must honor the idempotency key.
    pub fn retriable<I, T, F, Fut>(
        &mut self,
        name: &str,
        input: I,
        action: F,
    ) -> RetriableBuilder<'_, fn(I::Value) -> T>
    where
        I: Inputs,
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Fn(StepCx, I::Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StepError>> + Send + 'static,
    {
        let mut draft = Draft::new(StepKind::Retriable, name, &input, action);
        draft.data.after = vec![self.pivot.clone()];
        RetriableBuilder::new(&mut self.parts, draft)
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
