//! A sorted map in chunks: as compact as a sorted vector, with insertions that move one chunk only.

use std::fmt;

/// Most entries of a chunk. Larger moves more per insertion, smaller costs more per entry; 64 entries of 32
/// bytes are half a page.
const CHUNK: usize = 64;

/// Entries sorted by key, in chunks that each remember a figure about their entries until one changes.
pub(crate) struct Sorted<K, V> {
    chunks: Vec<Chunk<K, V>>,
    len: usize,
}

#[derive(Clone)]
struct Chunk<K, V> {
    entries: Vec<(K, V)>,
    sum: Option<u128>,
}

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<K: Clone, V: Clone> Clone for Sorted<K, V> {
    fn clone(&self) -> Self {
        Self { chunks: self.chunks.clone(), len: self.len }
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Sorted<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<K: Eq, V: Eq> Eq for Sorted<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Sorted<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|e| (&e.0, &e.1))).finish()
    }
}

impl<K, V> Sorted<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries in key order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(K, V)> + Clone {
        self.chunks.iter().flat_map(|c| c.entries.iter())
    }

    /// Entries in key order, in the slices that hold them.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &[(K, V)]> {
        self.chunks.iter().map(|c| c.entries.as_slice())
    }

    /// Forgets every remembered sum.
    pub(crate) fn forget_sums(&mut self) {
        for chunk in &mut self.chunks {
            chunk.sum = None;
        }
    }
}

impl<K: Ord, V> Sorted<K, V> {
    /// The chunk that has `key` or would get it.
    fn chunk(&self, key: &K) -> usize {
        if self.chunks.len() <= 1 {
            return 0;
        }
        let first = |c: &Chunk<K, V>| c.entries.first().is_some_and(|e| e.0 <= *key);
        self.chunks.partition_point(first).saturating_sub(1)
    }

    fn seek(&self, key: &K) -> (usize, Result<usize, usize>) {
        let at = self.chunk(key);
        let found = self.chunks.get(at).map_or(Err(0), |c| c.entries.binary_search_by(|e| e.0.cmp(key)));
        (at, found)
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let (at, found) = self.seek(key);
        found.ok().map(|i| &self.chunks[at].entries[i].1)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let (at, found) = self.seek(key);
        let i = found.ok()?;
        let chunk = &mut self.chunks[at];
        chunk.sum = None;
        Some(&mut chunk.entries[i].1)
    }

