//! Key and node hashes: bytes in, 64 mixed bits out, the same on every platform.

use std::fmt;

use siphasher::sip::SipHasher13;
use xxhash_rust::xxh3;

use crate::fingerprint::Canon;

/// Separates the domain of node names from that of keys, so that a key equal to a node's name does not
/// fall on the node's first point.
const NODE_DOMAIN: u64 = 0x6e6f_6465_5f76_3031;
/// And zone names from both: a node named like its zone must not profit from the zone's score.
const ZONE_DOMAIN: u64 = 0x7a6f_6e65_5f76_3031;

/// How keys and node names become 64 bits.
///
/// Take [`Hash::default`] among your own services. Where *users* choose keys, they could aim all of them at
/// one node; [`Hash::keyed`] with a secret makes that as hard as breaking the keyed function
/// (Aumasson, Bernstein: "`SipHash`: a fast short-input PRF", 2012).
/// The same bytes give the same hash on every platform and in every release: XXH3-64 and `SipHash-1-3` are
/// frozen by their specifications, and the profile's version would change with them.
///
/// ```
/// use mainstay_partition::{Hash, Node, Place, Ring};
///
/// let nodes = || ["a", "b", "c"].map(Node::new);
/// let open = Ring::builder().nodes(nodes()).build()?;
/// let secret = Ring::builder().nodes(nodes()).hash(Hash::keyed(*b"sixteen secrets!")).build()?;
/// assert_ne!(open.fingerprint(), secret.fingerprint());
/// assert_ne!(open.hash_of(b"user:17"), secret.hash_of(b"user:17"));
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash(Kind);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Xxh3(Seeded),
    Sip([u8; 16]),
}

/// A seed, and what XXH3-64 of 9 to 16 bytes combines with the key's two ends: ready, for every lookup needs it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seeded {
    seed: u64,
    low: u64,
    high: u64,
}

impl Seeded {
    const fn new(seed: u64) -> Self {
        // Bytes 24 to 40 and 40 to 56 of the default secret, each half combined with the other.
        const LOW: u64 = 0x6782_737b_ea42_39b9;
        const HIGH: u64 = 0xaf56_bc3b_0996_523a;
        Self { seed, low: LOW.wrapping_add(seed), high: HIGH.wrapping_sub(seed) }
    }
}

impl Hash {
    /// XXH3-64 with a seed. The seed is part of the placement's identity, not a secret.
    ///
    /// A new seed is a new placement in which nearly every key has another owner. Take one to mend two names that collide in
    /// a [`Rendezvous`](crate::Rendezvous), or to keep two tiers from hashing alike; otherwise leave it at 0.
    ///
    /// ```
    /// use mainstay_partition::Hash;
    ///
    /// let (first, second) = (Hash::default(), Hash::xxh3(1));
    /// assert_eq!((first.seed(), second.seed()), (Some(0), Some(1)));
    /// assert_ne!(first.key(b"user:17"), second.key(b"user:17"));
    /// ```
    #[must_use]
    pub const fn xxh3(seed: u64) -> Self {
        Self(Kind::Xxh3(Seeded::new(seed)))
    }

    /// `SipHash-1-3` with a 128-bit secret, about 6 ns slower per key.
    /// Every client needs the same secret; it shows in no fingerprint and in no debug output. Draw it once, keep it
    /// as you keep other secrets: a new one moves nearly every key.
    ///
    /// ```
    /// use mainstay_partition::Hash;
    ///
    /// let hash = Hash::keyed([7; 16]);
    /// assert_eq!((hash.seed(), format!("{hash:?}")), (None, "Sip(secret)".to_owned()));
    /// ```
    #[must_use]
    pub const fn keyed(secret: [u8; 16]) -> Self {
        Self(Kind::Sip(secret))
    }

    /// The seed; `None` for a keyed hash, whose secret does not show.
    #[must_use]
    pub const fn seed(&self) -> Option<u64> {
        match self.0 {
            Kind::Xxh3(by) => Some(by.seed),
            Kind::Sip(_) => None,
        }
    }

