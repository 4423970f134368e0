//! Who waits for which name, and the one stream of watches behind it.
//!
//! A place in line follows the key before it, so the server wakes one waiter per release. Everybody else watches all
//! keys of the name. No watch begins at a revision of the past: the server would search for what it missed in rounds of
//! 100 ms (coordination F10). It begins now, and the answer that it has begun says at which revision: if that is later
//! than the look, something may have happened between, and there is another look.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream;
use mainstay_store::lease::Watchers;
use mainstay_store::{BoxFuture, Error, ErrorKind, Result};
use tokio::sync::{Notify, mpsc};

use crate::conn::Conn;
use crate::wire::{
    EventType, FilterType, RequestUnion, WatchCancelRequest, WatchCreateRequest, WatchRequest, WatchResponse,
    behind,
};

/// Most watches of one process on its stream; beyond them waiters have their timers only.
const MAX_WATCHES: usize = 50_000;
/// Requests on their way to the stream; more wait for it.
const MAX_ORDERS: usize = 64;
/// Between two tries to open the stream: from this, doubling.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What one watch is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Aim {
    /// The place in line of this operation.
    Follow(String),
    /// All keys of this name.
    Name(String),
}

/// A place in line.
#[derive(Debug)]
struct Place {
    watch: i64,
    /// Whom it follows.
    key: Vec<u8>,
    /// At which revision that one was seen last.
    seen: i64,
    /// The names whose waiters it may wake.
    names: Vec<String>,
}

#[derive(Debug, Default)]
struct Name {
    /// Places in line that follow somebody.
    places: usize,
    /// Waiters that rely on one of those.
    claimed: usize,
    /// Waiters that rely on a watch of all keys.
    users: usize,
    /// Hints that are alive, polled or not: whoever asks meanwhile arms first.
    armed: usize,
    watch: Option<i64>,
}

impl Name {
    fn is_idle(&self) -> bool {
        self.places == 0 && self.armed == 0 && self.watch.is_none()
    }
}

#[derive(Default)]
struct State {
    closed: bool,
    last_id: i64,
    orders: VecDeque<RequestUnion>,
    aims: BTreeMap<i64, Aim>,
    places: BTreeMap<String, Place>,
    names: BTreeMap<String, Name>,
}

pub(crate) struct Hub {
    watchers: Watchers,
    state: Mutex<State>,
    news: Notify,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

impl State {
    fn order(&mut self, aim: Aim, mut create: WatchCreateRequest) -> Option<i64> {
        if self.aims.len() >= MAX_WATCHES {
            return None;
        }
        self.last_id += 1;
        create.watch_id = self.last_id;
        self.orders.push_back(RequestUnion::CreateRequest(create));
        self.aims.insert(self.last_id, aim);
        Some(self.last_id)
    }

    fn cancel(&mut self, watch: i64) {
        if self.aims.remove(&watch).is_some() {
            self.orders.push_back(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: watch }));
        }
    }

    /// Forgets a name that nobody has anything to do with.
    fn tidy(&mut self, name: &str) {
        if self.names.get(name).is_some_and(Name::is_idle) {
            self.names.remove(name);
        }
    }

    fn unplace(&mut self, op_id: &str) -> Vec<String> {
        let Some(place) = self.places.remove(op_id) else { return Vec::new() };
        self.cancel(place.watch);
        for name in &place.names {
            if let Some(entry) = self.names.get_mut(name) {
                entry.places = entry.places.saturating_sub(1);
            }
            self.tidy(name);
        }
        place.names
    }
}

impl Hub {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { watchers: Watchers::default(), state: Mutex::default(), news: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Armed from now on. Which watch it relies on is seen when it is polled: whoever asks for a place in line
    /// arms first.
    pub(crate) fn watch(self: &Arc<Self>, name: &str, keys: Vec<u8>) -> BoxFuture<'static, Result<()>> {
        let told = self.watchers.watch(name);
        self.state().names.entry(name.to_owned()).or_default().armed += 1;
        Box::pin(Hint { hub: Arc::clone(self), name: name.to_owned(), keys, told, stake: None })
    }

