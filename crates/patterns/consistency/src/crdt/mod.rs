//! Delta-state replicated data types.
//!
//! Every mutator returns a *delta*: a small state that joins like any other. Send it, lose it, send it twice, in any
//! order; replicas that joined the same deltas are equal. Two families:
//!
//! - [`Causal`] types know which changes they have seen: [`EwFlag`], [`DwFlag`], [`MvRegister`],
//!   [`ResettableCounter`], [`AwSet`], [`RwSet`], [`AwMap`], [`RwMap`], [`LwwMap`]. They can remove, and they nest.
//! - Plain lattices only grow: [`GCounter`], [`PnCounter`], [`BoundedCounter`], [`LwwRegister`], [`MinRegister`],
//!   [`MaxRegister`], [`GSet`], [`TwoPhaseSet`].
//!
//! Sources: Almeida, Shoker, Baquero, "Delta State Replicated Data Types" (2018); Baquero, Almeida, Lerche, "The
//! problem with embedded CRDT counters and a solution" (2016) for what a reset means; Balegas et al., "Extending
//! Eventually Consistent Cloud Databases for Enforcing Numeric Invariants" (2015) for the bounded counter.
//!
//! They *converge*; they are not consistent in the sense of a database. A counter here is no quota: use
//! [`BoundedCounter`] where a bound must hold.

mod any;
mod bounded;
mod causal;
mod counter;
mod dotfun;
mod dotmap;
mod dotset;
mod flag;
mod index;
mod lattice;
mod lww_map;
mod map;
mod register;
mod rw;
mod set;

pub use any::{Any, AnyKind, Document};
pub use bounded::BoundedCounter;
pub use causal::{Causal, DotStore, Mint};
pub use counter::{GCounter, PnCounter, ResettableCounter, Tally};
pub use dotfun::DotFun;
pub use dotmap::{AddWins, DotMap, Latest, RemoveWins};
pub use dotset::DotSet;
pub use flag::{DwFlag, EwFlag, Vote};
pub use lattice::{Item, Lattice};
pub use lww_map::{LwwCell, LwwMap};
pub use map::AwMap;
pub use register::{LwwRegister, MaxRegister, MinRegister, MvRegister};
pub use rw::{Guarded, RwMap, RwSet, Votes};
pub use set::{AwSet, GSet, TwoPhaseSet};

use crate::error::Result;
use crate::version::Context;
use crate::wire::Wire;

/// Whether a join changed anything.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "there is no third answer")]
pub enum Changed {
    /// The state is as it was.
    No,
    /// The state grew.
    Yes,
}

impl Changed {
    /// Whether it is [`Changed::Yes`].
    pub const fn is_yes(self) -> bool {
        matches!(self, Self::Yes)
    }
}

impl From<bool> for Changed {
    fn from(changed: bool) -> Self {
        if changed { Self::Yes } else { Self::No }
    }
}

/// A join-semilattice: the laws L1 to L5 hold.
///
/// ```
/// use mainstay_consistency::{Join, crdt::GSet};
///
/// let (mut a, mut b) = (GSet::new(), GSet::new());
/// a.add(1_u64);
/// b.add(2_u64);
/// assert!(a.join(&b)?.is_yes());
/// assert!(!a.join(&b)?.is_yes());
/// assert!(b.leq(&a));
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
pub trait Join {
    /// Takes the least state that contains both.
    ///
    /// # Errors
    /// [`TypeMismatch`](crate::ErrorKind::TypeMismatch) when the two cannot be joined; both sides keep their state.
    fn join(&mut self, other: &Self) -> Result<Changed>;

    /// Whether `other` contains this state: joining it would change nothing there.
    fn leq(&self, other: &Self) -> bool;
}

/// A state that can tell what somebody misses.
pub trait DeltaState: Join + Sized {
    /// A delta that turns a state with the context `seen` into the join of both. Types without a context answer with
    /// all of themselves.
    #[must_use]
    fn delta_since(&self, seen: &Context) -> Self;
}

/// A key or element: ordered, with a canonical encoding. Implemented for everything that has both.
///
/// Maps keep a second copy of the key in their index; where keys are long texts, intern them first.
pub trait Key: Ord + Clone + std::fmt::Debug + Wire {}
impl<T: Ord + Clone + std::fmt::Debug + Wire> Key for T {}

/// A payload. Equality must be that of the encoding. Implemented for everything that qualifies.
pub trait Value: Clone + PartialEq + std::fmt::Debug + Wire {}
impl<T: Clone + PartialEq + std::fmt::Debug + Wire> Value for T {}
