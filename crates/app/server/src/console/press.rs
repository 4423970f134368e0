//! What may be pressed: names, order and consequences of actions, and the links to their forms.

use mainstay_saga::definition::{Definition, Undo};
use mainstay_saga::fold::{Effect, Node, State};
use mainstay_saga::wire::{ItemKind, Operation};
use maud::{Markup, html};

use crate::console::words;

/// An action as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Press {
    /// Its name in `legal_on_step` and `legal_on_saga`.
    pub(super) name: &'static str,
    /// On the button.
    pub(super) title: &'static str,
    /// Cannot be taken back: the name of the saga must be typed.
    pub(super) destructive: bool,
    /// It is about one step.
    pub(super) on_step: bool,
    /// What it does and what it does not.
    pub(super) about: &'static str,
    /// What the reason should say.
    pub(super) asks: &'static str,
}

impl Press {
    /// The operation of an action that asks for a reason and nothing else, on this step where it is about one.
    /// `None`: it takes a value too.
    pub(super) fn plain(&self, step: String) -> Option<Operation> {
        Some(match self.name {
            "abandon" => Operation::Abandon,
            "acknowledge" => Operation::Acknowledge,
            "cancel" => Operation::Cancel,
            "compensate" => Operation::Compensate,
            "pause" => Operation::Pause,
            "resume" => Operation::Resume,
            "retry" => Operation::Retry { step, input: None },
            "resolve_not_done" => Operation::ResolveNotDone { step },
            "resolve_undone" => Operation::ResolveUndone { step },
            "skip" => Operation::Skip { step },
            "take_up" => Operation::TakeUp,
            _ => return None,
        })
    }
}

const fn press(name: &'static str, title: &'static str, about: &'static str, asks: &'static str) -> Press {
    Press { name, title, destructive: false, on_step: true, about, asks }
}

const WHY: &str = "Why?";
const EVIDENCE: &str = "How do you know? Name the ledger line, ticket or person.";

/// Every action, the harmless first: to try again under the same key, then what needs evidence, then what gives up.
pub(super) const ALL: [Press; 13] = [
    Press {
        on_step: false,
        ..press(
            "acknowledge",
            "I have seen it",
            "Records that a person knows that the saga is late. Nothing is called, and it goes on as before.",
            "What is done about it?",
        )
    },
    Press {
        on_step: false,
        ..press(
            "take_up",
            "Read it anew",
            "Reads the saga again and goes on where its log ends: when its definition is there, or what was damaged is mended. What ends in the same way is set aside again, and you are told why.",
            "What has changed?",
        )
    },
    press(
        "retry",
        "Try again now",
        "Makes the next attempt at once, with a fresh count. The key is the same, so a participant that honors it takes effect once.",
        WHY,
    ),
    press(
        "resolve_undone",
        "It is undone",
        "Records that the effect is reversed, by whatever means. Nothing is called. The saga goes on undoing what is left.",
        EVIDENCE,
    ),
    press(
        "resolve_done",
        "It happened",
        "Records that the action took effect, with its output. Nothing is called. The saga goes forward from there.",
        EVIDENCE,
    ),
    press(
        "resolve_not_done",
        "It did not happen",
        "Records that the action had no effect and never will. The saga then turns back and undoes the earlier steps.",
        EVIDENCE,
    ),
    press(
        "retry_with_input",
        "Try again with another input",
        "Makes the next attempt with the input below. An action gets a new key: what an earlier attempt may have done is undone before, and of a step without an undo it stays. An undo is told the new input.",
        WHY,
    ),
    Press {
        destructive: true,
        ..press(
            "skip",
            "Leave it as it is",
            "Gives this up. A skipped undo leaves its effect in the world: a saga that turns back ends abandoned, one that was to try the step again with another input does so. A skipped action counts as done without an output.",
            EVIDENCE,
        )
    },
    Press {
        destructive: true,
        on_step: false,
        ..press(
            "compensate",
            "Turn back",
            "Starts no further step and undoes what has an effect, in reverse order.",
            WHY,
        )
    },
    Press {
        destructive: true,
        on_step: false,
        ..press(
            "cancel",
            "Cancel",
            "The business wants it no longer: starts no further step and undoes what has an effect, in reverse order.",
            WHY,
        )
    },
    Press {
        on_step: false,
        ..press(
            "pause",
            "Pause",
            "Starts nothing new until somebody resumes. What is in flight ends; the deadline still applies.",
            WHY,
        )
    },
    Press { on_step: false, ..press("resume", "Resume", "Goes on where it was paused.", WHY) },
    Press {
        destructive: true,
        on_step: false,
        ..press(
            "abandon",
            "Close with effects remaining",
            "Ends the saga for good. Nothing more is called or undone; what has an effect keeps it.",
            EVIDENCE,
        )
    },
];

