//! A private Redis Cluster of masters, and as much of its protocol as a bench needs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use mainstay_sim::servers::{Launch, Server, free_address};

pub(super) const SLOTS: usize = 16_384;
/// Looks at the cluster until all its nodes agree, and the pause between two: a minute.
const LOOKS: usize = 600;
const PAUSE: Duration = Duration::from_millis(100);

struct Link {
    write: TcpStream,
    read: BufReader<TcpStream>,
}

impl Link {
    fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let write = TcpStream::connect(address).with_context(|| address.to_string())?;
        write.set_nodelay(true)?;
        Ok(Self { read: BufReader::new(write.try_clone()?), write })
    }

    /// The answer to a command, as text; an error of the server is one here.
    fn ask(&mut self, command: &str) -> anyhow::Result<String> {
        self.write.write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        self.read.read_line(&mut line)?;
        let line = line.trim_end();
        match line.split_at_checked(1) {
            Some(("+" | ":", rest)) => Ok(rest.to_owned()),
            Some(("$", length)) => {
                let mut text = vec![0; length.parse::<usize>()? + 2];
                self.read.read_exact(&mut text)?;
                Ok(String::from_utf8_lossy(&text[..text.len() - 2]).into_owned())
            }
            _ => bail!("`{command}`: {line}"),
        }
    }
}

/// A master.
pub(super) struct Master {
    pub(super) id: String,
    server: Server,
    link: Link,
}

/// Masters that know each other; some may hold no slots.
pub(super) struct Cluster {
    pub(super) masters: Vec<Master>,
}

impl Cluster {
    /// Starts as many masters as `counts`; each holds as many slots as its count says, one after the other.
    pub(super) fn start(program: &Path, counts: &[usize]) -> anyhow::Result<Self> {
        ensure!(counts.iter().sum::<usize>() == SLOTS, "all slots must be held");
        let mut masters = Vec::new();
        let mut from = 0;
        for (number, count) in counts.iter().enumerate() {
            let mut master = Master::start(program)?;
            // Distinct epochs: nobody has to fight for one.
            master.link.ask(&format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1))?;
            if *count > 0 {
                master.link.ask(&format!("CLUSTER ADDSLOTSRANGE {from} {}", from + count - 1))?;
            }
            from += count;
            masters.push(master);
        }
        let mut cluster = Self { masters };
        cluster.meet()?;
        Ok(cluster)
    }

    fn meet(&mut self) -> anyhow::Result<()> {
        let (first, rest) = self.masters.split_at_mut(1);
        for master in rest {
            // The bus has a port of its own; without it the one plus 10000 would be called.
            let bus = master.bus()?;
            let address = master.server.address();
            first[0].link.ask(&format!("CLUSTER MEET {} {} {bus}", address.ip(), address.port()))?;
        }
        self.agree()
    }

    /// Waits until every master knows all others and all slots, the same way.
    pub(super) fn agree(&mut self) -> anyhow::Result<()> {
        for _ in 0..LOOKS {
            let mut views: Vec<Option<Vec<usize>>> = Vec::new();
            for at in 0..self.masters.len() {
                let info = self.masters[at].link.ask("CLUSTER INFO")?;
                let known = info.contains(&format!("cluster_known_nodes:{}\r", self.masters.len()));
                let whole = known && info.contains("cluster_state:ok");
                views.push(if whole { Some(self.owners_seen_by(at)?) } else { None });
            }
            if views.iter().all(|v| v.is_some() && *v == views[0]) {
                return Ok(());
            }
            std::thread::park_timeout(PAUSE);
        }
        bail!("{} masters do not agree after a minute", self.masters.len())
    }

    /// Who holds each slot, by position in the list of masters.
    pub(super) fn owners(&mut self) -> anyhow::Result<Vec<usize>> {
        self.owners_seen_by(0)
    }

    fn owners_seen_by(&mut self, at: usize) -> anyhow::Result<Vec<usize>> {
        let text = self.masters[at].link.ask("CLUSTER NODES")?;
        let mut owners = vec![usize::MAX; SLOTS];
        for line in text.lines() {
            let mut words = line.split(' ');
            let id = words.next().unwrap_or_default();
            let Some(master) = self.masters.iter().position(|m| m.id == id) else { continue };
            // Six words about the node and its links, then ranges; what is in brackets is still moving.
            for range in words.skip(7).filter(|w| !w.starts_with('[')) {
                let (from, to) = range.split_once('-').unwrap_or((range, range));
                let (from, to): (usize, usize) = (from.parse()?, to.parse()?);
                owners.get_mut(from..=to).with_context(|| format!("slots {range}"))?.fill(master);
            }
        }
        Ok(owners)
    }

    /// Slots per master.
    pub(super) fn counts(&mut self) -> anyhow::Result<Vec<usize>> {
        let mut counts = vec![0; self.masters.len()];
        for owner in self.owners()? {
            *counts.get_mut(owner).context("a slot without a master")? += 1;
        }
        Ok(counts)
    }

    /// Hands an empty slot over: the receiver first, so that somebody answers for it at any time.
    pub(super) fn hand_over(&mut self, slot: usize, from: usize, to: usize) -> anyhow::Result<()> {
        let (giver, taker) = (self.masters[from].id.clone(), self.masters[to].id.clone());
        self.masters[to].link.ask(&format!("CLUSTER SETSLOT {slot} IMPORTING {giver}"))?;
        self.masters[from].link.ask(&format!("CLUSTER SETSLOT {slot} MIGRATING {taker}"))?;
        self.masters[to].link.ask(&format!("CLUSTER SETSLOT {slot} NODE {taker}"))?;
        self.masters[from].link.ask(&format!("CLUSTER SETSLOT {slot} NODE {taker}"))?;
        Ok(())
    }

    /// The master at an address as redis-cli writes it.
    pub(super) fn find(&self, address: &str) -> Option<usize> {
        self.masters.iter().position(|m| m.server.address().to_string() == address)
    }

    /// Where to reach the cluster.
    pub(super) fn address(&self) -> SocketAddr {
        self.masters[0].server.address()
    }
}

impl Master {
    fn start(program: &Path) -> anyhow::Result<Self> {
        let server = Server::start(program, |setup| {
            let bus = free_address().map_or(0, |a| a.port()).to_string();
            let (ip, port) = (setup.address.ip().to_string(), setup.address.port().to_string());
            // Others would take the address that its calls come from, which on loopback is always the same one.
            let at = ["--bind", &ip, "--cluster-announce-ip", &ip, "--port", &port, "--cluster-port", &bus];
            let kept = ["--cluster-enabled", "yes", "--save", "", "--appendonly", "no", "--daemonize", "no"];
            Launch::new().args(at).args(kept)
        })?;
        let mut link = Link::open(server.address())?;
        let id = link.ask("CLUSTER MYID")?;
        Ok(Self { id, server, link })
    }

    /// The port of its bus, as the first node of its own list says: `ip:port@bus`.
    fn bus(&mut self) -> anyhow::Result<u16> {
        let text = self.link.ask("CLUSTER NODES")?;
        let own = text.lines().find(|l| l.contains("myself")).context("a node that does not know itself")?;
        let bus = own.split(' ').nth(1).and_then(|a| a.split(['@', ',']).nth(1)).context("no bus port")?;
        Ok(bus.parse()?)
    }
}
