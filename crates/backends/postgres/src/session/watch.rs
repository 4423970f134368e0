//! Who waits for a lock to be free: one session of the server per key waits in shared mode, for all of this process.
//!
//! The server itself tells when the holder lets go, dies or is cut off, whoever it is. The shared lock is given back
//! in the same statement. A lock that is free is only looked at: a shared lock on it, however short, would keep whoever
//! tries it out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_store::{BoxFuture, Error, ErrorKind, Outcome, Result};
use tokio::sync::watch;
use tokio_postgres::types::Type;

use super::Key;
use super::table::LOCKS;
use crate::error::store_error;
use crate::pool::{Lent, Pool};

/// How long a session goes on waiting that nobody asks for any more: the next try is often a moment later.
const LINGER: Duration = Duration::from_secs(5);

type Waiting = Arc<Mutex<BTreeMap<String, watch::Sender<Option<Seen>>>>>;

/// What the session of a key saw last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing: it could not look, or could not go on waiting.
    Failed,
    /// Nobody held the lock when it looked.
    Free,
    /// Somebody held it and let go.
    Freed,
}

pub(super) struct Watches {
    sessions: Arc<Pool>,
    rt: Runtime,
    waiting: Waiting,
}

impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watches").finish_non_exhaustive()
    }
}

impl Watches {
    pub(super) fn new(sessions: Arc<Pool>, rt: Runtime) -> Self {
        Self { sessions, rt, waiting: Waiting::default() }
    }

    /// Looks at the lock from the first poll on, and waits until it is free: [`Free`](Seen::Free) at once or
    /// [`Freed`](Seen::Freed).
    pub(super) fn watch(&self, key: Key) -> BoxFuture<'_, Result<Seen>> {
        Box::pin(async move {
            let mut told = self.subscribe(key);
            let ended =
                |_| Error::new(ErrorKind::Unavailable, "the session that waited for the lock has ended");
            match *told.wait_for(Option::is_some).await.map_err(ended)? {
                Some(seen @ (Seen::Free | Seen::Freed)) => Ok(seen),
                _ => Err(Error::new(ErrorKind::Unavailable, "no session could wait for the lock")),
            }
        })
    }

    fn subscribe(&self, key: Key) -> watch::Receiver<Option<Seen>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = waiting.get(&key.text) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(None);
        waiting.insert(key.text.clone(), sender.clone());
        let (sessions, rt, all) = (Arc::clone(&self.sessions), self.rt.clone(), Arc::clone(&self.waiting));
        self.rt.spawn("advisory-watch", async move {
            let seen = wait(&sessions, &rt, &key, &sender).await;
            // Whoever comes now waits anew.
            all.lock().unwrap_or_else(PoisonError::into_inner).remove(&key.text);
            if let Err(error) = &seen {
                tracing::debug!(%error, "nobody waits for a session lock now; timers go on");
            }
            sender.send_replace(Some(seen.unwrap_or(Seen::Failed)));
        });
        receiver
    }
}

async fn wait(
    sessions: &Arc<Pool>,
    rt: &Runtime,
    key: &Key,
    sender: &watch::Sender<Option<Seen>>,
) -> Result<Seen> {
    let lent = sessions.lend_now().await?;
    if !is_held(sessions, &lent, key).await? {
        lent.give_back();
        return Ok(Seen::Free);
    }
    let sql = format!("select pg_advisory_xact_lock_shared({})", key.arguments);
    {
        let mut free = std::pin::pin!(lent.client().batch_execute(&sql));
        loop {
            tokio::select! {
                biased;
                done = &mut free => {
                    done.map_err(store_error)?;
                    break;
                }
                () = rt.clock().sleep(LINGER) => {
                    if sender.receiver_count() == 0 {
                        return Err(Error::new(ErrorKind::Unavailable, "nobody waits any more"));
                    }
                }
            }
        }
    }
    lent.give_back();
    Ok(Seen::Freed)
}

/// Whether somebody has the lock alone.
async fn is_held(sessions: &Pool, lent: &Lent, key: &Key) -> Result<bool> {
    let sql = format!(
        "select exists (select from pg_locks where {LOCKS} = $1 and granted and mode = 'ExclusiveLock')"
    );
    let asked =
        async { lent.client().query_typed_one(&sql, &[(&key.text, Type::TEXT)]).await.map_err(store_error) };
    Ok(sessions.within("a look at a lock", Outcome::Unknown, asked).await?.get(0))
}
