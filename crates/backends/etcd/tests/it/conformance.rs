//! etcd against the one suite.

use mainstay_sim::conformance;

use crate::world::{Patient, Test, World};

pub(crate) const TESTS: &[Test] = &[("etcd_conforms", |w| Box::pin(conforms(w)))];

async fn conforms(world: World) {
    let store = world.store().await;
    let sections = conformance::leases(&store, &Patient::default()).await;
    assert_eq!(
        sections.ran,
        ["mutex", "annotate", "break_lease", "line", "list", "permit", "shared", "watch"]
    );
    assert_eq!(sections.refused, ["transfer"], "only the next in line can be moved up (F35)");
    println!("etcd: {} sections", sections.ran.len() + sections.refused.len());
}
