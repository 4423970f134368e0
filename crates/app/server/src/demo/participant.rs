//! A service of the demo: one step, its undo, and a ledger of its own that is synced before the reply.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use mainstay_sqlite::barrier::{Rows, create_tables};
use mainstay_store::FencingToken;
use mainstay_store::barrier::{Entry, Op, StoredReply, enter, finish, reject};
use rusqlite::{Connection, TransactionBehavior, params};
use serde_json::{Value, json};

use crate::error::{Code, Error, Result};

/// Arguments of the hidden command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// `inventory`, `payment` or `shipping`.
    #[arg(long)]
    service: String,
    /// The ledger's file.
    #[arg(long)]
    ledger: PathBuf,
    /// Without the barrier: what is delivered twice is done twice.
    #[arg(long)]
    no_barrier: bool,
}

struct Service {
    name: String,
    barrier: bool,
    ledger: Mutex<Connection>,
}

/// One call, understood.
struct Call {
    saga: String,
    step: String,
    op: Op,
    token: FencingToken,
    /// The saga's input, for an action and for its undo.
    input: Value,
}

/// Serves on a free port of loopback, which it prints.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let failed = |e| Error::with(Code::DataDir, format!("cannot open {}", args.ledger.display()), e);
    let service = Arc::new(Service {
        name: args.service.clone(),
        barrier: !args.no_barrier,
        ledger: Mutex::new(open(&args.ledger).map_err(failed)?),
    });
    let internal = |e: std::io::Error| Error::with(Code::CannotListen, "the service cannot listen", e);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(internal)?;
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.map_err(internal)?;
        let address = listener.local_addr().map_err(internal)?;
        let router = Router::new().route("/{operation}", post(handle)).with_state(service);
        eprintln!("mainstay: listening on http://{address}");
        axum::serve(listener, router).await.map_err(internal)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Opens a ledger, made unless it exists.
pub(super) fn open(file: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open(file)?;
    // Longer than a machine stands still: the audit may look while a service that was killed comes up again.
    conn.busy_timeout(std::time::Duration::from_secs(60))?;
    conn.pragma_update(None, "journal_mode", "wal")?;
    conn.pragma_update(None, "synchronous", "full")?;
    conn.execute_batch(
        "create table if not exists effect (
           n integer primary key, saga text not null, order_id text not null, kind text not null,
           amount integer not null, token integer not null);
         create table if not exists tally (name text primary key, count integer not null) without rowid;
         create table if not exists total (one integer primary key check (one = 1), value integer not null);
         insert or ignore into total values (1, 0);",
    )?;
    create_tables(&conn).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    Ok(conn)
}

async fn handle(State(service): State<Arc<Service>>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(call) = Call::parse(&headers, &body) else {
        return (StatusCode::BAD_REQUEST, "not a call of a saga").into_response();
    };
    let work = move || {
        let mut ledger = service.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        service.decide(&mut ledger, &call)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(reply)) => answer(reply),
        Ok(Err(e)) => (StatusCode::SERVICE_UNAVAILABLE, e.to_string()).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn answer(reply: StoredReply) -> Response {
    let kind = if reply.status < 300 { "application/json" } else { "application/problem+json" };
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [("content-type", kind)], reply.body).into_response()
}

impl Call {
    fn parse(headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
        let op = Op::parse(&text("saga-op")?)?;
        let body: Value = serde_json::from_slice(body).ok()?;
        let input = if matches!(op, Op::Undo { .. }) { body["input"].clone() } else { body };
        let token = FencingToken::new(text("fencing-token")?.parse().ok()?);
        Some(Self { saga: text("saga-id")?, step: text("saga-step")?, op, token, input })
    }
}

type Decided = std::result::Result<StoredReply, Box<dyn std::error::Error + Send + Sync>>;

impl Service {
    /// Everything about one call in one transaction: barrier, effect, reply.
    fn decide(&self, ledger: &mut Connection, call: &Call) -> Decided {
        let tx = ledger.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let reply = if self.barrier { self.guarded(&tx, call)? } else { self.act(&tx, call)? };
        tx.commit()?;
        Ok(reply)
    }

    fn guarded(&self, tx: &Connection, call: &Call) -> Decided {
        let mut rows = Rows::new(tx, &call.saga, &call.step);
        match enter(&mut rows, &call.op, call.token)? {
            Entry::Duplicate(reply) => {
                count(tx, "duplicate")?;
                Ok(reply)
            }
            Entry::Late => {
                count(tx, "late")?;
                Ok(no("undone before it came"))
            }
            Entry::NullUndo => {
                count(tx, "null_undo")?;
                Ok(yes(&json!({})))
            }
            Entry::StaleToken { seen } => {
                count(tx, "stale")?;
                let body = json!({"title": format!("a newer owner of the saga has token {seen}")});
                Ok(StoredReply { rejected: false, status: 412, body: body.to_string().into_bytes() })
            }
            Entry::Run { .. } => {
                let reply = self.act(tx, call)?;
                let keep = if reply.rejected { reject } else { finish };
                keep(&mut rows, &call.op, reply.status, reply.body.clone())?;
                Ok(reply)
            }
        }
    }

    /// The business itself: says no, or writes the effect.
    fn act(&self, tx: &Connection, call: &Call) -> Decided {
        let is_undo = matches!(call.op, Op::Undo { .. });
        if let Some(why) = self.refusal(&call.input, is_undo) {
            return Ok(no(why));
        }
        let amount = match self.name.as_str() {
            "inventory" => call.input["items"].as_i64().unwrap_or(0),
            "payment" => call.input["cents"].as_i64().unwrap_or(0),
            _ => 1,
        };
        let (kind, signed) = if is_undo { ("undo", -amount) } else { ("do", amount) };
        let token = i64::try_from(call.token.get())?;
        tx.execute(
            "insert into effect (saga, order_id, kind, amount, token) values (?1, ?2, ?3, ?4, ?5)",
            params![call.saga, call.input["order"].as_str().unwrap_or_default(), kind, amount, token],
        )?;
        tx.execute("update total set value = value + ?1", [signed])?;
        Ok(yes(&json!({"amount": amount})))
    }

    fn refusal(&self, input: &Value, is_undo: bool) -> Option<&'static str> {
        match (self.name.as_str(), is_undo) {
            ("inventory", false) => (input["article"] == "sold-out").then_some("sold out"),
            ("payment", false) => (input["card"] == "declined").then_some("the card was declined"),
            ("payment", true) => (input["account"] == "closed").then_some("the account was closed"),
            ("shipping", false) => (input["address"] == "nowhere").then_some("there is no such address"),
            _ => None,
        }
    }
}

fn count(tx: &Connection, name: &str) -> rusqlite::Result<()> {
    tx.execute(
        "insert into tally values (?1, 1) on conflict (name) do update set count = count + 1",
        [name],
    )?;
    Ok(())
}

fn yes(body: &Value) -> StoredReply {
    StoredReply { rejected: false, status: 200, body: body.to_string().into_bytes() }
}

/// A business no: this operation has no effect, now or later.
fn no(why: &str) -> StoredReply {
    let body = json!({"title": why, "effect": "none"});
    StoredReply { rejected: true, status: 409, body: body.to_string().into_bytes() }
}
