//! What is shipped for those who run a node: a unit of systemd, rules for alerts.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fleet::{SECRET, key_file};
use crate::harness::{Node, PATIENCE, mainstay, quick_dir, stderr, stdout};
use crate::machine::finish;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").canonicalize().unwrap()
}

fn text(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A tool of the machine, if it has it; that it does not is told by name.
fn tool(name: &str) -> Option<Command> {
    let found = ["/usr/bin", "/usr/local/bin", "/bin"].map(|dir| Path::new(dir).join(name));
    let found = found.into_iter().find(|path| path.exists());
    if found.is_none() {
        eprintln!("{name} is not here: what it would check is not checked");
    }
    found.map(Command::new)
}

/// The settings of a unit, by name.
fn settings(unit: &str) -> BTreeMap<&str, &str> {
    let lines = unit.lines().filter(|l| !l.starts_with(['#', '[']) && !l.trim().is_empty());
    lines.map(|line| line.split_once('=').unwrap_or_else(|| panic!("{line}"))).collect()
}

#[test]
fn the_unit_of_systemd_starts_a_node_that_tells_it_so_and_systemd_takes_it() {
    let unit = text("packaging/mainstay.service");
    let settings = settings(&unit);
    assert_eq!((settings["Type"], settings["User"]), ("notify", "mainstay"));
    // The words of the unit, with the files of this test.
    let words: Vec<&str> = settings["ExecStart"].split(' ').collect();
    let ["/usr/local/bin/mainstay", "serve", "--config", "/etc/mainstay.toml"] = words[..] else {
        panic!("{words:?}")
    };
    let dir = quick_dir();
    let (config, socket) = (dir.path().join("mainstay.toml"), dir.path().join("notify"));
    let data = dir.path().join("data");
    let settings_of_node =
        format!("[store]\ndata = \"{}\"\n[server]\nlisten = \"127.0.0.1:0\"\n", data.display());
    std::fs::write(&config, settings_of_node).unwrap();
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = mainstay(&["serve", "--config", config.to_str().unwrap()]);
    let watchdog: u64 = settings["WatchdogSec"].parse().unwrap();
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", (watchdog * 1_000_000).to_string());
    let mut node = Node::spawn(command);
    let mut told = BTreeSet::new();
    let hear = |told: &mut BTreeSet<String>| {
        let mut word = [0; 64];
        let n = systemd.recv(&mut word).unwrap();
        told.insert(String::from_utf8_lossy(&word[..n]).into_owned());
    };
    while !["READY=1", "WATCHDOG=1"].iter().all(|word| told.contains(*word)) {
        hear(&mut told);
    }
    assert_eq!(node.stop(), Some(0));
    while !told.contains("STOPPING=1") {
        hear(&mut told);
    }
    // What is asked of it is what the page gives reasons for.
    let page = text("docs/operations.md");
    for name in
        ["StartLimitIntervalSec", "Restart", "RestartSec", "TimeoutStartSec", "LimitNOFILE", "WatchdogSec"]
    {
        assert!(settings.contains_key(name) && page.contains(&format!("`{name}")), "{name}");
    }
    if let Some(mut verify) = tool("systemd-analyze") {
        let here = dir.path().join("mainstay.service");
        std::fs::write(&here, unit.replace(words[0], env!("CARGO_BIN_EXE_mainstay"))).unwrap();
        verify.args(["verify", "--man=no"]).arg(&here);
        let output = finish(verify, PATIENCE);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(!stderr(&output).contains("mainstay.service"), "{}", stderr(&output));
    }
}

/// One rule, with what it asks.
#[derive(Debug, Default)]
struct Rule {
    name: String,
    fields: BTreeMap<String, String>,
}

/// The rules of the file, which has one shape: anything else in it is a mistake.
fn rules(text: &str) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    for head in ["groups:", "  - name: mainstay", "    rules:"] {
        assert_eq!(lines.next(), Some(head));
    }
    for line in lines {
        if let Some(name) = line.strip_prefix("      - alert: ") {
            rules.push(Rule { name: name.to_owned(), ..Rule::default() });
            continue;
        }
        let rule = rules.last_mut().unwrap_or_else(|| panic!("{line}"));
        let field = line.trim_start();
        let (name, value) = field.split_once(':').unwrap_or_else(|| panic!("{line}"));
        match (line.len() - field.len(), name) {
            (8, "labels" | "annotations") => assert!(value.is_empty(), "{line}"),
            (8, "expr" | "for") | (10, "severity" | "summary" | "runbook") => {
                let value = value.trim().to_owned();
                assert!(!value.is_empty() && rule.fields.insert(name.to_owned(), value).is_none(), "{line}");
            }
            _ => panic!("{line}"),
        }
    }
    rules
}

