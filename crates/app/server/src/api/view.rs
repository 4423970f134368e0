//! How sagas look on the wire. Never the domain types.

use mainstay_saga::definition::{Definition, Undo};
use mainstay_saga::fold::{Effect, Node, State};
use mainstay_saga::wire::{Fact, decode};
use mainstay_store::journal::{Loaded, Record, SagaStatus, Summary};
use serde_json::{Map, Value, json};

use crate::api::instant;

/// A row.
pub(crate) fn summary(s: &Summary) -> Value {
    json!({
        "uid": s.uid.as_str(),
        "id": s.id,
        "definition": s.definition,
        "version": s.version,
        "definition_hash": s.definition_hash.to_string(),
        "status": s.row.status.as_str(),
        "retrying": s.row.retrying,
        "paused": s.row.paused,
        "overdue": s.row.overdue,
        "step": s.row.step,
        "attempt": s.row.attempt,
        "error": s.row.error,
        "next_try": s.row.next_try.map(instant),
        "attrs": s.row.attrs,
        "created": instant(s.created),
        "updated": instant(s.updated),
        "node": s.owner,
        // Decimal text: they may pass 2^53.
        "fencing_token": s.epoch.to_string(),
        "next_seq": s.next_seq.to_string(),
    })
}

/// The state of a saga, when its definition is known and its log is legal.
pub(crate) fn state(definition: Option<&Definition>, loaded: &Loaded) -> Option<State> {
    if loaded.records.is_empty() {
        return None;
    }
    let facts: Vec<Fact> = loaded.records.iter().map(decode).collect::<Result<_, _>>().ok()?;
    State::fold(definition?, &facts).ok()
}

/// What is said of a saga whose log cannot be loaded.
pub(crate) const DAMAGED: &str = "the log of this saga is damaged";

/// Why there is no [`state`] of a saga.
pub(crate) fn unreadable(definition: Option<&Definition>, loaded: &Loaded) -> &'static str {
    match definition {
        _ if loaded.records.is_empty() => DAMAGED,
        None => "its definition is not known to this node",
        Some(_) => "its log is not legal for its definition",
    }
}

/// Why a saga needs a person as a whole and none of its steps does: the node set it aside. One that cannot be read has no
/// steps to ask.
pub(crate) fn set_aside<'a>(summary: &'a Summary, state: Option<&State>) -> Option<&'a str> {
    let by_step = state.is_some_and(|s| s.nodes.iter().any(|n| n.item.is_some()));
    let aside = summary.row.status == SagaStatus::NeedsAttention && !by_step;
    aside.then(|| summary.row.error.as_deref().unwrap_or("it did not say why"))
}

/// What a person may do to a saga as a whole, by the names of the console.
pub(crate) fn legal_on_saga(summary: &Summary, known: Option<(&Definition, &State)>) -> Vec<&'static str> {
    let mut legal = known.map(|(d, s)| s.legal_on_saga(d)).unwrap_or_default();
    if set_aside(summary, known.map(|(_, s)| s)).is_some() {
        // Whatever its log says.
        legal.extend(["abandon", "take_up"]);
    }
    legal
}

/// The same by the names of the API: a retry without a step takes a saga up again.
fn actions(summary: &Summary, known: Option<(&Definition, &State)>) -> Vec<&'static str> {
    let legal = legal_on_saga(summary, known).into_iter();
    legal.map(|name| if name == "take_up" { "retry" } else { name }).collect()
}

