//! The command under the lease: a process group of its own, with the terminal when the wrapper has it.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitCode, ExitStatus};

use nix::sys::signal::{SigSet, Signal as Mask};
use rustix::process::{
    Pid, Signal, WaitOptions, getpgrp, getpid, kill_process, kill_process_group, set_child_subreaper,
    test_kill_process_group, waitpgid,
};
use rustix::termios::{isatty, tcgetpgrp, tcsetpgrp};

use crate::error::{Code, Error, Result};

/// The command cannot be run although it is there.
const EXIT_NOT_EXECUTABLE: u8 = 126;
/// There is no such command.
const EXIT_NOT_FOUND: u8 = 127;

/// Arguments of the hidden verb that becomes the command.
#[derive(Debug, clap::Args)]
pub(crate) struct ExecArgs {
    /// The wrapper.
    #[arg(long)]
    parent: u32,
    /// Take the terminal.
    #[arg(long)]
    foreground: bool,
    /// What to become.
    #[arg(last = true, required = true)]
    words: Vec<OsString>,
}

/// Becomes the command: dies with the wrapper, waits until it is watched, takes the terminal, executes.
pub(crate) fn exec(args: &ExecArgs) -> Result<ExitCode> {
    crate::process::die_with_parent(args.parent)?;
    if args.foreground {
        foreground(getpgrp());
    }
    // The wrapper sees the stop, has the watchdog watch this group, and continues it.
    kill_process(getpid(), Signal::STOP)
        .map_err(|e| Error::with(Code::Internal, "cannot wait for the wrapper", e))?;
    let [program, words @ ..] = args.words.as_slice() else {
        return Err(Error::new(Code::Internal, "no command"));
    };
    let error = Command::new(program).args(words).exec();
    eprintln!("mainstay: cannot run `{}`: {error}", program.display());
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    Ok(ExitCode::from(if missing { EXIT_NOT_FOUND } else { EXIT_NOT_EXECUTABLE }))
}

/// Gives the terminal to `group`. Background groups may do that only with TTOU blocked.
fn foreground(group: Pid) {
    let mut mask = SigSet::empty();
    mask.add(Mask::SIGTTOU);
    if mask.thread_block().is_ok() {
        // Without a terminal any more there is nothing to give.
        let _ = tcsetpgrp(std::io::stdin(), group);
        let _ = mask.thread_unblock();
    }
}

/// How the processes of the group changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// How the command itself ended.
    pub(super) ended: Option<ExitStatus>,
    /// The command was stopped.
    pub(super) stopped: bool,
}

/// A running command.
pub(super) struct Job {
    pub(super) group: Pid,
    /// Whether the terminal is ours to give.
    terminal: bool,
}

impl Job {
    /// Starts the command, stopped before its first instruction.
    ///
    /// Must run on the main thread: the command dies with the thread that made it.
    pub(super) fn start(words: &[OsString], variables: &[(&str, String)]) -> Result<Self> {
        let failed = |e: std::io::Error| Error::with(Code::Internal, "cannot start the command", e);
        // What the command leaves behind in its group comes to us, so that nothing stays undead.
        set_child_subreaper(Some(getpid())).map_err(|e| failed(e.into()))?;
        let stdin = std::io::stdin();
        let terminal = isatty(&stdin) && tcgetpgrp(&stdin).is_ok_and(|g| g == getpgrp());
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(["hold-exec", "--parent", &std::process::id().to_string()]);
        if terminal {
            command.arg("--foreground");
        }
        let child = command
            .arg("--")
            .args(words)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let group = group.ok_or_else(|| Error::new(Code::Internal, "the command has no process id"))?;
        Ok(Self { group, terminal })
    }

    pub(super) fn signal(&self, signal: Signal) {
        // A group that is gone needs none.
        let _ = kill_process_group(self.group, signal);
    }

    /// Whether a process of the group is left.
    pub(super) fn lives(&self) -> bool {
        test_kill_process_group(self.group).is_ok()
    }

    /// Collects what ended or stopped since the last time.
    pub(super) fn reap(&self) -> Changes {
        let mut changes = Changes::default();
        let options = WaitOptions::NOHANG | WaitOptions::UNTRACED;
        while let Ok(Some((pid, status))) = waitpgid(self.group, options) {
            if pid != self.group {
                continue;
            }
            if status.stopped() {
                changes.stopped = true;
            } else {
                changes.ended = Some(ExitStatus::from_raw(status.as_raw()));
            }
        }
        changes
    }

    /// The user stopped the command from the terminal: the wrapper stops too, so that the shell goes on.
    /// Returns when it was continued; the command is still stopped.
    pub(super) fn stop_with(&self) {
        if self.terminal {
            foreground(getpgrp());
        }
        // Stops this process here.
        let _ = kill_process(getpid(), Signal::STOP);
    }

    /// Continues a stopped command, with the terminal if the wrapper has it.
    pub(super) fn resume(&self) {
        if self.terminal && tcgetpgrp(std::io::stdin()).is_ok_and(|g| g == getpgrp()) {
            foreground(self.group);
        }
        self.signal(Signal::CONT);
    }

    /// Whether stopping is the business of a shell.
    pub(super) fn has_terminal(&self) -> bool {
        self.terminal
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.terminal {
            foreground(getpgrp());
        }
    }
}

/// The exit code that says how a command ended: its own, or 128 and the signal.
pub(super) fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}
