//! What a session may read where: pure decisions. Samples, floors and time go in, the next step comes out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Instant;
use mainstay_store::replicated::{Judgment, Mark, Observed, Position, Role};

use super::leader::{Leader, comes_after, forked};
use super::token::rise;

/// Most remembered positions of the primary: at the usual poll of 250 ms they reach back a minute, which is longer
/// than any staleness that is worth asking for.
const MAX_PAST: usize = 256;

/// Whether a node may answer for a position. Never a bool.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each of the four")]
pub enum Verdict {
    /// The history is compatible, the position not applied yet.
    Behind {
        /// How much is missing, in the store's own unit; `None` while the node does not follow that history.
        by: Option<u64>,
    },
    /// Another system, or a kind of position that cannot be compared.
    Foreign,
    /// The position is no ancestor of the history served here: it is not provably present any more.
    Lost {
        /// Where the history that contained it was left, if that is known.
        since: Option<Position>,
    },
    /// The position is in the history served here, and applied.
    Satisfied,
}

impl Verdict {
    fn rank(&self) -> u8 {
        match self {
            Self::Satisfied => 0,
            Self::Behind { .. } => 1,
            Self::Lost { .. } => 2,
            Self::Foreign => 3,
        }
    }
}

/// Judges whether a node contains `wanted`, by the rule of its store
/// ([`Observed::judge`](mainstay_store::replicated::Observed::judge)), and says how much is missing or where it was lost.
///
/// ```
/// use mainstay_consistency::session::{Verdict, verdict};
/// use mainstay_store::replicated::{Mark, Observed, Position, TimelineSwitch};
///
/// let mark = |timeline: &str, n| Mark { system: "db".into(), timeline: timeline.into(), position: Position::Lsn(n) };
/// let switch = TimelineSwitch { timeline: "1".into(), position: Position::Lsn(10), next: "2".into() };
/// let node = Observed::new(mark("2", 15), vec![switch]);
/// assert_eq!(verdict(&mark("1", 12), &node), Verdict::Lost { since: Some(Position::Lsn(10)) });
/// assert_eq!(verdict(&mark("2", 18), &node), Verdict::Behind { by: Some(3) });
/// assert_eq!(verdict(&mark("3", 12), &node), Verdict::Behind { by: None });
/// ```
#[must_use]
pub fn verdict(wanted: &Mark, node: &Observed) -> Verdict {
    match node.judge(wanted) {
        Judgment::Satisfied => Verdict::Satisfied,
        Judgment::Behind => Verdict::Behind { by: missing(wanted, node) },
        Judgment::Lost => Verdict::Lost { since: cut(wanted, node) },
        Judgment::Foreign => Verdict::Foreign,
    }
}

/// How much is missing on a node that is on its way there.
fn missing(wanted: &Mark, node: &Observed) -> Option<u64> {
    let follows = wanted.timeline == node.mark.timeline
        || node.history.iter().any(|switch| switch.timeline == wanted.timeline);
    if !follows || matches!(wanted.position, Position::LsnUnsynced { .. }) {
        return None;
    }
    node.mark.position.distance(&wanted.position)
}

/// The first switch that left `wanted` behind.
fn cut(wanted: &Mark, node: &Observed) -> Option<Position> {
    let later = node.history.iter().skip_while(|s| s.timeline != wanted.timeline);
    later.map(|s| &s.position).find(|at| at.keeps(&wanted.position) == Some(false)).cloned()
}

/// Whether the node's own past says that `wanted` was left behind.
pub(crate) fn cut_off(wanted: &Mark, node: &Observed) -> bool {
    cut(wanted, node).is_some()
}

/// Whether the node, although primary, cannot tell about `wanted`: it is of an earlier history, and the past could not
/// be read.
pub(crate) fn unprovable(wanted: &Mark, node: &Observed) -> bool {
    let number = |timeline: &str| timeline.parse::<u64>().ok();
    let earlier = number(&wanted.timeline).zip(number(&node.mark.timeline)).is_some_and(|(w, here)| w < here);
    earlier && node.history.is_empty() && node.judge(wanted) == Judgment::Behind
}

