//! The command line: stdout is data, stderr is talk, exit code 2 is usage or configuration.

mod audit;
mod client;
mod config;
mod cron;
mod doctor;
mod lease;
mod lock;
mod notify;
mod output;
mod progress;
mod reload;
mod replica;
mod ring;
mod saga;
mod serve;
mod session;
mod store;
mod token;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
pub(crate) use client::segment;
pub(crate) use output::Output;

use crate::error::{Code, Error, Result};
use crate::{demo, hold};

/// Durable sagas, retries, breakers and locks: everything between a service and its next failure.
#[derive(Debug, Parser)]
#[command(name = "mainstay", version, max_term_width = 100)]
struct Cli {
    /// End with the process that has this id; the demo's children are started with it.
    #[arg(long, hide = true, value_name = "PID")]
    die_with: Option<u32>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a node: the API and the engine over one data folder.
    Serve(serve::Args),
    /// Start, list, show and move sagas of a running node.
    Saga(saga::Args),
    /// Place keys on nodes: plan, compare, simulate and check placements. Works on files, without a node.
    Ring(ring::Args),
    /// Compare and replay copies of what nodes tell each other: of running nodes, and in files.
    Replica(replica::Args),
    /// Run a command while holding a lock.
    Lock(lock::LockArgs),
    /// Run a command while reading or writing under a lock of many readers or one writer.
    Rwlock(lock::RwArgs),
    /// Run a command while holding permits of a semaphore.
    Sem(lock::SemArgs),
    /// Run a command while leading an election.
    Elect(lock::ElectArgs),
    /// Run a command at the slots of a schedule: of many that share the job, one runs each slot.
    Cron(cron::CronArgs),
    /// List, inspect and break leases.
    Lease(lease::Args),
    /// Look into session tokens, and at the nodes that sessions read from.
    Session(session::Args),
    /// Check this machine, or with --live a running node.
    Doctor(doctor::Args),
    /// Check and show the configuration.
    Config(config::Args),
    /// Export the audit of a node, or check its chain.
    Audit(audit::Args),
    /// Make, list and revoke tokens of a data folder.
    Token(token::Args),
    /// Prove it: a thousand orders through three services under faults and kill -9, then an audit.
    Demo(demo::Args),
    /// A service of the demo.
    #[command(hide = true)]
    DemoService(demo::ParticipantArgs),
    /// The command under a lease, before it is executed.
    #[command(hide = true)]
    HoldExec(hold::ExecArgs),
    /// Ends a job whose lease is lost.
    #[command(hide = true)]
    HoldWatchdog(hold::WatchdogArgs),
    /// Explain an error code such as MS0004.
    Explain {
        /// The code; without one: every code with its title.
        code: Option<String>,
    },
    /// Print a completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write the pages of all commands.
    Man {
        /// Writes mainstay.1, mainstay-saga.1 and so on into this folder.
        #[arg(long)]
        dir: Option<std::path::PathBuf>,
    },
}

/// Usage and configuration errors.
const EXIT_USAGE: u8 = 2;

/// Runs the command line of this process.
pub(crate) fn main() -> ExitCode {
    mainstay_saga::http::install_tls();
    let cli = Cli::parse();
    if let Some(parent) = cli.die_with
        && let Err(error) = crate::process::die_with_parent(parent)
    {
        eprintln!("mainstay: {}: {}", error.code().name(), error.chain());
        return ExitCode::FAILURE;
    }
    let result = match cli.verb {
        Verb::Demo(args) => demo::run(&args),
        Verb::DemoService(args) => demo::run_participant(&args),
        Verb::Serve(args) => serve::run(&args),
        Verb::Saga(args) => saga::run(&args),
        Verb::Ring(args) => ring::run(&args),
        Verb::Replica(args) => replica::run(&args),
        Verb::Lock(args) => lock::lock(&args),
        Verb::Rwlock(args) => lock::rwlock(&args),
        Verb::Sem(args) => lock::sem(&args),
        Verb::Elect(args) => lock::elect(&args),
        Verb::Cron(args) => cron::run(&args),
        Verb::Lease(args) => lease::run(&args),
        Verb::HoldExec(args) => hold::exec(&args),
        Verb::HoldWatchdog(args) => hold::watchdog(&args),
        Verb::Session(args) => session::run(&args),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Config(args) => config::run(&args),
        Verb::Audit(args) => audit::run(&args),
        Verb::Token(args) => token::run(&args),
        Verb::Explain { code } => explain(code.as_deref()),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mainstay", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Verb::Man { dir } => man(dir.as_deref()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            error.tell();
            ExitCode::from(exit_code(error.code()))
        }
    }
}

/// 2 when the caller must change the command or the configuration, else 1.
fn exit_code(code: Code) -> u8 {
    match code {
        Code::UnknownKey
        | Code::BadValue
        | Code::ConfigUnreadable
        | Code::NoTokens
        | Code::NoTls
        | Code::TlsFiles
        | Code::PlacementInput
        | Code::TokensFile => EXIT_USAGE,
        _ => 1,
    }
}

/// Writes data to stdout. A reader that went away (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::with(Code::Internal, "cannot write to stdout", e))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn explain(code: Option<&str>) -> Result<ExitCode> {
    let Some(name) = code else {
        let lines: String = Code::all().map(|c| format!("{}  {}\n", c.name(), c.title())).collect();
        return print(&lines);
    };
    let Some(code) = Code::parse(name) else {
        let why = format!("`{name}` is not an error code; `mainstay explain` lists them");
        return Err(Error::new(Code::BadValue, why));
    };
    print(code.page())
}

fn man(dir: Option<&std::path::Path>) -> Result<ExitCode> {
    if let Some(dir) = dir {
        let failed = |e| Error::with(Code::BadValue, format!("cannot write to {}", dir.display()), e);
        std::fs::create_dir_all(dir).map_err(failed)?;
        clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command())
        .render(&mut page)
        .map_err(|e| Error::with(Code::Internal, "cannot render the manual page", e))?;
    print(&String::from_utf8_lossy(&page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
