//! x
#![allow(dead_code)]
mod bound;
mod flow;
mod load;
mod quota;
mod replicas;
mod roles;
mod sets;
mod waves;

/// The problem: how many slots and replicas, over which nodes, in how many zones.
#[derive(Clone, Debug)]
struct Shape {
    slots: usize,
    rf: usize,
    /// Distinct zones per slot, 1 to `rf`.
    min_zones: usize,
    /// 0: holds nothing.
    weights: Vec<u32>,
    zone: Vec<u32>,
    zones: usize,
}

/// A list of nodes per slot.
#[derive(Clone, Debug)]
struct Lists {
    starts: Vec<usize>,
    items: Vec<u32>,
}

impl Lists {
    fn of_lists(lists: impl IntoIterator<Item = Vec<u32>>) -> Self {
        let mut all = Self { starts: vec![0], items: Vec::new() };
        for list in lists {
            all.items.extend(list);
            all.starts.push(all.items.len());
        }
        all
    }

    fn of(&self, slot: usize) -> &[u32] {
        &self.items[self.starts[slot]..self.starts[slot + 1]]
    }
}
