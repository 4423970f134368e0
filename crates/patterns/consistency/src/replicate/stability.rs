//! What every member has seen, and what may be forgotten.

use std::collections::BTreeMap;

use crate::hash;
use crate::replicate::message::Stand;
use crate::version::{Causality, VersionVector};

/// What tells one cut from another; zero for none.
pub(super) fn cut_hash(cut: &VersionVector) -> u64 {
    if cut.is_empty() { 0 } else { hash::of_value(cut) }
}

/// Cuts of this replica and the reports of the others.
#[derive(Debug, Default)]
pub(super) struct Stability {
    reports: BTreeMap<u64, Stand>,
    stable: VersionVector,
    collected: VersionVector,
}

impl Stability {
    pub(super) fn stable(&self) -> &VersionVector {
        &self.stable
    }

    pub(super) fn collected(&self) -> &VersionVector {
        &self.collected
    }

    /// Takes a report in; whether it said something new.
    pub(super) fn report(&mut self, member: u64, stand: &Stand) -> bool {
        let known = self.reports.entry(member).or_default();
        let knows = known.knows.merge(&stand.knows).is_yes();
        let stable = known.stable.merge(&stand.stable).is_yes();
        knows || stable
    }

    pub(super) fn forget(&mut self, member: u64) {
        self.reports.remove(&member);
    }

    /// Moves the own stable cut: what every member acknowledged, once `mine` contains everything they acknowledged.
    pub(super) fn advance(
        &mut self,
        me: u64,
        members: impl Iterator<Item = u64>,
        mine: &VersionVector,
    ) -> bool {
        let mut cut = mine.clone();
        for member in members.filter(|m| *m != me) {
            let Some(report) = self.reports.get(&member) else { return false };
            if !matches!(mine.compare(&report.knows), Causality::After | Causality::Equal) {
                return false;
            }
            cut = cut.common(&report.knows);
        }
        self.stable.merge(&cut).is_yes()
    }

    /// What every member reported stable.
    pub(super) fn collectable(&self, me: u64, members: impl Iterator<Item = u64>) -> VersionVector {
        let mut cut = self.stable.clone();
        for member in members.filter(|m| *m != me) {
            match self.reports.get(&member) {
                Some(report) => cut = cut.common(&report.stable),
                None => return VersionVector::new(),
            }
        }
        cut
    }

    /// Notes that everything in `cut` was collected; whether that is more than before.
    pub(super) fn collect(&mut self, cut: &VersionVector) -> bool {
        self.collected.merge(cut).is_yes()
    }
}
