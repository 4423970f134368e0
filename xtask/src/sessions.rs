//! Kills primaries under sessions: `cargo xtask sessions`.
//!
//! A run adds to the totals of earlier ones, which stand in the target folder: ten million reads are made of many runs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::{cargo, root, run, servers};

/// Packages whose test target `sessions` runs the campaign over one kind of store, and the name of its totals.
const STORES: [(&str, &str); 2] = [("mainstay-postgres", "postgresql"), ("mainstay-redis", "redis")];

/// Runs a batch over every store, or over those that `--store NAME` names.
///
/// # Errors
/// A session was told something untrue, or a server is missing.
pub(crate) fn sessions(words: &[String]) -> anyhow::Result<()> {
    let mut variables = Vec::new();
    let mut wanted = Vec::new();
    for pair in words.chunks(2) {
        let [name, value] = pair else { bail!("{} lacks a value", pair[0]) };
        let variable = match name.as_str() {
            "--failovers" => "MAINSTAY_SESSIONS_FAILOVERS",
            "--reads" => "MAINSTAY_SESSIONS_READS",
            "--seconds" => "MAINSTAY_SESSIONS_SECONDS",
            "--store" => {
                wanted.push(value.clone());
                continue;
            }
            _ => bail!(
                "`{name}` is no option of sessions: --reads N, --failovers N, --seconds S, --store NAME"
            ),
        };
        variables.push((variable, value.parse::<u64>().context(variable)?.to_string()));
    }
    if let Some(unknown) = wanted.iter().find(|name| !STORES.iter().any(|(_, store)| store == *name)) {
        let names: Vec<&str> = STORES.iter().map(|(_, store)| *store).collect();
        bail!("there is no campaign over `{unknown}`; there are: {}", names.join(", "));
    }
    let folder = target();
    let programs = servers::bring(&folder)?;
    std::fs::create_dir_all(&folder)?;
    for (package, store) in STORES {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == store) {
            continue;
        }
        let mut test = cargo();
        test.args(["test", "--release", "-p", package, "--test", "sessions", "--", "--nocapture"]);
        test.env(servers::DIR, &programs);
        test.env("MAINSTAY_SESSIONS_STATE", &folder).env(servers::REQUIRE, "1");
        test.envs(variables.iter().map(|(name, value)| (*name, value.as_str())));
        run(&mut test)?;
        println!("totals of all runs: {}", folder.join(format!("sessions-{store}.txt")).display());
    }
    Ok(())
}

/// Where cargo builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new(&root()).join("target"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::{STORES, sessions};

    #[test]
    fn every_campaign_is_a_test_target() {
        for (package, _) in STORES {
            let folder = package.strip_prefix("mainstay-").unwrap();
            let main = crate::root().join("crates/backends").join(folder).join("tests/sessions/main.rs");
            assert!(main.is_file(), "{}", main.display());
        }
    }

    #[test]
    fn options_that_are_none_are_refused_by_name() {
        for words in [["--read", "1"], ["--reads", "many"], ["--store", "oracle"]] {
            assert!(sessions(&words.map(str::to_owned)).is_err(), "{words:?}");
        }
    }
}
