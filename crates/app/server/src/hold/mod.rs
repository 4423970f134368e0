//! A command under a lease: started when the lease is held, ended before the lease can pass on.
//!
//! Three processes: the wrapper holds and renews the lease, forwards signals and waits; the job is a process
//! group of its own; the [watchdog] ends the job when the wrapper is stopped, killed or cut off. The lease is
//! given back only when the whole group is gone.

mod job;
mod state;
mod watchdog;

use std::ffi::OsString;
use std::process::ExitStatus;
use std::time::Duration;

pub(crate) use job::{ExecArgs, exec};
use job::{Job, code};
use mainstay_clock::{Clock as _, Deadline, SystemClock};
use mainstay_coordination::cron::Turn;
use mainstay_coordination::{Guard, LossReason, Term};
use mainstay_store::lease::Released;
use rustix::process::Signal;
use state::Limits;
pub(crate) use state::OnLost;
use tokio::signal::unix::{SignalKind, signal};
pub(crate) use watchdog::{Args as WatchdogArgs, run as watchdog};
use watchdog::{Said, Watchdog};

use crate::error::{Code, Error, Result};

/// The lease was lost and the job was ended; EX_TEMPFAIL of sysexits.
const EXIT_LOST: u8 = 75;
/// Why the watchdog ends a job.
const LATE: &str = "it was not renewed in time";
/// Between two looks at a group that is being killed, beside the signal that says that one ended.
const LOOK: Duration = Duration::from_millis(10);

/// What is forwarded to the job, and obeyed while there is none yet.
const FORWARDED: [(SignalKind, Signal); 7] = [
    (SignalKind::interrupt(), Signal::INT),
    (SignalKind::terminate(), Signal::TERM),
    (SignalKind::hangup(), Signal::HUP),
    (SignalKind::quit(), Signal::QUIT),
    (SignalKind::user_defined1(), Signal::USR1),
    (SignalKind::user_defined2(), Signal::USR2),
    (SignalKind::window_change(), Signal::WINCH),
];

/// The right to run.
pub(crate) enum Right {
    Lock(Guard),
    Term(Term),
    Turn(Turn),
}

impl Right {
    pub(crate) fn token(&self) -> u64 {
        match self {
            Self::Lock(guard) => guard.token().get(),
            Self::Term(term) => term.token().get(),
            Self::Turn(turn) => turn.token().get(),
        }
    }

    pub(crate) fn deadline(&self) -> Deadline {
        match self {
            Self::Lock(guard) => guard.deadline(),
            Self::Term(term) => term.deadline(),
            Self::Turn(turn) => turn.deadline(),
        }
    }

    async fn lost(&self) -> LossReason {
        match self {
            Self::Lock(guard) => guard.lost().await,
            Self::Term(term) => term.lost().await,
            Self::Turn(turn) => turn.lost().await,
        }
    }

    async fn renewed(&self, known: Deadline) -> Deadline {
        match self {
            Self::Lock(guard) => guard.renewed(known).await,
            Self::Term(term) => term.renewed(known).await,
            Self::Turn(turn) => turn.renewed(known).await,
        }
    }

    async fn give_back(self) -> std::result::Result<Released, mainstay_coordination::Error> {
        match self {
            Self::Lock(guard) => guard.release().await,
            Self::Term(term) => term.resign().await,
            Self::Turn(turn) => turn.finish().await,
        }
    }
}

/// The signals of this process, from before the lease is asked for.
pub(crate) struct Signals {
    streams: Vec<(tokio::signal::unix::Signal, Signal)>,
    /// The last one that asks a process to end.
    asked: Option<Signal>,
}

/// What ends a process that goes on by itself.
const ENDING: [Signal; 4] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM];

impl Signals {
    pub(crate) fn listen() -> Result<Self> {
        let failed = |e| Error::with(Code::Internal, "cannot listen for signals", e);
        let all = FORWARDED.into_iter().map(|(kind, sent)| Ok((signal(kind)?, sent)));
        let streams = all.collect::<std::io::Result<_>>().map_err(failed)?;
        Ok(Self { streams, asked: None })
    }

    /// Whether one came that asks a process to end: it was forwarded, and the wrapper itself is meant too.
    pub(crate) fn asked_to_end(&self) -> bool {
        self.asked.is_some()
    }

    /// The next one. Cancel safe.
    async fn next(&mut self) -> Signal {
        let next = std::future::poll_fn(|cx| {
            for (stream, sent) in &mut self.streams {
                if stream.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*sent);
                }
            }
            std::task::Poll::Pending
        })
        .await;
        if ENDING.contains(&next) {
            self.asked = Some(next);
        }
        next
    }

    /// The next one that ends a process which does not handle it; its exit code.
    pub(crate) async fn fatal(&mut self) -> u8 {
        loop {
            let signal = self.next().await;
            if signal != Signal::WINCH {
                return 128 + u8::try_from(signal.as_raw()).unwrap_or(127);
            }
        }
    }
}

