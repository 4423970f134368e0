//! One session: what it knows, and its reads and writes.

use std::fmt;
use std::time::Duration;

use mainstay_clock::Deadline;
use mainstay_store::ReplicatedStore;
use mainstay_store::replicated::{Judgment, Mark, Observed, Position, Role};

use super::call::CallError;
use super::config::{Consistency, Guarantees, SessionEvent, cap};
use super::router::{Router, within};
#[cfg(feature = "tokens")]
use super::seal::TokenKeys;
use super::state::{
    Rule, Seen, Step, Verdict, Why, cut_off, decide, has, settle, unprovable, unsettled, verdict, worst,
    worst_on_primary,
};
#[cfg(feature = "tokens")]
use super::token::Refusal;
use super::token::{SessionToken, rise};
use crate::error::{Error, ErrorKind, Result};

/// What one user did, and must find again.
///
/// Guarantees, as far as they are asked for: the four of [`Guarantees`], over replicas that lag and through failovers;
/// what a failover lost is an error before any closure runs, never an old answer. Not guaranteed: that what another
/// session wrote is seen, and anything about caches in front. One writer per handle; what two handles know is joined
/// by [`merge`](Session::merge).
pub struct Session<C> {
    router: Router<C>,
    guarantees: Guarantees,
    deadline: Deadline,
    eager: bool,
    writes: Vec<Mark>,
    reads: Vec<Mark>,
    /// What was read and has no position yet.
    seen: Vec<Seen>,
    /// What was written, acknowledged, and has no position yet.
    written: Vec<Seen>,
    /// A write may have happened whose position nobody told, or a token could not be read: only a position that is
    /// taken at the primary afterwards has it.
    owed: bool,
    refused: bool,
    /// Where to go on after a loss is accepted.
    present: Option<Mark>,
}

impl<C> fmt::Debug for Session<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("writes", &self.writes)
            .field("reads", &self.reads)
            .finish_non_exhaustive()
    }
}

