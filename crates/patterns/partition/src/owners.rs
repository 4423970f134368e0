//! Distinct owners of a key in order: lazy, filtered by health, spread over zones.

use std::fmt;
use std::ops::Deref;

use crate::error::{Error, ErrorKind};
use crate::node::{NodeIdx, Nodes};
use crate::source::Source;

/// How many owners are kept without an allocation.
pub const INLINE: usize = 16;

/// Over how many zones the owners of a key are spread.
/// ```
/// use mainstay_partition::{ErrorKind, Node, Place, Ring, Spread};
///
/// let nodes = [("a", "east"), ("b", "east"), ("c", "east")].map(|(id, z)| Node::new(id).zone(z));
/// let ring = Ring::builder().nodes(nodes).build()?;
/// let hard = ring.owners(b"k").spread(Spread::Hard { min: 2 }).pick(3).unwrap_err();
/// assert_eq!(hard.kind(), ErrorKind::TooFewZones { have: 1, need: 2 });
/// assert_eq!(ring.owners(b"k").spread(Spread::Prefer { min: 2 }).pick(3)?.len(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Spread {
    /// Zones do not matter.
    #[default]
    Any,
    /// The first `min` owners stand in distinct zones, or the answer is [`ErrorKind::TooFewZones`].
    Hard {
        /// How many zones; k owners need at most k.
        min: usize,
    },
    /// The first owners stand in distinct zones as far as there are zones.
    Prefer {
        /// How many zones to reach for.
        min: usize,
    },
}

impl Spread {
    fn zones(self) -> usize {
        match self {
            Self::Any => 0,
            Self::Hard { min } | Self::Prefer { min } => min,
        }
    }
}

/// A set of small numbers: inline up to [`INLINE`], a bitmap beyond.
#[derive(Clone)]
struct Seen {
    few: [u32; INLINE],
    len: usize,
    many: Vec<u64>,
}

impl Seen {
    const fn new() -> Self {
        Self { few: [0; INLINE], len: 0, many: Vec::new() }
    }

    #[inline]
    #[allow(clippy::manual_contains, reason = "the other form reads widely; see below")]
    fn contains(&self, n: u32) -> bool {
        if self.len <= INLINE {
            // One by one: a wide read would wait for the narrow writes just before.
            self.few[..self.len].iter().any(|old| *old == n)
        } else {
            self.many.get(n as usize / 64).is_some_and(|word| word >> (n % 64) & 1 == 1)
        }
    }

    /// All of them, in no order.
    fn iter(&self) -> impl Iterator<Item = u32> {
        let few = &self.few[..if self.len <= INLINE { self.len } else { 0 }];
        let words = (0_u32..).step_by(64).zip(&self.many);
        let many =
            words.flat_map(|(base, word)| (0..64).filter(move |b| word >> b & 1 == 1).map(move |b| base + b));
        few.iter().copied().chain(many)
    }

    /// Adds `n`, which is not in yet.
    #[inline]
    fn add(&mut self, n: u32) {
        if self.len < INLINE {
            self.few[self.len] = n;
            self.len += 1;
        } else {
            self.overflow(n);
        }
    }

    #[cold]
    fn overflow(&mut self, n: u32) {
        if self.len == INLINE {
            for old in self.few {
                set(&mut self.many, old);
            }
        }
        set(&mut self.many, n);
        self.len += 1;
    }
}

fn set(many: &mut Vec<u64>, n: u32) {
    let word = n as usize / 64;
    if many.len() <= word {
        many.resize(word + 1, 0);
    }
    many[word] |= 1 << (n % 64);
}

