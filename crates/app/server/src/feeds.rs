//! What changes, for many readers: one watcher for each observed thing, the last changes in a ring, and a whole
//! picture for whoever comes new or was away for too long.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_coordination::Coordinator;
use mainstay_coordination::membership::{Change, Departure, Event, Member};
use mainstay_store::lease::LeaseInfo;
use mainstay_store::{LeaseStore, Result};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::leases::{deaf, with_since};

/// Most readers at once: each holds a connection.
const MAX_READERS: usize = 1_000;
/// Changes that are kept for readers who come back; whoever missed more gets the whole picture.
const RING: usize = 256;
/// Between two looks without a hint.
const LOOK: Duration = Duration::from_secs(1);
/// After a look that failed.
const AGAIN: Duration = Duration::from_secs(1);

/// What can be observed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// Who leads: the store's name of the election.
    Election(String),
    /// Who holds a lock: its name in the store.
    Lock(String),
    /// Who is in a group.
    Members(String),
}

/// One change, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// The stream and the place in it.
    pub(crate) id: String,
    pub(crate) event: &'static str,
    pub(crate) data: String,
}

/// The streams of this node.
#[derive(Debug)]
pub(crate) struct Feeds {
    store: Arc<dyn LeaseStore>,
    coordinator: Coordinator,
    rt: Runtime,
    feeds: Mutex<BTreeMap<Subject, Weak<Feed>>>,
    readers: Arc<Semaphore>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Feeds {
    pub(crate) fn new(store: Arc<dyn LeaseStore>, coordinator: Coordinator, rt: Runtime) -> Self {
        let readers = Arc::new(Semaphore::new(MAX_READERS));
        Self { store, coordinator, rt, feeds: Mutex::default(), readers }
    }

    /// A reader that goes on behind `last`; none when there are too many.
    pub(crate) fn read(&self, subject: Subject, last: Option<String>) -> Option<Reader> {
        let permit = Arc::clone(&self.readers).try_acquire_owned().ok()?;
        let mut feeds = locked(&self.feeds);
        feeds.retain(|_, feed| feed.strong_count() > 0);
        let feed = feeds.get(&subject).and_then(Weak::upgrade).unwrap_or_else(|| {
            let feed = Arc::new(Feed::new(self.rt.rng().next_u64()));
            feeds.insert(subject.clone(), Arc::downgrade(&feed));
            self.start(subject, &feed);
            feed
        });
        drop(feeds);
        let changed = feed.changed.subscribe();
        let place = last.map_or(Place::New, |id| feed.place(&id));
        Some(Reader { feed, changed, place, _permit: permit })
    }

    fn start(&self, subject: Subject, feed: &Arc<Feed>) {
        let (weak, ended, rt) = (Arc::downgrade(feed), feed.ended.clone(), self.rt.clone());
        let (store, coordinator) = (Arc::clone(&self.store), self.coordinator.clone());
        self.rt.spawn("feed", async move {
            let watching = async {
                match &subject {
                    Subject::Election(name) => leases(&*store, name, &weak, &rt, leader).await,
                    Subject::Lock(name) => leases(&*store, name, &weak, &rt, holders).await,
                    Subject::Members(group) => members(&coordinator, group, &weak, &rt).await,
                }
            };
            tokio::select! {
                biased;
                () = ended.cancelled() => {}
                () = watching => {}
            }
        });
    }
}

/// One observed thing. Its watcher ends with its last reader.
#[derive(Debug)]
struct Feed {
    stream: u64,
    state: Mutex<State>,
    changed: watch::Sender<()>,
    ended: CancellationToken,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

#[derive(Debug, Default)]
struct State {
    /// Changes so far; those in the ring end here.
    count: u64,
    ring: VecDeque<(&'static str, String)>,
    /// Everything as it is after the last change; none before the first look.
    whole: Option<(&'static str, String)>,
}

/// Where a reader stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Has everything up to this change.
    After(u64),
    /// Came new.
    New,
    /// Was somewhere else: it is told so, and gets the whole picture.
    Reset,
}

impl Feed {
    fn new(stream: u64) -> Self {
        Self {
            stream,
            state: Mutex::default(),
            changed: watch::Sender::new(()),
            ended: CancellationToken::new(),
        }
    }

