//! One saga in memory: from an event to facts, from facts to calls.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::Mutex;

use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use mainstay_clock::{Instant, WallTime};
use mainstay_resilience::Verdict as Health;
use mainstay_store::journal::{
    Append, Appended, Audit, Claimed, Loaded, NewRecord, Post, Row, SagaStatus, Uid,
};
use mainstay_store::{BoxFuture, ErrorKind as StoreErrorKind, Outcome};
use tokio::sync::{Notify, watch};

use super::aside::{self, Aside, last_of};
use super::calls::{CallEnd, CallResult, until_reported};
use super::handle::outcome_of;
use super::leave::{Leave, leave_memory};
use super::policies::Half;
use super::registry::Registered;
use super::{Active, Inner, suspects};
use crate::definition::Definition;
use crate::fold::{Illegal, Refusal, State};
use crate::next::{
    Command, cut, cut_undo, end_step, end_undo, fits, next, refuse_undo, withhold_step, withhold_undo,
};
use crate::row::row;
use crate::seal::SEALED;
use crate::wire::{
    self, AttemptRef, Fact, Finished, Note, Overdue, Stopped, UndoVerdict, Verdict, decode, encode,
};

/// Appends are repeated this often when the store fails, one poll apart, before the claim is dropped.
const APPEND_TRIES: u32 = 5;
/// Refusals and results that came too late, as kept on one log; later ones are answered and audited only. Enough to
/// see what went on, and too few for anybody to fill a log with.
const MAX_REMARKS: u64 = 500;
/// A saga that waits longer than so many polls leaves memory: its place is for those that move, and a message from another
/// node, of which its owner hears nothing, finds it within a poll.
const STAY_POLLS: u32 = 10;
/// Longest text of a remark: names in it are what somebody sent.
pub(super) const MAX_REMARK: usize = 500;

/// A call to make once its start is on the log.
pub(super) enum Launch {
    Act(AttemptRef),
    Undo(AttemptRef),
}

/// What follows from a state: calls to make, and when to look again.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) launches: Vec<Launch>,
    pub(super) wake: Option<i64>,
}

/// Applies a fact and adds its record to what is about to be appended.
pub(super) fn write(
    definition: &Definition,
    state: &mut State,
    fact: &Fact,
    records: &mut Vec<NewRecord>,
) -> Result<(), Illegal> {
    state.apply(definition, fact)?;
    let record = encode(fact);
    state.bytes += record.bytes.len() as u64;
    records.push(record);
    Ok(())
}

/// Adds the facts that follow from `state` without waiting.
pub(super) fn advance(
    definition: &Definition,
    state: &mut State,
    records: &mut Vec<NewRecord>,
    now: i64,
    undo_slots: usize,
) -> Result<Plan, Illegal> {
    let mut plan = Plan::default();
    loop {
        let before = records.len();
        plan.wake = None;
        for command in next(definition, state, now, undo_slots) {
            let fact = match command {
                Command::WakeAt(at) => {
                    plan.wake = Some(at);
                    continue;
                }
                Command::Start(at) => {
                    plan.launches.push(Launch::Act(at.clone()));
                    Fact::StepStarted(at)
                }
                Command::Undo(at) => {
                    plan.launches.push(Launch::Undo(at.clone()));
                    Fact::UndoStarted(at)
                }
                Command::Stop(cause) => Fact::Stopped(Stopped { cause }),
                Command::Overdue => Fact::Overdue(Overdue {}),
                Command::Finish(status) => Fact::Finished(Finished { status: status.as_str().to_owned() }),
            };
            write(definition, state, &fact, records)?;
        }
        if records.len() == before {
            return Ok(plan);
        }
    }
}

