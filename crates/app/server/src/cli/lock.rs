//! `lock`, `rwlock`, `sem` and `elect`: a command that runs only while a lease is held.

use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use mainstay_clock::{Deadline, Runtime};
use mainstay_coordination::lock::Builder;
use mainstay_coordination::{ConfigError, Coordinator, ErrorKind, Lock};

use super::store::{StoreArgs, duration, store_code};
use crate::api::instant;
use crate::error::{Code, Error, Result};
use crate::hold::{OnLost, Plan, Right, Signals};

/// Not acquired in time; the code of timeout and flock.
pub(super) const EXIT_NOT_ACQUIRED: u8 = 124;
/// The wrapper failed: the store refused, the watchdog is gone.
const EXIT_FAILED: u8 = 125;
/// Before this much waiting nobody wants to read about it.
const QUIET: Duration = Duration::from_millis(500);

/// The command, its lease, and how it ends.
#[derive(Debug, clap::Args)]
pub(super) struct JobArgs {
    /// How long the lease lasts without renewal; it is renewed after each third.
    #[arg(long, default_value = "15s", value_parser = duration, value_name = "DURATION")]
    pub(super) ttl: Duration,
    /// Between TERM and KILL, when the lease is lost: the command is told so long before the lease ends.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub(super) grace: Duration,
    /// What happens to the command when the lease is lost.
    #[arg(long, value_enum, default_value_t)]
    pub(super) on_lost: OnLost,
    /// Shown to others beside the holder.
    #[arg(long, default_value = "")]
    pub(super) note: String,
    #[command(flatten)]
    pub(super) store: StoreArgs,
    /// A command line for sh, in place of the words of a command.
    #[arg(short = 'c', long, value_name = "LINE", conflicts_with = "command")]
    command_line: Option<String>,
    /// The command and its arguments, started as they are, without a shell.
    #[arg(last = true, required_unless_present = "command_line", value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Options of every command that waits for a lease.
#[derive(Debug, clap::Args)]
struct HoldArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Give up waiting after this time, with exit code 124; without it: wait for as long as it takes.
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION", conflicts_with = "no_wait")]
    wait: Option<Duration>,
    /// Do not wait at all.
    #[arg(short = 'n', long)]
    no_wait: bool,
    /// The exit code in place of 124.
    #[arg(short = 'E', long, value_name = "CODE")]
    conflict_exit_code: Option<u8>,
}

/// Arguments of `lock`.
#[derive(Debug, clap::Args)]
pub(crate) struct LockArgs {
    /// The lock.
    name: String,
    #[command(flatten)]
    hold: HoldArgs,
}

/// Arguments of `rwlock`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("share").required(true))]
pub(crate) struct RwArgs {
    /// The lock.
    name: String,
    /// Share it with other readers.
    #[arg(long, group = "share")]
    read: bool,
    /// Hold it alone. A waiting writer stops new readers.
    #[arg(long, group = "share")]
    write: bool,
    #[command(flatten)]
    hold: HoldArgs,
}

/// Arguments of `sem`.
#[derive(Debug, clap::Args)]
pub(crate) struct SemArgs {
    /// The semaphore.
    name: String,
    /// How many commands may run at once; the same for all who use the name.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    hold: HoldArgs,
}

/// Arguments of `elect`.
#[derive(Debug, clap::Args)]
pub(crate) struct ElectArgs {
    /// The election.
    name: String,
    #[command(flatten)]
    hold: HoldArgs,
}

/// Runs `lock`.
pub(crate) fn lock(args: &LockArgs) -> Result<ExitCode> {
    under_lock(&args.name, &args.hold, |c| c.mutex(&args.name))
}

/// Runs `rwlock`.
pub(crate) fn rwlock(args: &RwArgs) -> Result<ExitCode> {
    under_lock(&args.name, &args.hold, |c| if args.write { c.write(&args.name) } else { c.read(&args.name) })
}

/// Runs `sem`.
pub(crate) fn sem(args: &SemArgs) -> Result<ExitCode> {
    under_lock(&args.name, &args.hold, |c| c.semaphore(&args.name, args.limit))
}

fn under_lock(name: &str, hold: &HoldArgs, kind: impl Fn(&Coordinator) -> Builder) -> Result<ExitCode> {
    run(name, hold, async |coordinator| {
        let mut lock = kind(&coordinator).ttl(hold.job.ttl).note(&hold.job.note);
        // Who waits is served in the order in which it came, wherever the store knows that order.
        if coordinator.guarantees().native.contains(&"line") {
            lock = lock.fair();
        }
        let lock = lock.build().map_err(refused)?;
        if hold.no_wait {
            return Ok(lock.try_acquire().await.map(Right::Lock));
        }
        let asked = lock.acquire(hold.until(&Runtime::system()));
        Ok(announced(async || holders(&lock).await, asked).await.map(Right::Lock))
    })
}