/// The worst verdict over all `floors`; of two that lag, the larger gap.
pub(crate) fn worst(floors: &[&[Mark]], node: &Observed) -> Verdict {
    let mut worst = Verdict::Satisfied;
    for floor in floors.iter().flat_map(|f| f.iter()) {
        // The usual answer, without the others' reasons.
        if node.judge(floor) == Judgment::Satisfied {
            continue;
        }
        let next = verdict(floor, node);
        let further = matches!((&next, &worst), (Verdict::Behind { by: a }, Verdict::Behind { by: b })
            if a.is_none() || b.is_some() && a > b);
        if next.rank() > worst.rank() || further {
            worst = next;
        }
    }
    worst
}

/// The same on a node that was asked after the floors were known and says it is the primary: it has all that its own
/// history ever had, so what lies past its end was lost in a crash.
pub(crate) fn worst_on_primary(floors: &[&[Mark]], node: &Observed) -> Verdict {
    match worst(floors, node) {
        Verdict::Behind { by: Some(_) } => Verdict::Lost { since: Some(node.mark.position.clone()) },
        other => other,
    }
}

/// What a node said, and when. It is knowledge about one incarnation of one server.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) observed: Observed,
    /// When it was asked.
    pub(crate) asked: Instant,
    /// The place of the question among all questions and reads of the router: whatever a read with a smaller one saw
    /// on the node is in it. Instants would not do, because two may be equal.
    pub(crate) order: u64,
}

impl Sample {
    fn is_fresh(&self, now: Instant, trust: Duration) -> bool {
        now.saturating_duration_since(self.asked) <= trust
    }
}

#[derive(Clone, Debug, Default)]
struct Slot {
    sample: Option<Arc<Sample>>,
    /// Whether it is a node of our system and of the primary's history.
    eligible: bool,
    /// Whether it is on a history of the same name as the primary's that began elsewhere.
    forked: bool,
}

/// The newest sample of every node, and the primary.
#[derive(Clone, Debug)]
pub(crate) struct View {
    slots: Vec<Slot>,
    leader: Option<Leader>,
    /// When the primary was asked, and what it had then; newest last. Of one primary and one history: what another one had
    /// at a time when it was left already says nothing about that time.
    past: VecDeque<(Instant, Mark)>,
}

/// What changed with a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) primary_changed: bool,
    pub(crate) forked: bool,
}

impl View {
    pub(crate) fn new(nodes: usize) -> Self {
        Self { slots: vec![Slot::default(); nodes], leader: None, past: VecDeque::new() }
    }

