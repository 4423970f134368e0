//! The acquisitions that this process asked for: a store is told an op id, etcd wants keys and a lease.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Acquisitions that are remembered. More are forgotten, oldest id first: they are found again by the record that
/// etcd keeps of each, and what was never answered ends with its lease.
const MAX: usize = 100_000;

/// One acquisition. Every one has a lease of its own (coordination F39).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) names: Vec<String>,
    pub(crate) lease: i64,
    /// How long the lease lasts.
    pub(crate) seconds: i64,
    /// As it was asked for, but never longer than the lease.
    pub(crate) ttl: Duration,
    /// When its keys were created; none until that was answered.
    pub(crate) created: Option<i64>,
    /// Its ownership was proved.
    pub(crate) held: bool,
    /// A release was sent: unless it was answered, nobody knows whether it took effect.
    pub(crate) releasing: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Ops(Mutex<BTreeMap<String, Op>>);

impl Ops {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Op>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, op_id: &str) -> Option<Op> {
        self.lock().get(op_id).cloned()
    }

    /// Before anything is sent: until it is answered nobody knows.
    pub(crate) fn begin(&self, op_id: &str, op: Op) {
        let mut map = self.lock();
        if map.len() >= MAX {
            map.pop_first();
        }
        map.insert(op_id.to_owned(), op);
    }

    /// Its keys are there since `created`.
    pub(crate) fn placed(&self, op_id: &str, lease: i64, created: i64, held: bool) {
        if let Some(op) = self.lock().get_mut(op_id).filter(|op| op.lease == lease) {
            op.created = Some(created);
            op.held = held;
        }
    }

    /// A release goes out.
    pub(crate) fn releases(&self, op_id: &str, lease: i64) {
        if let Some(op) = self.lock().get_mut(op_id).filter(|op| op.lease == lease) {
            op.releasing = true;
        }
    }

    /// It was asked for again, for this time.
    pub(crate) fn lasts(&self, op_id: &str, lease: i64, ttl: Duration) {
        if let Some(op) = self.lock().get_mut(op_id).filter(|op| op.lease == lease) {
            op.ttl = ttl;
        }
    }

    /// Over, unless it has begun anew meanwhile.
    pub(crate) fn end(&self, op_id: &str, lease: i64) {
        let mut map = self.lock();
        if map.get(op_id).is_some_and(|op| op.lease == lease) {
            map.remove(op_id);
        }
    }
}
