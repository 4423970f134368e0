//! What every record store and durable cell must do.

use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_store::{DurableCell, PutIf, RecordStore};

/// Of what is to end while it is looked at.
const SHORT: Duration = Duration::from_secs(5);
/// How often a look that has to be quick is tried before the machine is said to be too slow for it.
const TRIES: u32 = 10;

/// Runs every check of the record contract on a fresh store.
///
/// # Panics
/// When a check fails.
pub async fn records(store: &dyn RecordStore, clock: &dyn Clock) -> usize {
    let put = async |key: &str, expected, value: &[u8], ttl| {
        store.put_if(key, expected, value.to_vec(), ttl).await.unwrap()
    };
    let PutIf::Stored(first) = put("k", None, b"1", None).await else { panic!("absent key must be stored") };
    assert!(matches!(put("k", None, b"2", None).await, PutIf::Conflict(Some(r)) if r.version == first));
    let PutIf::Stored(second) = put("k", Some(first), b"2", None).await else { panic!("version matches") };
    assert!(second > first);
    assert!(!store.delete_if("k", first).await.unwrap());
    assert!(store.delete_if("k", second).await.unwrap());
    assert!(store.get("k").await.unwrap().is_none());
    let PutIf::Stored(third) = put("k", None, b"3", None).await else { panic!("deleted key is absent") };
    assert!(third > second, "versions are never reused");

    let mut seen = None;
    for n in 0..TRIES {
        let (key, start) = (format!("t{n}"), clock.now());
        put(&key, None, b"x", Some(SHORT)).await;
        let found = store.get(&key).await.unwrap();
        // Later than that it may have ended.
        if clock.now().saturating_duration_since(start) < SHORT {
            assert!(found.is_some(), "it has not ended");
            seen = Some(key);
            break;
        }
    }
    let key = seen.expect("the machine is too slow to look at a record before it ends");
    clock.sleep(SHORT + Duration::from_secs(1)).await;
    assert!(store.get(&key).await.unwrap().is_none(), "a record ends with its ttl");

    if let Some(before) = store.now().await.unwrap() {
        clock.sleep(Duration::from_secs(1)).await;
        let after = store.now().await.unwrap();
        assert!(after.is_some_and(|after| after >= before), "time is told always or never, and goes on");
    }

    // What ended leaves its version behind, also when the store has forgotten it since.
    let PutIf::Stored(ended) = put("e", None, b"x", Some(Duration::from_secs(1))).await else {
        panic!("absent")
    };
    clock.sleep(Duration::from_secs(2)).await;
    for n in 0..20 {
        put(&format!("sweep/{n}"), None, b"x", None).await;
    }
    let PutIf::Stored(anew) = put("e", None, b"y", None).await else { panic!("it has ended") };
    assert!(anew > ended, "versions are never reused");

    for key in ["p/1", "p/2", "p/3", "q/1"] {
        put(key, None, key.as_bytes(), None).await;
    }
    let keys = async |after, limit| -> Vec<String> {
        store.list("p/", after, limit).await.unwrap().into_iter().map(|r| r.key).collect()
    };
    assert_eq!(keys(None, 2).await, ["p/1", "p/2"]);
    assert_eq!(keys(Some("p/2"), 2).await, ["p/3"]);

    // Of many who write at once with the same expectation one wins.
    let race = (0..8_u8).map(|n| store.put_if("race", None, vec![n], None));
    let won = futures_util::future::join_all(race)
        .await
        .into_iter()
        .filter(|r| matches!(r, Ok(PutIf::Stored(_))))
        .count();
    assert_eq!(won, 1, "compare and set has one winner");
    6
}

/// Runs every check of the cell contract on an empty cell.
///
/// # Panics
/// When a check fails.
pub async fn cell(cell: &dyn DurableCell) -> usize {
    assert_eq!(cell.load().await.unwrap(), None);
    for value in [&b"one"[..], b"two", b""] {
        cell.store_synced(value.to_vec()).await.unwrap();
        assert_eq!(cell.load().await.unwrap().as_deref(), Some(value));
    }
    1
}
