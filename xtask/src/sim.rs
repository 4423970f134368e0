//! Replays or searches one simulation: `cargo xtask sim SUITE`.
//!
//! A suite is a name that a test gives to `Sim::builder`, itself or through a helper of its file. The test
//! that runs it is found in the sources, so there is no list to keep.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use syn::visit::Visit;

/// One test that runs a suite.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Suite {
    name: String,
    package: String,
    test: String,
    folder: PathBuf,
}

pub(crate) fn run(root: &Path, args: &[String]) -> anyhow::Result<()> {
    let suites = suites(root)?;
    let Some(name) = args.first() else {
        suites.iter().for_each(|s| println!("{}  ({} {})", s.name, s.package, s.test));
        return Ok(());
    };
    if name == "all" {
        // Every suite with a seed that must pass; the others are there to fail.
        let mut failed = Vec::new();
        for suite in suites.iter().filter(|s| must_pass(s)) {
            if let Err(error) = one(root, suite, &args[1..]) {
                failed.push(format!("{}: {error}", suite.name));
            }
        }
        if !failed.is_empty() {
            bail!("simulations failed:\n{}", failed.join("\n"));
        }
        return Ok(());
    }
    let Some(suite) = suites.iter().find(|s| s.name == *name) else {
        let names: Vec<&str> = suites.iter().map(|s| s.name.as_str()).collect();
        bail!("there is no simulation `{name}`; there are: {}", names.join(", "));
    };
    one(root, suite, &args[1..])
}

fn must_pass(suite: &Suite) -> bool {
    let seeds = std::fs::read_to_string(suite.folder.join("seeds.txt")).unwrap_or_default();
    seeds.lines().any(|l| {
        let mut words = l.split(' ');
        words.next() == Some(&suite.name) && words.nth(1) == Some("PASS")
    })
}

fn one(root: &Path, suite: &Suite, options: &[String]) -> anyhow::Result<()> {
    let name = &suite.name;
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root).args(["test", "--release", "-p", &suite.package, "--test", "it", "--"]);
    command.args([suite.test.as_str(), "--exact", "--nocapture"]).env("MAINSTAY_SUITE", name);
    for pair in options.chunks(2) {
        let [option, value] = pair else { bail!("`{}` needs a value", pair[0]) };
        let variable = match option.as_str() {
            "--from" => "MAINSTAY_FROM",
            "--minutes" => "MAINSTAY_MINUTES",
            "--nodes" => "MAINSTAY_NODES",
            "--ops" => "MAINSTAY_OPS",
            "--seed" => "MAINSTAY_SEED",
            "--seeds" => "MAINSTAY_SEEDS",
            "--without" => "MAINSTAY_WITHOUT",
            _ => bail!(
                "unknown option `{option}`: --seed N, --seeds N, --from N, --minutes M, --nodes N, --ops N, --without IDS"
            ),
        };
        command.env(variable, value);
    }
    let output = command.stderr(Stdio::inherit()).output().context("cargo cannot be started")?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    if text.contains("0 passed; 0 failed") {
        bail!("the test `{}` of {} did not run", suite.test, suite.package);
    }
    keep_seeds(&suite.folder.join("seeds.txt"), &text)?;
    if !output.status.success() {
        bail!("simulation `{name}` failed");
    }
    Ok(())
}

/// Appends seeds that failed to the file that every test run replays.
fn keep_seeds(file: &Path, text: &str) -> anyhow::Result<()> {
    let known = std::fs::read_to_string(file).unwrap_or_default();
    for line in text.lines().filter_map(|l| l.trim().strip_prefix("seeds.txt: ")) {
        if !known.contains(line) {
            let mut out = std::fs::OpenOptions::new().create(true).append(true).open(file)?;
            writeln!(out, "{line} found by a search")?;
            eprintln!("added to {}: {line}", file.display());
        }
    }
    Ok(())
}

