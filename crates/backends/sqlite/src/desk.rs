//! What the writer keeps at hand: heads of sagas under way, and the next numbers.
//!
//! Only the writer changes the file, so what it wrote last is what the file says. A head that is not at hand
//! is read again; a rollback forgets them all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use mainstay_store::journal::{SagaStatus, Uid};
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::{corrupt, store_error};
use crate::writer::Step;

/// Heads at hand, about 200 bytes each. One more empties the desk: a miss costs one read.
const MAX_HEADS: usize = 16 * 1024;

/// Names of definitions at hand; one more forgets them.
const MAX_NAMES: usize = 4 * 1024;

/// A saga's head as the writer needs it.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) rid: i64,
    pub(crate) epoch: i64,
    pub(crate) next_seq: u64,
    pub(crate) bytes: usize,
    pub(crate) posts: i64,
    pub(crate) status: SagaStatus,
    pub(crate) due: Option<i64>,
    pub(crate) overdue: bool,
    /// The saga's newest row of the log, 0 when it has none.
    pub(crate) last_n: i64,
    pub(crate) definition: Arc<str>,
}

/// One more or one less finished saga of a definition.
type Change = (Arc<str>, SagaStatus, i64);

/// Heads, and numbers that are never given twice.
pub(crate) struct Desk {
    heads: HashMap<Uid, Head>,
    next_rid: i64,
    next_n: i64,
    /// Names of definitions, each kept once.
    names: HashSet<Arc<str>>,
    /// What the jobs of this batch add to the tally, in their order.
    changes: Vec<Change>,
}

impl Desk {
    /// Takes up the numbers where the file ends, purged rows included.
    pub(crate) fn open(conn: &Connection) -> mainstay_store::Result<Self> {
        let (rid, n): (i64, i64) = conn
            .query_row(
                "select max(last_rid, ifnull((select max(rid) from saga), 0)),
                        max(last_n, ifnull((select max(n) from log), 0)) from purged",
                [],
                |r| Ok((r.get(0)?, r.get(1)?)),
            )
            .map_err(store_error)?;
        Ok(Self {
            heads: HashMap::new(),
            next_rid: rid + 1,
            next_n: n + 1,
            names: HashSet::new(),
            changes: Vec::new(),
        })
    }

    /// The name of a definition, shared with other heads.
    pub(crate) fn name(&mut self, definition: &str) -> Arc<str> {
        if let Some(known) = self.names.get(definition) {
            return Arc::clone(known);
        }
        if self.names.len() >= MAX_NAMES {
            self.names.clear();
        }
        let name: Arc<str> = definition.into();
        self.names.insert(Arc::clone(&name));
        name
    }

    /// Counts a saga that has ended now.
    pub(crate) fn ended(&mut self, head: &Head) {
        if head.status.is_final() {
            self.count(Arc::clone(&head.definition), head.status, 1);
        }
    }

    /// Counts finished sagas, in this transaction.
    pub(crate) fn count(&mut self, definition: Arc<str>, status: SagaStatus, by: i64) {
        self.changes.push((definition, status, by));
    }

    /// Where the counting stands, to come back to.
    pub(crate) fn mark(&self) -> usize {
        self.changes.len()
    }

    /// Forgets what was counted since `mark`.
    pub(crate) fn back_to(&mut self, mark: usize) {
        self.changes.truncate(mark);
    }

    /// Writes what was counted, once per definition and status of a batch.
    pub(crate) fn write_tally(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        let mut sums: BTreeMap<(&Arc<str>, &str), i64> = BTreeMap::new();
        for (definition, status, by) in &self.changes {
            *sums.entry((definition, status.as_str())).or_default() += by;
        }
        for ((definition, status), by) in sums.into_iter().filter(|(_, by)| *by != 0) {
            conn.prepare_cached(
                "insert into tally values (?1, ?2, ?3)
                 on conflict do update set count = count + excluded.count",
            )?
            .execute(params![definition, status, by])?;
        }
        self.changes.clear();
        Ok(())
    }

    /// The row id of a new saga.
    pub(crate) fn rid(&mut self) -> i64 {
        self.next_rid += 1;
        self.next_rid - 1
    }

    /// The number of a new row of the log.
    pub(crate) fn n(&mut self) -> i64 {
        self.next_n += 1;
        self.next_n - 1
    }

    /// The head of `uid`, if there is such a saga.
    pub(crate) fn head(&mut self, conn: &Connection, uid: &Uid) -> Result<Option<Head>, Step> {
        if let Some(head) = self.heads.get(uid) {
            return Ok(Some(head.clone()));
        }
        let found = conn
            .prepare_cached(
                "select rid, epoch, next_seq, bytes, posts, status, due, last_n, definition, overdue from saga where uid = ?1",
            )?
            .query_row([uid.as_str()], |r| {
                let status: String = r.get(5)?;
                let head = Head {
                    rid: r.get(0)?,
                    epoch: r.get(1)?,
                    next_seq: r.get(2)?,
                    bytes: r.get(3)?,
                    posts: r.get(4)?,
                    status: SagaStatus::Running,
                    due: r.get(6)?,
                    overdue: r.get(9)?,
                    last_n: r.get(7)?,
                    definition: r.get::<_, String>(8)?.into(),
                };
                Ok((head, status))
            })
            .optional()?;
        let Some((head, status)) = found else { return Ok(None) };
        let status =
            SagaStatus::parse(&status).ok_or_else(|| corrupt(format!("status `{status}` is unknown")))?;
        let definition = self.name(&head.definition);
        Ok(Some(Head { status, definition, ..head }))
    }

    /// Keeps what was just written. A finished saga is not needed again.
    pub(crate) fn keep(&mut self, uid: &Uid, head: Head) {
        if head.status.is_final() {
            self.heads.remove(uid);
            return;
        }
        if self.heads.len() >= MAX_HEADS {
            self.heads.clear();
        }
        self.heads.insert(uid.clone(), head);
    }

    /// Forgets a head that was written past the desk.
    pub(crate) fn forget(&mut self, uid: &Uid) {
        self.heads.remove(uid);
    }

    /// Forgets every head: the file may not say what was written last.
    pub(crate) fn forget_all(&mut self) {
        self.heads.clear();
    }
}