/// The metrics that an expression names, each with its matchers.
fn metrics(expr: &str) -> Vec<(String, Vec<String>)> {
    let mut all = Vec::new();
    for (at, _) in expr.match_indices("mainstay_") {
        let rest = &expr[at..];
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(rest.len());
        let matchers = rest[end..].strip_prefix('{').and_then(|r| r.split_once('}'));
        let matchers = matchers.map_or_else(Vec::new, |(m, _)| m.split(',').map(str::to_owned).collect());
        all.push((rest[..end].to_owned(), matchers));
    }
    all
}

/// A rule about a metric that nobody has never fires, and nobody sees that.
#[test]
fn the_rules_for_alerts_ask_for_metrics_that_a_node_has_and_the_page_says_what_to_do() {
    let file = text("packaging/alerts.yml");
    let rules = rules(&file);
    let dir = quick_dir();
    let config = dir.path().join("mainstay.toml");
    // With everything that a node can have.
    let key = dir.path().join("key");
    key_file(&key, &format!("1:{SECRET}\n"), 0o600);
    let all = format!(
        "[participants]\nallow = [\"http://127.0.0.1:1\"]\nbreaker = true\nmax_in_flight = 4\n\
         [gossip]\nbind = \"127.0.0.1:0\"\nname = \"a\"\ncluster = \"test\"\nmembers = [\"a\"]\nkey_file = \"{}\"\n",
        key.display()
    );
    std::fs::write(&config, all).unwrap();
    let node = Node::start(&dir.path().join("data"), &["--config", config.to_str().unwrap()]);
    let mut shown = String::new();
    // The first look at the disk comes with the start.
    crate::harness::eventually("the disk was looked at", || {
        shown = node.get("/metrics").text();
        shown.contains("\nmainstay_disk_free_bytes ").then_some(())
    });
    let page = text("docs/operations.md");
    let mut names = BTreeSet::new();
    for rule in &rules {
        let field = |name: &str| rule.fields.get(name).unwrap_or_else(|| panic!("{rule:?} has no {name}"));
        assert!(names.insert(&rule.name), "{rule:?} is there twice");
        assert!(["page", "ticket"].contains(&field("severity").as_str()), "{rule:?}");
        assert!(!field("summary").is_empty() && page.contains(&format!("`{}`", rule.name)), "{rule:?}");
        let (document, heading) = field("runbook").split_once('#').unwrap();
        let anchor = |line: &str| {
            line.trim_start_matches("## ").to_lowercase().replace([',', '?'], "").replace(' ', "-")
        };
        let there = text(document).lines().any(|l| l.starts_with("## ") && anchor(l) == heading);
        assert!(there, "{rule:?}");
        let asked = metrics(field("expr"));
        assert!(!asked.is_empty() || field("expr").starts_with("up{"), "{rule:?}");
        for (metric, matchers) in asked {
            let line = shown.lines().find(|line| {
                let rest = line.strip_prefix(metric.as_str()).filter(|r| r.starts_with(['{', ' ']));
                rest.is_some_and(|rest| matchers.iter().all(|m| rest.contains(m.as_str())))
            });
            assert!(line.is_some(), "{}: no {metric} with {matchers:?}", rule.name);
        }
    }
    assert!(rules.len() > 10, "{}", rules.len());
    let (free, size) = (value(&shown, "mainstay_disk_free_bytes"), value(&shown, "mainstay_disk_size_bytes"));
    let there = rustix::fs::statvfs(dir.path()).unwrap();
    assert!(free <= size && size <= (there.f_blocks * there.f_frsize) as f64, "{free} of {size}");
    if let Some(mut check) = tool("promtool") {
        check.args(["check", "rules"]).arg(root().join("packaging/alerts.yml"));
        let output = finish(check, PATIENCE);
        assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    }
}

fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name}")).parse().unwrap()
}