pub(super) struct Drive {
    pub(super) inner: Arc<Inner>,
    pub(super) uid: Uid,
    pub(super) registered: Arc<Registered>,
    pub(super) state: State,
    pub(super) epoch: u64,
    pub(super) cancelled: watch::Sender<bool>,
    attrs: BTreeMap<String, String>,
    plan: Plan,
    calls: FuturesUnordered<BoxFuture<'static, CallEnd>>,
    posts: Vec<Post>,
    /// The newest post that was read.
    seen: u64,
    pub(super) records: Vec<NewRecord>,
    drain: Vec<u64>,
    pub(super) audit: Vec<Audit>,
    pub(super) answers: Vec<(String, Result<(), Refusal>)>,
    /// Ends the call in flight of a step that reports by itself, by step: with what the report says about its health.
    pub(super) stops: BTreeMap<String, watch::Sender<Option<Health>>>,
    active: Arc<Active>,
    /// There is something in the inbox that was not read yet.
    unread: bool,
    /// When to look again after the inbox could not be read.
    look_at: Option<Instant>,
    /// Why it was set aside, until its first append: a person may close it as it is.
    pub(super) was_aside: Option<String>,
    /// Where it was when it was taken up, until the first action: whoever saw that saw it as it is.
    pub(super) taken_at: Option<u64>,
}

/// Takes up a claimed saga in the background.
pub(super) fn take_up(inner: &Arc<Inner>, claimed: Claimed) -> Arc<Active> {
    let active = Arc::new(Active::new());
    let earlier = inner.active().insert(claimed.saga.clone(), Arc::clone(&active));
    if let Some(earlier) = earlier {
        // Its claim was given away; it would learn that at its next append.
        earlier.cut_short();
    }
    let (task_inner, task_active) = (Arc::clone(inner), Arc::clone(&active));
    let task = inner.runtime.spawn("mainstay-saga", async move {
        let uid = claimed.saga.clone();
        let leave = match recover(&task_inner, &claimed, &task_active).await {
            Ok(Some(drive)) => drive.run().await,
            Ok(None) => Leave::Lost,
            Err(aside) => Leave::Quarantine(aside),
        };
        leave_memory(&task_inner, &uid, claimed.epoch, &task_active, leave).await;
    });
    active.keep(task);
    active
}

/// Loads and folds a saga. `Err` is the reason for its quarantine.
async fn recover(
    inner: &Arc<Inner>,
    claimed: &Claimed,
    active: &Arc<Active>,
) -> Result<Option<Drive>, Aside> {
    // Before the log is read: also a log that cannot be read may be what stops the process.
    if claimed.strikes > suspects::SUSPICIOUS
        && !suspects::mark(inner, claimed).await.map_err(Aside::blind)?
    {
        return Ok(None);
    }
    let loaded = match inner.journal.load(&claimed.saga).await {
        Ok(Some(loaded)) if loaded.summary.epoch == claimed.epoch => loaded,
        Ok(_) => return Ok(None),
        Err(e) if e.is_retryable() => {
            tracing::warn!(target: "mainstay::saga", saga = %claimed.saga, error = %e, "saga could not be loaded");
            return Ok(None);
        }
        Err(e) => return Err(Aside::blind(format!("the log is unreadable: {e}"))),
    };
    let Loaded { summary, records, posts } = loaded;
    let seen = last_of(&posts);
    let registered = match inner.registry.find(&summary.definition, Some(summary.version)) {
        None => inner.find_stored(&summary.definition, summary.version).await,
        known => known,
    };
    let Some(registered) = registered else {
        return Err(Aside::parked(&summary, "is not known to this node", &posts));
    };
    let definition = &registered.definition;
    if definition.hash() != summary.definition_hash {
        return Err(Aside::parked(&summary, "has another graph", &posts));
    }
    let aside = |reason: String| Aside::of(reason, seen);
    let facts: Result<Vec<Fact>, _> = records.iter().map(decode).collect();
    let facts = facts.map_err(|e| aside(format!("the log is unreadable: {e}")))?;
    let state =
        State::fold(definition, &facts).map_err(|e| aside(format!("the log breaks the rules: {e}")))?;
    let state = state.with_log_of(&records);
    if state.finished.is_some() {
        return Ok(None);
    }
    // No step asks for a person, or the row says something else than the step that does: the saga as a whole was set
    // aside.
    let by_step = row(definition, &state, inner.time.now(), &summary.row.attrs);
    let row_waits = summary.row.status == SagaStatus::NeedsAttention;
    let was_aside = row_waits && (by_step.status, &by_step.error) != (summary.row.status, &summary.row.error);
    let was_aside = was_aside.then(|| summary.row.error.clone().unwrap_or_default());
    let mut drive =
        Drive::with_active(inner, claimed.saga.clone(), registered, state, summary.row.attrs, active);
    (drive.epoch, drive.seen, drive.was_aside) = (claimed.epoch, seen, was_aside);
    drive.taken_at = Some(summary.next_seq);
    // Reports of participants come first: what they end was not interrupted.
    let (reports, rest) = posts.into_iter().partition(|p| p.kind == wire::POST_COMPLETE);
    drive.posts = reports;
    let suspect = claimed.strikes > suspects::SUSPICIOUS;
    drive.take_posts().and_then(|()| drive.interrupt(suspect)).map_err(|e| aside(e.to_string()))?;
    drive.posts = rest;
    Ok(Some(drive))
}

