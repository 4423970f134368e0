//! PostgreSQL: a primary, and standbys that stream from it.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::os_boot_now;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::process::{finish, guarded};
use super::{FAKETIME, Launch, Server, find, library};

/// How long a server may recover, a promotion may take, or a standby may lag in an idle test.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an immediate shutdown may take before it is a kill.
const QUIT: Duration = Duration::from_secs(5);
/// Between two looks at a server.
const LOOK: Duration = Duration::from_millis(20);
/// The socket families of tests are the drawn loopback addresses only.
const HBA: &str = "host all all 127.0.0.0/8 trust\nhost replication all 127.0.0.0/8 trust\n";
/// Small, local, and with room for standbys.
const SETTINGS: [(&str, &str); 6] = [
    ("unix_socket_directories", ""),
    ("shared_buffers", "16MB"),
    ("wal_keep_size", "64MB"),
    ("max_wal_senders", "10"),
    ("wal_receiver_timeout", "2s"),
    ("wal_retrieve_retry_interval", "200ms"),
];

/// PostgreSQL's programs, and one empty cluster that every primary starts as a copy of. Clones share it.
///
/// ```no_run
/// use mainstay_sim::servers::PostgresKit;
///
/// let Some(kit) = PostgresKit::new().unwrap() else { return };
/// let primary = kit.primary(&[]).unwrap();
/// let standbys = [primary.standby(&[]).unwrap(), primary.standby(&[]).unwrap()];
/// primary.sql("create table t (n int)").unwrap();
/// standbys[0].promote().unwrap();
/// standbys[1].follow(standbys[0].address()).unwrap();
/// ```
#[derive(Clone)]
pub struct PostgresKit {
    bin: PathBuf,
    template: Arc<TempDir>,
}

impl fmt::Debug for PostgresKit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresKit").field("bin", &self.bin).finish_non_exhaustive()
    }
}

impl PostgresKit {
    /// Finds the programs and makes the cluster; none when PostgreSQL is not installed.
    ///
    /// # Errors
    /// `initdb` fails; the text has what it said.
    pub fn new() -> io::Result<Option<Self>> {
        // A link on the path leads to the folder where the other programs are.
        let Some(initdb) = find("initdb").and_then(|file| file.canonicalize().ok()) else { return Ok(None) };
        let bin = initdb.parent().unwrap_or(Path::new("/")).to_owned();
        let template = tempfile::Builder::new().prefix("mainstay-").tempdir()?;
        let mut command = guarded(&initdb, template.path())?;
        command.args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale", "C", "--no-sync", "-D"]);
        finish(command.arg(template.path().join("data")).current_dir(template.path()))?;
        Ok(Some(Self { bin, template: Arc::new(template) }))
    }

    /// Starts a primary with these settings on top of the usual ones: `fsync` and `synchronous_commit` are on
    /// unless they say otherwise.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn primary(&self, settings: &[(&str, &str)]) -> io::Result<Postgres> {
        self.start(&self.template.path().join("data"), settings)
    }

    /// Starts a primary that can encrypt, and lets the user `app` in only encrypted and with a certificate; `files` says
    /// for its address what `cert.pem`, `key.pem` and `ca.pem` are.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn secured(&self, files: impl Fn(SocketAddr) -> [String; 3]) -> io::Result<Postgres> {
        // Names are relative to the data folder.
        let settings = [
            ("ssl", "on"),
            ("ssl_cert_file", "../cert.pem"),
            ("ssl_key_file", "../key.pem"),
            ("ssl_ca_file", "../ca.pem"),
        ];
        let hba = format!(
            "hostssl all app 127.0.0.0/8 trust clientcert=verify-ca\nhostnossl all app 127.0.0.0/8 reject\n{HBA}"
        );
        self.start_with(&self.template.path().join("data"), (&settings, &hba), None, |address| {
            let [cert, key, ca] = files(address);
            vec![("cert.pem", cert), ("key.pem", key), ("ca.pem", ca)]
        })
    }

    /// Starts a primary under a preload of libfaketime: its wall clock is off by what the file says that comes with it,
    /// `+60s` or `-3600s`, read anew at every look. The clock of the machine is never set.
    ///
    /// # Errors
    /// As [`Server::start`]; libfaketime is not installed.
    pub fn shifted(&self) -> io::Result<(Postgres, PathBuf)> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "libfaketime is not installed");
        let fake = library(FAKETIME).ok_or_else(missing)?;
        let data = self.template.path().join("data");
        let postgres =
            self.start_with(&data, (&[], HBA), Some(&fake), |_| vec![("offset", "+0s".to_owned())])?;
        let file = postgres.server.dir().join("offset");
        Ok((postgres, file))
    }

    fn start(&self, data: &Path, settings: &[(&str, &str)]) -> io::Result<Postgres> {
        self.start_with(data, (settings, HBA), None, |_| Vec::new())
    }

    fn start_with(
        &self,
        data: &Path,
        (settings, rules): (&[(&str, &str)], &str),
        fake: Option<&Path>,
        files: impl Fn(SocketAddr) -> Vec<(&'static str, String)>,
    ) -> io::Result<Postgres> {
        let own = self.bin.join("postgres");
        let (program, fake) = match fake {
            None => (own.clone(), None),
            Some(library) => {
                let env = find("env").ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no `env`"))?;
                (env, Some(library))
            }
        };
        let server = Server::start(&program, |setup| {
            let (ip, port) = (setup.address.ip().to_string(), setup.address.port().to_string());
            let mut args: Vec<OsString> = Vec::new();
            if let Some(library) = fake {
                args.push(format!("LD_PRELOAD={}", library.display()).into());
                args.push(format!("FAKETIME_TIMESTAMP_FILE={}", setup.dir.join("offset").display()).into());
                args.extend(["FAKETIME_NO_CACHE=1", "DONT_FAKE_MONOTONIC=1"].map(Into::into));
                args.push(own.clone().into());
            }
            args.extend(["-D", "data", "-h", &ip, "-p", &port].map(OsString::from));
            let hba = setup.dir.join("hba").display().to_string();
            for (name, value) in SETTINGS.iter().chain(settings).chain(&[("hba_file", hba.as_str())]) {
                args.push("-c".into());
                args.push(format!("{name}={value}").into());
            }
            let launch = Launch::new().args(args).file("hba", rules).folder("data", data);
            files(setup.address).into_iter().fold(launch, |launch, (name, text)| launch.file(name, text))
        })?;
        let postgres = Postgres { kit: self.clone(), server };
        postgres.answers()?;
        Ok(postgres)
    }
}

