//! Commands of a schedule: real wrappers, one lease file.

use std::io::Read as _;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{PATIENCE, eventually, mainstay, quick_dir, stderr, within};
use crate::machine::finish;

/// A folder with a lease file and what the commands write.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(quick_dir())
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.path().join(name)).unwrap_or_default()
    }

    fn cron(&self, words: &[&str]) -> Command {
        let store = format!("sqlite:{}", self.0.path().join("leases").display());
        let mut command = mainstay(&["cron", "--store", &store, "report"]);
        command.args(words).current_dir(self.0.path()).env("PATH", "/usr/bin:/bin");
        command
    }

    #[track_caller]
    fn ended(&self, words: &[&str]) -> Output {
        finish(self.cron(words), PATIENCE)
    }
}

/// A scheduler of its own; killed by its id when dropped.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn term(&self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        eventually("the scheduler ends", || self.0.try_wait().unwrap()).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn three_schedulers_run_every_slot_once_also_when_one_is_killed() {
    let place = Place::new();
    let line = "echo $MAINSTAY_CRON_SLOT $MAINSTAY_FENCING_TOKEN >> log";
    // Longer than a machine stands still, and short enough to wait for: one may be killed while it has a turn.
    let words = ["--every", "500ms", "--ttl", "30s", "--grace", "1s", "-c", line];
    let start = || Running::start(place.cron(&words));
    let mut all: Vec<Running> = (0..3).map(|_| start()).collect();
    let lines =
        |n: usize| eventually("slots are run", || Some(place.text("log")).filter(|t| t.lines().count() >= n));
    lines(3);
    // kill -9: what it held ends with its ttl, or is held by nobody.
    drop(all.pop());
    let so_far = place.text("log").lines().count();
    lines(so_far + 3);
    for scheduler in &mut all {
        scheduler.term();
        assert!(matches!(scheduler.code(), Some(143 | 0)), "it ends as asked");
    }
    let log = place.text("log");
    let runs: Vec<(&str, u64)> = log
        .lines()
        .filter_map(|l| l.split_once(' '))
        .map(|(slot, token)| (slot, token.parse().unwrap()))
        .collect();
    assert!(runs.windows(2).all(|r| r[0].0 < r[1].0 && r[0].1 < r[1].1), "slots and tokens only grow: {log}");
}

/// One slot for as long as any test takes: the last one began at most a year ago, and the next one begins so much later
/// that no test meets it, but for one that runs in that very minute.
const YEARLY: [&str; 7] = ["--every", "366d", "--late", "400d", "--once", "--ttl", "2m"];

#[test]
fn once_runs_the_slot_that_is_due_and_the_next_caller_finds_it_taken() {
    let place = Place::new();
    let run = |more: &[&str]| place.ended(&[&YEARLY[..], more].concat());
    let first = run(&["-c", "echo ran >> log; exit 7"]);
    assert_eq!(first.status.code(), Some(7), "{}", stderr(&first));
    let second = run(&["-c", "echo ran >> log"]);
    assert_eq!(second.status.code(), Some(124), "{}", stderr(&second));
    assert_eq!(run(&["-E", "0", "-c", "echo ran >> log"]).status.code(), Some(0));
    assert_eq!(place.text("log"), "ran\n");
}

#[test]
fn a_damaged_record_ends_a_scheduler_and_says_what_it_is() {
    let place = Place::new();
    let words = ["--every", "100ms", "--ttl", "2m", "--grace", "1s", "-c", "echo ran >> log"];
    let mut command = place.cron(&words);
    let mut scheduler = Running(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    eventually("a slot is run", || (!place.text("log").is_empty()).then_some(()));
    let file = rusqlite::Connection::open(place.0.path().join("leases")).unwrap();
    file.busy_timeout(PATIENCE).unwrap();
    // Whoever writes the record anew repairs it: damage it until it is read.
    let code = eventually("the scheduler ends", || {
        file.execute("update kv set sum = x'00'", []).unwrap();
        scheduler.0.try_wait().unwrap()
    });
    assert_eq!(code.code(), Some(125), "the wrapper failed");
    let mut said = String::new();
    scheduler.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("MS0008") && !said.contains("trying again"), "{said}");
}

