//! The rules of one name: what a key says, what was seen of it, and what a request makes of it. No I/O.
//!
//! The rules of leases are those of [`Table`]; here entries are put into it with the times at which they end for
//! this observer, and taken out again. Nobody's clock but one's own is used: whoever saw the same beat of a
//! holder for its ttl and a margin knows that it is over, since the holder counted from before it wrote.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use mainstay_clock::{Instant, WallTime};
use mainstay_store::FencingToken;
use mainstay_store::lease::table::{self, Table};
use mainstay_store::lease::{Grant, Share, Since};

use crate::config::EPOCH_SHIFT;

/// What an observer adds to a ttl, as holders take it off: a hundredth for clocks of different speed.
const DRIFT: u32 = 100;
/// And this much for clocks that count in steps.
const STEP: Duration = Duration::from_millis(2);

/// One holder, or one place in line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) op: String,
    pub(crate) owner: String,
    pub(crate) ttl: Duration,
    /// None: the sequence of the message it was read from.
    pub(crate) token: Option<FencingToken>,
    /// The epoch of that token.
    pub(crate) epoch: u64,
    /// Changes whenever its client says that it lives; none: with every message.
    pub(crate) beat: Option<u64>,
    pub(crate) share: Share,
    pub(crate) note: String,
    /// Its place in line; none when it holds.
    pub(crate) number: Option<u64>,
    /// When its client, or whoever handed the lease on, wrote that it holds: by the calendar there.
    pub(crate) since: Option<WallTime>,
}

/// Everybody who holds a name or waits for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) entries: Vec<Entry>,
    pub(crate) annotation: Option<Vec<u8>>,
    pub(crate) arrivals: u64,
    /// Whoever held it until its release was written: the last one.
    pub(crate) released: Option<String>,
}

/// What a key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nobody is there.
    Free,
    /// A value that none of ours wrote, by whom as far as that can be shown.
    Foreign(String),
    /// Holders, or a line.
    Ours(Record),
}

/// A key at one sequence; 0 when it never was, or nothing is left of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) seq: u64,
    pub(crate) content: Content,
    /// The same of a free key, which has no record.
    pub(crate) released: Option<String>,
}

/// What of each operation was seen last, and when it was seen first.
pub(crate) type Sight = HashMap<String, (Sign, Instant)>;

/// A sign of life: the beat, under one lease or at one place. An operation that lost its lease and took it again
/// may beat as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sign {
    beat: u64,
    of: u64,
}

/// The token of a sequence.
pub(crate) fn token(epoch: u64, seq: u64) -> FencingToken {
    FencingToken::new((epoch << EPOCH_SHIFT) | seq)
}

impl Entry {
    pub(crate) fn token_at(&self, seq: u64) -> FencingToken {
        self.token.unwrap_or_else(|| token(self.epoch, seq))
    }

    fn beat_at(&self, seq: u64) -> u64 {
        self.beat.unwrap_or(seq)
    }

    fn sign_at(&self, seq: u64) -> Sign {
        let of = self.number.unwrap_or_else(|| self.token_at(seq).get());
        Sign { beat: self.beat_at(seq), of }
    }

    /// When it ends for an observer who saw it first `since`. A place that ends early costs a turn, a lease that
    /// ends early costs everything.
    fn until(&self, since: Instant) -> Instant {
        let margin = if self.number.is_some() { Duration::ZERO } else { self.ttl / DRIFT + STEP };
        since.saturating_add(self.ttl).saturating_add(margin)
    }
}

impl Version {
    pub(crate) const NEVER: Self = Self { seq: 0, content: Content::Free, released: None };

    /// What is written there, by this message.
    pub(crate) fn of(seq: u64, content: Content) -> Self {
        Self { seq, content, released: None }
    }

    /// Whoever held it until its release was written: the last one, as long as nobody but ours writes there.
    pub(crate) fn released(&self) -> Option<&str> {
        match &self.content {
            Content::Ours(record) => record.released.as_deref(),
            Content::Free => self.released.as_deref(),
            Content::Foreign(_) => None,
        }
    }

    fn entries(&self) -> &[Entry] {
        match &self.content {
            Content::Ours(record) => &record.entries,
            Content::Free | Content::Foreign(_) => &[],
        }
    }

