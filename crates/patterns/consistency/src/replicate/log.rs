//! The deltas that peers may still need.

use std::collections::VecDeque;

use crate::error::Result;
use crate::replicate::Replicated;
use crate::wire::encode;

/// What joined deltas of one actor share: the version and one entry of the dictionary.
const ONCE: usize = 18;

/// Numbered deltas, bounded in bytes: the oldest go first, and who needs them repairs by digests.
#[derive(Debug)]
pub(super) struct Log<T> {
    entries: VecDeque<Entry<T>>,
    seq: u64,
    bytes: usize,
    limit: usize,
}

#[derive(Debug)]
struct Entry<T> {
    delta: T,
    origin: Option<u64>,
    size: usize,
}

/// An interval for one peer.
pub(super) struct Interval<T> {
    pub(super) to: u64,
    /// Absent when the peer was the origin of everything in it.
    pub(super) delta: Option<T>,
    /// About what that takes.
    pub(super) size: usize,
}

impl<T: Replicated> Log<T> {
    pub(super) fn new(limit: usize) -> Self {
        Self { entries: VecDeque::new(), seq: 0, bytes: 0, limit }
    }

    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    pub(super) fn push(&mut self, delta: T, origin: Option<u64>) {
        let size = encode(&delta).len();
        self.entries.push_back(Entry { delta, origin, size });
        self.seq += 1;
        self.bytes += size;
        while self.bytes > self.limit
            && let Some(old) = self.entries.pop_front()
        {
            self.bytes -= old.size;
        }
    }

    /// Whether everything after `acked` is still here.
    pub(super) fn reaches(&self, acked: u64) -> bool {
        acked <= self.seq && self.seq - acked <= self.entries.len() as u64
    }

    /// The join of what follows `acked`, as much as fits into about `max` bytes, without what came from `peer` itself.
    pub(super) fn interval(&self, acked: u64, peer: u64, max: usize) -> Result<Interval<T>> {
        let skip = self.entries.len() - usize::try_from(self.seq - acked).unwrap_or(self.entries.len());
        let (mut to, mut size, mut joined) = (acked, 0, None::<T>);
        for entry in self.entries.iter().skip(skip) {
            if entry.origin != Some(peer) {
                let more = entry.size.saturating_sub(ONCE).max(4);
                if size > 0 && size + more > max {
                    break;
                }
                size += more;
                match &mut joined {
                    None => joined = Some(entry.delta.clone()),
                    Some(joined) => {
                        let _ = joined.join(&entry.delta)?;
                    }
                }
            }
            to += 1;
        }
        Ok(Interval { to, delta: joined, size })
    }

    /// Whether one interval holds all that follows `acked`; `max` and `peer` as there.
    pub(super) fn fits(&self, acked: u64, peer: u64, max: usize) -> bool {
        if acked >= self.seq || !self.reaches(acked) {
            return true;
        }
        let skip = self.entries.len() - usize::try_from(self.seq - acked).unwrap_or(self.entries.len());
        let others = self.entries.iter().skip(skip).filter(|entry| entry.origin != Some(peer));
        let mut sizes = others.map(|entry| entry.size.saturating_sub(ONCE).max(4));
        let first = sizes.next().unwrap_or(0);
        let all = sizes.try_fold(first, |sum, size| Some(sum + size).filter(|sum| *sum <= max));
        all.is_some()
    }

    /// The join of the newest changes that take about `max` bytes, none of them before `from` or from `peer` itself; whether
    /// these are all of them.
    pub(super) fn newest(&self, from: u64, peer: u64, max: usize) -> Result<(Option<T>, bool)> {
        let fresh = usize::try_from(self.seq.saturating_sub(from)).unwrap_or(usize::MAX);
        let (mut size, mut joined) = (0, None::<T>);
        for entry in self.entries.iter().rev().take(fresh).filter(|entry| entry.origin != Some(peer)) {
            size += entry.size.saturating_sub(ONCE).max(4);
            if size > max {
                return Ok((joined, false));
            }
            match &mut joined {
                None => joined = Some(entry.delta.clone()),
                Some(joined) => {
                    let _ = joined.join(&entry.delta)?;
                }
            }
        }
        Ok((joined, fresh <= self.entries.len()))
    }

    /// Drops what every peer has.
    pub(super) fn trim(&mut self, acked: u64) {
        while !self.entries.is_empty()
            && self.seq - (self.entries.len() as u64) < acked
            && let Some(old) = self.entries.pop_front()
        {
            self.bytes -= old.size;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}
