//! Twice the slots, with nothing moved.

use super::{MAX_SLOTS, SlotHash, SlotMap};
use crate::error::{ConfigError, Error};
use crate::node::NodeIdx;
use crate::place::Place as _;

impl SlotMap {
    /// The same map with twice the slots, one epoch later: the keys of slot `s` spread over `s` and
    /// `s + slots`, which both stay where `s` was. Nothing moves; afterwards the halves can move apart.
    ///
    /// It halves a slot that is hot because of many keys. A single hot key stays in one slot: put
    /// [`crate::Bounded`] or a cache in front of it.
    ///
    /// # Errors
    /// At [`MAX_SLOTS`], for the 16384 slots of a Redis Cluster, and at the last epoch.
    ///
    /// ```
    /// use mainstay_partition::{Node, slots::{Planner, SlotMap}};
    ///
    /// let empty = SlotMap::builder(1).slots(4096).build()?;
    /// let map = Planner::new(&empty).target(["a", "b", "c"].map(Node::new)).solve()?.next().clone();
    /// let twice = map.split()?;
    /// assert_eq!(twice.owner(b"user:17"), map.owner(b"user:17"));
    /// assert_eq!(twice.slots(), 8192);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn split(&self) -> Result<Self, Error> {
        let refuse =
            |field, value: String, allowed: String| Err(ConfigError::new(field, value, allowed).into());
        if self.slots() >= MAX_SLOTS {
            let allowed = format!("at most {} before a split", MAX_SLOTS / 2);
            return refuse("slots", self.slots().to_string(), allowed);
        }
        if self.slot_hash() == SlotHash::Redis {
            return refuse(
                "hash",
                "redis".into(),
                "a hash with more than 14 bits: a Redis Cluster has 16384 slots".into(),
            );
        }
        let Some(epoch) = self.epoch().checked_add(1) else {
            return refuse("epoch", self.epoch().to_string(), "below 2^64 - 1".into());
        };
        let half = self.slots();
        let lists: Vec<Vec<NodeIdx>> = (0..2 * half).map(|s| self.replicas(s % half).to_vec()).collect();
        Ok(Self::from_lists(self.nodes().clone(), self.slot_hash(), epoch, 2 * half, &lists)?)
    }
}
