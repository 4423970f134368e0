//! A server whose wall clock jumps, by a preload that shifts it: the clock of the machine is never set.

use std::time::Duration;

use mainstay_postgres::fence;
use mainstay_sim::servers::{FAKETIME, library};
use mainstay_store::lease::{Acquired, Renewed};
use mainstay_store::{FenceCheck, LeaseStore};

use crate::world::{Test, World, ask, connect, direct, open, take};

pub(crate) const TESTS: &[Test] =
    &[("f11_a_jump_of_the_clock_of_the_whole_server_is_fenced_and_mended", |w| Box::pin(f11(w)))];

/// Whether the preload is installed.
pub(crate) fn is_there() -> bool {
    library(FAKETIME).is_some()
}

async fn f11(world: World) {
    let (server, offset) = world.kit.shifted().unwrap();
    let (url, table) = (server.url(), world.table());
    let store = async || open(direct(&url).table(&table)).await;
    let (first, second, resource) = (store().await, store().await, connect(&url).await);
    resource.batch_execute(fence::CREATE).await.unwrap();
    let old = take(&first, "n", "first").await.unwrap();
    assert!(matches!(first.renew("first").await.unwrap(), Renewed::Renewed(_)));
    // Two minutes ahead: the lease is gone there, though its holder thinks otherwise.
    std::fs::write(&offset, "+120s").unwrap();
    let new = take(&second, "n", "second").await.unwrap();
    assert!(new > old);
    assert_eq!(fence::advance(&resource, "d", new).await.unwrap(), FenceCheck::Pass);
    let late = fence::advance(&resource, "d", old).await.unwrap();
    assert_eq!(late, FenceCheck::Stale { seen: new }, "the resource refuses the first");
    assert_eq!(first.renew("first").await.unwrap(), Renewed::Lost);
    // An hour back: the lease sticks, is seen to, and can be ended.
    std::fs::write(&offset, "-3600s").unwrap();
    let held = first.acquire(ask("n", "third")).await.unwrap();
    let Acquired::Held { remaining: Some(left), .. } = held else { panic!("{held:?}") };
    assert!(left > Duration::from_secs(3_000), "{left:?}");
    let burned = first.break_lease("n").await.unwrap();
    let third = take(&first, "n", "third").await.unwrap();
    assert!(new < burned && burned < third, "tokens do not follow the clock back: {new} {burned} {third}");
    assert_eq!(second.renew("second").await.unwrap(), Renewed::Lost);
}