/// A running PostgreSQL, primary or standby. Dropped, it is shut down at once and its folder removed.
#[derive(Debug)]
pub struct Postgres {
    kit: PostgresKit,
    server: Server,
}

impl Postgres {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Its database, for clients.
    #[must_use]
    pub fn url(&self) -> String {
        Self::url_at(self.address())
    }

    /// The database of a server that is reached through `address`: a proxy.
    #[must_use]
    pub fn url_at(address: SocketAddr) -> String {
        format!("postgres://postgres@{address}/postgres")
    }

    /// The end of its log.
    #[must_use]
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// `psql` on it: unaligned, without headers, ending at the first error. No statement takes longer than 100 seconds.
    #[must_use]
    pub fn psql(&self) -> Command {
        let mut command = Command::new(self.kit.bin.join("psql"));
        let (ip, port) = (self.address().ip().to_string(), self.address().port().to_string());
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres"]);
        command.args(["-h", &ip, "-p", &port]).env("PGCONNECT_TIMEOUT", "60");
        command.env("PGOPTIONS", "-c statement_timeout=100s");
        command
    }

    /// Runs statements and gives what `psql` printed.
    ///
    /// # Errors
    /// What `psql` said.
    pub fn sql(&self, text: &str) -> io::Result<String> {
        finish(self.psql().args(["-c", text]))
    }

    /// Starts a standby that streams from here.
    ///
    /// # Errors
    /// As [`Server::start`], and when the copy fails.
    pub fn standby(&self, settings: &[(&str, &str)]) -> io::Result<Self> {
        self.standby_through(self.address(), settings)
    }

    /// Starts a standby that streams from here through `address`, a proxy that can be cut.
    ///
    /// # Errors
    /// As [`standby`](Self::standby).
    pub fn standby_through(&self, address: SocketAddr, settings: &[(&str, &str)]) -> io::Result<Self> {
        let copy = tempfile::Builder::new().prefix("mainstay-").tempdir()?;
        let mut command = guarded(&self.kit.bin.join("pg_basebackup"), copy.path())?;
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        command.args(["-h", &ip, "-p", &port, "-U", "postgres", "-R", "-X", "stream", "-c", "fast"]);
        finish(command.args(["--no-sync", "-D", "data"]).current_dir(copy.path()))?;
        self.kit.start(&copy.path().join("data"), settings)
    }

    /// Lets a standby stream from `address` from now on.
    ///
    /// # Errors
    /// It does not answer.
    pub fn follow(&self, address: SocketAddr) -> io::Result<()> {
        let from = format!("host={} port={} user=postgres", address.ip(), address.port());
        self.sql(&format!("alter system set primary_conninfo = '{from}'"))?;
        self.sql("select pg_reload_conf()").map(drop)
    }

