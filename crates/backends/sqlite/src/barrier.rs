//! The participant barrier, executed on a SQLite transaction of the participant's own.
//!
//! Open the transaction with `BEGIN IMMEDIATE`: then two deliveries of one request wait for each other.

use mainstay_store::barrier::{BarrierRow, BarrierRows, By, StoredReply};
use mainstay_store::{FencingToken, Result};
use rusqlite::{Connection, OptionalExtension, params};

use crate::error::store_error;

/// Creates the barrier's tables in the participant's database unless they exist.
///
/// # Errors
/// When the database cannot be written.
pub fn create_tables(conn: &Connection) -> Result<()> {
    conn.execute_batch(
        "create table if not exists mainstay_barrier (
           saga text not null, step text not null, op text not null, by_op text not null,
           rejected integer, status integer, reply blob, primary key (saga, step, op)) without rowid;
         create table if not exists mainstay_barrier_token (saga text primary key, token integer not null) without rowid;",
    )
    .map_err(store_error)
}

/// The barrier rows of one saga step inside the transaction open on `conn`.
///
/// ```
/// use mainstay_sqlite::barrier::{Rows, create_tables};
/// use mainstay_store::FencingToken;
/// use mainstay_store::barrier::{Entry, Op, enter, finish};
///
/// let conn = rusqlite::Connection::open_in_memory().unwrap();
/// create_tables(&conn).unwrap();
/// let (op, token) = (Op::Action { generation: 1 }, FencingToken::new(1));
/// conn.execute_batch("begin immediate").unwrap();
/// let mut rows = Rows::new(&conn, "saga-1", "charge");
/// assert_eq!(enter(&mut rows, &op, token).unwrap(), Entry::Run { action: None });
/// // .. the participant's own writes ..
/// finish(&mut rows, &op, 200, b"{}".to_vec()).unwrap();
/// conn.execute_batch("commit").unwrap();
/// assert!(matches!(enter(&mut Rows::new(&conn, "saga-1", "charge"), &op, token).unwrap(), Entry::Duplicate(_)));
/// ```
#[derive(Debug)]
pub struct Rows<'c> {
    conn: &'c Connection,
    saga: &'c str,
    step: &'c str,
}

impl<'c> Rows<'c> {
    /// The rows of `step` of `saga`.
    #[must_use]
    pub fn new(conn: &'c Connection, saga: &'c str, step: &'c str) -> Self {
        Self { conn, saga, step }
    }
}

impl BarrierRows for Rows<'_> {
    fn raise_token(&mut self, token: FencingToken) -> Result<FencingToken> {
        let token = i64::try_from(token.get()).unwrap_or(i64::MAX);
        let stored: i64 = self
            .conn
            .prepare_cached(
                "insert into mainstay_barrier_token values (?1, ?2)
                 on conflict (saga) do update set token = max(token, excluded.token) returning token",
            )
            .and_then(|mut s| s.query_row(params![self.saga, token], |r| r.get(0)))
            .map_err(store_error)?;
        Ok(FencingToken::new(u64::try_from(stored).unwrap_or(0)))
    }

    fn insert_or_get(&mut self, op: &str, by: By) -> Result<Option<BarrierRow>> {
        let by = match by {
            By::Action => "action",
            By::Undo => "undo",
        };
        let inserted = self
            .conn
            .prepare_cached("insert into mainstay_barrier (saga, step, op, by_op) values (?1, ?2, ?3, ?4) on conflict do nothing")
            .and_then(|mut s| s.execute(params![self.saga, self.step, op, by]))
            .map_err(store_error)?;
        if inserted == 1 {
            return Ok(None);
        }
        self.conn
            .prepare_cached(
                "select by_op, rejected, status, reply from mainstay_barrier where saga = ?1 and step = ?2 and op = ?3",
            )
            .and_then(|mut s| {
                s.query_row(params![self.saga, self.step, op], |r| {
                    let by = if r.get::<_, String>(0)? == "undo" { By::Undo } else { By::Action };
                    let reply: Option<Vec<u8>> = r.get(3)?;
                    let reply = match reply {
                        None => None,
                        Some(body) => Some(StoredReply { rejected: r.get(1)?, status: r.get(2)?, body }),
                    };
                    Ok(BarrierRow { by, reply })
                })
                .optional()
            })
            .map_err(store_error)
    }

    fn set_reply(&mut self, op: &str, reply: &StoredReply) -> Result<()> {
        self.conn
            .prepare_cached(
                "update mainstay_barrier set rejected = ?4, status = ?5, reply = ?6 where saga = ?1 and step = ?2 and op = ?3",
            )
            .and_then(|mut s| {
                s.execute(params![self.saga, self.step, op, reply.rejected, reply.status, reply.body])
            })
            .map(drop)
            .map_err(store_error)
    }

    fn savepoint(&mut self) -> Result<()> {
        self.conn.execute_batch("savepoint mainstay_work").map_err(store_error)
    }

    fn back_to_savepoint(&mut self) -> Result<()> {
        self.conn.execute_batch("rollback to mainstay_work").map_err(store_error)
    }
}
