//! What a watcher knows of a group: looks go in, changes come out. No I/O.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use mainstay_clock::Instant;
use mainstay_store::FencingToken;

use super::{Change, Delta, Departure, Event, Member, Snapshot};
use crate::guard::deadline_of;

/// How long a departure leaves its trace. A watcher that looked away for longer cannot tell left from expired.
pub(crate) const REMEMBER: Duration = Duration::from_secs(60);
/// A look is due this long after an entry ends unless it is renewed.
const BEHIND: Duration = Duration::from_millis(5);

/// One entry of a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) member: Member,
    /// How long it lasts without renewal.
    pub(super) remaining: Duration,
}

/// When a look was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) asked: Instant,
    pub(super) answered: Instant,
}

/// What was seen last of a member.
#[derive(Clone, Debug)]
struct Seen {
    member: Member,
    /// Its entry ends then by the watcher's clock.
    until: Instant,
    /// From here on it may have ended by the store's.
    may_end: Instant,
}

/// A watcher's picture.
#[derive(Debug, Default)]
pub(super) struct View {
    members: BTreeMap<String, Seen>,
    revision: u64,
    /// The last look; none before the first.
    looked: Option<Instant>,
    events: VecDeque<Event>,
}

impl View {
    /// The next event that nobody was told yet.
    pub(super) fn pop(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether somebody that was there is not among `entries`: only then the traces of departures matter.
    pub(super) fn misses(&self, entries: &[Entry]) -> bool {
        let same = |seen: &Seen| {
            entries
                .iter()
                .any(|e| e.member.name == seen.member.name && e.member.incarnation == seen.member.incarnation)
        };
        !self.members.values().all(same)
    }

    /// A look, sorted by name; `left` names the incarnations that said goodbye.
    pub(super) fn saw(&mut self, look: Look, entries: Vec<Entry>, left: &BTreeMap<String, FencingToken>) {
        let first = self.looked.is_none();
        let gap = self.looked.map_or(Duration::ZERO, |before| look.asked.saturating_duration_since(before));
        self.looked = Some(look.asked);
        let departed = |old| departed(old, look.answered, gap, left);
        let mut before = std::mem::take(&mut self.members);
        let mut changes = Vec::new();
        let mut joined = Vec::new();
        for Entry { member, remaining } in entries {
            match before.remove(&member.name) {
                Some(old) if old.member.incarnation == member.incarnation => {
                    if old.member != member {
                        joined.push(Change::Updated(member.clone()));
                    }
                }
                old => {
                    changes.extend(old.map(departed));
                    joined.push(Change::Joined(member.clone()));
                }
            }
            let until = look.asked.saturating_add(remaining);
            let may_end = deadline_of(look.asked, remaining);
            self.members.insert(member.name.clone(), Seen { member, until, may_end });
        }
        changes.extend(before.into_values().map(departed));
        if first {
            let members = self.members.values().map(|seen| seen.member.clone()).collect();
            self.events.push_back(Event::Snapshot(Snapshot { revision: self.revision, members }));
            return;
        }
        for change in changes.into_iter().chain(joined) {
            self.revision += 1;
            self.events.push_back(Event::Delta(Delta { revision: self.revision, change }));
        }
    }

    /// When to look again without a hint: when the first entry would end, but at most `most` from now.
    pub(super) fn next_look(&self, now: Instant, most: Duration) -> Instant {
        let ends = self.members.values().map(|seen| seen.until.saturating_add(BEHIND));
        let first = ends.min().unwrap_or(Instant::FAR_FUTURE);
        first.max(now.saturating_add(BEHIND)).min(now.saturating_add(most))
    }
}

fn departed(old: Seen, answered: Instant, gap: Duration, left: &BTreeMap<String, FencingToken>) -> Change {
    let how = if left.get(&old.member.name) == Some(&old.member.incarnation) {
        Departure::Left
    } else if answered < old.may_end || gap >= REMEMBER {
        // Gone before its time without a word, or the word is forgotten by now.
        Departure::Unknown
    } else {
        Departure::Expired
    };
    Change::Gone { member: old.member, how }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn look(ms: u64) -> Look {
        Look { asked: at(ms), answered: at(ms + 1) }
    }

    fn entry(name: &str, incarnation: u64, meta: &str) -> Entry {
        let member = Member {
            name: name.to_owned(),
            owner: "host".to_owned(),
            incarnation: FencingToken::new(incarnation),
            meta: meta.as_bytes().to_vec(),
        };
        Entry { member, remaining: Duration::from_secs(10) }
    }

    fn left(name: &str, incarnation: u64) -> BTreeMap<String, FencingToken> {
        BTreeMap::from([(name.to_owned(), FencingToken::new(incarnation))])
    }

    /// What each look says, in words.
    #[track_caller]
    fn check(looks: Vec<(u64, Vec<Entry>, BTreeMap<String, FencingToken>)>, expected: &[&str]) {
        let mut view = View::default();
        let mut told = Vec::new();
        for (ms, entries, left) in looks {
            view.saw(look(ms), entries, &left);
            while let Some(event) = view.pop() {
                told.push(match event {
                    Event::Snapshot(s) => format!("{}: {} there", s.revision, s.members.len()),
                    Event::Delta(Delta { revision, change }) => match change {
                        Change::Joined(m) => format!("{revision}: +{}#{}", m.name, m.incarnation),
                        Change::Updated(m) => format!("{revision}: ~{}#{}", m.name, m.incarnation),
                        Change::Gone { member, how } => {
                            format!("{revision}: -{}#{} {how:?}", member.name, member.incarnation)
                        }
                    },
                });
            }
        }
        assert_eq!(told, expected);
    }

    #[test]
    fn the_first_look_is_a_snapshot_and_later_ones_are_deltas() {
        let none = BTreeMap::new;
        check(
            vec![
                (0, vec![entry("a", 1, "")], none()),
                (10, vec![entry("a", 1, ""), entry("b", 2, "")], none()),
                (20, vec![entry("a", 1, "x"), entry("b", 2, "")], none()),
                (30, vec![entry("a", 1, "x"), entry("b", 2, "")], none()),
            ],
            &["0: 1 there", "1: +b#2", "2: ~a#1"],
        );
        check(vec![(0, vec![], none())], &["0: 0 there"]);
    }

    #[test]
    fn left_expired_and_taken_away_are_told_apart() {
        let none = BTreeMap::new;
        let there = || (0, vec![entry("a", 1, "")], none());
        check(vec![there(), (10, vec![], left("a", 1))], &["0: 1 there", "1: -a#1 Left"]);
        check(vec![there(), (10_000, vec![], none())], &["0: 1 there", "1: -a#1 Expired"]);
        // The store's clock may be ahead by a hundredth and 2 ms, and the answer was a millisecond on its way.
        check(vec![there(), (9_897, vec![], none())], &["0: 1 there", "1: -a#1 Expired"]);
        check(vec![there(), (9_896, vec![], none())], &["0: 1 there", "1: -a#1 Unknown"]);
        check(vec![there(), (10_000, vec![], left("a", 7))], &["0: 1 there", "1: -a#1 Expired"]);
        // It may have said so, and nobody remembers.
        check(vec![there(), (60_000, vec![], none())], &["0: 1 there", "1: -a#1 Unknown"]);
    }

    #[test]
    fn f22_the_same_name_with_another_incarnation_is_another_member() {
        let none = BTreeMap::new;
        check(
            vec![(0, vec![entry("a", 1, "")], none()), (20, vec![entry("a", 2, "")], left("a", 1))],
            &["0: 1 there", "1: -a#1 Left", "2: +a#2"],
        );
    }

    #[test]
    fn the_next_look_comes_with_the_first_end_and_never_at_once() {
        let mut view = View::default();
        view.saw(look(0), vec![entry("a", 1, "")], &BTreeMap::new());
        let most = Duration::from_secs(60);
        assert_eq!(view.next_look(at(0), most), at(10_005));
        assert_eq!(view.next_look(at(0), Duration::from_secs(1)), at(1_000));
        assert_eq!(view.next_look(at(20_000), most), at(20_005), "an entry that should be gone");
        assert_eq!(View::default().next_look(at(0), most), at(60_000));
    }
}
