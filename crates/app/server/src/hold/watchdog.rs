//! The process that ends a job whose lease is lost. It stands outside the job's process group and outside
//! the wrapper's session, so that neither a stopped nor a killed wrapper can save the job.
//!
//! Over its standard input it hears `until TERM KILL` (boot-clock nanoseconds), `job GROUP`, `lost` and
//! `done`; the end of the input means that the wrapper is gone. It answers `armed`, `term` and `kill`.

use std::io::Write as _;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use clap::ValueEnum as _;
use mainstay_clock::{Clock as _, Instant, SystemClock};
use rustix::process::{Pid, Signal, kill_process_group, setsid, test_kill_process_group};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::state::{Act, Event, Limits, OnLost, Watch};
use crate::error::{Code, Error, Result};

/// A killed group is killed again until it is gone: a member may have forked in between.
const AGAIN: Duration = Duration::from_millis(5);

/// Arguments of the hidden verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_parser = humantime::parse_duration)]
    grace: Duration,
    #[arg(long, value_enum)]
    on_lost: OnLost,
}

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Armed,
    Term,
    Kill,
    /// It is gone, which nobody asked for.
    Ended,
}

/// The wrapper's side.
pub(super) struct Watchdog {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Watchdog {
    /// Starts this very program as the watchdog.
    pub(super) fn start(grace: Duration, on_lost: OnLost) -> Result<Self> {
        let failed = |e: std::io::Error| Error::with(Code::Internal, "cannot start the watchdog", e);
        let on_lost = on_lost.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
        let mut child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(["hold-watchdog", "--grace", &format!("{}ns", grace.as_nanos()), "--on-lost", &on_lost])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let missing = || Error::new(Code::Internal, "the watchdog has no pipes");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = BufReader::new(child.stdout.take().ok_or_else(missing)?).lines();
        Ok(Self { _child: child, input, output })
    }

    async fn send(&mut self, line: String) -> Result<()> {
        let written = self.input.write_all(line.as_bytes()).await;
        written.map_err(|e| Error::with(Code::Internal, "the watchdog does not listen", e))
    }

    pub(super) async fn until(&mut self, limits: Limits) -> Result<()> {
        self.send(format!("until {} {}\n", limits.term.as_nanos(), limits.kill.as_nanos())).await
    }

    /// Names the group, and waits until it is watched.
    pub(super) async fn watch(&mut self, group: Pid) -> Result<()> {
        self.send(format!("job {}\n", group.as_raw_nonzero())).await?;
        match self.said().await {
            Said::Armed => Ok(()),
            other => Err(Error::new(Code::Internal, format!("the watchdog said {other:?}"))),
        }
    }

    pub(super) async fn lost(&mut self) -> Result<()> {
        self.send("lost\n".to_owned()).await
    }

    /// The job's group is gone. Whether the watchdog had begun to end it, told or not told so far.
    pub(super) async fn done(mut self) -> bool {
        // One that is gone has nothing left to do.
        let _ = self.send("done\n".to_owned()).await;
        let mut acted = false;
        loop {
            match self.said().await {
                Said::Armed => {}
                Said::Term | Said::Kill => acted = true,
                Said::Ended => return acted,
            }
        }
    }

