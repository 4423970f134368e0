//! `HAProxy`: `hash-type consistent`.

use std::collections::BTreeSet;

use super::hashes::{djb2, full_hash, sdbm};
use super::ring::{CompatRing, KeyHash, Parts};
use crate::error::ConfigError;
use crate::node::{Node, Nodes};

/// Points per unit of weight.
const POINTS: u32 = 16;
/// Largest weight, and points reserved per server id.
const MAX_WEIGHT: u32 = 256;
const ID_RANGE: u32 = 4096;

/// A hash function of `HAProxy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HaproxyFunction {
    /// `crc32`.
    Crc32,
    /// `djb2`.
    Djb2,
    /// `sdbm`.
    Sdbm,
}

/// The `hash-type` line.
///
/// The three forms disagree on nearly every key, and the shortest one is not the plain function:
///
/// ```
/// use mainstay_partition::{Place, compat::{self, HaproxyFunction, HaproxyHash}};
///
/// let owners = |hash| -> Result<Vec<_>, mainstay_partition::ConfigError> {
///     let backend = compat::haproxy().hash_type(hash).server("s1", 1).server("s2", 1).build()?;
///     Ok((0..100_u32).map(|i| backend.owner(&i.to_le_bytes())).collect())
/// };
/// let unnamed = owners(HaproxyHash::Default)?;
/// assert_eq!(unnamed, owners(HaproxyHash::Avalanche(HaproxyFunction::Sdbm))?);
/// assert_ne!(unnamed, owners(HaproxyHash::Bare(HaproxyFunction::Sdbm))?);
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HaproxyHash {
    /// `hash-type consistent FUNCTION avalanche`.
    Avalanche(HaproxyFunction),
    /// `hash-type consistent FUNCTION`: naming the function drops the avalanche.
    Bare(HaproxyFunction),
    /// `hash-type consistent`: sdbm with avalanche.
    #[default]
    Default,
}

impl HaproxyHash {
    pub(super) fn of(self, key: &[u8]) -> u32 {
        let bare = |function| match function {
            HaproxyFunction::Crc32 => crc32fast::hash(key),
            HaproxyFunction::Djb2 => djb2(key),
            HaproxyFunction::Sdbm => sdbm(key),
        };
        match self {
            Self::Avalanche(function) => full_hash(bare(function)),
            Self::Bare(function) => bare(function),
            Self::Default => full_hash(sdbm(key)),
        }
    }
}

/// The consistent hash of `HAProxy` with points by server id (`hash-key id`, the default).
///
/// Ids follow the position in the list unless they are given, so that taking out a server renumbers those after
/// it: give ids. With points this dense in 32 bits some coincide; the server listed first has them.
///
/// ```
/// use mainstay_partition::{Place, compat};
///
/// let backend = compat::haproxy().server("s1", 1).server_id("s2", 2, 42).build()?;
/// assert_eq!(backend.points(), 48);
/// assert!(backend.owner(b"/index.html").is_some());
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[must_use]
pub fn haproxy() -> HaproxyBuilder {
    HaproxyBuilder { hash: HaproxyHash::Default, servers: Vec::new() }
}

/// Settings of [`haproxy`].
#[derive(Clone, Debug)]
pub struct HaproxyBuilder {
    hash: HaproxyHash,
    servers: Vec<(String, u32, Option<u32>)>,
}

impl HaproxyBuilder {
    /// The `hash-type` line.
    #[must_use]
    pub fn hash_type(mut self, hash: HaproxyHash) -> Self {
        self.hash = hash;
        self
    }

    /// A `server NAME ... weight N` line.
    #[must_use]
    pub fn server(mut self, name: impl Into<String>, weight: u32) -> Self {
        self.servers.push((name.into(), weight, None));
        self
    }

    /// A `server NAME ... weight N id ID` line.
    ///
    /// The points hang on the id alone, so the server keeps its keys whatever is listed before it:
    ///
    /// ```
    /// use mainstay_partition::{Place, compat};
    ///
    /// let name = |backend: &compat::CompatRing| {
    ///     backend.owner(b"/index.html").map(|i| backend.nodes()[i].id.as_str().to_owned())
    /// };
    /// let both = compat::haproxy().server_id("s1", 1, 7).server_id("s2", 1, 9).build()?;
    /// let turned = compat::haproxy().server_id("s2", 1, 9).server_id("s1", 1, 7).build()?;
    /// assert_eq!(name(&both), name(&turned));
    /// # Ok::<(), mainstay_partition::ConfigError>(())
    /// ```
    #[must_use]
    pub fn server_id(mut self, name: impl Into<String>, weight: u32, id: u32) -> Self {
        self.servers.push((name.into(), weight, Some(id)));
        self
    }

