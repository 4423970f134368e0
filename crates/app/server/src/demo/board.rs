//! The live screen: eight lines that stay in place on a terminal, appended lines elsewhere.

use std::io::{IsTerminal as _, Write as _};

use super::report::Faults;

/// What the node says about the orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) completed: u64,
    pub(super) compensated: u64,
    pub(super) abandoned: u64,
    pub(super) attention: u64,
    pub(super) compensating: u64,
    pub(super) open: u64,
    pub(super) retrying: u64,
}

impl Seen {
    /// Reads the node's metrics.
    pub(super) fn of_metrics(text: &str) -> Self {
        let mut seen = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<u64>() else { continue };
            if name == "mainstay_sagas_retrying" {
                seen.retrying = value;
            }
            let Some(rest) = name.strip_prefix("mainstay_sagas{") else { continue };
            let state = rest.split("state=\"").nth(1).and_then(|s| s.split('"').next()).unwrap_or_default();
            match state {
                "completed" => seen.completed += value,
                "compensated" => seen.compensated += value,
                "abandoned" => seen.abandoned += value,
                "needs_attention" => seen.attention += value,
                "compensating" => {
                    seen.compensating += value;
                    seen.open += value;
                }
                _ => seen.open += value,
            }
        }
        seen
    }

    /// Orders that move no more.
    pub(super) fn ended(self) -> u64 {
        self.completed + self.compensated + self.abandoned + self.attention
    }
}

/// One state of the screen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Score {
    pub(super) orders: u32,
    pub(super) accepted: u64,
    pub(super) seen: Seen,
    pub(super) faults: Faults,
    pub(super) node_kills: u32,
    pub(super) service_kills: u32,
    pub(super) refused: u64,
    pub(super) elapsed_ms: u64,
}

/// Where the score goes.
pub(super) struct Board {
    is_terminal: bool,
    silent: bool,
    shown: bool,
    /// Elsewhere than on a terminal a line a second is enough.
    next_line_ms: u64,
}

impl Board {
    pub(super) fn new(silent: bool) -> Self {
        Self { is_terminal: std::io::stdout().is_terminal(), silent, shown: false, next_line_ms: 0 }
    }

    pub(super) fn show(&mut self, score: &Score) {
        if self.silent {
            return;
        }
        let mut out = std::io::stdout().lock();
        // A reader that went away misses the show, not the audit.
        let _ = if self.is_terminal {
            let up = if self.shown { "\x1b[8A" } else { "" };
            let lines: String = lines(score).iter().map(|l| format!("\x1b[2K{l}\n")).collect();
            self.shown = true;
            write!(out, "{up}{lines}")
        } else if score.elapsed_ms >= self.next_line_ms {
            self.next_line_ms = score.elapsed_ms + 1_000;
            writeln!(out, "{}", one_line(score))
        } else {
            Ok(())
        };
    }
}

fn seconds(score: &Score) -> String {
    format!("{}.{} s", score.elapsed_ms / 1_000, score.elapsed_ms % 1_000 / 100)
}

fn lines(s: &Score) -> [String; 8] {
    let f = &s.faults;
    [
        format!("orders              {} started, {} ended, of {}", s.accepted, s.seen.ended(), s.orders),
        format!("retrying            {}", s.seen.retrying),
        format!("compensating        {}", s.seen.compensating),
        format!("needs attention     {}", s.seen.attention),
        format!(
            "faults              {} dropped, {} x 500, {} replies lost, {} doubled, {} delayed",
            f.dropped, f.errors, f.lost, f.duplicated, f.delayed
        ),
        format!("kill -9             {} x node, {} x services", s.node_kills, s.service_kills),
        format!("duplicates refused  {}", s.refused),
        format!("elapsed             {}", seconds(s)),
    ]
}

fn one_line(s: &Score) -> String {
    format!(
        "{}: {} started, {} ended of {}; {} retrying, {} compensating; {} faults; kill -9: {} node, {} services",
        seconds(s),
        s.accepted,
        s.seen.ended(),
        s.orders,
        s.seen.retrying,
        s.seen.compensating,
        s.faults.total(),
        s.node_kills,
        s.service_kills
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn if_d04_the_screen_has_eight_lines_and_reads_the_nodes_metrics() {
        let text = "mainstay_sagas{definition=\"order\",state=\"completed\"} 7\n\
                    mainstay_sagas{definition=\"order\",state=\"running\"} 3\n\
                    mainstay_sagas{definition=\"order\",state=\"compensating\"} 2\n\
                    mainstay_sagas_retrying 4\n# TYPE x gauge\n";
        let seen = Seen::of_metrics(text);
        assert_eq!((seen.completed, seen.open, seen.compensating, seen.retrying), (7, 5, 2, 4));
        let score = Score { orders: 12, accepted: 12, seen, elapsed_ms: 3_210, ..Score::default() };
        let lines = lines(&score);
        assert_eq!(lines[0], "orders              12 started, 7 ended, of 12");
        assert_eq!(lines[7], "elapsed             3.2 s");
    }
}
