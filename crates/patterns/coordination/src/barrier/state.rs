//! Who waits at a barrier, and when it opens. No I/O.

use std::collections::{BTreeSet, VecDeque};

use mainstay_store::FencingToken;

/// Rounds whose outcome is remembered: whoever waits looks at least each second, and a round takes all of its
/// members' looks.
const HISTORY: usize = 8;

/// A member: its name and the token of its lease, by which it is told from others of its name.
pub(super) type Member = (String, FencingToken);

/// How a round is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its members meet to go in and again to go out.
    Double,
    /// Its members meet once.
    Single,
}

/// What became of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) generation: u64,
    /// It opened; else it broke.
    pub(super) opened: bool,
    pub(super) members: Vec<Member>,
    /// Who died while others waited.
    pub(super) dead: BTreeSet<String>,
}

/// A barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Barrier {
    pub(super) kind: Kind,
    pub(super) size: u32,
    /// The round that gathers.
    pub(super) generation: u64,
    /// In the order in which they came.
    pub(super) gathering: Vec<Member>,
    pub(super) dead: BTreeSet<String>,
    /// Members of the round before that have not gone out yet.
    pub(super) inside: Vec<Member>,
    pub(super) past: VecDeque<Outcome>,
}

/// What a member finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// It is not among those who wait: it was taken for dead.
    Dropped,
    Over(Outcome),
    Waiting,
}

/// The others use it in another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    pub(super) kind: Kind,
    pub(super) size: u32,
}

impl Barrier {
    pub(super) fn new(kind: Kind, size: u32) -> Self {
        Self {
            kind,
            size,
            generation: 1,
            gathering: Vec::new(),
            dead: BTreeSet::new(),
            inside: Vec::new(),
            past: VecDeque::new(),
        }
    }

    /// `member` waits; whether that changed anything. Repeated after a lost answer it changes nothing.
    pub(super) fn enter(&mut self, member: &Member, kind: Kind, size: u32) -> Result<bool, Mismatch> {
        if self.status(member) != Status::Dropped {
            return Ok(false);
        }
        if self.gathering.is_empty() && self.inside.is_empty() {
            // Nobody is there: whoever comes first says how it is used.
            (self.kind, self.size) = (kind, size);
        }
        if (self.kind, self.size) != (kind, size) {
            return Err(Mismatch { kind: self.kind, size: self.size });
        }
        // An earlier one of the name is dead: names live once.
        if let Some(at) = self.gathering.iter().position(|(id, _)| *id == member.0) {
            self.dead.insert(self.gathering.remove(at).0);
        }
        self.gathering.push(member.clone());
        Ok(true)
    }

    /// A look at the leases of those who are awaited: who lives and who does not. The dead are subtracted, and with
    /// `breaks` the waiting round ends for all; else it opens when enough that live wait, for those who came first,
    /// and everybody of the round before is out. Whether that changed anything.
    pub(super) fn looked(&mut self, live: &[Member], dead: &[Member], breaks: bool) -> bool {
        let buried = self.bury(dead);
        if breaks && !self.dead.is_empty() {
            let members = std::mem::take(&mut self.gathering);
            self.over(false, members);
            return true;
        }
        let lives = |member: &&Member| live.contains(member);
        let size = self.size as usize;
        let chosen: Vec<Member> = self.gathering.iter().filter(lives).take(size).cloned().collect();
        if chosen.len() < size || !self.inside.is_empty() {
            return buried;
        }
        self.gathering.retain(|member| !chosen.contains(member));
        if self.kind == Kind::Double {
            self.inside.clone_from(&chosen);
        }
        self.over(true, chosen);
        true
    }

    fn bury(&mut self, dead: &[Member]) -> bool {
        let mut changed = false;
        for member in dead {
            if let Some(at) = self.inside.iter().position(|m| m == member) {
                self.inside.remove(at);
                changed = true;
                // Rounds that broke meanwhile come after that of those inside.
                if let Some(outcome) = self.past.iter_mut().rev().find(|o| o.opened) {
                    outcome.dead.insert(member.0.clone());
                }
            }
            if let Some(at) = self.gathering.iter().position(|m| m == member) {
                self.dead.insert(self.gathering.remove(at).0);
                changed = true;
            }
        }
        changed
    }

