//! The time of whole runs that no benchmark has: the demo, a list of many sagas, a saga that is exhausted.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::budget::{Line, Node, home, now, since};
use crate::{cargo, run};

/// The demo of this seed; another one takes as long.
const SEED: &str = "1";
/// Sagas that are listed.
const SAGAS: &str = "100000";
/// Answers of each list of which the slowest hundredth is left out.
const ANSWERS: usize = 500;
/// The lists of everything, of what is rare among it, and of what no index has; as programs and as people see them.
const LISTS: [&str; 5] = [
    "/v1/sagas",
    "/v1/sagas?status=compensated",
    "/v1/sagas?error~=carrier",
    "/console/sagas",
    "/console/sagas?status=compensated",
];

/// Measures all of them with the programs `binary` and `bench`.
pub(crate) fn runs(binary: &Path, bench: &Path) -> anyhow::Result<Vec<Line>> {
    let mut lines = vec![demo(binary)?, exhausted()?];
    lines.extend(lists(binary, bench)?);
    std::fs::remove_dir_all(home()?)?;
    Ok(lines)
}

fn demo(binary: &Path) -> anyhow::Result<Line> {
    let home = home()?;
    let mut demo = Command::new(binary);
    demo.args(["demo", "--seed", SEED]).env_clear().env("TMPDIR", &home).stdin(Stdio::null());
    let began = now();
    let output = demo.output().context("the demo cannot be started")?;
    let found = since(began) / 1_000.0;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "the demo: {}\n{said}", output.status);
    Ok(Line { what: "`mainstay demo` to its verdict".to_owned(), found, limit: 30.0, unit: "s" })
}

/// As the test prints it: its building is not measured.
fn exhausted() -> anyhow::Result<Line> {
    let mut test = cargo();
    test.args(["test", "--release", "--all-features", "-p", "mainstay-saga", "--test", "it", "--"]);
    test.args(["--exact", "--nocapture", "exhaust::a_ten_step_saga_is_exhausted"]).env("MAINSTAY_FULL", "1");
    eprintln!("> {test:?}");
    let output = test.stderr(Stdio::inherit()).output().context("cargo cannot be started")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{test:?}: {}\n{said}", output.status);
    let (runs, found) = said.lines().find_map(ten_steps).with_context(|| format!("no figure in\n{said}"))?;
    let what = format!("`exhaust` of ten steps, all {runs} runs");
    Ok(Line { what, found, limit: 60.0, unit: "s" })
}

/// Reads `ten steps: 12345 runs in 6.7 s, 0 left out`.
fn ten_steps(line: &str) -> Option<(u64, f64)> {
    let (runs, rest) = line.strip_prefix("ten steps: ")?.split_once(" runs in ")?;
    let (seconds, rest) = rest.split_once(" s, ")?;
    (rest == "0 left out").then_some((runs.parse().ok()?, seconds.parse().ok()?))
}

/// Seen from the other end of a connection that is made anew each time: an upper bound of what the node itself takes.
fn lists(binary: &Path, bench: &Path) -> anyhow::Result<Vec<Line>> {
    let data = home()?.join("listed");
    std::fs::create_dir_all(&data)?;
    let mut fill = Command::new(bench);
    fill.args(["child", "listed", "--concurrency", "64", "--count", SAGAS, "--dir"]).arg(&data);
    run(&mut fill)?;
    let node = Node::ready(binary, &data)?;
    let mut lines = Vec::new();
    for path in LISTS {
        let mut times = Vec::with_capacity(ANSWERS);
        for _ in 0..ANSWERS {
            let began = now();
            let (status, _, body) = node.get(path)?;
            times.push(since(began));
            ensure!(status == 200, "{path} answers {status}: {}", String::from_utf8_lossy(&body));
        }
        times.sort_by(f64::total_cmp);
        let what = format!("`{path}` of {SAGAS}, p99");
        lines.push(Line { what, found: times[ANSWERS * 99 / 100], limit: 50.0, unit: "ms" });
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::ten_steps;

    #[test]
    fn the_figure_of_the_exhausted_saga_is_read_only_when_nothing_was_left_out() {
        assert_eq!(ten_steps("ten steps: 10234 runs in 6.7 s, 0 left out"), Some((10_234, 6.7)));
        assert_eq!(ten_steps("ten steps: 1500 runs in 6.7 s, 8734 left out"), None);
        assert_eq!(ten_steps("test exhaust::a_ten_step_saga_is_exhausted ... ok"), None);
    }
}
