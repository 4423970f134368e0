//! Log positions as PostgreSQL writes them.

use mainstay_store::replicated::{Position, TimelineSwitch};

/// Size of a page header, and of the first one of a segment file: src/include/access/xlog_internal.h.
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;

/// `0/306EE20` as a number. Half by half: as texts, `0/9` would come after `0/10`.
pub(super) fn parse(text: &str) -> Option<u64> {
    let (high, low) = text.trim().split_once('/')?;
    let half = |digits: &str| u32::from_str_radix(digits, 16).ok();
    Some(u64::from(half(high)?) << 32 | u64::from(half(low)?))
}

/// A number as `0/306EE20`.
pub(super) fn format(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff)
}

/// The geometry of a server's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pages {
    pub(super) block: u64,
    pub(super) segment: u64,
}

impl Pages {
    /// An insert position that does not point behind a page header: nothing can be replayed up to there before the
    /// next record, so a wait for it would stall. No byte of a record lies inside a header.
    pub(super) fn normalize(self, lsn: u64) -> u64 {
        if lsn % self.segment == LONG_HEADER {
            lsn - LONG_HEADER
        } else if lsn % self.block == SHORT_HEADER {
            lsn - SHORT_HEADER
        } else {
            lsn
        }
    }
}

/// The switches in a history file: lines of parent, position and reason, separated by tabs. `None` when it is none.
pub(super) fn history(text: &str, timeline: u32) -> Option<Vec<TimelineSwitch>> {
    let mut parents: Vec<(u32, u64)> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut fields = line.split_whitespace();
        parents.push((fields.next()?.parse().ok()?, parse(fields.next()?)?));
    }
    let next = |i: usize| parents.get(i + 1).map_or(timeline, |(parent, _)| *parent).to_string();
    let switch = |(i, (parent, at)): (usize, &(u32, u64))| TimelineSwitch {
        timeline: parent.to_string(),
        position: Position::Lsn(*at),
        next: next(i),
    };
    Some(parents.iter().enumerate().map(switch).collect())
}

#[cfg(test)]
mod tests {
    use super::{Pages, format, history, parse};

    #[test]
    fn t5_positions_are_numbers_not_texts() {
        assert!(parse("0/9") < parse("0/10"));
        assert_eq!(parse("FFFFFFFF/FFFFFFFF"), Some(u64::MAX), "unsigned");
        assert_eq!(parse("16/B374D848\n"), Some(0x16_B374_D848));
        assert_eq!(format(0x16_B374_D848), "16/B374D848");
        for text in ["", "0", "/", "0/", "g/1", "0/100000000", "-1/0"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn p3_no_position_behind_a_page_header() {
        let pages = Pages { block: 8_192, segment: 16 << 20 };
        for (lsn, expected) in [
            (8_192 + 24, 8_192),
            (8_192 + 25, 8_192 + 25),
            (8_192, 8_192),
            (16 << 20, 16 << 20),
            ((16 << 20) + 40, 16 << 20),
            // Only the first page of a segment has the long header.
            (8_192 + 40, 8_192 + 40),
            ((16 << 20) + 24, 16 << 20),
        ] {
            assert_eq!(pages.normalize(lsn), expected, "{lsn}");
        }
    }

    #[test]
    fn p8_histories_are_read_with_their_switches() {
        let text =
            "1\t0/43C3B28\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-01-01 00:00:00+00\n";
        let switches = history(text, 4).unwrap();
        let parts: Vec<_> = switches.iter().map(|s| (s.timeline.as_str(), s.next.as_str())).collect();
        assert_eq!(parts, [("1", "2"), ("2", "4")]);
        assert_eq!(history("no history", 2), None);
        assert_eq!(history("", 2), Some(vec![]));
    }
}
