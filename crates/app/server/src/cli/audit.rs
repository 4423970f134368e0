//! `audit export|verify`: who did what, chained by hashes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use mainstay_clock::WallTime;
use mainstay_store::journal::{Audit, Hash, StoredAudit};
use serde_json::Value;

use crate::cli::client::{Client, ServerArgs};
use crate::cli::print;
use crate::error::{Code, Error, Result};

/// Arguments of `audit`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print the whole audit of a node as JSON lines, oldest first.
    Export,
    /// Check that no line is missing, changed or out of order.
    Verify {
        /// An export; without one: the audit of the node.
        file: Option<PathBuf>,
    },
}

/// Lines read at once.
const PAGE: usize = 500;

/// Runs `audit`.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.verb {
        Verb::Export => {
            let client = Client::new(&args.server)?;
            each_page(&client, |lines| {
                let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
                print(&text).map(drop)
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Verify { file: Some(file) } => {
            let mut chain = Chain::default();
            for line in read(file)?.lines().filter(|l| !l.trim().is_empty()) {
                let line = serde_json::from_str(line).map_err(|_| chain.broken("is no line of an audit"))?;
                chain.follow(&line)?;
            }
            chain.report()
        }
        Verb::Verify { file: None } => {
            let client = Client::new(&args.server)?;
            let mut chain = Chain::default();
            each_page(&client, |lines| lines.iter().try_for_each(|line| chain.follow(line)))?;
            chain.report()
        }
    }
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file)
        .map_err(|e| Error::with(Code::BadValue, format!("cannot read {}", file.display()), e))
}

/// Reads the audit of a node, page by page.
fn each_page(client: &Client, mut take: impl FnMut(&[Value]) -> Result<()>) -> Result<()> {
    let mut after = "0".to_owned();
    loop {
        let page = client.call("GET", &format!("/v1/audit?limit={PAGE}&after={after}"), &[], None)?;
        take(page.items()?)?;
        match page.body["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => return Ok(()),
        }
    }
}

/// The chain so far.
struct Chain {
    seq: u64,
    last: Hash,
}

impl Default for Chain {
    fn default() -> Self {
        Self { seq: 0, last: Hash([0; 32]) }
    }
}

impl Chain {
    fn broken(&self, why: &str) -> Error {
        Error::new(Code::AuditBroken, format!("the line after number {} {why}", self.seq))
    }

    /// Takes the next line.
    fn follow(&mut self, line: &Value) -> Result<()> {
        let stored = parse(line).ok_or_else(|| self.broken("is no line of an audit"))?;
        if stored.seq != self.seq + 1 {
            return Err(self.broken(&format!("has number {}", stored.seq)));
        }
        let expected = StoredAudit::chain_of(&self.last, stored.seq, stored.at, &stored.entry);
        if expected != stored.chain {
            return Err(self.broken("was changed, or what was before it"));
        }
        (self.seq, self.last) = (stored.seq, stored.chain);
        Ok(())
    }

    fn report(&self) -> Result<ExitCode> {
        let mut hex = String::new();
        for byte in self.last.0 {
            let _ = write!(hex, "{byte:02x}");
        }
        print(&format!("{} lines, unbroken; the last has {hex}\n", self.seq))
    }
}

fn parse(line: &Value) -> Option<StoredAudit> {
    let text = |name: &str| line[name].as_str().map(str::to_owned);
    let at: jiff::Timestamp = line["at"].as_str()?.parse().ok()?;
    let chain = text("chain")?;
    let mut bytes = [0_u8; 32];
    if chain.len() != 64 || !chain.is_ascii() {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&chain[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(StoredAudit {
        seq: text("seq")?.parse().ok()?,
        at: WallTime::from_unix_millis(at.as_millisecond()),
        entry: Audit {
            who: text("who")?,
            action: text("action")?,
            target: text("target")?,
            reason: text("reason")?,
            before: text("before")?,
            after: text("after")?,
            request_id: text("request_id")?,
        },
        chain: Hash(bytes),
    })
}
