//! Reads from three replicas, one of which hangs: hedges keep the calls fast, the hanging replica is ejected, and when
//! all replicas are down there is a second-best answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use mainstay::clock::virtual_time::VirtualClock;
use mainstay::clock::{Clock, Runtime, SystemRng};
use mainstay::resilience::fallback::Fallback;
use mainstay::resilience::hedge::Hedge;
use mainstay::resilience::outlier::OutlierDetector;
use mainstay::resilience::{CallContext, CallError, Policy, Verdict};

type Answer = Result<String, std::io::Error>;

/// Reads from `replica`; `b` hangs, and with `down` all fail.
async fn read(clock: &dyn Clock, replica: Arc<str>, down: bool) -> Answer {
    if down {
        return Err(std::io::ErrorKind::ConnectionRefused.into());
    }
    clock.sleep(Duration::from_millis(if &*replica == "b" { 5_000 } else { 2 })).await;
    Ok(format!("answer of {replica}"))
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> anyhow::Result<()> {
    // Virtual time, which passes when nothing else is left to do. A service has `Runtime::system()`, which everything
    // below takes by itself.
    let rt = Runtime::on_tokio(Arc::new(VirtualClock::new()), Arc::new(SystemRng::new()));
    let clock = rt.clock();
    let hedge = Hedge::after(Duration::from_millis(30)).build()?;
    let policy = Policy::builder("replicas").idempotent().hedge_plan(hedge.plan()).runtime(&rt).build()?;
    let replicas = OutlierDetector::builder("replicas").endpoints(["a", "b", "c"]).consecutive(2);
    let replicas = replicas.runtime(&rt).build()?;
    let down = Arc::new(AtomicBool::new(false));
    let cx = CallContext::new();
    let call = || {
        policy.call(&cx, |_| {
            let (picked, replicas, down) = (replicas.pick(), replicas.clone(), down.load(Ordering::Relaxed));
            async move {
                let replica = picked.map_err(std::io::Error::other)?;
                let mut watch = Watch { replicas, replica: Arc::clone(&replica), ended: None };
                let answer = read(&**clock, replica, down).await;
                watch.ended = Some(if answer.is_ok() { Verdict::Ok } else { Verdict::RETRYABLE });
                answer
            }
        })
    };

    let begun = clock.now();
    for _ in 0..12 {
        let answer = call().await?;
        ensure!(!answer.contains('b'), "{answer}");
    }
    let took = clock.now().saturating_duration_since(begun);
    println!("12 reads in {took:?} with a replica that hangs for 5 s; {} hedges", policy.snapshot().hedges);
    ensure!(took < Duration::from_secs(1), "{took:?}");
    ensure!(!replicas.is_available("b"), "the hanging replica is left out");
    ensure!(policy.snapshot().hedges >= 2, "hedges carried the calls until then");

    down.store(true, Ordering::Relaxed);
    let cache = Fallback::new("cached answer")?;
    let answer = cache
        .call(call(), |_: &CallError<std::io::Error>| async { Ok("yesterday's answer".to_owned()) })
        .await?;
    ensure!(answer == "yesterday's answer" && cache.used() == 1);
    println!("all replicas down: {answer}");
    Ok(())
}

/// Reports how the read of one replica ended. A read that is dropped because another won was too slow.
struct Watch {
    replicas: OutlierDetector,
    replica: Arc<str>,
    ended: Option<Verdict>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.replicas.record(&self.replica, self.ended.unwrap_or(Verdict::RETRYABLE));
    }
}
