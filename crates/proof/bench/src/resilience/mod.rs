//! Policies around a call that is ready at once: ours and the rivals', and ten questions to every breaker.

mod battery;
mod counting;
mod measure;
mod ours;

use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::child::Program;
use crate::report::Section;
use crate::{Options, Suite};
use battery::{Answer, COUNT};
use measure::Row;

pub(crate) const SUITE: Suite = Suite {
    name: "resilience",
    about: "Nanoseconds per guarded call of an operation that is ready at once and succeeds. `1t`: the fastest of 60\n\
            rounds of 2 ms on one pinned thread. `2t`: two pinned threads share the object, the median per thread of\n\
            25 rounds; a round counts only without an involuntary context switch and with 85 % overlap, and `-` says\n\
            that none did. Ours and the rivals are a program each that holds nothing else. Allocations and bytes per\n\
            call, heap in bytes per instance. `bare` is what the machine takes for one locked add, and for the two\n\
            locked operations that a permit cannot do without. `five policies`: deadline, bulkhead, retry with budget,\n\
            breaker, attempt timeout; rivals have the parts that they offer. Metrics go to a recorder that counts with\n\
            one relaxed add. The tick of 1 ms is read where it is enough.",
    run,
};

/// Paths in the order of the report, with the goal for one thread.
const PATHS: [(&str, f64); 10] = [
    (ours::BARE, f64::INFINITY),
    ("breaker", 5.0),
    ("bulkhead", 6.0),
    ("retry", 4.0),
    ("timeout", 4.0),
    ("rate limit", 9.5),
    ("adaptive AIMD", 20.0),
    ("empty policy", f64::INFINITY),
    ("five policies", 15.0),
    ("five policies, metrics", 25.0),
];

/// Programs of rivals; the second one because it wants a version of tokio that the others cannot have.
const RIVALS: [&str; 2] = ["resilience", "ninelives"];

/// Most heap of a breaker, in every setting.
const MOST_HEAP: u64 = 2_048;
/// Bytes of one line of counters of a time window, and most of them.
const LINE: u64 = 128;
const LINES: usize = 5;

/// What a program said.
#[derive(Default)]
struct Said {
    rows: Vec<Row>,
    answers: Vec<(String, Vec<Answer>)>,
    missing: Vec<String>,
}

fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let mut said = Said::default();
    said.read(&output(options, &Program::beside("mainstay-bench-calls")?, options.smoke)?)?;
    for name in RIVALS {
        match Program::rival(options.rivals.as_deref(), name) {
            Some(rival) => said.read(&output(options, &rival, options.smoke)?)?,
            None => said.missing.push(format!("rivals: the program rival-{name} was not built")),
        }
    }
    tables(section, &said.rows);
    gates(section, &said.rows);
    sizes(section);
    questions(section, &said.answers);
    for missing in &said.missing {
        section.note(&format!("Not measured: {missing}."));
    }
    Ok(())
}