impl Active {
    fn new() -> Self {
        Self {
            wake: Notify::new(),
            outcome: watch::Sender::new(None),
            task: Mutex::new(None),
            moved: watch::Sender::new(false),
        }
    }

    fn keep(&self, task: mainstay_clock::TaskHandle) {
        *self.task.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(task);
    }
}

impl Drive {
    pub(super) fn new(
        inner: &Arc<Inner>,
        uid: Uid,
        registered: Arc<Registered>,
        state: State,
        attrs: BTreeMap<String, String>,
        plan: Plan,
    ) -> Self {
        let mut drive = Self::with_active(inner, uid, registered, state, attrs, &Arc::new(Active::new()));
        drive.plan = plan;
        drive
    }

    fn with_active(
        inner: &Arc<Inner>,
        uid: Uid,
        registered: Arc<Registered>,
        state: State,
        attrs: BTreeMap<String, String>,
        active: &Arc<Active>,
    ) -> Self {
        Self {
            inner: Arc::clone(inner),
            uid,
            registered,
            state,
            epoch: 0,
            cancelled: watch::Sender::new(false),
            attrs,
            plan: Plan::default(),
            calls: FuturesUnordered::new(),
            posts: Vec::new(),
            seen: 0,
            records: Vec::new(),
            drain: Vec::new(),
            audit: Vec::new(),
            answers: Vec::new(),
            stops: BTreeMap::new(),
            active: Arc::clone(active),
            unread: false,
            look_at: None,
            was_aside: None,
            taken_at: None,
        }
    }

    /// Drives a saga that was just created under `epoch`; its first facts are on the log.
    pub(super) fn launch(mut self, epoch: u64) {
        self.epoch = epoch;
        let (inner, uid, active) = (Arc::clone(&self.inner), self.uid.clone(), Arc::clone(&self.active));
        match inner.active().entry(uid.clone()) {
            // Its answer was so slow that it was given back and claimed again.
            Entry::Occupied(_) => return,
            Entry::Vacant(place) => {
                place.insert(Arc::clone(&active));
            }
        }
        let task_active = Arc::clone(&active);
        let spawner = Arc::clone(&inner);
        let task = spawner.runtime.spawn("mainstay-saga", async move {
            // A node that stopped meanwhile begins nothing that nobody awaits.
            let leave = if inner.is_stopping() {
                Leave::Idle
            } else {
                self.start_calls();
                self.run_loop().await
            };
            leave_memory(&inner, &uid, epoch, &task_active, leave).await;
        });
        active.keep(task);
    }

