//! Words to systemd, when it listens: ready, stopping, alive.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The socket of `NOTIFY_SOCKET`. Without one every word goes nowhere.
#[derive(Debug, Default)]
pub(super) struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// Reads the variables that systemd sets.
    pub(super) fn from_env(env: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut this = Self::default();
        for (name, value) in env {
            match name.as_str() {
                "NOTIFY_SOCKET" => this.to = connect(&value),
                "WATCHDOG_USEC" => this.watchdog = value.parse().ok().map(Duration::from_micros),
                _ => {}
            }
        }
        this
    }

    /// How often [`Notify::say`] must be called with `WATCHDOG=1`: twice per period.
    pub(super) fn beat(&self) -> Option<Duration> {
        self.watchdog.filter(|d| self.to.is_some() && !d.is_zero()).map(|d| d / 2)
    }

    /// Sends a word. Nobody waits for an answer; a lost one is systemd's affair.
    pub(super) fn say(&self, word: &str) {
        if let Some((socket, to)) = &self.to {
            let _ = socket.send_to_addr(word.as_bytes(), to);
        }
    }
}

fn connect(path: &str) -> Option<(UnixDatagram, SocketAddr)> {
    let to = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name).ok()?,
        None => SocketAddr::from_pathname(path).ok()?,
    };
    Some((UnixDatagram::unbound().ok()?, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_arrives_and_without_a_socket_nothing_happens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        listener.set_read_timeout(Some(Duration::from_secs(90))).unwrap();
        let env = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "3000000")];
        let notify = Notify::from_env(env.map(|(k, v)| (k.to_owned(), v.to_owned())));
        notify.say("READY=1");
        let mut buffer = [0; 64];
        let n = listener.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"READY=1");
        assert_eq!(notify.beat(), Some(Duration::from_millis(1_500)));
        let none = Notify::from_env([]);
        none.say("READY=1");
        assert_eq!(none.beat(), None);
    }
}
