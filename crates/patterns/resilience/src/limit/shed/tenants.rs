//! Who has how many permits.

use std::collections::HashMap;
use std::sync::Arc;

/// Permits out per tenant. Every entry has at least one, so there are as many entries as permits at most. Numbers stand
/// for tenants in permits, which are one word that way.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    numbers: HashMap<Arc<str>, u64>,
    entries: HashMap<u64, Entry>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    name: Arc<str>,
    permits: u32,
}

impl Tenants {
    /// Tenants with at least one permit.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Permits of `tenant`.
    pub(super) fn share(&self, tenant: &str) -> u32 {
        self.numbers.get(tenant).and_then(|n| self.entries.get(n)).map_or(0, |e| e.permits)
    }

    /// One permit more; the number of the tenant.
    pub(super) fn take(&mut self, tenant: &str) -> u64 {
        if let Some(number) = self.numbers.get(tenant).copied()
            && let Some(entry) = self.entries.get_mut(&number)
        {
            entry.permits += 1;
            return number;
        }
        let (name, number): (Arc<str>, u64) = (tenant.into(), self.next);
        self.next += 1;
        self.numbers.insert(Arc::clone(&name), number);
        self.entries.insert(number, Entry { name, permits: 1 });
        number
    }

    /// One permit less of the tenant with this number.
    pub(super) fn give_back(&mut self, number: u64) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        entry.permits -= 1;
        if entry.permits == 0
            && let Some(entry) = self.entries.remove(&number)
        {
            self.numbers.remove(&entry.name);
        }
    }
}
