//! Where everything is that the library was given: in which container, and in which order there.
//!
//! In the encoding only what has no neighbor says its container; all else is where its neighbor is, and the library
//! believes that a neighbor is in the right place. Here it is known. [`Order::put`] takes a run only if its author can have
//! seen it between its neighbors:
//!
//! - both are in one container, at one key of it, of a kind that has such content;
//! - neither place is inside a letter that counts twice;
//! - the left one is in front of the right one, and nothing of which either is known to depend is between them: what the
//!   right one was put behind is not behind the left one, and what the left one was put in front of is not in front of the
//!   right one. (Why these two are enough: of whatever a thing was put beside, nothing is between its own neighbors.)
//!
//! These look only at the neighbors, at where they were put, and at the order of things that are there. Things never move,
//! so the answer is the same whenever it is asked after the neighbors came; and the algorithm of the library, of which
//! [`Order::seat`] is the mirror, needs just this to put things in the same order whatever comes first.
//!
//! Runs that go on where the last one ended are one here, so this is smaller than what the library keeps.

use std::collections::{BTreeMap, BTreeSet};

use crate::document::changes::{Content, Home, Id, Run};
use crate::document::read::suits;

/// No item.
const NONE: u32 = u32::MAX;
/// Between labels of neighbors: 32 halvings fit in between, and as many items in a row as there are numbers for.
const STEP: u64 = 1 << 32;

/// Things beside each other in the order of their container.
#[derive(Clone, Copy, Debug)]
struct Item {
    id: Id,
    len: u32,
    left: Option<Id>,
    right: Option<Id>,
    home: u32,
    /// Grows along the container.
    label: u64,
    next: u32,
    prev: u32,
}

#[derive(Debug, Default)]
struct Author {
    /// By clock, without gaps.
    items: Vec<u32>,
    end: u32,
    /// Second halves of letters that count twice.
    inside: BTreeSet<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Order {
    items: Vec<Item>,
    authors: BTreeMap<u64, Author>,
    homes: BTreeMap<Home, u32>,
    /// Of each container: whether it has keys, and its first item.
    heads: Vec<(Home, u32)>,
}

impl Order {
    /// How many things of `author` there are.
    pub(super) fn end(&self, author: u64) -> u32 {
        self.authors.get(&author).map_or(0, |author| author.end)
    }

    fn find(&self, id: Id) -> Option<u32> {
        let author = self.authors.get(&id.author).filter(|author| id.clock < author.end)?;
        let after = author.items.partition_point(|at| self.items[*at as usize].id.clock <= id.clock);
        author.items.get(after.checked_sub(1)?).copied()
    }

    fn item(&self, id: Id) -> Option<&Item> {
        Some(&self.items[self.find(id)? as usize])
    }

    fn place(&self, id: Id) -> Option<(u64, u32)> {
        Some((self.item(id)?.label, id.clock))
    }

    /// What it was put behind.
    fn left_of(&self, id: Id) -> Option<Id> {
        let item = self.item(id)?;
        if item.id == id { item.left } else { Some(Id::new(id.author, id.clock - 1)) }
    }

    /// Whether a cut in front of this one would go through a letter.
    pub(super) fn splits_a_letter(&self, id: Id) -> bool {
        self.authors.get(&id.author).is_some_and(|author| author.inside.contains(&id.clock))
    }

    /// The container that `run` goes into, if its author can have put it there.
    fn home_of(&self, run: &Run) -> Option<Home> {
        let Some(id) = run.left.or(run.right) else { return run.home.clone() };
        let index = self.item(id)?.home;
        let home = &self.heads[index as usize].0;
        if run.keyed != home.key.is_some() || !suits(&run.content, home) {
            return None;
        }
        let cuts = run.left.map(|left| Id::new(left.author, left.clock + 1)).into_iter().chain(run.right);
        if cuts.into_iter().any(|cut| self.splits_a_letter(cut)) {
            return None;
        }
        let right = match run.right {
            Some(right) => Some((self.item(right)?, self.place(right)?)),
            None => None,
        };
        let left = match run.left {
            Some(left) => Some((self.item(left)?, self.place(left)?)),
            None => None,
        };
        if let (Some(left), Some(right)) = (left, right)
            && (left.0.home != right.0.home || left.1 >= right.1)
        {
            return None;
        }
        // What the right one was put behind is the left one, or in front of it.
        if let Some(origin) = run.right.and_then(|right| self.left_of(right))
            && left.is_none_or(|left| self.place(origin).is_none_or(|place| place > left.1))
        {
            return None;
        }
        // What the left one was put in front of is the right one, or behind it.
        if let Some(origin) = left.and_then(|left| left.0.right)
            && right.is_none_or(|right| self.place(origin).is_none_or(|place| place < right.1))
        {
            return None;
        }
        Some(home.clone())
    }

