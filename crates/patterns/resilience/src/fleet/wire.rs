//! What nodes tell each other: version 1, little-endian, no self-description.
//!
//! `u8 version, u16 count, count * { u16 length, name, u8 flags, u32 calls, u32 failures, u32 round }`

/// The version written; others are not read.
const VERSION: u8 = 1;
/// Most dependencies in one report: more than a node watches, few enough that a hostile report is cheap.
const MOST: usize = 1_000;
/// Longest name in bytes.
const LONGEST: usize = 1_024;

/// One dependency as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) dependency: String,
    /// Whether its breaker refuses and somebody minds: its open time runs, a probe is in flight, or calls were refused
    /// lately. A node without traffic stays open until a call asks; what it saw last is no news.
    pub(crate) open: bool,
    /// Calls of the last period.
    pub(crate) calls: u32,
    /// Failures among them.
    pub(crate) failures: u32,
    /// Failed half-open rounds in a row, plus one.
    pub(crate) round: u32,
}

pub(crate) fn encode(reports: &[Report]) -> Vec<u8> {
    let reports: Vec<&Report> = reports.iter().filter(|r| r.dependency.len() <= LONGEST).take(MOST).collect();
    let mut out = vec![VERSION];
    out.extend(u16::try_from(reports.len()).unwrap_or(0).to_le_bytes());
    for report in reports {
        out.extend(u16::try_from(report.dependency.len()).unwrap_or(0).to_le_bytes());
        out.extend(report.dependency.as_bytes());
        out.push(u8::from(report.open));
        for number in [report.calls, report.failures, report.round] {
            out.extend(number.to_le_bytes());
        }
    }
    out
}

/// `None` for anything but a whole report of this version.
pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<Report>> {
    let mut reader = Reader(bytes);
    if reader.take::<1>()? != [VERSION] {
        return None;
    }
    let count = usize::from(u16::from_le_bytes(reader.take()?));
    if count > MOST {
        return None;
    }
    let mut reports = Vec::with_capacity(count);
    for _ in 0..count {
        let length = usize::from(u16::from_le_bytes(reader.take()?));
        if length > LONGEST {
            return None;
        }
        let dependency = std::str::from_utf8(reader.slice(length)?).ok()?.to_owned();
        let [flags] = reader.take()?;
        let mut number = || reader.take().map(u32::from_le_bytes);
        let (calls, failures, round) = (number()?, number()?, number()?);
        reports.push(Report {
            dependency,
            open: flags & 1 == 1,
            calls,
            failures: failures.min(calls),
            round,
        });
    }
    reader.0.is_empty().then_some(reports)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn slice(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.slice(N)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Report, decode, encode};

    proptest! {
        #[test]
        fn what_is_written_is_read(
            rows in prop::collection::vec((".{0,20}", any::<bool>(), 0..100_u32, 0..100_u32, any::<u32>()), 0..20),
        ) {
            let reports: Vec<Report> = rows
                .into_iter()
                .map(|(dependency, open, failures, ok, round)| Report {
                    dependency, open, calls: failures + ok, failures, round,
                })
                .collect();
            prop_assert_eq!(decode(&encode(&reports)), Some(reports));
        }

        #[test]
        fn garbage_is_no_report_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            let mut whole = encode(&[]);
            whole.extend(&bytes);
            prop_assert_eq!(decode(&whole).is_some(), bytes.is_empty());
        }
    }
}
