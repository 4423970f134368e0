//! Developer commands: `cargo xtask check`, `cargo xtask test`, `cargo xtask ci`.

mod api;
mod arrows;
mod bench;
mod budget;
mod dist;
mod full;
mod fuzz;
mod laws;
mod runs;
mod servers;
mod sessions;
mod sim;
mod style;
mod supply;
mod tools;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};

const USAGE: &str = "usage: cargo xtask COMMAND
  check     formatting, clippy, docs, style, dependency arrows, public API
  bench     side-by-side benchmarks into BENCHMARKS.md: `bench [NAME..] [--smoke]`
  test      every test, documentation snippet and example; ends with `N passed, N failed`
  sim       `sim SUITE [--seed N | --minutes M | --seeds N [--from N]]`: replays or searches one simulation, or `all`; `sim` lists them
  laws      `laws [--schedules N] [--from SEED]`: the laws of replicated data over every type; goes on where the last run ended
  sessions  `sessions [--reads N] [--failovers N] [--seconds S] [--store NAME]`: kills primaries under sessions; totals add up
  ci        check, test, a minute and a half of sessions, and every benchmark for a moment
  features  every package with no feature, each alone, and all
  budget    dependencies, size, start, memory, pages, the demo, long lists and an exhausted saga against their limits
  soak      the long runs of ordinary tests: 10^8 calls, 100,000 traces, every brown-out with every seed
  loom      all models of lock-free cores, with loom and shuttle, optimized; `test` runs the small ones
  dist      the binary for users into target/dist, with the list of its dependencies inside and the bill of materials beside it
  fuzz      `fuzz [--seconds N] [TARGET..]`: every fuzz target, or those named; installs cargo-fuzz into target/tools
  full      ci, features, budget, loom, soak, a minute of each fuzz target, every power cut, every exhausted saga, forged
            edits, 1,000 lost leases, ten minutes of stopped holders, 1,000,000 schedules of the laws, 100,000 seeds of
            each simulation, 1,000,000 of those of locks; `full [PART..]`: parts by name, a wrong one lists them
  style     sizes, forgotten tests, banned patterns
  arrows    who may depend on whom
  supply    licences, banned crates and sources of every dependency against deny.toml
  sbom      the bill of materials of the binary as CycloneDX, on standard output; `sbom FILE`
  overload  the metastable scenario on a real server; both curves in target/overload.svg
  api       the public API against its text in api/; `api --write` writes it anew";

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let words: Vec<String> = std::env::args().skip(2).collect();
    let result = match command.as_str() {
        "api" => api::run(&root(), words.first().is_some_and(|w| w == "--write")),
        "arrows" => arrows::run(&root()),
        "bench" => bench::bench(&words),
        "budget" => budget::budget(),
        "check" => check(),
        "ci" => ci(),
        "features" => full::features(),
        "full" => full::full(&words),
        "dist" => dist::dist(),
        "fuzz" => fuzz::fuzz(&root(), &words),
        "laws" => laws::laws(&words),
        "loom" => full::models(),
        "overload" => overload(),
        "sessions" => sessions::sessions(&words),
        "sbom" => supply::sbom(&root(), words.first().map(String::as_str)),
        "sim" => sim::run(&root(), &words),
        "soak" => full::soak(),
        "style" => style::run(&root()),
        "supply" => supply::check(&root()),
        "test" => test(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {command}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn cargo() -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root());
    command
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    eprintln!("> {command:?}");
    let status = command.status().with_context(|| format!("{command:?} cannot be started"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// Longest run of an example: one that waits for what never comes must fail.
const EXAMPLE: Duration = Duration::from_secs(300);
/// Between two looks at one.
const LOOK: Duration = Duration::from_millis(20);

/// The same, bounded: what takes longer is killed by its id.
fn run_within(command: &mut Command, limit: Duration) -> anyhow::Result<()> {
    eprintln!("> {command:?}");
    let mut child = command.spawn().with_context(|| format!("{command:?} cannot be started"))?;
    let mut waited = Duration::ZERO;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if waited >= limit {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} did not end within {limit:?}");
        }
        std::thread::park_timeout(LOOK);
        waited += LOOK;
    };
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

fn check() -> anyhow::Result<()> {
    run(cargo().args(["fmt", "--all", "--", "--check"]))?;
    run(cargo().args(["clippy", "--workspace", "--all-features", "--all-targets", "--", "-D", "warnings"]))?;
    run(cargo()
        .args(["doc", "--workspace", "--all-features", "--no-deps"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    style::run(&root())?;
    arrows::run(&root())?;
    supply::check(&root())?;
    api::run(&root(), false)
}

/// The scenario of the proof at a tenth of its time scale, about 40 s.
fn overload() -> anyhow::Result<()> {
    let svg = root().join("target/overload.svg");
    run(cargo()
        .args(["run", "--release", "-p", "example-overload", "--", "--seconds", "180", "--svg"])
        .arg(svg))
}

/// The batch of every change: as many kills as fit.
const SESSIONS: [&str; 6] = ["--reads", "200000", "--failovers", "30", "--seconds", "90"];

fn ci() -> anyhow::Result<()> {
    check()?;
    test()?;
    sessions::sessions(&SESSIONS.map(str::to_owned))?;
    bench::bench(&["--smoke".to_owned()])
}

/// Totals of the runners' own closing lines.
#[derive(Default)]
struct Totals {
    passed: u64,
    failed: u64,
}

impl Totals {
    /// Reads `test result: ok. 5 passed; 0 failed; ...`.
    fn read(&mut self, line: &str) {
        let Some(rest) = line.trim().strip_prefix("test result: ") else { return };
        let words: Vec<&str> = rest.split_whitespace().collect();
        for pair in words.windows(2) {
            let count = pair[0].parse().unwrap_or(0);
            match pair[1].trim_end_matches(';') {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                _ => {}
            }
        }
    }
}

fn test() -> anyhow::Result<()> {
    let mut totals = Totals::default();
    let mut tests = cargo();
    let programs = servers::bring(&root().join("target"))?;
    tests.args(["test", "--workspace", "--all-features", "--no-fail-fast"]);
    tests.env(servers::REQUIRE, "1").env(servers::DIR, programs);
    let mut ok = stream(&mut tests, &mut totals)?;
    ok &= stream(&mut full::small_models(), &mut totals)?;
    // All at once, as the tests were built: one by one each would have its dependencies built for its features alone.
    let built = run(cargo().args(["build", "--workspace", "--all-features", "--all-targets"]));
    ok &= built.inspect_err(|e| eprintln!("{e:#}")).is_ok();
    for (_, program) in examples()? {
        let mut example = Command::new(bench::target().join("debug").join(program));
        let passed = run_within(example.current_dir(root()), EXAMPLE);
        let passed = passed.inspect_err(|e| eprintln!("{e:#}")).is_ok();
        ok &= passed;
        if passed { totals.passed += 1 } else { totals.failed += 1 }
    }
    println!("{} passed, {} failed", totals.passed, totals.failed);
    if !ok || totals.failed > 0 {
        bail!("there are failures");
    }
    Ok(())
}

/// Every program under `examples/`, with its package.
fn examples() -> anyhow::Result<Vec<(String, String)>> {
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root()).no_deps().exec()?;
    let mut found = Vec::new();
    for package in metadata.packages.iter().filter(|p| p.name.starts_with("example-")) {
        let programs: Vec<_> = package.targets.iter().filter(|t| t.is_bin()).collect();
        if programs.is_empty() {
            bail!("{} has no program", package.name);
        }
        found.extend(programs.into_iter().map(|t| (package.name.to_string(), t.name.clone())));
    }
    found.sort();
    Ok(found)
}

/// Runs a command, passes its output on and reads the totals from it.
fn stream(command: &mut Command, totals: &mut Totals) -> anyhow::Result<bool> {
    eprintln!("> {command:?}");
    let mut child = command.stdout(Stdio::piped()).spawn().context("cargo cannot be started")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut out = std::io::stdout().lock();
    for line in BufReader::new(output).lines() {
        let line = line?;
        totals.read(&line);
        writeln!(out, "{line}")?;
    }
    Ok(child.wait()?.success())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{Totals, examples, run_within};

    #[test]
    fn every_example_is_run() {
        let found = examples().unwrap();
        for folder in std::fs::read_dir(super::root().join("examples")).unwrap() {
            let name = format!("example-{}", folder.unwrap().file_name().to_string_lossy());
            assert!(found.iter().any(|(package, _)| *package == name), "{name}");
        }
        let policies = found.iter().filter(|(package, _)| package == "example-policies").count();
        assert!(policies >= 9, "one program per policy: {policies}");
    }

    #[test]
    fn what_does_not_end_is_killed_and_fails() {
        let limit = std::time::Duration::from_millis(50);
        let error = run_within(Command::new("sleep").arg("1000"), limit).unwrap_err();
        assert!(error.to_string().contains("did not end within 50ms"), "{error}");
        assert!(run_within(&mut Command::new("false"), super::EXAMPLE).is_err());
        run_within(&mut Command::new("true"), super::EXAMPLE).unwrap();
    }

    #[test]
    fn totals_are_read_from_the_runners_lines() {
        let mut totals = Totals::default();
        totals.read("test result: ok. 41 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        totals.read("test result: FAILED. 8 passed; 2 failed; 0 ignored; finished in 0.5s");
        totals.read("test engine::x ... ok");
        assert_eq!((totals.passed, totals.failed), (49, 2));
    }
}
