//! The hash functions of other systems, written from their definitions.

pub(super) use super::md5::words as md5_words;

use crate::hash::mix64;

/// Jenkins's one-at-a-time over *signed* bytes, as libmemcached does it in C.
pub(super) fn jenkins(key: &[u8]) -> u32 {
    let mut h = 0_u32;
    for byte in key {
        h = h.wrapping_add(byte.cast_signed() as u32);
        h = h.wrapping_add(h << 10);
        h ^= h >> 6;
    }
    h = h.wrapping_add(h << 3);
    h ^= h >> 11;
    h.wrapping_add(h << 15)
}

/// The hash of the sdbm database library.
pub(super) fn sdbm(key: &[u8]) -> u32 {
    key.iter()
        .fold(0_u32, |h, byte| u32::from(*byte).wrapping_add(h << 6).wrapping_add(h << 16).wrapping_sub(h))
}

/// Bernstein's hash.
pub(super) fn djb2(key: &[u8]) -> u32 {
    key.iter().fold(5381_u32, |h, byte| h.wrapping_mul(33).wrapping_add(u32::from(*byte)))
}

/// The avalanche of `HAProxy`: Jenkins's 32-bit integer hash, then a multiplication.
pub(super) fn full_hash(mut a: u32) -> u32 {
    a = a.wrapping_add(0x7ed5_5d16).wrapping_add(a << 12);
    a = (a ^ 0xc761_c23c) ^ (a >> 19);
    a = a.wrapping_add(0x1656_67b1).wrapping_add(a << 5);
    a = a.wrapping_add(0xd3a2_646c) ^ (a << 9);
    a = a.wrapping_add(0xfd70_46c5).wrapping_add(a << 3);
    a = (a ^ 0xb55a_4f09) ^ (a >> 16);
    a.wrapping_mul(3_221_225_473)
}

/// `MurmurHash2`, 64-bit variant A, with the seed of the C++ standard library.
pub(super) fn murmur2_64(key: &[u8]) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    let mut h = 0xc70f_6907_u64 ^ (key.len() as u64).wrapping_mul(M);
    let (blocks, rest) = key.as_chunks::<8>();
    for block in blocks {
        let mut k = u64::from_le_bytes(*block).wrapping_mul(M);
        k ^= k >> 47;
        h = (h ^ k.wrapping_mul(M)).wrapping_mul(M);
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        h = (h ^ u64::from_le_bytes(last)).wrapping_mul(M);
    }
    h ^= h >> 47;
    h = h.wrapping_mul(M);
    h ^ (h >> 47)
}

/// The token of a partition key under Cassandra's and Scylla's `Murmur3Partitioner`.
///
/// This is `MurmurHash3` x64-128 but for one thing: bytes after the last full block of 16 are *sign-extended*,
/// so a byte of 0x80 or more sets all bits above it. Servers give the empty key the smallest token instead of
/// the 0 that the function gives; CQL does not allow it as a partition key.
///
/// ```
/// use mainstay_partition::compat::cassandra_token;
///
/// // As the Python driver computes it.
/// assert_eq!(cassandra_token(b"jim"), 2_680_261_686_609_811_218);
/// ```
#[must_use]
pub fn cassandra_token(key: &[u8]) -> i64 {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let first = |k: u64| k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let second = |k: u64| k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    let (mut h1, mut h2) = (0_u64, 0_u64);
    let (blocks, tail) = key.as_chunks::<16>();
    for block in blocks {
        let k = u128::from_le_bytes(*block);
        h1 = (h1 ^ first(k as u64)).rotate_left(27).wrapping_add(h2);
        h1 = h1.wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 = (h2 ^ second((k >> 64) as u64)).rotate_left(31).wrapping_add(h1);
        h2 = h2.wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let extended = |bytes: &[u8]| {
        let wide = bytes.iter().map(|b| i64::from(b.cast_signed()).cast_unsigned());
        wide.zip(0..).fold(0_u64, |k, (byte, i)| k ^ (byte << (8 * i)))
    };
    if tail.len() > 8 {
        h2 ^= second(extended(&tail[8..]));
    }
    if !tail.is_empty() {
        h1 ^= first(extended(&tail[..tail.len().min(8)]));
    }
    let len = key.len() as u64;
    h1 ^= len;
    h2 ^= len;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    h1 = mix64(h1);
    h2 = mix64(h2);
    let token = h1.wrapping_add(h2).cast_signed();
    // The smallest token means "before everything".
    if token == i64::MIN { i64::MAX } else { token }
}

/// The bytes that stand for a partition key of several columns: each with a 16-bit length before and a zero
/// byte after it. A key of one column is its bytes alone.
///
/// `None` when a column has more than 65,535 bytes, which the format cannot say.
///
/// ```
/// use mainstay_partition::compat::{cassandra_composite, cassandra_token};
///
/// let key = cassandra_composite(&[b"user", b"17"]).unwrap();
/// assert_eq!(key, b"\0\x04user\0\0\x0217\0");
/// assert_ne!(cassandra_token(&key), cassandra_token(b"user17"));
/// assert_eq!(cassandra_composite(&[&[0; 70_000]]), None);
/// ```
#[must_use]
pub fn cassandra_composite(columns: &[&[u8]]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for column in columns {
        bytes.extend_from_slice(&u16::try_from(column.len()).ok()?.to_be_bytes());
        bytes.extend_from_slice(column);
        bytes.push(0);
    }
    Some(bytes)
}

/// The first eight bytes of MD5, little-endian.
pub(crate) fn md5_low(key: &[u8]) -> u64 {
    let [low, high, ..] = md5_words(key);
    u64::from(high) << 32 | u64::from(low)
}
