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
pub(crate) struct Chain {
    switches: VecDeque<TimelineSwitch>,
    primaries: VecDeque<Primary>,
}

/// A process that was seen as a primary.
#[derive(Debug)]
struct Primary {
    run_id: String,
    /// The histories that it counted in, each with all of the one before: a primary that has had no replica for long
    /// ends its history and tells of none before the next, but goes on with what it has.
    ids: VecDeque<String>,
    /// Whether it was primary ever since. A demoted one may be filled anew.
    still: bool,
}

impl Chain {
    /// Takes in what a server says. Only a primary's word counts: a replica that goes on under a new history calls the
    /// place where it stood the end of the old one, however far that went.
    pub(crate) fn learn(&mut self, run_id: &str, info: &Info) {
        self.follow(run_id, info);
        if !info.is_primary || !info.counts {
            return;
        }
        let (timeline, last) = match &info.before {
            Some((id, last)) => (id.clone(), *last),
            // It has been primary since it started: what it took before it counted is in this history, too.
            None => (run_id.to_owned(), u64::MAX),
        };
        let switch = TimelineSwitch { timeline, position: Position::Offset(last), next: info.id.clone() };
        if switch.timeline == switch.next || self.switches.contains(&switch) {
            return;
        }
        self.switches.retain(|known| known.next != switch.next);
        if self.switches.len() == MAX_SWITCHES {
            self.switches.pop_front();
        }
        self.switches.push_back(switch);
    }

    /// Keeps the histories of a process, as long as each has all of the one before.
    fn follow(&mut self, run_id: &str, info: &Info) {
        let known = self.primaries.iter().position(|p| p.run_id == run_id);
        if !info.is_primary {
            if let Some(at) = known {
                self.primaries[at].still = false;
            }
            return;
        }
        let known = known.and_then(|at| self.primaries.remove(at)).filter(|p| p.still);
        let new = || Primary { run_id: run_id.to_owned(), ids: VecDeque::new(), still: true };
        let mut primary = known.unwrap_or_else(new);
        if info.counts && primary.ids.back() != Some(&info.id) {
            if info.before.is_some() || primary.ids.len() == MAX_SWITCHES {
                // It was a replica meanwhile, and nobody looked; or this is too much to keep.
                primary.ids.clear();
            }
            primary.ids.push_back(info.id.clone());
        }
        if self.primaries.len() == MAX_SWITCHES {
            self.primaries.pop_front();
        }
        self.primaries.push_back(primary);
    }

    /// The histories before `id`, oldest first.
    pub(crate) fn before(&self, id: &str) -> Vec<TimelineSwitch> {
        let mut history: Vec<TimelineSwitch> = Vec::new();
        // Servers that lie could tell of a circle, and a process comes between its own histories.
        let fits = |history: &[TimelineSwitch], timeline: &str| {
            timeline != id && history.iter().all(|s| s.timeline != timeline)
        };
        let mut next = id;
        loop {
            if let Some(primary) = self.primaries.iter().find(|p| p.run_id == next) {
                for own in primary.ids.iter().rev().filter(|own| own.as_str() != id) {
                    if fits(&history, own) {
                        let (timeline, position) = (own.clone(), Position::Offset(u64::MAX));
                        history.push(TimelineSwitch { timeline, position, next: primary.run_id.clone() });
                    }
                }
                let Some(first) = primary.ids.front() else { break };
                next = first;
            }
            let switch = self.switches.iter().find(|s| s.next == next);
            let Some(switch) = switch.filter(|s| fits(&history, &s.timeline)) else { break };
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

    fn alone(id: &str) -> Info {
        Info { counts: false, ..info(true, id, None, 50) }
    }

    #[test]
    fn sl6_a_primary_without_replicas_ends_its_history_and_loses_nothing() {
        let mut chain = Chain::default();
        chain.learn("run", &info(true, "b", Some(("a", 10)), 20));
        // Nobody looks while it is alone; then somebody does, before and after the next replica.
        chain.learn("run", &info(true, "c", None, 50));
        assert_eq!(names(&chain, "c"), ["a", "b", "run"]);
        chain.learn("run", &alone("x"));
        assert_eq!(names(&chain, "run"), ["a", "b", "c"]);
        chain.learn("run", &info(true, "d", None, 60));
        assert_eq!(names(&chain, "d"), ["a", "b", "c", "run"]);
        let kept = chain.before("d").into_iter().map(|s| s.position == super::Position::Offset(u64::MAX));
        assert_eq!(kept.collect::<Vec<_>>(), [false, true, true, true]);
        // A failover from there is followed.
        chain.learn("run", &info(false, "d", None, 70));
        chain.learn("other", &info(true, "e", Some(("d", 70)), 80));
        assert_eq!(names(&chain, "e"), ["a", "b", "c", "run", "d"]);
    }

    #[test]
    fn sl6_a_primary_that_was_a_replica_meanwhile_is_not_what_it_was() {
        let mut chain = Chain::default();
        chain.learn("run", &info(true, "a", None, 20));
        chain.learn("run", &info(false, "z", None, 90));
        chain.learn("run", &alone("x"));
        assert!(names(&chain, "run").is_empty());
        chain.learn("run", &info(true, "b", None, 95));
        assert_eq!(names(&chain, "b"), ["run"]);
        // Nobody saw it as a replica, but it tells of another history.
        chain.learn("run", &info(true, "c", Some(("y", 100)), 110));
        chain.learn("run", &alone("x"));
        assert_eq!(names(&chain, "run"), ["y", "c"]);
        for n in 0..1_000 {
            chain.learn(&format!("run{n}"), &info(true, &format!("id{n}"), None, 1));
            chain.learn("run", &info(true, &format!("own{n}"), None, 1));
        }
        assert!(chain.primaries.len() <= MAX_SWITCHES);
        assert!(chain.primaries.iter().all(|p| p.ids.len() <= MAX_SWITCHES));
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
        assert_eq!((chain.switches.len(), chain.primaries.len()), (MAX_SWITCHES, 1));
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
