//! Profiles that answer bit by bit like other systems.
//!
//! Each profile is frozen with its version: what it answers never changes under the same name. Names are taken
//! exactly as the other system's configuration writes them, and where its answer depends on the order of its
//! list, ours does too: [`NodeIdx`](crate::NodeIdx) counts in that order.
//!
//! | system | profile | checked against |
//! |---|---|---|
//! | libmemcached, pylibmc, and what others call ketama | [`ketama`] | libmemcached, by recorded answers |
//! | nginx `hash KEY consistent` | [`nginx`] | a running nginx |
//! | `HAProxy` `hash-type consistent` | [`haproxy`] | a running `HAProxy` |
//! | Envoy `RING_HASH`, `MAGLEV` | [`envoy_ring`], [`envoy_maglev`] | a second implementation of the formulas |
//! | Redis Cluster | [`redis_slots`] | a running node |
//! | Cassandra, Scylla | [`cassandra_murmur3`] | the Python driver, by recorded tokens |
//! | Guava `consistentHash` | [`guava_jump`] | published values |
//!
//! None of them is better than what this crate does by itself. Use them where another client decides too.

mod cassandra;
mod envoy;
mod haproxy;
mod hashes;
mod ketama;
mod md5;
mod nginx;
mod redis;
mod ring;

pub use cassandra::{CassandraBuilder, cassandra_murmur3};
pub use envoy::{EnvoyMaglev, EnvoyMaglevBuilder, EnvoyRingBuilder, envoy_combine, envoy_maglev, envoy_ring};
pub use haproxy::{HaproxyBuilder, HaproxyFunction, HaproxyHash, haproxy};
pub(crate) use hashes::md5_low;
pub use hashes::{cassandra_composite, cassandra_token};
pub use ketama::{KetamaBuilder, KetamaHash, KetamaMode, ketama};
pub use nginx::{NginxBuilder, nginx};
pub use redis::{redis_slot, redis_slots};
pub use ring::{Bypass, CompatRing};

use crate::jump::{Jump, JumpBuilder, JumpKey, JumpKind};

/// Guava's `Hashing.consistentHash` over `buckets` buckets.
///
/// How a string becomes the `long` is the caller's choice in Guava too: here it is MD5 unless told otherwise
/// by [`JumpBuilder::key`], and [`Place::owner_of_hash`](crate::Place::owner_of_hash) takes any `long`.
///
/// ```
/// use mainstay_partition::compat::guava_jump;
///
/// let buckets = guava_jump(100).build()?;
/// assert_eq!(buckets.owner_of_hash(1).unwrap().get(), 55);
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[must_use]
pub fn guava_jump(buckets: u32) -> JumpBuilder {
    Jump::builder().kind(JumpKind::Guava).key(JumpKey::GuavaMd5).shards(buckets)
}