/// Runs a program, through the one that waits for quiet if there is one.
fn output(options: &Options, program: &Program, quick: bool) -> anyhow::Result<String> {
    let mut command = program.bare();
    command.args(quick.then_some("--quick"));
    if let Some(through) = &options.through {
        let mut outer = Command::new(through);
        outer.arg(command.get_program()).args(command.get_args());
        command = outer;
    }
    let output = command.output().with_context(|| format!("{command:?} cannot be started"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Our own figures and answers, as lines. A program of its own, as the rivals' is: beside everything else that is
/// measured here the very same machine code took half as long again.
pub(crate) fn calls(words: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let quick = words.into_iter().any(|w| w == "--quick");
    for row in ours::rows(quick) {
        println!("{}", row.line());
    }
    for (name, make) in ours::subjects() {
        println!("{}", battery::line(name, &battery::ask(&*make)));
    }
    Ok(())
}

impl Said {
    fn read(&mut self, text: &str) -> anyhow::Result<()> {
        for line in text.lines() {
            let found: Value =
                serde_json::from_str(line).with_context(|| format!("a program said `{line}`"))?;
            let word = |name: &str| found[name].as_str().map(str::to_owned);
            let number =
                |name: &str| found[name].as_f64().with_context(|| format!("no `{name}` in `{line}`"));
            if let Some(missing) = word("missing") {
                self.missing.push(missing);
            } else if let Some(system) = word("battery") {
                let answers = found["answers"].as_array().into_iter().flatten().map(|a| Answer {
                    passed: a["passed"].as_bool().unwrap_or(false),
                    seen: a["seen"].as_str().unwrap_or("?").to_owned(),
                });
                self.answers.push((system, answers.collect()));
            } else {
                self.rows.push(Row {
                    path: word("path").context("no path")?,
                    system: word("system").context("no system")?,
                    one: number("one")?,
                    two: found["two"].as_f64(),
                    pairs: found["pairs"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
                    allocations: number("allocations")?,
                    bytes: number("bytes")?,
                    heap: found["heap"].as_u64().unwrap_or(0),
                });
            }
        }
        Ok(())
    }
}

fn tables(section: &mut Section, rows: &[Row]) {
    let cells = |row: &Row| {
        let two = row.two.map_or_else(|| "-".to_owned(), |ns| format!("{ns:.1}"));
        let ratio = row.two.map_or_else(|| "-".to_owned(), |ns| format!("{:.2}", ns / row.one));
        vec![
            row.path.clone(),
            row.system.clone(),
            format!("{:.2}", row.one),
            two,
            ratio,
            format!("{:.0}", row.allocations),
            format!("{:.0}", row.bytes),
            row.heap.to_string(),
        ]
    };
    let mut all = Vec::new();
    for (path, _) in PATHS {
        let mut of: Vec<&Row> = rows.iter().filter(|r| r.path == path).collect();
        of.sort_by(|a, b| a.one.total_cmp(&b.one));
        all.extend(of.into_iter().map(cells));
    }
    section.table(&["path", "system", "1t ns", "2t ns", "2t/1t", "allocations", "bytes", "heap"], &all);
}

fn gates(section: &mut Section, rows: &[Row]) {
    let ours = |path: &str| rows.iter().find(|r| r.path == path && r.system == "mainstay");
    for (path, most) in PATHS {
        if let Some(row) = ours(path).filter(|_| most.is_finite()) {
            let found = format!("{:.2} ns, {:.0} allocations", row.one, row.allocations);
            let met = row.one <= most && row.allocations == 0.0;
            section.gate(path, &format!("<= {most} ns on one thread, 0 allocations"), found, met);
        }
    }
    if let Some((one, two)) = ours("breaker").and_then(|r| Some((r.one, r.two?))) {
        let ratio = two / one;
        section.gate("breaker, 2t/1t", "<= 1.3", format!("{ratio:.2}"), ratio <= 1.3);
    }
}

fn sizes(section: &mut Section) {
    let sizes = ours::sizes();
    let cells: Vec<Vec<String>> =
        sizes.iter().map(|(what, bytes)| vec![(*what).to_owned(), bytes.to_string()]).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let lines = (cores + 2).min(LINES);
    section.note(&format!(
        "Heap of one of our breakers by setting, with {lines} lines of counters (one per core and two more, at most \
         {LINES}; a time window takes {LINE} bytes for each)."
    ));
    section.table(&["breaker", "heap, bytes"], &cells);
    let missing = (LINES - lines) as u64 * LINE;
    let at_most = |(what, bytes): &(&str, u64)| bytes + if what.starts_with("time") { missing } else { 0 };
    let largest = sizes.iter().map(at_most).max().unwrap_or(0);
    let found = format!("at most {largest} bytes");
    let id = "heap per breaker, every setting above, on any machine";
    section.gate(id, "<= 2 KiB", found, largest <= MOST_HEAP);
}

fn questions(section: &mut Section, answers: &[(String, Vec<Answer>)]) {
    section.note(
        "Ten questions to every breaker (open for 60 ms, one permit, window of 10 at a rate of 0.5, or 5 consecutive \
         failures); what is not as wanted is bold. T1: open, nothing is started. T2: failures until it opens after \
         10,000 successes, wanted 5. T3: of 50 calls at the end of the open time, started. T4: probes dropped after \
         their first poll. T5: a panicking probe. T6: a straggler's success while open. T7: one while a probe is in \
         flight. T8: a straggler's failure then. T9: 500 calls dropped after their first poll. T10: 200 panics.",
    );
    let ids: Vec<String> = (1..=COUNT).map(|n| format!("T{n}")).collect();
    let mut head = vec!["breaker"];
    head.extend(ids.iter().map(String::as_str));
    head.push("passed");
    let rows: Vec<Vec<String>> = answers
        .iter()
        .map(|(system, answers)| {
            let cell = |a: &Answer| if a.passed { a.seen.clone() } else { format!("**{}**", a.seen) };
            let passed = answers.iter().filter(|a| a.passed).count();
            let mut row = vec![system.clone()];
            row.extend(answers.iter().map(cell));
            row.push(passed.to_string());
            row
        })
        .collect();
    section.table(&head, &rows);
    let ours: Vec<_> = answers.iter().filter(|(system, _)| system.starts_with("mainstay")).collect();
    let all = !ours.is_empty() && ours.iter().all(|(_, answers)| answers.iter().all(|a| a.passed));
    section.gate("T1 to T10", "all, in every mode", if all { "all" } else { "not all" }.to_owned(), all);
}
