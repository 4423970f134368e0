//! Tokens checked where the data lives.

use futures_util::future::join_all;
use mainstay_clock::{Rng as _, SeededRng};
use mainstay_nats::fence;
use mainstay_store::lease::Released;
use mainstay_store::{ErrorKind, FenceCheck, FencingToken, LeaseStore};
use serde_json::json;

use crate::Test;
use crate::world::{api, ms, nats, other, pause, run, store, take, until};

pub(crate) const TESTS: &[Test] = &[
    ("the_check_decides_as_the_rule_does", rule),
    ("of_writers_that_race_the_last_token_wins", race),
    ("f25_a_write_that_comes_after_the_lease_is_refused", f25),
    ("f40_a_broken_lease_is_fenced_off_only_once_the_resource_was_told", f40),
];

const STREAM: &str = "KV_data";
const SUBJECT: &str = "$KV.data.report";

async fn data(client: &async_nats::Client) {
    let body =
        json!({"name": STREAM, "subjects": ["$KV.data.>"], "max_msgs_per_subject": 1, "storage": "file"});
    api(client, "STREAM.CREATE.KV_data", body).await;
}

async fn value(client: &async_nats::Client) -> Option<Vec<u8>> {
    let kv = async_nats::jetstream::new(client.clone()).get_key_value("data").await.unwrap();
    kv.get("report").await.unwrap().map(|bytes| bytes.to_vec())
}

fn rule() {
    let server = nats();
    run(async {
        let client = other(&server).await;
        data(&client).await;
        let rng = SeededRng::new(7);
        let mut seen = FencingToken::ZERO;
        for round in 0..300_u64 {
            // Any number of digits, and neighbors of what was seen.
            let token = match round % 3 {
                0 => FencingToken::new(rng.next_u64() >> rng.below(64)),
                1 => seen.next(),
                _ => FencingToken::new(seen.get().saturating_sub(1)),
            };
            let text = round.to_string();
            let before = value(&client).await;
            let verdict = if round % 5 == 4 {
                fence::advance(&client, STREAM, SUBJECT, token).await.unwrap()
            } else {
                fence::put(&client, STREAM, SUBJECT, text.as_bytes(), token).await.unwrap()
            };
            assert_eq!(verdict, token.check(seen), "{token} after {seen}");
            if verdict == FenceCheck::Pass {
                seen = seen.max(token);
            }
            let written = verdict == FenceCheck::Pass && round % 5 != 4;
            assert_eq!(value(&client).await, if written { Some(text.into_bytes()) } else { before });
            if round % 50 == 49 {
                api(&client, "STREAM.PURGE.KV_data", json!({})).await;
                seen = FencingToken::ZERO;
            }
        }
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Fencing-Token", "seven");
        client.request_with_headers(SUBJECT, headers, "x".into()).await.unwrap();
        let error = fence::put(&client, STREAM, SUBJECT, b"y", FencingToken::new(8)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let error = fence::put(&client, "KV_none", SUBJECT, b"y", FencingToken::new(8)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    });
}

fn race() {
    let server = nats();
    run(async {
        let client = other(&server).await;
        data(&client).await;
        // Whoever outranks all others writes first: an unconditional write of the others would come over it.
        let writers = (1..=16_u64).rev().map(async |n| {
            let text = n.to_string();
            fence::put(&client, STREAM, SUBJECT, text.as_bytes(), FencingToken::new(n)).await.unwrap()
        });
        let verdicts = join_all(writers).await;
        assert_eq!(verdicts[0], FenceCheck::Pass, "nobody outranks it");
        assert_eq!(value(&client).await.unwrap(), b"16", "whoever came after it");
    });
}

fn f25() {
    let server = nats();
    run(async {
        let (store, client) = (store(&server).await, other(&server).await);
        data(&client).await;
        let old = take(&store, "a", "paused", ms(200)).await;
        pause(ms(210)).await;
        let new = take(&store, "a", "next", ms(60_000)).await;
        let set = async |text: &str, token| {
            fence::put(&client, STREAM, SUBJECT, text.as_bytes(), token).await.unwrap()
        };
        assert_eq!(set("new", new).await, FenceCheck::Pass);
        assert_eq!(set("late", old).await, FenceCheck::Stale { seen: new });
        assert_eq!(set("again", new).await, FenceCheck::Pass, "one holder writes often");
        assert_eq!(value(&client).await.unwrap(), b"again");
    });
}

fn f40() {
    let server = nats();
    run(async {
        let (store, client) = (store(&server).await, other(&server).await);
        data(&client).await;
        let old = take(&store, "a", "stuck", ms(60_000)).await;
        let burned = store.break_lease("a").await.unwrap();
        assert!(burned > old);
        assert_eq!(store.release("stuck").await.unwrap(), Released::AlreadyGone);
        // Until the resource hears of it, the old holder still writes.
        let put =
            async |text: &str| fence::put(&client, STREAM, SUBJECT, text.as_bytes(), old).await.unwrap();
        assert_eq!(put("1").await, FenceCheck::Pass);
        assert_eq!(fence::advance(&client, STREAM, SUBJECT, burned).await.unwrap(), FenceCheck::Pass);
        assert_eq!(put("2").await, FenceCheck::Stale { seen: burned });
        until("what was there stays", async || value(&client).await.as_deref() == Some(b"1")).await;
    });
}
