//! Fifty calls per second, at most five at once; who may wait takes a turn, who may not hears when to come back.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use example_policies::virtual_runtime;
use futures_util::future::join_all;
use mainstay::clock::Deadline;
use mainstay::resilience::limit::{RateError, RateLimiter};

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> anyhow::Result<()> {
    let (runtime, ms) = (virtual_runtime(), Duration::from_millis);
    let clock = runtime.clock();
    let limiter =
        RateLimiter::builder("api").rate(50, Duration::from_secs(1)).burst(5).runtime(&runtime).build()?;

    // A burst of twenty: five pass.
    let burst: Vec<_> = (0..20).map(|_| limiter.check()).collect();
    let passed = burst.iter().filter(|one| one.is_ok()).count();
    let wait = burst.iter().find_map(|one| one.as_ref().err()?.retry_after()).context("not all can pass")?;
    println!("{passed} of 20 at once; the next one in {wait:?}");
    ensure!(passed == 5 && wait <= ms(20));

    // Ten callers with time wait their turns, 20 ms apart.
    let begun = clock.now();
    let turns = join_all((0..10).map(|_| limiter.acquire(Deadline::NONE))).await;
    let took = clock.now().saturating_duration_since(begun);
    println!("10 turns in {took:?}");
    ensure!(turns.iter().all(Result::is_ok) && took >= ms(180) && took <= ms(220));

    // Who has only 30 ms does not wait for a turn that comes later.
    let soon = Deadline::after(clock.now(), ms(30));
    let turns = join_all((0..10).map(|_| limiter.acquire(soon))).await;
    let in_time = turns.iter().filter(|t| t.is_ok()).count();
    println!("{in_time} of 10 turns within 30 ms");
    ensure!(in_time == 1);

    // More at once than the burst holds can never pass, so it is a mistake and not a wait.
    ensure!(matches!(limiter.check_n(6), Err(RateError::OverBurst(_))));
    Ok(())
}
