//! CK-10: how many, how often, and drawn from which distribution?

use std::collections::BTreeMap;
use std::time::Duration;

use super::Checker;
use crate::history::{Datum, Event, Text};
use crate::verdict::{Evidence, Verdict};

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// At most `most` calls of `f` per key in any window.
#[derive(Debug)]
pub struct Rate {
    f: Text,
    window_ns: u64,
    most: usize,
    calls: BTreeMap<Text, Vec<u64>>,
}

/// A checker of [`Rate`].
#[must_use]
pub fn rate(f: &str, window: Duration, most: usize) -> Box<dyn Checker> {
    Box::new(Rate { f: f.into(), window_ns: nanos(window), most, calls: BTreeMap::new() })
}

impl Checker for Rate {
    fn feed(&mut self, event: &Event) {
        if let Event::Op(op) = event
            && op.f == self.f
        {
            self.calls.entry(op.key.clone()).or_default().push(op.invoke_ns);
        }
    }

    fn verdict(mut self: Box<Self>) -> Verdict {
        let (mut judged, mut largest) = (0, 0);
        for (key, calls) in &mut self.calls {
            calls.sort_unstable();
            judged += calls.len() as u64;
            let mut from = 0;
            for (i, at) in calls.iter().enumerate() {
                while calls[from] + self.window_ns <= *at {
                    from += 1;
                }
                largest = largest.max(i + 1 - from);
                if i + 1 - from > self.most {
                    let text = format!(
                        "`{key}` had {} calls of `{}` within {} ns before {at}; at most {}",
                        i + 1 - from,
                        self.f,
                        self.window_ns,
                        self.most
                    );
                    return Verdict::fail(text, Vec::new());
                }
            }
        }
        Verdict::pass(Evidence::of(judged).with("most per window", largest as f64))
    }
}

/// Calls of `bottom` per call of `top` are at most `most`.
#[derive(Debug)]
pub struct Amplification {
    top: Text,
    bottom: Text,
    most: f64,
    counts: (u64, u64),
}

/// A checker of [`Amplification`].
#[must_use]
pub fn amplification(top: &str, bottom: &str, most: f64) -> Box<dyn Checker> {
    Box::new(Amplification { top: top.into(), bottom: bottom.into(), most, counts: (0, 0) })
}

impl Checker for Amplification {
    fn feed(&mut self, event: &Event) {
        let Event::Op(op) = event else { return };
        self.counts.0 += u64::from(op.f == self.top);
        self.counts.1 += u64::from(op.f == self.bottom);
    }

    fn verdict(self: Box<Self>) -> Verdict {
        let (top, bottom) = self.counts;
        if top == 0 {
            return Verdict::Unknown(format!("there was no `{}`", self.top));
        }
        let ratio = bottom as f64 / top as f64;
        if ratio > self.most {
            let text =
                format!("{bottom} `{}` for {top} `{}`: more than {}", self.bottom, self.top, self.most);
            return Verdict::fail(text, Vec::new());
        }
        Verdict::pass(Evidence::of(top).with("amplification", ratio))
    }
}

/// Calls of `f` happen exactly at the expected instants, within a tolerance.
#[derive(Debug)]
pub struct Schedule {
    f: Text,
    expected: Vec<u64>,
    tolerance_ns: u64,
    calls: Vec<u64>,
}

/// A checker of [`Schedule`]; `expected` in ascending order.
#[must_use]
pub fn schedule(f: &str, expected: Vec<u64>, tolerance: Duration) -> Box<dyn Checker> {
    Box::new(Schedule { f: f.into(), expected, tolerance_ns: nanos(tolerance), calls: Vec::new() })
}

impl Checker for Schedule {
    fn feed(&mut self, event: &Event) {
        if let Event::Op(op) = event
            && op.f == self.f
        {
            self.calls.push(op.invoke_ns);
        }
    }

