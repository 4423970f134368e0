//! One of five endpoints answers with errors. It is left out, the others go on; when all fail, nobody is an outlier.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use example_policies::virtual_runtime;
use mainstay::resilience::{Verdict, outlier::OutlierDetector};

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> anyhow::Result<()> {
    let runtime = virtual_runtime();
    let ms = Duration::from_millis;
    let hosts = OutlierDetector::builder("search")
        .endpoints(["a:80", "b:80", "c:80", "d:80", "e:80"])
        .consecutive(5)
        .ejection(ms(400), ms(800))
        .runtime(&runtime)
        .build()?;

    // A thousand calls; `c` fails each of its own.
    let call = |broken: &dyn Fn(&str) -> bool| -> anyhow::Result<BTreeMap<_, u32>> {
        let mut calls = BTreeMap::new();
        for _ in 0..1_000 {
            let host = hosts.pick()?;
            *calls.entry(host.clone()).or_default() += 1;
            hosts.record(&host, if broken(&host) { Verdict::RETRYABLE } else { Verdict::Ok });
        }
        Ok(calls)
    };
    let calls = call(&|host| host == "c:80")?;
    println!("{calls:?}");
    ensure!(calls["c:80"] == 5, "five failures in a row, then nobody called it");
    ensure!(hosts.ejections()[0].endpoint() == "c:80");

    // It comes back by itself.
    runtime.clock().sleep(ms(430)).await;
    ensure!(hosts.available().len() == 5);

    // Everything fails: one endpoint is left out, because a failure of all is no matter of endpoints.
    call(&|_| true)?;
    println!("all fail: {} of 5 still called", hosts.available().len());
    ensure!(hosts.available().len() == 4);
    Ok(())
}
