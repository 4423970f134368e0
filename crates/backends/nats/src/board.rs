//! What is known of names without asking: from the feed, from reads, from one's own writes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainstay_clock::Clock;
use mainstay_store::lease::Watchers;

use crate::state::{Content, Sight, Version};

/// Most names that are remembered: as many as other stores let hold or wait at once. Names beyond are read each
/// time, and only the server ends their leases.
const MAX: usize = 1_000_000;
/// From how many on names that nobody holds are dropped; doubles with what is held.
const SWEEP: usize = 4_096;

/// How something was learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Told some time after it happened.
    Feed,
    /// Asked for just now.
    Read,
    /// Written here.
    Written,
}

/// A name as it was seen last, and since when each of its beats is seen.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) version: Arc<Version>,
    pub(crate) sight: Sight,
}

#[derive(Debug)]
struct Names {
    known: HashMap<String, Known>,
    sweep_at: usize,
}

/// The names of one store, and who watches them.
#[derive(Debug)]
pub(crate) struct Board {
    names: Mutex<Names>,
    pub(crate) watchers: Watchers,
    clock: Arc<dyn Clock>,
}

impl Board {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let names = Names { known: HashMap::new(), sweep_at: SWEEP };
        Self { names: Mutex::new(names), watchers: Watchers::default(), clock }
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, name: &str) -> Option<Known> {
        self.lock().known.get(name).cloned()
    }

    /// Takes over what is newer, tells watchers what is news, and says what is known then.
    pub(crate) fn learn(&self, name: &str, version: Version, source: Source) -> Known {
        let now = self.clock.now();
        let (known, news) = {
            let mut names = self.lock();
            names.make_room(name, &version);
            match names.known.get_mut(name) {
                // What was asked for counts even if it is older: the stream may be another one.
                Some(known) if source != Source::Read && known.version.seq >= version.seq => {
                    (known.clone(), false)
                }
                Some(known) => {
                    let news = version.is_news_after(&known.version);
                    version.seen(&mut known.sight, now);
                    known.version = Arc::new(version);
                    (known.clone(), news)
                }
                None => {
                    let mut known = Known { version: Arc::new(version), sight: Sight::new() };
                    known.version.seen(&mut known.sight, now);
                    if names.known.len() < MAX && !(source == Source::Feed && is_free(&known)) {
                        names.known.insert(name.to_owned(), known.clone());
                    }
                    (known, true)
                }
            }
        };
        if news {
            self.watchers.fire(name);
        }
        known
    }
}

fn is_free(known: &Known) -> bool {
    known.version.content == Content::Free
}

impl Names {
    fn make_room(&mut self, name: &str, version: &Version) {
        if self.known.len() < self.sweep_at || self.known.contains_key(name) || version.seq == 0 {
            return;
        }
        self.known.retain(|_, known| !is_free(known));
        self.sweep_at = (self.known.len() * 2).max(SWEEP);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mainstay_clock::SystemClock;
    use mainstay_store::lease::Share;

    use super::*;
    use crate::state::{Entry, Record};

    fn held(seq: u64, beat: u64) -> Version {
        let entry = Entry {
            op: "op".to_owned(),
            owner: "o".to_owned(),
            ttl: Duration::from_secs(5),
            token: Some(mainstay_store::FencingToken::new(7)),
            epoch: 0,
            beat: Some(beat),
            share: Share::Exclusive,
            note: String::new(),
            number: None,
            since: None,
        };
        Version::of(seq, Content::Ours(Record { entries: vec![entry], ..Record::default() }))
    }

    fn free(seq: u64) -> Version {
        Version::of(seq, Content::Free)
    }

    #[test]
    fn a_beat_is_seen_since_it_was_seen_first() {
        let board = Board::new(Arc::new(SystemClock::new()));
        let first = board.learn("n", held(7, 1), Source::Feed).sight["op"];
        assert_eq!(
            board.learn("n", held(8, 1), Source::Read).sight["op"],
            first,
            "rewritten by somebody else"
        );
        let renewed = board.learn("n", held(9, 2), Source::Feed).sight["op"];
        assert!(renewed.0 != first.0 && renewed.1 >= first.1);
        assert_eq!(
            board.learn("n", held(8, 1), Source::Feed).version.seq,
            9,
            "an old message changes nothing"
        );
        assert_eq!(board.learn("n", held(3, 5), Source::Read).version.seq, 3, "a read does: another stream");
        assert_eq!(board.get("n").unwrap().version.seq, 3);
    }

    #[test]
    fn names_that_nobody_holds_are_dropped_in_time() {
        let board = Board::new(Arc::new(SystemClock::new()));
        for n in 0..3 * SWEEP as u64 {
            board.learn(&format!("n{n}"), free(n + 1), Source::Read);
        }
        assert!(board.lock().known.len() <= SWEEP);
        board.learn("never asked for", free(1), Source::Feed);
        assert!(board.get("never asked for").is_none());
    }

    #[test]
    fn only_news_wakes() {
        let news = |now: Version, old: Version| now.is_news_after(&old);
        assert!(!news(held(2, 2), held(1, 1)), "that it lives is none");
        assert!(news(free(2), held(1, 1)) && news(held(2, 1), free(1)));
        assert!(news(free(2), free(1)), "taken and given back in between");
        let mut said = held(2, 1);
        let Content::Ours(record) = &mut said.content else { panic!() };
        record.annotation = Some(b"v".to_vec());
        assert!(news(said, held(1, 1)));
    }
}
