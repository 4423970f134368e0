//! A payment service that stumbles, then hangs, then comes back: what timeout, retry with budget, breaker and bulkhead
//! each do about it, and all of them in one policy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::ensure;
use mainstay::clock::virtual_time::VirtualClock;
use mainstay::clock::{Runtime, SystemRng};
use mainstay::resilience::breaker::{HalfOpen, State};
use mainstay::resilience::budget::{Budget, Cost};
use mainstay::resilience::{
    Breaker, Bulkhead, CallContext, CallError, Classify, Policy, Retry, TimeoutKind, Verdict,
};

#[derive(Debug)]
enum Payment {
    Declined,
    Unreachable,
}

impl Classify for Payment {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Declined => Verdict::Ignore,
            Self::Unreachable => Verdict::RETRYABLE,
        }
    }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A stumble: two failures, then success; a business no is not repeated.
async fn retries(rt: &Runtime) -> anyhow::Result<()> {
    let retry = Retry::exponential(ms(1), ms(10)).attempts(3).build()?;
    let policy = Policy::builder("charge").idempotent_per_call().retry(retry).runtime(rt).build()?;
    let cx = CallContext::new().with_key("order-17/charge");
    let charged = policy
        .call(&cx, |a| async move { if a.number() < 3 { Err(Payment::Unreachable) } else { Ok(a.number()) } })
        .await;
    ensure!(matches!(charged, Ok(3)));
    let declined = policy.call(&cx, |_| async { Err::<(), _>(Payment::Declined) }).await;
    ensure!(matches!(declined, Err(CallError::Inner(Payment::Declined))));
    Ok(())
}

/// An outage: the budget keeps retries a share of the calls.
async fn budgets(rt: &Runtime) -> anyhow::Result<()> {
    let budget = Budget::builder("payments").ratio(0.2, 5.0).runtime(rt).build()?;
    let retry = Retry::constant(ms(1)).attempts(3).build()?;
    let policy = Policy::builder("charge").idempotent().retry(retry).budget(&budget).runtime(rt).build()?;
    let sent = AtomicU32::new(0);
    let cx = CallContext::new();
    for _ in 0..100 {
        let call = policy.call(&cx, |_| {
            sent.fetch_add(1, Ordering::Relaxed);
            async { Err::<(), _>(Payment::Unreachable) }
        });
        ensure!(call.await.is_err());
    }
    let sent = sent.into_inner();
    println!("budget: 100 calls of up to 3 attempts sent {sent} requests");
    ensure!((101..=130).contains(&sent), "{sent}");
    while budget.spend(Cost::Probe).is_ok() {}
    Ok(())
}

/// A hang: the attempt is cut off, and the breaker learns from it, opens, probes and closes again.
async fn breakers(rt: &Runtime) -> anyhow::Result<()> {
    let breaker = Breaker::builder("payments")
        .consecutive(2)
        .open_for(ms(50))
        .half_open(HalfOpen::permits(1))
        .runtime(rt)
        .build()?;
    let policy = Policy::builder("charge").breaker(&breaker).attempt_timeout(ms(10)).runtime(rt).build()?;
    let cx = CallContext::new();
    for _ in 0..2 {
        let hung = policy.call(&cx, |_| std::future::pending::<Result<(), Payment>>()).await;
        let cut = hung.err().and_then(|e| e.timeout());
        ensure!(cut.is_some_and(|cut| cut.kind() == TimeoutKind::Attempt));
    }
    ensure!(breaker.state() == State::Open);
    let refused = policy.call(&cx, |_| async { Ok::<_, Payment>(()) }).await.err();
    let wait = refused.and_then(|e| e.retry_after());
    println!("breaker: open, come back in {wait:?}");
    ensure!(wait.is_some());
    rt.clock().sleep(ms(60)).await;
    ensure!(policy.call(&cx, |_| async { Ok::<_, Payment>(()) }).await.is_ok());
    ensure!(breaker.state() == State::Closed);
    Ok(())
}

/// A slow partition: its callers are refused or wait, another partition does not notice.
async fn bulkheads(rt: &Runtime) -> anyhow::Result<()> {
    let payments = Bulkhead::builder("payments", 1).queue(1, ms(20)).runtime(rt).build()?;
    let email = Bulkhead::builder("email", 1).runtime(rt).build()?;
    let held = payments.try_acquire()?;
    let cx = CallContext::new();
    let waited = payments.call(&cx, || async { Ok::<_, Payment>(()) }).await.err();
    ensure!(waited.is_some_and(|e| e.code() == "waited"));
    ensure!(email.call(&cx, || async { Ok::<_, Payment>(()) }).await.is_ok());
    drop(held);
    ensure!(payments.snapshot().in_flight == 0);
    Ok(())
}

/// Everything in one policy; the order is not an input.
async fn together(rt: &Runtime) -> anyhow::Result<()> {
    let policy = Policy::builder("payments")
        .idempotent()
        .deadline(ms(2_000))
        .bulkhead(&Bulkhead::builder("payments", 64).runtime(rt).build()?)
        .retry(Retry::standard().build()?)
        .breaker(&Breaker::builder("payments").runtime(rt).build()?)
        .attempt_timeout(ms(300))
        .runtime(rt)
        .build()?;
    let cx = CallContext::new();
    let receipt = policy.call(&cx, |_| async { Ok::<_, Payment>("receipt 17") }).await;
    ensure!(matches!(receipt, Ok("receipt 17")));
    Ok(())
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> anyhow::Result<()> {
    // Virtual time, which passes when nothing else is left to do. A service has `Runtime::system()`, which everything
    // below takes by itself.
    let rt = Runtime::on_tokio(Arc::new(VirtualClock::new()), Arc::new(SystemRng::new()));
    retries(&rt).await?;
    budgets(&rt).await?;
    breakers(&rt).await?;
    bulkheads(&rt).await?;
    together(&rt).await?;
    println!("all guarded");
    Ok(())
}
