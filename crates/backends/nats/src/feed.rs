//! What the server tells without being asked: one ephemeral consumer per store, whatever is watched.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::StreamExt as _;
use mainstay_store::Result;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::api::{Api, Marks, is_control, version};
use crate::board::{Board, Source};
use crate::state::Version;

/// The server says that often that it is there.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// So long without a word, and the consumer is made anew.
const SILENCE: Duration = Duration::from_secs(5);
/// Between two tries to make one.
const PAUSE: Duration = Duration::from_millis(100);
/// So long after its reader is gone the server drops it.
const UNUSED: Duration = Duration::from_secs(30);
/// Longest wait for a consumer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a consumer says about itself when it is made.
#[derive(Deserialize)]
pub(crate) struct Made {
    #[serde(default)]
    pub(crate) num_pending: u64,
}

/// Where a message of a consumer stands, read off its reply subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// In the stream.
    pub(crate) seq: u64,
    /// In the consumer: gaps are lost messages.
    pub(crate) nth: u64,
    /// How many follow now.
    pub(crate) pending: u64,
}

impl Place {
    /// `$JS.ACK.stream.consumer.times.seq.nth.time.pending`, or with a domain and an account before the stream.
    fn of(reply: &str) -> Option<Self> {
        let parts: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let at = match parts.len() {
            7 => 3,
            9.. => 5,
            _ => return None,
        };
        let number = |n: usize| parts.get(n)?.parse().ok();
        Some(Self { seq: number(at)?, nth: number(at + 1)?, pending: number(at + 3)? })
    }
}

/// A consumer of the last message of every lease, and of what follows.
pub(crate) async fn consume(api: &Api) -> Result<(Subscriber, Made)> {
    let limit = api.clock.now().saturating_add(PATIENCE);
    let inbox = api.client.new_inbox();
    let subscriber =
        api.client.subscribe(inbox.clone()).await.map_err(|_| crate::error::unanswered("a subscription"))?;
    let nanos = |d: Duration| Value::from(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
    let body = json!({
        "stream_name": &*api.stream,
        "config": {
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "filter_subject": api.leases(),
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": true,
            "num_replicas": 1,
            "flow_control": true,
            "idle_heartbeat": nanos(HEARTBEAT),
            "inactive_threshold": nanos(UNUSED),
        },
    });
    let what = format!("CONSUMER.CREATE.{}", api.stream);
    let made = api.ask::<Made>(&what, &body, limit).await?.map_err(|refusal| refusal.error())?;
    Ok((subscriber, made))
}

/// Answers the server's word, if it wants an answer.
pub(crate) async fn control(api: &Api, message: &Message) {
    let stalled = message.headers.as_ref().and_then(|h| h.get("Nats-Consumer-Stalled"));
    let subject = message.reply.as_ref().map(|s| s.to_string()).or(stalled.map(|v| v.as_str().to_owned()));
    if let Some(subject) = subject {
        // Lost, it is asked for again.
        let _ = api.client.publish(subject, Vec::new().into()).await;
    }
}

/// A message of a consumer taken apart: which name, where it stands, what it says.
pub(crate) fn told(api: &Api, message: &Message) -> Option<(Place, Option<(String, Version)>)> {
    let place = Place::of(message.reply.as_ref()?)?;
    let name = api.name(message.subject.as_str());
    let version = version(place.seq, Marks::of(message.headers.as_ref()), &message.payload);
    Some((place, name.map(|name| (name, version))))
}

/// Listens until the other end of `stop` is dropped.
pub(crate) async fn listen(api: Api, board: Arc<Board>, mut stop: watch::Receiver<()>) {
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            () = listen_once(&api, &board) => {}
        }
        // What happened meanwhile was told to nobody.
        board.watchers.fire_all();
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            () = api.clock.sleep(PAUSE) => {}
        }
    }
}

async fn listen_once(api: &Api, board: &Board) {
    let Ok((mut messages, _)) = consume(api).await else { return };
    board.watchers.fire_all();
    let mut last = 0;
    loop {
        let message = tokio::select! {
            biased;
            message = messages.next() => message,
            () = api.clock.sleep(SILENCE) => None,
        };
        let Some(message) = message else { return };
        if is_control(&message) {
            control(api, &message).await;
            continue;
        }
        let Some((place, version)) = told(api, &message) else { continue };
        if place.nth != last + 1 {
            return;
        }
        last = place.nth;
        if let Some((name, version)) = version {
            board.learn(&name, version, Source::Feed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_off_both_forms_of_the_reply() {
        let place = Some(Place { seq: 112_230_000_000_007, nth: 3, pending: 9 });
        assert_eq!(Place::of("$JS.ACK.KV_x.abc.1.112230000000007.3.1700000000.9"), place);
        assert_eq!(Place::of("$JS.ACK.hub.HASH.KV_x.abc.1.112230000000007.3.1700000000.9.token"), place);
        assert_eq!(Place::of("$JS.ACK.KV_x.abc.1.2.3"), None);
        assert_eq!(Place::of("_INBOX.x"), None);
    }
}
