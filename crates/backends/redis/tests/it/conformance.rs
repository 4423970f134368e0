//! The one suite of the lease contract.

use mainstay_clock::SystemClock;
use mainstay_sim::conformance;
use mainstay_store::lease::ToldBy;

use crate::Test;
use crate::quorum::{quorum, servers};
use crate::world::{redis, run, store};

pub(crate) const TESTS: &[Test] = &[("one_server_and_a_quorum_conform", conform)];

fn conform() {
    let (server, five) = (redis(&[]), servers(5));
    // Side by side: most of the time is spent waiting for leases to end.
    run(async {
        let (single, quorum) = (store(&server), quorum(&five));
        let clock = SystemClock::new();
        let (one, many) =
            tokio::join!(conformance::leases(&single, &clock), conformance::leases(&quorum, &clock));
        let all =
            ["mutex", "annotate", "break_lease", "line", "list", "permit", "shared", "transfer", "watch"];
        assert_eq!(one.ran, all);
        assert!(one.refused.is_empty());
        assert_eq!(many.ran, ["mutex", "annotate", "break_lease", "list", "watch"]);
        assert_eq!(many.refused, ["line", "permit", "shared", "transfer"]);
        assert_eq!(conformance::since_when(&single, &clock).await, ToldBy::Store);
        assert_eq!(conformance::records(&single, &clock).await, 6);
        // Each server of several has a calendar of its own.
        assert_eq!(conformance::since_when(&quorum, &clock).await, ToldBy::Holder);
        println!("redis, one server and a quorum: {} checks each", one.ran.len() + one.refused.len());
    });
}
