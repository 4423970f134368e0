//! MariaDB: a primary, and replicas that follow it by GTID.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::process::{finish, guarded, patiently};
use super::{Launch, Server, find};

/// How long an orderly stop may take before it is a kill.
const QUIT: Duration = Duration::from_secs(5);
/// Whoever comes over loopback may do everything: the users that an installation makes are for a socket.
const USERS: &str =
    "FLUSH PRIVILEGES;\nCREATE USER root@'127.%';\nGRANT ALL ON *.* TO root@'127.%' WITH GRANT OPTION;\n";
/// Small, local, and every transaction in a log that replicas of replicas can follow.
const SETTINGS: [&str; 12] = [
    "--no-defaults",
    "--binlog-format=ROW",
    "--log-bin=bin",
    "--log-slave-updates=1",
    "--sync-binlog=1",
    "--skip-name-resolve",
    "--performance-schema=OFF",
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=8M",
    "--slave-net-timeout=2",
    "--key-buffer-size=1M",
    "--aria-pagecache-buffer-size=1M",
];

/// MariaDB's programs, and one empty database that every server starts as a copy of. Clones share it.
///
/// ```no_run
/// use mainstay_sim::servers::MariaDbKit;
///
/// let Some(kit) = MariaDbKit::new().unwrap() else { return };
/// let mut primary = kit.primary(1, &[]).unwrap();
/// let replica = primary.replica(2, &[]).unwrap();
/// primary.sql("create database shop").unwrap();
/// replica.caught_up(&primary).unwrap();
/// primary.kill().unwrap();
/// replica.promote().unwrap();
/// ```
#[derive(Clone)]
pub struct MariaDbKit {
    server: PathBuf,
    client: PathBuf,
    template: Arc<TempDir>,
}

impl fmt::Debug for MariaDbKit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MariaDbKit").field("server", &self.server).finish_non_exhaustive()
    }
}

impl MariaDbKit {
    /// Finds the programs and makes the database; none when MariaDB is not installed.
    ///
    /// # Errors
    /// `mariadb-install-db` fails; the text has what it said.
    pub fn new() -> io::Result<Option<Self>> {
        let programs = (find("mariadbd"), find("mariadb"), find("mariadb-install-db"));
        let (Some(server), Some(client), Some(install)) = programs else { return Ok(None) };
        let template = tempfile::Builder::new().prefix("mainstay-").tempdir()?;
        let users = template.path().join("users.sql");
        std::fs::write(&users, USERS)?;
        std::fs::create_dir(template.path().join("data"))?;
        let mut command = guarded(&install, template.path())?;
        command.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        command.args(["--innodb-log-file-size=8M", "--innodb-undo-tablespaces=0"]);
        command.arg(format!("--datadir={}", template.path().join("data").display()));
        finish(command.arg(format!("--extra-file={}", users.display())).current_dir(template.path()))?;
        Ok(Some(Self { server, client, template: Arc::new(template) }))
    }

    /// Starts a primary with this server id and these arguments after the usual ones.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn primary(&self, id: u32, more: &[&str]) -> io::Result<MariaDb> {
        let server = Server::start(&self.server, |setup| {
            let mut args: Vec<OsString> = SETTINGS.map(Into::into).to_vec();
            args.push(format!("--server-id={id}").into());
            args.push(format!("--bind-address={}", setup.address.ip()).into());
            args.push(format!("--port={}", setup.address.port()).into());
            args.push(format!("--datadir={}", setup.dir.join("data").display()).into());
            args.push(format!("--socket={}", setup.dir.join("socket").display()).into());
            args.push(format!("--tmpdir={}", setup.dir.display()).into());
            let data = self.template.path().join("data");
            Launch::new().args(args).args(more).folder("data", data)
        })?;
        let database = MariaDb { kit: self.clone(), server };
        database.answers()?;
        Ok(database)
    }
}

/// A running MariaDB, primary or replica. Dropped, it is ended and its folder removed.
#[derive(Debug)]
pub struct MariaDb {
    kit: MariaDbKit,
    server: Server,
}

impl MariaDb {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Its address, for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mysql://root@{}/mysql", self.address())
    }

    /// The end of its log.
    #[must_use]
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// Runs statements and gives the rows: columns parted by tabs, no headers.
    ///
    /// # Errors
    /// What the client said.
    pub fn sql(&self, text: &str) -> io::Result<String> {
        let (ip, port) = (self.address().ip().to_string(), self.address().port().to_string());
        let mut command = Command::new(&self.kit.client);
        command.args(["--no-defaults", "-h", &ip, "-P", &port, "-u", "root", "-BN", "--connect-timeout=60"]);
        Ok(finish(command.args(["-e", text]))?.trim_end().to_owned())
    }

    /// Starts a replica with this server id, and waits until it has what this one has.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn replica(&self, id: u32, more: &[&str]) -> io::Result<Self> {
        self.replica_through(self.address(), id, more)
    }

    /// Starts a replica that follows this one through `address`, a proxy that can be cut.
    ///
    /// # Errors
    /// As [`replica`](Self::replica).
    pub fn replica_through(&self, address: SocketAddr, id: u32, more: &[&str]) -> io::Result<Self> {
        let replica = self.kit.primary(id, more)?;
        replica.follow(address)?;
        replica.caught_up(self)?;
        Ok(replica)
    }

    /// Follows `address` from now on, from where it is, and refuses writes of users.
    ///
    /// # Errors
    /// It does not answer.
    pub fn follow(&self, address: SocketAddr) -> io::Result<()> {
        self.sql(&format!(
            "stop slave; set global read_only = 1; change master to master_host = '{}', master_port = {}, \
             master_user = 'root', master_use_gtid = slave_pos, master_connect_retry = 1; start slave",
            address.ip(),
            address.port()
        ))
        .map(drop)
    }

    /// Makes a replica a primary with what it has.
    ///
    /// # Errors
    /// It does not answer.
    pub fn promote(&self) -> io::Result<()> {
        self.sql("stop slave; reset slave all; set global read_only = 0").map(drop)
    }

    /// Waits until it has applied what `primary` has written by now.
    ///
    /// # Errors
    /// It has not within a minute.
    pub fn caught_up(&self, primary: &Self) -> io::Result<()> {
        let wanted = primary.sql("select @@gtid_binlog_pos")?;
        self.wait("it has caught up", |database| {
            Ok(database.sql(&format!("select master_gtid_wait('{wanted}', 0.2)"))? == "0")
        })
    }

    fn answers(&self) -> io::Result<()> {
        self.wait("it answers", |database| database.sql("select 1").map(|_| true))
    }

    fn wait(&self, what: &str, done: impl Fn(&Self) -> io::Result<bool>) -> io::Result<()> {
        patiently(&format!("MariaDB: {what}"), || done(self), || self.log())
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

    /// Ends it at once, as a crash of the machine does to programs; what was written to files stays.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        self.server.kill()
    }

    /// Starts it again where it was, and waits until it answers.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.server.restart()?;
        self.answers()
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        // A paused one hears nothing.
        let _ = self.resume();
        if self.server.signal(rustix::process::Signal::TERM).is_err() || !self.server.ended_within(QUIT) {
            let _ = self.kill();
        }
    }
}
