//! Which lease store a schedule runs on.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::{Clock, Instant, Runtime, SeededRng, Sleep, Tick, WallTime};
use mainstay_sim::sim::{Node, World};
use mainstay_sqlite::{Driver, SqliteLeases};
use mainstay_store::LeaseStore;

use crate::majority::{Client, Majority};

/// Between two schedules on one file: everything of the earlier one has ended. A million of them stay far below the 292
/// years that a signed number of nanoseconds can count.
const GAP: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A majority of independent servers that lose what they hold, after the rules of the Redis quorum.
    Majority,
    Memory,
    /// A file, with its writer inline.
    Sqlite,
}

impl Kind {
    /// Most seeds run in memory, which is cheapest; a file costs most.
    fn of(seed: u64) -> Self {
        match seed % 16 {
            0 => Self::Sqlite,
            1..=4 => Self::Majority,
            _ => Self::Memory,
        }
    }
}

/// What one schedule hands to its nodes.
type Of = Arc<dyn Fn(&Node) -> Arc<dyn LeaseStore> + Send + Sync>;

/// The stores of a campaign: one file serves all schedules, because to make one takes longer than a schedule.
pub(crate) struct Stores {
    sqlite: SqliteLeases,
    clock: Relay,
    /// Whether a server of the majority that lost its data stays silent for a ttl.
    silent: bool,
    _folder: tempfile::TempDir,
}

impl Stores {
    pub(crate) fn new(silent: bool) -> Self {
        // In memory where there is such a folder: a sync to a disk would be most of the run.
        let fast = Path::new("/dev/shm");
        let folder = if fast.is_dir() { tempfile::tempdir_in(fast) } else { tempfile::tempdir() }.unwrap();
        let clock = Relay::default();
        let rt = Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(0)));
        let sqlite =
            SqliteLeases::builder(folder.path().join("leases")).driver(Driver::Inline).open(&rt).unwrap();
        Self { sqlite, clock, silent, _folder: folder }
    }

    /// The store of the schedule that begins.
    pub(crate) fn of(&self, world: &World) -> (Kind, Of) {
        let kind = Kind::of(world.seed());
        let of: Of = match kind {
            Kind::Majority => {
                let majority = Majority::new(world, self.silent);
                Arc::new(move |node| Arc::new(Client::new(node, &majority)))
            }
            Kind::Memory => Arc::new(Node::lease_store),
            Kind::Sqlite => {
                self.clock.0.lock().unwrap().0 = Some(world.store_clock());
                let sqlite: Arc<dyn LeaseStore> = Arc::new(self.sqlite.clone());
                Arc::new(move |node| node.through(Arc::clone(&sqlite)))
            }
        };
        (kind, of)
    }

    /// The schedule ended.
    pub(crate) fn next(&self) {
        let mut relay = self.clock.0.lock().unwrap();
        relay.0 = None;
        relay.1 += GAP;
    }
}

/// The clock of the schedule that runs, days after that of the one before. Time stands still between two.
#[derive(Clone, Default)]
struct Relay(Arc<Mutex<Running>>);

/// The clock of the schedule, and how much later it is.
type Running = (Option<Arc<dyn Clock>>, Duration);

impl Relay {
    fn now_of(&self) -> Running {
        self.0.lock().unwrap().clone()
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

impl Clock for Relay {
    fn now(&self) -> Instant {
        let (clock, later) = self.now_of();
        clock.map_or(Instant::from_nanos(0), |c| c.now()).saturating_add(later)
    }

    fn wall(&self) -> WallTime {
        let (clock, later) = self.now_of();
        clock.map_or(WallTime::from_unix_millis(0), |c| c.wall()).saturating_add(later)
    }

    fn tick(&self) -> Tick {
        Tick::of(Arc::new(self.clone()))
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        let (clock, later) = self.now_of();
        match clock {
            Some(clock) => clock.sleep_until(deadline.saturating_sub(later)),
            None => Box::pin(std::future::pending()),
        }
    }
}
