//! Runs a program and notes what it does to its files.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Trace;

/// The preloaded library.
const SHIM: &str = include_str!("shim.c");

/// An operation that is to fail.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "what the library understands")]
pub struct Fault {
    /// Whether syncs fail, or writes.
    pub sync: bool,
    /// How the paths of the files end that it is meant for.
    pub path_end: String,
    /// The first operation that fails, from 1.
    pub nth: u32,
    /// The system's error number.
    pub errno: i32,
    /// How many fail.
    pub times: u32,
}

/// Runs programs under the recording library.
#[derive(Debug)]
pub struct Recorder {
    library: PathBuf,
    trace: PathBuf,
    fault: Option<Fault>,
}

impl Recorder {
    /// Compiles the library into `dir`, which also gets the trace; both are named after nothing under test,
    /// so keep the watched folder apart.
    ///
    /// # Errors
    /// There is no C compiler, or it refuses.
    pub fn new(dir: &Path) -> io::Result<Self> {
        let (source, library) = (dir.join("shim.c"), dir.join("shim.so"));
        std::fs::write(&source, SHIM)?;
        let made = Command::new("cc")
            .args(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", "-o"])
            .args([&library, &source])
            .output()
            .map_err(|e| io::Error::new(e.kind(), format!("a C compiler called `cc` is needed: {e}")))?;
        if !made.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&made.stderr).into_owned()));
        }
        Ok(Self { library, trace: dir.join("trace"), fault: None })
    }

    /// The same with operations that fail.
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// Makes `command` note what it does under `root`. Programs that it starts are watched too.
    pub fn watch<'a>(&self, command: &'a mut Command, root: &Path) -> &'a mut Command {
        command.env("LD_PRELOAD", &self.library);
        command.env("POWER_CUT_ROOT", root).env("POWER_CUT_TRACE", &self.trace);
        if let Some(f) = &self.fault {
            let op = if f.sync { "sync" } else { "write" };
            let text = format!("{op} {} {} {} {}", f.path_end, f.nth, f.errno, f.times);
            command.env("POWER_CUT_FAULT", OsString::from(text));
        }
        command
    }

    /// How long the trace is now: whoever heard an answer before asking may hold the process to it from there.
    #[must_use]
    pub fn position(&self) -> u64 {
        std::fs::metadata(&self.trace).map_or(0, |m| m.len())
    }

    /// What was noted so far.
    ///
    /// # Errors
    /// The trace cannot be read, or is none.
    pub fn trace(&self) -> io::Result<Trace> {
        Trace::parse(&std::fs::read(&self.trace)?)
    }
}
