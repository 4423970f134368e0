//! Leases that clients hold over HTTP: the store's contract, and for each grant what its holder does not see,
//! kept so that a restarted node still knows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Instant, Runtime, WallTime};
use mainstay_coordination::membership::Group;
use mainstay_coordination::{Coordinator, ErrorKind as RecipeError};
use mainstay_store::journal::Hash;
use mainstay_store::lease::{
    AcquireRequest, Acquired, Holder, LeaseInfo, Line, Released, Renewed, Since, ToldBy, Transferred,
};
use mainstay_store::{Error, ErrorKind, FencingToken, LeaseStore, PutIf, RecordStore, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::instant;
use crate::feeds::Feeds;

/// Longest name, with its namespace.
const MAX_NAME: usize = 1_024;
/// Longest lease: a longer one would outlive everybody who could end it.
const MAX_TTL: Duration = Duration::from_secs(86_400);
/// Behind the end of a holder's lease before the next look.
const BEHIND: Duration = Duration::from_millis(2);
/// After a hint that led to nothing the next one is not listened to for the first of these, doubling to the last: hints
/// may be spurious, and one's own question may cause one.
const DEAF: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));
/// How long a release is remembered, for those who repeat it.
const FORGET: Duration = Duration::from_secs(600);
/// A grant is remembered for this many times its ttl after it was taken or renewed: what is neither renewed nor
/// released is forgotten, so that names leave nothing behind.
const KEEP: u32 = 4;
/// The namespace of what is held over HTTP: that of the commands without `--namespace`.
pub(crate) const NAMESPACE: &str = "default";
/// Where grants are kept.
const GRANTS: &str = "http-lease/";
/// Where it is kept how far requests of one key have come.
const ROUNDS: &str = "http-lease-key/";

/// Who asks for what.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// With its namespace.
    pub(crate) name: String,
    pub(crate) owner: String,
    pub(crate) op_id: String,
    /// The key under which others may ask for the same: repetitions of one request.
    pub(crate) key: Option<Hash>,
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
    /// When this was written, in milliseconds since the epoch by the clock of the node that did.
    #[serde(default)]
    at_ms: i64,
    /// What its release was answered: whether it was held until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    released: Option<bool>,
}

/// How far the requests of one key have come. Whoever answers one and whoever cleans up after one that went away agree
/// here, so that nothing is released that a repetition was told it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Round {
    /// Which operation is meant: the ones before were given up.
    n: u32,
    /// Somebody was answered.
    told: bool,
}

/// The same as it is kept.
#[derive(Serialize, Deserialize)]
struct KeptRound {
    n: u32,
    told: bool,
    /// What is asked for under the key, by its operation.
    request: String,
}

impl Round {
    fn op_id(self, ask: &Ask) -> String {
        if self.n == 0 { ask.op_id.clone() } else { format!("{}/{}", ask.op_id, self.n) }
    }
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
        since: Option<Since>,
    },
    /// The token is not that of the holder.
    Gone,
    /// The key of the request is that of another one.
    Reused,
    /// It was granted, but so late that its time was over; it was given back.
    Late,
    /// The request cannot be meant.
    Bad(String),
    Store(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        if error.kind() == ErrorKind::ApiMisuse { Self::Bad(error.to_string()) } else { Self::Store(error) }
    }
}

impl From<mainstay_coordination::Error> for Refused {
    fn from(error: mainstay_coordination::Error) -> Self {
        match error.kind() {
            RecipeError::ApiMisuse => Self::Bad(error.to_string()),
            RecipeError::Lost(_) => Self::Gone,
            RecipeError::Unsupported => Self::Store(Error::new(ErrorKind::Unsupported, error.to_string())),
            RecipeError::Store(kind) => {
                Self::Store(Error::new(*kind, error.to_string()).with_outcome(error.outcome()))
            }
            _ => Self::Store(
                Error::new(ErrorKind::Unavailable, error.to_string()).with_outcome(error.outcome()),
            ),
        }
    }
}

/// How often something happened since this node started.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What became of requests for leases since this node started.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) granted: Count,
    pub(crate) held: Count,
    pub(crate) late: Count,
    /// Requests that cannot be meant.
    pub(crate) refused: Count,
    /// Requests that the store could not answer.
    pub(crate) failed: Count,
    pub(crate) renewed: Count,
    /// Renewals that came too late.
    pub(crate) lost: Count,
    pub(crate) released: Count,
    pub(crate) broken: Count,
    pub(crate) handed_on: Count,
}

