//! The processes of the demo. They die with it, whatever kills it.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use mainstay_clock::Runtime;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::error::{Code, Error, Result};

/// Longest start of a child.
const START: Duration = Duration::from_secs(60);
/// Longest graceful end of the node before it is killed: a crash has the same result.
const STOP: Duration = Duration::from_secs(10);

/// A child that serves HTTP. Killed when dropped.
pub(super) struct Server {
    child: Child,
    pub(super) address: SocketAddr,
}

impl Server {
    /// Starts this very program with `args` and waits until it says where it listens.
    ///
    /// Must run on the main thread: the child ends with the thread that made it.
    pub(super) async fn start(rt: &Runtime, args: &[String], log: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| Error::with(Code::Internal, "cannot start a child", e);
        let program = std::env::current_exe().map_err(failed)?;
        let mut child = Command::new(program)
            .args(["--die-with", &std::process::id().to_string()])
            .args(args)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let pipe = child.stderr.take().ok_or_else(|| Error::new(Code::Internal, "a child has no stderr"))?;
        let mut lines = BufReader::new(pipe).lines();
        let file = File::options().create(true).append(true).open(log).map_err(failed)?;
        let mut file = tokio::fs::File::from_std(file);
        let listening = async {
            while let Some(line) = lines.next_line().await.map_err(failed)? {
                file.write_all(format!("{line}\n").as_bytes()).await.map_err(failed)?;
                if let Some(address) = line.strip_prefix("mainstay: listening on http://") {
                    return address.parse().map_err(|_| Error::new(Code::Internal, "not an address"));
                }
            }
            let why = format!("a child ended before it listened; see {}", log.display());
            Err(Error::new(Code::Internal, why))
        };
        let address = within(rt, START, listening).await?;
        rt.spawn("child-log", async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if file.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, address })
    }

    /// kill -9.
    pub(super) async fn kill(mut self) -> Result<()> {
        self.child.kill().await.map_err(|e| Error::with(Code::Internal, "cannot kill a child", e))
    }

    /// SIGTERM, and kill -9 when that takes too long.
    pub(super) async fn stop(mut self, rt: &Runtime) -> Result<()> {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let ended = async {
            self.child.wait().await.map_err(|e| Error::with(Code::Internal, "a child cannot be awaited", e))
        };
        if within(rt, STOP, ended).await.is_err() {
            return self.kill().await;
        }
        Ok(())
    }
}

/// `work`, for at most `limit`.
pub(super) async fn within<T>(
    rt: &Runtime,
    limit: Duration,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        done = work => done,
        () = rt.clock().sleep(limit) => Err(Error::new(Code::Internal, format!("took longer than {limit:?}"))),
    }
}

/// What every start of a service or of the node needs.
pub(super) struct Places {
    /// Everything that is left as evidence.
    pub(super) evidence: PathBuf,
    /// The addresses of the proxies, in the order of the services.
    pub(super) origins: Vec<String>,
    pub(super) barrier: bool,
}

impl Places {
    pub(super) fn ledger(&self, service: &str) -> PathBuf {
        self.evidence.join(format!("{service}.db"))
    }

    pub(super) async fn service(&self, rt: &Runtime, name: &str) -> Result<Server> {
        let ledger = self.ledger(name).display().to_string();
        let mut args = vec!["demo-service", "--service", name, "--ledger", &ledger];
        if !self.barrier {
            args.push("--no-barrier");
        }
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        Server::start(rt, &args, &self.evidence.join(format!("{name}.log"))).await
    }

    pub(super) async fn node(&self, rt: &Runtime) -> Result<Server> {
        let path = |name: &str| self.evidence.join(name).display().to_string();
        let mut args = vec!["serve".to_owned(), "--data".to_owned(), path("node")];
        args.extend(["--listen".to_owned(), "127.0.0.1:0".to_owned()]);
        args.extend(["--definitions".to_owned(), path("definitions")]);
        for origin in &self.origins {
            args.extend(["--allow-participant".to_owned(), origin.clone()]);
        }
        Server::start(rt, &args, &self.evidence.join("node.log")).await
    }
}
