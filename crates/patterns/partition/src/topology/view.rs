//! What a reader sees: one epoch with one placement, and who may still have the data.

use std::fmt;
use std::sync::Arc;

use super::sync::Cached;
use crate::node::{Node, NodeIdx};
use crate::place::Place;

/// No node of the new placement.
const NOBODY: u32 = u32::MAX;

/// One epoch of a topology: the pair never tears.
/// Ask it when several answers must belong to one epoch; a [`Reader`] may have moved on between two lookups.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::SystemClock;
/// use mainstay_partition::{Node, Place, Ring, topology::Topology};
///
/// let ring = Arc::new(Ring::builder().nodes(["a", "b"].map(Node::new)).build()?);
/// let topology = Topology::new(1, ring, Arc::new(SystemClock::new()));
/// let mut reader = topology.reader();
/// let view = reader.view();
/// assert_eq!((view.epoch(), view.place().nodes().len()), (1, 2));
/// assert!(view.previous().is_none(), "nothing moves");
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
pub struct View<P: ?Sized> {
    epoch: u64,
    place: Arc<P>,
    before: Option<Before<P>>,
}

/// The placement before, while its owners hand over.
struct Before<P: ?Sized> {
    place: Arc<P>,
    /// By node of the old placement: whether its handoff is open, and its number in the new one.
    nodes: Vec<(bool, u32)>,
}

impl<P: ?Sized> Clone for Before<P> {
    fn clone(&self) -> Self {
        Self { place: Arc::clone(&self.place), nodes: self.nodes.clone() }
    }
}

impl<P: ?Sized> fmt::Debug for View<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.before.as_ref().map_or(0, |b| b.nodes.iter().filter(|(open, _)| *open).count());
        f.debug_struct("View")
            .field("epoch", &self.epoch)
            .field("open_handoffs", &open)
            .finish_non_exhaustive()
    }
}

/// Where a key belongs.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Routed<'a> {
    /// The epoch of the answer. Attach it to writes: a store refuses an older one than it has seen.
    pub epoch: u64,
    /// The owner: writes go here and nowhere else.
    pub node: &'a Node,
    /// Its position in the nodes of the epoch's placement.
    pub idx: NodeIdx,
    key: &'a [u8],
    before: Option<&'a dyn Former>,
}

impl<'a> Routed<'a> {
    /// The owner before, until its handoff is confirmed: a read that the owner cannot answer goes there.
    ///
    /// Looked up when it is asked for, in the same epoch as the owner: writes and reads that the owner answers
    /// do not pay for it. `None` when the owner has not changed, or nothing moves.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use mainstay_clock::SystemClock;
    /// use mainstay_partition::{Node, Ring, topology::Topology};
    ///
    /// let ring = |id: &str| Ring::builder().nodes([Node::new(id)]).build().map(Arc::new);
    /// let topology = Topology::new(1, ring("old")?, Arc::new(SystemClock::new()));
    /// let mut reader = topology.reader();
    /// topology.observe(2, ring("new")?)?;
    /// assert_eq!(reader.owner(b"k").unwrap().previous().unwrap().id.as_str(), "old");
    /// topology.handoff_done(2, "old")?;
    /// assert!(reader.owner(b"k").unwrap().previous().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn previous(&self) -> Option<&'a Node> {
        self.before?.owner(self.key, self.idx)
    }
}

impl fmt::Debug for Routed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routed")
            .field("epoch", &self.epoch)
            .field("node", self.node)
            .field("idx", &self.idx)
            .field("previous", &self.previous())
            .finish_non_exhaustive()
    }
}

impl<P: Place + ?Sized> View<P> {
    pub(super) fn stable(epoch: u64, place: Arc<P>) -> Self {
        Self { epoch, place, before: None }
    }

    /// The view after a commit from `old`.
    pub(super) fn moving(epoch: u64, place: Arc<P>, old: &Self) -> Self {
        let number = |n: &Node| place.nodes().find(n.id.as_str()).map_or(NOBODY, NodeIdx::get);
        let nodes = old.place.nodes().as_slice().iter().map(|n| (true, number(n))).collect();
        Self { epoch, before: Some(Before { place: Arc::clone(&old.place), nodes }), place }
    }

