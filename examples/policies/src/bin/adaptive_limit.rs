//! A service that can work on eight calls at once gets slower with every further one. The limit finds the eight by the
//! latency alone.

use std::cell::Cell;
use std::time::Duration;

use anyhow::ensure;
use example_policies::virtual_runtime;
use futures_util::future::join_all;
use mainstay::clock::Clock;
use mainstay::resilience::limit::{AdaptiveLimiter, Algorithm};

/// Works on eight calls at once, 4 ms each; with more of them each takes its share.
struct Service {
    busy: Cell<u32>,
}

impl Service {
    async fn work(&self, clock: &dyn Clock) -> Result<(), std::io::Error> {
        self.busy.set(self.busy.get() + 1);
        let share = f64::from(self.busy.get()) / 8.0;
        clock.sleep(Duration::from_millis(4).mul_f64(share.max(1.0))).await;
        self.busy.set(self.busy.get() - 1);
        if share > 3.0 { Err(std::io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> anyhow::Result<()> {
    let runtime = virtual_runtime();
    let clock = runtime.clock();
    let service = Service { busy: Cell::new(0) };
    // A call that takes more than twice as long as it should is too slow here.
    let rule = Algorithm::Aimd { timeout: Duration::from_millis(8), backoff: 0.8 };
    let limiter =
        AdaptiveLimiter::builder("service").algorithm(rule).initial(64).runtime(&runtime).build()?;

    // Sixty-four callers who never stop.
    let (served, shed, begun) = (Cell::new(0_u32), Cell::new(0_u32), clock.now());
    let caller = |_| async {
        while clock.now().saturating_duration_since(begun) < Duration::from_millis(600) {
            let Ok(permit) = limiter.acquire() else {
                shed.set(shed.get() + 1);
                clock.sleep(Duration::from_millis(1)).await;
                continue;
            };
            match service.work(&**clock).await {
                Ok(()) => permit.success(),
                Err(_) => permit.dropped(),
            }
            served.set(served.get() + 1);
        }
    };
    join_all((0..64).map(caller)).await;

    let limit = limiter.limit();
    println!("from 64 to {limit} for a service that can do 8; {} served, {} shed", served.get(), shed.get());
    ensure!(limit <= 32, "{limit}");
    ensure!(limiter.snapshot().in_flight() == 0 && shed.get() > 0);
    Ok(())
}
