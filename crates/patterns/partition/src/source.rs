//! The order in which a placement offers nodes; repeats are filtered by whoever asks.

use crate::jump::Hops;
use crate::maglev::Chain;
use crate::node::NodeIdx;
use crate::points::Walk;
use crate::rendezvous::{Ranked, ZonedWalk};

/// A walk over nodes that can be started again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    /// An owner from a table, then a ranking.
    Chain(Chain<'a>),
    /// Draws of a jump function.
    Hops(Hops),
    /// An explicit list.
    List(&'a [NodeIdx], u32),
    /// Clockwise over points.
    Points(Walk<'a>),
    /// Clockwise over points, without the nodes that are marked.
    PointsBut(Walk<'a>, &'a [bool]),
    /// From the best score down.
    Ranked(Ranked<'a>),
    /// From the best zone down, in each from the best score down.
    Zoned(ZonedWalk<'a>),
}

impl<'a> Source<'a> {
    /// The first nodes that it gives, as many as are at hand, if those are a piece of a table.
    #[inline(always)]
    pub(crate) fn near(&self) -> &'a [u16] {
        match self {
            Self::Points(walk) => walk.near(),
            _ => &[],
        }
    }

    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<u32> {
        // The walk over points is short enough to be part of every caller; the others are not.
        match self {
            Self::Points(walk) => walk.next(),
            other => other.next_other(),
        }
    }

    #[inline(never)]
    fn next_other(&mut self) -> Option<u32> {
        match self {
            Self::Chain(chain) => chain.next(),
            Self::Hops(hops) => hops.next(),
            Self::List(list, at) => {
                let node = list.get(*at as usize)?;
                *at += 1;
                Some(node.get())
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

    /// Back to where it began.
    pub(crate) fn restart(&mut self) {
        match self {
            Self::Chain(chain) => chain.restart(),
            Self::Hops(hops) => hops.restart(),
            Self::List(_, at) => *at = 0,
            Self::Points(walk) | Self::PointsBut(walk, _) => walk.restart(),
            Self::Ranked(ranked) => ranked.restart(),
            Self::Zoned(walk) => walk.restart(),
        }
    }
}