    fn verdict(mut self: Box<Self>) -> Verdict {
        self.calls.sort_unstable();
        if self.calls.is_empty() {
            return Verdict::Unknown(format!("there was no `{}`", self.f));
        }
        let off = self.expected.iter().zip(&self.calls).find(|(e, c)| e.abs_diff(**c) > self.tolerance_ns);
        if let Some((expected, call)) = off {
            let text = format!("`{}` was called at {call} ns instead of {expected}", self.f);
            return Verdict::fail(text, Vec::new());
        }
        if self.calls.len() != self.expected.len() {
            let text =
                format!("{} calls of `{}` instead of {}", self.calls.len(), self.f, self.expected.len());
            return Verdict::fail(text, Vec::new());
        }
        Verdict::pass(Evidence::of(self.calls.len() as u64))
    }
}

/// The results of `f` lie in `[low, high]` and are drawn evenly from it.
#[derive(Debug)]
pub struct Jitter {
    f: Text,
    low: f64,
    high: f64,
    alpha: f64,
    values: Vec<f64>,
}

/// A checker of [`Jitter`] by a Kolmogorov-Smirnov test at level `alpha`, the chance to accuse an honest
/// generator. Needs at least 50 values.
#[must_use]
pub fn jitter(f: &str, low: f64, high: f64, alpha: f64) -> Box<dyn Checker> {
    Box::new(Jitter { f: f.into(), low, high, alpha, values: Vec::new() })
}

impl Checker for Jitter {
    fn feed(&mut self, event: &Event) {
        if let Event::Op(op) = event
            && op.f == self.f
            && let Some(Datum::Int(n)) = op.value
        {
            self.values.push(n as f64);
        }
    }

    fn verdict(self: Box<Self>) -> Verdict {
        /// Below this the test has no power worth a verdict.
        const FEWEST: usize = 50;
        if let Some(outside) = self.values.iter().find(|v| **v < self.low || **v > self.high) {
            return Verdict::fail(format!("{outside} is outside [{}, {}]", self.low, self.high), Vec::new());
        }
        if self.values.len() < FEWEST {
            return Verdict::Unknown(format!("{} values are too few for a test", self.values.len()));
        }
        let unit = |v: f64| ((v - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        let statistic = kolmogorov_statistic(&self.values, unit);
        let p = kolmogorov_p(statistic, self.values.len());
        if p < self.alpha {
            let text = format!("`{}` is not drawn evenly: D = {statistic:.4}, p = {p:.2e}", self.f);
            return Verdict::fail(text, Vec::new());
        }
        Verdict::pass(Evidence::of(self.values.len() as u64).with("p", p))
    }
}

/// The largest distance between the empirical distribution of `values` and the distribution function `cdf`.
#[must_use]
pub fn kolmogorov_statistic(values: &[f64], cdf: impl Fn(f64) -> f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len() as f64;
    let distance = |(i, v): (usize, &f64)| {
        let expected = cdf(*v);
        (expected - i as f64 / n).abs().max(((i + 1) as f64 / n - expected).abs())
    };
    sorted.iter().enumerate().map(distance).fold(0.0, f64::max)
}

/// The chance that `n` honest draws are as far off as `statistic`: Kolmogorov's series with the small-sample
/// correction of Stephens (1970).
///
/// ```
/// use mainstay_sim::check::kolmogorov_p;
///
/// // The tables say: 1.36 / sqrt(n) at the 5 % level.
/// let p = kolmogorov_p(1.358 / 1000_f64.sqrt(), 1_000);
/// assert!((p - 0.05).abs() < 0.005, "{p}");
/// ```
#[must_use]
pub fn kolmogorov_p(statistic: f64, n: usize) -> f64 {
    let root = (n as f64).sqrt();
    let x = (root + 0.12 + 0.11 / root) * statistic;
    if x < 0.2 {
        return 1.0;
    }
    let term = |k: i32| {
        let k = f64::from(k);
        (-2.0 * k * k * x * x).exp() * if k as i64 % 2 == 1 { 1.0 } else { -1.0 }
    };
    (2.0 * (1..=100).map(term).sum::<f64>()).clamp(0.0, 1.0)
}