/// A saga with its steps and what a person may do. Without a state (damaged or illegal log, unknown definition) the
/// row is all that can be said, and the saga can be taken up again or abandoned.
pub(crate) fn detail(definition: Option<&Definition>, loaded: &Loaded) -> Value {
    let mut body = summary(&loaded.summary);
    let row = &loaded.summary;
    let (Some(definition), Some(state)) = (definition, state(definition, loaded)) else {
        body["readable"] = false.into();
        body["unreadable"] = unreadable(definition, loaded).into();
        body["set_aside"] = set_aside(row, None).into();
        body["actions"] = json!(actions(row, None));
        return body;
    };
    body["readable"] = true.into();
    body["input"] = state.input.clone();
    body["again_of"] = state.again.clone().into();
    body["deadline"] = state.deadline.map(time).into();
    body["overdue"] = (state.overdue && !state.acknowledged && state.finished.is_none()).into();
    body["acknowledged"] = state.acknowledged.into();
    body["past_pivot"] = state.past_pivot(definition).into();
    body["set_aside"] = set_aside(row, Some(&state)).into();
    body["actions"] = json!(actions(row, Some((definition, &state))));
    body["cause"] = state.stop.as_ref().and_then(|c| serde_json::to_value(c).ok()).into();
    let also = state.also_failed.iter();
    body["also_failed"] = also.map(|(step, error)| json!({"step": step, "error": error})).collect();
    let nodes = definition.steps().iter().zip(&state.nodes);
    body["steps"] = nodes
        .map(|(step, node)| {
            let current = node.current();
            let after: Vec<&str> = step.after.iter().map(|i| definition.steps()[*i].name.as_str()).collect();
            json!({
                "name": step.name,
                "kind": format!("{:?}", step.kind).to_ascii_lowercase(),
                "after": after,
                "has_undo": !matches!(step.undo, Undo::None(_)),
                "state": word(node),
                "effect": effect(node.remaining()),
                "attempts": current.attempts,
                "undo_attempts": current.undo_attempts,
                "output": current.output,
                "next_try": node.retry_at.map(time),
                "needs": node.item.and_then(|i| serde_json::to_value(i).ok()),
                "last_error": node.last_error,
                "runbook": step.runbook,
                "actions": state.legal_on_step(definition, &step.name),
            })
        })
        .collect();
    body
}

fn time(millis: i64) -> String {
    instant(mainstay_clock::WallTime::from_unix_millis(millis))
}

/// One word for where a step is.
pub(crate) fn word(node: &Node) -> &'static str {
    let current = node.current();
    if node.item.is_some() {
        "needs_attention"
    } else if node.undoing.is_some() {
        "undoing"
    } else if node.running.is_some() {
        "running"
    } else if current.undone {
        "undone"
    } else if node.skipped {
        "skipped"
    } else if node.done {
        "done"
    } else if node.failed {
        "failed"
    } else if node.retry_at.is_some() {
        "retrying"
    } else {
        "pending"
    }
}

fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::None => "none",
        Effect::Maybe => "maybe",
        Effect::Did => "certain",
    }
}

/// The type of a record in histories and events.
pub(crate) fn kind(record: &Record) -> &'static str {
    match decode(record) {
        Ok(Fact::Action(_)) => "action",
        Ok(Fact::ActionRefused(_)) => "action_refused",
        Ok(Fact::Carried(_)) => "carried",
        Ok(Fact::Closed(_)) => "closed",
        Ok(Fact::Created(_)) => "created",
        Ok(Fact::Finished(_)) => "finished",
        Ok(Fact::Note(_)) => "note",
        Ok(Fact::Overdue(_)) => "overdue",
        Ok(Fact::StepEnded(_)) => "step_ended",
        Ok(Fact::StepStarted(_)) => "step_started",
        Ok(Fact::Stopped(_)) => "stopped",
        Ok(Fact::UndoEnded(_)) => "undo_ended",
        Ok(Fact::UndoStarted(_)) => "undo_started",
        _ => "unreadable",
    }
}

/// A record.
pub(crate) fn record(record: &Record) -> Value {
    let data = serde_json::from_slice(&record.bytes).unwrap_or(Value::Object(Map::new()));
    json!({"seq": record.seq.to_string(), "at": instant(record.at), "type": kind(record), "data": data})
}
