//! What the protocol shares between threads, with a model of it for loom.
//!
//! loom cannot look into arc-swap, so its promise is modelled: a store and a load of one pointer, each
//! atomic. Torn reads of the real thing are tested on real threads.

#[cfg(not(loom))]
mod real {
    use std::sync::{Arc, Mutex, PoisonError};

    use arc_swap::ArcSwap;
    use arc_swap::cache::Cache;

    /// A value that is replaced as a whole.
    #[derive(Debug)]
    pub(in super::super) struct Published<T>(Arc<ArcSwap<T>>);

    impl<T> Published<T> {
        pub(in super::super) fn new(value: Arc<T>) -> Self {
            Self(Arc::new(ArcSwap::new(value)))
        }

        pub(in super::super) fn store(&self, value: Arc<T>) {
            self.0.store(value);
        }

        pub(in super::super) fn load(&self) -> Arc<T> {
            self.0.load_full()
        }

        pub(in super::super) fn cached(&self) -> Cached<T> {
            Cached(Cache::new(Arc::clone(&self.0)))
        }
    }

    /// The last value that a reader saw, kept without touching shared counters.
    #[derive(Debug)]
    pub(in super::super) struct Cached<T>(Cache<Arc<ArcSwap<T>>, Arc<T>>);

    impl<T> Clone for Cached<T> {
        fn clone(&self) -> Self {
            Self(self.0.clone())
        }
    }

    impl<T> Cached<T> {
        #[inline]
        pub(in super::super) fn get(&mut self) -> &T {
            self.0.load()
        }
    }

    /// A lock whose poison does not spread: what it guards is changed in one step at the end.
    #[derive(Debug)]
    pub(in super::super) struct Locked<T>(Mutex<T>);

    impl<T> Locked<T> {
        pub(in super::super) fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }

        pub(in super::super) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
            f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
        }
    }
}

#[cfg(loom)]
mod real {
    use std::sync::Arc;

    use loom::sync::{Mutex, RwLock};

    #[derive(Debug)]
    pub(in super::super) struct Published<T>(Arc<RwLock<Arc<T>>>);

    impl<T> Published<T> {
        pub(in super::super) fn new(value: Arc<T>) -> Self {
            Self(Arc::new(RwLock::new(value)))
        }

        pub(in super::super) fn store(&self, value: Arc<T>) {
            *self.0.write().expect("invariant: the model does not panic") = value;
        }

        pub(in super::super) fn load(&self) -> Arc<T> {
            Arc::clone(&self.0.read().expect("invariant: the model does not panic"))
        }

        pub(in super::super) fn cached(&self) -> Cached<T> {
            Cached { from: Self(Arc::clone(&self.0)), seen: self.load() }
        }
    }

    #[derive(Debug)]
    pub(in super::super) struct Cached<T> {
        from: Published<T>,
        seen: Arc<T>,
    }

    impl<T> Clone for Cached<T> {
        fn clone(&self) -> Self {
            Self { from: Published(Arc::clone(&self.from.0)), seen: Arc::clone(&self.seen) }
        }
    }

    impl<T> Cached<T> {
        pub(in super::super) fn get(&mut self) -> &T {
            self.seen = self.from.load();
            &self.seen
        }
    }

    #[derive(Debug)]
    pub(in super::super) struct Locked<T>(Mutex<T>);

    impl<T> Locked<T> {
        pub(in super::super) fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }

        pub(in super::super) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
            f(&mut self.0.lock().expect("invariant: the model does not panic"))
        }
    }
}

pub(super) use real::{Cached, Locked, Published};