fn suites(root: &Path) -> anyhow::Result<Vec<Suite>> {
    let mut found: Vec<Suite> = Vec::new();
    for wing in std::fs::read_dir(root.join("crates"))? {
        for package in std::fs::read_dir(wing?.path())? {
            let folder = package?.path();
            let Ok(manifest) = std::fs::read_to_string(folder.join("Cargo.toml")) else { continue };
            let name = manifest.lines().find_map(|l| l.strip_prefix("name = \"")?.strip_suffix('"'));
            let Ok(tests) = std::fs::read_dir(folder.join("tests/it")) else { continue };
            for file in tests {
                let path = file?.path();
                let Ok(source) = std::fs::read_to_string(&path) else { continue };
                let module = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
                for (suite, test) in in_file(&source) {
                    let test = if module == "main" { test } else { format!("{module}::{test}") };
                    let package = name.unwrap_or_default().to_owned();
                    found.push(Suite { name: suite, package, test, folder: folder.clone() });
                }
            }
        }
    }
    // A test that replays recorded seeds demands nothing of a campaign and says nothing: only where there is no other.
    found.sort_by_key(|s| (s.name.clone(), s.test.contains("every_recorded_seed"), s.test.clone()));
    found.dedup_by(|a, b| a.name == b.name && a.package == b.package);
    Ok(found)
}

/// Suites of one source file, with the test that runs each: calls of `Sim::builder("..")` and of a helper
/// `campaign("..")` inside a test.
fn in_file(source: &str) -> Vec<(String, String)> {
    let Ok(file) = syn::parse_file(source) else { return Vec::new() };
    let mut found = Vec::new();
    for item in &file.items {
        let syn::Item::Fn(function) = item else { continue };
        if !function.attrs.iter().any(|a| a.path().is_ident("test")) {
            continue;
        }
        let mut calls = Calls(Vec::new());
        calls.visit_block(&function.block);
        found.extend(calls.0.into_iter().map(|suite| (suite, function.sig.ident.to_string())));
    }
    found
}

struct Calls(Vec<String>);

impl<'a> Visit<'a> for Calls {
    fn visit_expr_call(&mut self, call: &'a syn::ExprCall) {
        if let syn::Expr::Path(path) = &*call.func
            && let Some(last) = path.path.segments.last()
            && (last.ident == "campaign" || last.ident == "builder")
            && let Some(syn::Expr::Lit(literal)) = call.args.first()
            && let syn::Lit::Str(name) = &literal.lit
            && (last.ident == "campaign" || path.path.segments.iter().any(|s| s.ident == "Sim"))
        {
            self.0.push(name.value());
        }
        syn::visit::visit_expr_call(self, call);
    }
}

#[cfg(test)]
mod tests {
    use super::{Suite, in_file, must_pass, suites};

    /// `full` searches the suites that have a seed which must pass. One without belongs to such a one, as a planted bug
    /// of it, or is about the simulator itself: any other would be searched by nobody.
    #[test]
    fn every_simulation_is_searched_or_is_there_to_fail() {
        let found = suites(&crate::root()).unwrap();
        let searched: Vec<&Suite> = found.iter().filter(|s| must_pass(s)).collect();
        assert!(searched.len() >= 10, "{searched:?}");
        for suite in &found {
            let planted = searched.iter().any(|s| suite.name.starts_with(&format!("{}-", s.name)));
            let own = suite.package == "mainstay-sim" && suite.test.starts_with("meta::");
            assert!(must_pass(suite) || planted || own, "nobody searches {suite:?}");
        }
    }

    #[test]
    fn suites_are_found_in_tests_only() {
        let source = "#[test] fn a() { Sim::builder(\"x\").build(); }\nfn b() { Sim::builder(\"y\"); }\n\
                      #[test] fn c() { campaign(\"z\", 1); Other::builder(\"w\"); }";
        let expected = [("x", "a"), ("z", "c")].map(|(s, t)| (s.to_owned(), t.to_owned()));
        assert_eq!(in_file(source), expected);
        let found = suites(&crate::root()).unwrap();
        for suite in
            ["cron", "leases", "lock", "membership", "orders", "saga-nodes", "session", "session-router"]
        {
            let suite =
                found.iter().find(|s| s.name == suite).unwrap_or_else(|| panic!("no `{suite}`: {found:?}"));
            assert!(!suite.test.contains("recorded"), "it would demand nothing of its campaign: {suite:?}");
        }
    }
}
