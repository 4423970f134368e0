//! Fixed slots with explicit replica lists: the map is the truth.

mod map;
mod planner;
mod split;
mod steer;

pub use map::{DEFAULT_SLOTS, MAX_SLOTS, MIN_SLOTS, SlotHash, SlotMap, SlotMapBuilder};
pub use planner::{MAX_RF, Move, Note, Plan, Planner, Rehearsal, Removal, RoleChange};
pub use steer::{Action, HotSlot, Steer, SteerConfig};
