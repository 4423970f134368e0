//! NATS with `JetStream`: one server, or a cluster of them.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use mainstay_clock::{Instant, os_boot_now};

use super::{Launch, Server, find, free_address};

/// How long a server may recover, or a cluster may take to elect who leads it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the first answer may take. Each that did not come in its time gives the next one twice as long, up to
/// [`MOST`]: one that is not ready says nothing, and one on a busy machine needs its time.
const ANSWER: Duration = Duration::from_millis(500);
/// How long any answer may take.
const MOST: Duration = Duration::from_secs(8);
/// Between two looks at a server.
const LOOK: Duration = Duration::from_millis(20);

/// The program of NATS.
///
/// ```no_run
/// use mainstay_sim::servers::NatsKit;
///
/// let Some(kit) = NatsKit::new() else { return };
/// let alone = kit.server("").unwrap();
/// let mut nodes = kit.cluster(3, "sync_interval: always").unwrap();
/// nodes[0].server_mut().kill().unwrap();
/// assert_ne!(alone.url(), nodes[1].url());
/// ```
#[derive(Clone, Debug)]
pub struct NatsKit {
    program: PathBuf,
}

impl NatsKit {
    /// Finds the program; none when NATS is not installed.
    #[must_use]
    pub fn new() -> Option<Self> {
        find("nats-server").map(|program| Self { program })
    }

    /// The program at this place, of whatever version.
    #[must_use]
    pub fn at(program: PathBuf) -> Self {
        Self { program }
    }

    /// Starts one server and waits until its `JetStream` answers. `storage` is added to its `jetstream` block.
    ///
    /// # Errors
    /// As [`Server::start`]; or it does not answer in a minute.
    pub fn server(&self, storage: &str) -> io::Result<Nats> {
        let nats = self.start("alone", storage, None)?;
        nats.answers()?;
        Ok(nats)
    }

    /// Starts one server that does not let everybody in: `settings` says, for the address that it gets, the lines of
    /// its settings and the files beside them. It listens when this returns; nobody has asked it anything.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn guarded(
        &self,
        settings: impl Fn(SocketAddr) -> (String, Vec<(&'static str, String)>),
    ) -> io::Result<Nats> {
        let server = Server::start(&self.program, |setup| {
            let (address, dir) = (setup.address, setup.dir.display());
            let (settings, files) = settings(address);
            let text =
                format!("listen: \"{address}\"\njetstream {{ store_dir: \"{dir}/js\" }}\n{settings}\n");
            let launch = Launch::new().file("nats.conf", text).args(["-c", "nats.conf"]);
            files.into_iter().fold(launch, |launch, (name, text)| launch.file(name, text))
        })?;
        Ok(Nats { server })
    }

    /// Starts a cluster and waits until every server of it answers, which takes a leader.
    ///
    /// # Errors
    /// As [`server`](Self::server).
    pub fn cluster(&self, count: usize, storage: &str) -> io::Result<Vec<Nats>> {
        let routes: Vec<SocketAddr> = (0..count).map(|_| free_address()).collect::<io::Result<_>>()?;
        self.started(storage, &routes, &routes)
    }

    /// Starts a server behind each of `doors`, where the others are told to reach it. `listens` hears at which address
    /// each does in truth, before it is started. Clients are told of no other server than theirs.
    ///
    /// # Errors
    /// As [`server`](Self::server).
    pub fn cluster_behind(
        &self,
        doors: &[SocketAddr],
        listens: impl Fn(usize, SocketAddr),
    ) -> io::Result<Vec<Nats>> {
        let routes: Vec<SocketAddr> = doors.iter().map(|_| free_address()).collect::<io::Result<_>>()?;
        routes.iter().enumerate().for_each(|(n, route)| listens(n, *route));
        self.started("", &routes, doors)
    }

    fn started(&self, storage: &str, listen: &[SocketAddr], doors: &[SocketAddr]) -> io::Result<Vec<Nats>> {
        let start = |n: usize| self.start(&format!("node-{n}"), storage, Some((listen[n], n, doors)));
        let nodes: Vec<Nats> = (0..doors.len()).map(start).collect::<io::Result<_>>()?;
        for node in &nodes {
            node.answers()?;
        }
        Ok(nodes)
    }

    fn start(
        &self,
        name: &str,
        storage: &str,
        cluster: Option<(SocketAddr, usize, &[SocketAddr])>,
    ) -> io::Result<Nats> {
        let server = Server::start(&self.program, |setup| {
            let dir = setup.dir.display();
            let mut text = format!(
                "server_name: {name}\nlisten: \"{}\"\njetstream {{ store_dir: \"{dir}/js\"\n{storage} }}\n{ACCOUNTS}",
                setup.address
            );
            if let Some((own, n, doors)) = cluster {
                let others = doors.iter().enumerate().filter(|(other, _)| *other != n);
                let routes: Vec<String> = others.map(|(_, a)| format!("\"nats://{a}\"")).collect();
                let routes = routes.join(", ");
                // Behind a door the way past it is told to nobody.
                let behind = match doors[n] == own {
                    true => String::new(),
                    false => format!("advertise: \"{}\", no_advertise: true,", doors[n]),
                };
                // Writing to text cannot fail.
                let _ = writeln!(
                    text,
                    "cluster {{ name: tests, listen: \"{own}\", {behind} routes: [{routes}] }}"
                );
            }
            Launch::new().file("nats.conf", text).args(["-c".into(), setup.dir.join("nats.conf")])
        })?;
        Ok(Nats { server })
    }
}

/// Whoever gives no name is the application; the system account tells how servers are set.
const ACCOUNTS: &str = "accounts {
  SYS { users: [{ user: sys, password: sys }] }
  APP { jetstream: enabled, users: [{ user: app, password: app }] }
}
system_account: SYS
no_auth_user: app
";