    fn id(&self, count: u64) -> String {
        format!("{:016x}-{count}", self.stream)
    }

    fn place(&self, id: &str) -> Place {
        let count = id.strip_prefix(&format!("{:016x}-", self.stream)).and_then(|n| n.parse().ok());
        count.filter(|n| *n <= locked(&self.state).count).map_or(Place::Reset, Place::After)
    }

    /// A change, and everything as it is after it.
    fn push(&self, change: (&'static str, String), whole: (&'static str, String)) {
        let mut state = locked(&self.state);
        state.count += 1;
        if state.ring.len() >= RING {
            state.ring.pop_front();
        }
        state.ring.push_back(change);
        state.whole = Some(whole);
        drop(state);
        self.changed.send_replace(());
    }

    /// The first picture.
    fn begin(&self, whole: (&'static str, String)) {
        locked(&self.state).whole = Some(whole);
        self.changed.send_replace(());
    }

    /// What a reader in `place` gets next, and its place then.
    fn next(&self, place: Place) -> Option<(Message, Place)> {
        let state = locked(&self.state);
        let (event, data) = state.whole.as_ref()?;
        let count = state.count;
        let kept = state.ring.len() as u64;
        match place {
            Place::After(seen) if seen == count => None,
            Place::After(seen) if seen + kept >= count => {
                let at = usize::try_from(kept - (count - seen)).unwrap_or(0);
                let (event, data) = state.ring.get(at)?.clone();
                Some((Message { id: self.id(seen + 1), event, data }, Place::After(seen + 1)))
            }
            Place::After(_) | Place::Reset => {
                let data = json!({"from": self.id(count)}).to_string();
                Some((Message { id: self.id(count), event: "reset", data }, Place::New))
            }
            Place::New => {
                Some((Message { id: self.id(count), event, data: data.clone() }, Place::After(count)))
            }
        }
    }
}

/// One reader. It holds nothing but its place: a slow one is told that it missed something.
#[derive(Debug)]
pub(crate) struct Reader {
    feed: Arc<Feed>,
    changed: watch::Receiver<()>,
    place: Place,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    /// The next change. Cancel safe.
    pub(crate) async fn next(&mut self) -> Message {
        loop {
            self.changed.mark_unchanged();
            if let Some((message, place)) = self.feed.next(self.place) {
                self.place = place;
                return message;
            }
            // The sender lives in the feed, which lives in this reader.
            let _ = self.changed.changed().await;
        }
    }
}

fn token(n: mainstay_store::FencingToken) -> String {
    n.get().to_string()
}

fn holders(info: &LeaseInfo) -> Value {
    let holders: Vec<Value> = info
        .holders
        .iter()
        .map(|h| with_since(json!({"owner": h.owner, "token": token(h.token)}), h))
        .collect();
    json!({"holders": holders, "waiting": info.waiting, "note": info.note})
}

fn leader(info: &LeaseInfo) -> Value {
    let value = info.annotation.as_deref().map(String::from_utf8_lossy);
    match info.holders.first() {
        Some(h) => with_since(json!({"leader": h.owner, "term": token(h.token), "value": value}), h),
        None => json!({"leader": null}),
    }
}

/// Looks at a lease and tells what is different.
async fn leases(
    store: &dyn LeaseStore,
    name: &str,
    feed: &Weak<Feed>,
    rt: &Runtime,
    shown: fn(&LeaseInfo) -> Value,
) {
    let mut known: Option<String> = None;
    let mut vain = 0_u32;
    loop {
        // Armed before the look, so that a change in between is not slept over.
        let hint = store.watch(name);
        let found: Result<LeaseInfo> = store.inspect(name).await;
        let pause = match found {
            Ok(info) => {
                let text = shown(&info).to_string();
                if known.as_ref() != Some(&text) {
                    vain = 0;
                    let Some(feed) = feed.upgrade() else { return };
                    let state = ("state", text.clone());
                    if known.is_none() {
                        feed.begin(state)
                    } else {
                        feed.push(state.clone(), state)
                    }
                    known = Some(text);
                }
                LOOK
            }
            Err(error) => {
                tracing::warn!(%error, "an observed lease cannot be looked at");
                AGAIN
            }
        };
        let hint = async {
            if vain > 0 {
                rt.clock().sleep(deaf(vain)).await;
            }
            if hint.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = hint => vain = vain.saturating_add(1),
            () = rt.clock().sleep(pause) => vain = 0,
        }
    }
}

pub(crate) fn member(member: &Member) -> Value {
    json!({
        "name": member.name,
        "owner": member.owner,
        "incarnation": token(member.incarnation),
        "meta": String::from_utf8_lossy(&member.meta),
    })
}

/// Follows a group.
async fn members(coordinator: &Coordinator, group: &str, feed: &Weak<Feed>, rt: &Runtime) {
    let Ok(group) = coordinator.group(group).build() else { return };
    let mut watch = group.watch();
    let mut there: BTreeMap<String, Value> = BTreeMap::new();
    loop {
        let event = match watch.next().await {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, "an observed group cannot be looked at");
                rt.clock().sleep(AGAIN).await;
                continue;
            }
        };
        let change = match event {
            Event::Snapshot(snapshot) => {
                there = snapshot.members.iter().map(|m| (m.name.clone(), member(m))).collect();
                None
            }
            Event::Delta(delta) => Some(told(&mut there, &delta.change)),
        };
        let whole = json!({"members": there.values().collect::<Vec<_>>()}).to_string();
        let Some(feed) = feed.upgrade() else { return };
        match change {
            None => feed.begin(("snapshot", whole)),
            Some(change) => feed.push(change, ("snapshot", whole)),
        }
    }
}

fn told(there: &mut BTreeMap<String, Value>, change: &Change) -> (&'static str, String) {
    match change {
        Change::Joined(m) | Change::Updated(m) => {
            let word = if matches!(change, Change::Joined(_)) { "joined" } else { "updated" };
            there.insert(m.name.clone(), member(m));
            (word, member(m).to_string())
        }
        Change::Gone { member: m, how } => {
            there.remove(&m.name);
            let word = match how {
                Departure::Expired => "expired",
                Departure::Left => "left",
                Departure::Unknown => "gone",
            };
            (word, member(m).to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(changes: u64) -> Feed {
        let feed = Feed::new(7);
        feed.begin(("state", "0".to_owned()));
        for n in 1..=changes {
            feed.push(("state", n.to_string()), ("state", n.to_string()));
        }
        feed
    }

    /// What a reader gets until it has everything.
    fn read(feed: &Feed, mut place: Place) -> Vec<String> {
        let mut told = Vec::new();
        while let Some((message, next)) = feed.next(place) {
            told.push(if message.event == "reset" { "reset".to_owned() } else { message.data });
            place = next;
        }
        told
    }

    #[test]
    fn if_a4_a_reader_comes_back_without_a_gap_or_is_told() {
        let it = feed(3);
        assert_eq!(read(&it, Place::New), ["3"], "the whole picture");
        assert_eq!(read(&it, it.place(&it.id(1))), ["2", "3"]);
        assert_eq!(read(&it, it.place(&it.id(3))), Vec::<String>::new());
        for foreign in ["", "x", "0000000000000007-9", "0000000000000008-1", "0000000000000007-"] {
            assert_eq!(read(&it, it.place(foreign)), ["reset", "3"], "{foreign}");
        }
        let long = feed(300);
        assert_eq!(read(&long, Place::After(300 - 256)).len(), 256);
        assert_eq!(read(&long, Place::After(300 - 257)), ["reset", "300"]);
        assert_eq!(Feed::new(1).next(Place::New), None, "nobody has looked yet");
    }
}
