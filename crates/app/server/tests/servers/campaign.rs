//! Real processes that are stopped and killed while they hold a lock: their history, stamped by one clock, is judged by
//! the checkers of the simulator.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mainstay_clock::{Instant, Rng as _, SystemRng, os_boot_now};
use mainstay_sim::check::{counter, epochs_grow, judge, mutual_exclusion};
use mainstay_sim::history::{Effect, Ended, Event, Op};
use mainstay_sim::verdict::Verdict;
use rustix::process::{Pid, Signal, kill_process};

use crate::machine::{PATIENCE, quick_dir};
use crate::worker::{NAME, Rules, TTL};

/// After a stop: how long a step under way may still run before the guard is polled again.
const LAST_STEP: Duration = Duration::from_millis(150);

/// A process of a campaign; killed by its id when dropped.
struct Part {
    child: Child,
    wraps: bool,
}

impl Part {
    fn start(folder: &Path, url: &str, rules: Rules, wraps: bool) -> Self {
        let own = std::env::current_exe().unwrap();
        let folder = folder.to_str().unwrap();
        let mut command = if wraps {
            let mut wrapper = Command::new(env!("CARGO_BIN_EXE_mainstay"));
            wrapper.args(["lock", "--store", url, "--ttl", "1500ms", "--grace", "300ms", NAME, "--"]);
            wrapper.arg(own).args(["--campaign-job", folder, rules.word()]);
            wrapper
        } else {
            let mut holder = Command::new(own);
            holder.args(["--campaign-holder", folder, url, rules.word()]);
            holder
        };
        command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null()).stdout(Stdio::null());
        Self { child: command.stderr(Stdio::null()).spawn().unwrap(), wraps }
    }

    fn signal(&self, signal: Signal) {
        // It may have ended meanwhile; then it is a zombie of ours, and nobody else has its id.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        self.signal(Signal::CONT);
        let _ = self.child.wait();
    }
}

/// What a campaign did and what came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) grants: usize,
    pub(crate) accepted: usize,
    pub(crate) refused: usize,
    pub(crate) stops: usize,
    pub(crate) kills: usize,
}

/// When a process stood still, and until when a step that had begun may have run on.
type Stops = Vec<(u32, Instant, Instant)>;

/// Runs it in rounds of a few seconds until `length` has passed and there was `enough` of it, or until a round does not
/// pass. What is not enough after all patience stays so.
pub(crate) fn campaign(
    url: &dyn Fn(&Path) -> String,
    rules: Rules,
    length: Duration,
    enough: impl Fn(&Outcome) -> bool,
) -> Outcome {
    let end = os_boot_now().saturating_add(length);
    let last = end.saturating_add(PATIENCE);
    let mut all = Outcome {
        verdict: Verdict::Unknown("no round was run".to_owned()),
        grants: 0,
        accepted: 0,
        refused: 0,
        stops: 0,
        kills: 0,
    };
    while os_boot_now() < end || (!enough(&all) && os_boot_now() < last) {
        let left = end.saturating_duration_since(os_boot_now());
        // Short enough that a history is small, long enough for several faults.
        let round = round(url, rules, left.clamp(Duration::from_secs(4), Duration::from_secs(30)));
        all.grants += round.grants;
        all.accepted += round.accepted;
        all.refused += round.refused;
        all.stops += round.stops;
        all.kills += round.kills;
        all.verdict = round.verdict;
        if !matches!(all.verdict, Verdict::Pass(_)) {
            break;
        }
    }
    all
}

fn round(url: &dyn Fn(&Path) -> String, rules: Rules, length: Duration) -> Outcome {
    let dir = quick_dir();
    let url = url(dir.path());
    let start = |wraps| Part::start(dir.path(), &url, rules, wraps);
    let mut parts = [start(false), start(false), start(true)];
    let (mut stops, mut kills) = (Stops::new(), 0);
    let still = Stillness::watch();
    let end = os_boot_now().saturating_add(length);
    while os_boot_now() < end {
        nap(Duration::from_millis(50 + SystemRng::new().below(400)));
        for part in &mut parts {
            if part.child.try_wait().unwrap().is_some() {
                *part = start(part.wraps);
            }
        }
        let target = target(dir.path(), &parts);
        if SystemRng::new().below(4) == 0 {
            parts[target].signal(Signal::KILL);
            kills += 1;
            continue;
        }
        let from = os_boot_now();
        parts[target].signal(Signal::STOP);
        nap(if SystemRng::new().below(4) == 0 { TTL / 4 } else { TTL + TTL / 2 });
        parts[target].signal(Signal::CONT);
        stops.push((parts[target].child.id(), from, os_boot_now().saturating_add(LAST_STEP)));
    }
    drop(parts);
    // Jobs of wrappers that were killed end with their lease.
    nap(Duration::from_millis(1_600));
    history(dir.path(), &stops, &still.end(), kills)
}

/// When the machine itself stood still, seen by a thread that wakes up all the time.
struct Stillness {
    over: Arc<AtomicBool>,
    watcher: JoinHandle<Vec<(Instant, Instant)>>,
}

