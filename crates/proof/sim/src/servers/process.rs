//! One server process and its folder.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mainstay_clock::os_boot_now;
use rustix::process::{Pid, Signal, getuid, kill_process_group};
use tempfile::TempDir;

use super::{find, free_address};

/// How often a start draws another port when the server gives up.
const STARTS: u32 = 5;
/// How long a server may take until it answers, on a machine that builds beside.
const READY: Duration = Duration::from_secs(60);
/// How long an orderly stop may take before it is a kill.
const STOP: Duration = Duration::from_secs(10);
/// How long a program that asks a server may take: far longer than any does, so that one that hangs is an error.
const ASK: Duration = Duration::from_secs(120);
/// Between two looks at a child.
const LOOK: Duration = Duration::from_millis(5);
/// Between two tries to start a server where it was.
const AGAIN: Duration = Duration::from_millis(200);
/// The user and group `nobody`: some servers refuse to run as root.
const NOBODY: u32 = 65_534;

/// Where a server is to live.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Setup<'a> {
    /// Its folder; the server may write there.
    pub dir: &'a Path,
    /// Where it is to listen.
    pub address: SocketAddr,
}

/// How a server is started.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    args: Vec<OsString>,
    files: Vec<(String, String)>,
    folders: Vec<(String, PathBuf)>,
}

impl Launch {
    /// Without arguments.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// A file to be written into the folder first.
    #[must_use]
    pub fn file(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.files.push((name.into(), text.into()));
        self
    }

    /// A folder to be copied into the folder first, with its owner and its permissions.
    #[must_use]
    pub fn folder(mut self, name: impl Into<String>, from: impl Into<PathBuf>) -> Self {
        self.folders.push((name.into(), from.into()));
        self
    }
}

/// A running server. Dropped, it is killed and its folder removed.
///
/// # Cancel safety
/// Nothing here is async.
#[derive(Debug)]
pub struct Server {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    child: Child,
    dir: TempDir,
    address: SocketAddr,
}