/// The nodes that could hold a key, each once, in a fixed order; the first is the owner.
///
/// Health is a filter here and never a change of the placement: a node that comes back finds its keys where
/// they were, and the keys of others never move.
///
/// ```
/// use mainstay_partition::{Node, Place, Ring, Spread};
///
/// let nodes = [("a", "z1"), ("b", "z1"), ("c", "z2"), ("d", "z2")].map(|(id, z)| Node::new(id).zone(z));
/// let ring = Ring::builder().nodes(nodes).build()?;
/// let down = ring.owner(b"k").unwrap();
/// let two = ring
///     .owners(b"k")
///     .spread(Spread::Hard { min: 2 })
///     .healthy(|n| n != down)
///     .pick(2)?;
/// assert!(!two.contains(&down));
/// assert_ne!(ring.nodes()[two[0]].zone, ring.nodes()[two[1]].zone);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Owners<'a, F = fn(NodeIdx) -> bool> {
    nodes: &'a Nodes,
    /// The first nodes of the source, repeats included, and how many of them had their turn: as long as all are
    /// wanted, a node is new when it is none of those before it. The source and what was seen wait for the rest.
    near: &'a [u16],
    at: usize,
    source: Source<'a>,
    seen: Seen,
    /// Zones are still to be covered: every node taken so far stands in another one.
    spreading: bool,
    spread: Spread,
    healthy: Option<F>,
}

impl<'a> Owners<'a> {
    #[inline(always)]
    pub(crate) fn new(nodes: &'a Nodes, source: Source<'a>) -> Self {
        let near = source.near();
        let seen = Seen::new();
        Self { nodes, near, at: 0, source, seen, spreading: false, spread: Spread::Any, healthy: None }
    }

    /// The same without the nodes that `up` denies.
    ///
    /// Call it before the first owner is taken: those taken already are not asked about. A node that is denied may
    /// be asked about again during the walk, on a ring for each of its points that comes by; an answer that
    /// changes meanwhile counts from then on.
    #[must_use]
    pub fn healthy<G: Fn(NodeIdx) -> bool>(mut self, up: G) -> Owners<'a, G> {
        self.leave();
        Owners {
            nodes: self.nodes,
            near: &[],
            at: 0,
            source: self.source,
            seen: self.seen,
            spreading: self.spreading,
            spread: self.spread,
            healthy: Some(up),
        }
    }
}

impl<F> Owners<'_, F> {
    /// Goes over to the source, where the near ones end or do not suffice.
    fn leave(&mut self) {
        for _ in 0..self.at {
            if let Some(n) = self.source.next()
                && !self.seen.contains(n)
            {
                self.seen.add(n);
            }
        }
        (self.near, self.at) = (&[], 0);
    }

    /// How many nodes came already.
    fn taken(&self) -> usize {
        let new = |at: &usize| !self.near[..*at].contains(&self.near[*at]);
        self.seen.len + (0..self.at).filter(new).count()
    }
}

