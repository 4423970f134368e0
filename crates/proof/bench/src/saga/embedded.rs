//! Our engine in this process, on the embedded store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mainstay_clock::Runtime;
use mainstay_saga::engine::StartOptions;
use mainstay_saga::{Engine, Outcome, Saga, StepCx, StepError, Told, UndoError};
use mainstay_sqlite::SqliteStore;

use crate::load::{self, Figures, Order};

async fn forward(_: StepCx, n: u64) -> Result<u64, StepError> {
    Ok(n + 1)
}

async fn back(_: StepCx, _: Told<u64>) -> Result<(), UndoError> {
    Ok(())
}

async fn refuse(_: StepCx, _: u64) -> Result<u64, StepError> {
    Err(StepError::rejected("no carrier"))
}

/// Reserve, charge, ship, with trivial steps; `fails`: ship says no and the others are undone.
pub(super) fn order_saga(fails: bool) -> anyhow::Result<Saga<u64>> {
    let mut b = Saga::<u64>::builder("order", 1);
    let reserved = b.step("reserve", b.input(), forward).undo(back).add();
    let charged = b.step("charge", &reserved, forward).undo(back).add();
    if fails {
        b.step("ship", &charged, refuse).undo(back).add();
    } else {
        b.step("ship", &charged, forward).undo(back).add();
    }
    Ok(b.deadline(Duration::from_secs(600)).build()?)
}

pub(super) async fn open(dir: &Path, saga: &Saga<u64>) -> anyhow::Result<Engine> {
    let runtime = Runtime::system();
    let store = SqliteStore::builder(dir.join("bench.db")).open(&runtime)?;
    Ok(Engine::builder(Arc::new(store), runtime).register(saga).open().await?)
}

pub(crate) fn child(order: &Order) -> anyhow::Result<Figures> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let fails = order.fails();
        let saga = order_saga(fails)?;
        let engine = open(Path::new(&order.dir), &saga).await.context("the engine does not open")?;
        let figures = load::closed_loop(order, move |n| {
            let (engine, saga) = (engine.clone(), saga.clone());
            async move {
                let Ok(handle) = engine.start_saga(&saga, &n, StartOptions::id(n.to_string())).await else {
                    return false;
                };
                match handle.outcome().await {
                    Ok(Outcome::Completed { .. }) => !fails,
                    Ok(Outcome::Compensated { .. }) => fails,
                    _ => false,
                }
            }
        });
        Ok(figures.await)
    })
}
