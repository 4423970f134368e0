//! The one suite of the lease contract.

use mainstay_clock::SystemClock;
use mainstay_sim::conformance;

use crate::Test;
use crate::world::{redis, run, store};

pub(crate) const TESTS: &[Test] = &[("one_server_conforms", one_server_conforms)];

fn one_server_conforms() {
    let server = redis(&[]);
    run(async {
        let sections = conformance::leases(&store(&server), &SystemClock::new()).await;
        let ran = ["mutex", "annotate", "break_lease", "list", "permit", "shared", "watch"];
        assert_eq!(sections.ran, ran);
        assert_eq!(sections.refused, ["line", "transfer"]);
        println!("redis, one server: {} checks", sections.ran.len() + sections.refused.len());
    });
}
