//! A server on a machine that was started at another time than that of its clients.

use mainstay_clock::{Clock as _, SystemClock};
use mainstay_sim::servers::{NatsKit, a_day_ahead, find};
use mainstay_store::LeaseStore;
use mainstay_store::lease::Renewed;
use tempfile::TempDir;

use crate::Test;
use crate::world::{ms, run, store, take, try_take, until};

pub(crate) const TESTS: &[Test] =
    &[("f11_a_server_whose_boot_time_is_a_day_ahead_ends_leases_in_their_time", f11)];

fn kit() -> Option<(TempDir, NatsKit)> {
    let dir = tempfile::tempdir().unwrap();
    let program = a_day_ahead(&find("nats-server")?, dir.path()).unwrap()?;
    Some((dir, NatsKit::at(program)))
}

/// Whether the kernel gives a process clocks of its own.
pub(crate) fn is_there() -> bool {
    kit().is_some()
}

fn f11() {
    let (_dir, kit) = kit().unwrap();
    let server = kit.server("").unwrap();
    let offsets = std::fs::read_to_string(format!("/proc/{}/timens_offsets", server.server().pid())).unwrap();
    let boot = offsets.lines().find_map(|line| line.strip_prefix("boottime")).unwrap();
    assert_eq!(boot.split_whitespace().next(), Some("86400"), "{offsets}");
    run(async {
        let (first, second) = (store(&server).await, store(&server).await);
        take(&first, "n", "first", ms(60_000)).await;
        assert!(matches!(first.renew("first").await.unwrap(), Renewed::Renewed(_)));
        assert!(try_take(&second, "n", "other", ms(60_000)).await.is_none(), "it is held");
        // One that nobody renews ends neither early nor never, by the clock of this side.
        let clock = SystemClock::new();
        let (sent, ttl) = (clock.now(), ms(2_000));
        let old = take(&first, "m", "dead", ttl).await;
        let next = std::cell::Cell::new(None);
        until("it has ended by itself", async || {
            next.set(try_take(&second, "m", "next", ttl).await.map(|grant| grant.token));
            next.get().is_some()
        })
        .await;
        let lasted = clock.now().saturating_duration_since(sent);
        assert!(lasted >= ttl, "{lasted:?}");
        assert!(next.get() > Some(old));
        assert!(try_take(&second, "n", "other", ms(60_000)).await.is_none(), "and the other one is held");
    });
}