impl Stillness {
    /// Between two looks.
    const LOOK: Duration = Duration::from_millis(5);
    /// A look that is later than this was not late by itself: others were late too.
    const LATE: Duration = Duration::from_millis(100);

    fn watch() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let watcher = std::thread::spawn(move || {
            let (mut found, mut last) = (Vec::new(), os_boot_now());
            while !ends.load(Ordering::SeqCst) {
                nap(Self::LOOK);
                let now = os_boot_now();
                if now.saturating_duration_since(last) > Self::LATE {
                    found.push((last, now.saturating_add(LAST_STEP)));
                }
                last = now;
            }
            found
        });
        Self { over, watcher }
    }

    fn end(self) -> Vec<(Instant, Instant)> {
        self.over.store(true, Ordering::SeqCst);
        self.watcher.join().unwrap()
    }
}

#[allow(clippy::disallowed_methods, reason = "faults of real processes take real time")]
fn nap(d: Duration) {
    std::thread::sleep(d);
}

/// Mostly who holds the lock just now; the holder of a job is its wrapper.
fn target(folder: &Path, parts: &[Part; 3]) -> usize {
    let events = std::fs::read_to_string(folder.join("events")).unwrap_or_default();
    let last = events.lines().rev().find(|l| l.contains(" got "));
    let pid = last.and_then(|l| l.split(' ').next()?.parse::<u32>().ok());
    let holder = pid.map(|pid| parts.iter().position(|p| p.child.id() == pid).unwrap_or(2));
    match holder {
        Some(holder) if SystemRng::new().below(5) > 0 => holder,
        _ => usize::try_from(SystemRng::new().below(3)).unwrap(),
    }
}

/// One hold of one process.
#[derive(Default)]
struct Seen {
    got: u64,
    last_ran: u64,
    tried: Option<u64>,
}

fn history(folder: &Path, stops: &Stops, stood: &[(Instant, Instant)], kills: usize) -> Outcome {
    let text = std::fs::read_to_string(folder.join("events")).unwrap_or_default();
    let (mut holds, mut events): (BTreeMap<(u32, u64), Seen>, Vec<Event>) = Default::default();
    let (mut puts, mut refused): (BTreeMap<u64, (u64, u32)>, usize) = Default::default();
    let add = |seen: &mut Seen, ended: Ended, at: Option<u64>| {
        let from = seen.tried.take();
        from.map(|from| Event::Op(Op::new(0, "add", NAME, from, at, ended)))
    };
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |i: usize| words[i].parse::<u64>().unwrap_or_else(|_| panic!("{line}"));
        let (pid, token, count, at) = (u32::try_from(number(0)).unwrap(), number(1), number(3), number(4));
        let seen = holds.entry((pid, token)).or_default();
        let within = |from: &Instant, to: &Instant| (from.as_nanos()..to.as_nanos()).contains(&at);
        let still = stops.iter().any(|(stopped, from, to)| *stopped == pid && within(from, to))
            || stood.iter().any(|(from, to)| within(from, to));
        match words[2] {
            "got" => (seen.got, seen.last_ran) = (at, at),
            // What began before a stop and ends after it is for the fence, not for the guard.
            "ran" if !still => seen.last_ran = at,
            "try" => {
                events.extend(add(seen, Ended::Unknown, None));
                seen.tried = Some(at);
            }
            "put" => drop(puts.insert(count, (token, pid))),
            "ok" => events.extend(add(seen, Ended::Ok, Some(at))),
            "stale" => {
                refused += 1;
                events.extend(add(seen, Ended::Fail, Some(at)));
            }
            _ => {}
        }
    }
    for ((pid, token), seen) in &mut holds {
        // Killed in the middle of a write.
        events.extend(add(seen, Ended::Unknown, None));
        let id = format!("{pid}/{token}");
        for (f, at) in [("acquire", seen.got), ("release", seen.last_ran)] {
            let mut op = Op::new(u64::from(*pid), f, NAME, at, Some(at), Ended::Ok);
            (op.epoch, op.op_id) = (Some(*token), Some(id.as_str().into()));
            events.push(Event::Op(op));
        }
    }
    // The last one that made a number is the one that was renamed into place; in their order.
    for (count, (token, pid)) in &puts {
        let mut effect = Effect::new("file", NAME, &format!("{pid}/{token}/{count}"), 1, 0);
        effect.epoch = Some(*token);
        events.push(Event::Effect(effect));
    }
    let total = std::fs::read_to_string(folder.join("data")).unwrap_or_default().parse::<i64>().unwrap_or(0);
    let mut last = Op::new(0, "total", NAME, u64::MAX - 1, Some(u64::MAX), Ended::Ok);
    last.value = Some(total.into());
    events.push(Event::Op(last));
    let verdict =
        judge(&events, mutual_exclusion()).and(judge(&events, epochs_grow())).and(judge(&events, counter()));
    let tokens: BTreeSet<u64> = holds.keys().map(|(_, token)| *token).collect();
    Outcome { verdict, grants: tokens.len(), accepted: puts.len(), refused, stops: stops.len(), kills }
}