    fn over(&mut self, opened: bool, members: Vec<Member>) {
        let dead = std::mem::take(&mut self.dead);
        if self.past.len() >= HISTORY {
            self.past.pop_front();
        }
        self.past.push_back(Outcome { generation: self.generation, opened, members, dead });
        self.generation += 1;
    }

    /// What `member` finds.
    pub(super) fn status(&self, member: &Member) -> Status {
        if self.gathering.contains(member) {
            return Status::Waiting;
        }
        let mut past = self.past.iter().rev();
        past.find(|o| o.members.contains(member)).map_or(Status::Dropped, |o| Status::Over(o.clone()))
    }

    /// `member` waits no longer; whether that changed anything.
    pub(super) fn withdraw(&mut self, member: &Member) -> bool {
        let before = self.gathering.len();
        self.gathering.retain(|m| m != member);
        self.gathering.len() < before
    }

    /// `member` wants out; whether that changed anything.
    pub(super) fn go_out(&mut self, member: &Member) -> bool {
        let before = self.inside.len();
        self.inside.retain(|m| m != member);
        self.inside.len() < before
    }

    /// Whether all of the round have gone out.
    pub(super) fn is_out(&self, generation: u64) -> bool {
        // A later round opens only when everybody of the earlier one is out.
        self.inside.is_empty() || self.past.iter().any(|o| o.opened && o.generation > generation)
    }

