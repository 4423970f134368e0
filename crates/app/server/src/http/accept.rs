//! Our own accept loop: caps and timeouts that hold before a request exists (slow and silent clients).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Code, Error, Result};
use crate::http::auth::whole;
use crate::http::patient::Patient;
use crate::http::tls::{Tls, name_of};
use crate::http::{Gate, Peer};

/// hyper's read buffer: request line and headers must fit. Above our own limits, so that ours answer first
/// with a problem; beyond it hyper answers 431 by itself.
const READ_BUFFER: usize = 32 * 1024;
/// Most header fields of one request.
const MAX_HEADER_FIELDS: usize = 100;
/// How long a connection without a request may take to close when the server stops.
const IDLE_CLOSE: Duration = Duration::from_millis(100);
/// Longest TLS handshake: a silent client must not hold a place (SEC-7).
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after a failed accept (out of file descriptors): trying at once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound listener.
pub(crate) struct Listener {
    socket: TcpListener,
    pub(crate) address: SocketAddr,
}

/// Binds the first usable address of `listen`.
///
/// # Errors
/// When the address is malformed, taken or not of this machine.
pub(crate) async fn bind(listen: &str) -> Result<Listener> {
    let failed = |e: std::io::Error| Error::with(Code::CannotListen, format!("cannot listen on {listen}"), e);
    let socket = TcpListener::bind(listen).await.map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    Ok(Listener { socket, address })
}

/// Serves until the gate drains, then waits for what is in flight, at most `limits.drain`.
pub(crate) async fn serve(listener: Listener, gate: Arc<Gate>, tls: Option<Arc<Tls>>) {
    let open = Arc::new(Semaphore::new(gate.limits.connections));
    let per_ip = Arc::new(PerIp { counts: Mutex::default(), cap: gate.limits.connections_per_ip });
    loop {
        let accepted = tokio::select! {
            biased;
            () = gate.drain.cancelled() => break,
            accepted = listener.socket.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(pair) => pair,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                gate.rt.clock().sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Over a cap the connection is closed at once: cheaper than an answer, and the client retries.
        let Ok(permit) = Arc::clone(&open).try_acquire_owned() else { continue };
        let Some(slot) = PerIp::take(&per_ip, peer.ip()) else { continue };
        let gate = Arc::clone(&gate);
        let rt = gate.rt.clone();
        let place = (permit, slot);
        rt.spawn("http-connection", connection(gate, tls.clone(), stream, peer, place));
    }
    drop(listener);
    let all = u32::try_from(gate.limits.connections).unwrap_or(u32::MAX);
    tokio::select! {
        biased;
        _ = open.acquire_many(all) => {}
        () = gate.rt.clock().sleep(gate.limits.drain) => {
            tracing::warn!("connections were still open at the end of the drain");
        }
    }
}

async fn connection(
    gate: Arc<Gate>,
    tls: Option<Arc<Tls>>,
    stream: TcpStream,
    peer: SocketAddr,
    _place: (OwnedSemaphorePermit, Slot),
) {
    let _ = stream.set_nodelay(true);
    let socket = Patient::new(stream, gate.rt.clone(), gate.limits.write_timeout);
    let mut from = Peer { ip: peer.ip(), name: None };
    let Some(tls) = tls else { return talk(gate, socket, from).await };
    let limit = gate.limits.header_timeout.min(HANDSHAKE);
    let secure = tokio::select! {
        biased;
        done = tls.acceptor().accept(socket) => done,
        () = gate.rt.clock().sleep(limit) => return,
        () = gate.drain.cancelled() => return,
    };
    // A failed handshake is the client's affair: its alert says why.
    match secure {
        Ok(secure) => {
            let chain = secure.get_ref().1.peer_certificates();
            from.name = chain.and_then(|chain| name_of(chain.first()?));
            talk(gate, secure, from).await;
        }
        Err(error) => tracing::debug!(%peer, %error, "a handshake failed"),
    }
}

async fn talk(gate: Arc<Gate>, socket: impl AsyncRead + AsyncWrite + Unpin, peer: Peer) {
    let busy = Arc::new(AtomicUsize::new(0));
    let (inner, counter) = (Arc::clone(&gate), Arc::clone(&busy));
    let service = service_fn(move |request: Request<Incoming>| {
        let (gate, busy, peer) = (Arc::clone(&inner), Arc::clone(&counter), peer.clone());
        async move {
            busy.fetch_add(1, Ordering::Relaxed);
            let response = gate.handle(peer, request).await;
            busy.fetch_sub(1, Ordering::Relaxed);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(gate.limits.header_timeout)
        .max_buf_size(READ_BUFFER)
        .max_headers(MAX_HEADER_FIELDS)
        .serve_connection(TokioIo::new(socket), service);
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        () = gate.drain.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    if busy.load(Ordering::Relaxed) > 0 {
        let _ = connection.await;
        return;
    }
    // A silent client gets no more than a moment: it would hold up the stop until its header timeout.
    tokio::select! {
        biased;
        _ = connection => {}
        () = gate.rt.clock().sleep(IDLE_CLOSE) => {}
    }
}

/// Open connections per host.
struct PerIp {
    counts: Mutex<BTreeMap<IpAddr, usize>>,
    cap: usize,
}

/// One connection of an address; gives its place back when dropped.
struct Slot {
    per_ip: Arc<PerIp>,
    ip: IpAddr,
}

impl PerIp {
    fn take(this: &Arc<Self>, ip: IpAddr) -> Option<Slot> {
        let ip = whole(ip);
        let mut counts = this.counts.lock().expect("invariant: no panic under this lock");
        let count = counts.entry(ip).or_insert(0);
        if *count >= this.cap {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Slot { per_ip: Arc::clone(this), ip })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.per_ip.counts.lock().expect("invariant: no panic under this lock");
        if let Some(count) = counts.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_07_one_host_has_one_count_of_connections() {
        let per_ip = Arc::new(PerIp { counts: Mutex::default(), cap: 2 });
        let take = |text: &str| PerIp::take(&per_ip, text.parse().unwrap());
        let held = [take("2001:db8::1").unwrap(), take("2001:db8::ffff:2").unwrap()];
        assert!(take("2001:db8::3").is_none(), "the same /64");
        assert!(take("2001:db8:0:1::1").is_some() && take("192.0.2.1").is_some());
        drop(held);
        assert!(take("2001:db8::4").is_some());
        assert!(per_ip.counts.lock().unwrap().is_empty(), "what is closed is forgotten");
    }
}
