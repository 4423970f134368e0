//! CK-8: only legal transitions, only terminal ends.

use std::collections::{BTreeMap, BTreeSet};

use super::Checker;
use crate::history::{Datum, Event, Op, Text};
use crate::verdict::{Evidence, Verdict};

/// An automaton per key: operations `state` report the new state as their result.
#[derive(Debug, Default)]
pub struct Automaton {
    initial: Option<Text>,
    edges: BTreeSet<(Text, Text)>,
    ends: BTreeSet<Text>,
    logs: BTreeMap<Text, Vec<Op>>,
}

impl Automaton {
    /// An automaton that begins in `initial`, moves along `edges` and must end in one of `ends`; without
    /// `ends` it may stop anywhere.
    #[must_use]
    pub fn new(initial: &str, edges: &[(&str, &str)], ends: &[&str]) -> Self {
        Self {
            initial: Some(initial.into()),
            edges: edges.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect(),
            ends: ends.iter().map(|e| (*e).into()).collect(),
            logs: BTreeMap::new(),
        }
    }
}

/// A checker of an [`Automaton`].
#[must_use]
pub fn legal(automaton: Automaton) -> Box<dyn Checker> {
    Box::new(automaton)
}

impl Checker for Automaton {
    fn feed(&mut self, event: &Event) {
        if let Event::Op(op) = event
            && &*op.f == "state"
        {
            self.logs.entry(op.key.clone()).or_default().push(op.clone());
        }
    }

    fn verdict(mut self: Box<Self>) -> Verdict {
        let mut judged = 0;
        for (key, log) in &mut self.logs {
            log.sort_by_key(|op| op.invoke_ns);
            let mut now = self.initial.clone();
            for op in log {
                let Some(Datum::Text(next)) = &op.value else {
                    return Verdict::Unknown(format!("a state of `{key}` has no name"));
                };
                judged += 1;
                let edge = now.clone().map(|now| (now, next.clone()));
                if edge.as_ref().is_some_and(|edge| !self.edges.contains(edge)) {
                    let text = format!("`{key}` went from {:?} to `{next}`", now.unwrap_or_default());
                    return Verdict::fail(text, vec![Event::Op(op.clone())]);
                }
                now = Some(next.clone());
            }
            if let Some(last) = now.filter(|last| !self.ends.is_empty() && !self.ends.contains(last)) {
                return Verdict::fail(format!("`{key}` stopped in `{last}`, which is no end"), Vec::new());
            }
        }
        Verdict::pass(Evidence::of(judged))
    }
}
