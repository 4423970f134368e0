//! Who holds a name and who waits, from the keys under it. No I/O.
//!
//! The line is the order of creation, as in etcd's own recipes: a key holds when everything created before it leaves
//! room for it. Nobody is overtaken, also not by somebody who could share. Once a key holds it holds until it is
//! deleted, because keys before it can only go away.

use mainstay_clock::WallTime;
use mainstay_store::lease::{Holder, LeaseInfo, Share, Since, mismatch};
use mainstay_store::{Error, ErrorKind, FencingToken, Result};
use prost::Message as _;

use crate::config::EPOCH_SHIFT;
use crate::keys::{Scheme, last_part};
use crate::wire::KeyValue;
use crate::wire::record::{Mark, Place, Share as Kind};

/// One lock key and what is known about it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    /// Its last part.
    pub(crate) part: String,
    pub(crate) created: i64,
    pub(crate) lease: i64,
    pub(crate) value: Vec<u8>,
    /// None for what a client of other make has put there.
    pub(crate) place: Option<Place>,
    /// The mark of its ownership.
    pub(crate) mark: Option<Vec<u8>>,
    /// The revision that proved it.
    pub(crate) proof: Option<i64>,
    /// When that was, if its mark says so.
    pub(crate) since: Option<Since>,
}

/// A name as it was at one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct View {
    pub(crate) name: String,
    /// First created first.
    pub(crate) entries: Vec<Entry>,
    pub(crate) revision: i64,
}

/// Why somebody must wait.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Obstacle<'a> {
    /// The first that stands in the way.
    pub(crate) first: &'a Entry,
    /// The last one; none when any one of several would do.
    pub(crate) last: Option<&'a Entry>,
}

impl Entry {
    /// Clients of other make know nothing but mutexes.
    pub(crate) fn share(&self) -> Share {
        let Some(place) = &self.place else { return Share::Exclusive };
        match place.share() {
            Kind::Exclusive => Share::Exclusive,
            Kind::Shared => Share::Shared,
            Kind::Permit => Share::Permit { limit: place.limit.max(1), count: place.count.max(1) },
        }
    }

    /// Who it is, for people: a candidate of other make shows its proposal.
    pub(crate) fn owner(&self) -> String {
        match (&self.place, std::str::from_utf8(&self.value)) {
            (Some(place), _) => place.owner.clone(),
            (None, Ok(text)) if !text.is_empty() => text.to_owned(),
            (None, _) => format!("etcd lease {}", self.part),
        }
    }
}

impl View {
    /// From the keys of locks, of places and of marks, read at one revision.
    pub(crate) fn read(
        scheme: &Scheme,
        name: &str,
        revision: i64,
        locks: Vec<KeyValue>,
        places: &[KeyValue],
        marks: &[KeyValue],
    ) -> Result<Self> {
        let (under, place_under, mark_under) = (scheme.locks(name), scheme.places(name), scheme.marks(name));
        let mut entries = Vec::new();
        for kv in locks {
            let Some(part) = last_part(&under, &kv.key) else { continue };
            let beside = |all: &[KeyValue], prefix: &[u8]| {
                all.iter().position(|k| k.key.strip_prefix(prefix) == Some(part))
            };
            let place = match beside(places, &place_under) {
                Some(i) => {
                    Some(Place::decode(places[i].value.as_slice()).map_err(|e| damaged(&places[i].key, e))?)
                }
                None => None,
            };
            let mark = beside(marks, &mark_under).map(|i| &marks[i]);
            let since = mark.and_then(|m| dated(&m.value));
            let (proof, mark) = (mark.map(|m| m.create_revision), mark.map(|m| m.key.clone()));
            let part = String::from_utf8_lossy(part).into_owned();
            let KeyValue { key, create_revision: created, lease, value, .. } = kv;
            entries.push(Entry { key, part, created, lease, value, place, mark, proof, since });
        }
        entries.sort_by_key(|e| e.created);
        Ok(Self { name: name.to_owned(), entries, revision })
    }