/// Where a read would go, by what the router knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Plan<'a> {
    /// To this replica, which has all that was asked for.
    Replica(&'a str),
    /// To this replica once it has caught up, and to the primary if that takes too long.
    WaitFor(&'a str),
    /// To the primary.
    Primary(Why),
    /// Nowhere: what the session knows is not in the store's history, by the newest sample of the primary.
    Refused(ErrorKind),
    /// What was read before has no position yet: whoever answers must be asked for it first.
    Unresolved,
}

/// A connection that may answer.
struct Place<C> {
    node: usize,
    connection: C,
    incarnation: u64,
    timeline: String,
}

/// Whether what was read before must be found again.
fn monotonic(how: &Consistency) -> bool {
    matches!(how, Consistency::Session(g) if g.contains(Guarantees::MONOTONIC_READS))
}

/// Whether what was written before must be found again. The primary, when it is asked for, says what was lost, too.
fn own_writes(how: &Consistency) -> bool {
    match how {
        Consistency::Session(g) => g.contains(Guarantees::READ_YOUR_WRITES),
        _ => *how == Consistency::Primary,
    }
}

/// Why the primary cannot answer.
enum Denied {
    Foreign,
    Lost { since: Option<Position>, present: Mark },
    Other(Error),
    Unproven { present: Mark },
}

impl<C: ReplicatedStore + 'static> Session<C> {
    pub(crate) fn new(router: Router<C>) -> Self {
        Self {
            router,
            guarantees: Guarantees::ALL,
            deadline: Deadline::default(),
            eager: false,
            writes: Vec::new(),
            reads: Vec::new(),
            seen: Vec::new(),
            written: Vec::new(),
            owed: false,
            refused: false,
            present: None,
        }
    }

    /// Other guarantees than all four.
    #[must_use]
    pub fn guarantees(mut self, guarantees: Guarantees) -> Self {
        self.guarantees = guarantees;
        self
    }

    /// No wait and no call to a store outlives `deadline`. The closures' own work is theirs.
    #[must_use]
    pub fn within(mut self, deadline: Deadline) -> Self {
        self.deadline = deadline;
        self
    }

    /// Asks for the position of each read at once, on its connection: a round trip after each read, and
    /// [`token`](Session::token) then needs none.
    #[must_use]
    pub fn eager(mut self) -> Self {
        self.eager = true;
        self
    }

    /// Goes on from a token.
    ///
    /// # Errors
    /// [`ErrorKind::Incomparable`], as for [`SessionToken::merge`].
    pub fn resume(mut self, token: &SessionToken) -> Result<Self> {
        self.merge(token)?;
        Ok(self)
    }

    /// Goes on from the text of a token. What cannot be read makes every read of this session one of the primary, and
    /// is told to the router's listener; it never means "any replica".
    #[cfg(feature = "tokens")]
    #[must_use]
    pub fn resume_sealed(mut self, text: &str, keys: &TokenKeys) -> Self {
        self.take_sealed(text, keys);
        self
    }

    /// The time by the router's clock.
    #[cfg(feature = "tokens")]
    pub(super) fn now(&self) -> mainstay_clock::WallTime {
        self.router.clock().wall()
    }

    #[cfg(feature = "tokens")]
    pub(super) fn take_sealed(&mut self, text: &str, keys: &TokenKeys) {
        let now = self.now();
        let opened = keys.open(text, now).and_then(|t| self.merge(&t).map_err(|_| Refusal::Malformed));
        if let Err(refusal) = opened {
            (self.refused, self.owed) = (true, true);
            self.router.emit(|| SessionEvent::TokenRefused { refusal });
        }
    }

    /// Joins what another handle of the same user knows.
    ///
    /// # Errors
    /// [`ErrorKind::Incomparable`], as for [`SessionToken::merge`]; nothing is joined then.
    pub fn merge(&mut self, token: &SessionToken) -> Result<()> {
        let held = |floors: &Vec<Mark>| SessionToken { floors: floors.clone(), owed: false };
        let (mut writes, mut reads) = (held(&self.writes), held(&self.reads));
        writes.merge(token)?;
        reads.merge(token)?;
        (self.writes, self.reads) = (writes.floors, reads.floors);
        self.owed |= token.owed;
        Ok(())
    }

    /// What this session must find again, for whoever goes on with it. Asks a store when a read has no position yet.
    ///
    /// # Errors
    /// [`ErrorKind::Unproven`] when the node that was read from is gone together with its history, and
    /// [`ErrorKind::Unavailable`] when nobody can be asked.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing that the session promises.
    pub async fn token(&mut self) -> Result<SessionToken> {
        self.learn();
        let reads = self.guarantees.any_of(Guarantees::MONOTONIC_READS | Guarantees::WRITES_FOLLOW_READS);
        let writes = self.guarantees.any_of(Guarantees::READ_YOUR_WRITES | Guarantees::MONOTONIC_WRITES);
        if reads {
            self.resolve(None).await?;
        }
        // Also what a refused token said is handed on as a debt, until a position of the primary has it.
        let mut token = SessionToken { floors: Vec::new(), owed: self.owed || !self.written.is_empty() };
        for (floors, wanted) in [(&self.writes, writes), (&self.reads, reads)] {
            if wanted {
                token.merge(&SessionToken { floors: floors.clone(), owed: false })?;
            }
        }
        if let Some(primary) = self.router.view().leader() {
            settle(&mut token.floors, &primary.observed);
        }
        Ok(token)
    }

    /// Goes on with the present history after [`ErrorKind::WriteLost`] or [`ErrorKind::Unproven`]: whatever the
    /// primary has now is what must be found again. Says whether there was anything to accept.
    pub fn accept_loss(&mut self) -> bool {
        let Some(present) = self.present.take() else { return false };
        (self.writes, self.reads) = (vec![present.clone()], vec![present]);
        self.seen.clear();
        self.written.clear();
        true
    }

    /// Reads under the session's guarantees, from a replica if one has what they ask for.
    ///
    /// The closure gets a connection and must only read; on a server of SQL in a read-only transaction that begins
    /// inside the closure.
    ///
    /// # Errors
    /// [`CallError::Refused`] with [`ErrorKind::WriteLost`], [`ErrorKind::ForeignToken`], [`ErrorKind::Unproven`] or
    /// [`ErrorKind::Unavailable`]; [`CallError::Inner`] when the closure fails.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the session as it was; the connection is dropped with it.
    pub async fn read<T, E, F>(&mut self, f: F) -> std::result::Result<T, CallError<E>>
    where
        F: AsyncFnOnce(&mut C) -> std::result::Result<T, E>,
    {
        self.read_at(&Consistency::Session(self.guarantees), f).await
    }

    /// Reads with another consistency than the session's. What was read counts for later reads all the same.
    ///
    /// # Errors
    /// As for [`read`](Session::read).
    ///
    /// # Cancel safety
    /// As for [`read`](Session::read).
    pub async fn read_at<T, E, F>(&mut self, how: &Consistency, f: F) -> std::result::Result<T, CallError<E>>
    where
        F: AsyncFnOnce(&mut C) -> std::result::Result<T, E>,
    {
        self.present = None;
        self.learn();
        let mut place = self.place(how).await?;
        let out = f(&mut place.connection).await;
        if place.connection.incarnation().is_some_and(|now| now != place.incarnation) {
            let context =
                format!("node `{}` was restarted under the read", self.router.node_name(place.node));
            return Err(Error::unavailable(context, None).into());
        }
        let Place { node, incarnation, timeline, connection } = place;
        self.seen.retain(|s| (s.node, s.incarnation) != (node, incarnation));
        if let Some(mark) = connection.read_position() {
            // At or past what earlier reads in this life saw, too.
            rise(&mut self.reads, &mark);
            return out.map_err(CallError::Inner);
        }
        let seen = self.until_now(node, incarnation, timeline, false);
        self.seen.push(seen);
        if self.eager {
            // Failing here costs nothing yet: the read stays without a position until somebody needs it.
            let _ = self.router.observe(node, &connection, self.limit()).await;
            self.learn();
        }
        out.map_err(CallError::Inner)
    }

    /// Where a read of `how` would go now. Nobody is asked and nothing is allocated; the next read may go elsewhere, because
    /// samples change and reads take turns over replicas that are equally good.
    ///
    /// ```
    /// use mainstay_clock::SystemClock;
    /// use mainstay_consistency::session::{Consistency, Plan, Router, Why};
    /// use mainstay_store::memory::MemoryCluster;
    /// use std::sync::Arc;
    ///
    /// # let rt = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    /// # rt.block_on(async {
    /// let clock = Arc::new(SystemClock::new());
    /// let db = MemoryCluster::new(clock.clone(), "orders", 1);
    /// let (primary, replica) = (db.node(0)?, db.node(1)?);
    /// let router = Router::builder("orders", clock).shared("a", primary).shared("b", replica).build()?;
    /// let session = router.session();
    /// assert_eq!(session.plan(&Consistency::MinLatency), Plan::Primary(Why::NoReplica));
    /// router.poll_once().await;
    /// assert_eq!(session.plan(&Consistency::MinLatency), Plan::Replica("b"));
    /// assert_eq!(session.plan(&Consistency::Primary), Plan::Primary(Why::Asked));
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn plan(&self, how: &Consistency) -> Plan<'_> {
        if let Some(why) = self.to_primary(how) {
            return Plan::Primary(why);
        }
        let mut open = false;
        match self.look(how, &mut open) {
            _ if open => Plan::Unresolved,
            Step::Read(node) => Plan::Replica(self.router.name_of(node)),
            Step::Wait(node) => Plan::WaitFor(self.router.name_of(node)),
            Step::Primary(why) => Plan::Primary(why),
            Step::Foreign => Plan::Refused(ErrorKind::ForeignToken),
            Step::Lost { .. } => Plan::Refused(ErrorKind::WriteLost),
        }
    }

    /// Writes on the primary, once its history is known to contain what the guarantees ask for. The closure commits
    /// by itself; the position is taken on the same connection afterwards.
    ///
    /// # Errors
    /// As for [`read`](Session::read). After [`CallError::Inner`] it is not known whether the closure took effect: the
    /// next read goes to the primary and starts from what that has. A write that succeeded while its position could not be
    /// asked for is looked for where it happened: [`ErrorKind::Unproven`] at the next call if that history is gone.
    ///
    /// # Cancel safety
    /// Dropped before the closure runs, nothing happened; later, it may have, and the next read goes to the primary.
    pub async fn write<T, E, F>(&mut self, f: F) -> std::result::Result<T, CallError<E>>
    where
        F: AsyncFnOnce(&mut C) -> std::result::Result<T, E>,
    {
        self.present = None;
        self.learn();
        let mut place = match self.for_write().await? {
            Some(place) => place,
            None => {
                if self.guarantees.contains(Guarantees::WRITES_FOLLOW_READS) {
                    self.resolve(None).await?;
                }
                if self.guarantees.contains(Guarantees::MONOTONIC_WRITES) {
                    self.resolve_written(None).await?;
                }
                self.for_write().await?.ok_or_else(|| self.unproven())?
            }
        };
        let owed = std::mem::replace(&mut self.owed, true);
        let out = f(&mut place.connection).await.map_err(CallError::Inner)?;
        // From here on it is known where it happened: a history that does not go on from there has lost it.
        let Place { node, incarnation, timeline, connection } = place;
        let key = |s: &Seen| (s.node, s.incarnation, s.timeline.clone());
        self.written.dedup_by(|later, first| {
            let same = key(later) == key(first);
            if same {
                first.order = later.order;
            }
            same
        });
        let written = self.until_now(node, incarnation, timeline, true);
        self.written.push(written);
        self.owed = owed;
        let limit = self.limit();
        if let Some(Ok(mark)) = within(self.router.clock(), limit, connection.commit_position()).await {
            rise(&mut self.writes, &mark);
            self.written.pop();
        }
        Ok(out)
    }

    /// What was seen or written on a node up to now. It was on `timeline` before; what it is known to have gone on to since
    /// counts.
    fn until_now(&self, node: usize, incarnation: u64, mut timeline: String, wrote: bool) -> Seen {
        let order = self.router.next_order();
        let view = self.router.view();
        if let Some(now) = view.sample(node).filter(|s| s.observed.incarnation == incarnation) {
            timeline.clone_from(&now.observed.mark.timeline);
        }
        Seen { node, incarnation, timeline, order, wrote }
    }

    fn limit(&self) -> Duration {
        cap(self.deadline, self.router.now(), self.router.limits().call)
    }

    /// Takes over what samples prove by now.
    fn learn(&mut self) {
        let view = self.router.view();
        for (all, floors) in [(&mut self.seen, &mut self.reads), (&mut self.written, &mut self.writes)] {
            all.retain(|seen| match seen.proven(&view) {
                Some(mark) => {
                    rise(floors, &mark);
                    false
                }
                None => true,
            });
        }
        if let Some(primary) = view.leader() {
            for floors in [&mut self.writes, &mut self.reads] {
                if unsettled(floors, &primary.observed) {
                    settle(floors, &primary.observed);
                }
            }
        }
    }

    /// Finds a position for all that was read. `present` is what the primary has, if it was asked already.
    async fn resolve(&mut self, present: Option<Mark>) -> Result<()> {
        for seen in self.seen.clone() {
            let mark = self.locate(&seen, present.clone()).await?;
            rise(&mut self.reads, &mark);
            self.seen.retain(|s| *s != seen);
        }
        Ok(())
    }

    /// The same for what was written.
    async fn resolve_written(&mut self, present: Option<Mark>) -> Result<()> {
        for seen in self.written.clone() {
            let mark = self.locate(&seen, present.clone()).await?;
            rise(&mut self.writes, &mark);
            self.written.retain(|s| *s != seen);
        }
        Ok(())
    }

    async fn locate(&mut self, seen: &Seen, mut present: Option<Mark>) -> Result<Mark> {
        let mut last = None;
        let others = self.router.by_primacy().into_iter().filter(|n| *n != seen.node);
        for node in std::iter::once(seen.node).chain(others) {
            let answer = self.ask(node).await;
            let view = self.router.view();
            match answer {
                Ok((order, observed)) if seen.is_in(&view, node, &observed, order) => {
                    return Ok(observed.mark);
                }
                Ok((_, observed)) if view.leads(node, &observed) => present = Some(observed.mark),
                Ok(_) => {}
                // There was no time to ask it; that says nothing about what it has.
                Err(error) if node == seen.node && seen.can_be_asked(&view) => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        self.present = present;
        match last {
            Some(error) if self.present.is_none() => Err(error),
            _ => Err(self.unproven()),
        }
    }

    async fn ask(&self, node: usize) -> Result<(u64, Observed)> {
        let connection = self.router.connect(node, self.limit()).await?;
        self.router.observe(node, &connection, self.limit()).await
    }

    fn unproven(&self) -> Error {
        let context = "what the session wrote or read is not provably in the present history; `accept_loss` goes on with that";
        Error::new(ErrorKind::Unproven, context)
    }

    /// What sends a read to the primary whatever the samples say.
    fn to_primary(&self, how: &Consistency) -> Option<Why> {
        match how {
            _ if self.refused => Some(Why::TokenRefused),
            Consistency::Primary => Some(Why::Asked),
            Consistency::AtLeast(token) if token.owed => Some(Why::Owed),
            // What is owed may have been written or read.
            Consistency::Session(g)
                if self.owed && g.any_of(Guarantees::READ_YOUR_WRITES | Guarantees::MONOTONIC_READS) =>
            {
                Some(Why::Owed)
            }
            _ if !self.written.is_empty() && own_writes(how) => Some(Why::Owed),
            _ => None,
        }
    }

    /// What the samples say; `open` becomes whether reads without a position must get one before that counts. No pair of
    /// both: moving a step reads at once what was just written in parts, which takes as long as a fetch from the second cache.
    #[inline]
    fn look(&self, how: &Consistency, open: &mut bool) -> Step {
        let (view, turn) = (self.router.view(), self.router.turn());
        let now = match how {
            // What is promised in time is measured.
            Consistency::Bounded(_) => self.router.now(),
            _ => self.router.about_now(),
        };
        let (mut stay, mut must_resolve) = (None, false);
        if monotonic(how) && !self.seen.is_empty() {
            let same =
                |s: &Seen| view.sample(s.node).is_some_and(|n| n.observed.incarnation == s.incarnation);
            match self.seen.as_slice() {
                [one] if same(one) && view.primary() != Some(one.node) => stay = Some(one.node),
                _ => must_resolve = true,
            }
        }
        let trust = self.router.limits().trust;
        let step = decide(self.rule(how, &mut [&[], &[]]), &view, now, trust, turn, stay);
        let refused = matches!(step, Step::Foreign | Step::Lost { .. });
        *open = !refused && (must_resolve || stay.is_some() && !matches!(step, Step::Read(_)));
        step
    }

    async fn place(&mut self, how: &Consistency) -> Result<Place<C>> {
        if let Some(why) = self.to_primary(how) {
            return self.on_primary(how, why).await;
        }
        let mut open = false;
        let mut step = self.look(how, &mut open);
        if open {
            self.resolve(None).await?;
            let (trust, turn) = (self.router.limits().trust, self.router.turn());
            let (view, now) = (self.router.view(), self.router.now());
            step = decide(self.rule(how, &mut [&[], &[]]), &view, now, trust, turn, None);
        }
        match step {
            Step::Read(node) => match self.on_replica(how, node).await {
                Some(place) => Ok(place),
                None => self.on_primary(how, Why::Behind).await,
            },
            Step::Wait(node) => match self.after_wait(how, node).await {
                Some(place) => Ok(place),
                None => self.on_primary(how, Why::Behind).await,
            },
            Step::Primary(why) => self.on_primary(how, why).await,
            Step::Foreign => Err(self.deny(Denied::Foreign)),
            Step::Lost { since } => match self.router.present() {
                Some(present) => Err(self.deny(Denied::Lost { since: Some(since), present })),
                None => self.on_primary(how, Why::NoReplica).await,
            },
        }
    }

    /// What `how` asks for; `floors` is the room for it.
    fn rule<'a>(&'a self, how: &'a Consistency, floors: &'a mut [&'a [Mark]; 2]) -> Rule<'a> {
        match how {
            Consistency::MinLatency => Rule::Any,
            Consistency::Bounded(d) => Rule::Bounded(*d),
            _ => {
                *floors = self.floors(how);
                Rule::Floors(floors)
            }
        }
    }

    fn floors<'a>(&'a self, how: &'a Consistency) -> [&'a [Mark]; 2] {
        let part = |on: bool, floors: &'a Vec<Mark>| if on { floors.as_slice() } else { &[] };
        match how {
            Consistency::AtLeast(token) => [&token.floors, &[]],
            Consistency::Session(g) => [
                part(g.contains(Guarantees::READ_YOUR_WRITES), &self.writes),
                part(g.contains(Guarantees::MONOTONIC_READS), &self.reads),
            ],
            // Reads of the primary say what was lost, too.
            Consistency::Primary => [&self.writes, &self.reads],
            Consistency::Bounded(_) | Consistency::MinLatency => [&[], &[]],
        }
    }

    /// The replica that a sample chose, if it still has what `how` asks for by the newest sample of the life that the
    /// connection is to, or by its own word. Between the choice and the connection it may have been restarted, with less.
    async fn on_replica(&self, how: &Consistency, node: usize) -> Option<Place<C>> {
        let connection = self.router.connect(node, self.limit()).await.ok()?;
        let sample = self.router.view().fresh(node, self.router.now(), self.router.limits().trust).cloned();
        let known = sample.filter(|s| connection.incarnation() == Some(s.observed.incarnation));
        let asked;
        let observed = match &known {
            Some(sample) => &sample.observed,
            // Bounds in time need samples; the primary has none to wait for.
            None if matches!(how, Consistency::Bounded(_)) => return None,
            None => {
                asked = self.router.observe(node, &connection, self.limit()).await.ok()?.1;
                &asked
            }
        };
        if !self.usable(how, node, observed) {
            return None;
        }
        let (incarnation, timeline) = (observed.incarnation, observed.mark.timeline.clone());
        self.router
            .emit(|| SessionEvent::ToReplica { node: self.router.node_name(node), waited: Duration::ZERO });
        Some(Place { node, connection, incarnation, timeline })
    }

    /// Whether a replica that said this has what `how` asks for, is still of the primary's history, and has what was
    /// read there without a position yet.
    fn usable(&self, how: &Consistency, node: usize, observed: &Observed) -> bool {
        let (view, now) = (self.router.view(), self.router.now());
        let same = |s: &Seen| s.node != node || s.incarnation == observed.incarnation;
        view.eligible(node)
            && has(self.rule(how, &mut [&[], &[]]), &view, observed, now)
            && (!monotonic(how) || self.seen.iter().all(same))
    }

    async fn after_wait(&self, how: &Consistency, node: usize) -> Option<Place<C>> {
        let place = self.router.waiter(node)?;
        let start = self.router.now();
        let end = Deadline::after(start, cap(self.deadline, start, self.router.limits().max_wait));
        let left = || end.remaining(self.router.now()).filter(|d| !d.is_zero());
        let connection = self.router.connect(node, left()?).await.ok()?;
        for floor in self.floors(how).iter().flat_map(|f| f.iter()) {
            let limit = left()?;
            // The store's own limit is not relied on.
            let judged = within(self.router.clock(), limit, connection.wait(floor, limit)).await?.ok()?;
            if judged != Judgment::Satisfied {
                return None;
            }
        }
        // Which life and history that was, and whether it is still the primary's.
        let (_, observed) = self.router.observe(node, &connection, left()?).await.ok()?;
        drop(place);
        if !self.usable(how, node, &observed) {
            return None;
        }
        let waited = self.router.now().saturating_duration_since(start);
        self.router.emit(|| SessionEvent::ToReplica { node: self.router.node_name(node), waited });
        Some(Place { node, connection, incarnation: observed.incarnation, timeline: observed.mark.timeline })
    }

    async fn on_primary(&mut self, how: &Consistency, why: Why) -> Result<Place<C>> {
        self.router.emit(|| SessionEvent::ToPrimary { why });
        let force = self.owed || self.refused || !self.seen.is_empty() || !self.written.is_empty();
        let found = self.primary(&self.floors(how), force).await;
        let (place, observed, order) = found.map_err(|denied| self.deny(denied))?;
        if own_writes(how) && !self.written.is_empty() {
            if self.all_in(&self.written, &place, &observed, order) {
                rise(&mut self.writes, &observed.mark);
                self.written.clear();
            } else {
                self.resolve_written(Some(observed.mark.clone())).await?;
                if worst(&[&self.writes], &self.observed_again(&place).await?) != Verdict::Satisfied {
                    self.present = Some(observed.mark);
                    return Err(self.unproven());
                }
            }
        }
        if self.owed && observed.role == Role::Primary {
            rise(&mut self.writes, &observed.mark);
            rise(&mut self.reads, &observed.mark);
            self.owed = false;
        }
        if monotonic(how) && !self.all_in(&self.seen, &place, &observed, order) {
            self.resolve(Some(observed.mark.clone())).await?;
            if worst(&[&self.reads], &self.observed_again(&place).await?) != Verdict::Satisfied {
                self.present = Some(observed.mark);
                return Err(self.unproven());
            }
        }
        Ok(place)
    }

    fn all_in(&self, seen: &[Seen], place: &Place<C>, observed: &Observed, order: u64) -> bool {
        let view = self.router.view();
        seen.iter().all(|s| s.is_in(&view, place.node, observed, order))
    }

    async fn observed_again(&self, place: &Place<C>) -> Result<Observed> {
        self.router.observe(place.node, &place.connection, self.limit()).await.map(|(_, observed)| observed)
    }

    /// The primary for a write; `None` when its history is another than that of something read.
    async fn for_write(&mut self) -> Result<Option<Place<C>>> {
        let part = |on: Guarantees, floors: &Vec<Mark>| {
            if self.guarantees.contains(on) { floors.clone() } else { Vec::new() }
        };
        let writes = part(Guarantees::MONOTONIC_WRITES, &self.writes);
        let reads = part(Guarantees::WRITES_FOLLOW_READS, &self.reads);
        let found = self.primary(&[&writes, &reads], false).await;
        let (place, observed, _) = found.map_err(|denied| self.deny(denied))?;
        let follows = self.guarantees.contains(Guarantees::WRITES_FOLLOW_READS);
        let ordered = self.guarantees.contains(Guarantees::MONOTONIC_WRITES);
        let same = |all: &[Seen]| all.iter().all(|s| s.timeline == observed.mark.timeline);
        Ok(((!follows || same(&self.seen)) && (!ordered || same(&self.written))).then_some(place))
    }

    /// A connection to the primary, judged against `floors`; without a round trip if a sample of the same life of it
    /// says enough and nothing has to be known afresh.
    async fn primary(
        &self,
        floors: &[&[Mark]],
        force: bool,
    ) -> std::result::Result<(Place<C>, Observed, u64), Denied> {
        let (mut last, mut lost) = (None, None);
        for node in self.router.by_primacy() {
            let connection = match self.router.connect(node, self.limit()).await {
                Ok(connection) => connection,
                Err(error) => {
                    last = Some(error);
                    continue;
                }
            };
            let (observed, order) = match self.trusted(node, &connection, floors, force) {
                Some(known) => known,
                None => match self.router.observe(node, &connection, self.limit()).await {
                    Ok((order, observed)) => (observed, order),
                    Err(error) => {
                        last = Some(error);
                        continue;
                    }
                },
            };
            if !self.router.view().leads(node, &observed) {
                continue;
            }
            match worst_on_primary(floors, &observed) {
                Verdict::Satisfied => {
                    let (incarnation, timeline) = (observed.incarnation, observed.mark.timeline.clone());
                    return Ok((Place { node, connection, incarnation, timeline }, observed, order));
                }
                Verdict::Lost { since } => {
                    let proven = floors.iter().flat_map(|f| f.iter()).any(|f| cut_off(f, &observed));
                    lost = Some((node, Denied::Lost { since, present: observed.mark }));
                    if proven {
                        break;
                    }
                    // It may be an old primary that does not know of its successor: the others are asked first.
                }
                Verdict::Foreign => return Err(Denied::Foreign),
                Verdict::Behind { .. } => {
                    // Else an old primary: the session knows of a later history.
                    if floors.iter().flat_map(|f| f.iter()).any(|f| unprovable(f, &observed)) {
                        return Err(Denied::Unproven { present: observed.mark });
                    }
                }
            }
        }
        let still = lost.filter(|(node, _)| self.router.view().primary() == Some(*node));
        Err(still.map_or_else(|| Denied::Other(self.router.no_primary(last)), |(_, denied)| denied))
    }

    fn trusted(
        &self,
        node: usize,
        connection: &C,
        floors: &[&[Mark]],
        force: bool,
    ) -> Option<(Observed, u64)> {
        let view = self.router.view();
        let sample = view.fresh(node, self.router.now(), self.router.limits().trust)?;
        let enough = !force
            && connection.incarnation() == Some(sample.observed.incarnation)
            && view.leads(node, &sample.observed)
            && floors
                .iter()
                .flat_map(|f| f.iter())
                .all(|f| verdict(f, &sample.observed) == Verdict::Satisfied);
        enough.then(|| (sample.observed.clone(), sample.order))
    }

    fn deny(&mut self, denied: Denied) -> Error {
        match denied {
            Denied::Other(error) => error,
            Denied::Unproven { present } => {
                self.present = Some(present);
                self.unproven()
            }
            Denied::Foreign => {
                self.router.emit(|| SessionEvent::Judged { verdict: Verdict::Foreign });
                Error::new(
                    ErrorKind::ForeignToken,
                    "the session's token is of another store; it is not retried",
                )
            }
            Denied::Lost { since, present } => {
                let at = since.as_ref().map_or_else(String::new, |at| format!(" after {at}"));
                let context = format!(
                    "what the session wrote or read is not provably in the present history{at}; `accept_loss` goes on"
                );
                self.present = Some(present);
                self.router.emit(|| SessionEvent::Judged { verdict: Verdict::Lost { since } });
                Error::new(ErrorKind::WriteLost, context)
            }
        }
    }
}