    /// Makes a standby the primary of a new timeline, and waits until it takes writes.
    ///
    /// # Errors
    /// It does not within a minute.
    pub fn promote(&self) -> io::Result<()> {
        let promoted = self.sql("select pg_promote(true, 60)")?;
        if promoted.trim() == "t" { Ok(()) } else { Err(io::Error::other("it was not promoted in time")) }
    }

    /// Waits until it has replayed what `primary` has written by now.
    ///
    /// # Errors
    /// It has not within a minute.
    pub fn caught_up(&self, primary: &Self) -> io::Result<()> {
        let position = primary.sql("select pg_current_wal_lsn()")?;
        let question = format!("select pg_last_wal_replay_lsn() >= '{}'", position.trim());
        self.wait("it has caught up", |p| p.sql(&question).map(|answer| answer.trim() == "t"))
    }

    /// Waits until a standby streams from nobody: what its dead or cut primary had sent has arrived.
    ///
    /// # Errors
    /// It still streams after a minute.
    pub fn stream_ended(&self) -> io::Result<()> {
        let question = "select count(*) from pg_stat_wal_receiver where status = 'streaming'";
        self.wait("its stream has ended", |p| p.sql(question).map(|answer| answer.trim() == "0"))
    }

    /// Waits until `done` says so, for a minute at most.
    fn wait(&self, what: &str, done: impl Fn(&Self) -> io::Result<bool>) -> io::Result<()> {
        let end = os_boot_now().saturating_add(PATIENCE);
        loop {
            let answer = done(self);
            if matches!(answer, Ok(true)) {
                return Ok(());
            }
            if os_boot_now() > end {
                let text = format!("PostgreSQL: not yet: {what}: {answer:?}: {}", self.log());
                return Err(io::Error::other(text));
            }
            std::thread::park_timeout(LOOK);
        }
    }

    /// Stops the process that writes the log behind those who do not wait for it: from here on it is written by nobody but
    /// whoever waits for a commit. [`resume`](Self::resume) lets it go on.
    ///
    /// # Errors
    /// It does not answer.
    pub fn stop_log_writer(&self) -> io::Result<()> {
        let pid = self.sql("select pid from pg_stat_activity where backend_type = 'walwriter'")?;
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("nobody writes the log"))?;
        Ok(kill_process(pid, Signal::STOP)?)
    }

    /// Stops its clock with that of all its processes: connections stay open and nothing answers.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&self) -> io::Result<()> {
        // The parent first: it forks no more then.
        self.server.pause()?;
        self.signal_children(Signal::STOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It has ended.
    pub fn resume(&self) -> io::Result<()> {
        self.signal_children(Signal::CONT)?;
        self.server.resume()
    }

    /// Ends all its processes at once, as a crash of the machine does to programs; what was written to files
    /// stays.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        self.server.pause()?;
        self.signal_children(Signal::KILL)?;
        self.server.kill()
    }

    /// Ends it in order: sessions are closed and the last position is written.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn stop(&mut self) -> io::Result<()> {
        self.server.signal(Signal::INT)?;
        self.server.stop()
    }

    /// Starts it again where it was, after [`kill`](Self::kill) or [`stop`](Self::stop), and waits until it
    /// answers.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.server.restart()?;
        self.answers()
    }

    fn answers(&self) -> io::Result<()> {
        self.wait("it answers", |p| p.sql("select 1").map(|_| true))
    }

    /// Its children lead sessions of their own, so no group reaches them.
    fn signal_children(&self, signal: Signal) -> io::Result<()> {
        let parent = self.server.pid();
        for entry in std::fs::read_dir("/proc")? {
            let path = entry?.path();
            let Ok(stat) = std::fs::read_to_string(path.join("stat")) else { continue };
            // The name stands in parentheses and may contain anything; behind it: state, parent.
            let Some((_, rest)) = stat.rsplit_once(')') else { continue };
            if rest.split_whitespace().nth(1).and_then(|p| p.parse().ok()) != Some(parent) {
                continue;
            }
            let pid = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
            if let Some(pid) = pid.and_then(Pid::from_raw) {
                // It may have ended since.
                let _ = kill_process(pid, signal);
            }
        }
        Ok(())
    }

    /// A server that was killed leaves its shared memory, which the next start would have taken away.
    fn free_memory(&self) {
        let Ok(text) = std::fs::read_to_string(self.server.dir().join("data/postmaster.pid")) else { return };
        if let Some(id) = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            // Nobody can do more about one that stays.
            let _ = finish(Command::new("ipcrm").args(["-m", id]));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A paused one hears nothing.
        let _ = self.resume();
        if self.server.signal(Signal::QUIT).is_err() || !self.server.ended_within(QUIT) {
            let _ = self.kill();
        }
        self.free_memory();
    }
}
