//! What is suspicious about a saga without running it.

use serde_json::Value;

use crate::definition::{Call, Definition, Lint, Step, Undo};

/// Whether the kit can watch the undo of `step`.
pub(super) fn has_local_undo(step: &Step) -> bool {
    matches!(step.undo, Undo::Call(Call::Local))
}

/// Looks at a definition and an input without running anything: [`Definition::lints`], and what is said of the input.
///
/// ```
/// use mainstay_saga::exhaust::{Lint, lint};
/// use mainstay_saga::{Saga, StepCx, StepError, Told, UndoError};
///
/// async fn act(_: StepCx, n: u32) -> Result<u32, StepError> {
///     Ok(n)
/// }
/// let mut b = Saga::<u32>::builder("order", 1);
/// let mail = b.step("mail", b.input(), act).no_undo("mail cannot be unsent").add();
/// b.step("charge", &mail, act).undo(|_: StepCx, _: Told<u32>| async { Ok::<(), UndoError>(()) }).add();
/// let saga = b.no_deadline().build()?;
/// let lints = lint(saga.definition(), &serde_json::json!(1));
/// assert!(matches!(&lints[..], [Lint::Irreversible { step, .. }] if step == "mail"));
/// # Ok::<(), mainstay_saga::definition::DefinitionError>(())
/// ```
#[must_use]
pub fn lint(definition: &Definition, input: &Value) -> Vec<Lint> {
    let mut lints = definition.lints();
    lints.extend(Lint::of_input(input));
    lints
}
