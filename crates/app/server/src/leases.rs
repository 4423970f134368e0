//! Leases that clients hold over HTTP: the store's contract, and for each grant what its holder does not see,
//! kept so that a restarted node still knows it.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Instant, Runtime};
use mainstay_store::lease::{AcquireRequest, Acquired, LeaseInfo, Line, Released, Renewed, Transferred};
use mainstay_store::{Error, ErrorKind, FencingToken, LeaseStore, PutIf, RecordStore, Result};
use serde::{Deserialize, Serialize};

/// Longest name, with its namespace.
const MAX_NAME: usize = 1_024;
/// Longest lease: a longer one would outlive everybody who could end it.
const MAX_TTL: Duration = Duration::from_secs(86_400);
/// Between two looks of a waiter that gets no hint.
const LOOK: Duration = Duration::from_secs(1);
/// Behind the end of a holder's lease before the next look.
const BEHIND: Duration = Duration::from_millis(2);
/// Where grants are kept.
const GRANTS: &str = "http-lease/";

/// Who asks for what.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// With its namespace.
    pub(crate) name: String,
    pub(crate) owner: String,
    pub(crate) op_id: String,
    pub(crate) ttl: Duration,
    pub(crate) note: String,
    pub(crate) wait: Duration,
}

/// What the holder of a token does not see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    token: u64,
    op_id: String,
    owner: String,
    ttl_ns: u64,
}

/// A held lease.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) owner: String,
    pub(crate) token: FencingToken,
    pub(crate) ttl: Duration,
    /// When the lease must be regarded as gone, unless it is renewed.
    pub(crate) deadline: Instant,
}

/// Why there is no lease.
#[derive(Debug)]
pub(crate) enum Refused {
    Held {
        by: String,
        remaining: Option<Duration>,
    },
    /// The token is not that of the holder.
    Gone,
    /// The request cannot be meant.
    Bad(String),
    Store(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        if error.kind() == ErrorKind::ApiMisuse { Self::Bad(error.to_string()) } else { Self::Store(error) }
    }
}

/// The leases of this node.
#[derive(Debug)]
pub(crate) struct Desk {
    store: Arc<dyn LeaseStore>,
    grants: Arc<dyn RecordStore>,
    rt: Runtime,
}

