//! Running a finished saga again.

use std::sync::Arc;

use mainstay_store::journal::{Audit, Uid};
use serde_json::Value;

use super::{Attention, Handle, StartOptions};
use crate::definition::Definition;
use crate::fold::State;
use crate::wire::{Carried, Fact, Started, decode};
use crate::{Error, ErrorKind};

/// How a finished saga is run again.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RunAgain {
    /// Who acts; goes to the audit.
    pub who: String,
    /// Why; required, goes to the audit.
    pub reason: String,
    /// From this step on: what was done before it, and still is, is taken over with its output and belongs to
    /// the old saga, so that the new one never undoes it. Absent: from the beginning.
    pub from: Option<String>,
    /// Another input; only from the beginning.
    pub input: Option<Value>,
    /// The new saga's id, attributes and request. Without attributes it has those of the old one.
    pub start: StartOptions,
}

impl RunAgain {
    /// From the beginning, with the same input.
    #[must_use]
    pub fn new(who: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            who: who.into(),
            reason: reason.into(),
            from: None,
            input: None,
            start: StartOptions::default(),
        }
    }
}

impl Attention {
    /// Starts a new saga in the place of a finished one: same definition and version, another uid and so other
    /// keys at every participant. Its log says which saga it repeats; the old one stays as it is.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when the saga is not finished or its log cannot be read;
    /// [`ErrorKind::NotFound`] for an unknown saga, definition or step; [`ErrorKind::ApiMisuse`] without a
    /// reason, or with both a step and an input; and those of [`Engine::start`](crate::Engine::start).
    ///
    /// # Cancel safety
    /// A dropped future may have started the new saga: repeat it with the same id.
    pub async fn run_again(&self, uid: &Uid, mut again: RunAgain) -> Result<Handle, Error> {
        let engine = self.engine();
        if again.reason.trim().is_empty() {
            return Err(Error::new(ErrorKind::ApiMisuse, "an action needs a reason"));
        }
        if again.from.is_some() && again.input.is_some() {
            let why = "another input runs the saga from the beginning; give a step or an input";
            return Err(Error::new(ErrorKind::ApiMisuse, why));
        }
        let journal = engine.journal();
        let Some(loaded) = journal.load(uid).await? else {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no saga {uid}")));
        };
        let summary = loaded.summary;
        if !summary.row.status.is_final() {
            let why = format!("the saga is {}: only a finished one is run again", summary.row.status);
            return Err(Error::new(ErrorKind::Conflict, why));
        }
        let Some(registered) = engine.registered(&summary.definition, summary.version) else {
            let why =
                format!("definition `{}` version {} is not registered", summary.definition, summary.version);
            return Err(Error::new(ErrorKind::NotFound, why));
        };
        let definition = Arc::clone(&registered.definition);
        let unreadable = |why: String| Error::new(ErrorKind::Conflict, format!("the saga's log: {why}"));
        let facts: Result<Vec<Fact>, _> = loaded.records.iter().map(decode).collect();
        let facts = facts.map_err(|e| unreadable(e.to_string()))?;
        let state = State::fold(&definition, &facts).map_err(|e| unreadable(e.to_string()))?;
        let carried = match &again.from {
            None => Vec::new(),
            Some(step) => carry(&definition, &state, step)?,
        };
        let started = Started {
            input: again.input.take().unwrap_or_else(|| state.input.clone()),
            deadline: None,
            trace: again.start.trace.clone(),
            trace_state: again.start.trace_state.clone(),
            again: Some(uid.to_string()),
        };
        if again.start.attrs.is_empty() {
            again.start.attrs.clone_from(&summary.row.attrs);
        }
        let handle = engine.begin(&registered, started, carried, again.start).await?;
        if handle.is_new() {
            let line = Audit {
                who: again.who,
                action: "run_again".to_owned(),
                target: uid.to_string(),
                reason: again.reason,
                before: summary.row.status.to_string(),
                after: format!("saga {}", handle.uid()),
                request_id: again.from.unwrap_or_default(),
            };
            // The new saga's own log names the old one: a line lost in a crash here loses who and why only.
            journal.put_audit(line).await?;
        }
        Ok(handle)
    }
}

/// The steps that a run from `from` on takes over, each after those it waits for: done there, not undone, and
/// neither `from` nor behind it.
fn carry(definition: &Definition, state: &State, from: &str) -> Result<Vec<Carried>, Error> {
    let first = definition.index(from).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("there is no step `{from}` in `{}`", definition.name()))
    })?;
    let steps = definition.steps();
    let mut open = vec![first];
    let mut again = vec![false; steps.len()];
    while let Some(i) = open.pop() {
        if !again[i] {
            again[i] = true;
            open.extend(&steps[i].before);
        }
    }
    let mut taken = vec![false; steps.len()];
    let mut carried = Vec::new();
    loop {
        let before = carried.len();
        for (i, step) in steps.iter().enumerate() {
            let node = &state.nodes[i];
            let stands = node.done && !node.current().undone;
            if stands && !again[i] && !taken[i] && step.after.iter().all(|p| taken[*p]) {
                taken[i] = true;
                let output = node.current().output.clone().unwrap_or(Value::Null);
                carried.push(Carried { step: step.name.clone(), output });
            }
        }
        if carried.len() == before {
            return Ok(carried);
        }
    }
}
