//! What a session may read where: pure decisions. Samples, floors and time go in, the next step comes out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Instant;
use mainstay_store::replicated::{Judgment, Mark, Observed, Position, Role, judge};

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

/// Judges whether a node contains `wanted`, also where the contract's own
/// [`judge`](mainstay_store::replicated::judge) finds no common history.
///
/// - A history with a higher number than the node's: the node has not followed yet, or is an old primary: `Behind`.
/// - One with a lower number that is none of its ancestors: a fork that was left behind: `Lost`; without any known
///   ancestors nothing is proven: `Behind`.
/// - Names that are no numbers have no order: `Lost` on a primary, `Behind` on a replica, which may be the older one.
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
    match judge(wanted, node) {
        Judgment::Satisfied => Verdict::Satisfied,
        Judgment::Behind => Verdict::Behind { by: distance(&wanted.position, &node.mark.position) },
        Judgment::Lost => Verdict::Lost { since: cut(wanted, node) },
        Judgment::Foreign => unrelated(wanted, node),
    }
}

fn unrelated(wanted: &Mark, node: &Observed) -> Verdict {
    let same_kind = std::mem::discriminant(&wanted.position) == std::mem::discriminant(&node.mark.position);
    if wanted.system != node.mark.system || !same_kind {
        return Verdict::Foreign;
    }
    let lost = match (wanted.timeline.parse::<u64>(), node.mark.timeline.parse::<u64>()) {
        (Ok(wanted), Ok(here)) => wanted < here && !node.history.is_empty(),
        _ => node.role == Role::Primary,
    };
    if lost { Verdict::Lost { since: None } } else { Verdict::Behind { by: None } }
}

/// The first switch that left `wanted` behind.
fn cut(wanted: &Mark, node: &Observed) -> Option<Position> {
    let later = node.history.iter().skip_while(|s| s.timeline != wanted.timeline);
    later.map(|s| &s.position).find(|at| distance(&wanted.position, at).is_some_and(|d| d > 0)).cloned()
}

/// By how much `want` is past `have`.
fn distance(want: &Position, have: &Position) -> Option<u64> {
    match (want, have) {
        (Position::Counter(a), Position::Counter(b))
        | (Position::Lsn(a), Position::Lsn(b))
        | (Position::Offset(a), Position::Offset(b)) => Some(a.saturating_sub(*b)),
        (Position::Gtid(a), Position::Gtid(b)) => Some(
            a.iter()
                .map(|(server, end)| end.saturating_sub(b.get(server).copied().unwrap_or(0)))
                .fold(0, u64::saturating_add),
        ),
        _ => None,
    }
}