/// When a lease asked for at `sent` must be regarded as gone by its holder.
fn deadline_of(sent: Instant, ttl: Duration) -> Instant {
    sent.saturating_add(ttl.saturating_sub((ttl / 100).max(Duration::from_millis(10))))
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl Desk {
    pub(crate) fn new(store: Arc<dyn LeaseStore>, grants: Arc<dyn RecordStore>, rt: Runtime) -> Self {
        Self { store, grants, rt }
    }

    /// A name of the store.
    ///
    /// # Errors
    /// Says what a name may be.
    pub(crate) fn name(namespace: &str, name: &str) -> std::result::Result<String, Refused> {
        let full = format!("{namespace}/{name}");
        if name.is_empty() || full.len() > MAX_NAME || full.chars().any(char::is_control) {
            let why = "a name has 1 to 1,024 bytes with its namespace and no control characters";
            return Err(Refused::Bad(why.to_owned()));
        }
        Ok(full)
    }

    /// Takes the lease, standing in line for as long as the request allows.
    ///
    /// # Cancel safety
    /// A dropped future leaves the line and gives back what it may have got, in the background.
    pub(crate) async fn take(self: &Arc<Self>, ask: &Ask) -> std::result::Result<Taken, Refused> {
        let least = self.store.guarantees().min_ttl.max(Duration::from_millis(100));
        if ask.ttl < least || ask.ttl > MAX_TTL {
            return Err(Refused::Bad(format!("`ttl` is {least:?} to 24 hours")));
        }
        if ask.owner.is_empty() || ask.owner.len() > 255 || ask.owner.chars().any(char::is_control) {
            return Err(Refused::Bad("`owner` has 1 to 255 bytes and no control characters".to_owned()));
        }
        let clock = self.rt.clock();
        let until = clock.now().saturating_add(ask.wait);
        let line = if ask.wait.is_zero() { Line::Try } else { Line::Join };
        let mut request = AcquireRequest::exclusive(&ask.name, &ask.owner, &ask.op_id, ask.ttl);
        (request.line, request.note) = (line, ask.note.clone());
        let mut given_up =
            GivenUp { desk: Arc::clone(self), ask: Some((ask.name.clone(), ask.op_id.clone())) };
        loop {
            // Armed before the look, so that a release in between is not slept over.
            let hint = self.store.watch(&ask.name);
            let sent = clock.now();
            let by = match self.store.acquire(request.clone()).await? {
                Acquired::Granted(grants) => {
                    let token = grants.first().map_or(FencingToken::ZERO, |g| g.token);
                    let deadline = deadline_of(sent, ask.ttl);
                    // One that came too late is given back by the guard and asked for again.
                    if clock.now() >= deadline {
                        return Err(Refused::Gone);
                    }
                    self.keep(ask, token).await?;
                    given_up.ask = None;
                    return Ok(Taken { owner: ask.owner.clone(), token, ttl: ask.ttl, deadline });
                }
                Acquired::Held { by, remaining } => (by, remaining),
                Acquired::Queued { .. } => {
                    let info = self.store.inspect(&ask.name).await?;
                    let first = info.holders.into_iter().next();
                    first.map_or((String::new(), None), |(owner, _, left)| (owner, Some(left)))
                }
            };
            let now = clock.now();
            if now >= until {
                return Err(Refused::Held { by: by.0, remaining: by.1 });
            }
            let look = by.1.map_or(LOOK, |left| left.saturating_add(BEHIND)).min(LOOK);
            let hint = async {
                if hint.await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                biased;
                () = hint => {}
                () = clock.sleep_until(now.saturating_add(look).min(until)) => {}
            }
        }
    }

    async fn keep(&self, ask: &Ask, token: FencingToken) -> Result<()> {
        let (op_id, owner) = (ask.op_id.clone(), ask.owner.clone());
        let kept = Kept { token: token.get(), op_id, owner, ttl_ns: nanos(ask.ttl) };
        let value = serde_json::to_vec(&kept)
            .map_err(|e| Error::new(ErrorKind::Internal, format!("a grant cannot be written: {e}")))?;
        let key = format!("{GRANTS}{}", ask.name);
        let mut expected = self.grants.get(&key).await?.map(|r| r.version);
        // Others may write the same key: a later holder, whose token is higher and stays.
        loop {
            match self.grants.put_if(&key, expected, value.clone(), None).await? {
                PutIf::Stored(_) => return Ok(()),
                PutIf::Conflict(None) => expected = None,
                PutIf::Conflict(Some(there)) => {
                    if read(&there.value).is_some_and(|k| k.token > kept.token) {
                        return Ok(());
                    }
                    expected = Some(there.version);
                }
            }
        }
    }

    async fn kept(&self, name: &str, token: FencingToken) -> std::result::Result<Kept, Refused> {
        let record = self.grants.get(&format!("{GRANTS}{name}")).await?;
        let kept = record.and_then(|r| read(&r.value));
        kept.filter(|k| k.token == token.get()).ok_or(Refused::Gone)
    }

    /// The owner whose grant was kept last, with its token.
    pub(crate) async fn last(&self, name: &str) -> Result<Option<(String, FencingToken)>> {
        let record = self.grants.get(&format!("{GRANTS}{name}")).await?;
        Ok(record.and_then(|r| read(&r.value)).map(|k| (k.owner, FencingToken::new(k.token))))
    }

    /// Renews the lease that `token` holds.
    pub(crate) async fn renew(&self, name: &str, token: FencingToken) -> std::result::Result<Taken, Refused> {
        let kept = self.kept(name, token).await?;
        let sent = self.rt.clock().now();
        match self.store.renew(&kept.op_id).await? {
            Renewed::Lost => Err(Refused::Gone),
            Renewed::Renewed(_) => {
                let ttl = Duration::from_nanos(kept.ttl_ns);
                Ok(Taken { owner: kept.owner, token, ttl, deadline: deadline_of(sent, ttl) })
            }
        }
    }

    /// Gives back the lease that `token` holds.
    pub(crate) async fn give_back(
        &self,
        name: &str,
        token: FencingToken,
    ) -> std::result::Result<Released, Refused> {
        let kept = self.kept(name, token).await?;
        Ok(self.store.release(&kept.op_id).await?)
    }

    /// Takes the lease away from whoever holds it; the burned token.
    pub(crate) async fn force(&self, name: &str) -> Result<FencingToken> {
        self.store.break_lease(name).await
    }

    /// Attaches a value to the lease that `token` holds.
    pub(crate) async fn annotate(
        &self,
        name: &str,
        token: FencingToken,
        value: &str,
    ) -> std::result::Result<(), Refused> {
        let kept = self.store.annotate(name, token, value.as_bytes().to_vec()).await?;
        if kept { Ok(()) } else { Err(Refused::Gone) }
    }

    /// Hands the lease to a candidate in line.
    pub(crate) async fn transfer(&self, name: &str, to: &str) -> std::result::Result<bool, Refused> {
        let info = self.store.inspect(name).await?;
        let Some((_, token, _)) = info.holders.first() else { return Err(Refused::Gone) };
        Ok(self.store.transfer(name, *token, to).await? == Transferred::Moved)
    }

    pub(crate) async fn inspect(&self, name: &str) -> Result<LeaseInfo> {
        self.store.inspect(name).await
    }

    pub(crate) async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<LeaseInfo>> {
        self.store.list(prefix, limit).await
    }

    async fn clean(&self, name: &str, op_id: &str) -> Result<()> {
        self.store.leave(op_id).await?;
        let record = self.grants.get(&format!("{GRANTS}{name}")).await?;
        // A repetition went away, the grant of the first request was answered.
        if record.and_then(|r| read(&r.value)).is_some_and(|k| k.op_id == op_id) {
            return Ok(());
        }
        self.store.release(op_id).await.map(|_| ())
    }

    /// Waits until the store hints at a change of `name`, or until `until`.
    pub(crate) async fn changed(&self, name: &str, until: Instant) {
        let hint = async {
            if self.store.watch(name).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = hint => {}
            () = self.rt.clock().sleep_until(until) => {}
        }
    }
}

fn read(value: &[u8]) -> Option<Kept> {
    serde_json::from_slice(value).ok()
}

/// Cleans up after a request whose client went away, or that was refused.
struct GivenUp {
    desk: Arc<Desk>,
    ask: Option<(String, String)>,
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        let Some((name, op_id)) = self.ask.take() else { return };
        let desk = Arc::clone(&self.desk);
        self.desk.rt.spawn("lease-given-up", async move {
            // What cannot be given back ends with its ttl.
            if let Err(error) = desk.clean(&name, &op_id).await {
                tracing::warn!(%error, "what a request may have been granted was not given back");
            }
        });
    }
}
