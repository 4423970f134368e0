//! etcd: one node, or a cluster of several.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use mainstay_clock::os_boot_now;

use super::process::finish;
use super::{Launch, Server, find, free_address};

/// How long members may take to elect a leader, on a machine that builds beside.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a member may take to answer `etcdctl`, in seconds: a sync of a busy disk alone takes some.
const ANSWER: u64 = 30;
/// How long the first answer of a member may take that is only looked at; the next one may take twice as long.
const GLANCE: u64 = 2;
/// Between two looks at a member.
const LOOK: Duration = Duration::from_millis(20);
/// How often a cluster draws other ports when one of them was taken.
const STARTS: u32 = 3;

/// etcd's programs. Clones share nothing but their paths.
///
/// ```no_run
/// use mainstay_sim::servers::EtcdKit;
///
/// let Some(kit) = EtcdKit::new() else { return };
/// let mut cluster = kit.cluster(3).unwrap();
/// cluster.members[0].kill().unwrap();
/// cluster.members[1].ctl(&["put", "k", "v"]).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct EtcdKit {
    etcd: PathBuf,
    etcdctl: PathBuf,
}

impl EtcdKit {
    /// Finds the programs; none when one of them is not installed.
    #[must_use]
    pub fn new() -> Option<Self> {
        Some(Self { etcd: find("etcd")?, etcdctl: find("etcdctl")? })
    }

    /// The program at this place; none when `etcdctl` is not installed.
    #[must_use]
    pub fn at(etcd: PathBuf) -> Option<Self> {
        Some(Self { etcd, etcdctl: find("etcdctl")? })
    }