    /// Takes in a run whose neighbors are here, and which goes on where its author ended; whether it did.
    #[must_use]
    pub(super) fn put(&mut self, run: &Run) -> bool {
        if run.id.clock != self.end(run.id.author) {
            return false;
        }
        let Some(home) = self.home_of(run) else { return false };
        let next = self.heads.len() as u32;
        let home = match self.homes.get(&home) {
            Some(index) => *index,
            None => {
                self.homes.insert(home.clone(), next);
                self.heads.push((home, NONE));
                next
            }
        };
        let after = self.seat(run, home);
        let author = self.authors.entry(run.id.author).or_default();
        author.end = run.end();
        if let Content::Text(text) = &run.content {
            let mut clock = run.id.clock;
            for c in text.chars() {
                if c.len_utf16() == 2 {
                    author.inside.insert(clock + 1);
                    clock += 1;
                }
                clock += 1;
            }
        }
        let goes_on = run.left.filter(|left| left.author == run.id.author && left.clock + 1 == run.id.clock);
        if let Some(last) = self.items.get_mut(after as usize)
            && goes_on == Some(Id::new(last.id.author, last.id.clock + last.len - 1))
            && last.right == run.right
        {
            last.len += run.len;
            return true;
        }
        let (id, len, left, right) = (run.id, run.len, run.left, run.right);
        let at = self.insert(Item { id, len, left, right, home, label: 0, next: NONE, prev: NONE }, after);
        self.authors.entry(run.id.author).or_default().items.push(at);
        true
    }

    /// Behind which item the run goes. This is the algorithm of the library: of those that others put between the same
    /// neighbors, the one of the smaller author is in front, with all that is put behind it.
    fn seat(&mut self, run: &Run, home: u32) -> u32 {
        let left = run.left.and_then(|left| self.split_behind(left)).unwrap_or(NONE);
        let mut at = if left == NONE { self.heads[home as usize].1 } else { self.items[left as usize].next };
        let mut last = left;
        let first = self.items.get(at as usize).map_or(0, |item| item.label);
        // From where on things are behind `last`.
        let mut behind = None;
        while let Some(item) = self.items.get(at as usize) {
            if Some(item.id) == run.right {
                break;
            }
            let from = *behind.get_or_insert(item.label);
            if item.left == run.left {
                if item.id.author < run.id.author {
                    (last, behind) = (at, None);
                } else if item.right == run.right {
                    break;
                }
            } else {
                let origin = item.left.and_then(|left| self.item(left)).map(|origin| origin.label);
                match origin {
                    Some(label) if label < first => break,
                    Some(label) if label < from => (last, behind) = (at, None),
                    Some(_) => {}
                    None => break,
                }
            }
            at = item.next;
        }
        last
    }

    /// The item that ends with `id`; one that goes on is cut.
    fn split_behind(&mut self, id: Id) -> Option<u32> {
        let at = self.find(id)?;
        let item = self.items[at as usize];
        let len = id.clock + 1 - item.id.clock;
        if len < item.len {
            self.items[at as usize].len = len;
            let rest =
                Item { id: Id::new(id.author, id.clock + 1), len: item.len - len, left: Some(id), ..item };
            let new = self.insert(rest, at);
            let author = self.authors.entry(id.author).or_default();
            let place = author.items.partition_point(|at| self.items[*at as usize].id.clock <= id.clock);
            author.items.insert(place, new);
        }
        Some(at)
    }

    /// Puts an item behind the one at `prev`, or at the beginning of its container.
    fn insert(&mut self, mut item: Item, prev: u32) -> u32 {
        let at = self.items.len() as u32;
        let head = &mut self.heads[item.home as usize].1;
        item.prev = prev;
        item.next = match self.items.get_mut(prev as usize) {
            Some(prev) => std::mem::replace(&mut prev.next, at),
            None => std::mem::replace(head, at),
        };
        if let Some(next) = self.items.get_mut(item.next as usize) {
            next.prev = at;
        }
        let low = self.items.get(prev as usize).map_or(0, |prev| prev.label);
        let high = self.items.get(item.next as usize).map(|next| next.label);
        let label = match high {
            Some(high) => low + (high - low) / 2,
            None => low.saturating_add(STEP),
        };
        item.label = label;
        let fits = label > low && high.is_none_or(|high| label < high);
        let home = item.home;
        self.items.push(item);
        if !fits {
            self.label_anew(home);
        }
        at
    }

    fn label_anew(&mut self, home: u32) {
        let (mut at, mut label) = (self.heads[home as usize].1, 0);
        while let Some(item) = self.items.get_mut(at as usize) {
            label += STEP;
            item.label = label;
            at = item.next;
        }
    }

    /// Takes back what `author` has from `end` on; nothing else may have been put beside it.
    pub(super) fn take_back(&mut self, author: u64, end: u32) {
        let Some(entry) = self.authors.get_mut(&author) else { return };
        entry.end = entry.end.min(end);
        let _ = entry.inside.split_off(&end);
        while let Some(at) = entry.items.last().copied() {
            let item = self.items[at as usize];
            if item.id.clock < end {
                self.items[at as usize].len = item.len.min(end - item.id.clock);
                return;
            }
            entry.items.pop();
            match self.items.get_mut(item.prev as usize) {
                Some(prev) => prev.next = item.next,
                None => self.heads[item.home as usize].1 = item.next,
            }
            if let Some(next) = self.items.get_mut(item.next as usize) {
                next.prev = item.prev;
            }
        }
    }
}
