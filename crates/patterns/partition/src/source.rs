//! The order in which a placement offers nodes; repeats are filtered by whoever asks.

use crate::node::NodeIdx;
use crate::points::Walk;

/// A walk over nodes. Copied to start again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    /// There are no nodes.
    Empty,
    /// An explicit list.
    List(&'a [NodeIdx]),
    /// Clockwise over points.
    Points(Walk<'a>),
}

impl Source<'_> {
    #[inline]
    pub(crate) fn next(&mut self) -> Option<u32> {
        match self {
            Self::Empty => None,
            Self::List(list) => {
                let (first, rest) = list.split_first()?;
                *list = rest;
                Some(first.get())
            }
            Self::Points(walk) => walk.next(),
        }
    }
}
