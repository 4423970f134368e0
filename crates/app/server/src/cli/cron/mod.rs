//! `cron`: a command that one of many runs, once for each slot of a schedule.

mod schedule;

use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use mainstay_clock::{Deadline, Runtime, WallTime};
use mainstay_coordination::Coordinator;
use mainstay_coordination::cron::{Due, Every, Job, Missed, Overlap, Schedule, Start};
use schedule::Fields;

use super::lock::{EXIT_NOT_ACQUIRED, JobArgs, code, on_this_thread, owner, refused, settle, told};
use super::store::duration;
use crate::api::instant;
use crate::error::{Code, Error, Result};
use crate::hold::{Plan, Right, Signals};

/// After a store that failed.
const AGAIN: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum MissedArg {
    /// Run the latest one late.
    RunLatest,
    /// Drop it.
    #[default]
    Skip,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum OverlapArg {
    /// Drop the slot.
    #[default]
    Skip,
    /// Wait; of several slots that wait the latest is run.
    Wait,
}

/// Arguments of `cron`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("when").required(true))]
pub(crate) struct CronArgs {
    /// The job. Whoever shares it must have the same schedule.
    name: String,
    /// MINUTE HOUR DAY MONTH WEEKDAY, then a time zone such as Europe/Berlin; without one UTC.
    #[arg(long, group = "when", value_name = "FIELDS")]
    schedule: Option<String>,
    /// A slot every so often, counted from the Unix epoch.
    #[arg(long, group = "when", value_parser = duration, value_name = "DURATION")]
    every: Option<Duration>,
    /// Run the slot that is due now, if nobody took it, and end.
    #[arg(long)]
    once: bool,
    /// Stop a run that takes longer, as if its lease were lost.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    at_most: Option<Duration>,
    /// Keep other runs away for this long after a start, also after an early end.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    at_least: Option<Duration>,
    /// What becomes of a slot that nobody ran in time.
    #[arg(long, value_enum, default_value_t)]
    missed: MissedArg,
    /// What becomes of a slot while an earlier run goes on.
    #[arg(long, value_enum, default_value_t)]
    overlap: OverlapArg,
    /// How long after its instant a slot counts as in time.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    late: Duration,
    /// With --once: the exit code when no slot was run here, in place of 124.
    #[arg(short = 'E', long, value_name = "CODE", requires = "once")]
    conflict_exit_code: Option<u8>,
    #[command(flatten)]
    job: JobArgs,
}

/// Runs `cron`.
pub(crate) fn run(args: &CronArgs) -> Result<ExitCode> {
    let plan = args.job.plan(&args.name)?;
    let schedule: Box<dyn Schedule> = match (&args.schedule, args.every) {
        (Some(fields), _) => Box::new(Fields::parse(fields)?),
        (None, every) => Box::new(Every::new(every.unwrap_or_default()).map_err(refused)?),
    };
    on_this_thread(Scheduler::run(args, plan, schedule))
}

struct Scheduler<'a> {
    args: &'a CronArgs,
    plan: Plan,
    schedule: Box<dyn Schedule>,
    rt: Runtime,
    coordinator: Coordinator,
    job: Job,
    signals: Signals,
    /// The missed slot that was told last.
    told: Option<WallTime>,
}

impl<'a> Scheduler<'a> {
    async fn run(args: &'a CronArgs, plan: Plan, schedule: Box<dyn Schedule>) -> Result<u8> {
        let rt = Runtime::system();
        let mut signals = Signals::listen()?;
        // A store that does not answer keeps nobody from going away.
        let (leases, records) = tokio::select! {
            biased;
            code = signals.fatal() => return Ok(code),
            opened = args.job.store.open_with_records(&rt) => opened?,
        };
        let records = records.ok_or_else(|| {
            let why = "--store: a majority of Redis, or session locks of PostgreSQL, keeps no records, and jobs need \
                       them: use one redis://HOST, sqlite:FILE, postgres:// without sessions, etcd:// or nats://";
            Error::new(Code::BadValue, why)
        })?;
        let builder = Coordinator::builder(leases, rt.clone()).records(records);
        let coordinator =
            builder.namespace(&args.job.store.namespace).owner(&owner()).build().map_err(refused)?;
        let job = args.built(&coordinator)?;
        let mut this = Self { args, plan, schedule, rt, coordinator, job, signals, told: None };
        let code = this.serve().await;
        settle(&this.rt, &this.coordinator).await;
        code
    }

