//! The order in which a placement offers nodes; repeats are filtered by whoever asks.

use crate::jump::Hops;
use crate::maglev::Chain;
use crate::node::NodeIdx;
use crate::points::Walk;
use crate::rendezvous::{Ranked, ZonedWalk};

/// A walk over nodes. Copied to start again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    /// An owner from a table, then a ranking.
    Chain(Chain<'a>),
    /// Draws of a jump function.
    Hops(Hops),
    /// An explicit list.
    List(&'a [NodeIdx]),
    /// Clockwise over points.
    Points(Walk<'a>),
    /// Clockwise over points, without the nodes that are marked.
    PointsBut(Walk<'a>, &'a [bool]),
    /// From the best score down.
    Ranked(Ranked<'a>),
    /// From the best zone down, in each from the best score down.
    Zoned(ZonedWalk<'a>),
}

impl Source<'_> {
    #[inline]
    pub(crate) fn next(&mut self) -> Option<u32> {
        match self {
            Self::Chain(chain) => chain.next(),
            Self::Hops(hops) => hops.next(),
            Self::List(list) => {
                let (first, rest) = list.split_first()?;
                *list = rest;
                Some(first.get())
            }
            Self::Points(walk) => walk.next(),
            Self::PointsBut(walk, out) => loop {
                let node = walk.next()?;
                if !out[node as usize] {
                    return Some(node);
                }
            },
            Self::Ranked(ranked) => ranked.next(),
            Self::Zoned(walk) => walk.next(),
        }
    }
}
