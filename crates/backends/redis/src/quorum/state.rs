//! One acquisition on independent servers: votes go in, decisions come out.
//!
//! Majority after Antirez, "Distributed Locks with Redis". The tokens are ours: each server hands out its own
//! counter with its vote, the largest of the first majority is the token, and a second phase lifts the
//! others of that majority to it, each only while this acquisition still owns the lock there. Two holders
//! share a server, on which they owned the lock one after the other, so the later one was answered with more
//! there than the earlier one's token.

/// What one server said to the first phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Vote<R> {
    /// The counter of each name.
    Granted(Vec<u64>),
    /// Not granted, and why.
    Refused(R),
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// No majority can be reached any more.
    Lost,
    /// The second phase: lift these servers to these counters.
    Raise(Vec<usize>, Vec<u64>),
    /// More answers are needed.
    Wait,
    /// Held, under these counters.
    Won(Vec<u64>),
}

/// How many servers are a majority.
pub(crate) fn majority(servers: usize) -> usize {
    servers / 2 + 1
}

/// One round.
#[derive(Clone, Debug)]
pub(crate) struct Round<R> {
    servers: usize,
    /// Whether tokens are made to agree.
    fenced: bool,
    /// What the same acquisition was granted before, if it was.
    known: Vec<u64>,
    votes: Vec<Option<Vote<R>>>,
    /// The first majority, in the order of its votes; only these count.
    counted: Vec<usize>,
    token: Vec<u64>,
    /// Of the counted: those whose counter is the token.
    agreed: usize,
    /// Of the counted: those that must be lifted and have not answered.
    raising: usize,
}

impl<R> Round<R> {
    pub(crate) fn new(servers: usize, fenced: bool) -> Self {
        let (known, counted, token) = (Vec::new(), Vec::new(), Vec::new());
        let votes = (0..servers).map(|_| None).collect();
        Self { servers, fenced, known, votes, counted, token, agreed: 0, raising: 0 }
    }

    /// The same acquisition asks again. Where a majority still answers with what was granted, nobody else
    /// held it meanwhile, and the token stays; one that granted too late to count may be ahead of it.
    pub(crate) fn again(mut self, known: Vec<u64>) -> Self {
        self.known = known;
        self
    }

    fn needed(&self) -> usize {
        majority(self.servers)
    }

    /// What `server` said. A vote after the first majority is kept and counts for nothing.
    pub(crate) fn vote(&mut self, server: usize, vote: Vote<R>) -> Step {
        let granted = matches!(vote, Vote::Granted(_));
        self.votes[server] = Some(vote);
        if self.decided() {
            return Step::Wait;
        }
        let open = self.votes.iter().filter(|v| v.is_none()).count();
        if !self.known.is_empty() {
            if let Some(step) = self.recall(open) {
                return step;
            }
        } else if granted {
            self.counted.push(server);
        }
        if self.counted.len() == self.needed() {
            return self.close();
        }
        if self.counted.len() + open < self.needed() { Step::Lost } else { Step::Wait }
    }

    /// Whether the earlier token stands; none once it cannot any more. Then the servers that granted so far
    /// are counted as in a first round.
    fn recall(&mut self, open: usize) -> Option<Step> {
        let same = |v: &&Option<Vote<R>>| matches!(v, Some(Vote::Granted(c)) if *c == self.known);
        let same = self.votes.iter().filter(same).count();
        if same >= self.needed() {
            let granted = |s: &usize| matches!(self.votes[*s], Some(Vote::Granted(_)));
            self.counted = (0..self.servers).filter(granted).collect();
            self.token.clone_from(&self.known);
            return Some(Step::Won(self.known.clone()));
        }
        if same + open >= self.needed() {
            return Some(Step::Wait);
        }
        self.known.clear();
        let granted = |s: &usize| matches!(self.votes[*s], Some(Vote::Granted(_)));
        self.counted = (0..self.servers).filter(granted).take(self.needed()).collect();
        None
    }

    fn decided(&self) -> bool {
        self.counted.len() >= self.needed()
    }

    /// The first majority is there.
    fn close(&mut self) -> Step {
        let counters = |server: &usize| match &self.votes[*server] {
            Some(Vote::Granted(counters)) => counters.as_slice(),
            _ => &[],
        };
        let names = self.counted.first().map_or(0, |s| counters(s).len());
        let largest = |name: usize| self.counted.iter().filter_map(|s| counters(s).get(name)).max();
        let token: Vec<u64> = (0..names).filter_map(largest).copied().collect();
        let behind: Vec<usize> = self.counted.iter().filter(|s| counters(s) != token).copied().collect();
        self.token.clone_from(&token);
        self.agreed = self.counted.len() - behind.len();
        self.raising = behind.len();
        if behind.is_empty() || !self.fenced { Step::Won(token) } else { Step::Raise(behind, token) }
    }