    async fn serve(&mut self) -> Result<u8> {
        loop {
            let due = tokio::select! {
                biased;
                code = self.signals.fatal() => return Ok(code),
                due = self.job.due(&*self.schedule) => due,
            };
            match due {
                Ok(Due::Slot(slot)) => {
                    if let Some(code) = self.slot(slot).await? {
                        return Ok(code);
                    }
                }
                Ok(Due::Wait { pause, next, missed }) => {
                    self.say_missed(missed);
                    if self.args.once {
                        eprintln!("mainstay: nothing to run before {}", instant(next));
                        return Ok(self.not_run());
                    }
                    if let Some(code) = self.rest(pause).await {
                        return Ok(code);
                    }
                }
                Ok(_) => {
                    eprintln!("mainstay: the schedule has ended");
                    return Ok(0);
                }
                Err(error) => {
                    if let Some(code) = self.trouble(error).await? {
                        return Ok(code);
                    }
                }
            }
        }
    }

    fn not_run(&self) -> u8 {
        self.args.conflict_exit_code.unwrap_or(EXIT_NOT_ACQUIRED)
    }

    fn say_missed(&mut self, missed: Option<WallTime>) {
        if let Some(slot) = missed.filter(|_| missed != self.told) {
            self.told = missed;
            eprintln!("mainstay: the slot {} was missed and is dropped", instant(slot));
        }
    }

    /// Waits; the exit code of a signal that came meanwhile.
    async fn rest(&mut self, pause: Duration) -> Option<u8> {
        tokio::select! {
            biased;
            code = self.signals.fatal() => Some(code),
            () = self.rt.clock().sleep(pause) => None,
        }
    }

    /// A store that fails for a while does not end a scheduler; misuse does, data that is damaged or newer does, and so
    /// does anything under --once.
    async fn trouble(&mut self, error: mainstay_coordination::Error) -> Result<Option<u8>> {
        let code = code(&error);
        if self.args.once || !error.is_retryable() {
            return Err(Error::with(code, "the job cannot be run", error));
        }
        let error = Error::with(code, "the job cannot be run now", error);
        eprintln!("mainstay: {}: {}; trying again", code.name(), error.chain());
        Ok(self.rest(AGAIN).await)
    }

    /// Takes a slot and runs the command; an exit code when that is the end.
    async fn slot(&mut self, slot: WallTime) -> Result<Option<u8>> {
        let started = tokio::select! {
            biased;
            code = self.signals.fatal() => return Ok(Some(code)),
            started = self.job.start(slot, Deadline::NONE) => started,
        };
        let (dropped, why) = match started {
            Ok(Start::Go(turn)) => return self.command(slot, Right::Turn(turn)).await,
            Ok(Start::Taken) => (false, "another one took it".to_owned()),
            Ok(Start::Superseded) => (true, "a later slot was taken meanwhile; it is dropped".to_owned()),
            Ok(Start::Overlapped { holder }) => {
                (true, format!("an earlier run goes on at {holder}; it is dropped"))
            }
            Ok(Start::Kept { remaining }) => {
                let left = remaining.as_millis();
                (true, format!("the time of an earlier run is kept for another {left} ms; it is dropped"))
            }
            Ok(_) => (true, "it cannot be run".to_owned()),
            Err(error) => return self.trouble(error).await,
        };
        // Of those who share a job one alone drops a slot: nobody else would tell.
        if dropped || self.args.once {
            eprintln!("mainstay: not run for {}: {why}", instant(slot));
        }
        Ok(self.args.once.then(|| self.not_run()))
    }

    async fn command(&mut self, slot: WallTime, right: Right) -> Result<Option<u8>> {
        let ready = self.plan.prepare()?;
        let kept = self.plan.variables.len();
        self.plan.variables.push(("MAINSTAY_CRON_SLOT", instant(slot)));
        self.plan.variables.extend(told(&self.rt, &right));
        let ran = self.plan.run(right, ready, &mut self.signals).await;
        self.plan.variables.truncate(kept);
        let code = ran?;
        if self.args.once || self.signals.asked_to_end() {
            return Ok(Some(code));
        }
        if code != 0 {
            eprintln!("mainstay: the run for {} ended with {code}", instant(slot));
        }
        Ok(None)
    }
}

impl CronArgs {
    fn built(&self, coordinator: &Coordinator) -> Result<Job> {
        let missed = match self.missed {
            MissedArg::RunLatest => Missed::RunLatest,
            MissedArg::Skip => Missed::Skip,
        };
        let overlap = match self.overlap {
            OverlapArg::Skip => Overlap::Skip,
            OverlapArg::Wait => Overlap::Wait,
        };
        let mut job = coordinator.cron(&self.name).ttl(self.job.ttl).note(&self.job.note);
        job = job.missed(missed).overlap(overlap).late(self.late);
        if let Some(limit) = self.at_most {
            job = job.at_most(limit);
        }
        if let Some(least) = self.at_least {
            job = job.at_least(least);
        }
        job.build().map_err(refused)
    }
}
