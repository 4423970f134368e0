//! The network of the system: one UDP socket, and a TCP listener on the same port.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_clock::{Clock, Runtime, TaskHandle};
use mainstay_store::BoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use crate::error::{Error, ErrorKind, Result};
use crate::network::{Inbound, MAX_DATAGRAM, MAX_FRAME, Network, Sent, Way};

/// Frames that wait for one peer: two budgets of a tick.
const QUEUE: usize = 16;
/// Frames that came in and wait to be looked at.
const INBOX: usize = 64;
/// Streams that are open at once, in each direction: with a frame each, at most 4 MiB.
const MAX_STREAMS: usize = 64;
/// How long a stream may stay silent.
const IDLE: Duration = Duration::from_secs(30);
/// How long a frame may take once it began, and a connection to open.
const SLOW: Duration = Duration::from_secs(5);
/// Tries to find a port that is free for both protocols, when the system picks it.
const BINDS: u32 = 16;

/// Sockets of a node.
///
/// Back-pressure: a peer whose queue of frames is full gets nothing more; a sender whose frames nobody reads is slowed
/// by its connection. Datagrams that the system has no room for are dropped.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
    /// The buffer of `receive`.
    frames: AsyncMutex<mpsc::Receiver<Inbound>>,
    out: Mutex<BTreeMap<SocketAddr, mpsc::Sender<Vec<u8>>>>,
    shared: Arc<Shared>,
    listener: Mutex<Option<TaskHandle>>,
    advertise: SocketAddr,
    rt: Runtime,
}

#[derive(Debug, Default)]
struct Shared {
    streams: Mutex<BTreeMap<SocketAddr, Arc<Incoming>>>,
}

/// A stream that came in.
#[derive(Debug)]
struct Incoming {
    /// How many came before it.
    number: u64,
    /// How to end it.
    end: tokio::sync::Notify,
    /// Whether it brought a frame.
    spoke: AtomicBool,
}

impl Shared {
    /// A place for a stream. When there is none, the oldest one that has not said anything yet gives way: whoever says
    /// nothing needs no key for that.
    fn admit(&self, from: SocketAddr, number: u64) -> Option<Arc<Incoming>> {
        let mut streams = lock(&self.streams);
        if streams.len() >= MAX_STREAMS {
            let silent = streams.iter().filter(|(_, s)| !s.spoke.load(Ordering::Relaxed));
            let oldest = *silent.min_by_key(|(_, s)| s.number)?.0;
            streams.remove(&oldest)?.end.notify_one();
        }
        let end = tokio::sync::Notify::new();
        let stream = Arc::new(Incoming { number, end, spoke: AtomicBool::new(false) });
        streams.insert(from, Arc::clone(&stream));
        Some(stream)
    }