/// What runs under the right, and how it is ended.
pub(crate) struct Plan {
    pub(crate) words: Vec<OsString>,
    pub(crate) variables: Vec<(&'static str, String)>,
    pub(crate) grace: Duration,
    pub(crate) on_lost: OnLost,
}

/// The watchdog, started while the lease is still asked for.
pub(crate) struct Ready(Watchdog);

impl Plan {
    pub(crate) fn prepare(&self) -> Result<Ready> {
        Watchdog::start(self.grace, self.on_lost).map(Ready)
    }

    /// Runs the job to its end and gives the right back. The exit code of the command, or 75.
    ///
    /// Must run on the main thread.
    pub(crate) async fn run(&self, right: Right, ready: Ready, signals: &mut Signals) -> Result<u8> {
        let failed = |e| Error::with(Code::Internal, "cannot listen for ended children", e);
        let children = signal(SignalKind::child()).map_err(failed)?;
        let mut dog = ready.0;
        let deadline = right.deadline();
        dog.until(Limits::of(deadline.instant(), self.grace)).await?;
        let job = Job::start(&self.words, &self.variables)?;
        let mut run = Run { plan: self, right, job, dog, signals, children, deadline, lost: None };
        let status = run.until_it_ends().await;
        run.end_the_rest().await;
        let Run { right, job, dog, mut lost, .. } = run;
        drop(job);
        if dog.done().await {
            lost.get_or_insert_with(|| LATE.to_owned());
        }
        match right.give_back().await {
            Ok(Released::Clean) => {}
            // Broken or taken over since the last renewal: the command ran its last moments without it.
            Ok(Released::AlreadyGone) => {
                lost.get_or_insert_with(|| "it was gone when it was given back".to_owned());
            }
            Err(error) => eprintln!("mainstay: the lease was not given back and ends by itself: {error}"),
        }
        let status = status?;
        let Some(why) = lost else { return Ok(code(status)) };
        eprintln!("mainstay: the lease is lost ({why})");
        Ok(EXIT_LOST)
    }
}

struct Run<'a> {
    plan: &'a Plan,
    right: Right,
    job: Job,
    dog: Watchdog,
    signals: &'a mut Signals,
    children: tokio::signal::unix::Signal,
    /// The one that the watchdog knows.
    deadline: Deadline,
    lost: Option<String>,
}

impl Run<'_> {
    /// Everything that can happen until the command itself has ended.
    async fn until_it_ends(&mut self) -> Result<ExitStatus> {
        let mut started = false;
        loop {
            // The job may have ended before this was asked for the first time.
            let changes = self.job.reap();
            if let Some(status) = changes.ended {
                return Ok(status);
            }
            if changes.stopped && !started {
                self.dog.watch(self.job.group).await?;
                started = true;
                // Without its lease it does not begin: the watchdog ends it.
                if self.lost.is_none() || self.plan.on_lost == OnLost::None {
                    self.job.signal(Signal::CONT);
                }
            } else if changes.stopped && self.job.has_terminal() {
                self.job.stop_with();
                // Once lost it stays stopped: the watchdog kills it.
                if self.check().is_ok() {
                    self.job.resume();
                }
            }
            let held = self.lost.is_none();
            tokio::select! {
                biased;
                _ = self.children.recv() => {}
                signal = self.signals.next() => self.job.signal(signal),
                said = self.dog.said() => self.heard(said)?,
                why = self.right.lost(), if held => {
                    self.lost = Some(why.to_string());
                    self.dog.lost().await?;
                }
                deadline = self.right.renewed(self.deadline), if held => {
                    self.deadline = deadline;
                    self.dog.until(Limits::of(deadline.instant(), self.plan.grace)).await?;
                }
            }
        }
    }

    fn check(&self) -> std::result::Result<(), mainstay_coordination::Error> {
        match &self.right {
            Right::Lock(guard) => guard.check(),
            Right::Term(term) => term.check(),
            Right::Turn(turn) => turn.check(),
        }
    }

    fn heard(&mut self, said: Said) -> Result<()> {
        match said {
            Said::Armed => Ok(()),
            Said::Term | Said::Kill => {
                self.lost.get_or_insert_with(|| LATE.to_owned());
                Ok(())
            }
            // Nobody would end the job in time: it ends now.
            Said::Ended => {
                self.job.signal(Signal::KILL);
                Err(Error::new(Code::Internal, "the watchdog is gone; the job was killed"))
            }
        }
    }

    /// What the command left behind in its group ends too, before the lease is given back.
    async fn end_the_rest(&mut self) {
        let clock = SystemClock::new();
        let mut kill = None;
        loop {
            self.job.reap();
            if !self.job.lives() {
                return;
            }
            let now = clock.now();
            match kill {
                None => {
                    self.job.signal(Signal::TERM);
                    kill = Some(now.saturating_add(self.plan.grace));
                }
                Some(at) if now >= at => self.job.signal(Signal::KILL),
                Some(_) => {}
            }
            tokio::select! {
                biased;
                _ = self.children.recv() => {}
                () = clock.sleep(LOOK) => {}
                deadline = self.right.renewed(self.deadline), if self.lost.is_none() => {
                    self.deadline = deadline;
                    // One that is gone cannot be told; the group is being ended anyway.
                    let _ = self.dog.until(Limits::of(deadline.instant(), self.plan.grace)).await;
                }
            }
        }
    }
}
