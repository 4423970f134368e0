//! What is run before a release: every feature, the budget, the models, the long simulations.

use std::process::Command;

use anyhow::{Context as _, bail};
use cargo_metadata::{Metadata, MetadataCommand, Package};

use crate::budget::{now, since};
use crate::{Totals, bench, budget, cargo, ci, fuzz, laws, root, run, servers, sim, stream};

/// Seeds of each simulation.
const SEEDS: &str = "100000";
/// Schedules of the laws of replicated data, of all types together; runs add up to ten million.
const SCHEDULES: &str = "1000000";
/// Seeds of the simulations of locks: each is small, and what they prove is promised by number.
const LEASE_SEEDS: &str = "1000000";
/// Documents made of forged edits, and documents whose edits are mutilated at every byte.
const EDITED: &str = "100000";
const MUTATED: &str = "200";

fn metadata() -> anyhow::Result<Metadata> {
    MetadataCommand::new().current_dir(root()).no_deps().exec().context("cargo metadata failed")
}

/// Checks each package with no feature, each alone, and all.
pub(crate) fn features() -> anyhow::Result<()> {
    let mut failed = Vec::new();
    let mut checked = 0;
    for package in metadata()?.packages {
        for words in sets(&package) {
            let mut check = cargo();
            check.args(["check", "-q", "-p", &package.name]).args(&words);
            checked += 1;
            if let Err(error) = run(&mut check) {
                failed.push(format!("{} {}: {error}", package.name, words.join(" ")));
            }
        }
    }
    println!("{checked} sets of features, {} failed", failed.len());
    if !failed.is_empty() {
        bail!("features that do not stand alone:\n{}", failed.join("\n"));
    }
    Ok(())
}

/// None, each alone, all; a package without features has one set.
fn sets(package: &Package) -> Vec<Vec<String>> {
    let none = "--no-default-features".to_owned();
    let mut sets = vec![vec![none.clone()]];
    let names: Vec<&String> = package.features.keys().filter(|f| *f != "default").collect();
    for name in &names {
        sets.push(vec![none.clone(), "--features".to_owned(), (*name).clone()]);
    }
    if names.len() > 1 {
        sets.push(vec!["--all-features".to_owned()]);
    }
    sets
}

/// Runs the models of every package that has them: every schedule with loom, many random ones with shuttle.
pub(crate) fn models() -> anyhow::Result<()> {
    for tool in ["loom", "shuttle"] {
        let mut modelled = 0;
        for package in metadata()?.packages {
            if !package.targets.iter().any(|t| t.name == tool && t.is_test()) {
                continue;
            }
            modelled += 1;
            run(cargo()
                .args(["test", "--release", "-p", &package.name, "--test", tool])
                .args(["--target-dir".as_ref(), bench::target().join(tool).as_os_str()])
                .env("RUSTFLAGS", format!("--cfg {tool}")))?;
        }
        if modelled == 0 {
            bail!("no package has a test target `{tool}`");
        }
    }
    Ok(())
}

/// The models that every test run can afford: those of the breaker's and the bulkhead's words, unoptimized, because
/// building takes longer than running (15 s and 8 s on two cores; all models optimized: 80 s and 2 s).
pub(crate) fn small_models() -> Command {
    let mut models = cargo();
    models
        .args(["test", "-p", "mainstay-resilience", "--test", "loom", "--target-dir"])
        .arg(bench::target().join("loom"))
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    models
}

/// The long runs that are switches of ordinary tests: a hundred million calls of a breaker, a hundred thousand traces
/// against the reference model, every length of a brown-out with every seed.
pub(crate) fn soak() -> anyhow::Result<()> {
    let mut soak = long("mainstay-resilience", "it", &["t23_", "m_b4_", "ms2_"]);
    counted(soak.env("MAINSTAY_SOAK", "1"), 4)
}

/// A power cut after every operation, with every kind of loss.
fn power_cuts() -> anyhow::Result<()> {
    counted(long("mainstay-sqlite", "it", &["power::"]).env("MAINSTAY_FULL", "1"), 4)
}

