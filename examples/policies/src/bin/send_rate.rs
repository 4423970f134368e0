//! A table takes forty requests per second and answers "slow down" to the rest. Attempts are paced until it hardly has
//! to.

use std::cell::Cell;
use std::time::Duration;

use anyhow::ensure;
use example_policies::virtual_runtime;
use futures_util::future::join_all;
use mainstay::resilience::limit::{RateLimiter, SendRate};
use mainstay::resilience::{CallContext, Classify, Policy, Verdict};

/// The table refused for load.
#[derive(Debug)]
struct SlowDown;

impl Classify for SlowDown {
    fn verdict(&self) -> Verdict {
        Verdict::Throttled { after: None }
    }
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> anyhow::Result<()> {
    let runtime = virtual_runtime();
    let clock = runtime.clock();
    let table = RateLimiter::builder("table").rate(40, Duration::from_secs(1)).burst(10);
    let table = table.runtime(&runtime).build()?;
    let rate = SendRate::builder("table").runtime(&runtime).build()?;
    let policy = Policy::builder("table").send_rate(&rate).runtime(&runtime).build()?;

    // Twenty callers who never stop, for a second and a half.
    let (sent, throttled, begun) = (Cell::new(0_u32), Cell::new(0_u32), clock.now());
    let caller = |_| async {
        while clock.now().saturating_duration_since(begun) < Duration::from_millis(1_500) {
            let cx = CallContext::new().within(Duration::from_millis(300), &**clock);
            let call = policy.call(&cx, |_| {
                sent.set(sent.get() + 1);
                std::future::ready(table.check().map_err(|_| SlowDown))
            });
            match call.await {
                Err(error) if error.was_started() => throttled.set(throttled.get() + 1),
                _ => {}
            }
            clock.sleep(Duration::from_millis(5)).await;
        }
    };
    join_all((0..20).map(caller)).await;

    // Unpaced, twenty callers would send some thousands, and nearly all of them for nothing.
    println!("{} sent, {} throttled; the rate is {:?}", sent.get(), throttled.get(), rate.snapshot().rate);
    ensure!((10..=150).contains(&sent.get()), "{} sent", sent.get());
    ensure!(throttled.get() > 0 && rate.snapshot().rate.is_some());
    Ok(())
}
