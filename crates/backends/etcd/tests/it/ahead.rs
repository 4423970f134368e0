//! A node on a machine that was started at another time than that of its clients.

use mainstay_clock::{Clock as _, SystemClock};
use mainstay_sim::servers::{EtcdKit, a_day_ahead, find};
use mainstay_store::LeaseStore;
use mainstay_store::lease::Renewed;
use tempfile::TempDir;

use crate::world::{SHORT, Test, World, direct, granted, open, short, take, until};

pub(crate) const TESTS: &[Test] =
    &[("f11_a_node_whose_boot_time_is_a_day_ahead_ends_leases_in_their_time", |w| Box::pin(f11(w)))];

fn kit() -> Option<(TempDir, EtcdKit)> {
    let dir = tempfile::tempdir().unwrap();
    let program = a_day_ahead(&find("etcd")?, dir.path()).unwrap()?;
    Some((dir, EtcdKit::at(program)?))
}

/// Whether the kernel gives a process clocks of its own.
pub(crate) fn is_there() -> bool {
    kit().is_some()
}

async fn f11(_: World) {
    let (_dir, kit) = kit().unwrap();
    let node = kit.single().unwrap();
    let offsets = std::fs::read_to_string(format!("/proc/{}/timens_offsets", node.pid())).unwrap();
    let boot = offsets.lines().find_map(|line| line.strip_prefix("boottime")).unwrap();
    assert_eq!(boot.split_whitespace().next(), Some("86400"), "{offsets}");
    let stores = [open(direct(&node).prefix("t/")).await, open(direct(&node).prefix("t/")).await];
    assert!(take(&stores[0], "n", "first").await.is_some());
    assert!(matches!(stores[0].renew("first").await.unwrap(), Renewed::Renewed(_)));
    assert!(take(&stores[1], "n", "other").await.is_none(), "it is held");
    // One that nobody renews ends neither early nor never, by the clock of this side.
    let clock = SystemClock::new();
    let sent = clock.now();
    let old = granted(&stores[0].acquire(short("m", "dead")).await.unwrap()).unwrap();
    let next = std::sync::Mutex::new(None);
    until("it has ended by itself", || async {
        let taken = take(&stores[1], "m", "next").await;
        *next.lock().unwrap() = taken;
        taken.is_some()
    })
    .await;
    let lasted = clock.now().saturating_duration_since(sent);
    assert!(lasted >= SHORT, "{lasted:?}");
    assert!(next.into_inner().unwrap().unwrap() > old);
    assert!(take(&stores[1], "n", "other").await.is_none(), "and the other one is held");
}