    pub(crate) fn nodes(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn primary(&self) -> Option<usize> {
        self.leader.as_ref().map(|leader| leader.node)
    }

    /// The last that is known of the primary, also while it cannot be asked.
    pub(crate) fn leader(&self) -> Option<&Arc<Sample>> {
        self.leader.as_ref().map(|leader| &leader.sample)
    }

    /// Whether `observed` is the word of the primary, and no node follows a later history than it knows of.
    pub(crate) fn leads(&self, node: usize, observed: &Observed) -> bool {
        let left = |slot: &Slot| slot.sample.as_ref().is_some_and(|s| comes_after(&s.observed, observed));
        self.leader.as_ref().is_some_and(|leader| leader.is(node, observed)) && !self.slots.iter().any(left)
    }

    pub(crate) fn sample(&self, node: usize) -> Option<&Arc<Sample>> {
        self.slots[node].sample.as_ref()
    }

    pub(crate) fn eligible(&self, node: usize) -> bool {
        self.slots[node].eligible
    }

    pub(crate) fn forked(&self, node: usize) -> bool {
        self.slots[node].forked
    }

    /// The sample of `node` while it is younger than `trust`.
    pub(crate) fn fresh(&self, node: usize, now: Instant, trust: Duration) -> Option<&Arc<Sample>> {
        self.sample(node).filter(|s| s.is_fresh(now, trust))
    }

    /// Nothing is read from `node` until it answers again. Whose history counts does not depend on that.
    pub(crate) fn forget(&mut self, node: usize, now: Instant) {
        self.slots[node] = Slot::default();
        if let Some(leader) = self.leader.as_mut().filter(|leader| leader.node == node) {
            leader.miss(now);
        }
    }

    /// Takes in what `node` said. A sample that was asked for before the one held is not news.
    pub(crate) fn note(&mut self, node: usize, sample: Sample, trust: Duration) -> Noted {
        let leads = self.leader.as_mut().filter(|leader| leader.node == node);
        let known = [self.slots[node].sample.as_ref(), leads.as_ref().map(|leader| &leader.sample)];
        if known.into_iter().flatten().any(|held| held.order > sample.order) {
            return Noted::default();
        }
        let sample = Arc::new(sample);
        if let Some(leader) = leads {
            leader.hear(&sample);
        }
        let was = (self.primary(), self.slots[node].forked);
        self.slots[node].sample = Some(Arc::clone(&sample));
        self.elect(trust);
        for i in 0..self.slots.len() {
            self.mark_slot(i);
        }
        if self.primary() != was.0 {
            self.past.clear();
        }
        if self.leader.as_ref().is_some_and(|leader| leader.is(node, &sample.observed)) {
            self.remember(&sample);
        }
        Noted { primary_changed: self.primary() != was.0, forked: self.slots[node].forked && !was.1 }
    }

    /// Of the nodes that say they are primary the one that the others, and the last that is known of who was, yield to.
    fn elect(&mut self, trust: Duration) {
        for (i, slot) in self.slots.iter().enumerate() {
            let Some(sample) = slot.sample.as_ref().filter(|s| s.observed.role == Role::Primary) else {
                continue;
            };
            if self.leader.as_ref().is_none_or(|held| held.node != i && held.yields_to(sample, trust)) {
                self.leader = Some(Leader::new(i, Arc::clone(sample)));
            }
        }
    }

    fn mark_slot(&mut self, i: usize) {
        let slot = &mut self.slots[i];
        let Some(sample) = &slot.sample else { return };
        let Some(leader) = &self.leader else {
            slot.eligible = true;
            return;
        };
        let (ours, theirs) = (&leader.sample.observed, &sample.observed);
        slot.forked = forked(ours, theirs);
        let compatible = match verdict(&theirs.mark, ours) {
            Verdict::Satisfied => true,
            // Newer than the leader's sample, on its own history.
            Verdict::Behind { by } => by.is_some(),
            Verdict::Lost { .. } | Verdict::Foreign => false,
        };
        // Another one that takes writes goes its own way from wherever it stands.
        let astray = theirs.role == Role::Primary && leader.node != i;
        slot.eligible = compatible && !slot.forked && !astray;
    }

    fn remember(&mut self, sample: &Sample) {
        let mark = &sample.observed.mark;
        if self.past.back().is_some_and(|(_, last)| last.timeline != mark.timeline) {
            self.past.clear();
        }
        if self.past.len() == MAX_PAST {
            self.past.pop_front();
        }
        self.past.push_back((sample.asked, mark.clone()));
    }

    /// Whether `node` has all that the primary had at some instant at most `d` ago.
    fn within(&self, node: &Observed, now: Instant, d: Duration) -> bool {
        let oldest = now.saturating_sub(d);
        let recent = self.past.iter().rev().take_while(|(at, _)| *at >= oldest);
        recent.map(|(_, mark)| mark).any(|mark| verdict(mark, node) == Verdict::Satisfied)
    }
}

/// What a read asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule<'a> {
    Any,
    Bounded(Duration),
    Floors(&'a [&'a [Mark]]),
}

/// Why a read goes to the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Why {
    /// It was asked for.
    Asked,
    /// No replica got there in time.
    Behind,
    /// No replica has a sample that may be trusted.
    NoReplica,
    /// An earlier write has no known position: only the primary can have it.
    Owed,
    /// The token could not be read.
    TokenRefused,
    /// The newest sample of the primary does not know the history of what the session knows: it is asked afresh.
    Unknown,
}

/// Where a read goes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Foreign,
    Lost { since: Position },
    Primary(Why),
    Read(usize),
    Wait(usize),
}