    pub(crate) fn entry(&self, op: &str) -> Option<&Entry> {
        self.entries().iter().find(|e| e.op == op)
    }

    /// The longest ttl of those who are there.
    pub(crate) fn longest(&self) -> Duration {
        self.entries().iter().map(|e| e.ttl).max().unwrap_or_default()
    }

    /// Notes what is seen at `now`; what is seen again keeps its time.
    pub(crate) fn seen(&self, sight: &mut Sight, now: Instant) {
        let mut next = Sight::with_capacity(self.entries().len());
        for entry in self.entries() {
            let sign = entry.sign_at(self.seq);
            let since = sight.get(&entry.op).filter(|(s, _)| *s == sign).map_or(now, |(_, t)| *t);
            next.insert(entry.op.clone(), (sign, since));
        }
        *sight = next;
    }

    /// Whether who waits for `old` should look again: a holder or a place went, a lease passed on, a value was
    /// attached. That somebody lives, or came, is no news.
    pub(crate) fn is_news_after(&self, old: &Self) -> bool {
        if matches!(self.content, Content::Free | Content::Foreign(_)) {
            return self.content != old.content || self.seq > old.seq;
        }
        let note = |v: &Self| match &v.content {
            Content::Ours(record) => record.annotation.clone(),
            _ => None,
        };
        let gone = |e: &Entry| match self.entry(&e.op) {
            Some(now) => now.number.is_some() != e.number.is_some(),
            None => true,
        };
        let came = |e: &Entry| e.number.is_none() && old.entry(&e.op).is_none();
        old.entries().iter().any(gone) || self.entries().iter().any(came) || note(self) != note(old)
    }
}

/// One name in the table of rules, at one moment.
#[derive(Debug)]
pub(crate) struct Loaded {
    name: String,
    record: Record,
    seq: u64,
    epoch: u64,
    /// Larger than this is a token that the next message will carry.
    floor: FencingToken,
    released: Option<String>,
    pub(crate) table: Table,
}

impl Loaded {
    /// Puts a name into the table. Of a foreign value the table knows nothing: ask before.
    pub(crate) fn new(
        name: &str,
        version: &Version,
        sight: &Sight,
        (now, today): (Instant, WallTime),
        epoch: u64,
    ) -> Self {
        let record = match &version.content {
            Content::Ours(record) => record.clone(),
            Content::Free | Content::Foreign(_) => Record::default(),
        };
        let tokens = record.entries.iter().map(|e| e.token_at(version.seq));
        let floor = tokens.fold(token(epoch, version.seq), FencingToken::max);
        let entries = record.entries.iter().map(|e| {
            let since = sight.get(&e.op).map_or(now, |(_, since)| *since);
            let held = e.number.is_none().then(|| e.token_at(version.seq));
            table::Entry {
                op_id: e.op.clone(),
                owner: e.owner.clone(),
                names: BTreeMap::from([(name.to_owned(), held)]),
                share: e.share,
                ttl: e.ttl,
                until: e.until(since),
                note: e.note.clone(),
                number: e.number,
                since: e.since.map(Since::holder),
            }
        });
        let note = record.annotation.clone().map(|v| (name.to_owned(), v));
        let mut table = Table::load(floor, record.arrivals, entries, note);
        table.tick(now);
        table.date(Since::holder(today));
        let released = version.released().map(str::to_owned);
        Self { name: name.to_owned(), record, seq: version.seq, epoch, floor, released, table }
    }

    /// Takes `op` out; whether it held. If it did, that is written down for whoever repeats its release.
    pub(crate) fn release(&mut self, op: &str) -> bool {
        let held = self.has(op).is_some_and(|e| e.number.is_none());
        self.table.release(op);
        if held {
            self.released = Some(op.to_owned());
        }
        held
    }

    /// Whether `op` holds or waits.
    pub(crate) fn has(&self, op: &str) -> Option<table::Entry> {
        self.table.entry(op)
    }

