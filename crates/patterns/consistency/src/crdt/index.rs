//! Where a dot is: what makes a join cost what the delta costs.

use crate::ActorId;
use crate::sorted::Sorted;
use crate::version::Dot;

/// Dot to key, one column per actor. Columns grow at their end, so they are full.
#[derive(Clone, Debug)]
pub(crate) struct Index<K>(Vec<(ActorId, Sorted<u64, K>)>);

impl<K> Default for Index<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K> Index<K> {
    pub(crate) fn insert(&mut self, dot: Dot, key: K) {
        let at = match self.0.binary_search_by_key(&dot.actor(), |e| e.0) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (dot.actor(), Sorted::default()));
                at
            }
        };
        self.0[at].1.insert(dot.counter(), key);
    }

    pub(crate) fn remove(&mut self, dot: Dot) {
        if let Ok(at) = self.0.binary_search_by_key(&dot.actor(), |e| e.0) {
            self.0[at].1.remove(&dot.counter());
            if self.0[at].1.is_empty() {
                self.0.remove(at);
            }
        }
    }

    pub(crate) fn column(&self, actor: ActorId) -> Option<&Sorted<u64, K>> {
        self.0.binary_search_by_key(&actor, |e| e.0).ok().map(|at| &self.0[at].1)
    }

    pub(crate) fn column_mut(&mut self, actor: ActorId) -> Option<&mut Sorted<u64, K>> {
        self.0.binary_search_by_key(&actor, |e| e.0).ok().map(|at| &mut self.0[at].1)
    }

    pub(crate) fn get(&self, dot: Dot) -> Option<&K> {
        self.column(dot.actor())?.get(&dot.counter())
    }

    pub(crate) fn actors(&self) -> impl Iterator<Item = ActorId> + '_ {
        self.0.iter().map(|e| e.0)
    }

    pub(crate) fn forget_sums(&mut self) {
        for (_, column) in &mut self.0 {
            column.forget_sums();
        }
    }
}
