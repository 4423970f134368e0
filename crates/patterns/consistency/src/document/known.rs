//! What of a set of edits is taken in, what waits, and what is refused.
//!
//! This is a function of the set, whatever came first:
//!
//! 1. *Who says it.* A thing that several edits claim is that of the one whose dot is smallest. An edit that joins several is
//!    cut to what is its own, for two that joined the same edits at once say the same thing twice. An edit of one call that
//!    claims what is another's does not count. If others say all of it, they joined it, and the news of that is on its way;
//!    if they say a part, it is refused.
//! 2. *When it is due.* A step is an edit of one call, or a single run or removal of one that joins several. It waits until
//!    everything that it names is there, and everything that its author made before. Only what is taken in counts, and
//!    that is never undone, so every order of arrival ends with the same steps taken: waiting is for more, never for less.
//! 3. *Whether it fits.* [`Order::put`] answers from the neighbors alone, which were there when the step was due; what is
//!    refused stays so.
//!
//! Only the first rule looks at edits that come later: when one takes away what a larger dot had claimed, or when edits went
//! because they were joined, [`Known::learn`] says so and everything is read again, in the order of the dots. Then nothing
//! is taken away, for each comes after all that are before it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::document::Edit;
use crate::document::changes::{Changes, Id, Removal, Run};
use crate::document::order::Order;
use crate::document::read::read;
use crate::version::Dot;

/// A part of an edit that is taken in as a whole.
#[derive(Debug)]
struct Step {
    dot: Dot,
    runs: Vec<Run>,
    removed: Vec<Removal>,
    /// Of which authors how much has to be there.
    needs: Vec<Id>,
    /// How many of these are.
    met: usize,
}

impl Step {
    fn new(dot: Dot, runs: Vec<Run>, removed: Vec<Removal>) -> Self {
        let mut needs = Vec::new();
        let first = runs.first().map(|run| run.id);
        let end = runs.last().map_or(0, Run::end);
        // What it brings itself need not be there.
        let own = |id: Id| first.is_some_and(|first| first.author == id.author && first.clock <= id.clock);
        needs.extend(first);
        for run in &runs {
            let beside = run.left.iter().chain(&run.right).filter(|id| !own(**id));
            needs.extend(beside.map(|id| Id::new(id.author, id.clock + 1)));
        }
        let beside =
            removed.iter().filter(|range| range.to > end || !own(Id::new(range.author, range.to - 1)));
        needs.extend(beside.map(|range| Id::new(range.author, range.to)));
        needs.sort_unstable();
        needs.dedup();
        Self { dot, runs, removed, needs, met: 0 }
    }
}

#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) order: Order,
    /// Who claims what: from where, up to where, which edit.
    claims: BTreeMap<Id, (u32, Dot)>,
    ready: VecDeque<Step>,
    /// Steps by what they wait for: until an author has so much.
    waiting: BTreeMap<Id, Vec<Step>>,
    refused: BTreeSet<Dot>,
    /// Edits of one call that claim what is another's, and what they claim.
    doubtful: BTreeMap<Dot, Vec<(Id, u32)>>,
    /// What was taken in and the library has not seen.
    taken: Changes,
}

/// What an edit did to what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learned {
    /// It is judged, or waits.
    Yes,
    /// It takes away what others claimed: all have to be read again.
    Anew,
}

impl Known {
    /// Hears of an edit.
    pub(super) fn learn(&mut self, dot: Dot, edit: &Edit) -> Learned {
        let Ok(changes) = read(edit.as_bytes()) else {
            self.refused.insert(dot);
            return Learned::Yes;
        };
        let Some(others) = self.others(dot, &changes) else { return Learned::Anew };
        if edit.is_one() {
            if others.is_empty() {
                self.claim(dot, &changes.runs);
                self.ready.push_back(Step::new(dot, changes.runs, changes.removed));
            } else {
                self.doubtful.insert(dot, changes.runs.iter().map(|run| (run.id, run.end())).collect());
            }
            return Learned::Yes;
        }
        let runs = without(changes.runs, &others);
        self.claim(dot, &runs);
        self.ready.extend(runs.into_iter().map(|run| Step::new(dot, vec![run], Vec::new())));
        self.ready.extend(changes.removed.into_iter().map(|range| Step::new(dot, Vec::new(), vec![range])));
        Learned::Yes
    }

    /// What of `changes` smaller dots claim, in order; `None` when a larger one claims any of it.
    fn others(&self, dot: Dot, changes: &Changes) -> Option<Vec<(Id, u32)>> {
        let mut others = Vec::new();
        for run in &changes.runs {
            let first = self.claims.range(..=run.id).next_back();
            let inside =
                self.claims.range(run.id..Id::new(run.id.author, run.end())).skip_while(|e| *e.0 == run.id);
            for (id, (end, owner)) in first.into_iter().chain(inside) {
                if id.author == run.id.author && *end > run.id.clock {
                    if *owner > dot {
                        return None;
                    }
                    others.push((*id, *end));
                }
            }
        }
        Some(others)
    }