/// A running NATS. Dropped, it is killed and its folder removed.
#[derive(Debug)]
pub struct Nats {
    server: Server,
}

impl Nats {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Its address, for clients of the application's account.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// Its address, for clients of the system account.
    #[must_use]
    pub fn system_url(&self) -> String {
        format!("nats://sys:sys@{}", self.address())
    }

    /// Its process.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Its process, to be killed, stopped or started again.
    pub fn server_mut(&mut self) -> &mut Server {
        &mut self.server
    }

    /// Starts it again on its folder and waits until its `JetStream` answers.
    ///
    /// # Errors
    /// As [`Server::restart`]; or it does not answer in a minute.
    pub fn restart(&mut self) -> io::Result<()> {
        self.server.restart()?;
        self.answers()
    }

    /// Waits until its `JetStream` answers.
    ///
    /// # Errors
    /// It does not in a minute.
    pub fn answers(&self) -> io::Result<()> {
        let end = os_boot_now().saturating_add(PATIENCE);
        let mut limit = ANSWER;
        while !self.asked(limit).unwrap_or(false) {
            if os_boot_now() > end {
                return Err(io::Error::other(format!("JetStream is not ready: {}", self.server.log())));
            }
            std::thread::park_timeout(LOOK);
            limit = (limit * 2).min(MOST);
        }
        Ok(())
    }

    /// Whether it says what its account may use, in the protocol's own words.
    fn asked(&self, limit: Duration) -> io::Result<bool> {
        let stream = TcpStream::connect(self.address())?;
        stream.set_read_timeout(Some(limit))?;
        let mut writer = stream.try_clone()?;
        writer
            .write_all(b"CONNECT {\"verbose\":false}\r\nSUB answer 1\r\nPUB $JS.API.INFO answer 0\r\n\r\n")?;
        let end: Instant = os_boot_now().saturating_add(limit);
        for line in BufReader::new(stream).lines() {
            let line = line?;
            if line.contains("account_info_response") {
                return Ok(!line.contains("\"error\""));
            }
            if os_boot_now() > end {
                break;
            }
        }
        Ok(false)
    }
}
