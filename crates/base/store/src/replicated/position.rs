//! How far a log had got, in the formats of each store.

use std::collections::BTreeMap;
use std::fmt;

/// How far a store's log had got. A closed set of data formats, because it travels in session tokens.
///
/// ```
/// use mainstay_store::replicated::Position;
///
/// // Read from a standby that had replayed 90 and received 110 by then.
/// let read = Position::LsnRead { lsn: 90, ahead: 20 };
/// assert!(!Position::Lsn(100).covers(&read).unwrap(), "it may have shown what it had only received");
/// assert!(Position::Lsn(100).keeps(&read).unwrap(), "but what nobody saw replayed may go");
/// assert_eq!(Position::Offset(1).covers(&read), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Position {
    /// A counter of an embedded or in-memory store.
    Counter(u64),
    /// MySQL: per server UUID, the end of its gap-free executed GTID interval.
    Gtid(BTreeMap<String, u64>),
    /// PostgreSQL: a log sequence number whose log was flushed.
    Lsn(u64),
    /// PostgreSQL: where a standby stood after a read. It had replayed `lsn`, and may have shown what it had received
    /// on top of that.
    LsnRead {
        /// What it said to have replayed: a history that ended before has lost it.
        lsn: u64,
        /// How much more it had received: what has that, too, has all that was seen.
        ahead: u64,
    },
    /// PostgreSQL: a commit that nobody waited for. A crash writes other things to the same place of the same timeline.
    LsnUnsynced {
        /// At or past the commit.
        lsn: u64,
        /// The life of the server that it was made in, as [`Observed::incarnation`](super::Observed::incarnation).
        start: u64,
    },
    /// MariaDB: per domain and server the last sequence, as in `gtid_binlog_state`.
    MariaGtid(BTreeMap<(u32, u32), u64>),
    /// Redis: a replication offset.
    Offset(u64),
}

impl Position {
    /// Whether a node that has applied this has all that `wanted` marks; `None` when they are of different kinds.
    ///
    /// A commit that nobody waited for is never covered: only the primary that made it can tell.
    #[must_use]
    pub fn covers(&self, wanted: &Self) -> Option<bool> {
        self.distance(wanted).map(|missing| missing == 0)
    }

    /// Whether a history that was left at this position contains what `wanted` marks; `None` when they are of
    /// different kinds. Weaker than [`covers`](Position::covers) only for what a read may have seen ahead.
    #[must_use]
    pub fn keeps(&self, wanted: &Self) -> Option<bool> {
        match wanted {
            Self::LsnRead { lsn, .. } => self.covers(&Self::Lsn(*lsn)),
            Self::LsnUnsynced { lsn, .. } => self.applied_lsn().map(|at| at >= *lsn),
            _ => self.covers(wanted),
        }
    }

    /// By how much `wanted` is past this, in the store's own unit; `None` when they cannot be compared.
    #[must_use]
    pub fn distance(&self, wanted: &Self) -> Option<u64> {
        match (self, wanted) {
            (Self::Counter(have), Self::Counter(want)) | (Self::Offset(have), Self::Offset(want)) => {
                Some(want.saturating_sub(*have))
            }
            (Self::Gtid(have), Self::Gtid(want)) => Some(missing(have, want)),
            (Self::MariaGtid(have), Self::MariaGtid(want)) => Some(missing(have, want)),
            // Applied or not is not the question: only the life that made it can tell.
            (_, Self::LsnUnsynced { .. }) => self.applied_lsn().map(|_| u64::MAX),
            (_, Self::Lsn(_) | Self::LsnRead { .. }) => {
                Some(wanted.wanted_lsn()?.saturating_sub(self.applied_lsn()?))
            }
            _ => None,
        }
    }

    /// As a position that a node has: what it has applied.
    fn applied_lsn(&self) -> Option<u64> {
        match self {
            Self::Lsn(lsn) | Self::LsnRead { lsn, .. } | Self::LsnUnsynced { lsn, .. } => Some(*lsn),
            _ => None,
        }
    }

    /// As a position that a session wants: what a node has to apply.
    fn wanted_lsn(&self) -> Option<u64> {
        match self {
            Self::Lsn(lsn) => Some(*lsn),
            Self::LsnRead { lsn, ahead } => Some(lsn.saturating_add(*ahead)),
            _ => None,
        }
    }
}

/// As each store writes its own: `0/306EE20`, `0-1-4007`.
///
/// ```
/// use mainstay_store::replicated::Position;
///
/// assert_eq!(Position::Lsn(0x16_B374_D848).to_string(), "16/B374D848");
/// assert_eq!(Position::MariaGtid([((0, 1), 4_007)].into()).to_string(), "0-1-4007");
/// ```
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = |lsn: u64| format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff);
        match self {
            Self::Counter(n) | Self::Offset(n) => n.fmt(f),
            Self::Gtid(set) => listed(f, set.iter().map(|(server, end)| format!("{server}:1-{end}"))),
            Self::Lsn(lsn) => f.write_str(&log(*lsn)),
            Self::LsnRead { lsn, ahead } => {
                write!(f, "{} and up to {}", log(*lsn), log(lsn.saturating_add(*ahead)))
            }
            Self::LsnUnsynced { lsn, .. } => write!(f, "{}, not synced", log(*lsn)),
            Self::MariaGtid(set) => {
                listed(f, set.iter().map(|((domain, server), end)| format!("{domain}-{server}-{end}")))
            }
        }
    }
}

fn listed(f: &mut fmt::Formatter<'_>, parts: impl Iterator<Item = String>) -> fmt::Result {
    f.write_str(&parts.collect::<Vec<String>>().join(","))
}

/// How many steps of all servers together `have` lacks.
fn missing<K: Ord>(have: &BTreeMap<K, u64>, want: &BTreeMap<K, u64>) -> u64 {
    let gap = |(server, end): (&K, &u64)| end.saturating_sub(have.get(server).copied().unwrap_or(0));
    want.iter().map(gap).fold(0, u64::saturating_add)
}
