//! PostgreSQL against the one suite.

use mainstay_postgres::Wake;
use mainstay_sim::conformance;
use mainstay_store::lease::ToldBy;

use crate::world::{ServerClock, Test, World, direct, open};

pub(crate) const TESTS: &[Test] = &[
    ("rows_conform", |w| Box::pin(rows_conform(w))),
    ("rows_conform_through_a_pooler", |w| Box::pin(rows_conform_through_a_pooler(w))),
];

/// Of the lease contract.
const EVERY_SECTION: [&str; 9] =
    ["mutex", "annotate", "break_lease", "line", "list", "permit", "shared", "transfer", "watch"];

async fn rows_conform(world: World) {
    let clock = ServerClock::make(&world, "conform").await;
    let store = open(direct(&clock.url(&world))).await;
    let sections = conformance::leases(&store, &clock).await;
    assert_eq!(sections.ran, EVERY_SECTION);
    assert!(sections.refused.is_empty());
    assert_eq!(conformance::since_when(&store, &clock).await, ToldBy::Store);
    assert_eq!(conformance::records(&store, &clock).await, 6);
    println!("postgres, rows: {} sections", sections.ran.len());
}

async fn rows_conform_through_a_pooler(world: World) {
    let clock = ServerClock::make(&world, "conform_timers").await;
    let store = open(direct(&clock.url(&world)).wake(Wake::Timers).connections(1)).await;
    let sections = conformance::leases(&store, &clock).await;
    assert_eq!(sections.ran, EVERY_SECTION[..8]);
    assert_eq!(sections.refused, ["watch"]);
}