    /// What it says next. Cancel safe.
    pub(super) async fn said(&mut self) -> Said {
        match self.output.next_line().await.ok().flatten().as_deref() {
            Some("armed") => Said::Armed,
            Some("term") => Said::Term,
            Some("kill") => Said::Kill,
            _ => Said::Ended,
        }
    }
}

/// The watchdog's own main.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    // Fails only for the leader of a group, which a child of the wrapper is not.
    setsid().map_err(|e| Error::with(Code::Internal, "cannot leave the session", e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::with(Code::Internal, "cannot start the runtime", e))?;
    runtime.block_on(watch(args))?;
    // The thread that reads the input may still block on it.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// What a line of the wrapper means.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Done,
    Job(Pid),
    Lost,
    Until(Limits),
}

fn heard(line: &str) -> Option<Heard> {
    let mut words = line.split_ascii_whitespace();
    let word = words.next()?;
    let mut number = || words.next()?.parse::<u64>().ok();
    Some(match word {
        "done" => Heard::Done,
        "job" => Heard::Job(Pid::from_raw(i32::try_from(number()?).ok()?)?),
        "lost" => Heard::Lost,
        "until" => Heard::Until(Limits {
            term: Instant::from_nanos(number()?),
            kill: Instant::from_nanos(number()?),
        }),
        _ => return None,
    })
}

async fn watch(args: &Args) -> Result<()> {
    let failed = |e: std::io::Error| Error::with(Code::Internal, "cannot listen for signals", e);
    // Whoever ends a whole unit ends the wrapper too, and that is heard.
    let _deaf = [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit(), SignalKind::terminate()]
        .map(signal)
        .into_iter()
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(failed)?;
    let clock = SystemClock::new();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut watch: Option<Watch> = None;
    let (mut job, mut lost) = (None, false);
    loop {
        let tick = watch.as_ref().and_then(Watch::next).filter(|_| job.is_some());
        let event = tokio::select! {
            biased;
            () = clock.sleep_until(tick.unwrap_or(Instant::FAR_FUTURE)), if tick.is_some() => Event::Tick,
            line = lines.next_line() => match line.ok().flatten().as_deref().map(heard) {
                Some(Some(Heard::Done)) => return Ok(()),
                Some(Some(Heard::Job(group))) => {
                    job = Some(group);
                    say("armed");
                    if lost { Event::Lost } else { Event::Tick }
                }
                Some(Some(Heard::Lost)) => {
                    lost = true;
                    Event::Lost
                }
                Some(Some(Heard::Until(limits))) => {
                    watch.get_or_insert_with(|| Watch::new(args.grace, args.on_lost, limits));
                    Event::Renewed(limits)
                }
                // Something that is not our wrapper, or no wrapper any more.
                Some(None) | None => {
                    if let (Some(watch), Some(job)) = (watch, job) {
                        orphaned(&clock, watch, job).await;
                    }
                    return Ok(());
                }
            },
        };
        // Limits count from the first word on; what else happens before there is a job waits for it.
        let Some(watch) = watch.as_mut().filter(|_| job.is_some() || matches!(event, Event::Renewed(_)))
        else {
            continue;
        };
        if let (Some(act), Some(job)) = (watch.on(clock.now(), event), job) {
            perform(&clock, act, job).await;
        }
    }
}

/// The wrapper is gone: nobody renews any more.
async fn orphaned(clock: &SystemClock, mut watch: Watch, job: Pid) {
    let mut event = Event::Lost;
    loop {
        if let Some(act) = watch.on(clock.now(), event) {
            perform(clock, act, job).await;
        }
        let Some(next) = watch.next() else { return };
        // A group that obeyed needs no kill.
        while clock.now() < next {
            if test_kill_process_group(job).is_err() {
                return;
            }
            clock.sleep_until(next.min(clock.now().saturating_add(AGAIN))).await;
        }
        event = Event::Tick;
    }
}

async fn perform(clock: &SystemClock, act: Act, job: Pid) {
    match act {
        Act::Term => {
            // A group that is gone has ended.
            let _ = kill_process_group(job, Signal::TERM);
            say("term");
        }
        Act::Kill => {
            // Not told: a wrapper that is stopped does not read.
            let _ = kill_process_group(job, Signal::KILL);
            say("kill");
            for _ in 0..200 {
                clock.sleep(AGAIN).await;
                if kill_process_group(job, Signal::KILL).is_err() {
                    return;
                }
            }
        }
    }
}

/// A few bytes into a pipe: this never blocks.
fn say(word: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody may listen any more.
    let _ = out.write_all(format!("{word}\n").as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_nonsense_is_not() {
        let limits = Limits { term: Instant::from_nanos(1), kill: Instant::from_nanos(2) };
        assert_eq!(heard("until 1 2"), Some(Heard::Until(limits)));
        assert_eq!(heard("job 7").map(|_| ()), Some(()));
        for bad in ["", "job", "job 0", "job x", "job -7", "until 1", "halt"] {
            assert_eq!(heard(bad), None, "{bad}");
        }
    }
}
