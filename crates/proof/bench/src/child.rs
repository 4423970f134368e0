//! Every system runs in a process of its own: its memory and processor time are its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::load::{Figures, Order};
use crate::{coordination, floor, saga};

/// A program that measures one system: ourselves, or a rival's.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    file: PathBuf,
    first: Vec<String>,
}

impl Program {
    /// One of our own children.
    pub(crate) fn own(name: &str) -> anyhow::Result<Self> {
        let file = std::env::current_exe().context("this program has no path")?;
        Ok(Self { file, first: vec!["child".to_owned(), name.to_owned()] })
    }

    /// A program of this package that is built beside this one.
    pub(crate) fn beside(name: &str) -> anyhow::Result<Self> {
        let file = std::env::current_exe().context("this program has no path")?.with_file_name(name);
        Ok(Self { file, first: Vec::new() })
    }

    /// A rival's program, if it was built.
    pub(crate) fn rival(folder: Option<&Path>, name: &str) -> Option<Self> {
        let file = folder?.join(format!("rival-{name}"));
        file.exists().then_some(Self { file, first: Vec::new() })
    }

    /// The command without an order.
    pub(crate) fn bare(&self) -> Command {
        let mut command = Command::new(&self.file);
        command.args(&self.first);
        command
    }

    /// The command that does as ordered.
    pub(crate) fn command(&self, order: &Order) -> Command {
        let numbers = [
            ("--concurrency", order.concurrency.to_string()),
            ("--seconds", order.seconds.to_string()),
            ("--count", order.count.to_string()),
        ];
        let texts = [
            ("--workload", &order.workload),
            ("--dir", &order.dir),
            ("--variant", &order.variant),
            ("--server", &order.server),
        ];
        let mut command = self.bare();
        for (name, value) in &numbers {
            command.args([name, value.as_str()]);
        }
        for (name, value) in texts {
            command.args([name, value.as_str()]);
        }
        command
    }

    /// Runs it and reads the figures from the last line of its output.
    pub(crate) fn run(&self, order: &Order) -> anyhow::Result<Figures> {
        let mut command = self.command(order);
        let output = command.output().with_context(|| format!("{command:?} cannot be started"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let talk = String::from_utf8_lossy(&output.stderr);
            bail!("{command:?} failed: {}\n{text}{talk}", output.status);
        }
        let line = text.lines().last().unwrap_or_default();
        read(line).with_context(|| format!("{command:?} answered `{line}`"))
    }
}

/// Reads what [`Figures::line`] wrote.
pub(crate) fn read(line: &str) -> anyhow::Result<Figures> {
    let found: serde_json::Value = serde_json::from_str(line)?;
    let number = |name: &str| found[name].as_f64().with_context(|| format!("no `{name}`"));
    let count = |name: &str| found[name].as_u64().with_context(|| format!("no `{name}`"));
    Ok(Figures {
        done: count("done")?,
        failed: count("failed")?,
        seconds: number("seconds")?,
        p50: number("p50")?,
        p99: number("p99")?,
        p999: number("p999")?,
        rss_kib: count("rss_kib")?,
        peak_kib: count("peak_kib")?,
        early_kib: count("early_kib")?,
        cpu_seconds: number("cpu_seconds")?,
    })
}

/// The other side: `mainstay-bench child NAME --..`.
pub(crate) fn serve(mut words: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let name = words.next().context("a child needs a name")?;
    if name == "block" {
        return saga::block::child(words);
    }
    if name == "hold" {
        return coordination::failover::child(words);
    }
    let order = Order::read(words).map_err(anyhow::Error::msg)?;
    if name == "fill" {
        return saga::recovery::fill(&order);
    }
    let figures = match name.as_str() {
        "floor" => floor::child(&order)?,
        "saga" => saga::embedded::child(&order)?,
        "http" => saga::http::child(&order)?,
        "listed" => saga::listed::child(&order)?,
        "recover" => saga::recovery::recover(&order)?,
        _ => bail!("there is no child `{name}`"),
    };
    println!("{}", figures.line());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::read;
    use crate::load::Figures;

    #[test]
    fn figures_survive_their_line() {
        let figures =
            Figures { done: 7, failed: 1, seconds: 2.5, p99: 10.5, rss_kib: 9, ..Figures::default() };
        assert_eq!(format!("{:?}", read(&figures.line()).unwrap()), format!("{figures:?}"));
        assert!(read("{}").is_err());
    }
}