/// The action of a name.
pub(super) fn find(name: &str) -> Option<&'static Press> {
    ALL.iter().find(|p| p.name == name)
}

/// What a destructive action is about, counted as far as the node can read the saga.
pub(super) fn counts(press: &Press, known: Option<(&Definition, &State)>) -> String {
    let Some((definition, state)) = known else {
        return "This closes 1 saga; what it did in the world, and is not undone, the node cannot say."
            .to_owned();
    };
    let effects = state.nodes.iter().filter(|n| n.remaining() != Effect::None).count() as u64;
    let undoable = definition.steps().iter().zip(&state.nodes);
    let undoable = undoable
        .filter(|(s, n)| n.effect() != Effect::None && !n.skipped && matches!(s.undo, Undo::Call(_)))
        .count() as u64;
    match press.name {
        "abandon" => format!("This closes 1 saga; {} in the world.", remains(effects)),
        "cancel" | "compensate" => {
            format!("This turns back 1 saga: {} will be undone.", words::plural(undoable, "step"))
        }
        _ => "This gives up 1 step of 1 saga.".to_owned(),
    }
}

fn remains(effects: u64) -> String {
    let verb = if effects == 1 { "remains" } else { "remain" };
    format!("{} {verb}", words::plural(effects, "effect"))
}

/// The links to what is legal. Links, because each leads to a form that says more.
pub(super) fn links(root: &str, uid: &str, seen: u64, step: Option<&str>, legal: &[&str]) -> Markup {
    let all: Vec<&Press> = ALL.iter().filter(|p| legal.contains(&p.name)).collect();
    let on = step.map(|s| format!("&step={}", words::encode(s))).unwrap_or_default();
    html! {
        @if !all.is_empty() {
            ul.press {
                @for p in all {
                    @let class = if p.destructive { "button danger" } else { "button" };
                    li { a class=(class) href={ (root) "sagas/" (words::encode(uid)) "/act?do=" (p.name) (on) "&seen=" (seen) } {
                        (p.title) @if let Some(step) = step { span.sr { " (step " (step) ")" } }
                    } }
                }
            }
        }
    }
}

/// Why a step needs a person, in a sentence.
pub(super) fn why(name: &str, node: &Node, item: ItemKind) -> Markup {
    let sure = match node.effect() {
        Effect::Did => "Its effect is certain and not reversed.",
        Effect::Maybe => "Whether it had an effect is not known.",
        Effect::None => "It had no effect.",
    };
    html! {
        @match item {
            ItemKind::UndoFailed => { "The undo of " code { (name) } " was refused or keeps failing. " (sure) },
            ItemKind::UnknownOutcome => { "Nobody knows whether " code { (name) } " happened, and guessing is not allowed." },
            ItemKind::RetriableExhausted => { code { (name) } " keeps failing. The saga is past its pivot and only goes forward; it is still retried." },
            ItemKind::ContractBroken => { "The participant answered " code { (name) } " with something the contract does not allow. It is not repeated blindly. " (sure) },
            _ => { code { (name) } " needs a person. " (sure) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A form that offered what it could not say would do something else: the last of its names stood for all that it
    /// did not know.
    #[test]
    fn all_but_what_takes_a_value_is_plain_and_does_what_it_is_called() {
        let mut takes_a_value = Vec::new();
        for press in &ALL {
            let Some(operation) = press.plain("s".to_owned()) else {
                takes_a_value.push(press.name);
                continue;
            };
            assert_eq!(operation.step(), press.on_step.then_some("s"), "{}", press.name);
            let name = if press.name == "take_up" { "retry" } else { press.name };
            assert_eq!(operation.name(), name);
        }
        assert_eq!(takes_a_value, ["resolve_done", "retry_with_input"]);
    }
}