    /// `name` may have changed.
    pub(crate) fn fire(&self, name: &str) {
        self.watchers.fire(name);
    }

    /// From now on the place of `op_id` moves when `key` is deleted, as seen from `revision`.
    pub(crate) fn follow(&self, op_id: &str, names: &[String], key: Vec<u8>, revision: i64) {
        let mut state = self.state();
        if let Some(place) = state.places.get_mut(op_id).filter(|place| place.key == key) {
            place.seen = place.seen.max(revision);
            return;
        }
        state.unplace(op_id);
        let create = following(key.clone());
        let Some(watch) = state.order(Aim::Follow(op_id.to_owned()), create) else { return };
        for name in names {
            state.names.entry(name.clone()).or_default().places += 1;
        }
        state.places.insert(op_id.to_owned(), Place { watch, key, seen: revision, names: names.to_vec() });
        drop(state);
        self.news.notify_one();
    }

    /// It waits no more. Whoever relied on its place looks again.
    pub(crate) fn unfollow(&self, op_id: &str) {
        let names = self.state().unplace(op_id);
        if !names.is_empty() {
            self.news.notify_one();
            names.iter().for_each(|name| self.fire(name));
        }
    }

    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.news.notify_one();
    }

    fn stake(&self, name: &str, keys: &[u8]) -> Stake {
        let mut state = self.state();
        let entry = state.names.entry(name.to_owned()).or_default();
        if entry.claimed < entry.places {
            entry.claimed += 1;
            return Stake::Claimed;
        }
        entry.users += 1;
        if entry.watch.is_none() {
            let create = WatchCreateRequest {
                key: keys.to_vec(),
                range_end: behind(keys),
                ..WatchCreateRequest::default()
            };
            let watch = state.order(Aim::Name(name.to_owned()), create);
            if let Some(entry) = state.names.get_mut(name) {
                entry.watch = watch;
            }
            drop(state);
            self.news.notify_one();
        }
        Stake::Using
    }

    fn disarm(&self, name: &str, stake: Option<Stake>) {
        let mut state = self.state();
        if let Some(entry) = state.names.get_mut(name) {
            entry.armed = entry.armed.saturating_sub(1);
            match stake {
                Some(Stake::Claimed) => entry.claimed = entry.claimed.saturating_sub(1),
                // The watch stays until it says something that nobody wants to know: the next look comes soon.
                Some(Stake::Using) => entry.users = entry.users.saturating_sub(1),
                None => {}
            }
        }
        state.tidy(name);
    }

    /// Watches until the store is closed.
    pub(crate) async fn run(self: Arc<Self>, conn: Arc<Conn>) {
        let mut pause = PAUSE.0;
        loop {
            // Without anybody who waits there is no stream.
            while !self.state().closed && self.state().orders.is_empty() {
                self.news.notified().await;
            }
            match self.session(&conn, &mut pause).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "nobody watches for released leases now"),
            }
            self.forget();
            conn.rt.clock().sleep(pause.mul_f64(0.5 + conn.rt.rng().unit() / 2.0)).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// The stream ended: what happened meanwhile is unknown, so everybody looks again.
    fn forget(&self) {
        let mut state = self.state();
        state.orders.clear();
        state.aims.clear();
        state.places.clear();
        for entry in state.names.values_mut() {
            entry.places = 0;
            entry.watch = None;
        }
        state.names.retain(|_, n| !n.is_idle());
        drop(state);
        self.watchers.fire_all();
    }

    /// One stream, until it ends or the store is closed.
    async fn session(&self, conn: &Conn, pause: &mut Duration) -> Result<()> {
        let (orders, mut pending) = mpsc::channel(MAX_ORDERS);
        let mut moves = conn.moves();
        if self.state().closed {
            return Ok(());
        }
        // The server answers the opening of the stream with the answer to its first request.
        if let Some(first) = self.next_order() {
            let _ = orders.try_send(first);
        }
        let mut answers = conn.watch(stream::poll_fn(move |cx| pending.poll_recv(cx))).await?;
        loop {
            let (closed, waiting) = {
                let state = self.state();
                (state.closed, !state.orders.is_empty())
            };
            if closed {
                return Ok(());
            }
            tokio::select! {
                biased;
                _ = moves.changed() => return Err(Error::new(ErrorKind::Unavailable, "another member is asked now")),
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        *pause = PAUSE.0;
                        self.hear(&answer)?;
                    }
                    Ok(None) => return Err(Error::new(ErrorKind::Unavailable, "the stream of watches ended")),
                    Err(status) => return Err(crate::error::failure(conn.endpoint(), status).error),
                },
                room = orders.reserve(), if waiting => {
                    if let (Ok(room), Some(order)) = (room, self.next_order()) {
                        room.send(order);
                    }
                }
                () = self.news.notified() => {}
            }
        }
    }

    fn next_order(&self) -> Option<WatchRequest> {
        self.state().orders.pop_front().map(|order| WatchRequest { request_union: Some(order) })
    }

    fn hear(&self, answer: &WatchResponse) -> Result<()> {
        if answer.canceled && answer.watch_id < 0 {
            // The whole stream: the member has no leader, say.
            return Err(Error::new(ErrorKind::Unavailable, answer.cancel_reason.clone()));
        }
        let mut state = self.state();
        let Some(aim) = state.aims.get(&answer.watch_id).cloned() else { return Ok(()) };
        let names = match aim {
            Aim::Follow(op_id) => {
                let gone = answer.events.iter().any(|e| e.r#type() == EventType::Delete);
                let begun = answer.header.as_ref().filter(|_| answer.created).map_or(0, |h| h.revision);
                // A cancelled one hears nothing: look again (F18).
                if gone || answer.canceled {
                    state.unplace(&op_id)
                } else {
                    // It stays, and between the look and its begin something may have happened.
                    let missed = state.places.get(&op_id).filter(|place| begun > place.seen);
                    missed.map_or_else(Vec::new, |place| place.names.clone())
                }
            }
            Aim::Name(name) => {
                let unwanted = state.names.get(&name).is_none_or(|n| n.armed == 0);
                if answer.canceled || unwanted {
                    state.cancel(answer.watch_id);
                    if let Some(entry) = state.names.get_mut(&name) {
                        entry.watch = None;
                    }
                    state.tidy(&name);
                }
                // Armed late: something may have happened between the look and this word.
                if answer.created || answer.canceled || !answer.events.is_empty() {
                    vec![name]
                } else {
                    Vec::new()
                }
            }
        };
        drop(state);
        names.iter().for_each(|name| self.fire(name));
        Ok(())
    }
}