impl Server {
    /// Starts `program` and waits until it accepts connections. It dies with the calling thread.
    ///
    /// `configure` is called again with another address when the server ends before it answers.
    ///
    /// # Errors
    /// The program or `setpriv` cannot be started, or it ended five times, or it was not ready in a minute;
    /// the text has the end of its log.
    pub fn start(program: &Path, configure: impl Fn(&Setup<'_>) -> Launch) -> io::Result<Self> {
        let mut last = io::Error::other("never started");
        for _ in 0..STARTS {
            match Self::start_once(program, &configure) {
                Ok(server) => return Ok(server),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    fn start_once(program: &Path, configure: &impl Fn(&Setup<'_>) -> Launch) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("mainstay-").tempdir()?;
        let address = free_address()?;
        let launch = configure(&Setup { dir: dir.path(), address });
        for (name, text) in &launch.files {
            std::fs::write(dir.path().join(name), text)?;
            // PostgreSQL takes no key that others can read.
            std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(0o600))?;
        }
        for (name, from) in &launch.folders {
            let copied = Command::new("cp").arg("-a").arg(from).arg(dir.path().join(name)).status()?;
            if !copied.success() {
                return Err(io::Error::other(format!("cannot copy {}: {copied}", from.display())));
            }
        }
        let child = spawn(program, &launch.args, dir.path())?;
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (program, args) = (program.to_owned(), launch.args);
        let mut server = Self { name, program, args, child, dir, address };
        server.wait_ready()?;
        Ok(server)
    }

    /// Starts it again with the arguments, the folder and the address that it had, and waits until it accepts
    /// connections. It dies with the calling thread. One that gives up is tried again for a minute: what its earlier
    /// life forked may be dying still, with its memory and its locks.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill()?;
        let end = os_boot_now().saturating_add(READY);
        loop {
            self.child = spawn(&self.program, &self.args, self.dir.path())?;
            match self.wait_ready() {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && os_boot_now() < end => {
                    std::thread::park_timeout(AGAIN);
                }
                done => return done,
            }
        }
    }

    fn wait_ready(&mut self) -> io::Result<()> {
        let end = os_boot_now().saturating_add(READY);
        loop {
            if let Some(status) = self.child.try_wait()? {
                let text = format!("{} ended, {status}: {}", self.name, self.log());
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
            // Somebody who listens on every address answers, too, before our server finds the port taken.
            if listens(self.address)? && TcpStream::connect(self.address).is_ok() {
                return Ok(());
            }
            if os_boot_now() > end {
                return Err(io::Error::other(format!("{} is not ready: {}", self.name, self.log())));
            }
            std::thread::park_timeout(LOOK);
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The end of what it printed.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..]).into_owned()
    }

    /// Stops its clock: connections stay open and nothing answers.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It has ended.
    pub fn resume(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Ends it and what it forked at once, as a crash of the machine does. Its folder stays until it is dropped.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        // A group that has ended needs no signal; the child is waited for in any case.
        let _ = self.signal(Signal::KILL);
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Ends it in order, or by force after ten seconds.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn stop(&mut self) -> io::Result<()> {
        // A server that ended by itself is stopped too.
        let _ = self.signal(Signal::TERM);
        if self.ended_within(STOP) { Ok(()) } else { self.kill() }
    }

    /// Whether it has ended, after waiting for that at most so long.
    pub(super) fn ended_within(&mut self, patience: Duration) -> bool {
        let end = os_boot_now().saturating_add(patience);
        while !matches!(self.child.try_wait(), Ok(Some(_))) {
            if os_boot_now() > end {
                return false;
            }
            std::thread::park_timeout(LOOK);
        }
        true
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("no process"))?;
        Ok(kill_process_group(pid, signal)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that ended before is gone already.
        let _ = self.kill();
    }
}

/// Whether exactly this address is listened on. It was drawn for this process, so by nobody but its servers.
fn listens(address: SocketAddr) -> io::Result<bool> {
    let SocketAddr::V4(v4) = address else { return Err(io::Error::other("addresses of servers are IPv4")) };
    let ours = format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port());
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    // Number, local address, remote address, state: 0A listens.
    let mut rows = table.lines().map(|line| line.split_whitespace().skip(1));
    Ok(rows.any(|mut words| words.next() == Some(&ours) && words.nth(1) == Some("0A")))
}

/// What it prints is added to the log of its folder.
fn spawn(program: &Path, args: &[OsString], dir: &Path) -> io::Result<Child> {
    let log = File::options().create(true).append(true).open(dir.join("log"))?;
    let mut command = guarded(program, dir)?;
    command
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A group of its own: what the server forks is signalled with it.
        .process_group(0)
        .spawn()
}

/// `setpriv` gives the server a parent-death signal, and another user when we are root, without any code
/// between fork and exec.
pub(super) fn guarded(program: &Path, dir: &Path) -> io::Result<Command> {
    let setpriv = find("setpriv")
        .ok_or_else(|| io::Error::other("setpriv of util-linux is needed to guard servers of tests"))?;
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL"]);
    if getuid().is_root() {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
        chown(dir, Some(NOBODY), Some(NOBODY))?;
        for entry in std::fs::read_dir(dir)? {
            chown(entry?.path(), Some(NOBODY), Some(NOBODY))?;
        }
        let id = NOBODY.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
    }
    command.arg("--").arg(program);
    Ok(command)
}

/// Runs a program to its end and gives what it printed. One that hangs is killed and is an error.
pub(super) fn finish(command: &mut Command) -> io::Result<String> {
    // Files, so that nobody has to read while it is waited for.
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?).spawn()?;
    let end = os_boot_now().saturating_add(ASK);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if os_boot_now() > end {
            child.kill()?;
            break child.wait()?;
        }
        std::thread::park_timeout(LOOK);
    };
    let printed = text(&mut out)?;
    if status.success() {
        return Ok(printed);
    }
    let program = command.get_program().display();
    Err(io::Error::other(format!("{program}: {status}: {}{printed}", text(&mut err)?)))
}

fn text(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits until `done` says so, for a minute at most.
pub(super) fn patiently(
    what: &str,
    done: impl Fn() -> io::Result<bool>,
    log: impl Fn() -> String,
) -> io::Result<()> {
    let end = os_boot_now().saturating_add(READY);
    loop {
        let answer = done();
        if matches!(answer, Ok(true)) {
            return Ok(());
        }
        if os_boot_now() > end {
            return Err(io::Error::other(format!("not yet: {what}: {answer:?}: {}", log())));
        }
        std::thread::park_timeout(LOOK);
    }
}
