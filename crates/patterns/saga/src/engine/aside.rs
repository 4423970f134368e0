//! Sagas that are set aside: why, and what a person may do to one that nobody can drive.
//!
//! Such a saga takes two actions. To *retry* is to read it anew: a message makes it due, whoever claims it tries, and what
//! ends in the same way is set aside again. To *abandon* closes it for good, whatever its log says. Anything else is
//! refused at once: it would otherwise take effect whenever the saga can be read again.

use mainstay_store::ErrorKind as StoreErrorKind;
use mainstay_store::journal::{
    Append, Appended, Audit, Hash, NewRecord, Post, Row, SagaStatus, Summary, Uid,
};

use super::Inner;
use crate::fold::Refusal;
use crate::next::cut;
use crate::seal::SEALED;
use crate::wire::{self, Action, Closed, Fact, Operation, encode};

/// Begins the error of a saga that waits for its definition.
pub(super) const PARKED: &str = "parked: ";

/// Begins the error of a saga whose participants know of later claims than the journal.
pub(super) const FENCED: &str = "fenced: ";

/// Longest reason on a row and in an answer.
const MAX_WHY: usize = 1_000;

/// Why a saga is set aside, and what of its inbox was looked at: a message that came later takes it up again.
pub(super) struct Aside {
    pub(super) reason: String,
    pub(super) seen: u64,
    /// The definition that it waits for.
    pub(super) parked: Option<(String, u32, Hash)>,
    /// What is taken out of its inbox.
    pub(super) drain: Vec<u64>,
    /// Its log was read whole: a record may be added to it. One that is damaged is left as it is.
    pub(super) was_read: bool,
}

impl Aside {
    /// Set aside without a look at its log and its inbox.
    pub(super) fn blind(reason: String) -> Self {
        Self { was_read: false, ..Self::of(reason, u64::MAX) }
    }

    pub(super) fn of(reason: String, seen: u64) -> Self {
        Self { reason, seen, parked: None, drain: Vec::new(), was_read: true }
    }

    /// Waits for its definition, which is not there or has another graph. Those who woke it in vain have been heard:
    /// left in its inbox they would fill it, and the one that counts found no place.
    pub(super) fn parked(summary: &Summary, why: &str, posts: &[Post]) -> Self {
        let (name, version) = (&summary.definition, summary.version);
        let reason = format!("{PARKED}definition `{name}` version {version} {why}");
        let parked = Some((name.clone(), version, summary.definition_hash));
        let drain = posts.iter().filter(|p| p.kind == wire::POST_WAKE).map(|p| p.number).collect();
        Self { reason, seen: last_of(posts), parked, drain, was_read: true }
    }
}

/// The number of the newest of these posts.
pub(super) fn last_of(posts: &[Post]) -> u64 {
    posts.iter().map(|p| p.number).max().unwrap_or_default()
}

/// What became of a saga that must not be driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// It waits for a person.
    Aside,
    /// A person closed it.
    Closed,
    /// Nothing could be written: it will be found again.
    Unwritten,
}

/// Puts the reason on the row and answers what people asked; the log stays as it is, but for the record that closes it.
pub(super) async fn settle(inner: &Inner, uid: &Uid, epoch: u64, aside: &Aside) -> Settled {
    let Some(summary) = summary(inner, uid).await else { return Settled::Unwritten };
    // What cannot be read now stays for later: whoever sent it waits.
    let posts = inner.journal.inbox(uid).await;
    let posts = posts.inspect_err(|error| {
        tracing::warn!(target: "mainstay::saga", saga = %uid, %error, "an inbox could not be read");
    });
    let heard = match &posts {
        Ok(posts) => Heard::of(&summary, aside, posts),
        Err(_) => Heard { seen: aside.seen, drain: aside.drain.clone(), ..Heard::default() },
    };
    let closes = heard.closes.is_some();
    let record =
        heard.closes.as_ref().filter(|_| aside.was_read).map(|closed| encode(&Fact::Closed(closed.clone())));
    let wrote = match closes {
        true => close(inner, uid, epoch, &summary, aside, record, &heard).await,
        false => write(inner, uid, epoch, &summary, &aside.reason, &heard).await,
    };
    if !wrote {
        return Settled::Unwritten;
    }
    for (message, answer) in heard.answers {
        inner.answer(uid, &message, &answer);
    }
    if closes { Settled::Closed } else { Settled::Aside }
}

/// Sets a saga aside whose log takes no more; the actions in `audit` were refused or closed it.
pub(super) async fn overflow(inner: &Inner, uid: &Uid, epoch: u64, aside: &Aside, audit: Vec<Audit>) -> bool {
    let Some(summary) = summary(inner, uid).await else { return false };
    let heard = Heard { seen: aside.seen, drain: aside.drain.clone(), audit, ..Heard::default() };
    write(inner, uid, epoch, &summary, &aside.reason, &heard).await
}

/// Closes a saga whose log has no room for saying so: the row and the audit do.
pub(super) async fn close_full(
    inner: &Inner,
    uid: &Uid,
    epoch: u64,
    aside: &Aside,
    audit: Vec<Audit>,
) -> bool {
    let Some(summary) = summary(inner, uid).await else { return false };
    let heard = Heard { seen: aside.seen, drain: aside.drain.clone(), audit, ..Heard::default() };
    close(inner, uid, epoch, &summary, aside, None, &heard).await
}

