//! One connection of the process that listens, and everybody in it who waits for a name.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::FutureExt as _;
use futures_util::stream::StreamExt as _;
use mainstay_store::lease::Watchers;
use mainstay_store::{BoxFuture, Result};
use tokio::sync::Notify;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client};

use crate::pool::Pool;
use crate::schema::Tables;

/// Most namespaces that are listened to; names of others are woken by timers and by this process only.
const MAX_CHANNELS: usize = 1_000;
/// Between two tries to connect again, growing from the first to the last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

#[derive(Default)]
struct State {
    /// Channels that somebody waits on.
    wanted: BTreeSet<String>,
    closed: bool,
}

/// Who waits for which name.
pub(crate) struct Hub {
    tables: Tables,
    watchers: Watchers,
    state: Mutex<State>,
    /// A channel is wanted that was not, or the store is closed.
    news: Notify,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

impl Hub {
    pub(crate) fn new(tables: Tables) -> Arc<Self> {
        Arc::new(Self { tables, watchers: Watchers::default(), state: Mutex::default(), news: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Armed from now on.
    pub(crate) fn watch(&self, name: &str) -> BoxFuture<'static, Result<()>> {
        let hint = self.watchers.watch(name);
        let channel = self.tables.channel(name);
        let mut state = self.state();
        if state.wanted.len() < MAX_CHANNELS && state.wanted.insert(channel) {
            self.news.notify_one();
        }
        hint
    }

    /// Tells everybody who waits for these names: this process at once, the others through the server. The
    /// answer is not awaited: a hint may be lost.
    ///
    /// It is a transaction of its own: one that notifies holds a lock of the whole server until it ends, and a
    /// commit with a sync would hold that as long as the sync takes.
    pub(crate) fn tell<'a>(&self, client: &Client, names: impl IntoIterator<Item = &'a String>) {
        let names: Vec<&String> = names.into_iter().collect();
        if names.is_empty() {
            return;
        }
        let channels: Vec<String> = names.iter().map(|name| self.tables.channel(name)).collect();
        let sql = "select pg_notify(c, n) from unnest($1::text[], $2::text[]) as t(c, n)";
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&channels, Type::TEXT_ARRAY), (&names, Type::TEXT_ARRAY)];
        // Polled once it is on its way, behind what was answered.
        let _ = client.query_typed(sql, &parameters).now_or_never();
        names.iter().for_each(|name| self.fire(name));
    }

    /// `name` may have changed.
    pub(crate) fn fire(&self, name: &str) {
        self.watchers.fire(name);
    }

    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.news.notify_one();
    }

    /// The channels that are wanted and not in `known`; none when the store is closed.
    fn missing(&self, known: &BTreeSet<String>) -> Option<Vec<String>> {
        let state = self.state();
        (!state.closed).then(|| state.wanted.difference(known).cloned().collect())
    }

    /// Listens until the store is closed.
    pub(crate) async fn listen(self: Arc<Self>, pool: Arc<Pool>) {
        let mut pause = PAUSE.0;
        loop {
            // Without anybody who waits there is no connection.
            while self.missing(&BTreeSet::new()).is_some_and(|m| m.is_empty()) {
                self.news.notified().await;
            }
            if self.missing(&BTreeSet::new()).is_none() {
                return;
            }
            match self.session(&pool, &mut pause).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "nobody listens for released leases now"),
            }
            // What happened meanwhile is unknown; timers go on in any case.
            self.watchers.fire_all();
            pool.rt.clock().sleep(pause.mul_f64(0.5 + pool.rt.rng().unit() / 2.0)).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// One connection, until it ends or the store is closed.
    async fn session(&self, pool: &Pool, pause: &mut Duration) -> Result<()> {
        let (client, mut messages) = pool.dial().await?;
        let mut known = BTreeSet::new();
        loop {
            let Some(missing) = self.missing(&known) else { return Ok(()) };
            if !missing.is_empty() {
                let text: String = missing.iter().map(|c| format!("listen \"{c}\";")).collect();
                let mut asked = std::pin::pin!(client.batch_execute(&text));
                loop {
                    tokio::select! {
                        biased;
                        message = messages.next() => self.hear(message)?,
                        done = &mut asked => {
                            done.map_err(crate::error::store_error)?;
                            break;
                        }
                    }
                }
                known.extend(missing);
                *pause = PAUSE.0;
                // Released between the question and the first word of the server: look again.
                self.watchers.fire_all();
            }
            tokio::select! {
                biased;
                message = messages.next() => self.hear(message)?,
                () = self.news.notified() => {}
            }
        }
    }

    fn hear(&self, message: Option<std::result::Result<AsyncMessage, tokio_postgres::Error>>) -> Result<()> {
        match message {
            Some(Ok(AsyncMessage::Notification(told))) => self.fire(told.payload()),
            Some(Ok(_)) => {}
            Some(Err(e)) => return Err(crate::error::store_error(e)),
            None => {
                let text = "the listening connection was closed";
                return Err(mainstay_store::Error::new(mainstay_store::ErrorKind::Unavailable, text));
            }
        }
        Ok(())
    }
}