    /// Turns attempts that a crash cut short into facts. One that was in flight when a fence refused the claim is made
    /// again as it is: however often that happens, it spends nothing. Of a suspect nothing is asked: its question may be what
    /// stops every process, and is not on the log.
    fn interrupt(&mut self, suspect: bool) -> Result<(), Illegal> {
        let now = self.inner.time.now();
        let fenced = self.was_aside.as_ref().is_some_and(|why| why.starts_with(aside::FENCED));
        for i in 0..self.state.nodes.len() {
            if self.stops.contains_key(&self.registered.definition.steps()[i].name) {
                // A report ended it, and its step is being asked about that.
                continue;
            }
            if fenced {
                let node = &self.state.nodes[i];
                let (acts, undoes) =
                    (node.running.clone().map(Launch::Act), node.undoing.clone().map(Launch::Undo));
                acts.into_iter().chain(undoes).for_each(|launch| self.start_call(launch));
                continue;
            }
            if let Some(at) = self.state.nodes[i].running.clone() {
                let verdict = Verdict::Unknown {
                    reason: "the process ended during the attempt".to_owned(),
                    interrupted: true,
                };
                let end = end_step(&self.registered.definition, &self.state, at, verdict, now, 0.0, None);
                match self.ask_first(&end).filter(|_| !suspect) {
                    Some(question) => self.make(&end.at, None, question),
                    None => self.record(&Fact::StepEnded(end))?,
                }
            }
            if let Some(at) = self.state.nodes[i].undoing.clone() {
                let jitter = self.inner.runtime.rng().unit();
                let end = cut_undo(&self.registered.definition, &self.state, at, now, jitter);
                self.record(&Fact::UndoEnded(end))?;
            }
        }
        Ok(())
    }

    pub(super) fn record(&mut self, fact: &Fact) -> Result<(), Illegal> {
        write(&self.registered.definition, &mut self.state, fact, &mut self.records)
    }

    /// The rules do not allow what happened here.
    fn aside(&self, illegal: &Illegal) -> Leave {
        Leave::Quarantine(Aside::of(illegal.to_string(), self.seen))
    }

    /// Records what changes nothing, within bounds.
    pub(super) fn remark(&mut self, fact: Fact) -> Result<(), Illegal> {
        let room = fits(&self.registered.definition, &self.state, 1, encode(&fact).bytes.len());
        if room && self.state.remarks < MAX_REMARKS { self.record(&fact) } else { Ok(()) }
    }

    pub(super) fn note(&mut self, text: String) -> Result<(), Illegal> {
        self.remark(Fact::Note(Note { text: cut(text, MAX_REMARK) }))
    }

    /// Drives a recovered saga: its posts and interruptions first.
    async fn run(mut self) -> Leave {
        if let Err(illegal) = self.take_posts() {
            return self.aside(&illegal);
        }
        let left = self.commit().await;
        (self.was_aside, self.taken_at) = (None, None);
        match left {
            Some(leave) => leave,
            None => {
                // Nothing to append at once is no mischief either: it waits for a time or a person.
                let appended = self.active.moved.send_replace(true);
                if !appended && let Some(leave) = self.put_row_right().await {
                    return leave;
                }
                self.run_loop().await
            }
        }
    }

    /// A saga that was due and has nothing to do: its row said so wrongly, and would again. Whatever the row says
    /// now, it is not taken up again before the next poll.
    async fn put_row_right(&mut self) -> Option<Leave> {
        if (self.has_work() && !self.waits_long()) || self.inner.is_stopping() {
            return None;
        }
        // It may have been due by the store's calendar only, which was set forward.
        self.inner.time.compare(self.inner.journal.as_ref()).await;
        let mut row = self.row();
        let soonest =
            WallTime::from_unix_millis(self.inner.time.shown()).saturating_add(self.inner.config.poll);
        row.due = row.due.map(|due| due.max(soonest));
        let next_seq = self.state.seq + 1;
        self.append(Append::new(self.uid.clone(), self.epoch, next_seq, Vec::new(), row)).await
    }

