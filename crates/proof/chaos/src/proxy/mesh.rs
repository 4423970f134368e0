//! The links between the members of one cluster, each of its two directions cut by itself.
//!
//! Members name one address per member, so who dials is not seen from where; the kernel knows whose socket it is.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mainstay_clock::Runtime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::MAX_CONNECTIONS;

/// Bytes passed on at once.
const CHUNK: usize = 16 * 1024;

/// What is known about members and links.
#[derive(Clone, Debug, Default)]
struct Links {
    /// Where each member listens.
    listeners: Vec<Option<SocketAddr>>,
    /// The process of each member.
    processes: Vec<Option<u32>>,
    /// From whom nothing reaches whom.
    cut: BTreeSet<(usize, usize)>,
}

impl Links {
    /// Whether bytes may go from one to the other. While anything is cut, whoever is not known passes nothing.
    fn is_open(&self, from: Option<usize>, to: Option<usize>) -> bool {
        match (from, to) {
            _ if self.cut.is_empty() => true,
            (Some(from), Some(to)) => !self.cut.contains(&(from, to)),
            _ => false,
        }
    }

    /// Which member has the socket with this local address.
    fn member(&self, socket: SocketAddr) -> Option<usize> {
        let inode = format!("socket:[{}]", inode(socket)?);
        self.processes.iter().position(|process| process.is_some_and(|pid| has(pid, &inode)))
    }
}

/// The inode of the socket with this local address.
fn inode(socket: SocketAddr) -> Option<u64> {
    let SocketAddr::V4(v4) = socket else { return None };
    let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port());
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    // Number, local address, remote address, state, queues, timer, retransmits, user, timeout, inode.
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.find(|words| words.get(1) == Some(&local.as_str()))?.get(9)?.parse().ok()
}

/// Whether the process has this file open.
fn has(pid: u32, file: &str) -> bool {
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|open| std::fs::read_link(open.path()).is_ok_and(|to| to.as_os_str() == file))
}

/// A door in front of each member of a cluster, through which the others reach it. It stops, and cuts its
/// connections, when dropped.
///
/// A cut holds bytes back, as a network that loses every packet does to TCP: both ends keep their connections until
/// they give them up, and what was on its way arrives when the cut is healed.
///
/// ```
/// use mainstay_chaos::proxy::TcpMesh;
/// use mainstay_clock::Runtime;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let mesh = TcpMesh::bind(&Runtime::system(), 3).await.unwrap();
/// assert_eq!(mesh.doors().len(), 3);
/// // Nothing that the first says reaches anybody, and it hears everybody.
/// mesh.cut(0, 1);
/// mesh.cut(0, 2);
/// mesh.heal();
/// # });
/// ```
pub struct TcpMesh {
    doors: Vec<SocketAddr>,
    links: watch::Sender<Links>,
    stop: CancellationToken,
}

impl fmt::Debug for TcpMesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpMesh").field("doors", &self.doors).finish_non_exhaustive()
    }
}

impl TcpMesh {
    /// Listens on a free port of loopback for each of so many members.
    ///
    /// # Errors
    /// When no port can be bound.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing.
    pub async fn bind(runtime: &Runtime, members: usize) -> io::Result<Self> {
        let links =
            Links { listeners: vec![None; members], processes: vec![None; members], ..Links::default() };
        let mut mesh =
            Self { doors: Vec::new(), links: watch::Sender::new(links), stop: CancellationToken::new() };
        for member in 0..members {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            mesh.doors.push(listener.local_addr()?);
            let (links, stop) = (mesh.links.subscribe(), mesh.stop.clone());
            let door = accept(runtime.clone(), listener, member, links, stop);
            runtime.spawn("mainstay-tcp-mesh", door);
        }
        Ok(mesh)
    }

    /// Where each member is reached.
    #[must_use]
    pub fn doors(&self) -> &[SocketAddr] {
        &self.doors
    }

    /// Where a member listens in truth. Until that is known its door lets nobody in.
    ///
    /// # Panics
    /// There is no such member.
    pub fn set_listener(&self, member: usize, address: SocketAddr) {
        self.links.send_modify(|links| links.listeners[member] = Some(address));
    }

    /// Which process a member is: what it dials is known by that.
    ///
    /// # Panics
    /// There is no such member.
    pub fn set_process(&self, member: usize, pid: u32) {
        self.links.send_modify(|links| links.processes[member] = Some(pid));
    }

    /// From now on nothing of one member reaches the other; the way back stays as it is.
    pub fn cut(&self, from: usize, to: usize) {
        self.links.send_modify(|links| {
            links.cut.insert((from, to));
        });
    }

    /// Lets everything through again, what was held back first.
    pub fn heal(&self) {
        self.links.send_modify(|links| links.cut.clear());
    }
}

impl Drop for TcpMesh {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(
    runtime: Runtime,
    listener: TcpListener,
    member: usize,
    links: watch::Receiver<Links>,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((caller, _)) = accepted else { continue };
        let (links, stop) = (links.clone(), stop.clone());
        runtime.spawn("mainstay-tcp-mesh-connection", async move {
            let _slot = slot;
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                _ = connection(caller, member, links) => {}
            }
        });
    }
}

async fn connection(caller: TcpStream, member: usize, links: watch::Receiver<Links>) -> io::Result<()> {
    let from = caller.peer_addr()?;
    let listener = links.borrow().listeners[member];
    let Some(listener) = listener else { return Ok(()) };
    let service = TcpStream::connect(listener).await?;
    let dialer = Dialer { socket: from, member: None };
    let ((from_caller, to_caller), (from_service, to_service)) = (caller.into_split(), service.into_split());
    let there = pump(from_caller, to_service, links.clone(), dialer.clone(), move |d| (d, Some(member)));
    let back = pump(from_service, to_caller, links, dialer, move |d| (Some(member), d));
    tokio::join!(there, back);
    Ok(())
}

/// Who opened a connection; found out when it matters, since then the processes are known.
#[derive(Clone)]
struct Dialer {
    socket: SocketAddr,
    member: Option<usize>,
}

impl Dialer {
    fn member(&mut self, links: &Links) -> Option<usize> {
        if self.member.is_none() && !links.cut.is_empty() {
            self.member = links.member(self.socket);
        }
        self.member
    }
}

/// Moves bytes in one direction until it ends and the way is open; then the other side learns that it ended.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut links: watch::Receiver<Links>,
    mut dialer: Dialer,
    way: impl Fn(Option<usize>) -> (Option<usize>, Option<usize>),
) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = from.read(&mut chunk).await;
        let open = links.wait_for(|links| {
            let (from, to) = way(dialer.member(links));
            links.is_open(from, to)
        });
        if open.await.is_err() {
            return;
        }
        let Ok(n @ 1..) = read else { break };
        if to.write_all(&chunk[..n]).await.is_err() {
            return;
        }
    }
    // The other side may be gone already.
    let _ = to.shutdown().await;
}
