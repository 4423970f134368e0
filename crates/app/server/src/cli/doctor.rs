//! `doctor`: is this machine fit, or with `--live`: is the node up.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use crate::cli::Output;
use crate::cli::client::{Client, ServerArgs};
use crate::error::Result;

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ask a running node whether it is ready, for health checks.
    #[arg(long)]
    live: bool,
    /// The data folder to check.
    #[arg(long, default_value = "mainstay-data", env = "MAINSTAY_STORE__DATA")]
    data: PathBuf,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    server: ServerArgs,
}

/// A finding: what was looked at, whether it is fine, what was seen.
type Finding = (&'static str, bool, String);

/// Runs `doctor`. Exit code 1 when something is not fine.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let findings = if args.live { live(&args.server)? } else { machine(&args.data) };
    let word = |fine: bool| if fine { "ok" } else { "FAIL" }.to_owned();
    let rows = findings.iter().map(|(what, fine, seen)| vec![(*what).to_owned(), word(*fine), seen.clone()]);
    let json = findings.iter().map(|(what, fine, seen)| json!({"check": what, "ok": fine, "seen": seen}));
    args.output.rows(&["CHECK", "", "SEEN"], rows.collect(), &json.collect())?;
    Ok(if findings.iter().all(|f| f.1) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn live(server: &ServerArgs) -> Result<Vec<Finding>> {
    let client = Client::new(server)?;
    let answer = client.send("GET", "/readyz", &[], None)?;
    let mut findings = vec![("node is ready", answer.status == 200, format!("status {}", answer.status))];
    let nodes = client.send("GET", "/v1/nodes", &[], None)?;
    // Without a token nobody is told, and without gossip there is nothing to tell.
    if nodes.status == 200 && nodes.body["gossip"] == true {
        let none = Vec::new();
        let list = nodes.body["nodes"].as_array().unwrap_or(&none);
        let there = list.iter().filter(|n| n["state"] == "here" || n["state"] == "up").count();
        // For information: another node's absence makes this one no less healthy.
        findings.push(("the fleet is seen", true, format!("{there} of {} nodes are there", list.len())));
    }
    Ok(findings)
}

fn machine(data: &Path) -> Vec<Finding> {
    vec![clock(), folder(data), sync(data)]
}

fn clock() -> Finding {
    /// 2025-01-01: a clock before it was never set.
    const EPOCH: i64 = 1_735_689_600_000;
    let now = mainstay_clock::os_wall_now();
    ("the clock is set", now.unix_millis() > EPOCH, crate::api::instant(now))
}

fn folder(data: &Path) -> Finding {
    let made = std::fs::create_dir_all(data);
    let seen = made.as_ref().map_or_else(ToString::to_string, |()| data.display().to_string());
    ("the data folder can be used", made.is_ok(), seen)
}

/// Times real syncs. A disk that syncs in no time does not sync; only a power cut can prove that it does.
fn sync(data: &Path) -> Finding {
    /// Syncs that are timed.
    const ROUNDS: u32 = 16;
    let what = "fsync works";
    let path = data.join("doctor.probe");
    let probe = || -> std::io::Result<std::time::Duration> {
        use std::io::Write as _;
        let mut file = std::fs::File::create(&path)?;
        let start = mainstay_clock::os_boot_now();
        for _ in 0..ROUNDS {
            file.write_all(&[0; 4_096])?;
            file.sync_data()?;
        }
        Ok(mainstay_clock::os_boot_now().saturating_duration_since(start) / ROUNDS)
    };
    let finding = match probe() {
        Ok(each) => (what, true, format!("{each:?} each; below 20us the disk is memory or does not sync")),
        Err(e) => (what, false, e.to_string()),
    };
    let _ = std::fs::remove_file(&path);
    finding
}
