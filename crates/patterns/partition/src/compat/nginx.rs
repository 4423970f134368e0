//! nginx: `hash KEY consistent`.

use super::ring::{CompatRing, KeyHash, Parts};
use crate::error::ConfigError;
use crate::node::{Node, Nodes};
use crate::ring::MAX_POINTS;

/// Points per unit of weight.
const POINTS: u64 = 160;
/// Points of servers that are down which nginx passes before it gives up.
const TRIES: usize = 20;

/// The consistent hash of nginx.
///
/// Names are hashed as the configuration writes them, not the addresses behind them; a name with several
/// addresses is one node here, among which nginx goes round robin. [`CompatRing::bypass`] says when nginx would
/// not use the hash at all.
///
/// ```
/// use mainstay_partition::{Place, compat};
///
/// // upstream { hash $uri consistent; server a.example:8080; server b.example:8080 down; }
/// let upstream = compat::nginx().server("a.example:8080", 1).down("b.example:8080", 1).build()?;
/// let owner = upstream.owner(b"/index.html").unwrap();
/// assert_eq!(upstream.nodes()[owner].id.as_str(), "a.example:8080", "points of a server that is down pass on");
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[must_use]
pub fn nginx() -> NginxBuilder {
    NginxBuilder { servers: Vec::new() }
}

/// Settings of [`nginx`].
///
/// Servers in the order of the configuration: where two points coincide, the one listed first has it. What nginx reads
/// from other lines (`max_fails`, `backup`, which it refuses beside `hash`) is not part of the answer here.
#[derive(Clone, Debug)]
pub struct NginxBuilder {
    servers: Vec<(String, u32, bool)>,
}

impl NginxBuilder {
    /// A `server NAME weight=N;` line.
    #[must_use]
    pub fn server(mut self, name: impl Into<String>, weight: u32) -> Self {
        self.servers.push((name.into(), weight, false));
        self
    }

    /// A `server NAME weight=N down;` line: its points stay, its turns pass on.
    #[must_use]
    pub fn down(mut self, name: impl Into<String>, weight: u32) -> Self {
        self.servers.push((name.into(), weight, true));
        self
    }

    /// Checks everything and sorts the points.
    ///
    /// # Errors
    /// A server twice or without a name, a weight of 0 (nginx refuses it), too many points.
    pub fn build(self) -> Result<CompatRing, ConfigError> {
        if let Some((name, ..)) = self.servers.iter().find(|(_, weight, _)| *weight == 0) {
            let value = format!("0 of {name}");
            return Err(ConfigError::new("server.weight", value, "at least 1"));
        }
        let nodes = self.servers.iter().map(|(name, weight, _)| Node::new(name.as_str()).weight(*weight));
        let nodes = Nodes::numbered(nodes.collect())?;
        if nodes.total_weight() > MAX_POINTS as u64 / POINTS {
            let allowed = format!("at most {} in total", MAX_POINTS as u64 / POINTS);
            let weight = nodes.total_weight();
            return Err(ConfigError::new("server.weight", weight, allowed));
        }
        let mut points = Vec::new();
        for ((name, weight, _), at) in self.servers.iter().zip(0_u32..) {
            points.extend(chain(name, POINTS * u64::from(*weight)).map(|p| (u64::from(p) << 32, at)));
        }
        // One point per value; the first server keeps it.
        points.sort_unstable();
        points.dedup_by_key(|(point, _)| *point);
        let parts = Parts {
            profile: "nginx consistent",
            version: 1,
            parameters: self.servers.iter().map(|(_, _, down)| u64::from(*down)).collect(),
            nodes,
            points: points.iter().copied(),
            key: KeyHash::Crc32,
        };
        let down = self.servers.iter().map(|(_, _, down)| *down).collect();
        Ok(CompatRing::build(parts)?.with_down(down, TRIES))
    }
}

/// Each point is the checksum of host, zero byte, port and the point before.
fn chain(name: &str, count: u64) -> impl Iterator<Item = u32> {
    let (host, port) = split(name);
    let mut base = crc32fast::Hasher::new();
    base.update(host.as_bytes());
    base.update(&[0]);
    base.update(port.as_bytes());
    let mut before = 0_u32;
    (0..count).map(move |_| {
        let mut hasher = base.clone();
        hasher.update(&before.to_le_bytes());
        before = hasher.finalize();
        before
    })
}

/// Host and port of a name. The prefix of a socket file goes, and what follows has no port.
fn split(name: &str) -> (&str, &str) {
    if let Some(path) = name.get(..5).filter(|p| p.eq_ignore_ascii_case("unix:")).and(name.get(5..)) {
        return (path, "");
    }
    match name.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, port),
        _ => (name, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn names_are_split_as_nginx_does() {
        for (name, host, port) in [
            ("10.0.0.1:80", "10.0.0.1", "80"),
            ("10.0.0.1", "10.0.0.1", ""),
            ("Cache.Example:0080", "Cache.Example", "0080"),
            ("[::1]:80", "[::1]", "80"),
            ("[::1]", "[::1]", ""),
            ("unix:/run/a:1", "/run/a:1", ""),
            ("host:", "host", ""),
            ("host:8x", "host:8x", ""),
        ] {
            assert_eq!(split(name), (host, port), "{name}");
        }
    }
}
