//! The rules of one name: what a key says, what was seen of it, and what a request makes of it. No I/O.
//!
//! The rules of leases are those of [`Table`]; here entries are put into it with the times at which they end for
//! this observer, and taken out again. Nobody's clock but one's own is used: whoever saw the same beat of a
//! holder for its ttl and a margin knows that it is over, since the holder counted from before it wrote.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use mainstay_clock::Instant;
use mainstay_store::FencingToken;
use mainstay_store::lease::table::{self, Table};
use mainstay_store::lease::{Grant, Share};

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
}

/// Everybody who holds a name or waits for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) entries: Vec<Entry>,
    pub(crate) annotation: Option<Vec<u8>>,
    pub(crate) arrivals: u64,
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
}

/// The beat of each operation that was seen last, and when it was seen first.
pub(crate) type Sight = HashMap<String, (u64, Instant)>;

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

    /// When it ends for an observer who saw it first `since`. A place that ends early costs a turn, a lease that
    /// ends early costs everything.
    fn until(&self, since: Instant) -> Instant {
        let margin = if self.number.is_some() { Duration::ZERO } else { self.ttl / DRIFT + STEP };
        since.saturating_add(self.ttl).saturating_add(margin)
    }
}

impl Version {
    pub(crate) const NEVER: Self = Self { seq: 0, content: Content::Free };

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
            let beat = entry.beat_at(self.seq);
            let since = sight.get(&entry.op).filter(|(b, _)| *b == beat).map_or(now, |(_, t)| *t);
            next.insert(entry.op.clone(), (beat, since));
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
    pub(crate) table: Table,
}

impl Loaded {
    /// Puts a name into the table. Of a foreign value the table knows nothing: ask before.
    pub(crate) fn new(name: &str, version: &Version, sight: &Sight, now: Instant, epoch: u64) -> Self {
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
            }
        });
        let note = record.annotation.clone().map(|v| (name.to_owned(), v));
        let mut table = Table::load(floor, record.arrivals, entries, note);
        table.tick(now);
        Self { name: name.to_owned(), record, seq: version.seq, epoch, floor, table }
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
            });
        }
        let annotation = self.table.annotation(&self.name).map(<[u8]>::to_vec);
        Record { entries, annotation, arrivals: self.table.arrivals() }
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