impl<F: Fn(NodeIdx) -> bool> Owners<'_, F> {
    /// The same, with the first owners in distinct zones: the first healthy owner, then the next one in a
    /// zone not seen yet, until `min` zones are covered; then the ones passed over, in their order.
    ///
    /// As an iterator, a hard spread that cannot be met ends early; [`Owners::pick`] says why.
    #[must_use]
    pub fn spread(mut self, spread: Spread) -> Self {
        self.leave();
        self.spread = spread;
        self.spreading = spread.zones() > 0;
        self
    }

    /// The first `k` owners.
    ///
    /// # Errors
    /// [`ErrorKind::TooFewNodes`] or [`ErrorKind::TooFewZones`] with what there is; never fewer owners and
    /// never one twice.
    /// # Examples
    /// ```
    /// use mainstay_partition::{ErrorKind, Node, Place, Ring};
    ///
    /// let ring = Ring::builder().nodes(["a", "b"].map(Node::new)).build()?;
    /// assert_eq!(ring.owners(b"k").pick(2)?.len(), 2);
    /// let short = ring.owners(b"k").pick(3).unwrap_err();
    /// assert_eq!(short.kind(), ErrorKind::TooFewNodes { have: 2, need: 3 });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pick(mut self, k: usize) -> Result<Picked, Error> {
        // k owners stand in at most k zones.
        match &mut self.spread {
            Spread::Any => {}
            Spread::Hard { min } | Spread::Prefer { min } => *min = k.min(*min),
        }
        let mut picked = Picked::new();
        while picked.len() < k {
            match self.next() {
                Some(idx) => picked.push(idx),
                None => return Err(self.short(k)),
            }
        }
        Ok(picked)
    }

    #[cold]
    fn short(&self, need: usize) -> Error {
        if let Spread::Hard { min } = self.spread
            && self.spreading
        {
            let (have, need) = (self.seen.len, min);
            let text = format!("{need} zones are needed, healthy nodes stand in {have}");
            return Error::new(ErrorKind::TooFewZones { have, need }, text);
        }
        let have = self.seen.len;
        Error::new(
            ErrorKind::TooFewNodes { have, need },
            format!("{need} nodes are needed, there are {have}"),
        )
    }

    /// The next node of the walk that is new, up and, while zones are missing, in a new zone.
    #[inline(always)]
    fn advance(&mut self, new_zone: bool) -> Option<NodeIdx> {
        loop {
            let n = self.source.next()?;
            let idx = NodeIdx::new(n);
            if self.seen.contains(n) || self.healthy.as_ref().is_some_and(|up| !up(idx)) {
                continue;
            }
            if new_zone {
                let zone = self.nodes.zone_of(idx);
                if self.seen.iter().any(|old| self.nodes.zone_of(NodeIdx::new(old)) == zone) {
                    continue;
                }
            }
            self.seen.add(n);
            return Some(idx);
        }
    }

    /// The next one from the source.
    #[inline(never)]
    fn next_far(&mut self) -> Option<NodeIdx> {
        if self.at > 0 {
            self.leave();
        }
        if self.spreading {
            return self.spread_on();
        }
        // Nothing new can come: do not walk the rest of a ring.
        if self.seen.len >= self.nodes.len() {
            return None;
        }
        self.advance(false)
    }

    /// The next one while zones are to be covered.
    #[inline(never)]
    fn spread_on(&mut self) -> Option<NodeIdx> {
        let want = self.spread.zones();
        if self.seen.len < want {
            if let Some(idx) = self.advance(true) {
                return Some(idx);
            }
            if matches!(self.spread, Spread::Hard { .. }) {
                return None;
            }
        }
        // The nodes that were passed over have their turn.
        self.spreading = false;
        self.source.restart();
        self.advance(false)
    }
}

impl<F: Fn(NodeIdx) -> bool> Iterator for Owners<'_, F> {
    type Item = NodeIdx;

    #[inline(always)]
    fn next(&mut self) -> Option<NodeIdx> {
        while let Some(n) = self.near.get(self.at) {
            let before = &self.near[..self.at];
            self.at += 1;
            // One by one: they are few.
            if !before.iter().any(|old| old == n) {
                return Some(NodeIdx::new((*n).into()));
            }
        }
        self.next_far()
    }
}

impl<F: Fn(NodeIdx) -> bool> std::iter::FusedIterator for Owners<'_, F> {}

impl<F> fmt::Debug for Owners<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owners")
            .field("taken", &self.taken())
            .field("spread", &self.spread)
            .finish_non_exhaustive()
    }
}

/// Owners that were picked: a slice, without an allocation up to [`INLINE`].
#[derive(Clone)]
pub struct Picked {
    few: [NodeIdx; INLINE],
    len: usize,
    many: Vec<NodeIdx>,
}

impl Picked {
    const fn new() -> Self {
        Self { few: [NodeIdx::new(0); INLINE], len: 0, many: Vec::new() }
    }

    fn push(&mut self, idx: NodeIdx) {
        if self.len < INLINE {
            self.few[self.len] = idx;
        } else {
            if self.many.is_empty() {
                self.many.extend_from_slice(&self.few);
            }
            self.many.push(idx);
        }
        self.len += 1;
    }
}

impl Deref for Picked {
    type Target = [NodeIdx];

    fn deref(&self) -> &[NodeIdx] {
        if self.len <= INLINE { &self.few[..self.len] } else { &self.many }
    }
}

impl fmt::Debug for Picked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
