//! Key slots of Redis Cluster.

use crate::slots::{DEFAULT_SLOTS, SlotHash, SlotMap, SlotMapBuilder};

/// Slots of a Redis Cluster.
const SLOTS: u16 = 16384;

/// CRC16 of every byte: polynomial 0x1021, not reflected (XMODEM).
const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// A slot map of a Redis Cluster: 16384 slots, CRC16 with hash tags. Who holds which slot comes from the cluster
/// (`CLUSTER SLOTS`); `epoch` is its `currentEpoch`.
///
/// The planner takes such a map like any other, so it can plan a rebalance of a live cluster; carrying it out is
/// `CLUSTER SETSLOT` and `MIGRATE`, which are the caller's.
///
/// ```
/// use mainstay_partition::{Node, compat, slots::Planner};
///
/// // What `redis-cli --cluster rebalance` needs 184 moves for, and leaves uneven.
/// let node = |i: usize| format!("master-{i:03}");
/// let cluster = compat::redis_slots(7)
///     .nodes((0..200).map(|i| Node::new(node(i))))
///     .replicas(|slot| vec![node(slot % 200).into()])
///     .build()?;
/// let plan = Planner::new(&cluster).target((0..201).map(|i| Node::new(node(i)))).solve()?;
/// assert_eq!((plan.moves().len(), plan.lower_bound()), (81, 81));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn redis_slots(epoch: u64) -> SlotMapBuilder {
    const { assert!(DEFAULT_SLOTS == SLOTS as usize) };
    SlotMap::builder(epoch).slots(DEFAULT_SLOTS).hash(SlotHash::Redis)
}

/// The slot of a key in a Redis Cluster, 0 to 16383.
///
/// When the key holds a `{` and a later `}` with at least one byte between, only the bytes between the first
/// `{` and the first `}` after it count, so that related keys can share a slot.
///
/// ```
/// use mainstay_partition::compat::redis_slot;
///
/// assert_eq!(redis_slot(b"foo"), 12182);
/// assert_eq!(redis_slot(b"{user1000}.following"), redis_slot(b"user1000"));
/// ```
#[must_use]
#[inline]
pub fn redis_slot(key: &[u8]) -> u16 {
    let mut crc = 0_u16;
    for byte in tag(key) {
        crc = (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)];
    }
    crc % SLOTS
}

/// What of the key is hashed.
fn tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|b| *b == b'{') else { return key };
    let rest = &key[open + 1..];
    match rest.iter().position(|b| *b == b'}') {
        Some(close) if close > 0 => &rest[..close],
        _ => key,
    }
}