    /// Who keeps a request of this kind waiting whose key was created at `created`, or would be created now.
    pub(crate) fn obstacle(&self, share: Share, created: i64) -> Option<Obstacle<'_>> {
        let (mut limit, mut taken) = match share {
            Share::Permit { limit, count } => (u64::from(limit), u64::from(count)),
            _ => (u64::MAX, 0),
        };
        let mut odd: Option<Obstacle<'_>> = None;
        let before = || self.entries.iter().take_while(|e| e.created < created);
        for entry in before() {
            match (entry.share(), share) {
                (Share::Shared, Share::Shared) => {}
                (Share::Permit { limit: theirs, count }, Share::Permit { .. }) => {
                    limit = limit.min(theirs.into());
                    taken += u64::from(count);
                }
                _ => odd = Some(Obstacle { first: odd.map_or(entry, |o| o.first), last: Some(entry) }),
            }
        }
        odd.or_else(|| {
            let first = before().last().filter(|_| taken > limit)?;
            Some(Obstacle { first, last: None })
        })
    }

    /// What is wrong with asking for permits of this semaphore, as the name is used by whoever was there before a key
    /// created at `created`.
    pub(crate) fn mismatch(&self, share: Share, created: i64) -> Option<Error> {
        let Share::Permit { limit, count } = share else { return None };
        if count > limit {
            return Some(mismatch(
                &self.name,
                format_args!("has {limit} permits now; {count} are asked for"),
            ));
        }
        let theirs =
            self.entries.iter().take_while(|e| e.created < created).find_map(|e| match e.share() {
                Share::Permit { limit: theirs, .. } if theirs != limit => Some(theirs),
                _ => None,
            })?;
        Some(mismatch(&self.name, format_args!("is a semaphore of {theirs} permits, not of {limit}")))
    }

    /// How many wait before a key created at `created`.
    pub(crate) fn position(&self, created: i64) -> u32 {
        let before = self.entries.iter().filter(|e| e.created < created).count();
        let hold = self.holders().filter(|e| e.created < created).count();
        u32::try_from(before.saturating_sub(hold)).unwrap_or(u32::MAX)
    }

    /// Those who hold: who has proved it, and clients of other make whose turn it is.
    pub(crate) fn holders(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|e| {
            e.proof.is_some() || e.place.is_none() && self.obstacle(Share::Exclusive, e.created).is_none()
        })
    }

    /// Whoever holds under `proof`.
    pub(crate) fn proved(&self, proof: i64) -> Option<&Entry> {
        self.entries.iter().find(|e| e.proof == Some(proof))
    }

    /// What is told about the name; the remaining times are filled in by whoever asked for them.
    pub(crate) fn info(&self, epoch: u16) -> Result<LeaseInfo> {
        let mut info = LeaseInfo::free(&self.name, token(epoch, self.revision)?);
        for entry in self.holders() {
            let token = token(epoch, entry.proof.unwrap_or(entry.created))?;
            let holder = Holder::new(entry.owner(), token, std::time::Duration::ZERO);
            info.holders.push(holder.with_since(entry.since));
            if let Some(place) = &entry.place {
                info.note.clone_from(&place.note);
            }
            if info.annotation.is_none() && !entry.value.is_empty() {
                info.annotation = Some(entry.value.clone());
            }
        }
        info.waiting = u32::try_from(self.entries.len() - info.holders.len()).unwrap_or(u32::MAX);
        Ok(info)
    }
}

fn damaged(key: &[u8], e: prost::DecodeError) -> Error {
    let text = format!("what is kept under {} cannot be read", key.escape_ascii());
    Error::new(ErrorKind::Corrupt, text).with_source(e)
}

/// What the mark of a grant of this moment says: etcd shows no clock, so it is that of whoever writes it.
pub(crate) fn mark_of(now: WallTime) -> Vec<u8> {
    Mark { since_unix_millis: now.unix_millis() }.encode_to_vec()
}

/// Since when the holder of a mark holds. An earlier program wrote nothing into it.
fn dated(mark: &[u8]) -> Option<Since> {
    let ms = Mark::decode(mark).ok()?.since_unix_millis;
    (ms != 0).then(|| Since::holder(WallTime::from_unix_millis(ms)))
}

/// The record of one acquisition.
pub(crate) fn operation(kv: &KeyValue) -> Result<crate::wire::record::Operation> {
    crate::wire::record::Operation::decode(kv.value.as_slice()).map_err(|e| damaged(&kv.key, e))
}

/// The token of a revision.
pub(crate) fn token(epoch: u16, revision: i64) -> Result<FencingToken> {
    match u64::try_from(revision) {
        Ok(revision) if revision >> EPOCH_SHIFT == 0 => {
            Ok(FencingToken::new((u64::from(epoch) << EPOCH_SHIFT) | revision))
        }
        _ => Err(Error::new(
            ErrorKind::TooLarge,
            "the range of fencing tokens is used up: raise the base epoch",
        )),
    }
}

/// The revision in a token of this epoch.
pub(crate) fn revision_of(epoch: u16, token: FencingToken) -> Option<i64> {
    (token.get() >> EPOCH_SHIFT == u64::from(epoch))
        .then(|| i64::try_from(token.get() & ((1 << EPOCH_SHIFT) - 1)).unwrap_or(i64::MAX))
}

