//! The row of a saga, derived from its state.

use std::collections::BTreeMap;

use mainstay_clock::WallTime;
use mainstay_store::journal::{Row, SagaStatus};

use crate::definition::Definition;
use crate::fold::{Phase, State};

/// Longest error text on a row; the whole text is in the log.
const MAX_ERROR: usize = 1_000;

/// Due since ever.
const AT_ONCE: i64 = 0;

/// Derives the row. `now` is when it is written, Unix milliseconds.
#[must_use]
pub(crate) fn row(definition: &Definition, state: &State, now: i64, attrs: &BTreeMap<String, String>) -> Row {
    let status = state.status(definition);
    let busy = state.nodes.iter().any(|n| n.running.is_some() || n.undoing.is_some());
    let retry = state.nodes.iter().filter_map(|n| n.retry_at).min();
    let focus = focus(definition, state);
    // When its deadline turns it, or is noted once after the pivot: also while it waits for something else.
    let turn = state.deadline.filter(|_| state.phase(definition) == Phase::Forward && !state.overdue);
    let soonest = |at: i64| turn.map_or(at, |turn| turn.min(at));
    let due = match status {
        s if s.is_final() => None,
        // Something is in flight: whoever takes over goes on at once. One value for that, so that a store
        // need not move the saga in its index with every append.
        _ if busy => Some(AT_ONCE),
        // Nothing starts, whatever would be due.
        _ if state.paused => turn,
        SagaStatus::NeedsAttention => retry.map(soonest).or(turn),
        _ => Some(retry.map_or(now, soonest)),
    };
    Row {
        status,
        retrying: !status.is_final() && retry.is_some() && status != SagaStatus::NeedsAttention,
        paused: state.paused,
        overdue: state.overdue && !state.acknowledged && !status.is_final(),
        due: due.map(WallTime::from_unix_millis),
        next_try: retry.filter(|_| !status.is_final()).map(WallTime::from_unix_millis),
        step: focus.map(|i| definition.steps()[i].name.clone()),
        attempt: focus.map_or(0, |i| attempt(state, i)),
        error: focus.and_then(|i| state.nodes[i].last_error.as_deref()).map(cut),
        attrs: attrs.clone(),
    }
}

fn attempt(state: &State, i: usize) -> u32 {
    let node = &state.nodes[i];
    match (&node.undoing, &node.running) {
        (Some(at), _) | (None, Some(at)) => at.attempt,
        (None, None) => match node.undo_spent + node.undo_interrupted + node.undo_withheld {
            0 => node.current().attempts,
            undos => undos,
        },
    }
}

/// The step people ask about: one that needs a person, else one that retries, else one in flight, else
/// the one that failed first.
fn focus(definition: &Definition, state: &State) -> Option<usize> {
    let find = |f: &dyn Fn(&crate::fold::Node) -> bool| state.nodes.iter().position(f);
    find(&|n| n.item.is_some())
        .or_else(|| find(&|n| n.retry_at.is_some()))
        .or_else(|| find(&|n| n.undoing.is_some()))
        .or_else(|| find(&|n| n.running.is_some()))
        .or_else(|| match &state.stop {
            Some(crate::wire::Cause::StepFailed { step, .. }) => definition.index(step),
            _ => None,
        })
}

fn cut(text: &str) -> String {
    if text.len() <= MAX_ERROR {
        return text.to_owned();
    }
    let mut end = MAX_ERROR;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &text[..end])
}
