//! The barrier of a participant, as a pure state machine.
//!
//! A participant runs it inside its own local transaction: the rows below are read and written through
//! [`BarrierRows`] by whoever owns the driver, this module decides. It makes a step take effect once per
//! key, refuses an action that arrives after its undo, and answers an undo that arrives before its
//! action. The rule is that of DTM's "sub-transaction barrier", with a fence and stored replies added.
//!
//! Order of calls inside one transaction: [`enter`], then on [`Entry::Run`] the work, then
//! [`finish`] (or, for a business "no" to an action, roll the work back to a savepoint set after `enter`
//! and [`reject`]), then COMMIT, and only then the answer. [`perform`] makes these calls in that order.

use crate::{FenceCheck, FencingToken, Result};

/// Which half of a step a request is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(clippy::exhaustive_enums, reason = "a step has an action and an undo")]
pub enum Op {
    /// The step itself; `generation` counts operator retries with edited input, from 1.
    Action {
        /// Key generation.
        generation: u32,
    },
    /// Its reversal.
    Undo {
        /// The generation it reverses.
        generation: u32,
    },
}

impl Op {
    /// The text in keys and rows: `action`, `action~2`, `undo`.
    #[must_use]
    pub fn text(&self) -> String {
        let (name, generation) = match self {
            Self::Action { generation } => ("action", *generation),
            Self::Undo { generation } => ("undo", *generation),
        };
        if generation <= 1 { name.to_owned() } else { format!("{name}~{generation}") }
    }

    /// Reads what [`Op::text`] wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (name, generation) = match text.split_once('~') {
            None => (text, 1),
            Some((name, n)) => (name, n.parse().ok().filter(|n| *n >= 2)?),
        };
        match name {
            "action" => Some(Self::Action { generation }),
            "undo" => Some(Self::Undo { generation }),
            _ => None,
        }
    }

    fn generation(&self) -> u32 {
        match self {
            Self::Action { generation } | Self::Undo { generation } => *generation,
        }
    }
}

/// Who wrote a barrier row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "an action row is written by its action or by its undo")]
pub enum By {
    /// The action.
    Action,
    /// The undo, blocking the action for ever.
    Undo,
}

/// A stored barrier row.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a row is exactly this")]
pub struct BarrierRow {
    /// Who wrote it.
    pub by: By,
    /// The reply given, once the work finished.
    pub reply: Option<StoredReply>,
}

/// A reply that duplicates are answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a reply is exactly this")]
pub struct StoredReply {
    /// A business "no": the action had no effect and never will under this key.
    pub rejected: bool,
    /// HTTP status or another code of the participant.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// The rows of one saga step inside the participant's transaction.
pub trait BarrierRows {
    /// Raises the stored token of the saga to at least `token` and returns what is stored then. Must take
    /// its lock in a way that concurrent callers wait for each other.
    ///
    /// # Errors
    /// When the transaction fails; the caller rolls back.
    fn raise_token(&mut self, token: FencingToken) -> Result<FencingToken>;

    /// Inserts a row for `op` unless one exists. `None` when it was inserted, otherwise the row there.
    ///
    /// # Errors
    /// When the transaction fails; the caller rolls back.
    fn insert_or_get(&mut self, op: &str, by: By) -> Result<Option<BarrierRow>>;

    /// Stores the reply in the row of `op`.
    ///
    /// # Errors
    /// When the transaction fails; the caller rolls back.
    fn set_reply(&mut self, op: &str, reply: &StoredReply) -> Result<()>;

    /// Sets a savepoint: what follows can be taken back without the barrier's rows.
    ///
    /// # Errors
    /// When the transaction fails; the caller rolls back.
    fn savepoint(&mut self) -> Result<()>;