impl Tally {
    fn of(&self, refused: &Refused) -> &Count {
        match refused {
            Refused::Held { .. } => &self.held,
            Refused::Gone => &self.lost,
            Refused::Late => &self.late,
            Refused::Bad(_) | Refused::Reused => &self.refused,
            Refused::Store(_) => &self.failed,
        }
    }
}

/// The leases of this node.
#[derive(Debug)]
pub(crate) struct Desk {
    store: Arc<dyn LeaseStore>,
    grants: Arc<dyn RecordStore>,
    coordinator: Coordinator,
    feeds: Feeds,
    rt: Runtime,
    tally: Tally,
    /// Whether the store keeps a line.
    lines: bool,
}

/// How long hints are not listened to after so many in a row that led to nothing.
pub(crate) fn deaf(vain: u32) -> Duration {
    match vain {
        0 => Duration::ZERO,
        n => DEAF.0.saturating_mul(1_u32 << (n - 1).min(8)).min(DEAF.1),
    }
}

/// The time that is left, as it is told. A key that somebody else made without an end has none.
pub(crate) fn left(left: Duration) -> Option<Duration> {
    (left != Duration::MAX).then_some(left)
}

/// What is told of a holder, with since when it is one: null where nobody wrote that down.
pub(crate) fn with_since(mut told: Value, holder: &Holder) -> Value {
    told["since"] = holder.since.map_or(Value::Null, |s| instant(s.at).into());
    told["since_by"] = holder.since.map_or(Value::Null, |s| calendar(s.by).into());
    told
}

/// Whose calendar it was.
pub(crate) fn calendar(by: ToldBy) -> &'static str {
    match by {
        ToldBy::Holder => "holder",
        ToldBy::Store => "store",
    }
}

