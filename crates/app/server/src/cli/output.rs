//! Tables for people, JSON for programs.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::ValueEnum;
use serde_json::Value;

use crate::cli::print;
use crate::error::Result;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Json,
    #[default]
    Table,
}

impl Output {
    /// Prints rows under a head, or the JSON that they came from.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub(crate) fn rows(self, head: &[&str], rows: Vec<Vec<String>>, json: &Value) -> Result<ExitCode> {
        match self {
            Self::Json => print(&format!("{json:#}\n")),
            Self::Table => {
                let mut table = comfy_table::Table::new();
                table.load_style(comfy_table::presets::NOTHING).set_header(head.iter().copied());
                for row in rows {
                    table.add_row(row.into_iter().map(|cell| plain(&cell)).collect::<Vec<String>>());
                }
                print(&format!("{}\n", table.trim_fmt()))
            }
        }
    }
}

/// Makes room for the next look at something that is watched: a terminal is cleared, elsewhere a line is left.
pub(crate) fn next_look() -> Result<ExitCode> {
    print(if std::io::stdout().is_terminal() { "\x1b[2J\x1b[H" } else { "\n" })
}

/// Text for a terminal: control characters of a payload must not move the cursor.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Like [`plain`], keeping line ends.
pub(crate) fn plain_lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<String>>().join("\n")
}
