//! Three layers, each with three attempts, over a dependency that is down: 27 requests per call, or hardly more than
//! one.

use std::cell::Cell;
use std::io::{Error, ErrorKind};
use std::time::Duration;

use anyhow::ensure;
use mainstay::resilience::policy::PolicyBuilder;
use mainstay::resilience::{Budget, CallContext, ConfigError, Policy, Retry};

/// Requests that reach the dependency when so many calls enter the outermost of three layers.
async fn requests(calls: u32, cx: &CallContext, layers: &[Policy; 3]) -> u32 {
    let sent = Cell::new(0);
    let down = || {
        sent.set(sent.get() + 1);
        std::future::ready(Err::<(), _>(Error::from(ErrorKind::ConnectionRefused)))
    };
    let [web, shop, stock] = layers;
    // What a layer tells the one above: that it failed.
    let failed = |_| Error::from(ErrorKind::ConnectionReset);
    for _ in 0..calls {
        let call = web.call(cx, |attempt| {
            let cx = attempt.nest();
            async move {
                let inner = shop.call(&cx, |attempt| {
                    let cx = attempt.nest();
                    async move { stock.call(&cx, |_| down()).await.map_err(failed) }
                });
                inner.await.map_err(failed)
            }
        });
        assert!(call.await.is_err());
    }
    sent.get()
}

/// Three layers that retry; `with` does something about their budgets.
fn layers(with: impl Fn(PolicyBuilder) -> PolicyBuilder) -> Result<[Policy; 3], ConfigError> {
    let retry = Retry::constant(Duration::from_millis(1)).attempts(3).build()?;
    let layer = |name| with(Policy::builder(name).idempotent().retry(retry.clone())).build();
    Ok([layer("web")?, layer("shop")?, layer("stock")?])
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let naive = layers(PolicyBuilder::without_budget)?;
    let sent = requests(5, &CallContext::new(), &naive).await;
    println!("without a budget: 5 calls, {sent} requests");
    ensure!(sent == 5 * 27);

    // One budget travels down with the context: a fifth of the calls may be repeated, and nothing else.
    let shared = layers(|policy| policy)?;
    let budget = Budget::builder("stock").ratio(0.2, 0.0).build()?;
    let cx = CallContext::new().with_budget(&budget);
    let sent = requests(100, &cx, &shared).await;
    println!("with one budget of 20 %: 100 calls, {sent} requests");
    ensure!((101..=120).contains(&sent));
    ensure!(budget.snapshot().refused > 0);
    Ok(())
}
