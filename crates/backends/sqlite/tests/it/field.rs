//! What goes wrong in the field, on a lease file: the cells that the suites do not name.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, Runtime, SeededRng};
use mainstay_sqlite::{Driver, SqliteLeases};
use mainstay_store::lease::{AcquireRequest, Acquired, Released, Renewed};
use mainstay_store::{FencingToken, LeaseStore};

use crate::conformance::Files;

const TTL: Duration = Duration::from_secs(5);

pub(crate) struct World {
    _files: Files,
    pub(crate) file: PathBuf,
    pub(crate) clock: VirtualClock,
    /// Every process draws other numbers.
    seeds: AtomicU64,
}

impl World {
    pub(crate) fn new() -> Self {
        let files = Files::new();
        let seeds = AtomicU64::new(1);
        Self { file: files.fresh(), _files: files, clock: VirtualClock::new(), seeds }
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seeds.fetch_add(1, Ordering::Relaxed) << 32
    }

    pub(crate) fn open(&self) -> SqliteLeases {
        let rt = Runtime::on_tokio(Arc::new(self.clock.clone()), Arc::new(SeededRng::new(self.seed())));
        SqliteLeases::builder(&self.file).driver(Driver::Inline).open(&rt).unwrap()
    }
}

async fn take(store: &SqliteLeases, owner: &str, op: &str, ttl: Duration) -> Option<FencingToken> {
    match store.acquire(AcquireRequest::exclusive("n", owner, op, ttl)).await.unwrap() {
        Acquired::Granted(grants) => Some(grants[0].token),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn f04_f16_a_repeated_request_has_its_token_and_its_own_ttl() {
    let w = World::new();
    let store = w.open();
    let token = take(&store, "a", "op", TTL).await.unwrap();
    assert_eq!(take(&store, "a", "op", 2 * TTL).await, Some(token), "the first answer was lost");
    w.clock.sleep(TTL).await;
    assert!(take(&store, "b", "other", TTL).await.is_none(), "it was asked for twice as long");
    assert!(matches!(store.renew("op").await.unwrap(), Renewed::Renewed(g) if g[0].token == token));
    let burned = store.break_lease("n").await.unwrap();
    assert!(
        burned > token && take(&store, "b", "other", TTL).await.unwrap() > burned,
        "the counter survives"
    );
}

#[tokio::test(start_paused = true)]
async fn f18_f20_f22_a_stale_run_of_the_same_name_releases_and_renews_nothing() {
    let w = World::new();
    let store = w.open();
    take(&store, "host-7", "old", TTL).await.unwrap();
    w.clock.sleep(TTL).await;
    let token = take(&store, "host-7", "new", TTL).await.unwrap();
    assert_eq!(store.renew("old").await.unwrap(), Renewed::Lost);
    for _ in 0..2 {
        assert_eq!(store.release("old").await.unwrap(), Released::AlreadyGone);
    }
    assert_eq!(store.inspect("n").await.unwrap().holders[0].token, token);
}

#[tokio::test(start_paused = true)]
async fn f26_f41_tokens_grow_over_a_file_that_was_put_back_from_a_copy() {
    let w = World::new();
    let before = take(&w.open(), "a", "one", TTL).await.unwrap();
    let copy = w.file.with_extension("copy");
    std::fs::copy(&w.file, &copy).unwrap();
    w.clock.sleep(TTL).await;
    let lost = take(&w.open(), "a", "two", TTL).await.unwrap();
    assert!(lost > before);
    w.clock.sleep(TTL).await;
    for part in ["-wal", "-shm"] {
        let beside = format!("{}{part}", w.file.display());
        if Path::new(&beside).exists() {
            std::fs::remove_file(beside).unwrap();
        }
    }
    std::fs::copy(&copy, &w.file).unwrap();
    assert!(
        take(&w.open(), "b", "three", TTL).await.unwrap() > lost,
        "the clock in a token is ahead of the copy"
    );
}

#[tokio::test(start_paused = true)]
async fn f40_a_broken_lease_burns_a_token_and_its_holder_says_nothing_more() {
    let w = World::new();
    let store = w.open();
    let token = take(&store, "a", "op", TTL).await.unwrap();
    let burned = store.break_lease("n").await.unwrap();
    assert!(burned > token);
    assert!(!store.annotate("n", token, b"late".to_vec()).await.unwrap());
    assert_eq!(store.renew("op").await.unwrap(), Renewed::Broken);
    assert!(store.inspect("n").await.unwrap().last_token >= burned);
}