async fn summary(inner: &Inner, uid: &Uid) -> Option<Summary> {
    match inner.journal.summary(uid).await {
        Ok(summary) => summary,
        Err(error) => {
            tracing::error!(target: "mainstay::saga", saga = %uid, %error, "quarantine could not be recorded");
            None
        }
    }
}

/// What people asked of a saga that cannot be driven, and the answers.
#[derive(Default)]
struct Heard {
    closes: Option<Closed>,
    seen: u64,
    drain: Vec<u64>,
    audit: Vec<Audit>,
    answers: Vec<(String, Result<(), Refusal>)>,
}

impl Heard {
    fn of(summary: &Summary, aside: &Aside, posts: &[Post]) -> Self {
        // What came after the log was read makes the saga due once more.
        let seen = if aside.seen == u64::MAX { last_of(posts) } else { aside.seen };
        let mut heard = Self { seen, drain: aside.drain.clone(), ..Self::default() };
        for post in posts.iter().filter(|p| p.kind == wire::POST_ACTION) {
            if post.bytes.first() == Some(&SEALED) {
                // Its key may come back, as that of the log may.
                continue;
            }
            // What nobody can read nobody waits for: it was not written by this version.
            let action = serde_json::from_slice::<Action>(&post.bytes).ok();
            if post.number > seen && action.as_ref().is_some_and(|a| a.operation == Operation::TakeUp) {
                continue;
            }
            heard.drain.push(post.number);
            if let Some(action) = action {
                heard.hear(summary, aside, action);
            }
        }
        if heard.closes.is_some() {
            heard.drain.extend(posts.iter().map(|p| p.number));
        }
        heard.drain.sort_unstable();
        heard.drain.dedup();
        heard
    }

    fn hear(&mut self, summary: &Summary, aside: &Aside, action: Action) {
        let why = cut(aside.reason.clone(), MAX_WHY);
        let name = action.operation.name();
        let stale = action.expected_seq.filter(|e| *e != summary.next_seq);
        let answer = match (&action.operation, stale) {
            _ if self.closes.is_some() => Err(Refusal::Finished(SagaStatus::Abandoned)),
            (_, Some(expected)) => Err(Refusal::Stale { expected, now: summary.next_seq }),
            (Operation::Abandon, None) => Ok(()),
            _ => Err(Refusal::SetAside { action: name, why: why.clone() }),
        };
        let after = match &answer {
            Ok(()) => format!("{}, which was set aside: {why}", SagaStatus::Abandoned),
            Err(refusal) => format!("refused: {refusal}"),
        };
        self.audit.push(Audit {
            who: action.who.clone(),
            action: name.to_owned(),
            target: summary.uid.to_string(),
            reason: action.reason.clone(),
            before: summary.row.status.to_string(),
            after,
            request_id: action.message.clone(),
        });
        self.answers.push((action.message.clone(), answer.clone()));
        if answer.is_ok() {
            let Action { message, who, reason, .. } = action;
            self.closes = Some(Closed { message, who, reason, why });
        }
    }
}

/// The row of a saga that waits for a person as a whole.
async fn write(inner: &Inner, uid: &Uid, epoch: u64, summary: &Summary, why: &str, heard: &Heard) -> bool {
    let row = Row {
        status: SagaStatus::NeedsAttention,
        retrying: false,
        due: None,
        next_try: None,
        error: Some(why.to_owned()),
        ..summary.row.clone()
    };
    append(inner, (uid, epoch, summary.next_seq), row, None, heard).await
}

/// The last row of a saga that a person gave up. A log that has no room for the record, or that was not read whole, stays
/// as it is: who closed it, when and why stands in the audit.
async fn close(
    inner: &Inner,
    uid: &Uid,
    epoch: u64,
    summary: &Summary,
    aside: &Aside,
    record: Option<NewRecord>,
    heard: &Heard,
) -> bool {
    let row = Row {
        status: SagaStatus::Abandoned,
        retrying: false,
        paused: false,
        overdue: false,
        due: None,
        next_try: None,
        error: Some(aside.reason.clone()),
        ..summary.row.clone()
    };
    append(inner, (uid, epoch, summary.next_seq), row, record, heard).await
}

async fn append(
    inner: &Inner,
    (uid, epoch, next_seq): (&Uid, u64, u64),
    row: Row,
    record: Option<NewRecord>,
    heard: &Heard,
) -> bool {
    let with_record = record.is_some();
    let append = Append {
        drain: heard.drain.clone(),
        audit: heard.audit.clone(),
        seen: heard.seen,
        ..Append::new(uid.clone(), epoch, next_seq, record.into_iter().collect(), row)
    };
    let without = with_record.then(|| Append { records: Vec::new(), ..append.clone() });
    let written = match (inner.journal.append(append).await, without) {
        (Err(error), Some(without)) if error.kind() == StoreErrorKind::TooLarge => {
            inner.journal.append(without).await
        }
        (other, _) => other,
    };
    match written {
        Ok(appended) => matches!(appended, Appended::Appended { .. }),
        Err(error) => {
            tracing::error!(target: "mainstay::saga", saga = %uid, %error, "quarantine could not be recorded");
            false
        }
    }
}