    /// What is to be written after the rules ran; `alive` is the operation whose client spoke.
    pub(crate) fn record(&self, alive: Option<&str>) -> Record {
        let old = |op: &str| self.record.entries.iter().find(|e| e.op == op);
        let ops = self.record.entries.iter().map(|e| e.op.as_str());
        let new = alive.filter(|op| old(op).is_none());
        let mut entries: Vec<Entry> = Vec::new();
        for op in ops.chain(new) {
            let Some(now) = self.table.entry(op) else { continue };
            let before = old(op);
            let held = now.names.get(&self.name).copied().flatten();
            if held.is_none() && now.number.is_none() {
                continue; // Broken: it holds nothing here any more.
            }
            let kept = held.filter(|t| *t <= self.floor);
            let moved = before.is_some_and(|b| b.number.is_some() != now.number.is_some());
            let beat = before.map_or(0, |b| b.beat_at(self.seq));
            let spoke = alive == Some(op) || moved;
            entries.push(Entry {
                op: now.op_id,
                owner: now.owner,
                ttl: now.ttl,
                token: kept,
                epoch: self.epoch,
                beat: Some(if spoke { beat.wrapping_add(1) } else { beat }),
                share: now.share,
                note: now.note,
                number: now.number,
                since: now.since.map(|since| since.at),
            });
        }
        let annotation = self.table.annotation(&self.name).map(<[u8]>::to_vec);
        let (arrivals, released) = (self.table.arrivals(), self.released.clone());
        Record { entries, annotation, arrivals, released }
    }

    /// The grant of a token that the message at `seq` made real.
    pub(crate) fn settle(&self, mut grant: Grant, seq: u64) -> Grant {
        if grant.token > self.floor {
            grant.token = token(self.epoch, seq);
        }
        grant
    }
}