/// How long the record of a grant stays unless it is renewed.
fn keep_for(ttl: Duration) -> Duration {
    ttl.saturating_mul(KEEP).max(FORGET)
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
        let builder = Coordinator::builder(Arc::clone(&store), rt.clone()).records(Arc::clone(&grants));
        let coordinator = builder
            .namespace(NAMESPACE)
            .owner("http")
            .build()
            .expect("invariant: these names are fixed and good");
        let feeds = Feeds::new(Arc::clone(&store), coordinator.clone(), rt.clone());
        let lines = store.guarantees().native.contains(&"line");
        Self { store, grants, coordinator, feeds, rt, tally: Tally::default(), lines }
    }

    /// What changes, for readers.
    pub(crate) fn feeds(&self) -> &Feeds {
        &self.feeds
    }

    /// What became of requests so far.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// A group by its name.
    ///
    /// # Errors
    /// Says what a name may be.
    pub(crate) fn group(&self, name: &str) -> std::result::Result<Group, Refused> {
        let group = self.coordinator.group(name).build();
        group.map_err(|e| Refused::Bad(format!("the group's {e}")))
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
        let taken = self.try_take(ask).await;
        taken.as_ref().map_or_else(|refused| self.tally.of(refused), |_| &self.tally.granted).one();
        taken
    }

    async fn try_take(self: &Arc<Self>, ask: &Ask) -> std::result::Result<Taken, Refused> {
        let guarantees = self.store.guarantees();
        let least = guarantees.min_ttl.max(Duration::from_millis(100));
        let most = guarantees.max_ttl.min(MAX_TTL);
        if ask.ttl < least || ask.ttl > most {
            let most = humantime::format_duration(most);
            return Err(Refused::Bad(format!("`ttl` is {least:?} to {most}")));
        }
        if ask.owner.is_empty() || ask.owner.len() > 255 || ask.owner.chars().any(char::is_control) {
            return Err(Refused::Bad("`owner` has 1 to 255 bytes and no control characters".to_owned()));
        }
        let clock = self.rt.clock();
        let until = clock.now().saturating_add(ask.wait);
        let line = if ask.wait.is_zero() || !self.lines { Line::Try } else { Line::Join };
        let (mut round, mut version) = self.round(ask).await?;
        let mut given_up = GivenUp { desk: Arc::clone(self), ask: None };
        let mut vain = 0_u32;
        loop {
            // Armed before the look, so that a release in between is not slept over.
            let hint = self.hint(&ask.name, vain);
            let sent = clock.now();
            let op_id = round.op_id(ask);
            let mut request = AcquireRequest::exclusive(&ask.name, &ask.owner, &op_id, ask.ttl);
            (request.line, request.note) = (line, ask.note.clone());
            given_up.ask = Some((ask.clone(), round));
            let by = match self.store.acquire(request).await? {
                Acquired::Granted(grants) => {
                    let token = grants.first().map_or(FencingToken::ZERO, |g| g.token);
                    let deadline = deadline_of(sent, ask.ttl);
                    if clock.now() >= deadline {
                        return Err(Refused::Late);
                    }
                    self.keep(ask, &op_id, token).await?;
                    if !self.tell(ask, round, version).await? {
                        // A repetition went away in the meantime: this operation is being given back.
                        given_up.ask = None;
                        (round, version) = self.round(ask).await?;
                        continue;
                    }
                    given_up.ask = None;
                    return Ok(Taken { owner: ask.owner.clone(), token, ttl: ask.ttl, deadline });
                }
                Acquired::Held { by, remaining, since } => {
                    if line == Line::Try {
                        // It stands nowhere.
                        given_up.ask = None;
                    }
                    (by, remaining, since)
                }
                Acquired::Queued { remaining, .. } => (String::new(), remaining, None),
            };
            let now = clock.now();
            if now >= until {
                return Err(self.held(ask, by).await?);
            }
            // When a lease is due, to keep the place, and after too long a silence.
            let due = by.1.map_or(Duration::MAX, |left| left.saturating_add(BEHIND));
            let look = due.min(ask.ttl / 3).min(guarantees.recheck);
            tokio::select! {
                biased;
                () = hint => vain = vain.saturating_add(1),
                () = clock.sleep_until(now.saturating_add(look).min(until)) => vain = 0,
            }
        }
    }

    /// Who is in the way; whoever stands in line was not told.
    async fn held(
        &self,
        ask: &Ask,
        (by, remaining, since): (String, Option<Duration>, Option<Since>),
    ) -> Result<Refused> {
        if !by.is_empty() {
            return Ok(Refused::Held { by, remaining, since });
        }
        let first = self.store.inspect(&ask.name).await?.holders.into_iter().next();
        Ok(match first {
            Some(Holder { owner, remaining, since, .. }) => {
                Refused::Held { by: owner, remaining: Some(remaining), since }
            }
            None => Refused::Held { by, remaining, since },
        })
    }

    /// How far the requests of this key are, and the version of that record.
    async fn round(&self, ask: &Ask) -> std::result::Result<(Round, Option<u64>), Refused> {
        let Some(key) = ask.key else { return Ok((Round::default(), None)) };
        let Some(record) = self.grants.get(&format!("{ROUNDS}{key}")).await? else {
            return Ok((Round::default(), None));
        };
        match serde_json::from_slice::<KeptRound>(&record.value) {
            Ok(kept) if kept.request != ask.op_id => Err(Refused::Reused),
            Ok(KeptRound { n, told, .. }) => Ok((Round { n, told }, Some(record.version))),
            Err(_) => Ok((Round::default(), Some(record.version))),
        }
    }

    async fn put_round(&self, ask: &Ask, round: Round, version: Option<u64>) -> Result<bool> {
        let Some(key) = ask.key else { return Ok(true) };
        let kept = KeptRound { n: round.n, told: round.told, request: ask.op_id.clone() };
        let value = serde_json::to_vec(&kept)
            .map_err(|e| Error::new(ErrorKind::Internal, format!("a round cannot be written: {e}")))?;
        let put =
            self.grants.put_if(&format!("{ROUNDS}{key}"), version, value, Some(keep_for(ask.ttl))).await?;
        Ok(matches!(put, PutIf::Stored(_)))
    }

    /// Whether this operation may be told: nobody gave it up.
    async fn tell(
        &self,
        ask: &Ask,
        round: Round,
        version: Option<u64>,
    ) -> std::result::Result<bool, Refused> {
        if ask.key.is_none() || round.told {
            return Ok(true);
        }
        if self.put_round(ask, Round { told: true, ..round }, version).await? {
            return Ok(true);
        }
        // Another repetition may have been told of the same operation.
        Ok(self.round(ask).await?.0 == Round { told: true, ..round })
    }

    /// Whether this operation is given up: nobody was told of it, and nobody will be.
    async fn give_up(&self, ask: &Ask, round: Round) -> Result<bool> {
        if ask.key.is_none() {
            return Ok(true);
        }
        loop {
            let (now, version) = match self.round(ask).await {
                Ok(found) => found,
                // The key is another request's, which has an operation of its own.
                Err(Refused::Reused) => return Ok(true),
                Err(Refused::Store(error)) => return Err(error),
                Err(_) => return Ok(false),
            };
            if now != round || now.told {
                return Ok(false);
            }
            if self.put_round(ask, Round { n: round.n.saturating_add(1), told: false }, version).await? {
                return Ok(true);
            }
        }
    }

    async fn keep(&self, ask: &Ask, op_id: &str, token: FencingToken) -> Result<()> {
        let (op_id, owner) = (op_id.to_owned(), ask.owner.clone());
        let at_ms = self.rt.clock().wall().unix_millis();
        let kept = Kept { token: token.get(), op_id, owner, ttl_ns: nanos(ask.ttl), at_ms, released: None };
        let value = written(&kept)?;
        let key = format!("{GRANTS}{}", ask.name);
        let mut expected = self.grants.get(&key).await?.map(|r| r.version);
        // Others may write the same key: a later holder, whose token is higher and stays.
        loop {
            match self.grants.put_if(&key, expected, value.clone(), Some(keep_for(ask.ttl))).await? {
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

    /// What stands behind `token`, and the version of its record.
    async fn kept(&self, name: &str, token: FencingToken) -> std::result::Result<(Kept, u64), Refused> {
        let record = self.grants.get(&format!("{GRANTS}{name}")).await?;
        let kept = record.and_then(|r| Some((read(&r.value)?, r.version)));
        kept.filter(|(k, _)| k.token == token.get()).ok_or(Refused::Gone)
    }

    /// The owner whose grant was kept last, with its token.
    pub(crate) async fn last(&self, name: &str) -> Result<Option<(String, FencingToken)>> {
        let record = self.grants.get(&format!("{GRANTS}{name}")).await?;
        Ok(record.and_then(|r| read(&r.value)).map(|k| (k.owner, FencingToken::new(k.token))))
    }

    /// Renews the lease that `token` holds.
    pub(crate) async fn renew(&self, name: &str, token: FencingToken) -> std::result::Result<Taken, Refused> {
        let renewed = self.try_renew(name, token).await;
        renewed.as_ref().map_or_else(|refused| self.tally.of(refused), |_| &self.tally.renewed).one();
        renewed
    }

    async fn try_renew(&self, name: &str, token: FencingToken) -> std::result::Result<Taken, Refused> {
        let (kept, version) = self.kept(name, token).await?;
        let sent = self.rt.clock().now();
        let renewed = match self.store.renew(&kept.op_id).await? {
            Renewed::Renewed(_) => true,
            Renewed::Lost => self.take_up(name, &kept).await?,
            Renewed::Broken | Renewed::Closed => false,
        };
        if !renewed {
            return Err(Refused::Gone);
        }
        let ttl = Duration::from_nanos(kept.ttl_ns);
        self.keep_on(name, &kept, version).await?;
        Ok(Taken { owner: kept.owner, token, ttl, deadline: deadline_of(sent, ttl) })
    }

    /// Goes on with a lease of before a restart, on a store that knows of an operation only what this process told it:
    /// asked for again as the same operation, what is still held is held on under the same token, for its ttl from now,
    /// and with its note.
    async fn take_up(&self, name: &str, kept: &Kept) -> Result<bool> {
        let token = FencingToken::new(kept.token);
        let there = self.store.inspect(name).await?;
        if !there.holders.iter().any(|h| h.token == token) {
            return Ok(false);
        }
        let ttl = Duration::from_nanos(kept.ttl_ns);
        let mut again = AcquireRequest::exclusive(name, &kept.owner, &kept.op_id, ttl);
        again.note = there.note;
        match self.store.acquire(again).await? {
            Acquired::Granted(grants) if grants.first().is_some_and(|g| g.token == token) => Ok(true),
            Acquired::Granted(_) => {
                // It ended in between, or a majority counts it anew: nobody asked for another one.
                self.store.release(&kept.op_id).await?;
                Ok(false)
            }
            Acquired::Held { .. } | Acquired::Queued { .. } => Ok(false),
        }
    }

    /// Remembers a renewed grant for longer. Most renewals write nothing: half of the time is left.
    async fn keep_on(&self, name: &str, kept: &Kept, version: u64) -> Result<()> {
        let (ttl, now) = (Duration::from_nanos(kept.ttl_ns), self.rt.clock().wall());
        let age = now.saturating_duration_since(WallTime::from_unix_millis(kept.at_ms));
        let set_back = now.unix_millis() < kept.at_ms;
        if age < keep_for(ttl) / 2 && !set_back {
            return Ok(());
        }
        let kept = Kept { at_ms: now.unix_millis(), ..kept.clone() };
        // Somebody else renewed it at the same time, or it changed hands: what is there is newer.
        let key = format!("{GRANTS}{name}");
        self.grants.put_if(&key, Some(version), written(&kept)?, Some(keep_for(ttl))).await.map(drop)
    }

    /// Whether `token` is that of a grant which was not forgotten.
    pub(crate) async fn holds(&self, name: &str, token: FencingToken) -> std::result::Result<(), Refused> {
        self.kept(name, token).await.map(drop)
    }

    /// Gives back the lease that `token` holds, in the background. What cannot be given back ends with its ttl.
    pub(crate) fn give_back_later(self: &Arc<Self>, name: &str, token: FencingToken) {
        let (desk, name) = (Arc::clone(self), name.to_owned());
        self.rt.spawn("lease-let-go", async move {
            if let Err(refused) = desk.give_back(&name, token).await {
                tracing::debug!(?refused, "a lease was not given back and ends by itself");
            }
        });
    }

    /// Gives back the lease that `token` holds.
    pub(crate) async fn give_back(
        &self,
        name: &str,
        token: FencingToken,
    ) -> std::result::Result<Released, Refused> {
        let (kept, version) = self.kept(name, token).await?;
        let told = |clean| if clean { Released::Clean } else { Released::AlreadyGone };
        if let Some(clean) = kept.released {
            return Ok(told(clean));
        }
        let mut released = self.store.release(&kept.op_id).await?;
        if released == Released::AlreadyGone && self.take_up(name, &kept).await? {
            released = self.store.release(&kept.op_id).await?;
        }
        // A repetition is answered the same for a while; then the name leaves nothing behind. What came in between stays.
        let kept = Kept { released: Some(released == Released::Clean), ..kept };
        self.grants.put_if(&format!("{GRANTS}{name}"), Some(version), written(&kept)?, Some(FORGET)).await?;
        self.tally.released.one();
        Ok(released)
    }

    /// Takes the lease away from whoever holds it; the burned token.
    pub(crate) async fn force(&self, name: &str) -> Result<FencingToken> {
        let burned = self.store.break_lease(name).await?;
        self.tally.broken.one();
        Ok(burned)
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

    /// Hands the lease to a candidate in line: that of the holder who shows its token, which the store compares as it
    /// moves the lease, or of whoever holds it. Where it did not move the holder stays.
    pub(crate) async fn transfer(
        &self,
        name: &str,
        shown: Option<FencingToken>,
        to: &str,
    ) -> std::result::Result<Transferred, Refused> {
        let token = match shown {
            Some(token) => token,
            None => self.holder(name).await?.ok_or(Refused::Gone)?,
        };
        let moved = self.store.transfer(name, token, to).await?;
        if moved == Transferred::Moved {
            self.tally.handed_on.one();
        } else if shown.is_some() && self.holder(name).await? != shown {
            return Err(Refused::Gone);
        }
        Ok(moved)
    }

    /// The token of who holds the lease now.
    async fn holder(&self, name: &str) -> Result<Option<FencingToken>> {
        Ok(self.store.inspect(name).await?.holders.first().map(|h| h.token))
    }

    pub(crate) async fn inspect(&self, name: &str) -> Result<LeaseInfo> {
        self.store.inspect(name).await
    }

    pub(crate) async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<LeaseInfo>> {
        self.store.list(prefix, limit).await
    }

    /// Gives back what a request may have got, unless a repetition of it was told that it has it.
    async fn clean(&self, ask: &Ask, round: Round) -> Result<()> {
        if !self.give_up(ask, round).await? {
            return Ok(());
        }
        let op_id = round.op_id(ask);
        if self.lines {
            self.store.leave(&op_id).await?;
        }
        self.store.release(&op_id).await.map(|_| ())
    }

    /// Resolves when `name` may have changed, armed from now on. Never, where the store cannot say. After so many `vain`
    /// hints in a row it comes a little later.
    pub(crate) fn hint(&self, name: &str, vain: u32) -> impl Future<Output = ()> + use<'_> {
        let hint = self.store.watch(name);
        async move {
            if vain > 0 {
                self.rt.clock().sleep(deaf(vain)).await;
            }
            if hint.await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

fn written(kept: &Kept) -> Result<Vec<u8>> {
    serde_json::to_vec(kept)
        .map_err(|e| Error::new(ErrorKind::Internal, format!("a grant cannot be written: {e}")))
}

fn read(value: &[u8]) -> Option<Kept> {
    serde_json::from_slice(value).ok()
}

/// Cleans up after a request whose client went away, or that was refused.
struct GivenUp {
    desk: Arc<Desk>,
    ask: Option<(Ask, Round)>,
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        let Some((ask, round)) = self.ask.take() else { return };
        let desk = Arc::clone(&self.desk);
        self.desk.rt.spawn("lease-given-up", async move {
            // What cannot be given back ends with its ttl.
            if let Err(error) = desk.clean(&ask, round).await {
                tracing::warn!(%error, "what a request may have been granted was not given back");
            }
        });
    }
}

#[cfg(test)]
mod tests;