    /// Who is waited for.
    pub(super) fn expected(&self) -> Vec<Member> {
        self.gathering.iter().chain(&self.inside).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn m(id: &str, token: u64) -> Member {
        (id.to_owned(), FencingToken::new(token))
    }

    fn over(status: Status) -> Outcome {
        let Status::Over(outcome) = status else { panic!("{status:?}") };
        outcome
    }

    /// Everybody who is awaited lives, except these.
    fn look(b: &mut Barrier, dead: &[Member], breaks: bool) -> bool {
        let live: Vec<Member> = b.expected().into_iter().filter(|m| !dead.contains(m)).collect();
        b.looked(&live, dead, breaks)
    }

    fn single(size: u32, members: &[Member]) -> Barrier {
        let mut b = Barrier::new(Kind::Single, size);
        for member in members {
            assert_eq!(b.enter(member, Kind::Single, size), Ok(true));
        }
        b
    }

    #[test]
    fn it_opens_for_all_when_enough_are_there_and_gathers_anew() {
        let (a, b) = (m("a", 1), m("b", 2));
        let mut it = single(2, std::slice::from_ref(&a));
        assert!(!look(&mut it, &[], false));
        assert_eq!(it.status(&a), Status::Waiting);
        assert_eq!(it.enter(&b, Kind::Single, 2), Ok(true));
        assert_eq!(it.status(&a), Status::Waiting, "nobody has looked who lives");
        assert!(look(&mut it, &[], false));
        assert_eq!(it.enter(&b, Kind::Single, 2), Ok(false), "repeated after a lost answer");
        for member in [&a, &b] {
            let outcome = over(it.status(member));
            assert!(outcome.opened && outcome.dead.is_empty() && outcome.members.len() == 2);
        }
        assert_eq!(it.enter(&m("a", 3), Kind::Single, 2), Ok(true), "the next round");
        assert_eq!(it.status(&m("a", 3)), Status::Waiting);
        assert!(over(it.status(&b)).opened, "a slow one of the first still passes");
    }

    #[test]
    fn it_opens_only_on_proof_that_enough_live_and_for_those_who_came_first() {
        let members = [m("z", 1), m("y", 2), m("x", 3)];
        let mut it = single(2, &members);
        assert!(!it.looked(&members[..1], &[], false), "one is known to live");
        assert!(it.looked(&members, &[], false));
        assert!(over(it.status(&members[0])).opened && over(it.status(&members[1])).opened);
        assert_eq!(it.status(&members[2]), Status::Waiting, "it came after two others");
    }

    #[test]
    fn a_dead_member_is_subtracted_and_reported() {
        let a = m("a", 1);
        let mut it = single(2, &[a.clone(), m("b", 2)]);
        assert!(look(&mut it, std::slice::from_ref(&a), false));
        assert!(!look(&mut it, std::slice::from_ref(&a), false), "repeated");
        assert_eq!(it.status(&a), Status::Dropped);
        assert_eq!(it.status(&m("b", 2)), Status::Waiting, "two live ones are needed");
        it.enter(&m("c", 3), Kind::Single, 2).unwrap();
        look(&mut it, &[], false);
        let outcome = over(it.status(&m("c", 3)));
        assert_eq!(outcome.dead, BTreeSet::from(["a".to_owned()]));
        assert_eq!(it.status(&a), Status::Dropped, "one taken for dead does not pass");
    }

    #[test]
    fn f22_the_same_name_with_another_token_is_not_the_one_that_died() {
        let mut it = single(3, &[m("a", 1), m("a", 5), m("b", 2)]);
        assert_eq!(it.gathering.len(), 2, "a name counts once");
        assert!(!look(&mut it, &[m("a", 1)], false));
        assert_eq!(it.status(&m("a", 5)), Status::Waiting);
        assert_eq!(it.status(&m("a", 1)), Status::Dropped);
    }

    #[test]
    fn it_breaks_for_all_who_wait_when_that_is_wanted() {
        let mut it = single(3, &[m("a", 1), m("b", 2)]);
        look(&mut it, &[m("a", 1)], true);
        let outcome = over(it.status(&m("b", 2)));
        assert!(!outcome.opened);
        assert_eq!(outcome.dead, BTreeSet::from(["a".to_owned()]));
        assert_eq!(it.generation, 2);
        it.enter(&m("c", 3), Kind::Single, 3).unwrap();
        assert!(!look(&mut it, &[], true), "the next round is whole");
    }

    #[test]
    fn leaving_waits_for_all_and_the_next_round_for_that() {
        let (a, b) = (m("a", 1), m("b", 2));
        let mut it = Barrier::new(Kind::Double, 2);
        for member in [&a, &b] {
            it.enter(member, Kind::Double, 2).unwrap();
        }
        look(&mut it, &[], false);
        assert!(it.go_out(&a) && !it.go_out(&a));
        assert!(!it.is_out(1));
        for member in [m("c", 3), m("d", 4)] {
            it.enter(&member, Kind::Double, 2).unwrap();
        }
        assert!(!look(&mut it, &[], false));
        assert_eq!(it.status(&m("c", 3)), Status::Waiting, "one is still inside");
        assert!(look(&mut it, std::slice::from_ref(&b), false));
        assert!(it.is_out(1), "a dead one is not waited for");
        assert!(over(it.status(&m("c", 3))).opened);
        assert!(over(it.status(&a)).dead.contains("b"));
    }

    #[test]
    fn a_death_inside_is_told_to_those_inside_though_later_rounds_broke() {
        let (a, b) = (m("a", 1), m("b", 2));
        let mut it = Barrier::new(Kind::Double, 2);
        for member in [&a, &b] {
            it.enter(member, Kind::Double, 2).unwrap();
        }
        assert!(look(&mut it, &[], true));
        it.enter(&m("c", 3), Kind::Double, 2).unwrap();
        assert!(look(&mut it, &[m("c", 3)], true), "the second round breaks while the first is inside");
        assert!(look(&mut it, std::slice::from_ref(&b), true));
        let (first, second) = (&it.past[0], &it.past[1]);
        assert_eq!((first.opened, second.opened), (true, false));
        assert_eq!(first.dead, BTreeSet::from(["b".to_owned()]));
        assert_eq!(second.dead, BTreeSet::from(["c".to_owned()]), "nobody of it was inside");
    }

    #[test]
    fn another_size_or_use_is_refused_while_somebody_is_there() {
        let mut it = single(2, &[m("a", 1)]);
        let mismatch = Mismatch { kind: Kind::Single, size: 2 };
        assert_eq!(it.enter(&m("b", 2), Kind::Single, 3), Err(mismatch));
        assert_eq!(it.enter(&m("b", 2), Kind::Double, 2), Err(mismatch));
        assert!(it.withdraw(&m("a", 1)) && !it.withdraw(&m("a", 1)));
        assert_eq!(it.enter(&m("b", 2), Kind::Double, 3), Ok(true));
    }

    #[test]
    fn an_outcome_that_nobody_remembers_is_not_taken_for_open() {
        let mut it = Barrier::new(Kind::Single, 1);
        for n in 1..=20 {
            it.enter(&m("a", n), Kind::Single, 1).unwrap();
            assert!(look(&mut it, &[], false));
        }
        assert_eq!(it.past.len(), HISTORY);
        assert_eq!(it.status(&m("a", 1)), Status::Dropped);
        assert!(over(it.status(&m("a", 20))).opened);
    }
}
