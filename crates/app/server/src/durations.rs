//! How long calls of participants take, by definition, step and operation.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_saga::participant::{Kind, Request};
use mainstay_store::barrier::Op;

/// Upper bounds of the buckets in milliseconds: from a participant on the same machine to one that hangs.
const BUCKETS: [u64; 14] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000];
/// Most pairs of definition and step that get labels of their own; later ones share `other`.
const MAX_STEPS: usize = 200;
/// Where later ones are counted.
const OTHER: &str = "other";

/// Durations by what they are of.
#[derive(Debug, Default)]
pub(crate) struct Durations(Mutex<Series>);

#[derive(Debug, Default)]
struct Series {
    /// By definition, step and operation.
    all: BTreeMap<(String, String, &'static str), Histogram>,
    steps: usize,
    /// Calls that were counted under `other`.
    overflow: u64,
}

#[derive(Clone, Debug, Default)]
struct Histogram {
    /// Not cumulative; the last is beyond all bounds.
    counts: [u64; BUCKETS.len() + 1],
    sum: Duration,
}

impl Histogram {
    fn add(&mut self, took: Duration) {
        let bucket =
            BUCKETS.iter().position(|ms| took <= Duration::from_millis(*ms)).unwrap_or(BUCKETS.len());
        self.counts[bucket] += 1;
        self.sum += took;
    }
}

impl Durations {
    fn series(&self) -> MutexGuard<'_, Series> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call was answered, or given up. Questions after one that is under way are not counted.
    pub(crate) fn add(&self, of: &Called, took: Duration) {
        let mut series = self.series();
        let key = (of.definition.clone(), of.step.clone(), of.op);
        if let Some(known) = series.all.get_mut(&key) {
            return known.add(took);
        }
        let is_step = |k: &(String, String, &str)| k.0 == key.0 && k.1 == key.1;
        let known = series.all.keys().any(is_step);
        if !known && series.steps >= MAX_STEPS {
            series.overflow += 1;
            let other = (OTHER.to_owned(), OTHER.to_owned(), key.2);
            return series.all.entry(other).or_default().add(took);
        }
        series.steps += usize::from(!known);
        series.all.entry(key).or_default().add(took);
    }

    /// Calls that were counted without a name of their own.
    pub(crate) fn overflow(&self) -> u64 {
        self.series().overflow
    }

    /// The lines of the histogram `name`; `label` escapes what stands in quotes.
    pub(crate) fn write(&self, text: &mut String, name: &str, label: fn(&str) -> String) {
        for ((definition, step, op), histogram) in &self.series().all {
            let labels = format!("definition=\"{}\",step=\"{}\",op=\"{op}\"", label(definition), label(step));
            let bounds =
                BUCKETS.iter().map(|ms| seconds(Duration::from_millis(*ms))).chain(["+Inf".to_owned()]);
            let mut below = 0;
            for (bound, count) in bounds.zip(histogram.counts) {
                below += count;
                let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
            }
            let _ = writeln!(text, "{name}_sum{{{labels}}} {}", seconds(histogram.sum));
            let _ = writeln!(text, "{name}_count{{{labels}}} {below}");
        }
    }
}

fn seconds(d: Duration) -> String {
    d.as_secs_f64().to_string()
}

/// What a call is of.
pub(crate) struct Called {
    definition: String,
    step: String,
    op: &'static str,
}

impl Called {
    /// Of what a request is; `None` when it only asks how an earlier one goes.
    pub(crate) fn of(request: &Request) -> Option<Self> {
        let op = match request.op {
            Op::Action { .. } => "action",
            Op::Undo { .. } => "undo",
        };
        let act = request.kind == Kind::Act;
        act.then(|| Self { definition: request.definition.clone(), step: request.step.clone(), op })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(definition: &str, step: &str, op: &'static str) -> Called {
        Called { definition: definition.to_owned(), step: step.to_owned(), op }
    }

    fn text(durations: &Durations) -> String {
        let mut text = String::new();
        durations.write(&mut text, "d", str::to_owned);
        text
    }

    #[test]
    fn durations_are_counted_below_their_bounds() {
        let durations = Durations::default();
        for ms in [1, 2, 30, 40_000] {
            durations.add(&called("order", "charge", "action"), Duration::from_millis(ms));
        }
        durations.add(&called("order", "charge", "undo"), Duration::from_millis(7));
        let text = text(&durations);
        let labels = "definition=\"order\",step=\"charge\",op=\"action\"";
        for line in [
            format!("d_bucket{{{labels},le=\"0.001\"}} 1\n"),
            format!("d_bucket{{{labels},le=\"0.002\"}} 2\n"),
            format!("d_bucket{{{labels},le=\"0.025\"}} 2\n"),
            format!("d_bucket{{{labels},le=\"0.05\"}} 3\n"),
            format!("d_bucket{{{labels},le=\"30\"}} 3\n"),
            format!("d_bucket{{{labels},le=\"+Inf\"}} 4\n"),
            format!("d_sum{{{labels}}} 40.033\n"),
            format!("d_count{{{labels}}} 4\n"),
            "op=\"undo\",le=\"0.01\"} 1\n".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} {text}");
        }
    }

    #[test]
    fn later_steps_share_a_name_and_are_counted() {
        let durations = Durations::default();
        for n in 0..MAX_STEPS + 7 {
            durations.add(&called("d", &n.to_string(), "action"), Duration::ZERO);
            // The undo of a step that has a name has it too.
            durations.add(&called("d", "0", "undo"), Duration::ZERO);
        }
        assert_eq!(durations.overflow(), 7);
        let text = text(&durations);
        assert!(text.contains("d_count{definition=\"other\",step=\"other\",op=\"action\"} 7\n"), "{text}");
        assert_eq!(text.matches("d_count{").count(), MAX_STEPS + 2);
    }
}