/// Every run of the test kit on the order saga, on a diamond, on random graphs and on ten steps.
fn exhausted_sagas() -> anyhow::Result<()> {
    counted(long("mainstay-saga", "it", &["exhaust::"]).env("MAINSTAY_FULL", "1"), 5)
}

/// Sagas in a program whose other crates turn features of `serde_json` on that change how it keeps values: nothing that is
/// stored may depend on them.
fn foreign_features() -> anyhow::Result<()> {
    let mut sagas = cargo();
    sagas.args(["test", "-p", "mainstay-saga", "--all-features", "--lib", "--test", "it"]);
    sagas.args(["--features", "serde_json/arbitrary_precision,serde_json/preserve_order"]);
    counted(&mut sagas, 150)
}

/// Edits of documents that nobody's editor made: the same for all in any order, and harmless.
fn forged_edits() -> anyhow::Result<()> {
    let mut forged = long("mainstay-consistency", "it", &["c22_forged_edits", "c22_no_bytes"]);
    forged.arg("--nocapture").env("MAINSTAY_DOCUMENT_SEEDS", EDITED).env("MAINSTAY_MUTATED_SEEDS", MUTATED);
    counted(&mut forged, 2)
}

/// A thousand wrappers stopped or killed while another one waits.
fn lost_leases() -> anyhow::Result<()> {
    let mut lost = cargo();
    lost.args(["test", "-p", "mainstay-server", "--test", "it", "--", "if_w6_a_stopped"]);
    counted(lost.env("MAINSTAY_HOLD_ROUNDS", "1000"), 1)
}

/// Ten minutes each on a file and on Redis: real holders are stopped and killed, and their history is judged.
fn stopped_holders() -> anyhow::Result<()> {
    let programs = servers::bring(&bench::target())?;
    let mut stopped = cargo();
    stopped.args(["test", "-p", "mainstay-server", "--test", "servers", "--", "f09_f25_"]);
    stopped.env(servers::REQUIRE, "1").env(servers::DIR, programs).env("MAINSTAY_HOLD_SECONDS", "600");
    counted(&mut stopped, 2)
}

fn schedules() -> anyhow::Result<()> {
    laws::laws(&["--schedules", SCHEDULES].map(str::to_owned))
}

fn seeds() -> anyhow::Result<()> {
    sim::run(&root(), &["all", "--seeds", SEEDS].map(str::to_owned))
}

fn lease_seeds() -> anyhow::Result<()> {
    for suite in ["leases", "leases-paused"] {
        sim::run(&root(), &[suite, "--seeds", LEASE_SEEDS].map(str::to_owned))?;
    }
    Ok(())
}

fn fuzzed() -> anyhow::Result<()> {
    fuzz::fuzz(&root(), &[])
}

/// Tests of one target, optimized: what takes long must not take longer than it has to.
fn long(package: &str, target: &str, tests: &[&str]) -> Command {
    let mut command = cargo();
    command.args(["test", "--release", "--all-features", "-p", package, "--test", target, "--"]).args(tests);
    command
}

/// Runs tests that were chosen by their names, at least `least` of them: names change, and a choice that finds
/// nothing passes.
fn counted(command: &mut Command, least: u64) -> anyhow::Result<()> {
    let mut totals = Totals::default();
    let passed = stream(command, &mut totals)?;
    if !passed || totals.failed > 0 {
        bail!("{command:?} failed");
    }
    if totals.passed < least {
        bail!(
            "{command:?} ran {} tests instead of {least} or more: what were they renamed to?",
            totals.passed
        );
    }
    Ok(())
}