    fn claim(&mut self, dot: Dot, runs: &[Run]) {
        for run in runs {
            self.claims.insert(run.id, (run.end(), dot));
        }
    }

    /// Takes in what is due.
    pub(super) fn settle(&mut self) {
        while let Some(mut step) = self.ready.pop_front() {
            while step.needs.get(step.met).is_some_and(|need| self.order.end(need.author) >= need.clock) {
                step.met += 1;
            }
            if let Some(need) = step.needs.get(step.met) {
                self.waiting.entry(*need).or_default().push(step);
            } else if self.take(&step) {
                if let Some(last) = step.runs.last() {
                    self.wake(last.id.author, last.end());
                }
                self.taken.runs.extend(step.runs);
                self.taken.removed.extend(step.removed);
            } else {
                self.refused.insert(step.dot);
            }
        }
    }

    /// A step is taken in as a whole, or not.
    fn take(&mut self, step: &Step) -> bool {
        let before = step.runs.first().map(|run| (run.id.author, self.order.end(run.id.author)));
        let fits = step.runs.iter().all(|run| self.order.put(run))
            && step.removed.iter().all(|range| {
                self.order.end(range.author) >= range.to
                    && !self.order.splits_a_letter(Id::new(range.author, range.from))
                    && !self.order.splits_a_letter(Id::new(range.author, range.to))
            });
        if let (false, Some((author, end))) = (fits, before) {
            self.order.take_back(author, end);
        }
        fits
    }

    fn wake(&mut self, author: u64, end: u32) {
        let due: Vec<Id> =
            self.waiting.range(Id::new(author, 0)..=Id::new(author, end)).map(|e| *e.0).collect();
        for id in due {
            self.ready.extend(self.waiting.remove(&id).unwrap_or_default());
        }
    }

    /// What the library has to be shown.
    pub(super) fn taken(&mut self) -> Changes {
        std::mem::take(&mut self.taken).settle()
    }

    /// What does not fit, and what claims a part of what is another's.
    pub(super) fn refused(&self) -> BTreeSet<Dot> {
        let doubtful =
            self.doubtful.iter().filter(|(_, claims)| !claims.iter().all(|claim| self.is_said(claim)));
        self.refused.iter().chain(doubtful.map(|e| e.0)).copied().collect()
    }

    /// Whether nothing of an edit of one call is shown, and nothing ever will.
    pub(super) fn is_out(&self, dot: Dot) -> bool {
        self.refused.contains(&dot) || self.doubtful.contains_key(&dot)
    }

    /// Whether edits that count claim all of this.
    fn is_said(&self, (id, end): &(Id, u32)) -> bool {
        let mut from = *id;
        while from.clock < *end {
            match self.claims.range(..=from).next_back() {
                Some((start, (to, _))) if start.author == id.author && *to > from.clock => from.clock = *to,
                _ => return false,
            }
        }
        true
    }

    /// Edits of which something is not there yet.
    pub(super) fn waiting(&self) -> BTreeSet<Dot> {
        self.waiting.values().flatten().map(|step| step.dot).collect()
    }

    /// Where the claims on things of `author` end.
    pub(super) fn claimed(&self, author: u64) -> u32 {
        let last = self.claims.range(Id::new(author, 0)..=Id::new(author, u32::MAX)).next_back();
        last.map_or(0, |claim| claim.1.0)
    }

    /// What `edit` says and no other edit does.
    pub(super) fn own(&self, dot: Dot, edit: &Edit) -> Changes {
        let Ok(changes) = read(edit.as_bytes()) else { return Changes::default() };
        let mut own = Changes { runs: Vec::new(), removed: changes.removed };
        for run in changes.runs {
            let end = run.end();
            for (id, (to, _)) in
                self.claims.range(run.id..Id::new(run.id.author, end)).filter(|e| e.1.1 == dot)
            {
                own.runs.push(run.clone().part(id.clock, (*to).min(end)));
            }
        }
        own
    }
}

/// What is left of `runs` beside `others`, both in order.
fn without(runs: Vec<Run>, others: &[(Id, u32)]) -> Vec<Run> {
    let mut left = Vec::new();
    for run in runs {
        let (mut from, end) = (run.id.clock, run.end());
        let first = others.partition_point(|(id, to)| (id.author, *to) <= (run.id.author, from));
        for (id, to) in others[first..].iter().take_while(|(id, _)| *id < Id::new(run.id.author, end)) {
            if id.clock > from {
                left.push(run.clone().part(from, id.clock));
            }
            from = from.max(*to);
        }
        if from < end {
            left.push(run.part(from, end));
        }
    }
    left
}
