//! The saga workload on dbos. `--server` is the address of a PostgreSQL database.

#[path = "../../../src/load.rs"]
mod load;

use dbos::{Config, DBOS, step};

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn forward(n: u64) -> dbos::Result<u64> {
    Ok(n + 1)
}

/// Input: the number, and whether the shipment says no. Output: whether everything was done. Compensation is
/// the workflow's own code: dbos has none.
async fn saga((n, fails): (u64, bool)) -> dbos::Result<bool> {
    let reserved = step("reserve", || forward(n)).await?;
    let charged = step("charge", || forward(reserved)).await?;
    let shipped = step("ship", || async move { dbos::Result::Ok(!fails) }).await?;
    if !shipped {
        step("refund", || forward(charged)).await?;
        step("release", || forward(reserved)).await?;
    }
    Ok(shipped)
}

async fn run(order: &load::Order) -> Result<load::Figures, Failure> {
    let config =
        Config { app_version: Some("1".to_owned()), ..Config::new("bench", order.server.as_str()) };
    let dbos = DBOS::new(config);
    let saga = dbos.register_workflow("order", saga)?;
    dbos.launch().await?;
    let fails = order.fails();
    let figures = load::closed_loop(order, move |n| {
        let saga = saga.clone();
        async move { matches!(saga.run((n, fails)).await, Ok(shipped) if shipped != fails) }
    })
    .await;
    dbos.shutdown().await;
    Ok(figures)
}

fn main() -> Result<(), Failure> {
    let order = load::Order::read(std::env::args().skip(1))?;
    let figures = tokio::runtime::Runtime::new()?.block_on(run(&order))?;
    println!("{}", figures.line());
    Ok(())
}
