//! Hashes that are the same on every platform and in every version.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;
use siphasher::sip128::{Hasher128 as _, SipHasher13 as SipHasher128};

use crate::wire::{Wire, encode};

/// 64 bits of `value`'s encoding, with a fixed key: for ties, not against attackers.
pub(crate) fn of_value<T: Wire>(value: &T) -> u64 {
    of_bytes(&encode(value))
}

pub(crate) fn of_bytes(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    hasher.write(bytes);
    hasher.finish()
}

/// The secret that digests are keyed with: who does not know it cannot aim at collisions. Every replica of a
/// cluster needs the same.
///
/// ```
/// use mainstay_consistency::replicate::DigestKey;
///
/// assert_eq!(format!("{:?}", DigestKey::new([7; 16])), "DigestKey(..)");
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DigestKey([u8; 16]);

impl DigestKey {
    /// A key of these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// 128 bits of `bytes`.
    pub(crate) fn hash(&self, bytes: &[u8]) -> u128 {
        let mut hasher = SipHasher128::new_with_key(&self.0);
        hasher.write(bytes);
        hasher.finish128().as_u128()
    }

    pub(crate) fn hash64(&self, bytes: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        hasher.write(bytes);
        hasher.finish()
    }
}

impl std::fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DigestKey(..)")
    }
}
