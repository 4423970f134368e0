//! Jump hashing: numbered shards without a table.

use crate::error::ConfigError;
use crate::fingerprint::Canon;
use crate::hash::{Hash, mix64};
use crate::node::{MAX_NODES, Node, NodeIdx, Nodes};
use crate::owners::Owners;
use crate::place::{Place, Shares, sealed};
use crate::source::Source;

/// The profile's version.
const VERSION: u64 = 1;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
/// Draws for one further owner before shards are simply counted through. With half of the shards taken, 64
/// draws fail once in 2^64.
const DRAWS: u32 = 64;

/// Which jump function.
///
/// All three move only the keys they must when the last shard comes or goes, and give every shard the same share.
/// They disagree with each other on nearly every key: a change of the kind is a change of all owners.
///
/// | kind | time per key | take it |
/// |---|---|---|
/// | `Back` | the same for any number of shards | in new systems |
/// | `Guava` | grows with its logarithm | beside Java clients that use Guava |
/// | `Paper` | grows with its logarithm | beside other implementations of the paper |
///
/// ```
/// use mainstay_partition::{Jump, JumpKind};
///
/// let shards = |kind| Jump::builder().shards(1_000).kind(kind).build();
/// let (back, paper) = (shards(JumpKind::Back)?, shards(JumpKind::Paper)?);
/// let same = (0..1_000_u32).filter(|k| back.owner(&k.to_le_bytes()) == paper.owner(&k.to_le_bytes())).count();
/// assert!(same < 20, "as often as by chance");
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum JumpKind {
    /// `JumpBackHash` (Ertl: "`JumpBackHash`: Say Goodbye to the Modulo Operation", 2024): constant time.
    #[default]
    Back,
    /// The form of the Guava library; it differs from the paper's on rare keys.
    Guava,
    /// The paper's (Lamping, Veach: "A Fast, Minimal Memory, Consistent Hash Algorithm", 2014).
    Paper,
}

/// The bucket of a hash among `n` by `JumpBackHash`; 0 when there are fewer than two.
///
/// From `n` to `n + 1` a key stays or goes to the new bucket, `n`. The hash must be a mixed one: hash keys first.
///
/// ```
/// use mainstay_partition::jump_back;
///
/// let hash = 0x0123_4567_89ab_cdef;
/// let (before, after) = (jump_back(hash, 10), jump_back(hash, 11));
/// assert!(after == before || after == 10);
/// ```
#[must_use]
#[inline]
pub fn jump_back(hash: u64, n: u32) -> u32 {
    if n <= 1 {
        return 0;
    }
    let mut state = hash;
    let first = split_mix(&mut state);
    let mask = u32::MAX >> (n - 1).leading_zeros();
    let mut x = (first ^ (first >> 32)) as u32 & mask;
    while x != 0 {
        let top = 1_u32 << (31 - x.leading_zeros());
        let half = (first >> (32 * (x.count_ones() & 1))) as u32;
        let b = top + (half & (top - 1));
        if b < n {
            return b;
        }
        // Twice the largest top may be 2^32.
        let wide = top.wrapping_mul(2).wrapping_sub(1);
        loop {
            let draw = split_mix(&mut state);
            let low = draw as u32 & wide;
            if low < top {
                break;
            }
            if low < n {
                return low;
            }
            let high = (draw >> 32) as u32 & wide;
            if high < top {
                break;
            }
            if high < n {
                return high;
            }
        }
        x ^= top;
    }
    0
}

/// `SplitMix64` (Steele, Lea, Flood, OOPSLA 2014).
#[inline]
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(GOLDEN);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[inline]
fn lcg(k: u64) -> u64 {
    k.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1)
}

/// The bucket of a hash among `n` by the paper of Lamping and Veach; 0 when there are fewer than two.
///
/// ```
/// assert_eq!(mainstay_partition::jump(10_863_919_174_838_991, 11), 6);
/// ```
#[must_use]
#[inline]
pub fn jump(hash: u64, n: u32) -> u32 {
    let (mut k, mut b, mut j) = (hash, 0_u32, 0_i64);
    while j < i64::from(n) {
        b = u32::try_from(j).unwrap_or(0);
        k = lcg(k);
        j = (f64::from(b + 1) * ((1_u64 << 31) as f64 / ((k >> 33) + 1) as f64)) as i64;
    }
    b
}

