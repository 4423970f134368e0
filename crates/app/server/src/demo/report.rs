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

impl Report<'_> {
    /// Whether every invariant holds.
    pub(super) fn holds(&self) -> bool {
        self.findings.violation_count == 0
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
        if self.holds() {
            text.push_str("the ledgers agree with each other and with the node\n");
        } else {
            text.push_str(&format!("VIOLATED: {} findings\n", f.violation_count));
            for violation in &f.violations {
                text.push_str(&format!("  {violation}\n"));
            }
        }
        text.push_str(&format!(
            "seed     {} (workload and faults; not the timing)\nevidence {}\nrepeat   {}\n",
            self.seed,
            self.evidence,
            self.repeat()
        ));
        text
    }

    pub(super) fn json(&self) -> Value {
        let f = &self.findings;
        json!({
            "seed": self.seed,
            "holds": self.holds(),
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