    /// The row of the state, for the store.
    fn row(&self) -> Row {
        let time = &self.inner.time;
        time.as_shown(row(&self.registered.definition, &self.state, time.now(), &self.attrs))
    }

    /// Whether something runs here, or will without another post.
    fn has_work(&self) -> bool {
        !self.calls.is_empty() || self.plan.wake.is_some() || self.unread
    }

    /// Whether nothing happens here for a long while: its row says when, and whoever looks then takes it up.
    fn waits_long(&self) -> bool {
        let long = self.inner.config.poll.saturating_mul(STAY_POLLS);
        let stays_until =
            WallTime::from_unix_millis(self.inner.time.now()).saturating_add(long).unix_millis();
        self.calls.is_empty() && !self.unread && self.plan.wake.is_some_and(|at| at > stays_until)
    }

    async fn run_loop(&mut self) -> Leave {
        loop {
            if self.state.finished.is_some() {
                self.answer_the_late().await;
                return Leave::Finished;
            }
            if !self.has_work() || self.waits_long() {
                return Leave::Idle;
            }
            if let Some(leave) = self.wait().await {
                return leave;
            }
            if let Err(illegal) = self.take_posts() {
                return self.aside(&illegal);
            }
            if let Some(leave) = self.commit().await {
                return leave;
            }
        }
    }

    /// What came just before the end is in the inbox of a saga that nobody takes up again: whoever sent it is told. Where that
    /// fails, the row says how it ended to whoever asks again.
    async fn answer_the_late(&mut self) {
        if !self.unread {
            return;
        }
        match self.inner.journal.inbox(&self.uid).await {
            Ok(posts) => self.posts = posts,
            Err(error) => {
                tracing::warn!(target: "mainstay::saga", saga = %self.uid, %error, "an inbox could not be read");
                return;
            }
        }
        // Nothing but refusals follows an end, so that both end here.
        if self.take_posts().is_ok() {
            self.commit().await;
        }
    }

