//! Canonical bytes of a placement: two clients with the same fingerprint answer alike.

use xxhash_rust::xxh3::Xxh3;

use crate::node::{Node, Nodes};

/// A writer of canonical bytes: every text and list carries its length, every number is 8 bytes
/// little-endian. What it writes depends on the meaning alone.
#[derive(Default)]
pub(crate) struct Canon(Xxh3);

impl Canon {
    /// Starts with the name and version of a profile.
    pub(crate) fn profile(name: &str, version: u64) -> Self {
        let mut canon = Self::default();
        canon.text(name);
        canon.number(version);
        canon
    }

    pub(crate) fn number(&mut self, n: u64) {
        self.0.update(&n.to_le_bytes());
    }

    pub(crate) fn text(&mut self, s: &str) {
        self.number(s.len() as u64);
        self.0.update(s.as_bytes());
    }

    /// The nodes in their order: id, weight, zone.
    pub(crate) fn nodes(&mut self, nodes: &Nodes) {
        self.number(nodes.len() as u64);
        for Node { id, weight, zone } in nodes.as_slice() {
            self.text(id.as_str());
            self.number(u64::from(*weight));
            match zone {
                Some(zone) => self.text(zone.as_str()),
                // No text has this length.
                None => self.number(u64::MAX),
            }
        }
    }

    pub(crate) fn finish(&self) -> u128 {
        self.0.digest128()
    }
}