/// Who holds it, as far as the store says.
async fn holders(lock: &Lock) -> Vec<String> {
    let stats = lock.stats().await.unwrap_or_default();
    stats.iter().flat_map(|s| &s.info().holders).map(|h| h.owner.clone()).collect()
}

/// Runs `elect`.
pub(crate) fn elect(args: &ElectArgs) -> Result<ExitCode> {
    let hold = &args.hold;
    run(&args.name, hold, async |coordinator| {
        let election = coordinator.election(&args.name).ttl(hold.job.ttl).note(&hold.job.note);
        let election = election.build().map_err(refused)?;
        let limit = if hold.no_wait { Duration::ZERO } else { hold.wait.unwrap_or(Duration::MAX) };
        let limit = Deadline::after(Runtime::system().clock().now(), limit);
        let leader = async || {
            let leader = election.leader().await.ok().flatten();
            leader.map(|leader| leader.owner).into_iter().collect::<Vec<_>>()
        };
        Ok(announced(leader, election.campaign(limit)).await.map(Right::Term))
    })
}

pub(super) fn refused(error: ConfigError) -> Error {
    Error::with(Code::BadValue, "the lease cannot be asked for", error)
}

type Asked = std::result::Result<Right, mainstay_coordination::Error>;

/// Says who stands in the way when the wait is long enough to be noticed, and when it was in vain: who stands in line
/// is told its place, not who is in front.
async fn announced<T>(
    who: impl AsyncFn() -> Vec<String>,
    ask: impl Future<Output = std::result::Result<T, mainstay_coordination::Error>>,
) -> std::result::Result<T, mainstay_coordination::Error> {
    let mut ask = std::pin::pin!(ask);
    let quiet = Runtime::system().clock().sleep(QUIET);
    let at_once = tokio::select! {
        biased;
        asked = &mut ask => Some(asked),
        () = quiet => None,
    };
    let asked = match at_once {
        Some(asked) => asked,
        None => {
            // Beside the wait, which a store that answers slowly does not make longer.
            let told = async {
                for owner in who().await {
                    eprintln!("mainstay: waiting for {owner}");
                }
                std::future::pending().await
            };
            tokio::select! {
                biased;
                asked = &mut ask => asked,
                never = told => never,
            }
        }
    };
    if asked.as_ref().is_err_and(|e| *e.kind() == ErrorKind::TimedOut { holder: None }) {
        for owner in who().await {
            eprintln!("mainstay: held by {owner}");
        }
    }
    asked
}

impl HoldArgs {
    fn until(&self, rt: &Runtime) -> Deadline {
        self.wait.map_or(Deadline::NONE, |d| Deadline::after(rt.clock().now(), d))
    }

    fn not_acquired(&self) -> u8 {
        self.conflict_exit_code.unwrap_or(EXIT_NOT_ACQUIRED)
    }
}

impl JobArgs {
    pub(super) fn plan(&self, name: &str) -> Result<Plan> {
        if self.grace >= self.ttl / 2 {
            let why = format!(
                "--grace {} must be less than half of --ttl {}: the command is told so long before the lease ends",
                humantime::format_duration(self.grace),
                humantime::format_duration(self.ttl),
            );
            return Err(Error::new(Code::BadValue, why));
        }
        let words = match &self.command_line {
            Some(line) => vec!["sh".into(), "-c".into(), line.into()],
            None => self.command.clone(),
        };
        let variables = vec![("MAINSTAY_LOCK_NAME", name.to_owned())];
        Ok(Plan { words, variables, grace: self.grace, on_lost: self.on_lost })
    }
}

fn run<A>(name: &str, hold: &HoldArgs, ask: A) -> Result<ExitCode>
where
    A: AsyncFnOnce(Coordinator) -> Result<Asked>,
{
    let plan = hold.job.plan(name)?;
    on_this_thread(held(name, hold, plan, ask))
}

/// The exit code of what runs commands. On this thread, which lives as long as the wrapper: a command dies with the
/// thread that made it.
pub(super) fn on_this_thread(work: impl Future<Output = Result<u8>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::with(Code::Internal, "cannot start the runtime", e))?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    match result {
        Ok(code) => Ok(ExitCode::from(code)),
        // The caller can change these; everything else is the wrapper's failure.
        Err(error) if error.code() == Code::BadValue => Err(error),
        Err(error) => {
            error.tell();
            Ok(ExitCode::from(EXIT_FAILED))
        }
    }
}