    /// Waits for one event, then takes whatever else is ready.
    async fn wait(&mut self) -> Option<Leave> {
        let inner = Arc::clone(&self.inner);
        let wake = self.plan.wake.map(|at| inner.runtime.clock().sleep_until(inner.time.instant(at)));
        let timer = async {
            match wake {
                Some(sleep) => sleep.await,
                None => std::future::pending().await,
            }
        };
        let look = self.look_at.map(|at| inner.runtime.clock().sleep_until(at));
        let look = async {
            match look {
                Some(sleep) => sleep.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(end) = self.calls.next(), if !self.calls.is_empty() => {
                if let Some(leave) = self.ended(end).await {
                    return Some(leave);
                }
            }
            () = self.active.wake.notified() => {
                match inner.journal.load(&self.uid).await {
                    Ok(Some(loaded)) if loaded.summary.epoch == self.epoch => {
                        self.posts = loaded.posts;
                        self.seen = self.seen.max(last_of(&self.posts));
                        self.unread = false;
                    }
                    Ok(_) => return Some(Leave::Lost),
                    Err(error) => {
                        tracing::warn!(target: "mainstay::saga", %error, "posts could not be read");
                        self.unread = true;
                        self.look_at = Some(inner.runtime.clock().now().saturating_add(inner.config.poll));
                    }
                }
            }
            // Attempts in flight are awaited; nothing new is begun.
            () = inner.stopped(), if self.calls.is_empty() => return Some(Leave::Idle),
            () = look => {
                self.look_at = None;
                self.active.wake.notify_one();
            }
            () = timer => {}
        }
        while let Some(Some(end)) = self.calls.next().now_or_never() {
            if let Some(leave) = self.ended(end).await {
                return Some(leave);
            }
        }
        None
    }

    /// Turns the end of a call into a fact.
    async fn ended(&mut self, end: CallEnd) -> Option<Leave> {
        let definition = Arc::clone(&self.registered.definition);
        let (now, jitter) = (self.inner.time.now(), self.inner.runtime.rng().unit());
        let fact = match end.result {
            CallResult::Stale => return Some(Leave::Lost),
            CallResult::Fenced => return Some(self.fenced(&end.at.step).await),
            CallResult::Reported(_) => return None,
            CallResult::Step(verdict, advice) => {
                Fact::StepEnded(end_step(&definition, &self.state, end.at, verdict, now, jitter, advice))
            }
            CallResult::Withheld(reason, advice) => {
                Fact::StepEnded(withhold_step(&definition, &self.state, end.at, reason, now, jitter, advice))
            }
            CallResult::Known(verdict) => {
                let end = end_step(&definition, &self.state, end.at, verdict, now, jitter, None);
                return self.apply_end(Fact::StepEnded(end)).err().map(|illegal| self.aside(&illegal));
            }
            CallResult::UndoRefused(reason) => {
                Fact::UndoEnded(refuse_undo(&definition, &self.state, end.at, reason))
            }
            CallResult::UndoWithheld(reason, advice) => {
                Fact::UndoEnded(withhold_undo(&definition, &self.state, end.at, reason, now, jitter, advice))
            }
            CallResult::Undo(verdict, advice) => {
                Fact::UndoEnded(end_undo(&definition, &self.state, end.at, verdict, now, jitter, advice))
            }
        };
        if let Some((at, question)) = self.question_of(&fact) {
            self.make(&at, None, question);
            return None;
        }
        self.apply_end(fact).err().map(|illegal| self.aside(&illegal))
    }

    /// The question that comes before this end of an attempt, if there is one.
    pub(super) fn question_of(&self, fact: &Fact) -> Option<(AttemptRef, BoxFuture<'static, CallEnd>)> {
        let Fact::StepEnded(end) = fact else { return None };
        Some((end.at.clone(), self.ask_first(end)?))
    }

    /// A participant has seen a later claim: somebody else owns the saga. Where the journal knows of no later one it is not
    /// the journal that the participant heard of, and none of its claims is taken: a person has to look.
    async fn fenced(&mut self, step: &str) -> Leave {
        let ours = self.inner.journal.summary(&self.uid).await;
        if !ours.is_ok_and(|summary| summary.is_some_and(|s| s.epoch == self.epoch)) {
            return Leave::Lost;
        }
        let why = format!(
            "{}the participant of step `{step}` has seen a larger fencing token than {}, and this journal has not: it \
             was restored from a copy, or a copy of it is driven elsewhere; raise the epoch of its store, then read \
             the saga anew",
            aside::FENCED,
            self.epoch
        );
        Leave::Quarantine(Aside::of(why, self.seen))
    }

    /// Applies the end of an attempt. One that the rules refuse is kept as a remark, and the attempt, if it was in
    /// flight, ends unknown: nobody makes it any more.
    pub(super) fn apply_end(&mut self, fact: Fact) -> Result<(), Illegal> {
        let Err(illegal) = self.record(&fact) else { return Ok(()) };
        let definition = Arc::clone(&self.registered.definition);
        let reason = format!("a result was not applied: {illegal}");
        self.note(reason.clone())?;
        let (now, jitter) = (self.inner.time.now(), self.inner.runtime.rng().unit());
        let node =
            |state: &State, at: &AttemptRef| definition.index(&at.step).map(|i| state.nodes[i].clone());
        let unknown = match fact {
            Fact::StepEnded(end)
                if node(&self.state, &end.at).is_some_and(|n| n.running.as_ref() == Some(&end.at)) =>
            {
                let verdict = Verdict::Unknown { reason, interrupted: false };
                Fact::StepEnded(end_step(&definition, &self.state, end.at, verdict, now, jitter, None))
            }
            Fact::UndoEnded(end)
                if node(&self.state, &end.at).is_some_and(|n| n.undoing.as_ref() == Some(&end.at)) =>
            {
                let verdict = UndoVerdict::Failed { reason };
                Fact::UndoEnded(end_undo(&definition, &self.state, end.at, verdict, now, jitter, None))
            }
            _ => return Ok(()),
        };
        self.record(&unknown)
    }

    /// Turns inbox messages into facts.
    fn take_posts(&mut self) -> Result<(), Illegal> {
        let posts = std::mem::take(&mut self.posts);
        if posts.iter().any(|p| p.kind == wire::POST_ALONE) {
            // Told once, and the log moves on: older marks count no more.
            let text = "taken up alone, because earlier owners had vanished without a word".to_owned();
            self.record(&Fact::Note(Note { text }))?;
        }
        for post in posts {
            self.drain.push(post.number);
            if post.bytes.first() == Some(&SEALED) {
                self.note(format!("message `{}` cannot be read: its seal does not open", post.message))?;
                continue;
            }
            let taken = match post.kind {
                wire::POST_ACTION => serde_json::from_slice(&post.bytes).map(|action| self.act(action)),
                wire::POST_COMPLETE => {
                    serde_json::from_slice(&post.bytes).map(|report| self.reported(report))
                }
                _ => continue,
            };
            match taken {
                Ok(done) => done?,
                Err(error) => {
                    self.note(format!("message `{}` cannot be read: {error}", post.message))?;
                }
            }
        }
        Ok(())
    }

    /// Decides, appends, then acts. `Some` when the saga leaves memory.
    async fn commit(&mut self) -> Option<Leave> {
        let definition = Arc::clone(&self.registered.definition);
        let now = self.inner.time.now();
        let mut records = std::mem::take(&mut self.records);
        let slots = if self.inner.is_stopping() { None } else { Some(self.inner.config.undo_slots.get()) };
        if let Some(slots) = slots {
            match advance(&definition, &mut self.state, &mut records, now, slots) {
                Ok(plan) => self.plan = plan,
                Err(illegal) => return Some(self.aside(&illegal)),
            }
        } else {
            self.plan = Plan::default();
        }
        // One that was to turn back, and whose pivot happened meanwhile, or may have, goes on.
        let turned = self.state.stop.is_some() && !self.state.past_pivot(&definition);
        self.cancelled.send_if_modified(|before| std::mem::replace(before, turned) != turned);
        if !records.is_empty() || !self.drain.is_empty() {
            let expected = self.state.seq + 1 - records.len() as u64;
            let row = self.row();
            let status = row.status;
            let added: u64 = records.iter().map(|r| r.bytes.len() as u64).sum();
            let mut append = Append::new(self.uid.clone(), self.epoch, expected, records, row);
            append.drain = std::mem::take(&mut self.drain);
            append.audit = std::mem::take(&mut self.audit);
            if let Some(leave) = self.append(append).await {
                return Some(leave);
            }
            let (seq, bytes) = (self.state.seq, self.state.bytes);
            self.inner.watch.log_grew(&self.uid, (expected - 1, bytes.saturating_sub(added)), (seq, bytes));
            #[cfg(feature = "test-util")]
            if let Some(observer) = &self.inner.observer {
                observer(&self.uid, &self.state);
            }
            let settled = status.is_final() || status == SagaStatus::NeedsAttention;
            let outcome = settled.then(|| outcome_of(&definition, &self.state, status));
            self.active.outcome.send_replace(outcome);
        }
        self.answer();
        self.start_calls();
        None
    }

    fn answer(&mut self) {
        for (message, result) in self.answers.drain(..) {
            self.inner.answer(&self.uid, &message, &result);
        }
    }

    async fn append(&mut self, append: Append) -> Option<Leave> {
        let end = append.expected_seq + append.records.len() as u64;
        let mut in_doubt = false;
        for _ in 0..APPEND_TRIES {
            match self.inner.journal.append(append.clone()).await {
                Ok(Appended::Appended { posts, .. }) => {
                    self.active.moved.send_replace(true);
                    if posts {
                        self.unread = true;
                        self.active.wake.notify_one();
                    }
                    return None;
                }
                // Only this claim appends: after a lost reply the sequence tells that it landed.
                Ok(Appended::Conflict { next_seq }) if in_doubt && next_seq == end => {
                    // What the lost answer said of the inbox is read there.
                    self.unread = true;
                    self.active.wake.notify_one();
                    return None;
                }
                Ok(_) => return Some(Leave::Lost),
                Err(error) => {
                    in_doubt |= error.outcome() != Outcome::NotApplied;
                    tracing::warn!(target: "mainstay::saga", saga = %self.uid, %error, outcome = ?error.outcome(),
                        "an append failed");
                    if error.kind() == StoreErrorKind::TooLarge && !in_doubt {
                        return Some(self.overflows(append, &error.to_string()).await);
                    }
                    if !error.is_retryable() && !in_doubt {
                        return Some(Leave::Lost);
                    }
                    let wait = error.retry_after().unwrap_or(self.inner.config.poll);
                    self.inner.runtime.clock().sleep(wait).await;
                }
            }
        }
        Some(Leave::Lost)
    }

    /// The log takes no more: who asked for something is told, and the saga is set aside.
    async fn overflows(&mut self, refused: Append, reason: &str) -> Leave {
        let why = Refusal::NotLegal { action: "append", why: "the saga's log is full" };
        if self.state.finished == Some(SagaStatus::Abandoned) {
            let aside = Aside { drain: refused.drain, ..Aside::of(reason.to_owned(), self.seen) };
            if aside::close_full(&self.inner, &self.uid, self.epoch, &aside, refused.audit).await {
                self.answer();
                return Leave::Finished;
            }
            return Leave::Lost;
        }
        let mut audit = refused.audit;
        audit.iter_mut().for_each(|a| a.after = format!("refused: {why}"));
        let mut aside = Aside { drain: refused.drain, ..Aside::of(reason.to_owned(), self.seen) };
        if !aside.drain.is_empty() {
            aside::overflow(&self.inner, &self.uid, self.epoch, &aside, audit).await;
            aside.drain.clear();
        }
        self.answers.iter_mut().for_each(|(_, answer)| *answer = Err(why.clone()));
        self.answer();
        Leave::Quarantine(aside)
    }

    fn start_calls(&mut self) {
        std::mem::take(&mut self.plan.launches).into_iter().for_each(|launch| self.start_call(launch));
    }

    fn start_call(&mut self, launch: Launch) {
        match launch {
            Launch::Act(at) => {
                let call = self.action(at.clone());
                self.make(&at, Some(Half::Action), call);
            }
            Launch::Undo(at) => {
                let call = self.undo(at.clone());
                self.make(&at, Some(Half::Undo), call);
            }
        }
    }

    /// Makes a call of an attempt: this half of it through the policy of its step, a question outside of it. A report
    /// of a remote participant ends it, and every question.
    pub(super) fn make(&mut self, at: &AttemptRef, half: Option<Half>, call: BoxFuture<'static, CallEnd>) {
        let guarded = |drive: &Self, call| match half {
            Some(half) => drive.guarded(half, at, call),
            None => call,
        };
        let remote = self.step(at).1.addresses().next().is_some();
        if half.is_some() && !remote {
            self.calls.push(guarded(self, call));
            return;
        }
        let (stop, stopped) = watch::channel(None);
        self.stops.insert(at.step.clone(), stop);
        // Within the policy too: it hears what the report says, where a call that is only dropped would look abandoned.
        let call = guarded(self, until_reported(at, call, stopped.clone()));
        self.calls.push(until_reported(at, call, stopped));
    }
}