/// How long the server keeps a message of these entries: the longest ttl, in whole seconds, rounded up.
pub(crate) fn seconds(record: &Record) -> u64 {
    let longest = record.entries.iter().map(|e| e.ttl).max().unwrap_or_default();
    u64::try_from(longest.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use mainstay_store::lease::{AcquireRequest, Acquired, Line, Renewed, Transferred};

    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn day(ms: u64) -> WallTime {
        WallTime::from_unix_millis(i64::try_from(ms).unwrap())
    }

    /// One observer: what it knows of one name, and what it sees written.
    struct Eye {
        version: Version,
        sight: Sight,
    }

    impl Eye {
        fn new() -> Self {
            Self { version: Version::NEVER, sight: Sight::new() }
        }

        fn load(&self, ms: u64) -> Loaded {
            Loaded::new("n", &self.version, &self.sight, (at(ms), day(ms)), 0)
        }

        fn sees(&mut self, seq: u64, record: Record, ms: u64) {
            let content = if record.entries.is_empty() { Content::Free } else { Content::Ours(record) };
            self.version = Version::of(seq, content);
            self.version.seen(&mut self.sight, at(ms));
        }

        /// Asks, and writes at `seq` what comes of it; the token if it is granted.
        fn take(&mut self, op: &str, line: Line, seq: u64, ms: u64) -> Option<u64> {
            let mut loaded = self.load(ms);
            let request = AcquireRequest { line, ..AcquireRequest::exclusive("n", op, op, TTL) };
            match loaded.table.acquire(&request).unwrap() {
                Acquired::Granted(grants) => {
                    self.sees(seq, loaded.record(Some(op)), ms);
                    Some(loaded.settle(grants[0].clone(), seq).token.get())
                }
                Acquired::Queued { .. } => {
                    self.sees(seq, loaded.record(Some(op)), ms);
                    None
                }
                Acquired::Held { .. } => None,
            }
        }

        fn renew(&mut self, op: &str, seq: u64, ms: u64) -> Option<u64> {
            let mut loaded = self.load(ms);
            let Renewed::Renewed(grants) = loaded.table.renew(op) else { return None };
            self.sees(seq, loaded.record(Some(op)), ms);
            Some(loaded.settle(grants[0].clone(), seq).token.get())
        }
    }

    #[test]
    fn f16_a_token_is_the_sequence_of_the_grant_and_stays() {
        let mut eye = Eye::new();
        assert_eq!(eye.take("a", Line::Try, 100, 0), Some(100));
        assert_eq!(eye.take("a", Line::Try, 101, 10), Some(100), "again is no new lease");
        assert_eq!(eye.renew("a", 102, 20), Some(100));
        assert_eq!(eye.renew("a", 103, 30), Some(100));
        assert_eq!(eye.take("b", Line::Try, 104, 40), None);
    }

    #[test]
    fn f08_an_observer_waits_for_the_ttl_and_a_margin_by_its_own_clock() {
        let mut eye = Eye::new();
        eye.take("a", Line::Try, 1, 0);
        assert_eq!(
            eye.take("b", Line::Try, 2, 10_000),
            None,
            "the holder stopped, but the margin is not over"
        );
        assert_eq!(eye.take("b", Line::Try, 2, 10_101), None);
        assert_eq!(eye.take("b", Line::Try, 2, 10_102), Some(2));
        // Whoever comes later starts anew: its clock says nothing of what was before.
        let mut late = Eye::new();
        let Content::Ours(record) = eye.version.content.clone() else { panic!() };
        late.sees(2, record, 60_000);
        assert_eq!(late.take("c", Line::Try, 3, 70_101), None);
        assert_eq!(late.take("c", Line::Try, 3, 70_102), Some(3));
    }

    #[test]
    fn a_renewal_counts_and_a_rewrite_by_others_does_not() {
        let mut eye = Eye::new();
        eye.take("a", Line::Try, 1, 0);
        eye.take("w", Line::Join, 2, 9_000);
        assert_eq!(
            eye.take("w", Line::Join, 3, 10_102),
            Some(3),
            "that somebody stood in line kept nobody alive"
        );
        eye.renew("w", 4, 15_000);
        assert_eq!(eye.take("b", Line::Try, 5, 25_101), None);
    }

    #[test]
    fn f22_an_operation_that_comes_back_is_seen_anew() {
        let mut eye = Eye::new();
        eye.take("a", Line::Try, 1, 0);
        let mut other = Eye { version: eye.version.clone(), sight: eye.sight.clone() };
        // It lost the lease and took it again; the observer saw nothing in between.
        other.sees(2, Record::default(), 5_000);
        assert_eq!(other.take("a", Line::Try, 3, 9_000), Some(3));
        let Content::Ours(record) = other.version.content.clone() else { panic!() };
        eye.sees(3, record, 9_001);
        assert_eq!(eye.take("b", Line::Try, 4, 10_200), None, "the new lease has its own ten seconds");
    }

    #[test]
    fn what_is_handed_over_has_a_token_of_its_own() {
        let mut eye = Eye::new();
        eye.take("a", Line::Try, 1, 0);
        eye.take("b", Line::Join, 2, 10);
        let mut loaded = eye.load(20);
        assert_eq!(loaded.table.transfer("n", token(0, 1), "b"), Transferred::Moved);
        eye.sees(3, loaded.record(None), 20);
        assert_eq!(eye.version.entry("b").unwrap().token_at(3), token(0, 3));
        assert!(eye.version.entry("a").is_none());
        assert_eq!(eye.renew("b", 4, 30), Some(3));
    }

    #[test]
    fn f21_of_a_broken_lease_nothing_is_left_and_the_line_stays() {
        let mut eye = Eye::new();
        eye.take("a", Line::Try, 1, 0);
        eye.take("b", Line::Join, 2, 10);
        let mut loaded = eye.load(20);
        loaded.table.break_lease("n");
        eye.sees(3, loaded.record(None), 20);
        assert!(eye.version.entry("a").is_none() && eye.version.entry("b").is_some());
        assert_eq!(eye.take("c", Line::Try, 4, 30), None, "nobody overtakes");
        assert_eq!(eye.take("b", Line::Join, 4, 30), Some(4));
    }

    #[test]
    fn f32_seconds_are_rounded_up() {
        let of = |ms: &[u64]| {
            let mut eye = Eye::new();
            eye.take("a", Line::Try, 1, 0);
            let Content::Ours(mut record) = eye.version.content else { panic!() };
            let entry = record.entries[0].clone();
            record.entries =
                ms.iter().map(|ms| Entry { ttl: Duration::from_millis(*ms), ..entry.clone() }).collect();
            seconds(&record)
        };
        assert_eq!([of(&[1]), of(&[1_000]), of(&[1_001]), of(&[1_900]), of(&[500, 2_500])], [1, 1, 2, 2, 3]);
    }
}
