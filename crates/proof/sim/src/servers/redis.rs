//! Redis: a primary, and replicas that follow it.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use super::process::{finish, patiently};
use super::{Launch, Server, find};

/// Nothing on disk unless a test asks for it, and replicas come and go at once. A link that is silent is kept for a minute: a
/// machine that stands still must not end it, and one that is cut ends by itself.
const SETTINGS: [(&str, &str); 5] = [
    ("--save", ""),
    ("--daemonize", "no"),
    ("--repl-diskless-sync-delay", "0"),
    ("--repl-ping-replica-period", "1"),
    ("--repl-timeout", "60"),
];

/// Redis' programs. Clones are the same.
///
/// ```no_run
/// use mainstay_sim::servers::RedisKit;
///
/// let Some(kit) = RedisKit::new() else { return };
/// let mut primary = kit.primary(&[]).unwrap();
/// let replicas = [primary.replica(&[]).unwrap(), primary.replica(&[]).unwrap()];
/// primary.command(&["SET", "k", "v"]).unwrap();
/// replicas[0].caught_up(&primary).unwrap();
/// primary.kill().unwrap();
/// replicas[0].promote().unwrap();
/// replicas[1].follow(replicas[0].address()).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct RedisKit {
    server: PathBuf,
    cli: PathBuf,
}

impl RedisKit {
    /// Finds the programs; none when Redis is not installed.
    #[must_use]
    pub fn new() -> Option<Self> {
        Some(Self { server: find("redis-server")?, cli: find("redis-cli")? })
    }

    /// Starts a primary with these arguments after the usual ones.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn primary(&self, more: &[&str]) -> io::Result<Redis> {
        let server = Server::start(&self.server, |setup| {
            let (ip, port) = (setup.address.ip().to_string(), setup.address.port().to_string());
            let mut args: Vec<OsString> = ["--bind", &ip, "--port", &port].map(Into::into).to_vec();
            args.extend(SETTINGS.iter().flat_map(|(name, value)| [name.into(), value.into()]));
            Launch::new().args(args).args(more)
        })?;
        Ok(Redis { kit: self.clone(), server })
    }
}

/// A running Redis, primary or replica. Dropped, it is killed and its folder removed.
#[derive(Debug)]
pub struct Redis {
    kit: RedisKit,
    server: Server,
}

impl Redis {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Its address, for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}/", self.address())
    }

    /// The end of its log.
    #[must_use]
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// Runs one command and gives the reply as text, lines without carriage returns.
    ///
    /// # Errors
    /// What `redis-cli` or the server said.
    pub fn command(&self, words: &[&str]) -> io::Result<String> {
        let (ip, port) = (self.address().ip().to_string(), self.address().port().to_string());
        let mut command = Command::new(&self.kit.cli);
        let text = finish(command.args(["-e", "-h", &ip, "-p", &port]).args(words))?;
        Ok(text.replace('\r', "").trim_end().to_owned())
    }

    /// One line of `INFO replication`; empty when there is none of this name.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn replication(&self, field: &str) -> io::Result<String> {
        let info = self.command(&["INFO", "replication"])?;
        let mut lines = info.lines().filter_map(|line| line.split_once(':'));
        Ok(lines.find(|(name, _)| *name == field).map(|(_, value)| value.to_owned()).unwrap_or_default())
    }

    /// Starts a replica, and waits until it has what this one has.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn replica(&self, more: &[&str]) -> io::Result<Self> {
        self.replica_through(self.address(), more)
    }

    /// Starts a replica that follows this one through `address`, a proxy that can be cut.
    ///
    /// # Errors
    /// As [`replica`](Self::replica).
    pub fn replica_through(&self, address: SocketAddr, more: &[&str]) -> io::Result<Self> {
        let replica = self.kit.primary(more)?;
        replica.follow(address)?;
        replica.linked()?;
        Ok(replica)
    }

    /// Follows `address` from now on. What it has and that one has not is thrown away.
    ///
    /// # Errors
    /// It does not answer.
    pub fn follow(&self, address: SocketAddr) -> io::Result<()> {
        self.command(&["REPLICAOF", &address.ip().to_string(), &address.port().to_string()]).map(drop)
    }

    /// Makes a replica a primary with what it has.
    ///
    /// # Errors
    /// It does not answer.
    pub fn promote(&self) -> io::Result<()> {
        self.command(&["REPLICAOF", "NO", "ONE"]).map(drop)
    }

    /// Waits until it is connected to its primary and has been brought up to date once.
    ///
    /// # Errors
    /// It is not within a minute.
    pub fn linked(&self) -> io::Result<()> {
        self.wait("it follows", |redis| Ok(redis.replication("master_link_status")? == "up"))
    }

    /// Waits until it has applied what `primary` has written by now.
    ///
    /// # Errors
    /// It has not within a minute.
    pub fn caught_up(&self, primary: &Self) -> io::Result<()> {
        let (id, wanted) =
            (primary.replication("master_replid")?, primary.replication("master_repl_offset")?);
        let wanted: u64 = wanted.parse().map_err(io::Error::other)?;
        self.wait("it has caught up", |redis| {
            let applied = redis.replication("slave_repl_offset")?.parse().unwrap_or(0_u64);
            Ok(redis.replication("master_replid")? == id && applied >= wanted)
        })
    }

    fn wait(&self, what: &str, done: impl Fn(&Self) -> io::Result<bool>) -> io::Result<()> {
        patiently(&format!("Redis: {what}"), || done(self), || self.log())
    }

    /// Stops its clock: connections stay open and nothing answers.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&self) -> io::Result<()> {
        self.server.pause()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It has ended.
    pub fn resume(&self) -> io::Result<()> {
        self.server.resume()
    }

    /// Ends it at once, as a crash of the machine does.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        self.server.kill()
    }

    /// Starts it again where it was, as a primary, with what it had kept on disk.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.server.restart()
    }
}
