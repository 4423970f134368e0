//! Maps of stores under one context.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;

use crate::ActorId;
use crate::crdt::Key;
use crate::crdt::causal::{DotStore, dots, sealed::Sealed};
use crate::crdt::dotset::nonempty;
use crate::crdt::index::Index;
use crate::error::Result;
use crate::hash::DigestKey;
use crate::lww::Stamps;
use crate::sorted::Sorted;
use crate::version::{Context, Dot};
use crate::wire::{Reader, Wire, Writer, encode};

/// From so many keys on a map knows where each dot is. Below, looking through all of them is as quick, and a delta
/// stays small.
const INDEX_FROM: usize = 16;

/// Marks maps in which an update wins over a concurrent removal.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct AddWins;

/// Marks maps in which a removal wins over a concurrent update.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct RemoveWins;

/// Marks maps in which the larger stamp wins.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Latest;

/// A store per key, all under one causal context; empty stores are not kept. `B` says which map it is: it decides
/// which mutators there are, never how two maps join.
///
/// A join costs what the smaller side costs: the map knows which key a dot belongs to.
pub struct DotMap<K, S, B = AddWins> {
    entries: Sorted<K, S>,
    /// Absent while the map is small.
    index: Option<Index<K>>,
    /// The key of the sums that the index remembers.
    sums: Option<DigestKey>,
    kind: PhantomData<fn() -> B>,
}

impl<K, S, B> Default for DotMap<K, S, B> {
    fn default() -> Self {
        Self { entries: Sorted::default(), index: None, sums: None, kind: PhantomData }
    }
}

impl<K: Clone, S: Clone, B> Clone for DotMap<K, S, B> {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone(), index: self.index.clone(), sums: self.sums, kind: PhantomData }
    }
}

impl<K: PartialEq, S: PartialEq, B> PartialEq for DotMap<K, S, B> {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl<K: fmt::Debug, S: fmt::Debug, B> fmt::Debug for DotMap<K, S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entries.fmt(f)
    }
}

impl<K: Key, S: DotStore, B> DotMap<K, S, B> {
    /// A map with one key, or none if `store` is empty: what most deltas are.
    pub(crate) fn one(key: K, store: S) -> Self {
        let mut map = Self::default();
        if !store.is_bottom() {
            map.entries.insert(key, store);
        }
        map
    }

