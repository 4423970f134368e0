//! Positions of replicated stores, for sessions that read their own writes.

mod position;
mod rules;

use std::fmt;
use std::time::Duration;

pub use position::Position;
pub use rules::judge;

use crate::{BoxFuture, Result};

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

/// Judges whether what was observed contains what is wanted. Pure: no I/O, no clock, no state, so that a router can ask
/// it about samples that it took earlier.
pub type Rule = fn(&Mark, &Observed) -> Judgment;

/// A rule in an observation. Two observations are equal when they say the same, whoever judges them.
#[derive(Clone, Copy, Debug)]
struct By(Rule);

impl PartialEq for By {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for By {}

/// What a node has.
///
/// It carries the [`Rule`] by which its store's positions are judged, so that whoever holds an observation judges as the
/// store itself would.
///
/// ```
/// use mainstay_store::replicated::{Judgment, Mark, Observed, Position, Role};
///
/// let mark = |timeline: &str, n| Mark { system: "db".into(), timeline: timeline.into(), position: Position::Offset(n) };
/// let replica = Observed::new(mark("8d3f", 15), vec![]);
/// assert_eq!(replica.judge(&mark("77aa", 10)), Judgment::Behind, "it may be the older one");
/// let primary = replica.with_role(Role::Primary);
/// assert_eq!(primary.judge(&mark("77aa", 10)), Judgment::Lost);
/// let strict = primary.with_rule(|_, _| Judgment::Foreign);
/// assert_eq!(strict.judge(&mark("8d3f", 10)), Judgment::Foreign, "a store may have a rule of its own");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Observed {
    /// Its system, history and position.
    pub mark: Mark,
    /// Earlier histories, oldest first, as far as it knows them. Empty on a node whose history is not the first one:
    /// they could not be read, and nothing is proven about them.
    pub history: Vec<TimelineSwitch>,
    /// What it says it is.
    pub role: Role,
    /// Which life of the server this is: within one, a node never goes back.
    pub incarnation: u64,
    /// Up to where a crash of this node keeps what it has; `None`: all of it.
    pub durable: Option<Position>,
    /// How many changes of the primary it knows of, where histories have no order: of two nodes that both claim to be
    /// primary, the one that knows of more is believed.
    pub changes: u64,
    /// Under which name it writes, where positions name writers (MariaDB, MySQL).
    pub writer: Option<String>,
    rule: By,
}

impl Observed {
    /// An observation of a replica in incarnation 0, to be judged by [`judge`].
    #[must_use]
    pub fn new(mark: Mark, history: Vec<TimelineSwitch>) -> Self {
        Self {
            mark,
            history,
            role: Role::Replica,
            incarnation: 0,
            durable: None,
            changes: 0,
            writer: None,
            rule: By(judge),
        }
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

    /// The same observation of a node that a crash would put back to `position`.
    #[must_use]
    pub fn with_durable(mut self, position: Position) -> Self {
        self.durable = Some(position);
        self
    }

    /// The same observation of a node that knows of so many changes of the primary.
    #[must_use]
    pub fn with_changes(mut self, changes: u64) -> Self {
        self.changes = changes;
        self
    }

    /// The same observation of a node that writes under `name`.
    #[must_use]
    pub fn with_writer(mut self, name: impl Into<String>) -> Self {
        self.writer = Some(name.into());
        self
    }

    /// The same observation, to be judged by the store's own rule.
    #[must_use]
    pub fn with_rule(mut self, rule: Rule) -> Self {
        self.rule = By(rule);
        self
    }

    /// Whether this contains what `wanted` marks, by the rule of the store that made it.
    #[must_use]
    pub fn judge(&self, wanted: &Mark) -> Judgment {
        (self.rule.0)(wanted, self)
    }
}

/// Whether a replica may answer a read after a write. Never a bool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each of the four")]
pub enum Judgment {
    /// It has not got there; or it cannot tell, because it does not know that history. Never to be read from.
    Behind,
    /// Another system, or a kind of position that cannot be compared.
    Foreign,
    /// The write is in no history that this node serves: a failover or a crash lost it.
    Lost,
    /// The replica contains the write.
    Satisfied,
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

    /// Judges what was observed, on any node of this store: pure and without a round trip.
    ///
    /// Provided for callers that hold a store; a store with a rule of its own attaches it to what it observes
    /// ([`Observed::with_rule`]) instead of overriding this, for routers judge observations.
    fn judge(&self, wanted: &Mark, observed: &Observed) -> Judgment {
        observed.judge(wanted)
    }

    /// At or past all that the last read of this connection saw, known without a round trip. `None`: unknown, and a
    /// later observation has to tell.
    fn read_position(&self) -> Option<Mark> {
        None
    }

    /// Which life of the server this connection talks to, as [`Observed::incarnation`] counts, known without a round
    /// trip. `None`: unknown, and whoever needs it has to [`observe`](ReplicatedStore::observe).
    fn incarnation(&self) -> Option<u64> {
        None
    }
}