/// Decides where to read. `stay` is a node that need not be compared with what the session saw there; when it is given,
/// only that node or the primary may answer. `turn` is the node to begin with: it spreads sessions over equally good ones.
pub(crate) fn decide(
    rule: Rule<'_>,
    view: &View,
    now: Instant,
    trust: Duration,
    turn: usize,
    stay: Option<usize>,
) -> Step {
    let floors: &[&[Mark]] = if let Rule::Floors(floors) = rule { floors } else { &[] };
    if let Some(sample) = view.leader().filter(|s| s.is_fresh(now, trust)) {
        match worst(floors, &sample.observed) {
            Verdict::Lost { since: Some(since) } => return Step::Lost { since },
            Verdict::Foreign => return Step::Foreign,
            // A history that the sample does not know may be younger than it: the primary is asked.
            Verdict::Lost { since: None } => return Step::Primary(Why::Unknown),
            Verdict::Behind { .. } | Verdict::Satisfied => {}
        }
    }
    let (mut nearest, mut any): (Option<(u64, usize)>, bool) = (None, false);
    for i in (turn..view.nodes()).chain(0..turn) {
        let usable = view.eligible(i) && view.primary() != Some(i) && stay.is_none_or(|s| s == i);
        let Some(sample) = view.fresh(i, now, trust).filter(|_| usable) else { continue };
        any = true;
        let good = match rule {
            Rule::Any => true,
            Rule::Bounded(d) => view.within(&sample.observed, now, d),
            Rule::Floors(floors) => match worst(floors, &sample.observed) {
                Verdict::Satisfied => true,
                Verdict::Behind { by: Some(by) } => {
                    if nearest.is_none_or(|(least, _)| by < least) {
                        nearest = Some((by, i));
                    }
                    false
                }
                _ => false,
            },
        };
        if good {
            return Step::Read(i);
        }
    }
    match nearest {
        Some((_, i)) => Step::Wait(i),
        None => Step::Primary(if any { Why::Behind } else { Why::NoReplica }),
    }
}

/// Whether `observed` has what `rule` asks for.
pub(crate) fn has(rule: Rule<'_>, view: &View, observed: &Observed, now: Instant) -> bool {
    match rule {
        Rule::Any => true,
        Rule::Bounded(d) => view.within(observed, now, d),
        Rule::Floors(floors) => worst(floors, observed) == Verdict::Satisfied,
    }
}

/// What a session read or wrote without knowing its position yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) node: usize,
    pub(crate) incarnation: u64,
    /// The history that the node was on at the end of the read, as far as it was known then.
    pub(crate) timeline: String,
    /// The place of the read's end among all questions and reads of the router.
    pub(crate) order: u64,
    /// Whether it was written there, and perhaps nowhere else yet.
    pub(crate) wrote: bool,
}

impl Seen {
    /// Whether `observed`, asked in the place `order`, has all that was seen: the same life of the same node later on; or,
    /// where that cannot say it any more, later the primary of the same history, which has what any of its replicas ever
    /// showed. As long as the node can be asked, only itself knows which history that was at the end of the read.
    pub(crate) fn is_in(&self, view: &View, node: usize, observed: &Observed, order: u64) -> bool {
        let same_life = node == self.node && observed.incarnation == self.incarnation;
        // A crash takes from the one that wrote it what was not durable, and leaves the name of the history.
        let may_be_gone = self.wrote && node == self.node && observed.durable.is_some();
        let its_primary = || {
            let same_name = observed.mark.timeline == self.timeline && !may_be_gone;
            same_name && !self.can_be_asked(view) && view.leads(node, observed)
        };
        order > self.order && (same_life || its_primary())
    }

    /// Whether the life of the node in which it was seen goes on, by the newest sample.
    pub(crate) fn can_be_asked(&self, view: &View) -> bool {
        view.sample(self.node).is_some_and(|s| s.observed.incarnation == self.incarnation)
    }

    /// A position at or past what was seen, if some sample proves one.
    pub(crate) fn proven(&self, view: &View) -> Option<Mark> {
        let mut all = (0..view.nodes()).filter_map(|i| Some((i, view.sample(i)?)));
        let found = all.find(|(i, s)| self.is_in(view, *i, &s.observed, s.order));
        found.map(|(_, s)| s.observed.mark.clone())
    }
}

/// Whether the histories of a store are numbered: then a node knows all that came before its own.
fn is_numbered(mark: &Mark) -> bool {
    mark.timeline.parse::<u64>().is_ok()
}

/// Whether `floors` have something that a sample of `primary` may settle.
pub(crate) fn unsettled(floors: &[Mark], primary: &Observed) -> bool {
    let waits = |f: &Mark| matches!(f.position, Position::LsnUnsynced { .. });
    let alone = floors.len() == 1;
    floors.iter().any(|f| f.timeline != primary.mark.timeline && !(alone && is_numbered(f)) || waits(f))
}

