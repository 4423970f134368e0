//! What the writer keeps at hand: heads of sagas under way, and the next numbers.
//!
//! Only the writer changes the file, so what it wrote last is what the file says. A head that is not at hand
//! is read again; a rollback forgets them all.

use std::collections::HashMap;

use mainstay_store::journal::{SagaStatus, Uid};
use rusqlite::{Connection, OptionalExtension};

use crate::error::{corrupt, store_error};
use crate::writer::Step;

/// Heads at hand, about 200 bytes each. One more empties the desk: a miss costs one read.
const MAX_HEADS: usize = 16 * 1024;

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
    /// The saga's newest row of the log, 0 when it has none.
    pub(crate) last_n: i64,
}

/// Heads, and numbers that are never given twice.
pub(crate) struct Desk {
    heads: HashMap<Uid, Head>,
    next_rid: i64,
    next_n: i64,
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
        Ok(Self { heads: HashMap::new(), next_rid: rid + 1, next_n: n + 1 })
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
    pub(crate) fn head(&self, conn: &Connection, uid: &Uid) -> Result<Option<Head>, Step> {
        if let Some(head) = self.heads.get(uid) {
            return Ok(Some(head.clone()));
        }
        let found = conn
            .prepare_cached(
                "select rid, epoch, next_seq, bytes, posts, status, due, last_n from saga where uid = ?1",
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
                    last_n: r.get(7)?,
                };
                Ok((head, status))
            })
            .optional()?;
        let Some((head, status)) = found else { return Ok(None) };
        let status =
            SagaStatus::parse(&status).ok_or_else(|| corrupt(format!("status `{status}` is unknown")))?;
        Ok(Some(Head { status, ..head }))
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
