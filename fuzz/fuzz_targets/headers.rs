//! What peers say about time: `Retry-After`, push-back, `grpc-timeout`, deadlines in milliseconds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mainstay_clock::{Instant, WallTime};
use mainstay_resilience::retry::{pushback, retry_after};
use mainstay_resilience::timeout::wire;

fuzz_target!(|text: &str| {
    for now in [0, 1_700_000_000_000, i64::MAX, i64::MIN] {
        let _ = retry_after(text, WallTime::from_unix_millis(now));
    }
    let _ = pushback(text);
    if let Ok(left) = wire::read_grpc(text) {
        // Writing may only shorten: eight digits of a coarser unit. Nothing left is still written as a moment.
        assert!(wire::read_grpc(&wire::write_grpc(left)).unwrap() <= left.max(std::time::Duration::from_millis(1)));
    }
    if let Ok(left) = wire::read_ms(text) {
        assert_eq!(wire::read_ms(&wire::write_ms(left)).unwrap(), left);
    }
    let now = Instant::FAR_FUTURE;
    let _ = wire::read(|_| Some(text), now);
});
