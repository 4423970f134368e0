//! The saga workload on duroxide over SQLite. Variants: `defaults`, and `tuned` (1 ms poll, 8 + 8 workers).
//! Its `synchronous` setting is no legal value and reads back as 1: what it answered may be lost at a power cut.

#[path = "../../../src/load.rs"]
mod load;

use std::sync::Arc;
use std::time::Duration;

use duroxide::providers::sqlite::SqliteProvider;
use duroxide::runtime::registry::ActivityRegistry;
use duroxide::runtime::{Runtime, RuntimeOptions};
use duroxide::{ActivityContext, Client, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus};

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn saga(cx: OrchestrationContext, input: String) -> Result<String, String> {
    let reserved = cx.schedule_activity("reserve", input).await?;
    let charged = cx.schedule_activity("charge", reserved.clone()).await?;
    match cx.schedule_activity("ship", charged.clone()).await {
        Ok(shipped) => Ok(shipped),
        Err(why) => {
            cx.schedule_activity("refund", charged).await?;
            cx.schedule_activity("release", reserved).await?;
            Err(why)
        }
    }
}

fn options(variant: &str) -> RuntimeOptions {
    if variant != "tuned" {
        return RuntimeOptions::default();
    }
    RuntimeOptions {
        dispatcher_min_poll_interval: Duration::from_millis(1),
        orchestration_concurrency: 8,
        worker_concurrency: 8,
        ..RuntimeOptions::default()
    }
}

async fn run(order: &load::Order) -> Result<load::Figures, Failure> {
    let file = format!("{}/duroxide.db", order.dir);
    std::fs::File::create(&file)?;
    let store = Arc::new(SqliteProvider::new(&format!("sqlite:{file}"), None).await?);
    let fails = order.fails();
    let activities = ActivityRegistry::builder()
        .register("reserve", |_: ActivityContext, n: String| async move { Ok(n) })
        .register("charge", |_: ActivityContext, n: String| async move { Ok(n) })
        .register("ship", move |_: ActivityContext, n: String| async move {
            if fails { Err("no carrier".to_owned()) } else { Ok(n) }
        })
        .register("refund", |_: ActivityContext, n: String| async move { Ok(n) })
        .register("release", |_: ActivityContext, n: String| async move { Ok(n) })
        .build();
    let orchestrations = OrchestrationRegistry::builder().register("order", saga).build();
    let runtime =
        Runtime::start_with_options(store.clone(), activities, orchestrations, options(&order.variant)).await;
    let client = Arc::new(Client::new(store));
    let figures = load::closed_loop(order, move |n| {
        let client = Arc::clone(&client);
        async move {
            let id = format!("order-{n}");
            if client.start_orchestration(&id, "order", n.to_string()).await.is_err() {
                return false;
            }
            match client.wait_for_orchestration(&id, Duration::from_secs(60)).await {
                Ok(OrchestrationStatus::Completed { .. }) => !fails,
                Ok(OrchestrationStatus::Failed { .. }) => fails,
                _ => false,
            }
        }
    })
    .await;
    drop(runtime);
    Ok(figures)
}

fn main() -> Result<(), Failure> {
    let order = load::Order::read(std::env::args().skip(1))?;
    let figures = tokio::runtime::Runtime::new()?.block_on(run(&order))?;
    println!("{}", figures.line());
    // Its dispatchers would be awaited for seconds.
    std::process::exit(0);
}
