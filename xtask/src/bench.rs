//! Builds ours and the rivals in release, then measures.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use crate::{cargo, root, run};

/// Programs of rivals, each a workspace of its own: they cannot share a lock file with ours.
const RIVALS: &str = "crates/proof/bench/rivals";

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// `words` go to the benchmark program. With `--smoke` no rival is built and nothing is written.
pub(crate) fn bench(words: &[String]) -> anyhow::Result<()> {
    let smoke = words.iter().any(|w| w == "--smoke");
    let mut build = cargo();
    build.args(["build", "--release", "-p", "mainstay-bench", "-p", "mainstay-server"]);
    if !smoke {
        build.args(["--features", "mainstay-bench/rivals"]);
    }
    run(&mut build)?;
    let mut bench = Command::new(target().join("release/mainstay-bench"));
    bench.current_dir(root()).arg("--server").arg(target().join("release/mainstay"));
    if !smoke {
        bench.arg("--rivals").arg(build_rivals()?).arg("--write").arg("BENCHMARKS.md");
    }
    run(bench.args(words))
}

/// Builds what can be built; a rival that cannot is named here and as "not measured" in the report.
fn build_rivals() -> anyhow::Result<PathBuf> {
    let built = target().join("rivals");
    for folder in std::fs::read_dir(root().join(RIVALS)).context(RIVALS)? {
        let manifest = folder?.path().join("Cargo.toml");
        if !manifest.exists() {
            continue;
        }
        let mut build = cargo();
        build.args(["build", "--release", "--locked", "--manifest-path"]).arg(&manifest);
        if let Err(error) = run(build.arg("--target-dir").arg(&built)) {
            eprintln!("not measured: {} cannot be built: {error}", manifest.display());
        }
    }
    Ok(built.join("release"))
}
