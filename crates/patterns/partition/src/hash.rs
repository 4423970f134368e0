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
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash(Kind);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Xxh3(u64),
    Sip([u8; 16]),
}

impl Hash {
    /// XXH3-64 with a seed. The seed is part of the placement's identity, not a secret.
    #[must_use]
    pub const fn xxh3(seed: u64) -> Self {
        Self(Kind::Xxh3(seed))
    }

    /// `SipHash-1-3` with a 128-bit secret, about 6 ns slower per key.
    #[must_use]
    pub const fn keyed(secret: [u8; 16]) -> Self {
        Self(Kind::Sip(secret))
    }

    /// The seed; `None` for a keyed hash, whose secret does not show.
    #[must_use]
    pub const fn seed(&self) -> Option<u64> {
        match self.0 {
            Kind::Xxh3(seed) => Some(seed),
            Kind::Sip(_) => None,
        }
    }

    /// The hash of a key.
    #[must_use]
    #[inline]
    pub fn key(&self, key: &[u8]) -> u64 {
        match &self.0 {
            Kind::Xxh3(0) => xxh3::xxh3_64(key),
            Kind::Xxh3(seed) => xxh3::xxh3_64_with_seed(key, *seed),
            Kind::Sip(secret) => SipHasher13::new_with_key(secret).hash(key),
        }
    }

    /// The hash of a node's name, in a domain of its own.
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
            Kind::Xxh3(seed) => xxh3::xxh3_64_with_seed(name.as_bytes(), seed ^ domain),
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
            Kind::Xxh3(seed) => {
                to.text("xxh3");
                to.number(*seed);
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
            Kind::Xxh3(seed) => write!(f, "Xxh3({seed})"),
            Kind::Sip(_) => f.write_str("Sip(secret)"),
        }
    }
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