/// One part of everything: what it is called, and what it does.
type Part = (&'static str, fn() -> anyhow::Result<()>);

/// Everything, what ends soon first. No part needs another one.
const PARTS: [Part; 15] = [
    ("ci", ci),
    ("features", features),
    ("budget", budget::budget),
    ("models", models),
    ("foreign-features", foreign_features),
    ("soak", soak),
    ("fuzz", fuzzed),
    ("power-cuts", power_cuts),
    ("exhausted-sagas", exhausted_sagas),
    ("forged-edits", forged_edits),
    ("lost-leases", lost_leases),
    ("stopped-holders", stopped_holders),
    ("laws", schedules),
    ("seeds", seeds),
    ("lease-seeds", lease_seeds),
];

/// Runs everything, or the parts that are named. One that fails does not keep the others from being run; the last lines
/// say what every part came to.
///
/// # Errors
/// A part failed, or there is no part of a name.
pub(crate) fn full(names: &[String]) -> anyhow::Result<()> {
    let chosen = choose(names)?;
    let mut said = String::new();
    let mut failed = Vec::new();
    for (name, part) in &chosen {
        eprintln!("\n# full: {name}");
        let began = now();
        let result = part().inspect_err(|error| eprintln!("full, {name}: {error:#}"));
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        said.push_str(&format!("{name:<16} {word:<6} {:>7.0} s\n", since(began) / 1_000.0));
        if result.is_err() {
            failed.push(*name);
        }
    }
    println!("\n{said}");
    if chosen.len() < PARTS.len() {
        println!("{} of {} parts: this was not everything", chosen.len(), PARTS.len());
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// The parts of these names; all of them without one.
fn choose(names: &[String]) -> anyhow::Result<Vec<Part>> {
    if let Some(unknown) = names.iter().find(|name| !PARTS.iter().any(|(part, _)| part == name)) {
        let parts: Vec<&str> = PARTS.iter().map(|(part, _)| *part).collect();
        bail!("`{unknown}` is no part of full; there are {}", parts.join(", "));
    }
    Ok(PARTS
        .into_iter()
        .filter(|(part, _)| names.is_empty() || names.iter().any(|name| name == part))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::{PARTS, choose, counted, metadata, sets};
    use crate::cargo;

    #[test]
    fn parts_are_chosen_by_name_and_what_is_none_is_refused() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let names = |text: &str| -> Vec<&str> { choose(&words(text)).unwrap().iter().map(|p| p.0).collect() };
        assert_eq!(names("").len(), PARTS.len());
        assert_eq!(names("seeds budget"), ["budget", "seeds"]);
        let error = choose(&words("seeds weeds")).unwrap_err().to_string();
        assert!(error.contains("`weeds`") && error.contains("lease-seeds"), "{error}");
    }

    /// A variable that asks a test for its long run, and that nobody sets, is a run that nobody makes.
    #[test]
    fn every_long_run_is_asked_for() {
        let asked: String = ["full.rs", "laws.rs", "sessions.rs", "sim.rs"]
            .map(|file| std::fs::read_to_string(crate::root().join("xtask/src").join(file)).unwrap())
            .concat();
        let mut found = std::collections::BTreeSet::new();
        let crates = crate::root().join("crates");
        for file in crate::style::sources(&crate::root()).unwrap() {
            if !file.starts_with(&crates) {
                continue;
            }
            let text = std::fs::read_to_string(&file).unwrap();
            for word in text.split(|c: char| !(c.is_ascii_uppercase() || c == '_')) {
                let long =
                    ["_FULL", "_SOAK", "_SEEDS", "_ROUNDS", "_SECONDS", "_SCHEDULES", "_READS", "_FAILOVERS"];
                if word.starts_with("MAINSTAY_") && long.iter().any(|end| word.ends_with(end)) {
                    assert!(asked.contains(&format!("\"{word}\"")), "{word} of {}", file.display());
                    found.insert(word.to_owned());
                }
            }
        }
        assert!(found.len() >= 8, "{found:?}");
    }

    #[test]
    fn a_choice_of_tests_that_finds_none_fails() {
        let mut none = cargo();
        none.arg("--version");
        let error = counted(&mut none, 1).unwrap_err().to_string();
        assert!(error.contains("ran 0 tests instead of 1 or more"), "{error}");
        counted(&mut none, 0).unwrap();
    }

    #[test]
    fn each_feature_is_checked_alone_and_with_all_others() {
        let metadata = metadata().unwrap();
        let saga = metadata.packages.iter().find(|p| p.name == "mainstay-saga").unwrap();
        let sets = sets(saga);
        assert_eq!(sets[0], ["--no-default-features"]);
        for feature in saga.features.keys().filter(|f| *f != "default") {
            assert!(sets.iter().any(|s| s.last() == Some(feature)), "{feature}");
        }
        assert_eq!(sets.last().unwrap(), &["--all-features"]);
    }
}
