//! Addresses that no other test process draws.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// The upper half of 127/8, so that nobody's 127.0.0.1 or 127.0.1.1 is meant.
const FIRST_OCTET_PAIR: u8 = 128;

/// A loopback address of this process with a port that is free now.
///
/// Somebody may take the port before the server does; [`Server::start`](crate::servers::Server::start) then
/// draws again.
///
/// # Errors
/// The system has no free port on the address.
pub fn free_address() -> io::Result<SocketAddr> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // Process numbers differ between test targets that run at the same time; the count between servers.
    let [_, high, low, _] = (process << 8).to_be_bytes();
    let ip = Ipv4Addr::new(127, FIRST_OCTET_PAIR | (high & 0x7f), low, (count % 250 + 2) as u8);
    TcpListener::bind((ip, 0))?.local_addr()
}
