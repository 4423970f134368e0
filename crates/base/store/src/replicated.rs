//! Positions of replicated stores, for sessions that read their own writes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::{BoxFuture, Result};

/// How far a store's log had got. A closed set of data formats, because it travels in session tokens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Position {
    /// A counter of an embedded or in-memory store.
    Counter(u64),
    /// MySQL: per server UUID, the end of its gap-free executed GTID interval.
    Gtid(BTreeMap<String, u64>),
    /// PostgreSQL: a log sequence number.
    Lsn(u64),
    /// Redis: a replication offset.
    Offset(u64),
}

/// A position together with the history it belongs to. A position alone would pass after a failover
/// that lost the write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "a token carries exactly these three")]
pub struct Mark {
    /// Which system: cluster identifier or configured name.
    pub system: String,
    /// Which history of it: timeline, replication id, run id.
    pub timeline: String,
    /// How far.
    pub position: Position,
}

/// One switch of history: `timeline` ended at `position` and `next` went on from there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a switch is exactly this")]
pub struct TimelineSwitch {
    /// The history that ended.
    pub timeline: String,
    /// Its last position that the next history contains.
    pub position: Position,
    /// The history that followed.
    pub next: String,
}

/// What a node says it is. Saying so proves nothing: of two nodes that both claim to be primary, the one with the
/// later history is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "a node takes writes or it does not")]
pub enum Role {
    /// It takes writes.
    Primary,
    /// It follows.
    Replica,
}

/// What a node has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Observed {
    /// Its system, history and position.
    pub mark: Mark,
    /// Earlier histories, oldest first, as far as it knows them.
    pub history: Vec<TimelineSwitch>,
    /// What it says it is.
    pub role: Role,
    /// Which life of the server this is: within one, a node never goes back.
    pub incarnation: u64,
}

impl Observed {
    /// An observation of a replica in incarnation 0.
    #[must_use]
    pub fn new(mark: Mark, history: Vec<TimelineSwitch>) -> Self {
        Self { mark, history, role: Role::Replica, incarnation: 0 }
    }

    /// The same observation of a node that says it is `role`.
    #[must_use]
    pub fn with_role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// The same observation in another life of the server, such as its start time.
    #[must_use]
    pub fn with_incarnation(mut self, incarnation: u64) -> Self {
        self.incarnation = incarnation;
        self
    }
}

/// Whether a replica may answer a read after a write. Never a bool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each of the four")]
pub enum Judgment {
    /// The replica will get there, but has not.
    Behind,
    /// Another system, or a kind of position that cannot be compared.
    Foreign,
    /// A failover lost the write.
    Lost,
    /// The replica contains the write.
    Satisfied,
}

/// Judges whether what was `observed` contains what `wanted` marks.
///
/// ```
/// use mainstay_store::replicated::{Judgment, Mark, Observed, Position, TimelineSwitch, judge};
///
/// let mark = |timeline: &str, n| Mark { system: "db".into(), timeline: timeline.into(), position: Position::Counter(n) };
/// let switch = TimelineSwitch { timeline: "1".into(), position: Position::Counter(10), next: "2".into() };
/// let now = Observed::new(mark("2", 15), vec![switch]);
/// assert_eq!(judge(&mark("1", 10), &now), Judgment::Satisfied);
/// assert_eq!(judge(&mark("1", 11), &now), Judgment::Lost);
/// assert_eq!(judge(&mark("2", 16), &now), Judgment::Behind);
/// ```
#[must_use]
pub fn judge(wanted: &Mark, observed: &Observed) -> Judgment {
    if wanted.system != observed.mark.system {
        return Judgment::Foreign;
    }
    if wanted.timeline == observed.mark.timeline {
        return match contains(&observed.mark.position, &wanted.position) {
            None => Judgment::Foreign,
            Some(true) => Judgment::Satisfied,
            Some(false) => Judgment::Behind,
        };
    }
    let mut later = observed.history.iter().skip_while(|s| s.timeline != wanted.timeline).peekable();
    if later.peek().is_none() {
        return Judgment::Foreign;
    }
    // Every switch since must have kept it: a later failover may cut deeper than the first one.
    for switch in later {
        match contains(&switch.position, &wanted.position) {
            None => return Judgment::Foreign,
            Some(true) => {}
            Some(false) => return Judgment::Lost,
        }
    }
    // Kept by the history, but this replica may not have replayed so far.
    match contains(&observed.mark.position, &wanted.position) {
        None => Judgment::Foreign,
        Some(true) => Judgment::Satisfied,
        Some(false) => Judgment::Behind,
    }
}

/// Whether `have` is at or past `want`; `None` when they are of different kinds.
fn contains(have: &Position, want: &Position) -> Option<bool> {
    match (have, want) {
        (Position::Counter(a), Position::Counter(b))
        | (Position::Lsn(a), Position::Lsn(b))
        | (Position::Offset(a), Position::Offset(b)) => Some(a >= b),
        (Position::Gtid(a), Position::Gtid(b)) => {
            Some(b.iter().all(|(server, end)| a.get(server).is_some_and(|have| have >= end)))
        }
        _ => None,
    }
}

/// A store with replicas, as sessions see it.
pub trait ReplicatedStore: Send + Sync + fmt::Debug {
    /// What the last write of this connection reached.
    ///
    /// # Errors
    /// When the store cannot tell.
    fn commit_position(&self) -> BoxFuture<'_, Result<Mark>>;

    /// What this replica has now.
    ///
    /// # Errors
    /// When the replica cannot be asked.
    fn observe(&self) -> BoxFuture<'_, Result<Observed>>;

    /// Waits until the replica contains `wanted`, is known never to, or `limit` is over; the judgment
    /// then. `Behind` means that the limit was over.
    ///
    /// # Errors
    /// When the replica cannot be asked.
    ///
    /// # Cancel safety
    /// Dropping the future only stops waiting.
    fn wait<'a>(&'a self, wanted: &'a Mark, limit: Duration) -> BoxFuture<'a, Result<Judgment>>;

    /// Which life of the server this connection talks to, as [`Observed::incarnation`] counts, known without a round
    /// trip. `None`: unknown, and whoever needs it has to [`observe`](ReplicatedStore::observe).
    fn incarnation(&self) -> Option<u64> {
        None
    }
}
