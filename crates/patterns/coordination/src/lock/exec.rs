//! Sends what the acquisition decides.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use mainstay_clock::Instant;
use mainstay_store::lease::{self, AcquireRequest, Acquired, Grant, Share};
use mainstay_store::{BoxFuture, FencingToken, LeaseStore};
use tokio::sync::oneshot;

use super::Want;
use super::state::{Acquisition, Command, Patience, WAIT_MAX};
use crate::coordinator::{Core, Line};
use crate::guard::{Held, Verdict, keep};
use crate::{Error, ErrorKind, Guard};

/// A store's word that something may have changed.
type Hint<'a> = BoxFuture<'a, mainstay_store::Result<()>>;

/// Longest wait for one answer: a hung store must not eat a lease before it is held.
const MAX_PATIENCE: Duration = Duration::from_secs(5);

pub(crate) async fn acquire(core: &Arc<Core>, want: &Arc<Want>, patience: Patience) -> Result<Guard, Error> {
    // The first name orders this process's waiters; the store orders the rest.
    let line = core.line(&want.names[0]);
    let _turn = match patience {
        Patience::None => None,
        Patience::Until(limit) => {
            let end = core.clock().sleep_until(limit.instant());
            tokio::select! {
                biased;
                turn = line.turn() => Some(turn),
                () = end => return Err(out_of_time(core, &want.names[0], &line)),
            }
        }
    };
    let held = Arc::new(Held { core: Arc::clone(core), want: Arc::clone(want), op_id: core.op_id() });
    let (verdict, told) = oneshot::channel();
    core.rt.spawn("lease-keeper", keep(Arc::clone(&held), told));
    let state = Acquisition::new(want.ttl, patience, core.store.guarantees().recheck);
    Attempt { held, state, line: Arc::clone(&line), floor: None, verdict: Some(verdict) }.run().await
}

fn unanswered() -> mainstay_store::Error {
    let text = "the lease store did not answer in time";
    mainstay_store::Error::new(mainstay_store::ErrorKind::Unavailable, text)
        .with_outcome(mainstay_store::Outcome::Unknown)
}

/// The wait ended in the line of this process.
fn out_of_time(core: &Core, name: &str, line: &Line) -> Error {
    if line.is_silent() {
        let why = format!("`{name}`: the lease store does not answer those of this process who ask for it");
        return Error::new(ErrorKind::Unreachable, why);
    }
    let why = format!("`{name}` was not acquired in time; others of this process wait for it");
    Error::new(ErrorKind::TimedOut { holder: Some(core.owner.clone()) }, why)
}

/// The first word about any of `names`: the one that is held may be none but the last.
fn any_of<'a>(store: &'a dyn LeaseStore, names: &[String]) -> Hint<'a> {
    if let [name] = names {
        return store.watch(name);
    }
    let mut hints: Vec<Hint<'a>> = names.iter().map(|name| store.watch(name)).collect();
    Box::pin(poll_fn(move |cx| {
        let heard = hints.iter_mut().find_map(|hint| match hint.as_mut().poll(cx) {
            Poll::Ready(heard) => Some(heard),
            Poll::Pending => None,
        });
        heard.map_or(Poll::Pending, Poll::Ready)
    }))
}

/// One acquisition under way. Dropped at any point, its keeper gives back what may have been granted.
struct Attempt {
    held: Arc<Held>,
    state: Acquisition,
    /// Where others of this process wait.
    line: Arc<Line>,
    /// For whoever shares its one name: the highest token before the question that may have been granted.
    floor: Option<FencingToken>,
    verdict: Option<oneshot::Sender<Verdict>>,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let Some(verdict) = self.verdict.take() else { return };
        if self.state.maybe_held() {
            self.held.core.unsettled();
        } else {
            // Without a keeper there is no runtime left to tell.
            let _ = verdict.send(Verdict::Nothing);
        }
    }
}

