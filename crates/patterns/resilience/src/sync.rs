//! Atomics and locks of the lock-free cores, so that loom and shuttle can model them.

#[cfg(not(any(loom, shuttle)))]
mod imp {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

    pub(crate) use std::sync::{Mutex as RawMutex, MutexGuard};
}

#[cfg(loom)]
mod imp {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};

    pub(crate) use loom::sync::{Mutex as RawMutex, MutexGuard};
}

#[cfg(all(shuttle, not(loom)))]
mod imp {
    pub(crate) use shuttle::sync::atomic::{AtomicU64, Ordering};

    pub(crate) use shuttle::sync::{Mutex as RawMutex, MutexGuard};
}

pub(crate) use imp::{AtomicU64, MutexGuard, Ordering};

/// A mutex whose poison does not cascade: everything it protects is consistent between two statements.
#[derive(Debug)]
pub(crate) struct Mutex<T>(imp::RawMutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(imp::RawMutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        match self.0.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    /// The guard, unless another thread holds it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }
}
