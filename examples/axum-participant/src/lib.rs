//! A payment service as a participant of sagas: an axum router over one SQLite file.
//!
//! What makes a repeated delivery harmless is one line, [`perform`]: the fence, the barrier, the charge and the stored reply are one
//! transaction, committed before the answer.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::routing::post_service;
use mainstay::saga::inbound::{Call, ExecuteError, Executor, InboundLayer, Steps, done, no};
use mainstay::sqlite::barrier::{Rows, create_tables};
use mainstay::store::BoxFuture;
use mainstay::store::barrier::{Performed, Work, perform};
use rusqlite::{Connection, TransactionBehavior};
use serde_json::json;
use tower::Layer as _;

/// The service's database. Clones share it.
#[derive(Clone, Debug)]
pub struct Payments {
    ledger: Arc<Mutex<Connection>>,
}

impl Payments {
    /// Opens the ledger.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn open(file: &Path) -> anyhow::Result<Self> {
        let conn = Connection::open(file)?;
        conn.pragma_update(None, "journal_mode", "wal")?;
        conn.pragma_update(None, "synchronous", "full")?;
        conn.execute_batch("create table if not exists charge (saga text, cents integer)")?;
        create_tables(&conn)?;
        Ok(Self { ledger: Arc::new(Mutex::new(conn)) })
    }

    /// The routes: `/charge` and `/refund` are one step and its undo.
    pub fn router(&self, inbound: &InboundLayer) -> Router {
        let steps = inbound.layer(Steps::new(Arc::new(self.clone())));
        Router::new().route("/charge", post_service(steps.clone())).route("/refund", post_service(steps))
    }

    /// What was charged and not refunded.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn balance(&self) -> anyhow::Result<i64> {
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(ledger.query_row("select coalesce(sum(cents), 0) from charge", [], |r| r.get(0))?)
    }

    /// How many lines the ledger has: charges and refunds that took effect.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn lines(&self) -> anyhow::Result<i64> {
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(ledger.query_row("select count(*) from charge", [], |r| r.get(0))?)
    }

    fn transact(&self, call: &Call) -> Result<Performed, ExecuteError> {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        // IMMEDIATE: two deliveries of one request wait for each other.
        let tx = ledger.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut rows = Rows::new(&tx, &call.saga, &call.step);
        let performed = perform(&mut rows, &call.op, call.fencing_token, |_| business(&tx, call))?;
        if performed.commits() {
            tx.commit()?;
        }
        Ok(performed)
    }
}

/// The business itself. It need not know of duplicates, late calls and stale owners.
fn business(tx: &Connection, call: &Call) -> Result<Work, ExecuteError> {
    let cents = call.input["cents"].as_i64().unwrap_or(0);
    let signed = if call.told.is_some() { -cents } else { cents };
    tx.execute("insert into charge values (?1, ?2)", (&call.saga, signed))?;
    if call.told.is_none() && call.input["card"] == "declined" {
        // What was written is taken back with the savepoint.
        return Ok(no("the card was declined"));
    }
    Ok(done(&json!({ "cents": signed })))
}

impl Executor for Payments {
    fn execute(&self, call: Call) -> BoxFuture<'_, Result<Performed, ExecuteError>> {
        let this = self.clone();
        Box::pin(async move { tokio::task::spawn_blocking(move || this.transact(&call)).await? })
    }
}
