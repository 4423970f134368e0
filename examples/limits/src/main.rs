//! Three limits: a rate per tenant, a number of calls in flight that follows a service, and a server that sheds by
//! importance and by the tenants' shares.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use mainstay::resilience::limit::{AdaptiveLimiter, Algorithm, ClientThrottle, RateLimiter, Shedder};
use mainstay::resilience::{CallContext, Priority, Reason};

fn main() -> anyhow::Result<()> {
    per_tenant()?;
    follows_the_service()?;
    sheds_fairly()?;
    spares_who_refuses()
}

/// One tenant's flood does not touch another's calls.
fn per_tenant() -> anyhow::Result<()> {
    let limiter = RateLimiter::builder("api")
        .rate(5, Duration::from_secs(3_600))
        .burst(5)
        .build_keyed::<&'static str>()?;
    let flood = (0..100).filter(|_| limiter.check(&"noisy").is_ok()).count();
    ensure!(flood == 5, "the noisy tenant got {flood} of 5");
    let refused = limiter.check(&"noisy").err().context("a sixth call passed")?;
    ensure!(refused.why() == &Reason::Rate && refused.retry_after().is_some());
    ensure!(limiter.check(&"quiet").is_ok(), "the quiet tenant is not touched");
    println!("per tenant: noisy got {flood} of 100, quiet all; come back in {:?}", refused.retry_after());
    Ok(())
}

/// A service that refuses the eleventh call in flight is not asked for twenty for long.
fn follows_the_service() -> anyhow::Result<()> {
    let limiter = AdaptiveLimiter::builder("search").algorithm(Algorithm::aimd()).initial(20).build()?;
    for _ in 0..50 {
        let permits: Vec<_> = std::iter::from_fn(|| limiter.acquire().ok()).collect();
        for (i, permit) in permits.into_iter().enumerate() {
            if i < 10 { permit.success() } else { permit.dropped() }
        }
    }
    let limit = limiter.limit();
    println!("adaptive: from 20 to {limit} for a service that can do 10");
    ensure!((8..=20).contains(&limit), "{limit}");
    Ok(())
}

/// At two and a half times its limit a server still takes what matters.
fn sheds_fairly() -> anyhow::Result<()> {
    let shedder = Shedder::builder("server").limit(40).build()?;
    let cx =
        |tenant: &str, priority| CallContext::new().with_tenant(tenant.to_owned()).with_priority(priority);
    let mut held: Vec<_> = (0..80).filter_map(|_| shedder.admit(&cx("batch", Priority::Low)).ok()).collect();
    ensure!(held.len() == 80, "twice the limit is taken freely");
    held.extend((0..20).filter_map(|_| shedder.admit(&cx("shop", Priority::Critical)).ok()));
    ensure!(held.len() == 100, "what matters most passes up to two and three quarters of the limit");
    let low = (0..100).filter(|_| shedder.admit(&cx("batch", Priority::Low)).is_ok()).count();
    ensure!(low == 0, "{low} batch calls passed beside payments");
    drop(held);
    ensure!(shedder.load() == 0);
    println!("shedding: 100 batch calls refused, 20 payments taken");
    Ok(())
}

/// A service that refuses everything gets a trickle.
fn spares_who_refuses() -> anyhow::Result<()> {
    let throttle = ClientThrottle::builder("search").build()?;
    let mut sent = 0;
    for _ in 0..2_000 {
        if let Ok(ticket) = throttle.check() {
            sent += 1;
            ticket.refused();
        }
    }
    println!("throttle: {sent} of 2000 sent to a service that refuses");
    ensure!((1..500).contains(&sent), "{sent}");
    Ok(())
}
