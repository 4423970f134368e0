//! What every replicated store must tell its sessions.

use std::time::Duration;

use mainstay_store::replicated::{Judgment, Mark, judge};
use mainstay_store::{BoxFuture, ReplicatedStore};

/// A primary and one replica that the suite can hold back and fail over.
pub trait Cluster: Send + Sync {
    /// A connection to the primary.
    fn primary(&self) -> &dyn ReplicatedStore;

    /// A connection to the replica.
    fn replica(&self) -> &dyn ReplicatedStore;

    /// Commits a write through [`primary`](Cluster::primary).
    fn write(&self) -> BoxFuture<'_, ()>;

    /// Stops the replica from getting writes, or lets it get them again.
    fn hold_back(&self, held: bool) -> BoxFuture<'_, ()>;

    /// Makes the replica the primary with what it has.
    fn fail_over(&self) -> BoxFuture<'_, ()>;
}

/// Longest that a connected replica may take.
const CATCH_UP: Duration = Duration::from_secs(60);

/// Runs every check of the replication contract on a fresh cluster.
///
/// # Panics
/// When a check fails.
pub async fn replicated(cluster: &dyn Cluster) -> usize {
    let before = cluster.primary().observe().await.unwrap();
    cluster.write().await;
    let first = cluster.primary().commit_position().await.unwrap();
    let after = cluster.primary().observe().await.unwrap();
    assert_eq!(judge(&first, &after), Judgment::Satisfied, "a primary has what it committed");
    assert_eq!(judge(&first, &before), Judgment::Behind, "a position grows with a write");
    assert_eq!(cluster.replica().wait(&first, CATCH_UP).await.unwrap(), Judgment::Satisfied);

    let foreign = Mark { system: format!("not {}", first.system), ..first.clone() };
    assert_eq!(cluster.replica().wait(&foreign, CATCH_UP).await.unwrap(), Judgment::Foreign);

    cluster.hold_back(true).await;
    cluster.write().await;
    let second = cluster.primary().commit_position().await.unwrap();
    let short = Duration::from_millis(20);
    assert_eq!(cluster.replica().wait(&second, short).await.unwrap(), Judgment::Behind);
    let behind = cluster.replica().observe().await.unwrap();
    assert_eq!(judge(&first, &behind), Judgment::Satisfied, "what it had it keeps");

    cluster.fail_over().await;
    assert_eq!(cluster.replica().wait(&first, CATCH_UP).await.unwrap(), Judgment::Satisfied);
    let lost = cluster.replica().wait(&second, CATCH_UP).await.unwrap();
    assert_eq!(lost, Judgment::Lost, "a failover that lost the write must say so, whatever comes after it");
    4
}
