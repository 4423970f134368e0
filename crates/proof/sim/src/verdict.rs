//! What a checker answers.

use std::collections::BTreeMap;
use std::fmt;

use crate::history::Event;

/// Where a run happened; rows above what a machine can do are skipped, never green.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Level {
    /// Disk faults.
    Disk,
    /// Kill and pause of real processes.
    Kill,
    /// Network namespaces.
    Namespace,
    /// A fault proxy before a real server.
    Proxy,
    /// Simulation.
    Simulation,
}

/// What stands behind a pass: numbers, so that a vacuous one shows.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Evidence {
    /// Operations or effects judged.
    pub judged: u64,
    /// What was measured, by name.
    pub numbers: BTreeMap<&'static str, f64>,
}

impl Evidence {
    /// Evidence of `judged` events.
    #[must_use]
    pub fn of(judged: u64) -> Self {
        Self { judged, numbers: BTreeMap::new() }
    }

    /// The same with a number.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: f64) -> Self {
        self.numbers.insert(name, value);
        self
    }
}

/// Why it is wrong, with the events that show it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Counterexample {
    /// One sentence.
    pub text: String,
    /// The events, few.
    pub events: Vec<Event>,
}

impl Counterexample {
    /// A counterexample.
    #[must_use]
    pub fn new(text: impl Into<String>, events: Vec<Event>) -> Self {
        Self { text: text.into(), events }
    }
}

/// The answer of a checker. Only `Pass` is a pass.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// The property is violated.
    Fail(Counterexample),
    /// The property holds for what happened.
    Pass(Evidence),
    /// Not run: this machine cannot.
    Skipped(Level),
    /// Nobody can say, and why.
    Unknown(String),
}

impl Verdict {
    /// A failure.
    #[must_use]
    pub fn fail(text: impl Into<String>, events: Vec<Event>) -> Self {
        Self::Fail(Counterexample::new(text, events))
    }

    /// A pass over `judged` events, or unknown when there were none: an empty history proves nothing.
    #[must_use]
    pub fn pass(evidence: Evidence) -> Self {
        if evidence.judged == 0 {
            return Self::Unknown("there was nothing to judge".to_owned());
        }
        Self::Pass(evidence)
    }

    /// `PASS`, `FAIL`, `UNKNOWN` or `SKIPPED`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fail(_) => "FAIL",
            Self::Pass(_) => "PASS",
            Self::Skipped(_) => "SKIPPED",
            Self::Unknown(_) => "UNKNOWN",
        }
    }

    /// The worse of two: a failure beats everything, unknown beats a pass.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let rank = |v: &Self| match v {
            Self::Fail(_) => 3,
            Self::Unknown(_) => 2,
            Self::Pass(_) => 1,
            Self::Skipped(_) => 0,
        };
        match (self, other) {
            (Self::Pass(mut a), Self::Pass(b)) => {
                a.judged += b.judged;
                for (name, value) in b.numbers {
                    let known = a.numbers.entry(name).or_insert(value);
                    *known = known.max(value);
                }
                Self::Pass(a)
            }
            (a, b) if rank(&b) > rank(&a) => b,
            (a, _) => a,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fail(c) => {
                write!(f, "FAIL: {}", c.text)?;
                c.events.iter().take(20).try_for_each(|e| write!(f, "\n  {e:?}"))
            }
            Self::Pass(e) => write!(f, "PASS: {} judged {:?}", e.judged, e.numbers),
            Self::Skipped(level) => write!(f, "SKIPPED: needs {level:?}"),
            Self::Unknown(why) => write!(f, "UNKNOWN: {why}"),
        }
    }
}