    /// The same view with the handoff of a former owner confirmed.
    pub(super) fn confirmed(&self, member: &str, last: bool) -> Self {
        let mut before = self.before.clone().filter(|_| !last);
        if let Some(before) = &mut before
            && let Some(idx) = before.place.nodes().find(member)
        {
            before.nodes[idx.as_usize()].0 = false;
        }
        Self { epoch: self.epoch, place: Arc::clone(&self.place), before }
    }

    /// Its epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Its placement.
    #[must_use]
    pub fn place(&self) -> &P {
        &self.place
    }

    pub(super) fn shared(&self) -> &Arc<P> {
        &self.place
    }

    /// The placement before, while handoffs are open.
    #[must_use]
    pub fn previous(&self) -> Option<&P> {
        self.before.as_ref().map(|b| &*b.place)
    }

    /// Where a key belongs; `None` when there are no nodes.
    ///
    /// Every answer of one view has the same epoch, whatever happens meanwhile.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use mainstay_clock::SystemClock;
    /// use mainstay_partition::{Node, Ring, topology::Topology};
    ///
    /// let ring = |id: &str| Ring::builder().nodes([Node::new(id)]).build().map(Arc::new);
    /// let topology = Topology::new(1, ring("old")?, Arc::new(SystemClock::new()));
    /// let view = topology.view();
    /// topology.observe(2, ring("new")?)?;
    /// assert_eq!(view.owner(b"k").unwrap().epoch, 1);
    /// assert_eq!(topology.view().owner(b"k").unwrap().node.id.as_str(), "new");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    #[inline(always)]
    pub fn owner<'a>(&'a self, key: &'a [u8]) -> Option<Routed<'a>> {
        let idx = self.place.owner(key)?;
        let node = self.place.nodes().get(idx)?;
        let before = self.before.as_ref().map(|b| b as &dyn Former);
        Some(Routed { epoch: self.epoch, node, idx, key, before })
    }
}

/// A placement that was in force, whichever it is: so that an answer needs no type of it.
trait Former: Send + Sync {
    /// The owner of a key before, if that is not `now` and has not handed over.
    fn owner(&self, key: &[u8], now: NodeIdx) -> Option<&Node>;
}

impl<P: Place + ?Sized> Former for Before<P> {
    fn owner(&self, key: &[u8], now: NodeIdx) -> Option<&Node> {
        let old = self.place.owner(key)?;
        let (open, number) = *self.nodes.get(old.as_usize())?;
        if open && number != now.get() { self.place.nodes().get(old) } else { None }
    }
}

/// A reader of a topology: wait-free, and nothing shared is written by a lookup. Make one per thread or task
/// and keep it; one behind a lock would undo that.
///
/// A lookup costs a comparison more than one in the bare placement. After a change the next lookup takes the new view,
/// and lets the old one go; until a reader looks something up, its old view stays in memory.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::SystemClock;
/// use mainstay_partition::{Node, Ring, topology::Topology};
///
/// let ring = |id: &str| Ring::builder().nodes([Node::new(id)]).build().map(Arc::new);
/// let topology = Topology::new(1, ring("old")?, Arc::new(SystemClock::new()));
/// let mut reader = topology.reader();
/// let threads: Vec<_> = (0..3).map(|_| reader.clone()).map(|mut own| {
///     std::thread::spawn(move || own.owner(b"k").map(|routed| routed.epoch))
/// }).collect();
/// assert!(threads.into_iter().all(|thread| thread.join().unwrap() == Some(1)));
/// topology.observe(2, ring("new")?)?;
/// assert_eq!(reader.owner(b"k").unwrap().epoch, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Reader<P: ?Sized> {
    cache: Cached<View<P>>,
}

impl<P: ?Sized> Clone for Reader<P> {
    fn clone(&self) -> Self {
        Self { cache: self.cache.clone() }
    }
}

impl<P: ?Sized> fmt::Debug for Reader<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl<P: Place + ?Sized> Reader<P> {
    pub(super) fn new(cache: Cached<View<P>>) -> Self {
        Self { cache }
    }

    /// Where a key belongs now; `None` when there are no nodes.
    #[inline(always)]
    pub fn owner<'a>(&'a mut self, key: &'a [u8]) -> Option<Routed<'a>> {
        self.cache.get().owner(key)
    }

    /// The view now, to ask several questions of one epoch.
    #[inline]
    pub fn view(&mut self) -> &View<P> {
        self.cache.get()
    }
}
