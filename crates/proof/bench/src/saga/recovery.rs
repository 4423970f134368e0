//! SG-T6: how long ten thousand sagas in flight wait after a kill -9.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mainstay_clock::{Clock, SystemClock};
use mainstay_saga::engine::StartOptions;
use mainstay_saga::{Saga, StepCx, StepError, Told, UndoError};
use mainstay_store::journal::SagaStatus;

use super::embedded::open;
use super::{fresh, order};
use crate::Options;
use crate::child::{self, Program};
use crate::load::{self, Figures, Order};
use crate::piece;
use crate::report::Section;

async fn back(_: StepCx, _: Told<u64>) -> Result<(), UndoError> {
    Ok(())
}

/// The order saga; its first step never answers in the first attempt: the process dies before.
fn stuck() -> anyhow::Result<Saga<u64>> {
    let first = |cx: StepCx, n: u64| async move {
        if cx.attempt == 1 {
            std::future::pending::<()>().await;
        }
        Ok::<_, StepError>(n + 1)
    };
    let next = |_: StepCx, n: u64| async move { Ok::<_, StepError>(n + 1) };
    let mut b = Saga::<u64>::builder("order", 1);
    let reserved = b.step("reserve", b.input(), first).undo(back).timeout(Duration::from_secs(600)).add();
    let charged = b.step("charge", &reserved, next).undo(back).add();
    b.step("ship", &charged, next).undo(back).add();
    Ok(b.deadline(Duration::from_secs(3_600)).build()?)
}

/// Starts the sagas, says so, and waits to be killed.
pub(crate) fn fill(order: &Order) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let saga = stuck()?;
        let engine = open(Path::new(&order.dir), &saga).await?;
        let starter = engine.clone();
        let started = load::closed_loop(order, move |n| {
            let (engine, saga) = (starter.clone(), saga.clone());
            async move { engine.start_saga(&saga, &n, StartOptions::id(n.to_string())).await.is_ok() }
        });
        let started = started.await;
        ensure!(started.done == order.count, "{} of {} were started", started.done, order.count);
        println!("{} in flight", engine.in_flight());
        std::future::pending::<()>().await;
        Ok(())
    })
}

/// Opens the journal again: `seconds` until every saga goes on, `p99` until the last one ended.
pub(crate) fn recover(order: &Order) -> anyhow::Result<Figures> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let clock = SystemClock::new();
        let began = clock.now();
        let engine = open(Path::new(&order.dir), &stuck()?).await?;
        while !engine.is_recovered() {
            clock.sleep(Duration::from_millis(1)).await;
        }
        let going = clock.now().saturating_duration_since(began);
        loop {
            let counts = engine.journal().counts().await?;
            let completed = counts.iter().filter(|c| c.status == SagaStatus::Completed);
            let done: u64 = completed.map(|c| c.count).sum();
            let waited = clock.now().saturating_duration_since(began);
            if done == order.count || waited > Duration::from_secs(60) {
                let (rss_kib, peak_kib) = load::memory_kib();
                let (seconds, p99) = (going.as_secs_f64(), waited.as_secs_f64() * 1e6);
                return Ok(Figures { done, seconds, p99, rss_kib, peak_kib, ..Figures::default() });
            }
            clock.sleep(Duration::from_millis(5)).await;
        }
    })
}

/// Fills a journal, kills its process and opens it again.
fn kill_and_recover(options: &Options, count: u64) -> anyhow::Result<String> {
    let home = std::env::current_dir().context("no working folder")?.join("target");
    let dir = fresh(if options.smoke { Path::new("/dev/shm") } else { &home })?;
    let order = Order { count, ..order("ok", 64, 0.0, dir.path()) };
    let mut child =
        Program::own("fill")?.command(&order).stdout(Stdio::piped()).spawn().context("no child")?;
    let mut line = String::new();
    let read = BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line);
    child.kill().context("the child cannot be killed")?;
    child.wait()?;
    read?;
    ensure!(line.trim() == format!("{count} in flight"), "the child said `{}`", line.trim());
    super::block::quiet(options, &Program::own("recover")?, &order)
}

pub(super) fn run(options: &Options, section: &mut Section, times: &mut Vec<String>) -> anyhow::Result<()> {
    let count = if options.smoke { 500 } else { 10_000 };
    let Some(piece) = piece::measure(options, "recovery", || kill_and_recover(options, count))? else {
        return Ok(());
    };
    times.push(piece.when);
    let found = child::read(&piece.text)?;
    section.note(&format!(
        "### Recovery after kill -9\n\n{count} sagas in flight on disk, killed; opened again: all of them go on after {:.2} s, \
         all {} are completed after {:.2} s.",
        found.seconds, found.done, found.p99 / 1e6
    ));
    let text = format!("{:.2} s, {} of {count} completed", found.seconds, found.done);
    let met = found.done == count && found.seconds < 2.0;
    ensure!(found.done == count, "sagas were lost: {text}");
    section.gate("SG-T6", "10,000 in flight recovered in < 2 s, none lost", text, met);
    Ok(())
}
