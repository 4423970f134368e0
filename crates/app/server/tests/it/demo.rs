//! The demo, run as users run it.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{Request, eventually, line, mainstay, stderr, stdout};
use crate::machine::{PATIENCE, finish};

/// Enough orders for every kill to meet work, few enough for a test.
const ORDERS: &str = "120";

/// The demo's own limit is meant for people who wait; a machine that does much else may take longer.
const LIMIT: [&str; 2] = ["--limit", "5m"];
/// One that does not keep even to that.
const STUCK: Duration = Duration::from_secs(330);

/// A prepared demo, with its evidence below `dir`.
fn prepared(dir: &tempfile::TempDir, args: &[&str]) -> Command {
    let mut command = mainstay(&["demo"]);
    command.args(LIMIT).args(args).env("TMPDIR", dir.path());
    command
}

fn demo(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    finish(prepared(&dir, args), STUCK)
}

/// A demo under way; killed by its id when dropped.
struct Running(Child);

impl Running {
    fn start(dir: &tempfile::TempDir, args: &[&str]) -> Self {
        Self(prepared(dir, args).spawn().unwrap())
    }

    /// The node and three services, once all of them run.
    fn children(&self) -> Vec<u32> {
        eventually("the node and three services run", || {
            let children = children_of(self.0.id());
            (children.len() == 4).then_some(children)
        })
    }

    /// Ends it by its id, and says how it ended.
    fn end(&mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
        eventually("the demo ends", || self.0.try_wait().unwrap()).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", stdout(output), stderr(output)))
}

/// The processes whose parent is `parent`.
fn children_of(parent: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name may contain spaces; the parent is the second word after it.
        let rest = stat.rsplit(')').next().unwrap_or_default();
        let words: Vec<&str> = rest.split_whitespace().collect();
        if words.first() != Some(&"Z") && words.get(1).and_then(|w| w.parse().ok()) == Some(parent) {
            found.push(pid);
        }
    }
    found
}

#[test]
fn if_d10_every_order_is_whole_under_every_level_of_faults() {
    for (seed, level) in [("1", "none"), ("2", "mild"), ("3", "harsh"), ("4", "harsh")] {
        let output = demo(&["--seed", seed, "--orders", ORDERS, "--faults", level, "--json"]);
        let report = report(&output);
        assert_eq!(output.status.code(), Some(0), "if_d09 {report:#}");
        assert_eq!((&report["holds"], report["violation_count"].as_u64()), (&Value::Bool(true), Some(0)));
        let count = |name: &str| report[name].as_u64().unwrap();
        assert_eq!(count("shipped") + count("compensated"), 120, "if_d06 {report:#}");
        let kills = |who: &str| report["kills"][who].as_u64().unwrap();
        let expected = match level {
            "none" => (0, 0),
            "mild" => (3, 3),
            _ => (10, 9),
        };
        assert_eq!((kills("node"), kills("participants")), expected, "if_d03");
        // The plan of a seed is fixed: under these every class meets requests.
        for class in ["delayed", "dropped", "duplicated", "errors", "lost"] {
            let fired = report["faults"][class].as_u64().unwrap();
            assert_eq!(fired > 0, level != "none", "if_d03: {class} fired {fired} times under {level}");
        }
        assert!(level != "harsh" || count("duplicates_refused") > 0, "the barrier had something to do");
    }
}

#[test]
fn if_d08_without_the_barrier_the_audit_names_orders_charged_twice_whatever_the_seed() {
    for (seed, orders, level) in [("5", "20", "mild"), ("6", "20", "harsh"), ("7", "1", "harsh")] {
        let args = ["--seed", seed, "--orders", orders, "--faults", level, "--json", "--break-barrier"];
        let output = demo(&args);
        let report = report(&output);
        assert_eq!(output.status.code(), Some(1), "if_d09 {report:#}");
        assert!(report["charged_twice"].as_u64().unwrap() >= 1, "{report:#}");
        let violations = report["violations"].to_string();
        assert!(violations.contains("charge took effect"), "{violations}");
    }
    let usage = demo(&["--break-barrier", "--faults", "none"]);
    assert_eq!(usage.status.code(), Some(2));
    assert!(stderr(&usage).contains("--break-barrier needs faults"), "{}", stderr(&usage));
}

/// 0 and 1 say what the audit found; all else says that there was none.
#[test]
fn if_d09_the_exit_code_says_what_the_audit_found_or_that_there_was_none() {
    let small = ["--seed", "14", "--orders", "3", "--faults"];
    let code = |args: &[&str]| demo(args).status.code();
    assert_eq!(code(&[&small[..], &["none"]].concat()), Some(0), "everything holds");
    assert_eq!(code(&[&small[..], &["harsh", "--break-barrier"]].concat()), Some(1), "a violation was found");
    assert_eq!(code(&[&small[..], &["none", "--break-barrier"]].concat()), Some(2), "usage");
    assert_eq!(code(&["--orders", "0"]), Some(2), "usage");
    // Nowhere to put the ledgers: it could not run.
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut homeless = mainstay(&["demo"]);
    homeless.args(small).arg("none").env("TMPDIR", file.path());
    let output = finish(homeless, STUCK);
    assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
    assert!(stderr(&output).contains("no verdict") && stdout(&output).is_empty(), "{}", stderr(&output));
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let dir = tempfile::tempdir().unwrap();
        let mut running = Running::start(&dir, &["--seed", "15", "--orders", "5000", "--json"]);
        running.children();
        assert_eq!(running.end(signal), Some(code), "interrupted");
    }
}

