//! CK-9: does it go on after everything is healed, and how soon?

use super::Checker;
use crate::history::{Event, Op, Text};
use crate::verdict::{Evidence, Verdict};

/// After `heal`, successful operations `f` have gaps of at most `bound_ns`, up to the end of the history or
/// to an operation `stop`, whatever comes first.
///
/// Evidence: the largest gap, and how long after the heal a larger epoch than any before it was first
/// granted. A history without `heal` is unknown: liveness is only promised then.
#[derive(Debug)]
pub struct Liveness {
    f: Text,
    bound_ns: u64,
    healed: Option<u64>,
    last: u64,
    stopped: bool,
    ops: Vec<Op>,
}

/// A checker of [`Liveness`].
#[must_use]
pub fn recovers_within(f: &str, bound: std::time::Duration) -> Box<dyn Checker> {
    Box::new(Liveness {
        f: f.into(),
        bound_ns: u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX),
        healed: None,
        last: 0,
        stopped: false,
        ops: Vec::new(),
    })
}

impl Checker for Liveness {
    fn feed(&mut self, event: &Event) {
        if self.stopped {
            return;
        }
        match event {
            Event::Op(op) if &*op.f == "stop" => {
                self.stopped = true;
                self.last = self.last.max(op.invoke_ns);
            }
            Event::Heal { at_ns } => self.healed = Some(*at_ns),
            Event::Op(op) => {
                self.last = self.last.max(op.return_ns.unwrap_or(op.invoke_ns));
                if op.f == self.f && op.is_ok() {
                    self.ops.push(op.clone());
                }
            }
            Event::Effect(effect) => self.last = self.last.max(effect.at_ns),
            _ => {}
        }
    }

    fn verdict(self: Box<Self>) -> Verdict {
        let Some(healed) = self.healed else {
            return Verdict::Unknown("nothing was healed: liveness is promised after that".to_owned());
        };
        let mut ends: Vec<u64> = self.ops.iter().map(Op::end).filter(|end| *end >= healed).collect();
        ends.sort_unstable();
        let judged = ends.len() as u64;
        ends.push(self.last.max(healed));
        let mut since = healed;
        let mut largest = 0;
        for end in ends {
            largest = largest.max(end.saturating_sub(since));
            since = end;
        }
        let old = self.ops.iter().filter(|o| o.end() < healed).filter_map(|o| o.epoch).max();
        let new = self.ops.iter().filter(|o| o.end() >= healed && o.epoch > old).map(Op::end).min();
        if largest > self.bound_ns {
            let text = format!("`{}` did not succeed for {largest} ns after the heal", self.f);
            return Verdict::fail(text, vec![Event::Heal { at_ns: healed }]);
        }
        if judged == 0 {
            let span = self.last.saturating_sub(healed);
            let text = format!("no `{}` succeeded in the {span} ns watched after the heal", self.f);
            return Verdict::Unknown(text);
        }
        let mut evidence = Evidence::of(judged).with("largest gap ms", largest as f64 / 1e6);
        if let Some(new) = new {
            evidence = evidence.with("new epoch after ms", (new - healed) as f64 / 1e6);
        }
        Verdict::pass(evidence)
    }
}
