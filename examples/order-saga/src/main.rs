//! An order whose shipment fails: the charge and the reservation are undone, and a second run of the same
//! order is the same saga.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mainstay::clock::Runtime;
use mainstay::saga::engine::StartOptions;
use mainstay::saga::{Engine, Outcome, Saga, StepCx, StepError, Told, UndoError};
use mainstay::sqlite::SqliteStore;

/// Items reserved, and money taken.
static STOCK: AtomicI64 = AtomicI64::new(0);
static MONEY: AtomicI64 = AtomicI64::new(0);

async fn reserve(_: StepCx, order: u32) -> Result<u32, StepError> {
    STOCK.fetch_add(1, Ordering::SeqCst);
    Ok(order)
}

async fn release(_: StepCx, told: Told<u32>) -> Result<(), UndoError> {
    if let Told::Did(_) = told {
        STOCK.fetch_sub(1, Ordering::SeqCst);
    }
    Ok(())
}

async fn charge(_: StepCx, order: u32) -> Result<i64, StepError> {
    MONEY.fetch_add(10, Ordering::SeqCst);
    Ok(i64::from(order))
}

async fn refund(_: StepCx, told: Told<i64>) -> Result<(), UndoError> {
    if let Told::Did(_) = told {
        MONEY.fetch_sub(10, Ordering::SeqCst);
    }
    Ok(())
}

async fn ship(_: StepCx, _: i64) -> Result<(), StepError> {
    Err(StepError::rejected("no carrier delivers there"))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut b = Saga::<u32>::builder("order", 1);
    let reserved = b.step("reserve", b.input(), reserve).undo(release).add();
    let charged = b.step("charge", &reserved, charge).undo(refund).add();
    b.step("ship", &charged, ship).no_undo("a refused shipment never left").add();
    let saga = b.deadline(Duration::from_secs(20)).build()?;

    let dir = tempfile::tempdir()?;
    let runtime = Runtime::system();
    let store = SqliteStore::builder(dir.path().join("node.db")).open(&runtime)?;
    let engine = Engine::builder(Arc::new(store), runtime).register(&saga).open().await?;

    let order = engine.start_saga(&saga, &7, StartOptions::id("order-7")).await?;
    let outcome = order.outcome().await?;
    ensure!(matches!(outcome, Outcome::Compensated { .. }), "unexpected outcome {outcome:?}");
    let again =
        engine.start_saga(&saga, &7, StartOptions::id("order-7")).await.context("a repeated start")?;
    ensure!(again.uid() == order.uid() && !again.is_new(), "a repeated start is the same saga");
    ensure!(STOCK.load(Ordering::SeqCst) == 0 && MONEY.load(Ordering::SeqCst) == 0, "everything is undone");
    engine.shutdown(Duration::from_secs(1)).await;
    Ok(())
}