    /// The value that was there.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        if self.chunks.is_empty() {
            self.chunks.push(Chunk { entries: Vec::new(), sum: None });
        }
        let (at, found) = self.seek(&key);
        let last = at + 1 == self.chunks.len();
        let chunk = &mut self.chunks[at];
        chunk.sum = None;
        let i = match found {
            Ok(i) => return Some(std::mem::replace(&mut chunk.entries[i].1, value)),
            Err(i) => i,
        };
        self.len += 1;
        if chunk.entries.len() < CHUNK {
            grow(&mut chunk.entries);
            chunk.entries.insert(i, (key, value));
        } else if last && i == CHUNK {
            // Ascending keys fill every chunk.
            self.chunks.push(Chunk { entries: vec![(key, value)], sum: None });
        } else {
            let mut tail = Vec::with_capacity(CHUNK * 3 / 4);
            tail.extend(chunk.entries.drain(CHUNK / 2..));
            chunk.entries.shrink_to(CHUNK * 3 / 4);
            if i <= CHUNK / 2 {
                chunk.entries.insert(i, (key, value));
            } else {
                tail.insert(i - CHUNK / 2, (key, value));
            }
            self.chunks.insert(at + 1, Chunk { entries: tail, sum: None });
        }
        None
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let (at, found) = self.seek(key);
        let i = found.ok()?;
        let chunk = &mut self.chunks[at];
        chunk.sum = None;
        let (_, value) = chunk.entries.remove(i);
        self.len -= 1;
        if chunk.entries.is_empty() {
            self.chunks.remove(at);
        } else if chunk.entries.len() < CHUNK / 4
            && let Some(next) = self.chunks.get(at + 1)
            && next.entries.len() + self.chunks[at].entries.len() <= CHUNK * 3 / 4
        {
            // A set that shrank does not keep a chunk per survivor.
            let next = self.chunks.remove(at + 1);
            self.chunks[at].entries.extend(next.entries);
        }
        Some(value)
    }

    /// Entries with keys in `lo..=hi`.
    pub(crate) fn range(&self, lo: &K, hi: &K) -> impl Iterator<Item = &(K, V)> {
        let (at, found) = self.seek(lo);
        let from = found.unwrap_or_else(|i| i);
        let tail = self.chunks.get(at).map_or(&[][..], |c| &c.entries[from..]);
        let others = self.chunks.get(at + 1..).unwrap_or(&[]).iter().flat_map(|c| c.entries.iter());
        tail.iter().chain(others).take_while(move |e| e.0 <= *hi)
    }

    /// How many entries have keys in `lo..=hi`, and the sum of `of` over them. Whole chunks are remembered.
    pub(crate) fn sum(&mut self, lo: &K, hi: &K, mut of: impl FnMut(&K, &V) -> u128) -> (u64, u128) {
        let (mut count, mut sum) = (0, 0_u128);
        let from = self.chunk(lo);
        for chunk in &mut self.chunks[from..] {
            let (Some(first), Some(last)) = (chunk.entries.first(), chunk.entries.last()) else { continue };
            if first.0 > *hi {
                break;
            }
            if first.0 >= *lo && last.0 <= *hi {
                let mut all = || chunk.entries.iter().map(|e| of(&e.0, &e.1)).fold(0, u128::wrapping_add);
                count += chunk.entries.len() as u64;
                sum = sum.wrapping_add(match chunk.sum {
                    Some(sum) => sum,
                    None => *chunk.sum.insert(all()),
                });
            } else {
                for e in chunk.entries.iter().filter(|e| e.0 >= *lo && e.0 <= *hi) {
                    count += 1;
                    sum = sum.wrapping_add(of(&e.0, &e.1));
                }
            }
        }
        (count, sum)
    }
}

/// Doubling up to a chunk, so that small maps stay small and full ones are exactly full.
fn grow<T>(entries: &mut Vec<T>) {
    if entries.len() == entries.capacity() {
        let more = entries.len().max(1).min(CHUNK - entries.len());
        entries.reserve_exact(more);
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Sorted<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut sorted = Self::default();
        for (key, value) in entries {
            sorted.insert(key, value);
        }
        sorted
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mainstay_clock::{Rng, SeededRng};

    use super::Sorted;

    #[test]
    fn it_is_a_map_with_sums() {
        let rng = SeededRng::new(5);
        for space in [40_u64, 400, 4_000] {
            let (mut ours, mut model) = (Sorted::default(), BTreeMap::new());
            for step in 0..6_000_u64 {
                let key = rng.below(space);
                if rng.below(5) < 2 + step / 3_000 {
                    assert_eq!(ours.remove(&key), model.remove(&key));
                } else {
                    assert_eq!(ours.insert(key, step), model.insert(key, step));
                }
                if step % 64 == 0 {
                    let (lo, hi) = (rng.below(space), rng.below(space));
                    let (lo, hi) = (lo.min(hi), lo.max(hi));
                    let wanted = model
                        .range(lo..=hi)
                        .fold((0, 0_u128), |(n, s), (k, v)| (n + 1, s + u128::from(k ^ v)));
                    assert_eq!(ours.sum(&lo, &hi, |k, v| u128::from(k ^ v)), wanted);
                    assert!(ours.range(&lo, &hi).map(|e| e.0).eq(model.range(lo..=hi).map(|e| *e.0)));
                }
                assert_eq!(ours.get(&key), model.get(&key));
            }
            assert_eq!(ours.len(), model.len());
            assert!(ours.iter().map(|e| (e.0, e.1)).eq(model.into_iter()));
        }
    }
}
