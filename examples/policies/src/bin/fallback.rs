//! When prices cannot be had, yesterday's will do; when the product does not exist, they will not.

use std::io::{Error, ErrorKind};

use anyhow::{Context as _, ensure};
use mainstay::resilience::fallback::Fallback;
use mainstay::resilience::{Breaker, CallContext, CallError, Policy};

/// A price, and whether it is from today.
type Price = (u32, bool);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let breaker = Breaker::builder("prices").consecutive(2).build()?;
    let policy = Policy::builder("prices").breaker(&breaker).build()?;
    let fallback = Fallback::new("yesterday's prices")?;
    let cx = CallContext::new();

    let price = async |live: Result<Price, ErrorKind>, cache: Option<Price>| {
        let call = policy.call(&cx, |_| std::future::ready(live.map_err(Error::from)));
        let second =
            |_: &CallError<Error>| std::future::ready(cache.ok_or_else(|| ErrorKind::NotFound.into()));
        fallback.call(call, second).await
    };

    ensure!(price(Ok((120, true)), None).await? == (120, true));

    // An outage: the first two calls reach the service, the third is refused by the breaker; all get an answer.
    for _ in 0..3 {
        ensure!(price(Err(ErrorKind::ConnectionRefused), Some((118, false))).await? == (118, false));
    }
    println!("an outage: {} calls answered with yesterday's price", fallback.used());
    ensure!(fallback.used() == 3 && breaker.snapshot().lifetime.rejected == 1);

    // Not found is an answer of the service, not an outage.
    breaker.reset("the service is back");
    let unknown = price(Err(ErrorKind::NotFound), Some((118, false))).await;
    let error = unknown.err().context("nobody has a price for what does not exist")?;
    ensure!(error.fallback().is_none() && fallback.used() == 3);

    // If the second-best answer fails too, both errors are there.
    let both = price(Err(ErrorKind::TimedOut), None).await.err().context("both failed")?;
    ensure!(both.primary().inner().is_some_and(|e| e.kind() == ErrorKind::TimedOut));
    ensure!(both.fallback().is_some_and(|e| e.kind() == ErrorKind::NotFound));
    println!("both failed: {both}");
    Ok(())
}
