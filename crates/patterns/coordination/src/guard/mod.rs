//! What a holder has in its hand.

mod forward;
mod state;

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use mainstay_clock::{Deadline, Instant};
use mainstay_store::lease::{Grant, Line, Released, Renewed, Share};
use mainstay_store::{FencingToken, LeaseStore};
use tokio::sync::{oneshot, watch};

pub(crate) use forward::as_its_guard;
use state::{Answer, Hold, Next, why_patience};
pub(crate) use state::{deadline_of, is_too_short};

use crate::coordinator::Core;
use crate::lock::Want;
use crate::{Error, ErrorKind, LossReason};

/// Between two tries to give a lease back while the store fails.
const RELEASE_PAUSE: Duration = Duration::from_millis(200);

/// What identifies one acquisition and the lease that comes of it.
pub(crate) struct Held {
    pub(crate) core: Arc<Core>,
    pub(crate) want: Arc<Want>,
    pub(crate) op_id: String,
}

impl Held {
    fn name(&self) -> &str {
        &self.want.names[0]
    }

    /// Gives the leases back, trying until `until`: then they have ended by themselves.
    async fn give_back(&self, until: Instant) -> mainstay_store::Result<Released> {
        loop {
            match self.core.store.release(&self.op_id).await {
                Ok(answer) => return Ok(answer),
                Err(e) if self.core.now() >= until => return Err(e),
                Err(_) => self.core.clock().sleep(RELEASE_PAUSE).await,
            }
        }
    }

    /// Takes back what an acquisition that was given up may have left.
    async fn clean(&self) {
        let until = self.core.now().saturating_add(self.want.ttl);
        if self.want.line == Line::Join {
            // The line forgets by itself if this fails.
            let _ = self.core.store.leave(&self.op_id).await;
        }
        if let Err(error) = self.give_back(until).await {
            tracing::warn!(lock = self.name(), %error, "what may have been granted was not released");
        }
    }
}

/// How an acquisition ended, told to its keeper. Dropping the sender says that it was given up and that
/// something may be left in the store.
pub(crate) enum Verdict {
    Nothing,
    Taken(Arc<Shared>),
}

/// The one background task of an acquisition: it cleans up after one that was given up, renews what was
/// taken and gives it back. So neither dropping a future nor dropping a guard has to start anything.
pub(crate) async fn keep(held: Arc<Held>, verdict: oneshot::Receiver<Verdict>) {
    match verdict.await {
        Ok(Verdict::Nothing) => {}
        Ok(Verdict::Taken(shared)) => {
            shared.renew().await;
            let until = shared.hold().deadline();
            let answer = held.give_back(until).await;
            shared.settle(answer);
        }
        Err(_) => {
            held.clean().await;
            held.core.settled();
        }
    }
}

pub(crate) struct Shared {
    held: Arc<Held>,
    grants: Vec<Grant>,
    hold: Mutex<Hold>,
    /// Told whenever `hold` changed; the value is in `hold`.
    changed: watch::Sender<()>,
    /// Who waits for the release.
    told: Mutex<Option<oneshot::Sender<mainstay_store::Result<Released>>>>,
}

