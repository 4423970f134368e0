//! A primary and its replicas as a plain state machine: time goes in, answers come out.

use std::time::Duration;

use mainstay_clock::Instant;

use crate::replicated::{Mark, Observed, Position, Role, TimelineSwitch};
use crate::{Error, ErrorKind, Result};

/// Most entries of one log: the model keeps all of it.
const MAX_ENTRIES: usize = 1_000_000;

#[derive(Clone)]
struct Entry {
    at: Instant,
    key: String,
    value: Vec<u8>,
}

/// One history. Its log begins with what it took over from the one before.
#[derive(Clone)]
struct Timeline {
    name: String,
    log: Vec<Entry>,
    history: Vec<TimelineSwitch>,
}

#[derive(Clone)]
struct Node {
    timeline: usize,
    applied: usize,
    lag: Duration,
    cut: bool,
    /// Counts the times this node threw away what it had.
    incarnation: u64,
}

pub(super) struct State {
    system: String,
    timelines: Vec<Timeline>,
    nodes: Vec<Node>,
    primary: usize,
    now: Instant,
}

impl State {
    pub(super) fn new(system: &str, replicas: usize) -> Self {
        let first = Timeline { name: "1".to_owned(), log: Vec::new(), history: Vec::new() };
        let node = Node { timeline: 0, applied: 0, lag: Duration::ZERO, cut: false, incarnation: 0 };
        let nodes = vec![node; replicas + 1];
        Self { system: system.to_owned(), timelines: vec![first], nodes, primary: 0, now: Instant::ZERO }
    }

    pub(super) fn primary(&self) -> usize {
        self.primary
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Moves time on: every connected replica of the primary's history applies what is older than its lag.
    pub(super) fn tick(&mut self, now: Instant) {
        self.now = self.now.max(now);
        let current = self.nodes[self.primary].timeline;
        let primary = self.primary;
        let Self { timelines, nodes, now, .. } = self;
        for (i, node) in nodes.iter_mut().enumerate() {
            if i == primary || node.cut || node.timeline != current {
                continue;
            }
            let fresh = timelines[current].log[node.applied..]
                .iter()
                .take_while(|e| e.at.saturating_add(node.lag) <= *now);
            node.applied += fresh.count();
        }
    }

    pub(super) fn write(&mut self, node: usize, key: String, value: Vec<u8>) -> Result<Mark> {
        if node != self.primary {
            return Err(Error::new(ErrorKind::Unavailable, "this node is a replica: it takes no writes"));
        }
        let timeline = &mut self.timelines[self.nodes[node].timeline];
        if timeline.log.len() >= MAX_ENTRIES {
            return Err(Error::new(ErrorKind::Full, format!("the log has {MAX_ENTRIES} entries")));
        }
        timeline.log.push(Entry { at: self.now, key, value });
        self.nodes[node].applied = timeline.log.len();
        Ok(self.mark(node))
    }

    pub(super) fn read(&self, node: usize, key: &str) -> (Option<Vec<u8>>, Mark) {
        let log = &self.timelines[self.nodes[node].timeline].log[..self.nodes[node].applied];
        let found = log.iter().rev().find(|e| e.key == key).map(|e| e.value.clone());
        (found, self.mark(node))
    }

    pub(super) fn mark(&self, node: usize) -> Mark {
        let at = &self.nodes[node];
        Mark {
            system: self.system.clone(),
            timeline: self.timelines[at.timeline].name.clone(),
            position: Position::Counter(at.applied as u64),
        }
    }

    pub(super) fn observe(&self, node: usize) -> Observed {
        let history = self.timelines[self.nodes[node].timeline].history.clone();
        let role = if node == self.primary { Role::Primary } else { Role::Replica };
        Observed::new(self.mark(node), history).with_role(role).with_incarnation(self.incarnation(node))
    }

    pub(super) fn incarnation(&self, node: usize) -> u64 {
        self.nodes[node].incarnation
    }

    /// When the next entry reaches `node` by itself.
    pub(super) fn next_change(&self, node: usize) -> Option<Instant> {
        let at = &self.nodes[node];
        let next = self.timelines[at.timeline].log.get(at.applied)?;
        // A node of an older history gets nothing until it rejoins.
        let follows = node != self.primary && at.timeline == self.nodes[self.primary].timeline;
        (!at.cut && follows).then(|| next.at.saturating_add(at.lag))
    }

    pub(super) fn set_lag(&mut self, node: usize, lag: Duration) {
        self.nodes[node].lag = lag;
    }

    pub(super) fn set_cut(&mut self, node: usize, cut: bool) {
        self.nodes[node].cut = cut;
    }

    /// Makes `to` the primary with what it has. Replicas that have no more than it follow at once; the
    /// others, the old primary too, stay on the old history until they rejoin.
    pub(super) fn fail_over(&mut self, to: usize) -> TimelineSwitch {
        let old = &self.timelines[self.nodes[to].timeline];
        let kept = self.nodes[to].applied;
        let next = (self.timelines.len() + 1).to_string();
        let position = Position::Counter(kept as u64);
        let switch = TimelineSwitch { timeline: old.name.clone(), position, next: next.clone() };
        let mut history = old.history.clone();
        history.push(switch.clone());
        let log = old.log[..kept].to_vec();
        let from = self.nodes[to].timeline;
        self.timelines.push(Timeline { name: next, log, history });
        let new = self.timelines.len() - 1;
        let old_primary = std::mem::replace(&mut self.primary, to);
        for (i, node) in self.nodes.iter_mut().enumerate() {
            let follows = i == to || (i != old_primary && node.timeline == from && node.applied <= kept);
            if follows {
                node.timeline = new;
            }
        }
        switch
    }

    /// Throws away what the node has beyond the primary's history and follows it.
    pub(super) fn rejoin(&mut self, node: usize) {
        let new = self.nodes[self.primary].timeline;
        let at = &self.nodes[node];
        if at.timeline == new {
            return;
        }
        let name = &self.timelines[at.timeline].name;
        let mut later = self.timelines[new].history.iter().skip_while(|s| s.timeline != *name).peekable();
        let known = later.peek().is_some();
        // Every switch since may have cut: the deepest cut counts.
        let kept = later.fold(if known { at.applied } else { 0 }, |kept, switch| match switch.position {
            Position::Counter(n) => kept.min(usize::try_from(n).unwrap_or(usize::MAX)),
            _ => kept,
        });
        self.nodes[node].timeline = new;
        self.nodes[node].applied = kept;
        self.nodes[node].incarnation += 1;
    }
}