/// The whole seconds that etcd counts: rounded up, and never fewer than its own least, one and a half elections.
pub(crate) fn seconds(ttl: std::time::Duration) -> i64 {
    let up = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    i64::try_from(up).unwrap_or(i64::MAX).max(2)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const X: Share = Share::Exclusive;
    const R: Share = Share::Shared;

    fn p(limit: u32) -> Share {
        Share::Permit { limit, count: 1 }
    }

    fn view(shares: &[Option<Share>]) -> View {
        let entry = |(i, share): (usize, &Option<Share>)| {
            let place = share.map(|share| {
                let (kind, limit, count) = match share {
                    Share::Exclusive => (Kind::Exclusive, 0, 0),
                    Share::Shared => (Kind::Shared, 0, 0),
                    Share::Permit { limit, count } => (Kind::Permit, limit, count),
                };
                Place { owner: format!("o{i}"), share: kind.into(), limit, count, ..Place::default() }
            });
            let created = i64::try_from(i).unwrap() * 10 + 10;
            Entry {
                key: Vec::new(),
                part: i.to_string(),
                created,
                lease: 1,
                value: Vec::new(),
                place,
                mark: None,
                proof: None,
                since: None,
            }
        };
        View {
            name: "n".to_owned(),
            entries: shares.iter().enumerate().map(entry).collect(),
            revision: 1_000,
        }
    }

    /// Which of a line hold, and who is waited for by a newcomer of each kind.
    #[track_caller]
    fn check(line: &[Option<Share>], holds: &[bool]) {
        let view = view(line);
        let found: Vec<bool> =
            view.entries.iter().map(|e| view.obstacle(e.share(), e.created).is_none()).collect();
        assert_eq!(found, holds, "{line:?}");
    }

    #[test]
    fn who_holds() {
        check(&[Some(X), Some(X), Some(X)], &[true, false, false]);
        check(&[None, Some(X), None], &[true, false, false]);
        check(&[Some(R), Some(R), Some(X), Some(R)], &[true, true, false, false]);
        check(&[Some(X), Some(R), Some(R)], &[true, false, false]);
        check(&[Some(R), None, Some(R)], &[true, false, false]);
        check(&[Some(p(2)), Some(p(2)), Some(p(2))], &[true, true, false]);
        check(&[Some(p(2)), Some(p(2)), Some(p(3))], &[true, true, false]);
        check(&[Some(p(3)), Some(p(1)), Some(p(3))], &[true, false, false]);
        check(&[Some(p(2)), Some(R)], &[true, false]);
        let many = |count| Some(Share::Permit { limit: 4, count });
        check(&[many(2), many(3), many(1)], &[true, false, false]);
        check(&[many(2), many(2), many(1)], &[true, true, false]);
        check(&[], &[]);
    }

    #[test]
    fn a_semaphore_has_one_size() {
        let line = view(&[Some(p(2)), Some(p(2))]);
        assert!(line.mismatch(p(2), i64::MAX).is_none() && line.mismatch(X, i64::MAX).is_none());
        let kind = |share| line.mismatch(share, i64::MAX).map(|e| e.kind());
        assert_eq!(kind(p(3)), Some(ErrorKind::ConfigMismatch));
        assert!(line.mismatch(p(3), 10).is_none(), "whoever was there first has the right size");
        assert_eq!(
            kind(Share::Permit { limit: 2, count: 3 }),
            Some(ErrorKind::ConfigMismatch),
            "after a resize"
        );
    }

    #[test]
    fn f10_each_waits_for_the_one_before_it() {
        let line = view(&[Some(X), Some(R), Some(R), Some(X)]);
        let found = line.obstacle(X, 40).unwrap();
        assert_eq!((found.first.created, found.last.unwrap().created), (10, 30));
        let found = line.obstacle(R, 30).unwrap();
        assert_eq!(found.last.unwrap().created, 10, "readers do not wait for readers");
        let permits = view(&[Some(p(1)), Some(p(1))]);
        assert_eq!(permits.obstacle(p(1), 20).unwrap().last, None, "any one of them will do");
        assert_eq!(line.position(30), 2, "nobody has proved anything yet");
        let mut proved = line.clone();
        proved.entries[0].proof = Some(11);
        assert_eq!(proved.position(30), 1, "whoever holds is not before it in line");
    }

    #[test]
    fn tokens_carry_the_epoch_and_end() {
        assert_eq!(token(0, 77).unwrap(), FencingToken::new(77));
        let raised = token(1, 5).unwrap();
        assert!(raised > token(0, (1 << 48) - 1).unwrap());
        assert_eq!((revision_of(1, raised), revision_of(0, raised)), (Some(5), None));
        assert_eq!(token(0, 1 << 48).unwrap_err().kind(), ErrorKind::TooLarge);
        assert_eq!(token(0, -1).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn a_mark_says_since_when_and_an_empty_one_says_nothing() {
        let at = WallTime::from_unix_millis(1_767_225_600_123);
        assert_eq!(dated(&mark_of(at)), Some(Since::holder(at)));
        assert_eq!((dated(b""), dated(b"\xff")), (None, None));
    }

    #[test]
    fn f32_seconds_are_rounded_up() {
        for (ms, s) in [(1, 2), (2_000, 2), (2_001, 3), (4_999, 5), (5_000, 5)] {
            assert_eq!(seconds(Duration::from_millis(ms)), s, "{ms}");
        }
    }
}