    /// Starts a node of its own and waits until it answers.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn single(&self) -> io::Result<Etcd> {
        let cluster = self.cluster(1)?;
        cluster.members.into_iter().next().ok_or_else(|| io::Error::other("a cluster of nobody"))
    }

    /// Starts a node whose clients are encrypted and show certificates; `files` says for its address what
    /// `cert.pem`, `key.pem` and `ca.pem` are. It listens when this returns; nobody has asked it anything.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn secured(&self, files: impl Fn(SocketAddr) -> [String; 3]) -> io::Result<Etcd> {
        let server = Server::start(&self.etcd, |setup| {
            let client = format!("https://{}", setup.address);
            let [cert, key, ca] = files(setup.address);
            let options = [
                ("--data-dir", "data"),
                ("--listen-client-urls", &client),
                ("--advertise-client-urls", &client),
                ("--listen-peer-urls", "http://127.0.0.1:0"),
                ("--cert-file", "cert.pem"),
                ("--key-file", "key.pem"),
                ("--trusted-ca-file", "ca.pem"),
                ("--client-cert-auth", "true"),
            ];
            let args = options.into_iter().map(|(name, value)| OsString::from(format!("{name}={value}")));
            Launch::new().args(args).file("cert.pem", cert).file("key.pem", key).file("ca.pem", ca)
        })?;
        Ok(Etcd { etcdctl: self.etcdctl.clone(), server })
    }

    /// Starts that many members of one cluster and waits until all of them answer.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn cluster(&self, members: usize) -> io::Result<EtcdCluster> {
        self.started(|| {
            let peers: Vec<SocketAddr> = (0..members).map(|_| free_address()).collect::<io::Result<_>>()?;
            Ok((peers.clone(), peers))
        })
    }

    /// Starts a member behind each of `doors`, where the others are told to reach it. `listens` hears at which address
    /// each does in truth, before it is started.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn cluster_behind(
        &self,
        doors: &[SocketAddr],
        listens: impl Fn(usize, SocketAddr),
    ) -> io::Result<EtcdCluster> {
        self.started(|| {
            let peers: Vec<SocketAddr> = doors.iter().map(|_| free_address()).collect::<io::Result<_>>()?;
            peers.iter().enumerate().for_each(|(n, peer)| listens(n, *peer));
            Ok((peers, doors.to_vec()))
        })
    }

    /// Where members listen to each other, and where they are reached, drawn again when a port was taken.
    fn started(
        &self,
        draw: impl Fn() -> io::Result<(Vec<SocketAddr>, Vec<SocketAddr>)>,
    ) -> io::Result<EtcdCluster> {
        let mut last = io::Error::other("never started");
        for _ in 0..STARTS {
            let (peers, doors) = draw()?;
            match self.start(&peers, &doors) {
                Ok(cluster) => return Ok(cluster),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn start(&self, peers: &[SocketAddr], doors: &[SocketAddr]) -> io::Result<EtcdCluster> {
        let all: Vec<String> =
            doors.iter().enumerate().map(|(i, door)| format!("m{i}=http://{door}")).collect();
        let one = |(i, peer): (usize, &SocketAddr)| {
            self.member(&format!("m{i}"), (*peer, doors[i]), &all.join(","))
        };
        let members = peers.iter().enumerate().map(one).collect::<io::Result<Vec<Etcd>>>()?;
        for member in &members {
            member.answers()?;
        }
        Ok(EtcdCluster { members })
    }

    fn member(&self, name: &str, (peer, door): (SocketAddr, SocketAddr), all: &str) -> io::Result<Etcd> {
        let server = Server::start(&self.etcd, |setup| {
            let [client, peer, door] = [setup.address, peer, door].map(|address| format!("http://{address}"));
            let options: [(&str, &str); 8] = [
                ("--name", name),
                ("--data-dir", "data"),
                ("--listen-client-urls", &client),
                ("--advertise-client-urls", &client),
                ("--listen-peer-urls", &peer),
                ("--initial-advertise-peer-urls", &door),
                ("--initial-cluster", all),
                // Members of other tests that were given the same port do not join.
                ("--initial-cluster-token", all),
            ];
            Launch::new().args(options.into_iter().flat_map(|(k, v)| [OsString::from(k), OsString::from(v)]))
        })?;
        Ok(Etcd { etcdctl: self.etcdctl.clone(), server })
    }
}

/// Members of one cluster.
#[derive(Debug)]
#[non_exhaustive]
pub struct EtcdCluster {
    /// In no order.
    pub members: Vec<Etcd>,
}

impl EtcdCluster {
    /// All members, for clients.
    #[must_use]
    pub fn url(&self) -> String {
        let all: Vec<String> = self.members.iter().map(|m| m.address().to_string()).collect();
        format!("etcd://{}", all.join(","))
    }

    /// Which of the members leads, after waiting for one that says so.
    ///
    /// # Errors
    /// None does within a minute.
    pub fn leader(&self) -> io::Result<usize> {
        let end = os_boot_now().saturating_add(PATIENCE);
        let mut limit = GLANCE;
        loop {
            if let Some(leader) = self.members.iter().position(|m| m.leads_within(limit).unwrap_or(false)) {
                return Ok(leader);
            }
            if os_boot_now() > end {
                return Err(io::Error::other("no member leads"));
            }
            std::thread::park_timeout(LOOK);
            limit = (limit * 2).min(ANSWER);
        }
    }
}

/// A running etcd. Dropped, it is killed and its folder removed.
#[derive(Debug)]
pub struct Etcd {
    etcdctl: PathBuf,
    server: Server,
}

impl Etcd {
    /// Where it listens to clients.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// For clients of ours.
    #[must_use]
    pub fn url(&self) -> String {
        format!("etcd://{}", self.address())
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// The end of its log.
    #[must_use]
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// `etcdctl` on it, with the third version of its interface.
    #[must_use]
    pub fn etcdctl(&self) -> Command {
        let mut command = Command::new(&self.etcdctl);
        command.env("ETCDCTL_API", "3").args(["--endpoints", &format!("http://{}", self.address())]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs `etcdctl` with these arguments and gives what it printed.
    ///
    /// # Errors
    /// What it said.
    pub fn ctl(&self, args: &[&str]) -> io::Result<String> {
        self.ctl_within(ANSWER, args)
    }

    fn ctl_within(&self, seconds: u64, args: &[&str]) -> io::Result<String> {
        let limit = format!("{seconds}s");
        let mut command = self.etcdctl();
        command.args(["--command-timeout", &limit, "--dial-timeout", &limit]);
        finish(command.args(args)).map_err(|error| io::Error::other(format!("{args:?}: {error}")))
    }

    /// Whether it leads, as it sees it.
    ///
    /// # Errors
    /// It does not answer.
    pub fn leads(&self) -> io::Result<bool> {
        self.leads_within(ANSWER)
    }

    fn leads_within(&self, seconds: u64) -> io::Result<bool> {
        let text = self.ctl_within(seconds, &["endpoint", "status", "-w", "fields"])?;
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("\"{name}\"")));
            line.and_then(|line| line.rsplit_once(' ')).map(|(_, value)| value.to_owned())
        };
        Ok(field("Leader").is_some() && field("Leader") == field("MemberID"))
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

    /// Ends it at once, as a crash of its machine does; what it wrote stays.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        self.server.kill()
    }

    /// Starts it again where it was. It answers once the cluster has a leader: see [`answers`](Self::answers).
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.server.restart()
    }

    /// Waits until it answers.
    ///
    /// # Errors
    /// Not within a minute; the text has the end of its log.
    pub fn answers(&self) -> io::Result<()> {
        let end = os_boot_now().saturating_add(PATIENCE);
        let mut limit = GLANCE;
        loop {
            match self.ctl_within(limit, &["get", "nothing"]) {
                Ok(_) => return Ok(()),
                Err(e) if os_boot_now() > end => {
                    return Err(io::Error::other(format!("{e}: {}", self.log())));
                }
                Err(_) => std::thread::park_timeout(LOOK),
            }
            limit = (limit * 2).min(ANSWER);
        }
    }
}