/// The bucket of a hash among `n` as Guava's `Hashing.consistentHash` computes it; 0 when there are fewer
/// than two. A Java `long` is passed as its bits.
///
/// ```
/// use mainstay_partition::{jump, jump_guava};
///
/// // The two forms round differently about once in a billion steps.
/// let rare = 3_139_627_907_299_950_787;
/// assert_eq!((jump_guava(rare, 2048), jump(rare, 2048)), (48, 2047));
/// assert_eq!((0..5).map(|k| jump_guava(k, 100)).collect::<Vec<_>>(), [0, 55, 62, 8, 45]);
/// ```
#[must_use]
#[inline]
pub fn jump_guava(hash: u64, n: u32) -> u32 {
    let (mut k, mut b) = (hash, 0_u32);
    loop {
        k = lcg(k);
        // Java adds 1 to an int: the largest one turns negative, and a negative bucket ends the loop.
        if k >> 33 == 0x7fff_ffff {
            return b;
        }
        let next = f64::from(b + 1) / (((k >> 33) + 1) as f64 / (1_u64 << 31) as f64);
        // Beyond i32 Java saturates, which is beyond every number of buckets.
        if next >= f64::from(n) {
            return b;
        }
        b = next as u32;
    }
}

impl JumpKind {
    #[inline]
    fn bucket(self, hash: u64, n: u32) -> u32 {
        match self {
            Self::Back => jump_back(hash, n),
            Self::Guava => jump_guava(hash, n),
            Self::Paper => jump(hash, n),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Back => "back",
            Self::Guava => "guava",
            Self::Paper => "paper",
        }
    }
}

/// How a key becomes the 64 bits of a jump function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JumpKey {
    /// By a hash of ours.
    Hash(Hash),
    /// The first eight bytes of MD5, little-endian: Guava's `Hashing.md5().hashBytes(key)`. For any other
    /// hash code compute its `padToLong()` and ask by hash.
    GuavaMd5,
}

impl JumpKey {
    #[inline]
    fn hash(&self, key: &[u8]) -> u64 {
        match self {
            Self::Hash(hash) => hash.key(key),
            Self::GuavaMd5 => crate::compat::md5_low(key),
        }
    }
}

impl Default for JumpKey {
    fn default() -> Self {
        Self::Hash(Hash::default())
    }
}

/// Numbered shards that only come and go at the end.
///
/// Here the order of the nodes *is* their numbering: [`NodeIdx`] is the shard's number. Only the last shard can
/// be removed ([`Jump::shrink`]); taking one out of the middle would renumber the rest and move 39 to 50% of
/// all keys. All shards are equal: a weight other than 1 is refused.
///
/// ```
/// use mainstay_partition::{Jump, Place};
///
/// let ten = Jump::builder().shards(10).build()?;
/// let nine = ten.shrink()?;
/// let owner = ten.owner(b"user:17").unwrap();
/// assert!(owner.get() == 9 || nine.owner(b"user:17") == Some(owner));
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Jump {
    nodes: Nodes,
    key: JumpKey,
    kind: JumpKind,
    n: u32,
}

impl Jump {
    /// A builder with the defaults.
    #[must_use]
    pub fn builder() -> JumpBuilder {
        JumpBuilder::default()
    }

    /// The owner of a key.
    #[must_use]
    #[inline]
    pub fn owner(&self, key: &[u8]) -> Option<NodeIdx> {
        self.owner_of_hash(self.key.hash(key))
    }

    /// The owner of a key that is hashed already.
    #[must_use]
    #[inline]
    pub fn owner_of_hash(&self, hash: u64) -> Option<NodeIdx> {
        Some(NodeIdx::new(self.kind.bucket(hash, self.n)))
    }

    /// The same with one more shard at the end.
    ///
    /// # Errors
    /// A duplicate or empty id, a weight other than 1, too many shards.
    /// # Examples
    /// ```
    /// use mainstay_partition::{Jump, Node};
    ///
    /// let two = Jump::builder().nodes(["s0", "s1"].map(Node::new)).build()?;
    /// let three = two.grow(Node::new("s2"))?;
    /// for key in (0..1_000_u32).map(u32::to_le_bytes) {
    ///     let (before, after) = (two.owner(&key), three.owner(&key));
    ///     assert!(before == after || after.map(|n| n.get()) == Some(2), "keys move only to the new shard");
    /// }
    /// assert_eq!(three.shrink()?.owner(b"k"), two.owner(b"k"));
    /// # Ok::<(), mainstay_partition::ConfigError>(())
    /// ```
    pub fn grow(&self, node: Node) -> Result<Self, ConfigError> {
        let nodes = self.nodes.as_slice().iter().cloned().chain([node]);
        Self::builder().nodes(nodes).key(self.key).kind(self.kind).build()
    }