    pub(crate) fn entry(&self, key: &K) -> Option<&S> {
        self.entries.get(key)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (&K, &S)> + Clone {
        self.entries.iter().map(|e| (&e.0, &e.1))
    }

    pub(crate) fn size(&self) -> usize {
        self.entries.len()
    }

    /// The key that `dot` belongs to.
    fn key_of(&self, dot: Dot) -> Option<&K> {
        match &self.index {
            Some(index) => index.get(dot),
            None => self.entries().find(|(_, s)| s.any_dot(&mut |d| d == dot)).map(|e| e.0),
        }
    }

    /// Joins `theirs` into the store of one key, and keeps the index.
    fn absorb_key(
        &mut self,
        key: &K,
        mine: &Context,
        other: &S,
        theirs: &Context,
        moved: &mut Vec<(Dot, bool)>,
    ) {
        let start = moved.len();
        if let Some(store) = self.entries.get_mut(key) {
            store.absorb(mine, other, theirs, moved);
            if store.is_bottom() {
                self.entries.remove(key);
            }
        } else {
            let mut store = S::default();
            store.absorb(mine, other, theirs, moved);
            if !store.is_bottom() {
                self.entries.insert(key.clone(), store);
            }
        }
        self.reindex(key, &moved[start..]);
    }

    fn reindex(&mut self, key: &K, moves: &[(Dot, bool)]) {
        if let Some(index) = &mut self.index {
            for (dot, came) in moves {
                if *came {
                    index.insert(*dot, key.clone());
                } else {
                    index.remove(*dot);
                }
            }
        } else if self.entries.len() >= INDEX_FROM {
            self.index = Some(self.build_index());
        }
    }

    fn build_index(&self) -> Index<K> {
        let mut all: Vec<(Dot, &K)> = Vec::new();
        for (key, store) in self.entries() {
            store.any_dot(&mut |dot| {
                all.push((dot, key));
                false
            });
        }
        all.sort_unstable_by_key(|e| e.0);
        let mut index = Index::default();
        for (dot, key) in all {
            index.insert(dot, key.clone());
        }
        index
    }

    /// Whether looking up what `other` mentions is cheaper than walking along both.
    fn is_small_beside(&self, other: &Self, theirs: &Context) -> bool {
        /// What a look-up costs, in steps of a walk.
        const LOOK_UP: usize = 16;
        let Some(index) = &self.index else { return false };
        let covered: usize = theirs
            .entries()
            .iter()
            .map(|(actor, runs)| {
                let ours = index.column(*actor).map_or(0, Sorted::len);
                ours.min(usize::try_from(runs.count()).unwrap_or(usize::MAX)) + runs.pieces()
            })
            .sum();
        (other.size() + covered) * LOOK_UP < self.size() + other.size()
    }

    /// Keys that `other` does not have and whose dots `theirs` says are gone, by the index.
    fn uncovered(&self, other: &Self, theirs: &Context) -> Vec<K> {
        let Some(index) = &self.index else { return Vec::new() };
        let mut keys = Vec::new();
        for (actor, runs) in theirs.entries() {
            let Some(column) = index.column(*actor) else { continue };
            for (lo, hi) in runs.iter() {
                if lo == hi {
                    keys.extend(column.get(&lo).filter(|key| other.entry(key).is_none()).cloned());
                } else {
                    let gone = column.range(&lo, &hi).filter(|e| other.entry(&e.1).is_none());
                    keys.extend(gone.map(|e| e.1.clone()));
                }
            }
        }
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Keys whose stores a join would touch, by a walk along both.
    fn differing(&self, mine: &Context, other: &Self, theirs: &Context) -> Vec<K> {
        let mut keys = Vec::new();
        let (mut left, mut right) = (self.entries.slices(), other.entries.slices());
        let (mut a, mut b) = (&[][..], &[][..]);
        loop {
            if a.is_empty() {
                a = left.next().unwrap_or(&[]);
            }
            if b.is_empty() {
                b = right.next().unwrap_or(&[]);
            }
            // Most of two replicas is equal: these are the steps that count.
            let equal = a.iter().zip(b).take_while(|(x, y)| x.0 == y.0 && x.1 == y.1).count();
            (a, b) = (&a[equal..], &b[equal..]);
            let order = match (a.first(), b.first()) {
                (None, None) if equal == 0 => return keys,
                (Some(x), Some(y)) => x.0.cmp(&y.0),
                // One slice ended: the next one may go on where the other stands.
                _ if equal > 0 => continue,
                (Some(_), None) => Ordering::Less,
                _ => Ordering::Greater,
            };
            match (order, a, b) {
                (Ordering::Equal, [x, rest @ ..], [_, others @ ..]) => {
                    keys.push(x.0.clone());
                    (a, b) = (rest, others);
                }
                (Ordering::Less, [x, rest @ ..], _) => {
                    if x.1.any_dot(&mut |dot| theirs.contains(dot)) {
                        keys.push(x.0.clone());
                    }
                    a = rest;
                }
                (_, _, [y, others @ ..]) => {
                    if y.1.any_dot(&mut |dot| !mine.contains(dot)) {
                        keys.push(y.0.clone());
                    }
                    b = others;
                }
                _ => return keys,
            }
        }
    }

    /// The sums of the index hold for one digest key only.
    fn use_sums_of(&mut self, key: &DigestKey) {
        if self.sums != Some(*key) {
            if let Some(index) = &mut self.index {
                index.forget_sums();
            }
            self.sums = Some(*key);
        }
    }
}

/// A key's part of a fingerprint, around that of what is under the key.
fn under<K: Key>(name: &K, inner: u128, key: &DigestKey) -> u128 {
    let mut all = encode(name);
    all.extend_from_slice(&inner.to_be_bytes());
    key.hash(&all)
}

impl<K, S, B> Sealed for DotMap<K, S, B> {}

impl<K: Key, S: DotStore, B> DotStore for DotMap<K, S, B> {
    const CHECKED: bool = S::CHECKED;
    const TOMBSTONES: bool = S::TOMBSTONES;
    const STAMPED: bool = S::STAMPED;

    fn is_bottom(&self) -> bool {
        self.entries.is_empty()
    }

    fn any_dot(&self, f: &mut dyn FnMut(Dot) -> bool) -> bool {
        self.entries().any(|(_, store)| store.any_dot(f))
    }

    fn absorb(&mut self, mine: &Context, other: &Self, theirs: &Context, moved: &mut Vec<(Dot, bool)>) {
        let nothing = S::default();
        if self.is_small_beside(other, theirs) {
            for (key, store) in other.entries() {
                self.absorb_key(key, mine, store, theirs, moved);
            }
            for key in self.uncovered(other, theirs) {
                self.absorb_key(&key, mine, &nothing, theirs, moved);
            }
            return;
        }
        for key in self.differing(mine, other, theirs) {
            self.absorb_key(&key, mine, other.entry(&key).unwrap_or(&nothing), theirs, moved);
        }
    }

    fn compatible(&self, mine: &Context, other: &Self, theirs: &Context) -> Result<()> {
        if S::CHECKED {
            for (key, store) in other.entries() {
                if let Some(ours) = self.entry(key) {
                    ours.compatible(mine, store, theirs)?;
                }
            }
        }
        Ok(())
    }

    fn look_ahead(&self, stamps: &mut Stamps) {
        if S::STAMPED {
            self.entries().for_each(|(_, store)| store.look_ahead(stamps));
        }
    }

    fn keep(&self, f: &dyn Fn(Dot) -> bool) -> Self {
        let kept =
            self.entries().filter(|(_, s)| s.any_dot(&mut |dot| f(dot))).map(|(k, s)| (k.clone(), s.keep(f)));
        let mut map = Self { entries: kept.collect(), ..Self::default() };
        if map.size() >= INDEX_FROM {
            map.index = Some(map.build_index());
        }
        map
    }

    fn fingerprint(&self, dot: Dot, key: &DigestKey) -> Option<u128> {
        let name = self.key_of(dot)?;
        let inner = self.entry(name)?.fingerprint(dot, key)?;
        Some(under(name, inner, key))
    }

    fn sum(&mut self, actor: ActorId, lo: u64, hi: u64, key: &DigestKey) -> (u64, u128) {
        self.use_sums_of(key);
        let Self { entries, index, .. } = self;
        let of = |n: u64, name: &K| {
            let inner = entries.get(name).and_then(|s| s.fingerprint(Dot::new(actor, n), key));
            inner.map_or(0, |inner| under(name, inner, key))
        };
        match index {
            Some(index) => {
                index.column_mut(actor).map_or((0, 0), |c| c.sum(&lo, &hi, |n, name| of(*n, name)))
            }
            None => {
                let mut found = (0, 0_u128);
                for (name, store) in entries.iter().map(|e| (&e.0, &e.1)) {
                    for dot in store.live(actor, lo, hi) {
                        found.0 += 1;
                        found.1 = found.1.wrapping_add(of(dot.counter(), name));
                    }
                }
                found
            }
        }
    }

    fn live(&self, actor: ActorId, lo: u64, hi: u64) -> Vec<Dot> {
        match &self.index {
            Some(index) => index.column(actor).map_or_else(Vec::new, |column| {
                if lo == hi {
                    return column.get(&lo).map(|_| Dot::new(actor, lo)).into_iter().collect();
                }
                column.range(&lo, &hi).map(|e| Dot::new(actor, e.0)).collect()
            }),
            None => {
                let mut live = dots(self);
                live.retain(|d| d.actor() == actor && (lo..=hi).contains(&d.counter()));
                live
            }
        }
    }

    fn actors(&self) -> Vec<ActorId> {
        match &self.index {
            Some(index) => index.actors().collect(),
            None => {
                let mut actors: Vec<ActorId> = dots(self).into_iter().map(Dot::actor).collect();
                actors.dedup();
                actors
            }
        }
    }

    fn collect(&mut self, stable: &dyn Fn(Dot) -> bool, moved: &mut Vec<(Dot, bool)>) -> usize {
        if !S::TOMBSTONES {
            return 0;
        }
        let mut total = 0;
        let mut next: Vec<(K, S, usize)> = Vec::new();
        for (key, store) in self.entries() {
            let (mut store, start) = (store.clone(), moved.len());
            let dropped = store.collect(stable, moved);
            if dropped > 0 {
                total += dropped;
                next.push((key.clone(), store, start));
            }
        }
        let mut end = moved.len();
        for (key, store, start) in next.into_iter().rev() {
            if store.is_bottom() {
                self.entries.remove(&key);
            } else {
                self.entries.insert(key.clone(), store);
            }
            self.reindex(&key, &moved[start..end]);
            end = start;
        }
        total
    }
}

impl<K: Key, S: DotStore, B> Wire for DotMap<K, S, B> {
    fn write(&self, out: &mut Writer) {
        out.number(self.size() as u64);
        for (key, store) in self.entries() {
            key.write(out);
            store.write(out);
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        input.nested(|input| {
            let entries = input.entries(|input| Ok((K::read(input)?, nonempty(S::read(input)?)?)))?;
            let mut map = Self { entries: entries.into_iter().collect(), ..Self::default() };
            if map.size() >= INDEX_FROM {
                map.index = Some(map.build_index());
            }
            Ok(map)
        })
    }
}
