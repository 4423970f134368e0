//! Tokens checked where the data lives.

use mainstay_clock::{Rng as _, SeededRng};
use mainstay_redis::fence;
use mainstay_store::lease::Released;
use mainstay_store::{ErrorKind, FenceCheck, FencingToken, LeaseStore};

use crate::Test;
use crate::world::{ms, number, other, pause, redis, run, store, take, text};

pub(crate) const TESTS: &[Test] = &[
    ("the_script_decides_as_the_rule_does", rule),
    ("f25_a_write_that_comes_after_the_lease_is_refused", f25),
    ("f40_a_broken_lease_is_fenced_off_only_once_the_resource_was_told", f40),
];

fn rule() {
    let server = redis(&[]);
    run(async {
        let mut redis = other(&server).await;
        let rng = SeededRng::new(7);
        let mut seen = FencingToken::ZERO;
        for round in 0..500_u64 {
            // Any number of digits, and neighbors of what was seen.
            let token = match round % 3 {
                0 => FencingToken::new(rng.next_u64() >> rng.below(64)),
                1 => seen.next(),
                _ => FencingToken::new(seen.get().saturating_sub(1)),
            };
            let value = round.to_string();
            let verdict = fence::set(&mut redis, "{v}:fence", "{v}", value.as_bytes(), token).await.unwrap();
            assert_eq!(verdict, token.check(seen), "{token} after {seen}");
            if verdict == FenceCheck::Pass {
                seen = token;
                assert_eq!(text(&mut redis, &["GET", "{v}"]).await, value);
            }
            if round % 50 == 49 {
                seen = FencingToken::ZERO;
                text(&mut redis, &["SET", "{v}:fence", "0"]).await;
            }
        }
        let _: i64 = redis::cmd("LPUSH").arg("list").arg(1).query_async(&mut redis).await.unwrap();
        let error = fence::advance(&mut redis, "list", seen).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    });
}

fn f25() {
    let server = redis(&[]);
    run(async {
        let (store, mut redis) = (store(&server), other(&server).await);
        let old = take(&store, "a", "paused", ms(100)).await;
        pause(ms(101)).await;
        let new = take(&store, "a", "next", ms(60_000)).await;
        let set = async |value: &[u8], token| {
            fence::set(&mut redis.clone(), "{a}:data:fence", "{a}:data", value, token).await.unwrap()
        };
        assert_eq!(set(b"new", new).await, FenceCheck::Pass);
        assert_eq!(set(b"late", old).await, FenceCheck::Stale { seen: new });
        assert_eq!(set(b"again", new).await, FenceCheck::Pass, "one holder writes often");
        assert_eq!(text(&mut redis, &["GET", "{a}:data"]).await, "again");
    });
}

fn f40() {
    let server = redis(&[]);
    run(async {
        let (store, mut redis) = (store(&server), other(&server).await);
        let old = take(&store, "a", "stuck", ms(60_000)).await;
        let burned = store.break_lease("a").await.unwrap();
        assert!(burned > old);
        let told = number(&mut redis, &["PTTL", "{a}:broken"]).await;
        assert!(told > 50_000 && told <= 60_000, "as long as the lock would have lasted: {told}");
        assert_eq!(store.release("stuck").await.unwrap(), Released::AlreadyGone);
        // Until the resource hears of it, the old holder still writes.
        let verdict = fence::set(&mut redis, "{d}:fence", "{d}", b"1", old).await.unwrap();
        assert_eq!(verdict, FenceCheck::Pass);
        assert_eq!(fence::advance(&mut redis, "{d}:fence", burned).await.unwrap(), FenceCheck::Pass);
        let verdict = fence::set(&mut redis, "{d}:fence", "{d}", b"2", old).await.unwrap();
        assert_eq!(verdict, FenceCheck::Stale { seen: burned });
        assert_eq!(text(&mut redis, &["GET", "{d}"]).await, "1");
    });
}
