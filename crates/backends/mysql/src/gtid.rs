//! The texts in which servers write global transaction ids. Reading them is total: any text gives a value or none.

use std::collections::BTreeMap;

/// Longest text that is read. A state of a server is some tens of bytes per server that ever was its primary.
pub const MAX_TEXT: usize = 64 * 1024;

/// A state of MariaDB: per domain and server the last sequence number.
pub type State = BTreeMap<(u32, u32), u64>;

/// Reads MariaDB's `domain-server-sequence`, several parted by commas, as in `@@gtid_binlog_state` and
/// `@@last_gtid`. The empty text is the empty state; of two sequences of one server the larger counts.
///
/// ```
/// let state = mainstay_mysql::gtid::mariadb("0-1-4006,0-2-4056").unwrap();
/// assert_eq!(state[&(0, 2)], 4056);
/// assert_eq!(mainstay_mysql::gtid::mariadb("0-1"), None);
/// assert!(mainstay_mysql::gtid::mariadb("").unwrap().is_empty());
/// ```
#[must_use]
pub fn mariadb(text: &str) -> Option<State> {
    let mut state = State::new();
    for part in parts(text)? {
        let mut numbers = part.split('-');
        let (domain, server) = (number(numbers.next()?)?, number(numbers.next()?)?);
        let sequence = number::<u64>(numbers.next()?)?;
        if numbers.next().is_some() {
            return None;
        }
        let held = state.entry((domain, server)).or_insert(0);
        *held = sequence.max(*held);
    }
    Some(state)
}

/// Writes what [`mariadb`] reads.
///
/// ```
/// use mainstay_mysql::gtid::{mariadb, mariadb_text};
///
/// let state = mariadb("1-7-9,0-1-4006").unwrap();
/// assert_eq!(mariadb_text(&state), "0-1-4006,1-7-9");
/// ```
#[must_use]
pub fn mariadb_text(state: &State) -> String {
    let parts: Vec<String> = state.iter().map(|((d, s), n)| format!("{d}-{s}-{n}")).collect();
    parts.join(",")
}

/// Per domain the entry with the largest sequence: servers take one position per domain when they are to wait.
pub(crate) fn latest(state: &State) -> State {
    let mut latest: BTreeMap<u32, (u64, u32)> = BTreeMap::new();
    for ((domain, server), n) in state {
        let held = latest.entry(*domain).or_insert((*n, *server));
        *held = (*n, *server).max(*held);
    }
    latest.into_iter().map(|(domain, (n, server))| ((domain, server), n)).collect()
}

/// The transactions of one source in a set of MySQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "an executed interval is exactly this")]
pub struct Executed {
    /// All from the first on until this one were executed.
    pub without_gap: u64,
    /// The last one that was executed, whatever is missing before it.
    pub last: u64,
}

/// Reads MySQL's `uuid:first-last:..`, several parted by commas, as in `@@gtid_executed`; the key is the UUID in lower
/// case, with its tag (MySQL 8.3 on) behind a colon.
///
/// ```
/// let set = mainstay_mysql::gtid::mysql("3E11FA47-71CA-11E1-9E33-C80AA9429562:1-3:11:47-49").unwrap();
/// let one = &set["3e11fa47-71ca-11e1-9e33-c80aa9429562"];
/// assert_eq!((one.without_gap, one.last), (3, 49));
/// assert_eq!(mainstay_mysql::gtid::mysql("3E11FA47:1"), None);
/// ```
#[must_use]
pub fn mysql(text: &str) -> Option<BTreeMap<String, Executed>> {
    let mut set: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
    for part in parts(text)? {
        let mut pieces = part.split(':').map(str::trim);
        let uuid = pieces.next().filter(|uuid| is_uuid(uuid))?.to_ascii_lowercase();
        let mut key = uuid.clone();
        let mut intervals = 0;
        for piece in pieces {
            if is_tag(piece) {
                key = format!("{uuid}:{}", piece.to_ascii_lowercase());
                continue;
            }
            set.entry(key.clone()).or_default().push(interval(piece)?);
            intervals += 1;
        }
        if intervals == 0 {
            return None;
        }
    }
    Some(set.into_iter().map(|(key, intervals)| (key, executed(intervals))).collect())
}

fn executed(mut intervals: Vec<(u64, u64)>) -> Executed {
    intervals.sort_unstable();
    let mut without_gap = 0;
    for (first, last) in &intervals {
        if *first > without_gap + 1 {
            break;
        }
        without_gap = without_gap.max(*last);
    }
    Executed { without_gap, last: intervals.iter().map(|(_, last)| *last).max().unwrap_or(0) }
}

fn interval(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u64, u64) = (number(first)?, number(last)?);
    // The largest is below the largest signed number, so that one more fits, too.
    (first >= 1 && first <= last && last < i64::MAX as u64).then_some((first, last))
}

fn parts(text: &str) -> Option<impl Iterator<Item = &str>> {
    // Long sets come with line breaks behind the commas.
    let text = text.trim();
    let parts = text.split(',').map(str::trim);
    (text.len() <= MAX_TEXT).then(|| parts.filter(move |_| !text.is_empty()))
}

/// Digits only: neither signs nor spaces, which the standard parser would partly take.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|g| g.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|g| g.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// A letter or an underscore first, so that no interval is one.
fn is_tag(text: &str) -> bool {
    let head = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    head && text.len() <= 32 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
