//! A campaign against session guarantees: many sessions over real replicas, whose primary is killed again and again
//! (feature `sessions`).
//!
//! A [`Rig`] is one kind of store: it starts, kills and promotes servers. [`campaign`] does the rest: workers read and
//! write through sessions, hand them over as sealed tokens, and remember what each session must find again. Half of the
//! failovers lose writes, and those who made them must be told. [`Totals`] says what was counted and survives in a
//! file, so that long campaigns are made of short ones.

mod round;
mod target;
mod totals;
mod worker;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use mainstay_consistency::session::RouterBuilder;
use mainstay_store::{BoxFuture, ReplicatedStore, Result};

pub use round::campaign;
pub use target::target;
pub use totals::Totals;

/// One kind of replicated store, with servers of its own: a primary and replicas.
///
/// The calls that change servers are made by the thread that called [`campaign`], one at a time, and may block.
pub trait Rig {
    /// A connection to one server.
    type Conn: ReplicatedStore + Send + 'static;

    /// Adds every node to a router, under names that stay. A server that is replaced keeps the name of its node.
    fn nodes(&self, router: RouterBuilder<Self::Conn>) -> RouterBuilder<Self::Conn>;

    /// A connection to each server that is there now.
    fn connections(&self) -> Vec<BoxFuture<'static, Result<Self::Conn>>>;

    /// Makes the keys that are going to be written, each with version 0 on every node.
    ///
    /// # Errors
    /// A server does not do as it is told.
    fn prepare(&mut self, keys: &[String]) -> io::Result<()>;

    /// From here on nothing that the primary acknowledges reaches a replica.
    ///
    /// # Errors
    /// As for [`prepare`](Rig::prepare).
    fn isolate(&mut self) -> io::Result<()>;

    /// Waits until every replica has what the primary has acknowledged by now.
    ///
    /// # Errors
    /// As for [`prepare`](Rig::prepare).
    fn settle(&mut self) -> io::Result<()>;

    /// Kills the primary without a word, makes another node primary, and brings everything back: afterwards every node
    /// follows the new primary.
    ///
    /// # Errors
    /// As for [`prepare`](Rig::prepare).
    fn take_over(&mut self) -> io::Result<()>;

    /// Writes a version under a key and commits it.
    fn write<'a>(conn: &'a mut Self::Conn, key: &'a str, version: i64) -> BoxFuture<'a, Result<()>>;

    /// Reads the version of a key.
    fn read<'a>(conn: &'a mut Self::Conn, key: &'a str) -> BoxFuture<'a, Result<i64>>;
}

/// How sessions read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "what is shown, and what shows that it can fail")]
pub enum Reading {
    /// From any replica that is young enough, as most applications do: the checks have to go red.
    Naive,
    /// Under all four guarantees.
    Session,
}

/// How much is done before a campaign ends.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// Session reads of this run.
    pub reads: u64,
    /// Failovers of this run; every second one loses writes.
    pub failovers: u64,
    /// The longest time; what is missing then is left for another run.
    pub limit: Duration,
    /// Sessions at a time.
    pub workers: usize,
    /// Draws everything that is drawn.
    pub seed: u64,
    /// How sessions read.
    pub reading: Reading,
    /// Called after every failover, to keep the totals.
    pub keep: Keep,
}

/// What is done with totals.
#[derive(Clone)]
pub struct Keep(Arc<dyn Fn(&Totals) + Send + Sync>);

impl Keep {
    /// Calls `f`.
    #[must_use]
    pub fn new(f: impl Fn(&Totals) + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    fn keep(&self, totals: &Totals) {
        (self.0)(totals);
    }
}

impl fmt::Debug for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keep")
    }
}

impl Plan {
    /// So many reads and failovers within `limit`, by sixteen sessions at a time.
    #[must_use]
    pub fn new(reads: u64, failovers: u64, limit: Duration) -> Self {
        let keep = Keep::new(|_| {});
        Self { reads, failovers, limit, workers: 16, seed: 1, reading: Reading::Session, keep }
    }
}