impl Attempt {
    async fn run(mut self) -> Result<Guard, Error> {
        let core = Arc::clone(&self.held.core);
        let want = Arc::clone(&self.held.want);
        let mut command = Command::Ask;
        let mut last = None;
        let mut hint = None;
        loop {
            command = match command {
                Command::Ask => {
                    // Armed before the question, so that a change in between is not slept over.
                    hint = self.state.waits().then(|| any_of(&*core.store, &want.names));
                    // Who shares may hear of its grant after others heard of later ones: only what was known before
                    // it asked proves that the store lost state. Who had it alone would hold it still.
                    if want.share != Share::Exclusive && !self.state.maybe_held() {
                        self.floor = Some(core.highest(&want.names[0]));
                    }
                    self.state.asked();
                    let sent = self.held.core.now();
                    let asked = self.ask(self.state.patience(sent, MAX_PATIENCE)).await;
                    let now = self.held.core.now();
                    if asked.is_none() && self.state.is_over(now) {
                        last = Some(unanswered());
                        self.state.cut_off()
                    } else {
                        let asked = asked.unwrap_or_else(|| Err(unanswered()));
                        // What the store says of itself is an answer, too.
                        self.line.heard(asked.as_ref().map_or_else(|e| !e.is_retryable(), |_| true));
                        match asked {
                            Ok(answer) => {
                                let next = self.state.answered(sent, now, &answer, self.held.core.unit());
                                if let (Command::Take, Acquired::Granted(grants)) = (&next, answer) {
                                    return self.take(sent, grants);
                                }
                                next
                            }
                            Err(e) => {
                                let (outcome, retry) = (e.outcome(), e.is_retryable());
                                last = Some(e);
                                self.state.failed(now, outcome, retry, self.held.core.unit())
                            }
                        }
                    }
                }
                Command::Wait { listen, until } => {
                    let hinted = self.wait(listen, until, hint.as_mut()).await;
                    self.state.woke(self.held.core.now(), hinted)
                }
                other => return Err(self.give_up(other, last)),
            };
        }
    }

    /// One question; none when it got no answer in this time, and may still be applied.
    async fn ask(&self, patience: Duration) -> Option<mainstay_store::Result<Acquired>> {
        let want = &self.held.want;
        let request = AcquireRequest {
            names: want.names.clone(),
            owner: self.held.core.owner.clone(),
            op_id: self.held.op_id.clone(),
            ttl: want.ttl,
            share: want.share,
            line: if self.state.waits() { want.line } else { lease::Line::Try },
            note: want.note.clone(),
            require: Vec::new(),
        };
        let late = self.held.core.clock().sleep(patience);
        tokio::select! {
            biased;
            answer = self.held.core.store.acquire(request) => Some(answer),
            () = late => None,
        }
    }

    /// Waits for a hint of the store, and for the time in any case; whether it was a hint. A store that cannot be
    /// heard is asked soon instead.
    async fn wait(&self, listen: Instant, until: Instant, hint: Option<&mut Hint<'_>>) -> bool {
        let clock = self.held.core.clock();
        let time = clock.sleep_until(until);
        let hint = async {
            if listen > clock.now() {
                clock.sleep_until(listen).await;
            }
            let heard = match hint {
                Some(hint) => hint.await.is_ok(),
                None => false,
            };
            if !heard {
                clock.sleep(WAIT_MAX).await;
            }
            heard
        };
        tokio::select! {
            biased;
            () = time => false,
            heard = hint => heard,
        }
    }

    fn take(mut self, sent: Instant, grants: Vec<Grant>) -> Result<Guard, Error> {
        for grant in &grants {
            self.held.core.remember(&grant.name, grant.token, self.floor)?;
        }
        let guard = Guard::new(Arc::clone(&self.held), sent, grants);
        if let Some(verdict) = self.verdict.take() {
            // Without a keeper there is no runtime left to renew in: the guard ends at its deadline.
            let _ = verdict.send(Verdict::Taken(guard.shared()));
        }
        Ok(guard)
    }

    fn give_up(&self, command: Command, last: Option<mainstay_store::Error>) -> Error {
        let name = &self.held.want.names[0];
        match command {
            Command::Contended { holder, remaining, since } => {
                let left = remaining.map_or_else(String::new, |d| format!(" for {d:?} more without renewal"));
                let why = format!("`{name}` is held by {holder}{left}");
                Error::new(ErrorKind::Contended { holder, remaining, since }, why)
            }
            Command::Expired => {
                let why =
                    format!("`{name}` was granted so late that its deadline had passed; it is given back");
                Error::new(ErrorKind::Expired, why)
            }
            Command::TimedOut { holder } => {
                let who = holder.as_deref().unwrap_or("somebody else");
                let why = format!("`{name}` was not acquired in time; {who} holds it");
                Error::new(ErrorKind::TimedOut { holder }, why)
            }
            _ => last.map_or_else(
                || Error::new(ErrorKind::Unreachable, format!("`{name}`: the deadline had passed")),
                |e| Error::store(name, e),
            ),
        }
    }
}
