//! What a wait looks like: one line that changes on a terminal, a line per change elsewhere. On stderr: stdout is
//! for data.

use std::io::{IsTerminal as _, Write as _};

use serde_json::Value;

use crate::cli::output::plain;

/// The progress of one saga.
pub(super) struct Progress {
    terminal: bool,
    last: String,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), last: String::new() }
    }

    /// Shows where the saga is. What did not change is not said again.
    pub(super) fn show(&mut self, saga: &Value) {
        let line = plain(&line(saga));
        if line == self.last {
            return;
        }
        let mut err = std::io::stderr().lock();
        // Nobody reads it any more: that is no reason to stop waiting.
        let _ = match self.terminal {
            true => write!(err, "\r\x1b[2K{line}").and_then(|()| err.flush()),
            false => writeln!(err, "{line}"),
        };
        self.last = line;
    }

    /// Ends the line of a terminal.
    pub(super) fn end(&self) {
        if self.terminal && !self.last.is_empty() {
            let _ = writeln!(std::io::stderr());
        }
    }
}

/// One line: what it is, where it is, why.
fn line(saga: &Value) -> String {
    let text = |name: &str| saga[name].as_str().unwrap_or_default();
    let mut line = format!("{} {}: {}", text("definition"), text("id"), text("status"));
    let status = text("status");
    let over = matches!(status, "completed" | "compensated" | "abandoned");
    if !over && saga["paused"] == true {
        line.push_str(", paused");
    }
    if !over && !text("step").is_empty() {
        line.push_str(&format!(", step {} attempt {}", text("step"), saga["attempt"]));
    }
    if !over && !text("error").is_empty() {
        line.push_str(&format!(" ({})", text("error")));
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_says_where_a_saga_is_and_why() {
        let check = |saga: Value, expected: &str| assert_eq!(line(&saga), expected);
        let base =
            json!({"definition": "order", "id": "7", "status": "running", "step": "charge", "attempt": 2});
        check(base.clone(), "order 7: running, step charge attempt 2");
        let mut failing = base.clone();
        failing["error"] = "HTTP 503".into();
        check(failing, "order 7: running, step charge attempt 2 (HTTP 503)");
        let mut over = base;
        over["status"] = "completed".into();
        check(over, "order 7: completed");
    }
}