    /// Whether a server was lifted in the second phase.
    pub(crate) fn raised(&mut self, lifted: bool) -> Step {
        self.raising = self.raising.saturating_sub(1);
        if lifted {
            self.agreed += 1;
        }
        if self.agreed >= self.needed() {
            return Step::Won(self.token.clone());
        }
        if self.agreed + self.raising < self.needed() { Step::Lost } else { Step::Wait }
    }

    /// The counters to which a server that granted too late to count should be lifted, so that the next
    /// round finds them equal.
    pub(crate) fn straggler(&self, server: usize) -> Option<&[u64]> {
        let late = self.decided() && !self.counted.contains(&server);
        match &self.votes[server] {
            Some(Vote::Granted(counters)) if late && *counters != self.token => Some(&self.token),
            _ => None,
        }
    }

    /// What those said that did not grant.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = &R> {
        self.votes.iter().filter_map(|v| match v {
            Some(Vote::Refused(why)) => Some(why),
            _ => None,
        })
    }

    /// How many granted.
    pub(crate) fn grants(&self) -> usize {
        self.votes.iter().filter(|v| matches!(v, Some(Vote::Granted(_)))).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(n: u64) -> Vote<&'static str> {
        Vote::Granted(vec![n])
    }

    #[test]
    fn a_majority_that_agrees_needs_no_second_phase() {
        let mut round = Round::new(5, true);
        assert_eq!(round.vote(0, granted(7)), Step::Wait);
        assert_eq!(round.vote(1, Vote::Refused("down")), Step::Wait);
        assert_eq!(round.vote(4, granted(7)), Step::Wait);
        assert_eq!(round.vote(2, granted(7)), Step::Won(vec![7]));
        assert_eq!(round.vote(3, granted(9)), Step::Wait, "too late to count");
        assert_eq!(round.straggler(3), Some(&[7][..]));
        assert_eq!(round.straggler(0), None);
    }

    #[test]
    fn a_majority_that_differs_is_lifted_to_its_largest() {
        let mut round = Round::new(3, true);
        round.vote(1, granted(7));
        assert_eq!(round.vote(0, granted(9)), Step::Raise(vec![1], vec![9]));
        assert_eq!(round.clone().raised(true), Step::Won(vec![9]));
        assert_eq!(round.raised(false), Step::Lost, "the first majority is the only one that counts");
        let mut plain = Round::new(3, false);
        plain.vote(1, granted(7));
        assert_eq!(plain.vote(0, granted(9)), Step::Won(vec![9]), "without fencing nothing is lifted");
    }

    #[test]
    fn f04_asking_again_keeps_the_token_though_a_late_server_is_ahead() {
        let again = || Round::new(3, true).again(vec![7]);
        let mut round = again();
        assert_eq!(round.vote(2, granted(9)), Step::Wait);
        assert_eq!(round.vote(0, granted(7)), Step::Wait, "two granted, and they may still be two of three");
        assert_eq!(round.vote(1, granted(7)), Step::Won(vec![7]));
        // Somebody else held it meanwhile: a majority does not answer with it any more.
        let mut round = again();
        round.vote(0, granted(9));
        assert_eq!(round.vote(1, granted(8)), Step::Raise(vec![1], vec![9]));
        let mut round = again();
        round.vote(0, granted(7));
        round.vote(1, Vote::Refused("down"));
        assert_eq!(round.vote(2, granted(8)), Step::Raise(vec![0], vec![8]));
        let mut round = again();
        round.vote(0, granted(7));
        round.vote(1, Vote::Refused("held"));
        assert_eq!(round.vote(2, Vote::Refused("held")), Step::Lost);
    }

    #[test]
    fn several_names_agree_each_for_itself() {
        let mut round: Round<()> = Round::new(3, true);
        round.vote(0, Vote::Granted(vec![5, 8]));
        assert_eq!(round.vote(1, Vote::Granted(vec![6, 7])), Step::Raise(vec![0, 1], vec![6, 8]));
        assert_eq!(round.raised(true), Step::Wait);
        assert_eq!(round.raised(true), Step::Won(vec![6, 8]));
    }

    #[test]
    fn f01_a_split_is_known_as_soon_as_it_is_one() {
        let mut round = Round::new(4, true);
        for server in [0, 1] {
            assert_eq!(round.vote(server, granted(1)), Step::Wait);
        }
        assert_eq!(round.vote(2, Vote::Refused("held")), Step::Wait);
        assert_eq!(round.vote(3, Vote::Refused("held")), Step::Lost, "three of four cannot be reached");
        assert_eq!(round.grants(), 2);
    }
}

#[cfg(test)]
#[path = "model.rs"]
mod model;