#[test]
fn if_d06_the_verdict_leaves_evidence_and_the_command_that_repeats_it() {
    let dir = tempfile::tempdir().unwrap();
    let output = finish(prepared(&dir, &["--seed", "11", "--orders", "30"]), STUCK);
    let text = stdout(&output);
    assert!(text.contains("30 orders: "), "{text}");
    assert!(text.contains(" replies lost, "), "if_d03 how many faults fired: {text}");
    assert!(text.contains("repeat   mainstay demo --seed 11 --orders 30 --faults mild"), "{text}");
    assert!(text.contains("timeout = \"500ms\""), "the definition is printed: {text}");
    assert!(!text.contains('\x1b'), "if_d04 no terminal, no control codes: {text}");
    let evidence = text.lines().find_map(|l| l.strip_prefix("evidence ")).unwrap();
    for file in ["inventory.db", "payment.db", "shipping.db", "node/mainstay.db", "faults.log", "report.json"]
    {
        assert!(std::path::Path::new(evidence).join(file).exists(), "{file}");
    }
}

#[test]
fn if_d07_keep_leaves_one_order_for_a_person() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--seed", "12", "--orders", "10", "--faults", "none", "--keep"];
    let mut running = Running::start(&dir, &args);
    let (said, pipe) = line("the node is up", running.0.stderr.take().unwrap());
    let address = said
        .strip_prefix("mainstay demo: the node is up at http://")
        .unwrap_or_else(|| panic!("{said}"))
        .trim()
        .to_owned();
    let (console, _pipe) = line("the console is there", pipe);
    assert_eq!(console.trim(), format!("mainstay demo: the console is at http://{address}/console"));
    let path = "/v1/sagas?status=needs_attention";
    eventually("the order is stuck", || {
        let page = Request::new("GET", path).to(&address).json();
        page["items"].as_array().unwrap().iter().any(|i| i["id"] == "order-stuck").then_some(())
    });
    assert_eq!(running.end(Signal::INT), Some(0), "if_d09 the code of the verdict");
}

/// What the README says after its first command, word by word: an order of one's own, and a lock without a node.
#[test]
fn if_d10_the_readme_goes_on_with_commands_that_run() {
    let page = include_str!("../../../../../README.md");
    let block = |start: &str| {
        let block = page.split("```sh\n").skip(1).find(|b| b.starts_with(start)).unwrap();
        block.split("\n```").next().unwrap().to_owned()
    };
    let dir = tempfile::tempdir().unwrap();
    let shell = |script: &str, node: &str| {
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_mainstay"));
        let path = format!("{}:/usr/bin:/bin", program.parent().unwrap().display());
        let mut shell = Command::new("sh");
        shell.args(["-ec", script]).current_dir(dir.path()).env_clear();
        shell.env("PATH", path).env("HOME", dir.path()).env("NODE", node);
        shell.stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(shell, PATIENCE)
    };
    std::fs::write(dir.path().join("backup.sh"), "#!/bin/sh\necho saved as $MAINSTAY_FENCING_TOKEN\n")
        .unwrap();
    let saved = shell(&format!("chmod +x backup.sh; {}", block("mainstay lock nightly")), "");
    assert!(stdout(&saved).starts_with("saved as "), "{}{}", stdout(&saved), stderr(&saved));

    let args = ["--seed", "14", "--orders", "10", "--faults", "none", "--keep"];
    let mut running = Running::start(&dir, &args);
    let (said, _pipe) = line("the node is up", running.0.stderr.take().unwrap());
    let node =
        said.trim().strip_prefix("mainstay demo: the node is up at ").unwrap_or_else(|| panic!("{said}"));
    let asked = shell(&block("curl"), node);
    assert!(stdout(&asked).contains("\"id\":\"mine\""), "{}{}", stdout(&asked), stderr(&asked));
    let look = block("curl").lines().last().unwrap().to_owned();
    eventually("the order of one's own is undone", || {
        stdout(&shell(&look, node)).contains("\"status\":\"compensated\"").then_some(())
    });
    assert_eq!(running.end(Signal::INT), Some(0));
}

#[test]
fn if_d01_all_children_die_with_the_driver() {
    for (signal, code) in [(Signal::INT, Some(130)), (Signal::KILL, None)] {
        let dir = tempfile::tempdir().unwrap();
        let mut running = Running::start(&dir, &["--seed", "13", "--orders", "5000", "--json"]);
        let children = running.children();
        assert_eq!(running.end(signal), code, "if_d09");
        eventually("every child is gone", || {
            let left = children.iter().filter(|p| is_demo(**p)).count();
            (left == 0).then_some(())
        });
    }
}

/// Whether the process is still one of ours: its number may have been given to another.
fn is_demo(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().unwrap_or_default();
    stat.contains("(mainstay)") && !state.starts_with('Z')
}