    /// The same without the last shard.
    ///
    /// # Errors
    /// There is only one.
    ///
    /// # Examples
    /// ```
    /// use mainstay_partition::{Jump, Place};
    ///
    /// let two = Jump::builder().shards(2).build()?;
    /// let one = two.shrink()?;
    /// assert_eq!(one.nodes().len(), 1);
    /// assert_eq!(one.shrink().unwrap_err().field(), "nodes");
    /// # Ok::<(), mainstay_partition::ConfigError>(())
    /// ```
    pub fn shrink(&self) -> Result<Self, ConfigError> {
        let nodes = self.nodes.as_slice().iter().take(self.nodes.len() - 1).cloned();
        Self::builder().nodes(nodes).key(self.key).kind(self.kind).build()
    }
}

impl sealed::Sealed for Jump {}

impl Place for Jump {
    fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    #[inline]
    fn hash_of(&self, key: &[u8]) -> u64 {
        self.key.hash(key)
    }

    #[inline]
    fn owner_of_hash(&self, hash: u64) -> Option<NodeIdx> {
        Self::owner_of_hash(self, hash)
    }

    /// The owner, then owners by further draws. Only the first moves as little as can be when shards come.
    fn owners_of_hash(&self, hash: u64) -> Owners<'_> {
        Owners::new(&self.nodes, Source::Hops(Hops { kind: self.kind, n: self.n, hash, draw: 0, count: 0 }))
    }

    fn shares(&self) -> Shares {
        Shares::new(vec![1.0; self.nodes.len()], &self.nodes)
    }

    fn fingerprint(&self) -> u128 {
        let mut canon = Canon::profile("jump", VERSION);
        canon.text(self.kind.name());
        match &self.key {
            JumpKey::Hash(hash) => hash.canon(&mut canon),
            JumpKey::GuavaMd5 => canon.text("guava md5"),
        }
        canon.nodes(&self.nodes);
        canon.finish()
    }
}

/// Draws with fresh hashes, then all shards in order, so that every shard comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hops {
    kind: JumpKind,
    n: u32,
    hash: u64,
    draw: u32,
    count: u32,
}

impl Hops {
    pub(crate) fn next(&mut self) -> Option<u32> {
        if self.draw < DRAWS {
            let fresh = match self.draw {
                0 => self.hash,
                r => mix64(self.hash.wrapping_add(u64::from(r).wrapping_mul(GOLDEN))),
            };
            self.draw += 1;
            return Some(self.kind.bucket(fresh, self.n));
        }
        let next = self.count;
        self.count += 1;
        (next < self.n).then_some(next)
    }

    /// Back to the first draw.
    pub(crate) fn restart(&mut self) {
        (self.draw, self.count) = (0, 0);
    }
}

/// Settings of a [`Jump`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `kind` | [`JumpKind::Back`] | constant time; the others grow with the logarithm of the shards |
/// | `key` | XXH3-64, seed 0 | the fastest hash that is frozen in every language |
#[derive(Clone, Debug, Default)]
pub struct JumpBuilder {
    nodes: Vec<Node>,
    too_many: Option<u32>,
    key: JumpKey,
    kind: JumpKind,
}

impl JumpBuilder {
    /// The shards in the order of their numbers. This order has a meaning, unlike everywhere else.
    #[must_use]
    pub fn nodes(mut self, nodes: impl IntoIterator<Item = Node>) -> Self {
        self.nodes = nodes.into_iter().collect();
        self
    }

    /// `n` shards named by their number.
    #[must_use]
    pub fn shards(mut self, n: u32) -> Self {
        if n as usize > MAX_NODES {
            self.too_many = Some(n);
            return self;
        }
        self.nodes((0..n).map(|i| Node::new(i.to_string())))
    }

    /// Which function.
    #[must_use]
    pub fn kind(mut self, kind: JumpKind) -> Self {
        self.kind = kind;
        self
    }

    /// How keys become 64 bits.
    #[must_use]
    pub fn key(mut self, key: JumpKey) -> Self {
        self.key = key;
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    /// No shards, a duplicate or empty id, a weight other than 1, too many shards.
    pub fn build(self) -> Result<Jump, ConfigError> {
        if let Some(n) = self.too_many {
            let allowed = format!("at most {MAX_NODES}");
            return Err(ConfigError::new("shards", n, allowed));
        }
        if self.nodes.is_empty() {
            return Err(ConfigError::new("nodes", 0, "at least one shard"));
        }
        if let Some(node) = self.nodes.iter().find(|n| n.weight != 1) {
            let value = format!("{} of {}", node.weight, node.id);
            return Err(ConfigError::new("nodes.weight", value, "1: shards are equal"));
        }
        let nodes = Nodes::numbered(self.nodes)?;
        let n = u32::try_from(nodes.len()).expect("invariant: at most MAX_NODES nodes");
        Ok(Jump { nodes, key: self.key, kind: self.kind, n })
    }
}