/// A watch of one key's end, from now on.
fn following(key: Vec<u8>) -> WatchCreateRequest {
    WatchCreateRequest { key, filters: vec![FilterType::Noput.into()], ..WatchCreateRequest::default() }
}

/// What a hint relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stake {
    /// A place in line of this process.
    Claimed,
    /// The watch of all keys.
    Using,
}

/// Resolves when the name may have changed.
struct Hint {
    hub: Arc<Hub>,
    name: String,
    keys: Vec<u8>,
    told: BoxFuture<'static, Result<()>>,
    stake: Option<Stake>,
}

impl Future for Hint {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let told = self.told.as_mut().poll(cx);
        if told.is_pending() && self.stake.is_none() {
            self.stake = Some(self.hub.stake(&self.name, &self.keys));
        }
        told
    }
}

impl Drop for Hint {
    fn drop(&mut self) {
        self.hub.disarm(&self.name, self.stake.take());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::wire::ResponseHeader;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|n| (*n).to_owned()).collect()
    }

    fn orders(hub: &Hub) -> Vec<RequestUnion> {
        std::iter::from_fn(|| hub.next_order()).filter_map(|o| o.request_union).collect()
    }

    fn created(orders: &[RequestUnion]) -> &WatchCreateRequest {
        match orders {
            [RequestUnion::CreateRequest(create)] => create,
            other => panic!("{other:?}"),
        }
    }

    fn deleted(watch_id: i64) -> WatchResponse {
        let mut event = crate::wire::Event::default();
        event.set_type(EventType::Delete);
        WatchResponse { watch_id, events: vec![event], ..WatchResponse::default() }
    }

    #[test]
    fn f10_a_place_follows_one_key_from_now_on() {
        let hub = Hub::new();
        let mut hint = hub.watch("n", b"n/".to_vec());
        hub.follow("op", &names(&["n"]), b"n/1".to_vec(), 41);
        assert!((&mut hint).now_or_never().is_none());
        let sent = orders(&hub);
        let create = created(&sent);
        assert_eq!(
            (create.key.as_slice(), create.range_end.as_slice(), create.start_revision),
            (&b"n/1"[..], &b""[..], 0)
        );
        assert_eq!(create.filters, [i32::from(FilterType::Noput)]);
        let id = create.watch_id;
        let begun = |revision| WatchResponse {
            header: Some(ResponseHeader { revision, ..ResponseHeader::default() }),
            watch_id: id,
            created: true,
            ..WatchResponse::default()
        };
        hub.hear(&begun(41)).unwrap();
        assert!((&mut hint).now_or_never().is_none(), "nothing happened since the look");
        hub.hear(&begun(42)).unwrap();
        assert!(hint.now_or_never().is_some(), "something may have");
        // Whoever looked again and found the same stays with the same watch.
        let mut hint = hub.watch("n", b"n/".to_vec());
        hub.follow("op", &names(&["n"]), b"n/1".to_vec(), 43);
        assert!((&mut hint).now_or_never().is_none() && orders(&hub).is_empty());
        hub.hear(&deleted(id)).unwrap();
        assert!(hint.now_or_never().is_some());
        assert!(hub.state().names.is_empty() && hub.state().aims.is_empty(), "nothing is left");
    }

    #[test]
    fn whoever_does_not_stand_in_line_watches_all_keys_and_is_told_once_it_is_armed() {
        let hub = Hub::new();
        let mut hint = hub.watch("n", b"n/".to_vec());
        assert!((&mut hint).now_or_never().is_none());
        let sent = orders(&hub);
        let create = created(&sent);
        assert_eq!(
            (create.key.as_slice(), create.range_end.as_slice(), create.start_revision),
            (&b"n/"[..], &b"n0"[..], 0)
        );
        let id = create.watch_id;
        let mut second = hub.watch("n", b"n/".to_vec());
        assert!((&mut second).now_or_never().is_none() && orders(&hub).is_empty(), "they share it");
        hub.hear(&WatchResponse { watch_id: id, created: true, ..WatchResponse::default() }).unwrap();
        assert!(hint.now_or_never().is_some() && second.now_or_never().is_some());
        // Nobody wants to know any more: the next word ends it.
        hub.hear(&deleted(id)).unwrap();
        assert!(matches!(orders(&hub)[..], [RequestUnion::CancelRequest(_)]));
        assert!(hub.state().names.is_empty());
    }

    #[test]
    fn f18_a_watch_of_what_is_no_longer_kept_leads_to_a_look() {
        let hub = Hub::new();
        let mut hint = hub.watch("n", b"n/".to_vec());
        hub.follow("op", &names(&["n"]), b"n/1".to_vec(), 41);
        assert!((&mut hint).now_or_never().is_none());
        let id = created(&orders(&hub)).watch_id;
        let compacted =
            WatchResponse { watch_id: id, canceled: true, compact_revision: 50, ..WatchResponse::default() };
        hub.hear(&compacted).unwrap();
        assert!(hint.now_or_never().is_some());
    }

    #[test]
    fn a_stream_that_ends_wakes_everybody_and_forgets_what_was_watched() {
        let hub = Hub::new();
        let mut waiter = hub.watch("n", b"n/".to_vec());
        hub.follow("op", &names(&["n"]), b"n/1".to_vec(), 41);
        let mut other = hub.watch("m", b"m/".to_vec());
        assert!((&mut waiter).now_or_never().is_none() && (&mut other).now_or_never().is_none());
        hub.forget();
        assert!(waiter.now_or_never().is_some() && other.now_or_never().is_some());
        assert!(hub.state().names.is_empty() && hub.state().orders.is_empty());
        let no_leader = WatchResponse { watch_id: -1, canceled: true, ..WatchResponse::default() };
        assert!(hub.hear(&no_leader).is_err());
    }
}
