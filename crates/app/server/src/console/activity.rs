//! Counts, shared by all pages, and what happened in the last quarter of an hour.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::Instant;
use mainstay_store::journal::{Filter, SagaStatus, StatusCount};
use tokio::sync::Mutex as AsyncMutex;

use crate::api::App;
use crate::api::json::store_problem;
use crate::http::Problem;

/// One column of the charts.
pub(super) const STEP: Duration = Duration::from_secs(15);
/// Columns: a quarter of an hour.
pub(super) const COLUMNS: usize = 60;
/// Counting may take this share of a reader's time, one in so many.
const SHARE: u32 = 20;
/// Counts are never older than this, unless counting itself takes long.
const OLDEST: Duration = Duration::from_secs(5);

/// More waiting sagas than this are not counted on every page.
pub(super) const MANY: usize = 99;

/// Counts as they were at `at`; counting took `cost`.
#[derive(Clone, Debug)]
struct Counted {
    at: Instant,
    cost: Duration,
    counts: Arc<Vec<StatusCount>>,
}

/// Totals at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) all: u64,
    pub(super) done: u64,
    pub(super) undone: u64,
    pub(super) waiting: u64,
}

impl Totals {
    /// The totals of counts.
    pub(super) fn of(counts: &[StatusCount]) -> Self {
        let sum = |f: &dyn Fn(SagaStatus) -> bool| -> u64 {
            counts.iter().filter(|c| f(c.status)).map(|c| c.count).sum()
        };
        Self {
            all: sum(&|_| true),
            done: sum(&|s| s == SagaStatus::Completed),
            undone: sum(&|s| matches!(s, SagaStatus::Compensated | SagaStatus::Abandoned)),
            waiting: counts.iter().map(StatusCount::waiting).sum(),
        }
    }
}

/// How many started, completed and were compensated in each column, oldest first; the last is unfinished.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) started: Vec<u64>,
    pub(super) completed: Vec<u64>,
    pub(super) compensated: Vec<u64>,
}

/// Counts and samples.
#[derive(Debug, Default)]
pub(super) struct Activity {
    last: AsyncMutex<Option<Counted>>,
    samples: Mutex<VecDeque<Totals>>,
}

impl Activity {
    /// Counts by definition and status; fresh where that is cheap, else at most as old as it costs.
    ///
    /// # Errors
    /// When the journal fails.
    pub(super) async fn counts(&self, app: &App) -> Result<Arc<Vec<StatusCount>>, Problem> {
        // One counts, the others wait for it: a reload by many costs as much as one.
        let mut last = self.last.lock().await;
        let now = app.rt.clock().now();
        if let Some(known) = last.as_ref() {
            let keep = known.cost.saturating_mul(SHARE).min(OLDEST);
            if now.saturating_duration_since(known.at) < keep {
                return Ok(Arc::clone(&known.counts));
            }
        }
        let counts = Arc::new(app.journal.counts().await.map_err(|e| store_problem(&e))?);
        let at = app.rt.clock().now();
        let cost = at.saturating_duration_since(now);
        *last = Some(Counted { at, cost, counts: Arc::clone(&counts) });
        Ok(counts)
    }

    /// How many sagas wait for a person, at most [`MANY`] + 1; zero when that cannot be said. By the index of the
    /// list: every page asks, so it must not count everything.
    pub(super) async fn attention(&self, app: &App) -> u64 {
        let filter = Filter { attention: true, ..Filter::default() };
        let page = app.journal.query(&filter, None, MANY + 1).await;
        page.map_or(0, |p| p.rows.len() as u64)
    }

    /// Takes a sample every [`STEP`], or seldom enough that counting stays cheap.
    pub(super) async fn run(&self, app: &App) {
        loop {
            let before = app.rt.clock().now();
            if let Ok(counts) = app.journal.counts().await {
                self.push(Totals::of(&counts));
            }
            let cost = app.rt.clock().now().saturating_duration_since(before);
            tokio::select! {
                biased;
                () = app.drain.cancelled() => return,
                () = app.rt.clock().sleep(STEP.max(cost.saturating_mul(SHARE * 5))) => {}
            }
        }
    }

    fn push(&self, totals: Totals) {
        let mut samples = self.samples.lock().expect("invariant: no panic under this lock");
        if samples.len() > COLUMNS {
            samples.pop_front();
        }
        samples.push_back(totals);
    }

    /// The charts, ending with `now`.
    pub(super) fn columns(&self, now: Totals) -> Columns {
        let samples = self.samples.lock().expect("invariant: no panic under this lock");
        let all: Vec<Totals> = samples.iter().copied().chain([now]).collect();
        let first = all.len().saturating_sub(COLUMNS + 1);
        let mut columns = Columns::default();
        for pair in all[first..].windows(2) {
            // Retention removes old sagas: a fall is no activity.
            let rise = |f: &dyn Fn(&Totals) -> u64| f(&pair[1]).saturating_sub(f(&pair[0]));
            columns.started.push(rise(&|t| t.all));
            columns.completed.push(rise(&|t| t.done));
            columns.compensated.push(rise(&|t| t.undone));
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_differences_bounded_and_never_negative() {
        let activity = Activity::default();
        let totals = |all, done| Totals { all, done, ..Totals::default() };
        assert_eq!(activity.columns(totals(5, 5)), Columns::default(), "one sample is no difference");
        for n in 0..200 {
            activity.push(totals(n * 2, n));
        }
        activity.push(totals(0, 0));
        let columns = activity.columns(totals(3, 1));
        assert_eq!(columns.started.len(), COLUMNS);
        assert_eq!(columns.started[COLUMNS - 3..], [2, 0, 3]);
        assert_eq!(columns.completed[COLUMNS - 3..], [1, 0, 1]);
        assert_eq!(activity.samples.lock().unwrap().len(), COLUMNS + 1);
    }
}
