//! What is run before a release: every feature, the budget, the models, the long simulations.

use anyhow::{Context as _, bail};
use cargo_metadata::{Metadata, MetadataCommand, Package};

use crate::{budget, cargo, ci, fuzz, root, run};

/// Seeds of each simulation.
const SEEDS: &str = "100000";
/// Schedules of the laws of replicated data, of all types together; runs add up to ten million.
const SCHEDULES: &str = "1000000";
/// Seeds of the simulations of locks: each is small, and what they prove is promised by number.
const LEASE_SEEDS: &str = "1000000";

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
                .args(["--target-dir".as_ref(), crate::bench::target().join(tool).as_os_str()])
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
pub(crate) fn small_models() -> std::process::Command {
    let mut models = cargo();
    models
        .args(["test", "-p", "mainstay-resilience", "--test", "loom", "--target-dir"])
        .arg(crate::bench::target().join("loom"))
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    models
}

/// The long runs that are switches of ordinary tests: a hundred million calls of a breaker, a hundred thousand traces
/// against the reference model, every length of a brown-out with every seed.
pub(crate) fn soak() -> anyhow::Result<()> {
    run(cargo()
        .args(["test", "--release", "-p", "mainstay-resilience", "--test", "it", "--"])
        .args(["t23_", "m_b4_", "ms2_"])
        .env("MAINSTAY_SOAK", "1"))
}

/// Everything.
pub(crate) fn full() -> anyhow::Result<()> {
    ci()?;
    features()?;
    budget::budget()?;
    models()?;
    soak()?;
    fuzz::fuzz(&root(), &[])?;
    // A power cut after every operation, with every kind of loss.
    run(cargo()
        .args(["test", "-p", "mainstay-sqlite", "--test", "it", "power::"])
        .env("MAINSTAY_FULL", "1"))?;
    // Every fault at every step of every saga of the test kit, each cut at every append, with nothing sampled.
    run(cargo()
        .args(["test", "--release", "-p", "mainstay-saga", "--test", "it", "exhaust::"])
        .env("MAINSTAY_FULL", "1"))?;
    // A thousand wrappers stopped or killed while another one waits.
    run(cargo()
        .args(["test", "-p", "mainstay-server", "--test", "it", "if_w6_a_stopped"])
        .env("MAINSTAY_HOLD_ROUNDS", "1000"))?;
    // Ten minutes each on a file and on Redis: real holders are stopped and killed, and their history is judged.
    run(cargo()
        .args(["test", "-p", "mainstay-server", "--test", "servers", "f09_f25_"])
        .env("MAINSTAY_HOLD_SECONDS", "600"))?;
    crate::laws::laws(&["--schedules", SCHEDULES].map(str::to_owned))?;
    run(cargo().args(["xtask", "sim", "all", "--seeds", SEEDS]))?;
    for suite in ["leases", "leases-paused"] {
        run(cargo().args(["xtask", "sim", suite, "--seeds", LEASE_SEEDS]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{metadata, sets};

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
