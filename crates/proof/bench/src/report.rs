//! Sections of BENCHMARKS.md: one per suite, replaced as a whole.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

/// What a suite found.
#[derive(Debug, Default)]
pub(crate) struct Section {
    text: String,
    gates: Vec<Gate>,
    /// Measured for a moment only: goals say nothing then.
    smoke: bool,
}

/// A figure with a limit.
#[derive(Debug)]
struct Gate {
    id: String,
    wanted: String,
    found: String,
    met: bool,
}

impl Section {
    pub(crate) fn new(smoke: bool) -> Self {
        Self { smoke, ..Self::default() }
    }

    /// A paragraph.
    pub(crate) fn note(&mut self, text: &str) {
        println!("{text}");
        let _ = writeln!(self.text, "{text}\n");
    }

    /// A table; numbers are right-aligned by their column's first cell.
    pub(crate) fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let numeric = |i: usize| {
            let first = rows.iter().filter_map(|r| r.get(i)).find(|c| !c.is_empty());
            first.is_some_and(|c| c.starts_with(|c: char| c.is_ascii_digit()))
        };
        let rule: Vec<&str> = (0..head.len()).map(|i| if numeric(i) { "---:" } else { "---" }).collect();
        let mut table = format!("| {} |\n| {} |\n", head.join(" | "), rule.join(" | "));
        for row in rows {
            let _ = writeln!(table, "| {} |", row.join(" | "));
        }
        println!("{table}");
        let _ = writeln!(self.text, "{table}");
    }

    /// A figure that must hold. A missed one fails the run and stays in the report; a smoke run has none.
    pub(crate) fn gate(&mut self, id: &str, wanted: &str, found: String, met: bool) {
        if self.smoke {
            return;
        }
        println!("{} {id}: wanted {wanted}, found {found}", if met { "met   " } else { "MISSED" });
        self.gates.push(Gate { id: id.to_owned(), wanted: wanted.to_owned(), found, met });
    }

    /// Gates that do not hold.
    pub(crate) fn missed(&self) -> usize {
        self.gates.iter().filter(|g| !g.met).count()
    }

    fn render(&self, name: &str, about: &str, conditions: &str) -> String {
        let mut text = format!("## {name}\n\n{about}\n\n{conditions}\n\n{}", self.text);
        if !self.gates.is_empty() {
            text.push_str("| goal | wanted | found | |\n| --- | --- | --- | --- |\n");
            for g in &self.gates {
                let verdict = if g.met { "met" } else { "**missed**" };
                let _ = writeln!(text, "| {} | {} | {} | {verdict} |", g.id, g.wanted, g.found);
            }
        }
        text.trim_end().to_owned() + "\n"
    }

    /// Puts the section into `file` in place of an older one of the same name.
    pub(crate) fn write(&self, file: &Path, name: &str, about: &str, conditions: &str) -> anyhow::Result<()> {
        let old = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => HEAD.to_owned(),
            Err(e) => return Err(e).with_context(|| file.display().to_string()),
        };
        let new = replace(&old, name, &self.render(name, about, conditions));
        std::fs::write(file, new).with_context(|| file.display().to_string())
    }
}

const HEAD: &str = "# Benchmarks

Ours, the floor and the rivals in one run, losses included. `cargo xtask bench [NAME]` measures a section anew and
replaces it here; `--smoke` only shows that everything still runs. Read a figure together with the conditions above it.
";

/// `text` with the section `name` replaced, or added at its place in the alphabet.
fn replace(text: &str, name: &str, section: &str) -> String {
    let mut parts = text.split("\n## ");
    let head = parts.next().unwrap_or_default().trim_end().to_owned();
    let mut sections: Vec<String> = parts.map(|p| format!("## {}\n", p.trim_end())).collect();
    sections.retain(|s| s.lines().next() != Some(&format!("## {name}")));
    sections.push(section.to_owned());
    sections.sort();
    format!("{head}\n\n{}", sections.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::{HEAD, Section, replace};

    #[test]
    fn a_section_replaces_its_older_self_and_no_other() {
        let one = replace(HEAD, "saga", "## saga\n\nold\n");
        let two = replace(&one, "partition", "## partition\n\nring\n");
        let three = replace(&two, "saga", "## saga\n\nnew\n");
        assert!(three.starts_with("# Benchmarks"));
        assert!(three.contains("new") && !three.contains("old"));
        assert!(three.find("## partition") < three.find("## saga"));
        assert_eq!(replace(&three, "saga", "## saga\n\nnew\n"), three);
    }

    #[test]
    fn a_missed_gate_is_counted_and_shown() {
        let mut section = Section::default();
        section.gate("SG-T1", ">= 2", "3".to_owned(), true);
        section.gate("SG-T2", ">= 2", "1".to_owned(), false);
        assert_eq!(section.missed(), 1);
        let mut smoke = Section::new(true);
        smoke.gate("SG-T2", ">= 2", "1".to_owned(), false);
        assert_eq!(smoke.missed(), 0);
        assert!(section.render("saga", "a", "b").contains("| SG-T2 | >= 2 | 1 | **missed** |"));
    }
}