/// Drops from `floors` what another one covers under the history of `primary`, so that a session through many
/// failovers does not carry a position of each; and what its server has made durable since is no commit any more that
/// a crash can take back.
///
/// Where histories have names, a server remembers few: a position is carried on to the present one. Where they are
/// numbered it stays what it is, because the next primary may know nothing of the present one and have it all the same.
pub(crate) fn settle(floors: &mut Vec<Mark>, primary: &Observed) {
    let mut settled: Vec<Mark> = Vec::new();
    for mut floor in std::mem::take(floors) {
        if let Position::LsnUnsynced { lsn, .. } = floor.position {
            let kept = Position::Lsn(lsn);
            let durable = primary.durable.as_ref().is_some_and(|at| at.covers(&kept) == Some(true));
            if durable
                && floor.timeline == primary.mark.timeline
                && primary.judge(&floor) == Judgment::Satisfied
            {
                floor.position = kept;
            }
        } else if floor.timeline != primary.mark.timeline
            && !is_numbered(&floor)
            && primary.judge(&floor) == Judgment::Satisfied
        {
            // Kept by every switch since, so it is a position of the present history, too.
            let left = primary.history.iter().find(|s| s.timeline == floor.timeline).map(|s| &s.position);
            if let Some(left) = left.filter(|left| left.covers(&floor.position) == Some(false)) {
                // It may have seen more, but no more than there was.
                floor.position = left.clone();
            }
            floor.timeline.clone_from(&primary.mark.timeline);
        }
        rise(&mut settled, &floor);
    }
    let all = settled.clone();
    settled.retain(|floor| !all.iter().any(|other| has_all(other, floor, primary)));
    *floors = settled;
}

/// Whether all that has `later` has `floor`, a position of a history before it, by what `primary` knows of the past.
fn has_all(later: &Mark, floor: &Mark, primary: &Observed) -> bool {
    let place = |mark: &Mark| primary.history.iter().position(|s| s.timeline == mark.timeline);
    let Some(before) = place(floor) else { return false };
    let after = match place(later) {
        Some(place) => place > before,
        None => later.timeline == primary.mark.timeline,
    };
    // Where its history was left, all is there that anybody can have seen of it.
    let far = [&floor.position, &primary.history[before].position];
    after
        && later.system == floor.system
        && far.iter().any(|at| later.position.covers(at) == Some(true))
        && !matches!(floor.position, Position::LsnUnsynced { .. })
        && primary.judge(floor) == Judgment::Satisfied
}

#[cfg(test)]
mod tests {
    use mainstay_clock::{Clock as _, SystemClock};

    use super::*;

    fn mark(timeline: &str, n: u64) -> Mark {
        Mark { system: "7231980518912837461".into(), timeline: timeline.into(), position: Position::Lsn(n) }
    }

    /// Sheet section 7: at most 50 ns and no allocation. The figure is printed, for it needs an optimized build; the
    /// allocations are counted in every build.
    #[test]
    fn a_decision_allocates_nothing() {
        let switch = mainstay_store::replicated::TimelineSwitch {
            timeline: "1".into(),
            position: Position::Lsn(500),
            next: "2".into(),
        };
        let mut view = View::new(3);
        for (i, at) in [900_u64, 700, 800].into_iter().enumerate() {
            let role = if i == 0 { Role::Primary } else { Role::Replica };
            let observed = Observed::new(mark("2", at), vec![switch.clone()]).with_role(role);
            let sample = Sample { observed, asked: Instant::ZERO, order: i as u64 };
            view.note(i, sample, Duration::from_secs(1));
        }
        let (writes, reads) = ([mark("2", 790)], [mark("2", 600)]);
        let floors: [&[Mark]; 2] = [&writes, &reads];
        let once = |turn| {
            let rule = Rule::Floors(std::hint::black_box(&floors));
            decide(rule, std::hint::black_box(&view), Instant::ZERO, Duration::from_secs(1), turn, None)
        };
        assert_eq!(once(0), Step::Read(2));
        let counted = allocation_counter::measure(|| {
            for turn in 0..3 {
                std::hint::black_box(once(turn));
            }
        });
        assert_eq!(counted.count_total, 0);
        let (clock, rounds) = (SystemClock::new(), 200_000_u32);
        let start = clock.now();
        (0..rounds).for_each(|i| drop(std::hint::black_box(once(i as usize % 3))));
        println!("a decision takes {:?}", clock.now().saturating_duration_since(start) / rounds);
    }
}
