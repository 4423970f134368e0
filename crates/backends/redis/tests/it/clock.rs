//! A server whose wall clock jumps, by a preload that shifts it: the clock of the machine is never set.

use std::path::PathBuf;

use mainstay_redis::fence;
use mainstay_sim::servers::{FAKETIME, Launch, Server, find, library};
use mainstay_store::lease::Renewed;
use mainstay_store::{FenceCheck, LeaseStore};

use crate::Test;
use crate::world::{ms, other, run, store, take, until};

pub(crate) const TESTS: &[Test] = &[("f11_a_jump_of_the_servers_clock_is_fenced_noticed_and_mended", f11)];

/// A server and the file that says by how much its clock is off. The C library comes second, or Redis hangs
/// at its start: its allocator reads the clock before the preload can.
fn shifted() -> (Server, PathBuf) {
    let (fake, libc) = (library(FAKETIME).unwrap(), library("libc.so.6").unwrap());
    let redis = find("redis-server").unwrap();
    let server = Server::start(&find("env").unwrap(), |setup| {
        let file = setup.dir.join("offset");
        let (ip, port) = (setup.address.ip().to_string(), setup.address.port().to_string());
        Launch::new()
            .file("offset", "+0s")
            .args([
                format!("LD_PRELOAD={} {}", fake.display(), libc.display()),
                format!("FAKETIME_TIMESTAMP_FILE={}", file.display()),
                "FAKETIME_NO_CACHE=1".to_owned(),
                "DONT_FAKE_MONOTONIC=1".to_owned(),
                redis.display().to_string(),
            ])
            .args(["--bind", &ip, "--port", &port, "--save", "", "--daemonize", "no"])
    })
    .unwrap();
    let file = server.dir().join("offset");
    (server, file)
}

fn f11() {
    let (server, offset) = shifted();
    run(async {
        let (first, second, mut redis) = (store(&server), store(&server), other(&server).await);
        let old = take(&first, "a", "first", ms(30_000)).await;
        assert!(matches!(first.renew("first").await.unwrap(), Renewed::Renewed(_)));
        // A minute ahead: the lease is gone there, though its holder thinks otherwise.
        std::fs::write(&offset, "+60s").unwrap();
        let new = take(&second, "a", "second", ms(30_000)).await;
        assert!(new > old);
        let verdict = fence::advance(&mut redis, "{d}:fence", new).await.unwrap();
        assert_eq!(verdict, FenceCheck::Pass);
        let late = fence::set(&mut redis, "{d}:fence", "{d}", b"late", old).await.unwrap();
        assert_eq!(late, FenceCheck::Stale { seen: new }, "the resource refuses the first");
        assert_eq!(first.renew("first").await.unwrap(), Renewed::Lost);
        // An hour back: the lease sticks, is seen to, and can be ended.
        assert!(matches!(second.renew("second").await.unwrap(), Renewed::Renewed(_)));
        std::fs::write(&offset, "-3600s").unwrap();
        until("it sticks", async || {
            second.inspect("a").await.unwrap().holders.first().is_some_and(|h| h.remaining > ms(3_000_000))
        })
        .await;
        let burned = second.break_lease("a").await.unwrap();
        assert!(burned > new, "the counter does not follow the clock back");
        let third = take(&second, "a", "third", ms(30_000)).await;
        assert!(third > burned);
        assert!(matches!(second.renew("third").await.unwrap(), Renewed::Renewed(_)));
        let health = second.health();
        assert_eq!(health.clock_jumps, 1, "noticed between two renewals");
        assert!((-3_700_000..-3_600_000).contains(&health.last_jump_ms), "{}", health.last_jump_ms);
    });
}

/// Whether the preload is installed.
pub(crate) fn is_there() -> bool {
    library(FAKETIME).is_some() && find("redis-server").is_some()
}
