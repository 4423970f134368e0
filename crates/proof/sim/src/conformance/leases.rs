//! What every lease store must do: the exclusive mutex.

use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_store::lease::{AcquireRequest, Acquired, Released, Renewed};
use mainstay_store::{ErrorKind, FencingToken, LeaseStore};

const TTL: Duration = Duration::from_secs(5);

async fn take(store: &dyn LeaseStore, name: &str, op: &str) -> Option<FencingToken> {
    match store.acquire(AcquireRequest::exclusive(name, op, op, TTL)).await.unwrap() {
        Acquired::Granted(grants) => Some(grants[0].token),
        Acquired::Held { .. } => None,
        Acquired::Queued { .. } => panic!("a try must not queue"),
    }
}

/// Runs every check of the mutex part of the lease contract on a fresh store.
///
/// # Panics
/// When a check fails.
pub async fn mutex(store: &dyn LeaseStore, clock: &dyn Clock) -> usize {
    exclusive_and_idempotent(store).await;
    tokens_only_grow(store, clock).await;
    all_names_or_none(store).await;
    misuse_is_refused(store).await;
    4
}

async fn exclusive_and_idempotent(store: &dyn LeaseStore) {
    let token = take(store, "a", "op1").await.unwrap();
    assert_eq!(take(store, "a", "op1").await, Some(token), "a repeated request keeps its token");
    let held = store.acquire(AcquireRequest::exclusive("a", "me", "op2", TTL)).await.unwrap();
    let Acquired::Held { by, remaining } = held else { panic!("{held:?}") };
    assert_eq!(by, "op1");
    assert!(remaining.is_none_or(|r| r <= TTL));
    assert_eq!(store.release("op2").await.unwrap(), Released::AlreadyGone, "others release nothing");
    assert_eq!(store.inspect("a").await.unwrap().holders.len(), 1);
    assert_eq!(store.release("op1").await.unwrap(), Released::Clean);
    assert_eq!(store.release("op1").await.unwrap(), Released::AlreadyGone);
    assert!(store.inspect("a").await.unwrap().holders.is_empty());
}

async fn tokens_only_grow(store: &dyn LeaseStore, clock: &dyn Clock) {
    let first = take(store, "b", "op1").await.unwrap();
    clock.sleep(TTL / 2).await;
    assert!(matches!(store.renew("op1").await.unwrap(), Renewed::Renewed(g) if g[0].token == first));
    clock.sleep(TTL / 2 + TTL / 4).await;
    assert_eq!(take(store, "b", "op2").await, None, "a renewed lease lives on");
    clock.sleep(TTL).await;
    assert_eq!(store.renew("op1").await.unwrap(), Renewed::Lost);
    let second = take(store, "b", "op2").await.unwrap();
    assert!(second > first, "{second} > {first}");
    assert_eq!(store.release("op1").await.unwrap(), Released::AlreadyGone, "someone else's lease survives");
    let burned = store.break_lease("b").await.unwrap();
    assert!(burned > second);
    assert_eq!(store.renew("op2").await.unwrap(), Renewed::Lost);
    assert!(take(store, "b", "op3").await.unwrap() > burned);
}

async fn all_names_or_none(store: &dyn LeaseStore) {
    take(store, "n2", "other").await.unwrap();
    let mut both = AcquireRequest::exclusive("n1", "me", "op", TTL);
    both.names = vec!["n1".to_owned(), "n2".to_owned()];
    assert!(matches!(store.acquire(both.clone()).await.unwrap(), Acquired::Held { .. }));
    assert!(store.inspect("n1").await.unwrap().holders.is_empty(), "none is taken");
    store.release("other").await.unwrap();
    assert!(matches!(store.acquire(both.clone()).await.unwrap(), Acquired::Granted(g) if g.len() == 2));
    let mut needs = AcquireRequest::exclusive("n3", "me", "op3", TTL);
    needs.require = vec![("n1".to_owned(), FencingToken::new(u64::MAX >> 1))];
    assert!(matches!(store.acquire(needs).await.unwrap(), Acquired::Held { .. }));
    let listed: Vec<String> = store.list("n", 10).await.unwrap().into_iter().map(|l| l.name).collect();
    assert_eq!(listed, ["n1", "n2"]);
}

async fn misuse_is_refused(store: &dyn LeaseStore) {
    let mut unsorted = AcquireRequest::exclusive("z", "me", "op", TTL);
    unsorted.names = vec!["z".to_owned(), "a".to_owned()];
    let zero = AcquireRequest::exclusive("z", "me", "op", Duration::ZERO);
    for request in [unsorted, zero] {
        assert_eq!(store.acquire(request).await.unwrap_err().kind(), ErrorKind::ApiMisuse);
    }
}
