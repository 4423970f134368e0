//! Who is taken for the primary, and who may take its place: pure decisions by the last that is known of it.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Instant;
use mainstay_store::replicated::{Observed, Position, Role, TimelineSwitch};

use super::state::Sample;

/// The primary, with the last that it said of itself. A failed call takes neither away: it may have failed because of who
/// made it, and without a history to compare with a primary of long ago could be taken for the present one.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    pub(crate) node: usize,
    pub(crate) sample: Arc<Sample>,
    standing: Standing,
}

/// What the node of the leader last said about its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Claims,
    Silent { since: Instant },
    SteppedDown,
}

impl Leader {
    pub(crate) fn new(node: usize, sample: Arc<Sample>) -> Self {
        Self { node, sample, standing: Standing::Claims }
    }

    /// Its node spoke: its own word counts, unless it is of no history that has to do with what is known. So speaks a
    /// server that is being filled anew, and what it was primary of is still the best that is known.
    pub(crate) fn hear(&mut self, sample: &Arc<Sample>) {
        let (new, held) = (&sample.observed, &self.sample.observed);
        let claims = new.role == Role::Primary;
        let same_name = new.mark.system == held.mark.system && new.mark.timeline == held.mark.timeline;
        let related = same_name || outranks(new, held) || comes_after(held, new);
        self.standing = if claims { Standing::Claims } else { Standing::SteppedDown };
        if claims || related {
            self.sample = Arc::clone(sample);
        }
    }

    /// Whether `observed` is a word of this primary, of the history that it is known for.
    pub(crate) fn is(&self, node: usize, observed: &Observed) -> bool {
        let known = &self.sample.observed.mark;
        let same_name = observed.mark.system == known.system && observed.mark.timeline == known.timeline;
        self.node == node && observed.role == Role::Primary && same_name
    }

    /// Its node could not be asked.
    pub(crate) fn miss(&mut self, now: Instant) {
        if self.standing == Standing::Claims {
            self.standing = Standing::Silent { since: now };
        }
    }

    /// Whether `claimer`, which says that it is the primary, takes the place. The later history does, whatever the leader
    /// says. One that is proven to be the earlier, to have begun elsewhere, or of another system, never does, however long
    /// the leader is silent. Where nothing is proven, the leader has to step down, or be silent for as long as its word is
    /// trusted; a writer that its log does not know yet was promoted, and need not wait so long.
    pub(crate) fn yields_to(&self, claimer: &Sample, trust: Duration) -> bool {
        let (new, held) = (&claimer.observed, &self.sample.observed);
        if outranks(new, held) {
            return true;
        }
        let gone = match self.standing {
            Standing::Claims => false,
            Standing::Silent { since } => {
                let silence = claimer.asked.saturating_duration_since(since);
                wrote(new, held) == Some(false) || silence >= trust
            }
            Standing::SteppedDown => true,
        };
        let same_system = new.mark.system == held.mark.system;
        gone && same_system && !was_left(new, held) && !forked(new, held)
    }
}

/// Whether it is proven that the history of `a` came after that of `b`. The numbers of two systems say nothing.
pub(crate) fn comes_after(a: &Observed, b: &Observed) -> bool {
    let numbers = || a.mark.timeline.parse::<u64>().ok().zip(b.mark.timeline.parse::<u64>().ok());
    a.mark.system == b.mark.system
        && (a.history.iter().any(|s| s.timeline == b.mark.timeline) || numbers().is_some_and(|(a, b)| a > b))
}

/// Whether the history of `a` came after that of `b`, by all that can be told.
fn outranks(a: &Observed, b: &Observed) -> bool {
    let knows_more = a.mark.system == b.mark.system && a.changes > b.changes;
    comes_after(a, b) || knows_more && !comes_after(b, a)
}

/// Whether `old` is proven to be of a history that `new` went on from. Where only writers have names, that is one that has
/// written in it, and does not know who came next.
fn was_left(old: &Observed, new: &Observed) -> bool {
    comes_after(new, old) || wrote(old, new) == Some(true) && new.changes > old.changes
}

/// Whether `node` has written in the log of `other`, where positions name writers.
fn wrote(node: &Observed, other: &Observed) -> Option<bool> {
    let writer = node.writer.as_deref()?;
    match &other.mark.position {
        Position::Gtid(set) => Some(set.keys().any(|key| key.split(':').next() == Some(writer))),
        Position::MariaGtid(set) => Some(set.keys().any(|(_, server)| server.to_string() == writer)),
        _ => None,
    }
}

/// Whether two histories have one name and began at different places.
pub(crate) fn forked(a: &Observed, b: &Observed) -> bool {
    let same_name = a.mark.system == b.mark.system && a.mark.timeline == b.mark.timeline;
    same_name && differ(&a.history, &b.history)
}

fn differ(a: &[TimelineSwitch], b: &[TimelineSwitch]) -> bool {
    a.last().zip(b.last()).is_some_and(|(a, b)| a != b)
}