#[test]
fn a_run_that_takes_too_long_is_stopped_with_all_it_started() {
    let words = ["--at-most", "15s", "--grace", "200ms"];
    let stubborn = "trap '' TERM; (trap '' TERM; while :; do echo a > beat; sleep 0.01; done) & echo $! > child; wait; while :; do sleep 0.01; done";
    // On a machine that stands still for so long it is stopped before it has begun: another one is.
    let child = eventually("a run begins before it is stopped", || {
        let place = Place::new();
        let ended = place.ended(&[&YEARLY[..], &words, &["-c", stubborn]].concat());
        assert_eq!(ended.status.code(), Some(75), "{}", stderr(&ended));
        assert!(stderr(&ended).contains("held longer than allowed"), "{}", stderr(&ended));
        Some(place.text("child")).filter(|child| child.ends_with('\n'))
    });
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
    let gone = stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z') || rest.starts_with('X'));
    assert!(gone, "a child of the run lives: {stat}");
}

#[test]
fn the_time_of_a_run_is_kept_after_its_end_though_nobody_lives_to_keep_it() {
    let place = Place::new();
    let ended = |every: &str| {
        let words = ["--every", every, "--late", "400d", "--once", "--at-least", "1h", "--ttl", "2m"];
        place.ended(&[&words[..], &["-c", "echo ran >> log"]].concat())
    };
    assert_eq!(ended("366d").status.code(), Some(0));
    // Other slots by a wrong schedule: another instant, and yet kept away.
    let kept = eventually("another slot is due", || {
        let output = ended("100ms");
        Some(output).filter(|o| stderr(o).contains("is kept for another"))
    });
    assert_eq!(kept.status.code(), Some(124));
    assert_eq!(place.text("log"), "ran\n");
}

/// Only with `--once` was it said that a slot was not run: a schedule whose runs took too long lost every other slot without
/// a word.
#[test]
fn a_scheduler_says_which_slots_it_drops_and_why() {
    let start = |place: &Place, words: &[&str], name: &str| {
        let said = std::fs::File::create(place.0.path().join(name)).unwrap();
        let mut command = place.cron(&[&["--every", "200ms", "--ttl", "2m"], words].concat());
        Running(command.stdout(Stdio::null()).stderr(said).spawn().unwrap())
    };
    let says = |place: &Place, names: &[&str], text: &str| {
        let all = || names.iter().map(|name| place.text(name));
        let found = within(|| all().find(|said| said.contains(text)));
        found.unwrap_or_else(|| panic!("nobody said `{text}`: {:?}", all().collect::<Vec<_>>()))
    };
    let kept = Place::new();
    let _alone = start(&kept, &["--at-least", "1h", "-c", "echo ran >> log"], "said");
    let said = says(&kept, &["said"], "is kept for another");
    assert!(said.contains("mainstay: not run for ") && said.contains("it is dropped"), "{said}");
    assert_eq!(kept.text("log"), "ran\n");

    let long = Place::new();
    let until_told = "while [ ! -e stop ]; do sleep 0.01; done";
    let _both = ["one", "two"].map(|name| start(&long, &["-c", until_told], name));
    says(&long, &["one", "two"], "an earlier run goes on at ");
    std::fs::write(long.0.path().join("stop"), "").unwrap();
}

#[test]
fn what_cannot_hold_is_a_usage_error() {
    let place = Place::new();
    for words in [
        &["--", "true"][..],
        &["--every", "1m", "--schedule", "* * * * *", "--", "true"],
        &["--every", "10ms", "--", "true"],
        &["--schedule", "61 * * * *", "--", "true"],
        &["--schedule", "* * * * * Atlantis/Town", "--", "true"],
        &["--every", "1m", "--at-least", "2h", "--at-most", "1h", "--", "true"],
        &["--every", "1m", "--at-least", "25h", "--", "true"],
        &["--every", "1m", "--grace", "8s", "--", "true"],
        &["--every", "1m", "-E", "3", "--", "true"],
        &["--every", "1m"],
    ] {
        let output = place.ended(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", stderr(&output));
    }
}
