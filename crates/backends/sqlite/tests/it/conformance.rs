//! SQLite against the one suite, with both drivers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, Instant, Runtime, SeededRng, Sleep, Tick, WallTime};
use mainstay_sim::conformance;
use mainstay_sqlite::{Driver, SqliteLeases, SqliteStore};
use mainstay_store::Journal;
use mainstay_store::lease::ToldBy;

/// Of the lease contract.
const EVERY_SECTION: [&str; 9] =
    ["mutex", "annotate", "break_lease", "line", "list", "permit", "shared", "transfer", "watch"];

pub(crate) struct Files {
    dir: tempfile::TempDir,
    count: AtomicU32,
}

impl Files {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), count: AtomicU32::new(0) }
    }

    pub(crate) fn fresh(&self) -> std::path::PathBuf {
        self.dir.path().join(format!("{}.db", self.count.fetch_add(1, Ordering::Relaxed)))
    }
}

pub(crate) fn inline(files: &Files, clock: &VirtualClock) -> SqliteStore {
    let runtime = Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(1)));
    SqliteStore::builder(files.fresh()).driver(Driver::Inline).open(&runtime).unwrap()
}

#[tokio::test(start_paused = true)]
async fn inline_store_conforms() {
    let (files, clock) = (Files::new(), VirtualClock::new());
    let make = || Arc::new(inline(&files, &clock)) as Arc<dyn Journal>;
    let mut checks = conformance::journal(&make, &clock).await;
    let runtime = Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(1)));
    let leases = SqliteLeases::builder(files.fresh()).driver(Driver::Inline).open(&runtime).unwrap();
    let sections = conformance::leases(&leases, &clock).await;
    assert_eq!(conformance::since_when(&leases, &clock).await, ToldBy::Store);
    assert_eq!(sections.ran, EVERY_SECTION);
    checks += sections.ran.len() + sections.refused.len();
    checks += conformance::records(&inline(&files, &clock), &clock).await;
    checks += conformance::records(&leases, &clock).await;
    checks += conformance::cell(&inline(&files, &clock).cell("hlc")).await;
    println!("sqlite, inline: {checks} checks");
    assert_eq!(checks, 44);
}

/// A clock that only a sleep moves: tokio's paused clock does not exist on the writer's thread.
#[derive(Debug, Default)]
struct ByHand(AtomicU64);

impl Clock for ByHand {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.load(Ordering::SeqCst))
    }

    fn wall(&self) -> WallTime {
        WallTime::from_unix_millis(
            1_767_225_600_000 + i64::try_from(self.now().as_nanos() / 1_000_000).unwrap(),
        )
    }

    fn tick(&self) -> Tick {
        Tick::system()
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        self.0.fetch_max(deadline.as_nanos(), Ordering::SeqCst);
        Box::pin(async {})
    }
}

#[tokio::test]
async fn threaded_store_conforms() {
    let files = Files::new();
    let clock = Arc::new(ByHand::default());
    let open = || {
        let runtime = Runtime::on_tokio(clock.clone(), Arc::new(SeededRng::new(1)));
        SqliteStore::builder(files.fresh()).open(&runtime).unwrap()
    };
    let make = || Arc::new(open()) as Arc<dyn Journal>;
    let mut checks = conformance::journal(&make, &*clock).await;
    let runtime = Runtime::on_tokio(clock.clone(), Arc::new(SeededRng::new(1)));
    let leases = SqliteLeases::builder(files.fresh()).open(&runtime).unwrap();
    let sections = conformance::leases(&leases, &*clock).await;
    assert_eq!(conformance::since_when(&leases, &*clock).await, ToldBy::Store);
    checks += sections.ran.len() + sections.refused.len();
    checks += conformance::records(&open(), &*clock).await;
    checks += conformance::cell(&open().cell("hlc")).await;
    println!("sqlite, thread: {checks} checks");
    assert_eq!(checks, 38);
}
