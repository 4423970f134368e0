//! CK-6: replicas that saw the same have the same.

use std::collections::{BTreeMap, BTreeSet};

use super::Checker;
use crate::history::{Event, Text};
use crate::verdict::{Evidence, Verdict};

/// Convergence: once quiet, replicas with an equal set of delivered operations have equal digests, within
/// a bounded number of rounds; and dots (effects of a resource `dot`, named by their `op_id`) are unique
/// over all incarnations of all actors.
#[derive(Debug)]
pub struct Convergence {
    most_rounds: u64,
    by_delivered: BTreeMap<Text, (Text, Event)>,
    dots: BTreeSet<Text>,
    judged: u64,
    longest: u64,
    failed: Option<Verdict>,
}

/// A checker of [`Convergence`] within `most_rounds`.
#[must_use]
pub fn converges(most_rounds: u64) -> Box<dyn Checker> {
    Box::new(Convergence {
        most_rounds,
        by_delivered: BTreeMap::new(),
        dots: BTreeSet::new(),
        judged: 0,
        longest: 0,
        failed: None,
    })
}

impl Checker for Convergence {
    fn feed(&mut self, event: &Event) {
        let mut fail = |text: String, events| {
            self.failed.get_or_insert_with(|| Verdict::fail(text, events));
        };
        match event {
            Event::Digest { replica, delivered, digest, rounds } => {
                self.judged += 1;
                self.longest = self.longest.max(*rounds);
                if *rounds > self.most_rounds {
                    let text = format!("`{replica}` took {rounds} rounds; at most {}", self.most_rounds);
                    fail(text, vec![event.clone()]);
                }
                match self.by_delivered.get(delivered) {
                    Some((other, first)) if other != digest => {
                        let text =
                            format!("`{replica}` saw the same as another replica but has another state");
                        fail(text, vec![first.clone(), event.clone()]);
                    }
                    Some(_) => {}
                    None => {
                        self.by_delivered.insert(delivered.clone(), (digest.clone(), event.clone()));
                    }
                }
            }
            Event::Effect(effect)
                if &*effect.resource == "dot" && !self.dots.insert(effect.op_id.clone()) =>
            {
                fail(format!("the dot `{}` was used twice", effect.op_id), vec![event.clone()]);
            }
            _ => {}
        }
    }

    fn verdict(self: Box<Self>) -> Verdict {
        if let Some(failed) = self.failed {
            return failed;
        }
        // One replica alone has nothing to agree with.
        let judged = if self.judged < 2 { 0 } else { self.judged };
        let mut evidence = Evidence::of(judged).with("rounds", self.longest as f64);
        evidence = evidence.with("delivered sets", self.by_delivered.len() as f64);
        Verdict::pass(evidence)
    }
}