    /// The hash of a key.
    #[must_use]
    #[inline]
    pub fn key(&self, key: &[u8]) -> u64 {
        match &self.0 {
            Kind::Xxh3(by) if (9..=16).contains(&key.len()) => xxh3_9_to_16(key, by),
            _ => self.any_length(key),
        }
    }

    /// Apart, so that the short path is small enough to be part of every lookup.
    #[inline(never)]
    fn any_length(&self, key: &[u8]) -> u64 {
        match &self.0 {
            Kind::Xxh3(Seeded { seed: 0, .. }) => xxh3::xxh3_64(key),
            Kind::Xxh3(by) => xxh3::xxh3_64_with_seed(key, by.seed),
            Kind::Sip(secret) => SipHasher13::new_with_key(secret).hash(key),
        }
    }

    /// The hash of a node's name, in a domain of its own.
    /// ```
    /// use mainstay_partition::Hash;
    ///
    /// let hash = Hash::default();
    /// assert_ne!(hash.node("a"), hash.key(b"a"), "a key that is called like a node does not follow it");
    /// ```
    #[must_use]
    pub fn node(&self, id: &str) -> u64 {
        self.name(id, NODE_DOMAIN)
    }

    /// The hash of a zone's name.
    pub(crate) fn zone(&self, zone: &str) -> u64 {
        self.name(zone, ZONE_DOMAIN)
    }

    fn name(&self, name: &str, domain: u64) -> u64 {
        match &self.0 {
            Kind::Xxh3(by) => xxh3::xxh3_64_with_seed(name.as_bytes(), by.seed ^ domain),
            Kind::Sip(secret) => {
                let mut other = *secret;
                for (a, b) in other.iter_mut().zip(domain.to_le_bytes()) {
                    *a ^= b;
                }
                SipHasher13::new_with_key(&other).hash(name.as_bytes())
            }
        }
    }

    /// The part of a fingerprint. A secret does not show: only a hash under it does.
    pub(crate) fn canon(&self, to: &mut Canon) {
        match &self.0 {
            Kind::Xxh3(by) => {
                to.text("xxh3");
                to.number(by.seed);
            }
            Kind::Sip(_) => {
                to.text("sip13");
                to.number(self.node("fingerprint"));
            }
        }
    }
}

impl Default for Hash {
    /// XXH3-64 with seed 0.
    fn default() -> Self {
        Self::xxh3(0)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Xxh3(by) => write!(f, "Xxh3({})", by.seed),
            Kind::Sip(_) => f.write_str("Sip(secret)"),
        }
    }
}

/// XXH3-64 of 9 to 16 bytes, from its specification (Collet, xxHash 0.8): the length of most keys, inlined.
#[inline]
fn xxh3_9_to_16(key: &[u8], by: &Seeded) -> u64 {
    let (Some(first), Some(last)) = (key.first_chunk(), key.last_chunk()) else { return 0 };
    let low = u64::from_le_bytes(*first) ^ by.low;
    let high = u64::from_le_bytes(*last) ^ by.high;
    let product = u128::from(low) * u128::from(high);
    let folded = product as u64 ^ (product >> 64) as u64;
    let mut h = (key.len() as u64).wrapping_add(low.swap_bytes()).wrapping_add(high).wrapping_add(folded);
    h ^= h >> 37;
    h = h.wrapping_mul(0x1656_6791_9e37_79f9);
    h ^ (h >> 32)
}

/// The finalizer of `MurmurHash3` (Appleby, public domain): a bijection in which every input bit reaches
/// every output bit.
#[inline]
pub(crate) const fn mix64(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

    use super::{Hash, mix64};

    #[test]
    fn every_length_is_xxh3() {
        let bytes: Vec<u8> = (0..300).map(|i| mix64(i) as u8).collect();
        for len in 0..bytes.len() {
            let key = &bytes[..len];
            assert_eq!(Hash::default().key(key), xxh3_64(key), "{len} bytes");
            for seed in [1, 77, u64::MAX, 0x6e6f_6465_5f76_3031] {
                assert_eq!(
                    Hash::xxh3(seed).key(key),
                    xxh3_64_with_seed(key, seed),
                    "{len} bytes, seed {seed}"
                );
            }
        }
    }
}