async fn held<A>(name: &str, hold: &HoldArgs, mut plan: Plan, ask: A) -> Result<u8>
where
    A: AsyncFnOnce(Coordinator) -> Result<Asked>,
{
    let rt = Runtime::system();
    let mut signals = Signals::listen()?;
    let ready = plan.prepare()?;
    // A store that does not answer keeps nobody from going away.
    let store = tokio::select! {
        biased;
        code = signals.fatal() => return Ok(code),
        store = hold.job.store.open(&rt) => store?,
    };
    let builder = Coordinator::builder(store, rt.clone()).namespace(&hold.job.store.namespace);
    let coordinator = builder.owner(&owner()).build().map_err(refused)?;
    let asked = tokio::select! {
        biased;
        code = signals.fatal() => {
            settle(&rt, &coordinator).await;
            return Ok(code);
        }
        asked = ask(coordinator.clone()) => asked?,
    };
    let right = match asked {
        Ok(right) => right,
        Err(error) => {
            settle(&rt, &coordinator).await;
            return refusal(hold, error);
        }
    };
    let full = match &right {
        Right::Lock(_) => Some(format!("{}/{name}", hold.job.store.namespace)),
        Right::Term(_) => Some(format!("{}/election/{name}", hold.job.store.namespace)),
        // No other client has turns of a schedule.
        Right::Turn(_) => None,
    };
    if let Some(full) = full {
        match hold.job.store.variables(&rt, &full, right.token()).await {
            Ok(variables) => plan.variables.extend(variables),
            Err(error) => {
                drop(right);
                settle(&rt, &coordinator).await;
                return Err(error);
            }
        }
    }
    plan.variables.extend(told(&rt, &right));
    if matches!(right, Right::Term(_)) {
        plan.variables.push(("MAINSTAY_LEADER_TERM", right.token().to_string()));
    }
    let code = plan.run(right, ready, &mut signals).await;
    settle(&rt, &coordinator).await;
    code
}

/// What a command is told about its right.
pub(super) fn told(rt: &Runtime, right: &Right) -> Vec<(&'static str, String)> {
    let token = right.token().to_string();
    let left = right.deadline().remaining(rt.clock().now()).unwrap_or_default();
    let until = crate::api::instant(rt.clock().wall().saturating_add(left));
    vec![
        ("MAINSTAY_FENCING_TOKEN", token.clone()),
        ("FENCING_TOKEN", token),
        ("MAINSTAY_LEASE_DEADLINE", until),
    ]
}

/// What others see: the host and this process.
pub(super) fn owner() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}:{}", std::process::id())
}

/// Lets what was given up be given back, within reason: what is left ends by itself.
pub(super) async fn settle(rt: &Runtime, coordinator: &Coordinator) {
    const PATIENCE: Duration = Duration::from_secs(1);
    const LOOK: Duration = Duration::from_millis(2);
    let until = rt.clock().now().saturating_add(PATIENCE);
    while coordinator.in_background() > 0 && rt.clock().now() < until {
        rt.clock().sleep(LOOK).await;
    }
}

/// The code of a recipe's error.
pub(super) fn code(error: &mainstay_coordination::Error) -> Code {
    match error.kind() {
        ErrorKind::ApiMisuse => Code::BadValue,
        ErrorKind::Store(kind) => store_code(*kind),
        _ => Code::LeaseStore,
    }
}

/// The exit code of a lease that was not got.
fn refusal(hold: &HoldArgs, error: mainstay_coordination::Error) -> Result<u8> {
    match error.kind() {
        ErrorKind::Contended { holder, since, .. } => {
            let since = since.map_or(String::new(), |s| format!(" since {}", instant(s.at)));
            eprintln!("mainstay: not acquired: held by {holder}{since}");
        }
        ErrorKind::TimedOut { holder: Some(holder) } => {
            eprintln!("mainstay: not acquired in time: held by {holder}");
        }
        ErrorKind::TimedOut { holder: None } => eprintln!("mainstay: not acquired in time"),
        ErrorKind::ApiMisuse | ErrorKind::ConfigMismatch => {
            return Err(Error::with(Code::BadValue, "the lease was refused", error));
        }
        _ => return Err(Error::with(code(&error), "the lease was not acquired", error)),
    }
    Ok(hold.not_acquired())
}