    fn forget(&self, from: SocketAddr, number: u64) {
        let mut streams = lock(&self.streams);
        // The address may be another one's by now.
        if streams.get(&from).is_some_and(|s| s.number == number) {
            streams.remove(&from);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sockets {
    /// Binds both sockets to `bind`; port 0 picks one. Others are told `advertise`, or the bound address.
    ///
    /// # Errors
    /// The address cannot be used.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing bound.
    pub async fn bind(bind: SocketAddr, advertise: Option<SocketAddr>, rt: &Runtime) -> Result<Self> {
        let failed = |e| Error::new(ErrorKind::Socket, format!("cannot listen on {bind}")).with(e);
        let (listener, udp) = pair(bind).await.map_err(failed)?;
        // A fresh socket counts as full until the system was asked: without this, the first datagram would be dropped.
        udp.writable().await.map_err(failed)?;
        let bound = udp.local_addr().map_err(failed)?;
        let advertise = advertise.map_or(bound, |mut a| {
            if a.port() == 0 {
                a.set_port(bound.port());
            }
            a
        });
        let (tx, rx) = mpsc::channel(INBOX);
        let shared = Arc::new(Shared::default());
        let task = rt.spawn("gossip-listener", listen(listener, Arc::clone(&shared), tx, rt.clone()));
        Ok(Self {
            udp,
            frames: AsyncMutex::new(rx),
            out: Mutex::default(),
            shared,
            listener: Mutex::new(Some(task)),
            advertise,
            rt: rt.clone(),
        })
    }

    fn queue(&self, to: SocketAddr) -> Option<mpsc::Sender<Vec<u8>>> {
        let mut out = lock(&self.out);
        out.retain(|_, queue| !queue.is_closed());
        if let Some(queue) = out.get(&to) {
            return Some(queue.clone());
        }
        if out.len() >= MAX_STREAMS {
            return None;
        }
        let (tx, rx) = mpsc::channel(QUEUE);
        self.rt.spawn("gossip-stream", write(to, rx, Arc::clone(self.rt.clock())));
        out.insert(to, tx.clone());
        Some(tx)
    }
}

/// A TCP and a UDP socket on one port.
async fn pair(bind: SocketAddr) -> io::Result<(TcpListener, UdpSocket)> {
    let mut tries = 0;
    loop {
        let listener = TcpListener::bind(bind).await?;
        let address = listener.local_addr()?;
        match UdpSocket::bind(address).await {
            Ok(udp) => return Ok((listener, udp)),
            // The system picked a port that is free for one of the two only.
            Err(_) if bind.port() == 0 && tries < BINDS => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Takes connections in.
async fn listen(listener: TcpListener, shared: Arc<Shared>, inbox: mpsc::Sender<Inbound>, rt: Runtime) {
    let mut number = 0;
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            // Out of descriptors: it will pass.
            rt.clock().sleep(Duration::from_millis(100)).await;
            continue;
        };
        number += 1;
        let Some(incoming) = shared.admit(from, number) else { continue };
        let (inbox, shared, clock) = (inbox.clone(), Arc::clone(&shared), Arc::clone(rt.clock()));
        rt.spawn("gossip-reader", async move {
            tokio::select! {
                biased;
                () = incoming.end.notified() => {}
                _ = read(stream, from, &incoming.spoke, &inbox, &*clock) => {}
            }
            shared.forget(from, incoming.number);
        });
    }
}

/// Reads frames: their length in four bytes, then they themselves.
async fn read(
    mut stream: TcpStream,
    from: SocketAddr,
    spoke: &AtomicBool,
    inbox: &mpsc::Sender<Inbound>,
    clock: &dyn Clock,
) -> Option<()> {
    loop {
        let mut size = [0; 4];
        within(clock, IDLE, stream.read_exact(&mut size)).await?.ok()?;
        let size = usize::try_from(u32::from_be_bytes(size)).ok()?;
        if size > MAX_FRAME {
            return None;
        }
        let mut bytes = vec![0; size];
        within(clock, SLOW, stream.read_exact(&mut bytes)).await?.ok()?;
        // A frame that nobody with a key made ends it.
        spoke.store(true, Ordering::Relaxed);
        inbox.send(Inbound::new(from, Way::Stream, bytes)).await.ok()?;
    }
}

/// Writes the frames of one peer, until none came for a while.
async fn write(to: SocketAddr, mut queue: mpsc::Receiver<Vec<u8>>, clock: Arc<dyn Clock>) {
    let Some(Ok(mut stream)) = within(&*clock, SLOW, TcpStream::connect(to)).await else { return };
    while let Some(Some(frame)) = within(&*clock, IDLE / 2, queue.recv()).await {
        let size = u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes();
        let sent = async {
            stream.write_all(&size).await?;
            stream.write_all(&frame).await
        };
        if !matches!(within(&*clock, SLOW, sent).await, Some(Ok(()))) {
            return;
        }
    }
}

/// What `work` answers, if it does so in time.
async fn within<T>(clock: &dyn Clock, time: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = clock.sleep(time) => None,
    }
}

impl Network for Sockets {
    fn address(&self) -> SocketAddr {
        self.advertise
    }

    fn send(&self, to: SocketAddr, way: Way, bytes: Vec<u8>) -> Sent {
        let sent = match way {
            Way::Datagram => bytes.len() <= MAX_DATAGRAM && self.udp.try_send_to(&bytes, to).is_ok(),
            Way::Stream => self.queue(to).is_some_and(|queue| queue.try_send(bytes).is_ok()),
        };
        if sent { Sent::OnItsWay } else { Sent::Full }
    }

    fn is_full(&self, to: SocketAddr) -> bool {
        lock(&self.out).get(&to).is_some_and(|queue| queue.capacity() < QUEUE / 2)
    }

    fn receive(&self) -> BoxFuture<'_, Inbound> {
        Box::pin(async move {
            // One more than allowed: what is longer is cut, and no packet.
            let mut buffer = vec![0; MAX_DATAGRAM + 1];
            loop {
                let mut frames = self.frames.lock().await;
                tokio::select! {
                    biased;
                    Some(frame) = frames.recv() => return frame,
                    got = self.udp.recv_from(&mut buffer) => {
                        // An error is news of an earlier datagram that found nobody.
                        let Ok((size, from)) = got else { continue };
                        return Inbound::new(from, Way::Datagram, buffer[..size].to_vec());
                    }
                }
            }
        })
    }

    fn refuse(&self, from: SocketAddr) {
        if let Some(stream) = lock(&self.shared.streams).get(&from) {
            stream.end.notify_one();
        }
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.listener).take() {
            task.abort();
        }
        for stream in lock(&self.shared.streams).values() {
            stream.end.notify_one();
        }
    }
}
