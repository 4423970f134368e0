//! The one suite of the lease contract.

use mainstay_clock::SystemClock;
use mainstay_nats::Expiry;
use mainstay_sim::conformance;
use mainstay_store::LeaseStore;

use crate::Test;
use crate::world::{bucket, nats, run};

pub(crate) const TESTS: &[Test] = &[("both_ways_of_expiry_conform", conform)];

fn conform() {
    let server = nats();
    // Side by side: most of the time is spent waiting for leases to end.
    run(async {
        let clock = SystemClock::new();
        let observed = bucket(&server, "observed", |b| b.expiry(Expiry::Observer)).await;
        let ended = bucket(&server, "ended", |b| b.expiry(Expiry::Server)).await;
        let (one, two) =
            tokio::join!(conformance::leases(&observed, &clock), conformance::leases(&ended, &clock));
        for sections in [one, two] {
            assert_eq!(
                sections.ran,
                ["mutex", "annotate", "break_lease", "line", "list", "permit", "shared", "transfer", "watch"]
            );
            println!("nats: {} checks", sections.ran.len() + sections.refused.len());
        }
        assert_ne!(observed.guarantees().clock, ended.guarantees().clock);
    });
}
