//! The map of the `crdts` crate under the laws.

use crdts::{CmRDT, CvRDT, MVReg, Map};
use mainstay_consistency::laws::{Replica, Subject};

type TheirMap = Map<u8, MVReg<u64, u64>, u64>;

/// Their map, changed through its own operations and joined by its own merge.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Theirs(TheirMap);

impl Subject for Theirs {
    type Op = &'static str;

    fn alphabet() -> Vec<Self::Op> {
        vec!["write 1", "write 2", "remove"]
    }

    fn apply(&mut self, op: &Self::Op, replica: &mut Replica) -> Option<Self> {
        let me = replica.actor.id().node();
        let change = if *op == "remove" {
            self.0.rm(7_u8, self.0.get(&7).derive_rm_ctx())
        } else {
            let value = if *op == "write 1" { 1 } else { 2 };
            self.0.update(7_u8, self.0.get(&7).derive_add_ctx(me), |register, context| {
                register.write(value, context)
            })
        };
        self.0.apply(change);
        Some(self.clone())
    }

    fn merge(&mut self, other: &Self) -> bool {
        let before = self.clone();
        self.0.merge(other.0.clone());
        *self != before
    }
}