impl Shared {
    fn hold(&self) -> MutexGuard<'_, Hold> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> Result<(), LossReason> {
        self.hold().check(self.held.core.now())
    }

    /// Renews until the guard is gone.
    async fn renew(&self) {
        let mut changed = self.changed.subscribe();
        let core = &self.held.core;
        loop {
            changed.mark_unchanged();
            if self.hold().is_released() {
                return;
            }
            let next = self.hold().next(core.now());
            let step = async {
                match next {
                    // Lost, but the guard is still there: it says when it is done.
                    Next::Ended => std::future::pending::<()>().await,
                    Next::Wait(until) => core.clock().sleep_until(until).await,
                    Next::Renew => self.renew_once().await,
                }
            };
            tokio::select! {
                biased;
                _ = changed.changed() => {}
                () = step => {}
            }
        }
    }

    async fn renew_once(&self) {
        let core = &self.held.core;
        let patience = self.hold().sent(core.now());
        let late = core.clock().sleep(patience);
        let renewed = tokio::select! {
            biased;
            renewed = core.store.renew(&self.held.op_id) => Some(renewed),
            () = late => None,
        };
        let answer = match renewed {
            Some(Ok(Renewed::Renewed(grants))) if self.went_back(&grants) => {
                Answer::NotOurs(LossReason::StoreRegressed)
            }
            Some(Ok(Renewed::Renewed(_))) => Answer::Renewed,
            Some(Ok(Renewed::Broken)) => Answer::NotOurs(LossReason::Forced),
            Some(Ok(Renewed::Closed)) => Answer::NotOurs(LossReason::SessionClosed),
            Some(Ok(Renewed::Lost)) => Answer::NotOurs(self.why_gone().await),
            Some(Err(error)) if error.kind() == mainstay_store::ErrorKind::Regressed => {
                tracing::warn!(lock = self.held.name(), %error, "a lease is lost with what the store knew");
                Answer::NotOurs(LossReason::StoreRegressed)
            }
            Some(Err(error)) => {
                tracing::warn!(lock = self.held.name(), %error, "a lease was not renewed");
                Answer::Failed
            }
            None => Answer::Missing,
        };
        self.hold().answered(core.now(), answer, core.unit());
        self.changed.send_replace(());
    }

    /// Whether the store has the lease under an older token than it gave.
    fn went_back(&self, renewed: &[Grant]) -> bool {
        let older = |own: &Grant| renewed.iter().any(|g| g.name == own.name && g.token < own.token);
        self.grants.iter().any(older)
    }

    /// Why the store no longer knows the lease. It may have lost its state: then even the newest token that it knows is
    /// older than ours. It is asked for that at once; the loss does not wait long for the answer.
    async fn why_gone(&self) -> LossReason {
        let core = &self.held.core;
        let late = core.clock().sleep(why_patience(self.held.want.ttl));
        let look = async {
            for own in &self.grants {
                match core.store.inspect(&own.name).await {
                    Ok(info) if info.last_token < own.token => return LossReason::StoreRegressed,
                    Err(e) if e.kind() == mainstay_store::ErrorKind::Regressed => {
                        return LossReason::StoreRegressed;
                    }
                    _ => {}
                }
            }
            LossReason::TakenOver
        };
        tokio::select! {
            biased;
            reason = look => reason,
            () = late => LossReason::TakenOver,
        }
    }

    fn settle(&self, answer: mainstay_store::Result<Released>) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (told, answer) {
            // Nobody may be waiting any more.
            (Some(told), answer) => drop(told.send(answer)),
            (None, Err(error)) => {
                tracing::warn!(lock = self.held.name(), %error, "a dropped lock was not released");
            }
            (None, Ok(_)) => {}
        }
        self.held.core.settled();
    }
}

/// What work under a guard is told: the token that its writes carry and the time it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    token: FencingToken,
    deadline: Deadline,
}

impl Fence {
    /// Goes with every write: the resource refuses a smaller one than it has seen.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// When the lease would end if nothing were renewed from now on.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }
}

/// A held lock.
///
/// Guarantees: [`run`](Guard::run) drops its work, and [`lost`](Guard::lost) resolves, before the lease can
/// pass on, judged by this machine's boot clock and as far as the executor polls. While the guard lives the
/// lease is renewed after each third of its ttl. Not guaranteed: that a paused machine stops in time; what
/// it writes when it wakes up is refused only where the [token](Guard::token) is checked.
///
/// Dropping a guard releases the lease in the background, best effort, without waiting.
/// [`release`](Guard::release) is the sure way. A guard that was [shared](Guard::share) gives back when the last share is
/// gone, too.
#[must_use = "a dropped guard gives the lock back"]
pub struct Guard(Arc<Owner>);

/// What the guard and its shares have in common: the last of them to go gives the lease back.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.held.core.unsettled();
        self.0.hold().release();
        self.0.changed.send_replace(());
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("name", &self.name())
            .field("token", &self.token())
            .finish_non_exhaustive()
    }
}

impl Guard {
    pub(crate) fn new(held: Arc<Held>, sent: Instant, grants: Vec<Grant>) -> Self {
        let limit = held.want.max_hold.map_or(Instant::FAR_FUTURE, |d| sent.saturating_add(d));
        let hold = Mutex::new(Hold::granted(sent, held.want.ttl, limit));
        let (changed, told) = (watch::Sender::new(()), Mutex::new(None));
        Self(Arc::new(Owner(Arc::new(Shared { held, grants, hold, changed, told }))))
    }

    fn inner(&self) -> &Shared {
        &self.0.0
    }

    /// Whether others work under it, too.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Refuses to give away a right under which others may work.
    pub(crate) fn alone(&self, what: &str) -> Result<(), Error> {
        if self.is_shared() {
            let why =
                format!("`{}` is shared, and whoever shares it may be at work: {what} it alone", self.name());
            return Err(Error::new(ErrorKind::ApiMisuse, why));
        }
        Ok(())
    }