    /// Checks everything and sorts the points.
    ///
    /// # Errors
    /// A name or an id twice, an id of 0, a weight above 256, weights that are all zero.
    pub fn build(self) -> Result<CompatRing, ConfigError> {
        if let Some((name, weight, _)) = self.servers.iter().find(|(_, weight, _)| *weight > MAX_WEIGHT) {
            let value = format!("{weight} of {name}");
            return Err(ConfigError::new("server.weight", value, "0 to 256"));
        }
        let nodes = self.servers.iter().map(|(name, weight, _)| Node::new(name.as_str()).weight(*weight));
        let nodes = Nodes::numbered(nodes.collect())?;
        nodes.require_weight()?;
        let ids = self.ids()?;
        let mut points = Vec::new();
        for (((_, weight, _), id), at) in self.servers.iter().zip(&ids).zip(0_u32..) {
            let base = id.wrapping_mul(ID_RANGE);
            points.extend((0..POINTS * weight).map(|j| (full_hash(base.wrapping_add(j)), at)));
        }
        points.sort_unstable();
        let borders = borders(&points);
        let parts = Parts {
            profile: "haproxy consistent",
            version: 1,
            parameters: ids.into_iter().map(u64::from).collect(),
            nodes,
            points: borders.iter().copied(),
            key: KeyHash::Haproxy(self.hash),
        };
        CompatRing::build(parts)
    }

    /// Given ids, and for the others a counter that moves on with every server and over ids in use.
    fn ids(&self) -> Result<Vec<u32>, ConfigError> {
        let mut used = BTreeSet::new();
        for id in self.servers.iter().filter_map(|(_, _, id)| *id) {
            if id == 0 {
                return Err(ConfigError::new("server.id", id, "at least 1"));
            }
            if !used.insert(id) {
                return Err(ConfigError::new("server.id", id, "each id once"));
            }
        }
        let mut next = 1_u32;
        let mut ids = Vec::with_capacity(self.servers.len());
        for (_, _, id) in &self.servers {
            let id = id.unwrap_or_else(|| {
                while used.contains(&next) {
                    next += 1;
                }
                used.insert(next);
                next
            });
            ids.push(id);
            next = next.saturating_add(1);
        }
        Ok(ids)
    }
}

/// The nearest point in either direction, as a circle of next points: halfway to its successor, a point's part
/// ends. A distance of 2d+1 leaves the middle to the earlier point, as `<=` does.
fn borders(points: &[(u32, u32)]) -> Vec<(u64, u32)> {
    let after = points.iter().cycle().skip(1);
    let border = |((point, owner), (next, _)): (&(u32, u32), &(u32, u32))| {
        let half = next.wrapping_sub(*point) / 2;
        (u64::from(point.wrapping_add(half)) << 32, *owner)
    };
    points.iter().zip(after).map(border).collect()
}

#[cfg(test)]
mod tests {
    use super::{borders, haproxy};
    use crate::hash::mix64;
    use crate::points::Points;

    /// The rule as `HAProxy` has it: the next point, unless the one before is not farther.
    fn nearest(points: &[(u32, u32)], h: u32) -> u32 {
        let next = points.iter().position(|p| p.0 >= h).unwrap_or(0);
        let before = (next + points.len() - 1) % points.len();
        let (to, from) = (points[next].0.wrapping_sub(h), h.wrapping_sub(points[before].0));
        if from <= to { points[before].1 } else { points[next].1 }
    }

    #[test]
    fn borders_are_the_nearest_point() {
        let sets: [&[u32]; 6] = [
            &[10, 11, 13, 16, 20],
            &[10, 10, 10, 11, 11, 40],
            &[0, u32::MAX],
            &[5, u32::MAX - 3, u32::MAX - 3],
            &[7, 0x8000_0007],
            &[1, 2, 3, 4, 5, 6, 7],
        ];
        for set in sets {
            let points: Vec<(u32, u32)> = set.iter().copied().zip(0..).collect();
            let ring = Points::build(points.len(), borders(&points).into_iter()).unwrap();
            let near = |p: u32| (0..64).map(move |d| p.wrapping_add(d).wrapping_sub(32));
            let some = (0..2_000).map(|i| mix64(i) as u32);
            for h in set.iter().copied().flat_map(near).chain(some) {
                assert_eq!(ring.owner(u64::from(h) << 32), Some(nearest(&points, h)), "{set:?} at {h}");
            }
        }
    }

    #[test]
    fn ids_are_counted_over_those_in_use() {
        let ids = haproxy().server("a", 1).server("b", 1).server_id("c", 1, 1).server("d", 1).ids().unwrap();
        assert_eq!(ids, [2, 3, 1, 5]);
        assert!(haproxy().server_id("a", 1, 7).server_id("b", 1, 7).build().is_err());
    }
}
