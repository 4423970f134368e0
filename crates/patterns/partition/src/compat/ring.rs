//! One ring for every profile whose answer is the next point.

use std::fmt;

use xxhash_rust::xxh64::xxh64;

use super::haproxy::HaproxyHash;
use super::hashes::{cassandra_token, jenkins, md5_words};
use crate::error::ConfigError;
use crate::fingerprint::Canon;
use crate::node::{NodeIdx, Nodes};
use crate::owners::Owners;
use crate::place::{Place, Shares, sealed};
use crate::points::Points;
use crate::source::Source;

/// How a profile hashes keys onto its circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyHash {
    Cassandra,
    Crc32,
    Haproxy(HaproxyHash),
    Jenkins,
    Md5,
    Xxh64,
}

impl KeyHash {
    /// The hash in the upper bits of 64: circles of 32 bits are stretched, which changes no order.
    #[inline]
    fn of(self, key: &[u8]) -> u64 {
        let wide = |h: u32| u64::from(h) << 32;
        match self {
            Self::Cassandra => token_point(cassandra_token(key)),
            Self::Crc32 => wide(crc32fast::hash(key)),
            Self::Haproxy(hash) => wide(hash.of(key)),
            Self::Jenkins => wide(jenkins(key)),
            Self::Md5 => wide(md5_words(key)[0]),
            Self::Xxh64 => xxh64(key, 0),
        }
    }
}

/// Tokens are signed; points are not.
pub(super) fn token_point(token: i64) -> u64 {
    token.cast_unsigned() ^ (1 << 63)
}

/// Why the real system would not ask its ring for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bypass {
    /// nginx gives an empty key to round robin.
    EmptyKey,
    /// With one server there is nothing to choose.
    SingleServer,
    /// nginx gives up after 20 points of servers that are down.
    TooManyTries,
}

/// A profile that finds the next point on a circle: ketama, nginx, `HAProxy`, Envoy's ring, Cassandra.
///
/// ```
/// use mainstay_partition::{Place, compat};
///
/// let ring = compat::nginx().server("10.0.0.1:8080", 1).server("10.0.0.2:8080", 2).build()?;
/// let owner = ring.owner(b"/index.html").unwrap();
/// assert!(ring.nodes()[owner].id.as_str().starts_with("10.0.0."));
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct CompatRing {
    profile: &'static str,
    nodes: Nodes,
    points: Points,
    key: KeyHash,
    /// Servers whose points stay and whose turn passes; empty when there is none.
    down: Vec<bool>,
    /// Points passed before the real system gives up.
    tries: Option<usize>,
    reweighted: bool,
    fingerprint: u128,
}

/// What a profile hands over to become a ring.
pub(super) struct Parts<I> {
    pub(super) profile: &'static str,
    pub(super) version: u64,
    pub(super) parameters: Vec<u64>,
    pub(super) nodes: Nodes,
    pub(super) points: I,
    pub(super) key: KeyHash,
}

impl CompatRing {
    pub(super) fn build<I>(parts: Parts<I>) -> Result<Self, ConfigError>
    where
        I: Iterator<Item = (u64, u32)> + Clone,
    {
        let Parts { profile, version, parameters, nodes, points, key } = parts;
        let mut canon = Canon::profile(profile, version);
        canon.text(&format!("{key:?}"));
        canon.number(parameters.len() as u64);
        for parameter in parameters {
            canon.number(parameter);
        }
        canon.nodes(&nodes);
        Ok(Self {
            profile,
            points: Points::build(nodes.len(), points)?,
            nodes,
            key,
            down: Vec::new(),
            tries: None,
            reweighted: false,
            fingerprint: canon.finish(),
        })
    }

    pub(super) fn with_down(mut self, down: Vec<bool>, tries: usize) -> Self {
        self.tries = Some(tries);
        if down.contains(&true) {
            self.down = down;
        }
        self
    }

    pub(super) fn with_reweighted(mut self, reweighted: bool) -> Self {
        self.reweighted = reweighted;
        self
    }

    /// The profile's name.
    #[must_use]
    pub fn profile(&self) -> &'static str {
        self.profile
    }

    /// How many points there are.
    #[must_use]
    pub fn points(&self) -> usize {
        self.points.len()
    }

    /// Whether one weight above 1 has turned plain ketama into the weighted ring, as libmemcached does it
    /// silently: about 80% of all keys move.
    ///
    /// ```
    /// use mainstay_partition::compat::{KetamaMode, ketama};
    ///
    /// let plain = |weight| ketama(KetamaMode::Plain).server("a", 11211, 1).server("b", 11211, weight).build();
    /// assert_eq!((plain(1)?.reweighted(), plain(2)?.reweighted()), (false, true));
    /// # Ok::<(), mainstay_partition::ConfigError>(())
    /// ```
    #[must_use]
    pub fn reweighted(&self) -> bool {
        self.reweighted
    }

    /// Whether the real system would not use its ring for this key; then the owner here is only what the
    /// ring says.
    ///
    /// ```
    /// use mainstay_partition::compat::{Bypass, nginx};
    ///
    /// let two = nginx().server("a", 1).server("b", 1).build()?;
    /// assert_eq!((two.bypass(b"/"), two.bypass(b"")), (None, Some(Bypass::EmptyKey)));
    /// assert_eq!(nginx().server("a", 1).build()?.bypass(b"/"), Some(Bypass::SingleServer));
    /// # Ok::<(), mainstay_partition::ConfigError>(())
    /// ```
    #[must_use]
    pub fn bypass(&self, key: &[u8]) -> Option<Bypass> {
        if self.nodes.len() == 1 {
            return Some(Bypass::SingleServer);
        }
        let tries = self.tries?;
        if key.is_empty() {
            return Some(Bypass::EmptyKey);
        }
        let mut walk = self.points.walk(self.key.of(key));
        let passed = std::iter::from_fn(|| walk.next())
            .take(tries + 1)
            .take_while(|node| self.down.get(*node as usize).copied().unwrap_or(false))
            .count();
        (passed > tries).then_some(Bypass::TooManyTries)
    }
}

impl sealed::Sealed for CompatRing {}

impl Place for CompatRing {
    fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    #[inline]
    fn hash_of(&self, key: &[u8]) -> u64 {
        self.key.of(key)
    }

    #[inline]
    fn owner_of_hash(&self, hash: u64) -> Option<NodeIdx> {
        if self.down.is_empty() {
            return self.points.owner(hash).map(NodeIdx::new);
        }
        Source::PointsBut(self.points.walk(hash), &self.down).next().map(NodeIdx::new)
    }

    fn owners_of_hash(&self, hash: u64) -> Owners<'_> {
        let walk = self.points.walk(hash);
        let source =
            if self.down.is_empty() { Source::Points(walk) } else { Source::PointsBut(walk, &self.down) };
        Owners::new(&self.nodes, source)
    }

    /// Of the circle's arcs; servers that are down keep theirs here.
    fn shares(&self) -> Shares {
        Shares::new(self.points.arcs(self.nodes.len()), &self.nodes)
    }

    fn fingerprint(&self) -> u128 {
        self.fingerprint
    }
}

impl fmt::Debug for CompatRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompatRing")
            .field("profile", &self.profile)
            .field("key", &self.key)
            .field("nodes", &self.nodes.len())
            .field("points", &self.points.len())
            .finish_non_exhaustive()
    }
}
