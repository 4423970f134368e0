//! Values that share no cache line with a neighbor.

use std::ops::{Deref, DerefMut};

/// A value on cache lines of its own. 128 bytes: processors fetch lines in pairs, and some have lines that long.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(128))]
pub(crate) struct CachePadded<T>(T);

impl<T> CachePadded<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(value)
    }
}

/// A value that begins a cache line. For what is seldom written: it may be fetched along with a neighbor.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
pub(crate) struct CacheLined<T>(T);

impl<T> CacheLined<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for CacheLined<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Deref for CachePadded<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for CachePadded<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
