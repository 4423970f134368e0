//! ketama as libmemcached computes it: plain, weighted, spy.

use super::hashes::{jenkins, md5_words};
use super::ring::{CompatRing, KeyHash, Parts};
use crate::error::ConfigError;
use crate::node::{Node, Nodes};

/// Names per server without weights, one point each.
const PLAIN_NAMES: u32 = 100;
/// Points per server on average with weights, four of each name.
const WEIGHTED_POINTS: f32 = 160.0;
const POINTS_PER_NAME: f32 = 4.0;
/// The port that libmemcached leaves out of names.
const DEFAULT_PORT: u16 = 11211;

/// Which ketama.
///
/// What clients call by one name are four rings. They place nearly every key differently, and libmemcached changes from
/// one to another by itself: a single weight above 1 turns `Plain` into the weighted ring, with Jenkins's hash unchanged.
///
/// ```
/// use mainstay_partition::{Place, compat::{KetamaMode, ketama}};
///
/// let points = |mode, weight| {
///     ketama(mode).server("10.0.1.1", 11211, weight).server("10.0.1.2", 11211, 1).build().map(|r| r.points())
/// };
/// assert_eq!((points(KetamaMode::Plain, 1)?, points(KetamaMode::Weighted, 1)?), (200, 320));
/// assert_ne!(points(KetamaMode::Plain, 3)?, 200);
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KetamaMode {
    /// `MEMCACHED_DISTRIBUTION_CONSISTENT`: 100 points, keys by Jenkins's hash. It turns into the weighted ring
    /// as soon as any weight is above 1.
    Plain,
    /// `MEMCACHED_DISTRIBUTION_CONSISTENT_KETAMA_SPY` with weights: names as the Java client spymemcached
    /// writes them.
    Spy,
    /// The same without weights: 100 points.
    SpyPlain,
    /// `MEMCACHED_BEHAVIOR_KETAMA_WEIGHTED`, what most clients call ketama: about 160 points, MD5.
    Weighted,
}

/// How ketama hashes keys, and the points of the ring without weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KetamaHash {
    /// Jenkins's one-at-a-time over signed bytes, libmemcached's default.
    Jenkins,
    /// The first word of MD5.
    Md5,
}

impl KetamaHash {
    fn of(self, key: &[u8]) -> u32 {
        match self {
            Self::Jenkins => jenkins(key),
            Self::Md5 => md5_words(key)[0],
        }
    }
}

/// ketama as libmemcached computes it.
///
/// A weight that changes moves points of *other* servers too, by design of ketama; take
/// [`Ring`](crate::Ring) where no libmemcached client decides.
///
/// ```
/// use mainstay_partition::{Place, compat::{KetamaMode, ketama}};
///
/// let ring = ketama(KetamaMode::Weighted)
///     .server("10.0.1.1", 11211, 600)
///     .server("10.0.1.2", 11211, 300)
///     .build()?;
/// assert!(ring.owner(b"user:17").is_some());
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[must_use]
pub fn ketama(mode: KetamaMode) -> KetamaBuilder {
    let hash = match mode {
        KetamaMode::Plain | KetamaMode::SpyPlain => KetamaHash::Jenkins,
        KetamaMode::Spy | KetamaMode::Weighted => KetamaHash::Md5,
    };
    KetamaBuilder { mode, hash, servers: Vec::new() }
}

/// Settings of [`ketama`].
#[derive(Clone, Debug)]
pub struct KetamaBuilder {
    mode: KetamaMode,
    hash: KetamaHash,
    servers: Vec<(String, u16, u32)>,
}

impl KetamaBuilder {
    /// Adds a server; equal points go to the one added first. A weight of 0 counts as 1.
    #[must_use]
    pub fn server(mut self, host: impl Into<String>, port: u16, weight: u32) -> Self {
        self.servers.push((host.into(), port, weight.max(1)));
        self
    }

    /// Another key hash than the mode's own.
    #[must_use]
    pub fn key_hash(mut self, hash: KetamaHash) -> Self {
        self.hash = hash;
        self
    }

    /// Checks everything and sorts the points.
    ///
    /// # Errors
    /// A server twice, an empty host, too many points.
    pub fn build(self) -> Result<CompatRing, ConfigError> {
        let spy = matches!(self.mode, KetamaMode::Spy | KetamaMode::SpyPlain);
        let weighted = matches!(self.mode, KetamaMode::Spy | KetamaMode::Weighted);
        let reweighted = !weighted && self.servers.iter().any(|(_, _, weight)| *weight > 1);
        if let Some((_, port, _)) = self.servers.iter().find(|(host, ..)| host.is_empty()) {
            let (value, allowed) = (format!(":{port}"), "a host before the port");
            return Err(ConfigError::new("server.host", value, allowed));
        }
        let nodes = self.servers.iter().map(|(h, p, w)| Node::new(format!("{h}:{p}")).weight(*w)).collect();
        let nodes = Nodes::numbered(nodes)?;
        let prefix = |host: &str, port: u16| match (spy, port) {
            (true, _) => format!("/{host}:{port}"),
            (false, DEFAULT_PORT) => host.to_owned(),
            (false, _) => format!("{host}:{port}"),
        };
        let mut points = Vec::new();
        for ((host, port, weight), at) in self.servers.iter().zip(0_u32..) {
            let name = prefix(host, *port);
            if weighted || reweighted {
                for i in 0..names(*weight, nodes.total_weight(), nodes.len()) {
                    let words = md5_words(format!("{name}-{i}").as_bytes());
                    points.extend(words.map(|p| (u64::from(p) << 32, at)));
                }
            } else {
                let names = (0..PLAIN_NAMES).map(|i| self.hash.of(format!("{name}-{i}").as_bytes()));
                points.extend(names.map(|p| (u64::from(p) << 32, at)));
            }
        }
        let key = match self.hash {
            KetamaHash::Jenkins => KeyHash::Jenkins,
            KetamaHash::Md5 => KeyHash::Md5,
        };
        let parts = Parts {
            profile: "libmemcached ketama",
            version: 1,
            parameters: vec![u64::from(spy), u64::from(weighted || reweighted)],
            nodes,
            points: points.iter().copied(),
            key,
        };
        Ok(CompatRing::build(parts)?.with_reweighted(reweighted))
    }
}

/// Names of a server on the weighted ring. Every step is rounded to f32, which shows: 25 equal servers get 39
/// names and not 40.
fn names(weight: u32, total: u64, servers: usize) -> u32 {
    let part = weight as f32 / total as f32;
    ((part * WEIGHTED_POINTS / POINTS_PER_NAME) * servers as f32 + 1e-10_f32).floor() as u32
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn f3_equal_servers_and_weights_round_as_f32() {
        let short: Vec<u32> = (1..=100).filter(|n| names(1, u64::from(*n), *n as usize) == 39).collect();
        assert_eq!(short, [25, 47, 50, 55, 61, 71, 94, 100]);
        for n in 1..=400_u32 {
            // Each step on its own, rounded by a detour over f64.
            let round = |x: f64| x as f32;
            let pct = round(1.0 / f64::from(n));
            let a = round(f64::from(pct) * 160.0);
            let b = round(f64::from(a) / 4.0);
            let c = round(f64::from(b) * f64::from(n));
            let d = round(f64::from(c) + f64::from(1e-10_f32));
            assert_eq!(names(1, u64::from(n), n as usize), d.floor() as u32, "{n} servers");
        }
        assert_eq!(names(4, 25, 5), 31);
    }
}
