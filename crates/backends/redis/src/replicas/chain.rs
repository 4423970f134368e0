//! Which history came from which: plain decisions, without I/O.
//!
//! A Redis remembers one history before its own. What was learned from any server of the store is kept here, so that a
//! position survives several failovers.

use std::collections::VecDeque;

use mainstay_store::replicated::{Position, TimelineSwitch};

use super::info::Info;

/// Most switches kept. One is a failover; who has had more within the life of a token has other worries.
const MAX_SWITCHES: usize = 64;

/// The switches that primaries of one store told of.
#[derive(Debug, Default)]
pub(crate) struct Chain(VecDeque<TimelineSwitch>);

impl Chain {
    /// Takes in what a server says. Only a primary's word counts: a replica that goes on under a new history calls the
    /// place where it stood the end of the old one, however far that went.
    pub(crate) fn learn(&mut self, run_id: &str, info: &Info) {
        if !info.is_primary || !info.counts {
            return;
        }
        let (timeline, last) = match &info.before {
            Some((id, last)) => (id.clone(), *last),
            // It has been primary since it started: what it took before it counted is in this history, too.
            None => (run_id.to_owned(), u64::MAX),
        };
        let switch = TimelineSwitch { timeline, position: Position::Offset(last), next: info.id.clone() };
        if switch.timeline == switch.next || self.0.contains(&switch) {
            return;
        }
        self.0.retain(|known| known.next != switch.next);
        if self.0.len() == MAX_SWITCHES {
            self.0.pop_front();
        }
        self.0.push_back(switch);
    }

    /// The histories before `id`, oldest first.
    pub(crate) fn before(&self, id: &str) -> Vec<TimelineSwitch> {
        let mut history: Vec<TimelineSwitch> = Vec::new();
        let mut next = id;
        while let Some(switch) = self.0.iter().find(|s| s.next == next) {
            // Servers that lie could tell of a circle.
            if switch.timeline == id || history.iter().any(|s| s.timeline == switch.timeline) {
                break;
            }
            history.push(switch.clone());
            next = &switch.timeline;
        }
        history.reverse();
        history
    }
}

/// Counts the lives of one server: within one it never goes back.
///
/// A process is not one life. A replica that is filled anew throws away what it had, under clients that stay connected.
#[derive(Debug, Default)]
pub(crate) struct Lives {
    last: Option<(String, String, u64)>,
    count: u64,
}

impl Lives {
    /// The life in which `info` was told by the process `run_id`.
    pub(crate) fn see(&mut self, run_id: &str, info: &Info) -> u64 {
        let goes_on = match &self.last {
            Some((run, id, offset)) if run == run_id => {
                let same = *id == info.id && (info.is_primary && !info.counts || *offset <= info.offset);
                let renamed =
                    info.before.as_ref().is_some_and(|(before, last)| before == id && offset <= last);
                same || renamed
            }
            _ => false,
        };
        if !goes_on {
            self.count += 1;
        }
        self.last = Some((run_id.to_owned(), info.id.clone(), info.offset));
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::{Chain, Info, Lives, MAX_SWITCHES};

    fn info(is_primary: bool, id: &str, before: Option<(&str, u64)>, offset: u64) -> Info {
        Info {
            is_primary,
            linked: true,
            in_flux: false,
            id: id.to_owned(),
            before: before.map(|(id, last)| (id.to_owned(), last)),
            offset,
            counts: true,
        }
    }

    fn names(chain: &Chain, id: &str) -> Vec<String> {
        chain.before(id).into_iter().map(|s| s.timeline).collect()
    }

    #[test]
    fn a_history_is_followed_through_several_failovers() {
        let mut chain = Chain::default();
        chain.learn("run", &info(true, "b", Some(("a", 10)), 20));
        chain.learn("run", &info(true, "c", Some(("b", 15)), 30));
        assert_eq!(names(&chain, "c"), ["a", "b"]);
        assert_eq!(names(&chain, "b"), ["a"]);
        assert!(names(&chain, "z").is_empty());
    }

    #[test]
    fn a_replica_proves_no_end_of_a_history() {
        let mut chain = Chain::default();
        chain.learn("run", &info(false, "b", Some(("a", 7)), 20));
        assert!(names(&chain, "b").is_empty());
    }

    #[test]
    fn what_was_written_before_offsets_counted_belongs_to_the_first_history() {
        let mut chain = Chain::default();
        chain.learn("run", &info(true, "a", None, 5));
        assert_eq!(names(&chain, "a"), ["run"]);
    }

    #[test]
    fn circles_end_and_the_chain_is_bounded() {
        let mut chain = Chain::default();
        chain.learn("run", &info(true, "b", Some(("a", 1)), 2));
        chain.learn("run", &info(true, "a", Some(("b", 1)), 2));
        assert_eq!(names(&chain, "a"), ["b"]);
        for n in 0..1_000 {
            chain.learn("run", &info(true, &format!("{}", n + 1), Some((&n.to_string(), n)), n));
        }
        assert_eq!(chain.0.len(), MAX_SWITCHES);
        assert_eq!(chain.before("1000").len(), MAX_SWITCHES);
    }

    #[test]
    fn a_life_ends_with_the_process_and_with_what_was_thrown_away() {
        let mut lives = Lives::default();
        let first = lives.see("r1", &info(false, "a", None, 10));
        assert_eq!(lives.see("r1", &info(false, "a", None, 12)), first);
        // Promoted, with all that it had.
        assert_eq!(lives.see("r1", &info(true, "b", Some(("a", 12)), 12)), first);
        // Filled anew: the new history does not come from what it was on.
        let second = lives.see("r1", &info(false, "c", None, 40));
        assert_ne!(second, first);
        let third = lives.see("r2", &info(false, "c", None, 40));
        assert_ne!(third, second);
        // The old history went on, but this server had more of it than was kept.
        let fourth = lives.see("r2", &info(false, "d", Some(("c", 39)), 50));
        assert_ne!(fourth, third);
        assert_ne!(lives.see("r2", &info(false, "d", None, 30)), fourth, "offsets never fall in one life");
    }
}
