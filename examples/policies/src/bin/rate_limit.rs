//! Fifty calls per second, at most five at once; who may wait takes a turn, who may not hears when to come back.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::future::join_all;
use mainstay::clock::{Clock as _, Deadline, SystemClock};
use mainstay::resilience::limit::{RateError, RateLimiter};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let (clock, ms) = (SystemClock::new(), Duration::from_millis);
    let limiter = RateLimiter::builder("api").rate(50, Duration::from_secs(1)).burst(5).build()?;

    // A burst of twenty: five pass, and whatever becomes due meanwhile.
    let burst: Vec<_> = (0..20).map(|_| limiter.check()).collect();
    let passed = burst.iter().filter(|one| one.is_ok()).count();
    let wait = burst.iter().find_map(|one| one.as_ref().err()?.retry_after()).context("not all can pass")?;
    println!("{passed} of 20 at once; the next one in {wait:?}");
    ensure!((5..20).contains(&passed) && wait <= ms(20));

    // Ten callers with time wait their turns, 20 ms apart.
    let begun = clock.now();
    let turns = join_all((0..10).map(|_| limiter.acquire(Deadline::NONE))).await;
    let took = clock.now().saturating_duration_since(begun);
    println!("10 turns in {took:?}");
    ensure!(turns.iter().all(Result::is_ok) && took >= ms(100));

    // Who has only 30 ms does not wait for a turn that comes later.
    let soon = Deadline::after(clock.now(), ms(30));
    let turns = join_all((0..10).map(|_| limiter.acquire(soon))).await;
    let in_time = turns.iter().filter(|t| t.is_ok()).count();
    println!("{in_time} of 10 turns within 30 ms");
    ensure!((1..10).contains(&in_time));

    // More at once than the burst holds can never pass, so it is a mistake and not a wait.
    ensure!(matches!(limiter.check_n(6), Err(RateError::OverBurst(_))));
    Ok(())
}