    /// What the keeper renews and gives back.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.0.0)
    }

    /// The name, with its namespace; the first one of several.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner().held.name()
    }

    /// The fencing token; of several names the first one's.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.inner().grants.first().map_or(FencingToken::ZERO, |g| g.token)
    }

    /// The fencing token of each name, in byte order of the names.
    pub fn tokens(&self) -> impl Iterator<Item = (&str, FencingToken)> {
        self.inner().grants.iter().map(|g| (g.name.as_str(), g.token))
    }

    /// When the lease would end if nothing were renewed from now on.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        Deadline::at(self.inner().hold().deadline())
    }

    /// Whether the right is still there, without asking the store.
    ///
    /// # Errors
    /// `Lost` with the reason. Once lost, always lost.
    pub fn check(&self) -> Result<(), Error> {
        self.inner().check().map_err(|reason| Error::lost(self.name(), reason))
    }

    /// Resolves when the right is gone.
    ///
    /// # Cancel safety
    /// Changes nothing; ask again at any time.
    pub async fn lost(&self) -> LossReason {
        let mut changed = self.inner().changed.subscribe();
        loop {
            changed.mark_unchanged();
            if let Err(reason) = self.inner().check() {
                return reason;
            }
            let stop_at = self.inner().hold().stop_at();
            let end = self.inner().held.core.clock().sleep_until(stop_at);
            tokio::select! {
                biased;
                () = end => {}
                _ = changed.changed() => {}
            }
        }
    }

    /// Resolves when a renewal has moved the [`deadline`](Self::deadline) beyond `known`, with the new one:
    /// for a holder that tells the deadline to somebody else. Never resolves once the right is gone.
    ///
    /// # Cancel safety
    /// Changes nothing; ask again at any time.
    pub async fn renewed(&self, known: Deadline) -> Deadline {
        let mut changed = self.inner().changed.subscribe();
        loop {
            changed.mark_unchanged();
            let deadline = self.deadline();
            if deadline.instant() > known.instant() && self.check().is_ok() {
                return deadline;
            }
            // The sender lives in `self`: it cannot be gone.
            let _ = changed.changed().await;
        }
    }

    /// Runs `work` for as long as the right is there.
    ///
    /// The clock is read before every poll, so that work does not go on after a pause. Work that is ready
    /// after the right was lost is not reported as done.
    ///
    /// # Errors
    /// `Lost` when the right was gone before the work ended. The work was dropped at its await point; what
    /// it had sent before may still take effect, with an old token.
    ///
    /// # Cancel safety
    /// Dropping the future drops the work; the guard stays.
    pub async fn run<T, F>(&self, work: impl FnOnce(Fence) -> F) -> Result<T, Error>
    where
        F: Future<Output = T>,
    {
        self.check()?;
        let fence = Fence { token: self.token(), deadline: self.deadline() };
        let mut work = pin!(work(fence));
        let mut lost = pin!(self.lost());
        poll_fn(|cx| {
            if let Poll::Ready(reason) = lost.as_mut().poll(cx) {
                return Poll::Ready(Err(Error::lost(self.name(), reason)));
            }
            // The timer behind `lost` may not have noticed yet that the machine was suspended.
            self.check()?;
            let Poll::Ready(done) = work.as_mut().poll(cx) else { return Poll::Pending };
            Poll::Ready(self.check().map(|()| done))
        })
        .await
    }

    /// Another hold on the same lease, under the same token, for work that others do: a task, a callee that would
    /// otherwise ask for a lock that is held.
    ///
    /// Guarantees: the lease is renewed, and nobody else gets it from this store, until the guard and all shares are gone;
    /// a loss ends all of them at once. So a share that is kept keeps the lock: give it to work that ends.
    ///
    /// ```
    /// # use std::{sync::Arc, time::Duration};
    /// # use mainstay_clock::Runtime;
    /// # use mainstay_coordination::Coordinator;
    /// # use mainstay_store::memory::MemoryLeaseStore;
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// # let rt = Runtime::system();
    /// # let store = Arc::new(MemoryLeaseStore::new(Arc::clone(rt.clock())));
    /// # let coordinator = Coordinator::builder(store, rt).namespace("billing").owner("node-7").build().unwrap();
    /// let lock = coordinator.mutex("nightly").build().unwrap();
    /// let guard = lock.try_acquire().await.unwrap();
    /// let share = guard.share();
    /// assert_eq!(share.token(), guard.token());
    /// drop(guard);
    /// assert!(lock.try_acquire().await.is_err(), "the share still has it");
    /// assert!(share.check().is_ok());
    /// # });
    /// ```
    pub fn share(&self) -> SharedGuard {
        SharedGuard { guard: Self(Arc::clone(&self.0)) }
    }

    /// Runs work that blocks, on a thread of its own. It gets a share to look at: [`check`](SharedGuard::check) as often as
    /// it can stop, and the [token](SharedGuard::token) for its writes.
    ///
    /// A thread cannot be stopped from outside. So this waits until the work has ended, also when the right is lost long
    /// before, and the work's share keeps the lease until then, also when nobody waits any more. Not guaranteed: that
    /// the work stops before the lease passes on. Only looking does that, and the resource that checks tokens.
    ///
    /// # Errors
    /// `Lost` when the right was gone by the time the work was done, whatever it returned: what it wrote may have met
    /// another holder's writes. `NoThread` when the system gives no thread: nothing ran.
    ///
    /// # Panics
    /// When the work panics.
    ///
    /// # Cancel safety
    /// Dropping the future stops nothing: the work goes on, and gives back its share at its end.
    ///
    /// ```
    /// # use std::{sync::Arc, time::Duration};
    /// # use mainstay_clock::Runtime;
    /// # use mainstay_coordination::Coordinator;
    /// # use mainstay_store::memory::MemoryLeaseStore;
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// # let rt = Runtime::system();
    /// # let store = Arc::new(MemoryLeaseStore::new(Arc::clone(rt.clock())));
    /// # let coordinator = Coordinator::builder(store, rt).namespace("billing").owner("node-7").build().unwrap();
    /// let guard = coordinator.mutex("nightly").build().unwrap().try_acquire().await.unwrap();
    /// let packed = guard.run_blocking(|share| {
    ///     let mut packed = 0;
    ///     for _file in 0..3 {
    ///         share.check()?;
    ///         packed += 1; // written with share.token()
    ///     }
    ///     Ok::<_, mainstay_coordination::Error>(packed)
    /// });
    /// assert_eq!(packed.await.unwrap().unwrap(), 3);
    /// # });
    /// ```
    pub async fn run_blocking<T>(
        &self,
        work: impl FnOnce(SharedGuard) -> T + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
    {
        self.check()?;
        let (tell, told) = oneshot::channel();
        let share = self.share();
        let thread = std::thread::Builder::new().name("guarded-work".to_owned());
        let started = thread.spawn(move || {
            let done = catch_unwind(AssertUnwindSafe(|| work(share)));
            // Nobody may be waiting any more.
            drop(tell.send(done));
        });
        if let Err(e) = started {
            let why = format!("`{}`: the system gives no thread for the work: {e}", self.name());
            return Err(Error::new(ErrorKind::NoThread, why));
        }
        match told.await {
            Ok(Ok(done)) => self.check().map(|()| done),
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => unreachable!("invariant: the thread tells how the work ended before it ends"),
        }
    }

    /// Lets readers in beside the holder, who reads from now on: in one step, so no writer comes in between. The
    /// token stays. There is no way back: two readers who both want to write would wait for each other.
    ///
    /// # Errors
    /// `Lost` when the right is gone, `ApiMisuse` for a permit of a semaphore or while it is shared, `Unsupported` on a
    /// store that cannot; otherwise when the store fails: whether readers were let in is then unknown.
    ///
    /// # Cancel safety
    /// A dropped future may have let readers in. Repeating it changes nothing.
    pub async fn downgrade(&self) -> Result<(), Error> {
        self.check()?;
        self.alone("downgrade")?;
        if matches!(self.inner().held.want.share, Share::Permit { .. }) {
            let why = format!("`{}` is a semaphore: a permit is no lock to share", self.name());
            return Err(Error::new(ErrorKind::ApiMisuse, why));
        }
        let done = self
            .store()
            .downgrade(&self.inner().held.op_id)
            .await
            .map_err(|e| Error::store(self.name(), e))?;
        if done { Ok(()) } else { Err(Error::lost(self.name(), LossReason::TakenOver)) }
    }

    /// Gives the lease back and says whether it was held until then. Waits until the last share is gone: whoever has
    /// one may be at work. One's own would be waited for, too.
    ///
    /// # Errors
    /// When the store fails until the lease has ended by itself.
    ///
    /// # Cancel safety
    /// Once polled, the release goes on in the background when the future is dropped.
    pub async fn release(self) -> Result<Released, Error> {
        let (tell, told) = oneshot::channel();
        *self.inner().told.lock().unwrap_or_else(PoisonError::into_inner) = Some(tell);
        let name = self.name().to_owned();
        drop(self);
        match told.await {
            Ok(answer) => answer.map_err(|e| Error::store(&name, e)),
            // The runtime went away with its tasks: the lease ends by itself.
            Err(_) => Ok(Released::AlreadyGone),
        }
    }

    pub(crate) fn store(&self) -> &Arc<dyn LeaseStore> {
        &self.inner().held.core.store
    }
}

/// A share of a held lock, made by [`Guard::share`]. Cheap to clone; the lock is held as long as any of them lives.
#[derive(Debug)]
#[must_use = "the last share to go gives the lock back"]
pub struct SharedGuard {
    guard: Guard,
}

impl Clone for SharedGuard {
    fn clone(&self) -> Self {
        self.guard.share()
    }
}

as_its_guard!(SharedGuard);
