//! The data folder of a node with many sagas in it, for `cargo xtask budget`, which lists them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mainstay_clock::Runtime;
use mainstay_saga::engine::StartOptions;
use mainstay_saga::{Engine, Outcome, Saga, StepCx, StepError, Told, UndoError};
use mainstay_sqlite::SqliteStore;

use crate::load::{self, Figures, Order};

/// Of so many sagas one is undone: what is rare must be found too.
const RARE: u64 = 1_000;

async fn back(_: StepCx, _: Told<u64>) -> Result<(), UndoError> {
    Ok(())
}

fn saga() -> anyhow::Result<Saga<u64>> {
    let forward = |_: StepCx, n: u64| async move { Ok::<_, StepError>(n) };
    let ship = |_: StepCx, n: u64| async move {
        if n.is_multiple_of(RARE) { Err(StepError::rejected("no carrier")) } else { Ok(n) }
    };
    let mut b = Saga::<u64>::builder("order", 1);
    let reserved = b.step("reserve", b.input(), forward).undo(back).add();
    let charged = b.step("charge", &reserved, forward).undo(back).add();
    b.step("ship", &charged, ship).undo(back).add();
    Ok(b.deadline(Duration::from_secs(600)).build()?)
}

/// Makes them, in the file where a node has its own.
pub(crate) fn child(order: &Order) -> anyhow::Result<Figures> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let (saga, rt) = (saga()?, Runtime::system());
        let store = SqliteStore::builder(Path::new(&order.dir).join("mainstay.db")).open(&rt)?;
        let engine = Engine::builder(Arc::new(store), rt).register(&saga).open().await;
        let engine = engine.context("the engine does not open")?;
        let figures = load::closed_loop(order, move |n| {
            let (engine, saga) = (engine.clone(), saga.clone());
            async move {
                let Ok(handle) = engine.start_saga(&saga, &n, StartOptions::id(n.to_string())).await else {
                    return false;
                };
                match handle.outcome().await {
                    Ok(Outcome::Completed { .. }) => !n.is_multiple_of(RARE),
                    Ok(Outcome::Compensated { .. }) => n.is_multiple_of(RARE),
                    _ => false,
                }
            }
        });
        let figures = figures.await;
        ensure!(
            figures.done == order.count,
            "{} of {} sagas ended as they should",
            figures.done,
            order.count
        );
        Ok(figures)
    })
}
