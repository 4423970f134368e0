//! A private PostgreSQL for the rival that needs one: started here, stopped on drop.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

/// A running server with its settings as shipped: synced commits.
pub(super) struct Postgres {
    bin: PathBuf,
    data: PathBuf,
    port: u16,
}

impl Postgres {
    /// Makes a cluster under `folder` and starts it.
    pub(super) fn start(folder: &Path) -> anyhow::Result<Self> {
        let bin = installed().context("PostgreSQL is not installed")?;
        let data = folder.join("postgres");
        std::fs::create_dir_all(&data)?;
        if is_root() {
            // The server refuses to run as root; its user must reach the folder.
            finish(Command::new("chown").arg("postgres").arg(&data))?;
            finish(Command::new("chmod").arg("a+x").arg(folder))?;
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let new = Self { bin, data, port };
        finish(new.command("initdb").args(["-A", "trust", "-U", "postgres", "-D"]).arg(&new.data))?;
        let settings = format!("-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=");
        let log = new.data.join("log");
        let mut start = new.command("pg_ctl");
        start.args(["start", "-w", "-t", "30", "-o", &settings, "-l"]).arg(&log).arg("-D").arg(&new.data);
        finish(&mut start)?;
        Ok(new)
    }

    /// The address of its database.
    pub(super) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// One of its programs, as the user it insists on.
    fn command(&self, name: &str) -> Command {
        let program = self.bin.join(name);
        let mut command = if is_root() { Command::new("runuser") } else { Command::new(&program) };
        if is_root() {
            command.args(["-u", "postgres", "--"]).arg(&program);
        }
        command.current_dir("/");
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mut stop = self.command("pg_ctl");
        stop.args(["stop", "-m", "immediate", "-D"]).arg(&self.data);
        if let Err(e) = finish(&mut stop) {
            eprintln!("PostgreSQL on port {} did not stop: {e:#}", self.port);
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The newest installed version's programs.
fn installed() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<PathBuf> =
        versions.flatten().map(|v| v.path().join("bin")).filter(|b| b.join("initdb").exists()).collect();
    found.sort();
    found.pop()
}

fn finish(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("{command:?} cannot be started"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
