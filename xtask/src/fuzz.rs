//! Fuzzing of every decoder: `cargo xtask fuzz --seconds N [TARGET]`. The targets are a workspace of their own, `fuzz/`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::run;
use crate::tools::Tool;

/// Runs libFuzzer's targets; works on stable Rust (`RUSTC_BOOTSTRAP`).
const FUZZ: Tool = Tool { name: "cargo-fuzz", version: "0.13.2" };
/// For each target when nothing is said, and in `full`.
pub(crate) const SECONDS: u64 = 60;
/// Longest input: far above what decoders need to show all of themselves, and small enough to be fast.
const MAX_LEN: u32 = 4_096;
/// Longest single execution in seconds, and most memory in MiB: decoders are bounded in both.
const BOUNDS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=1024"];

/// The targets: the files of the folder.
fn targets(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root.join("fuzz/fuzz_targets")).context("fuzz/fuzz_targets")? {
        let path = entry?.path();
        let stem = path.file_stem().context("a target without a name")?;
        found.push(stem.to_string_lossy().into_owned());
    }
    found.sort();
    Ok(found)
}

/// The options: seconds for each target, and which targets.
fn read(words: &[String], all: Vec<String>) -> anyhow::Result<(u64, Vec<String>)> {
    let (mut seconds, mut chosen) = (SECONDS, Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seconds" => {
                let text = words.next().context("--seconds lacks a number")?;
                seconds = text
                    .parse()
                    .ok()
                    .filter(|n| *n > 0)
                    .with_context(|| format!("`{text}` is no number of seconds"))?;
            }
            name if all.iter().any(|t| t == name) => chosen.push(name.to_owned()),
            other => bail!("`{other}` is no target; there are {}", all.join(", ")),
        }
    }
    Ok((seconds, if chosen.is_empty() { all } else { chosen }))
}

/// Runs the targets, one after the other. A crash ends it, and says where its input is.
pub(crate) fn fuzz(root: &Path, words: &[String]) -> anyhow::Result<()> {
    let (seconds, chosen) = read(words, targets(root)?)?;
    let tool = FUZZ.program(root)?;
    for target in &chosen {
        // Without a sanitizer: there is no unsafe code of ours to watch. Its own coverage flags need no nightly, but
        // the switch for unstable options.
        let mut fuzz = Command::new(&tool);
        fuzz.current_dir(root.join("fuzz")).env("RUSTC_BOOTSTRAP", "1");
        let corpus = root.join("fuzz/corpus").join(target);
        std::fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
        fuzz.args(["fuzz", "run", "-s", "none", target]).arg(corpus);
        // What is written by hand: texts that chance finds late.
        fuzz.args(Some(root.join("fuzz/seeds").join(target)).filter(|seeds| seeds.is_dir()));
        fuzz.arg("--").args(BOUNDS);
        fuzz.args([format!("-max_total_time={seconds}"), format!("-max_len={MAX_LEN}")]);
        fuzz.args(["-print_final_stats=1", "-verbosity=0"]);
        run(&mut fuzz).with_context(|| {
            format!(
                "`{target}` failed: its input is in fuzz/artifacts/{target}; keep it as a test beside the fix"
            )
        })?;
    }
    println!("{} targets, {seconds} s each, no crash", chosen.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{read, targets};

    #[test]
    fn sec_30_every_target_is_a_program_of_the_fuzz_workspace_and_every_decoder_has_one() {
        let found = targets(&crate::root()).unwrap();
        let manifest = std::fs::read_to_string(crate::root().join("fuzz/Cargo.toml")).unwrap();
        for target in &found {
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target}");
        }
        assert_eq!(manifest.matches("[[bin]]").count(), found.len());
        let decoders = [
            "config",
            "crdt",
            "documents",
            "gossip",
            "headers",
            "http_parameters",
            "positions",
            "saga_log",
            "session_token",
        ];
        assert_eq!(found, decoders);
    }

    #[test]
    fn options_are_read_or_refused() {
        let all = || vec!["a".to_owned(), "b".to_owned()];
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(read(&[], all()).unwrap(), (super::SECONDS, all()));
        assert_eq!(read(&words("--seconds 5 b"), all()).unwrap(), (5, vec!["b".to_owned()]));
        for bad in ["c", "--seconds", "--seconds 0", "--seconds x", "--second 1"] {
            assert!(read(&words(bad), all()).is_err(), "{bad}");
        }
    }
}