    /// Takes back what was written since [`savepoint`](Self::savepoint).
    ///
    /// # Errors
    /// When the transaction fails; the caller rolls back.
    fn back_to_savepoint(&mut self) -> Result<()>;
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each")]
pub enum Entry {
    /// Seen before: answer the stored reply, run nothing.
    Duplicate(StoredReply),
    /// The undo came first: run nothing, refuse for ever (HTTP 409, effect none).
    Late,
    /// Nothing to reverse: store success and answer it.
    NullUndo,
    /// Run the work. For an undo: the action's stored reply.
    Run {
        /// The reply of the action that an undo reverses.
        action: Option<StoredReply>,
    },
    /// A larger token was seen: roll back, answer 412.
    StaleToken {
        /// The largest token seen.
        seen: FencingToken,
    },
}

/// Decides what to do with a request for `op` under `token`. On anything but `StaleToken` the caller
/// commits; on an error it rolls back.
///
/// # Errors
/// Those of the rows.
///
/// ```
/// use mainstay_store::{FencingToken, barrier::{Entry, MemoryRows, Op, enter}};
///
/// let mut rows = MemoryRows::default();
/// let (action, undo) = (Op::Action { generation: 1 }, Op::Undo { generation: 1 });
/// // The undo arrives first: nothing to reverse, and the action is blocked for ever.
/// assert_eq!(enter(&mut rows, &undo, FencingToken::new(1)).unwrap(), Entry::NullUndo);
/// assert_eq!(enter(&mut rows, &action, FencingToken::new(1)).unwrap(), Entry::Late);
/// assert!(matches!(enter(&mut rows, &action, FencingToken::ZERO).unwrap(), Entry::StaleToken { .. }));
/// ```
pub fn enter(rows: &mut dyn BarrierRows, op: &Op, token: FencingToken) -> Result<Entry> {
    let stored = rows.raise_token(token)?;
    if let FenceCheck::Stale { seen } = token.check(stored) {
        return Ok(Entry::StaleToken { seen });
    }
    match op {
        Op::Action { .. } => enter_action(rows, op),
        Op::Undo { .. } => enter_undo(rows, op),
    }
}

fn enter_action(rows: &mut dyn BarrierRows, op: &Op) -> Result<Entry> {
    Ok(match rows.insert_or_get(&op.text(), By::Action)? {
        None => Entry::Run { action: None },
        Some(BarrierRow { by: By::Undo, .. }) => Entry::Late,
        Some(BarrierRow { by: By::Action, reply: Some(reply) }) => Entry::Duplicate(reply),
        // A committed row without a reply: the work ran in a transaction that stored none. Run nothing
        // twice; an empty success is what it would have answered.
        Some(BarrierRow { by: By::Action, reply: None }) => Entry::Duplicate(empty_success()),
    })
}

fn enter_undo(rows: &mut dyn BarrierRows, op: &Op) -> Result<Entry> {
    let action = Op::Action { generation: op.generation() };
    // Always first: it blocks the action for ever.
    let action_row = rows.insert_or_get(&action.text(), By::Undo)?;
    if let Some(row) = rows.insert_or_get(&op.text(), By::Undo)? {
        return Ok(Entry::Duplicate(row.reply.unwrap_or_else(empty_success)));
    }
    Ok(match action_row {
        None | Some(BarrierRow { by: By::Undo, .. }) => null_undo(rows, op)?,
        Some(BarrierRow { reply: Some(StoredReply { rejected: true, .. }), .. }) => null_undo(rows, op)?,
        Some(BarrierRow { reply, .. }) => Entry::Run { action: reply },
    })
}

fn null_undo(rows: &mut dyn BarrierRows, op: &Op) -> Result<Entry> {
    rows.set_reply(&op.text(), &empty_success())?;
    Ok(Entry::NullUndo)
}

/// Stores the reply of work that ran. COMMIT comes after it, the answer after COMMIT.
///
/// # Errors
/// Those of the rows.
pub fn finish(rows: &mut dyn BarrierRows, op: &Op, status: u16, body: Vec<u8>) -> Result<()> {
    rows.set_reply(&op.text(), &StoredReply { rejected: false, status, body })
}

/// Stores a business "no" of an action whose work was rolled back to the savepoint after [`enter`]. It is
/// final: no attempt under this key has an effect.
///
/// # Errors
/// Those of the rows.
pub fn reject(rows: &mut dyn BarrierRows, op: &Op, status: u16, body: Vec<u8>) -> Result<()> {
    rows.set_reply(&op.text(), &StoredReply { rejected: true, status, body })
}

/// What the work of a participant came to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "it is done, or the participant says no")]
pub enum Work {
    /// It is done; this is the answer.
    Done {
        /// HTTP status or another code of the participant.
        status: u16,
        /// The body.
        body: Vec<u8>,
    },
    /// A business "no". What the work has written is taken back.
    No {
        /// HTTP status or another code of the participant.
        status: u16,
        /// The body.
        body: Vec<u8>,
    },
}

/// What one request came to, and with it what becomes of the transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each")]
pub enum Performed {
    /// Seen before: this was answered.
    Duplicate(StoredReply),
    /// The undo came first: refused for ever, without any effect.
    Late,
    /// There was nothing to reverse: success.
    NullUndo,
    /// An undo was refused: no effect, and a later delivery runs it again.
    Refused(StoredReply),
    /// The work ran; for a business "no" to an action the reply is `rejected`.
    Ran(StoredReply),
    /// A newer owner of the saga was here.
    StaleToken {
        /// The largest token seen.
        seen: FencingToken,
    },
}

impl Performed {
    /// Whether the transaction must be committed (and only then answered); otherwise it is rolled back.
    #[must_use]
    pub fn commits(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::StaleToken { .. })
    }
}

/// Everything between BEGIN and the end of the transaction, in the one right order: the fence, the barrier's
/// rows, the work, the stored reply. `work` is given the action's stored reply when an undo runs.
///
/// The caller commits when [`Performed::commits`] says so and rolls back otherwise; on an error it rolls back,
/// and a repeated request runs again.
///
/// # Errors
/// Those of the rows and of the work.
///
/// ```
/// use mainstay_store::FencingToken;
/// use mainstay_store::barrier::{MemoryRows, Op, Performed, Work, perform};
///
/// let mut rows = MemoryRows::default();
/// let (action, token) = (Op::Action { generation: 1 }, FencingToken::new(1));
/// let mut charged = 0;
/// for _ in 0..2 {
///     let done = perform(&mut rows, &action, token, |_| {
///         charged += 1;
///         Ok::<_, mainstay_store::Error>(Work::Done { status: 200, body: b"{}".to_vec() })
///     });
///     assert!(done.unwrap().commits());
/// }
/// assert_eq!(charged, 1);
/// ```
pub fn perform<E: From<crate::Error>>(
    rows: &mut dyn BarrierRows,
    op: &Op,
    token: FencingToken,
    work: impl FnOnce(Option<StoredReply>) -> std::result::Result<Work, E>,
) -> std::result::Result<Performed, E> {
    let before = match enter(rows, op, token)? {
        Entry::Duplicate(reply) => return Ok(Performed::Duplicate(reply)),
        Entry::Late => return Ok(Performed::Late),
        Entry::NullUndo => return Ok(Performed::NullUndo),
        Entry::StaleToken { seen } => return Ok(Performed::StaleToken { seen }),
        Entry::Run { action } => action,
    };
    rows.savepoint()?;
    let reply = match work(before)? {
        Work::Done { status, body } => StoredReply { rejected: false, status, body },
        Work::No { status, body } => {
            rows.back_to_savepoint()?;
            let reply = StoredReply { rejected: true, status, body };
            if matches!(op, Op::Undo { .. }) {
                return Ok(Performed::Refused(reply));
            }
            reply
        }
    };
    rows.set_reply(&op.text(), &reply)?;
    Ok(Performed::Ran(reply))
}

fn empty_success() -> StoredReply {
    StoredReply { rejected: false, status: 200, body: b"{}".to_vec() }
}

/// Barrier rows of one saga step in memory, for tests and for participants whose state is in memory too.
///
/// They know nothing of that state: going back to a savepoint is the work's own affair, so work over memory
/// says no before it changes anything.
#[derive(Clone, Debug, Default)]
pub struct MemoryRows {
    token: FencingToken,
    rows: std::collections::BTreeMap<String, BarrierRow>,
}

impl BarrierRows for MemoryRows {
    fn raise_token(&mut self, token: FencingToken) -> Result<FencingToken> {
        self.token = self.token.max(token);
        Ok(self.token)
    }

    fn insert_or_get(&mut self, op: &str, by: By) -> Result<Option<BarrierRow>> {
        if let Some(row) = self.rows.get(op) {
            return Ok(Some(row.clone()));
        }
        self.rows.insert(op.to_owned(), BarrierRow { by, reply: None });
        Ok(None)
    }

    fn set_reply(&mut self, op: &str, reply: &StoredReply) -> Result<()> {
        if let Some(row) = self.rows.get_mut(op) {
            row.reply = Some(reply.clone());
        }
        Ok(())
    }

    fn savepoint(&mut self) -> Result<()> {
        Ok(())
    }

    fn back_to_savepoint(&mut self) -> Result<()> {
        Ok(())
    }
}
