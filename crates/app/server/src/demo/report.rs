//! The verdict, for people and for programs.

use mainstay_chaos::proxy::{Counts, HttpProxy};
use serde_json::{Value, json};

use super::audit::Findings;
use super::{Args, Level};

/// Faults of all proxies together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    pub(super) delayed: u64,
    pub(super) dropped: u64,
    pub(super) duplicated: u64,
    pub(super) errors: u64,
    pub(super) lost: u64,
}

impl Faults {
    pub(super) fn of(proxies: &[HttpProxy]) -> Self {
        let mut all = Self::default();
        for Counts { delayed, dropped, duplicated, errors, lost, .. } in proxies.iter().map(HttpProxy::counts)
        {
            all.delayed += delayed;
            all.dropped += dropped;
            all.duplicated += duplicated;
            all.errors += errors;
            all.lost += lost;
        }
        all
    }

    pub(super) fn total(self) -> u64 {
        self.delayed + self.dropped + self.duplicated + self.errors + self.lost
    }
}

/// Everything the demo has to say at its end.
pub(super) struct Report<'a> {
    pub(super) args: &'a Args,
    pub(super) seed: u64,
    pub(super) findings: Findings,
    pub(super) faults: Faults,
    pub(super) node_kills: u32,
    pub(super) service_kills: u32,
    pub(super) elapsed_ms: u64,
    pub(super) evidence: String,
}

/// Why a run that found nothing says nothing.
pub(super) const NOTHING_FIRED: &str =
    "no fault was injected into any request, so nothing was survived: use more orders";

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Every invariant holds, under the faults that were asked for.
    Holds,
    /// Nothing was found because nothing was injected, although it was asked for.
    NoVerdict,
    /// A violation was found.
    Violated,
}

impl Outcome {
    /// The exit code.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Holds => 0,
            Self::NoVerdict => super::EXIT_NO_VERDICT,
            Self::Violated => 1,
        }
    }
}

impl Report<'_> {
    /// What the run came to.
    pub(super) fn outcome(&self) -> Outcome {
        match self.findings.violation_count {
            0 if self.args.faults != Level::None && self.faults.total() == 0 => Outcome::NoVerdict,
            0 => Outcome::Holds,
            _ => Outcome::Violated,
        }
    }

    /// The command that runs the same workload under the same schedule.
    fn repeat(&self) -> String {
        let level = match self.args.faults {
            Level::None => "none",
            Level::Mild => "mild",
            Level::Harsh => "harsh",
        };
        let end = if self.args.break_barrier { " --break-barrier" } else { "" };
        format!("mainstay demo --seed {} --orders {} --faults {level}{end}", self.seed, self.args.orders)
    }

    pub(super) fn text(&self) -> String {
        let f = &self.findings;
        let mut text = format!(
            "{} orders: {} shipped, {} fully compensated, {} half-done, {} charged twice; {} node kills, {} participant kills, {} duplicates refused\n",
            self.args.orders,
            f.shipped,
            f.compensated,
            f.half_done,
            f.charged_twice,
            self.node_kills,
            self.service_kills,
            f.duplicates_refused
        );
        match self.outcome() {
            Outcome::Holds => text.push_str("the ledgers agree with each other and with the node\n"),
            Outcome::NoVerdict => text.push_str(&format!("NO VERDICT: {NOTHING_FIRED}\n")),
            Outcome::Violated => {
                text.push_str(&format!("VIOLATED: {} findings\n", f.violation_count));
                for violation in &f.violations {
                    text.push_str(&format!("  {violation}\n"));
                }
            }
        }
        let Faults { delayed, dropped, duplicated, errors, lost } = self.faults;
        text.push_str(&format!("seed     {} (workload and faults; not the timing)\n", self.seed));
        text.push_str(&format!(
            "faults   {dropped} dropped, {errors} x 500, {lost} replies lost, {duplicated} doubled, {delayed} delayed\n"
        ));
        text.push_str(&format!("evidence {}\nrepeat   {}\n", self.evidence, self.repeat()));
        text
    }

    pub(super) fn json(&self) -> Value {
        let f = &self.findings;
        json!({
            "seed": self.seed,
            "holds": match self.outcome() {
                Outcome::Holds => Value::Bool(true),
                Outcome::NoVerdict => Value::Null,
                Outcome::Violated => Value::Bool(false),
            },
            "orders": self.args.orders,
            "shipped": f.shipped,
            "compensated": f.compensated,
            "half_done": f.half_done,
            "charged_twice": f.charged_twice,
            "duplicates_refused": f.duplicates_refused,
            "faults": {
                "delayed": self.faults.delayed,
                "dropped": self.faults.dropped,
                "duplicated": self.faults.duplicated,
                "errors": self.faults.errors,
                "lost": self.faults.lost,
                "total": self.faults.total(),
            },
            "kills": {"node": self.node_kills, "participants": self.service_kills},
            "violations": f.violations,
            "violation_count": f.violation_count,
            "elapsed_ms": self.elapsed_ms,
            "evidence": self.evidence,
            "repeat": self.repeat(),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[track_caller]
    fn check(level: &str, fired: u64, violations: u64, (code, holds, said): (u8, Value, &str)) {
        let Line { args } = Line::parse_from(["demo", "--faults", level]);
        let findings = Findings { violation_count: violations, ..Findings::default() };
        let faults = Faults { lost: fired, ..Faults::default() };
        let evidence = String::new();
        let (node_kills, service_kills, elapsed_ms) = (3, 3, 1);
        let args = &args;
        let report =
            Report { args, seed: 1, findings, faults, node_kills, service_kills, elapsed_ms, evidence };
        assert_eq!((report.outcome().code(), &report.json()["holds"]), (code, &holds));
        let text = report.text();
        assert!(text.contains(said) && text.contains(&format!("{fired} replies lost")), "{text}");
    }

    #[test]
    fn if_d03_a_run_in_which_nothing_was_injected_has_no_verdict() {
        check("mild", 1, 0, (0, true.into(), "the ledgers agree"));
        check("mild", 0, 0, (125, Value::Null, "NO VERDICT"));
        check("harsh", 0, 0, (125, Value::Null, "NO VERDICT"));
        check("none", 0, 0, (0, true.into(), "the ledgers agree"));
        check("mild", 0, 2, (1, false.into(), "VIOLATED"));
        check("mild", 1, 2, (1, false.into(), "VIOLATED"));
    }
}