/// The worst verdict over all `floors`; of two that lag, the larger gap.
pub(crate) fn worst(floors: &[&[Mark]], node: &Observed) -> Verdict {
    let mut worst = Verdict::Satisfied;
    for floor in floors.iter().flat_map(|f| f.iter()) {
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

#[derive(Clone, Debug, Default)]
struct Slot {
    sample: Option<Arc<Sample>>,
    /// Whether it is a node of our system and of the primary's history.
    eligible: bool,
    /// Whether it is on a history of the same name as the primary's that began elsewhere.
    forked: bool,
}

/// The newest sample of every node.
#[derive(Clone, Debug)]
pub(crate) struct View {
    slots: Vec<Slot>,
    primary: Option<usize>,
    /// When the primary was asked, and what it had then; newest last.
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
        Self { slots: vec![Slot::default(); nodes], primary: None, past: VecDeque::new() }
    }

    pub(crate) fn nodes(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn primary(&self) -> Option<usize> {
        self.primary
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
        self.sample(node).filter(|s| now.saturating_duration_since(s.asked) <= trust)
    }

    pub(crate) fn forget(&mut self, node: usize) {
        self.slots[node] = Slot::default();
    }

    /// Takes in what `node` said. A sample that was asked for before the one held is not news.
    pub(crate) fn note(&mut self, node: usize, sample: Sample) -> Noted {
        if self.sample(node).is_some_and(|held| held.order > sample.order) {
            return Noted::default();
        }
        let was = (self.primary, self.slots[node].forked);
        self.slots[node].sample = Some(Arc::new(sample));
        self.elect();
        for i in 0..self.slots.len() {
            self.mark_slot(i);
        }
        if self.primary == Some(node) {
            self.remember(node);
        }
        Noted { primary_changed: self.primary != was.0, forked: self.slots[node].forked && !was.1 }
    }

    /// Of the nodes that say they are primary the one with the latest history; at a tie whoever was.
    fn elect(&mut self) {
        let claims = |s: &Slot| s.sample.as_ref().is_some_and(|s| s.observed.role == Role::Primary);
        let held = self.primary.filter(|p| claims(&self.slots[*p]));
        let mut best = held;
        for (i, slot) in self.slots.iter().enumerate().filter(|(_, slot)| claims(slot)) {
            let Some(sample) = &slot.sample else { continue };
            let better = match best.and_then(|b| self.slots[b].sample.as_ref()) {
                None => true,
                Some(other) => outranks(&sample.observed, &other.observed),
            };
            if better {
                best = Some(i);
            }
        }
        // A primary that fell silent or stepped down keeps its place until another one takes it: its history counts.
        self.primary = best.or(self.primary.filter(|p| self.slots[*p].sample.is_some()));
    }

    fn mark_slot(&mut self, i: usize) {
        let leader = self.primary.and_then(|p| self.slots[p].sample.clone());
        let slot = &mut self.slots[i];
        let Some(sample) = slot.sample.clone() else { return };
        let Some(leader) = leader else {
            slot.eligible = true;
            return;
        };
        let (ours, theirs) = (&leader.observed, &sample.observed);
        let same_name = theirs.mark.system == ours.mark.system && theirs.mark.timeline == ours.mark.timeline;
        slot.forked = same_name && differ(&ours.history, &theirs.history);
        let compatible = match verdict(&theirs.mark, ours) {
            Verdict::Satisfied => true,
            // Newer than the leader's sample, on its own history.
            Verdict::Behind { by } => by.is_some(),
            Verdict::Lost { .. } | Verdict::Foreign => false,
        };
        slot.eligible = compatible && !slot.forked;
    }

    fn remember(&mut self, node: usize) {
        let Some(sample) = &self.slots[node].sample else { return };
        if self.past.len() == MAX_PAST {
            self.past.pop_front();
        }
        self.past.push_back((sample.asked, sample.observed.mark.clone()));
    }

    /// Whether `node` has all that the primary had at some instant at most `d` ago.
    fn within(&self, node: &Observed, now: Instant, d: Duration) -> bool {
        let oldest = now.saturating_sub(d);
        let recent = self.past.iter().rev().take_while(|(at, _)| *at >= oldest);
        recent.map(|(_, mark)| mark).any(|mark| verdict(mark, node) == Verdict::Satisfied)
    }
}

/// Whether the history of `a` came after that of `b`.
fn outranks(a: &Observed, b: &Observed) -> bool {
    if a.history.iter().any(|s| s.timeline == b.mark.timeline) {
        return true;
    }
    match (a.mark.timeline.parse::<u64>(), b.mark.timeline.parse::<u64>()) {
        (Ok(a), Ok(b)) => a > b,
        _ => false,
    }
}

/// Whether two histories of one name began at different places.
fn differ(
    a: &[mainstay_store::replicated::TimelineSwitch],
    b: &[mainstay_store::replicated::TimelineSwitch],
) -> bool {
    a.last().zip(b.last()).is_some_and(|(a, b)| a != b)
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
}

/// Where a read goes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Foreign,
    Lost { since: Option<Position> },
    Primary(Why),
    Read(usize),
    Wait(usize),
}

/// Decides where to read. `stay` is a node that need not be compared with what the session saw there; when it is given,
/// only that node or the primary may answer. `turn` spreads sessions over nodes that are equally good.
pub(crate) fn decide(
    rule: Rule<'_>,
    view: &View,
    now: Instant,
    trust: Duration,
    turn: usize,
    stay: Option<usize>,
) -> Step {
    let floors: &[&[Mark]] = if let Rule::Floors(floors) = rule { floors } else { &[] };
    if let Some(sample) = view.primary.and_then(|p| view.fresh(p, now, trust)) {
        match worst(floors, &sample.observed) {
            Verdict::Lost { since } => return Step::Lost { since },
            Verdict::Foreign => return Step::Foreign,
            Verdict::Behind { .. } | Verdict::Satisfied => {}
        }
    }
    let nodes = view.nodes();
    let (mut nearest, mut any): (Option<(u64, usize)>, bool) = (None, false);
    for i in (0..nodes).map(|i| (i + turn) % nodes) {
        let usable = view.eligible(i) && view.primary != Some(i) && stay.is_none_or(|s| s == i);
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

/// What a session read without knowing its position yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) node: usize,
    pub(crate) incarnation: u64,
    pub(crate) timeline: String,
    /// The place of the read's end among all questions and reads of the router.
    pub(crate) order: u64,
}

impl Seen {
    /// Whether `observed`, asked in the place `order`, has all that was seen: the same life of the same node later on, or later
    /// the primary of the same history, which has what any of its replicas ever showed.
    pub(crate) fn is_in(&self, node: usize, observed: &Observed, order: u64) -> bool {
        let same_node = node == self.node && observed.incarnation == self.incarnation;
        let its_primary = observed.role == Role::Primary && observed.mark.timeline == self.timeline;
        order > self.order && (same_node || its_primary)
    }

    /// A position at or past what was seen, if some sample proves one.
    pub(crate) fn proven(&self, view: &View) -> Option<Mark> {
        let all = (0..view.nodes()).filter_map(|i| Some((i, view.sample(i)?)));
        all.filter(|(i, s)| self.is_in(*i, &s.observed, s.order)).map(|(_, s)| s.observed.mark.clone()).next()
    }
}

/// Drops from `floors` what another one covers under the history of `primary`, so that a session through many
/// failovers does not carry a position of each.
pub(crate) fn settle(floors: &mut Vec<Mark>, primary: &Observed) {
    let mut settled: Vec<Mark> = Vec::new();
    for mut floor in std::mem::take(floors) {
        if floor.timeline != primary.mark.timeline && verdict(&floor, primary) == Verdict::Satisfied {
            // Kept by every switch since, so it is a position of the present history, too.
            floor.timeline.clone_from(&primary.mark.timeline);
        }
        rise(&mut settled, &floor);
    }
    *floors = settled;
}
