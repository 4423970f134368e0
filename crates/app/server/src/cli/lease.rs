//! `lease`: who holds what, and how to take it away.

use std::process::ExitCode;

use mainstay_clock::Runtime;
use mainstay_store::LeaseStore;
use mainstay_store::lease::{Holder, LeaseInfo};
use serde_json::{Value, json};

use super::store::{StoreArgs, failed};
use crate::api::instant;
use crate::cli::Output;
use crate::error::{Code, Error, Result};
use crate::leases::{left, with_since};

/// Most leases of one listing.
const LIMIT: usize = 10_000;

/// Arguments of `lease`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    store: StoreArgs,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Output,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the leases of the namespace.
    Ls {
        /// Only names that begin so.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Show one lease: holders, token, since when, time left, waiters, note.
    Inspect {
        /// The name; of an election: election/NAME.
        name: String,
    },
    /// Take a lease away from whoever holds it. Its token is burned: the next holder has a higher one. The old
    /// holder notices at its next renewal; until then only a resource that checks tokens refuses its writes.
    Break {
        /// The name; of an election: election/NAME.
        name: String,
        /// The name again: nobody breaks a lease by accident.
        #[arg(long, value_name = "NAME")]
        confirm: String,
        /// Why; it is printed with the burned token.
        #[arg(long, value_name = "WHY")]
        reason: String,
    },
}

/// Runs `lease`.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::with(Code::Internal, "cannot start the runtime", e))?;
    let code = runtime.block_on(asked(args));
    runtime.shutdown_background();
    code
}

async fn asked(args: &Args) -> Result<ExitCode> {
    let store = args.store.open(&Runtime::system()).await?;
    let full = |name: &str| format!("{}/{name}", args.store.namespace);
    match &args.verb {
        Verb::Ls { prefix } => {
            let leases = store.list(&full(prefix), LIMIT).await;
            let leases = leases.map_err(|e| failed("the leases cannot be listed".to_owned(), e))?;
            let rows = leases.iter().map(|l| row(args, l)).collect();
            let json = leases.iter().map(|l| shown(args, l)).collect();
            args.output.rows(&["NAME", "HOLDER", "TOKEN", "SINCE", "LEFT", "WAITING", "NOTE"], rows, &json)
        }
        Verb::Inspect { name } => {
            let lease = store.inspect(&full(name)).await;
            let lease = lease.map_err(|e| failed(format!("`{name}` cannot be inspected"), e))?;
            let row = vec![row(args, &lease)];
            let head = ["NAME", "HOLDER", "TOKEN", "SINCE", "LEFT", "WAITING", "NOTE"];
            args.output.rows(&head, row, &shown(args, &lease))
        }
        Verb::Break { name, confirm, reason } => {
            if confirm != name {
                let why = format!("--confirm `{confirm}` is not the name `{name}`: nothing was broken");
                return Err(Error::new(Code::BadValue, why));
            }
            if reason.trim().is_empty() {
                return Err(Error::new(Code::BadValue, "--reason is empty: nothing was broken"));
            }
            broken(args, store.as_ref(), &full(name), (name, reason)).await
        }
    }
}

async fn broken(
    args: &Args,
    store: &dyn LeaseStore,
    full: &str,
    (name, reason): (&str, &str),
) -> Result<ExitCode> {
    let held = store.inspect(full).await.map(|lease| !lease.holders.is_empty());
    let broken = store.break_lease(full).await;
    let token = broken.map_err(|e| failed(format!("`{name}` cannot be broken"), e))?.get().to_string();
    // A name that was mistyped twice is one that nobody holds.
    let state = if matches!(held, Ok(false)) { "was held by nobody" } else { "is free" };
    eprintln!(
        "mainstay: `{name}` {state}. Its last token is {token}: tell it to the resource, so that the old holder \
         is refused before somebody else writes"
    );
    args.output.rows(
        &["NAME", "TOKEN", "REASON"],
        vec![vec![name.to_owned(), token.clone(), reason.to_owned()]],
        &json!({"name": name, "token": token, "reason": reason}),
    )
}

/// The name as it was given.
fn name<'a>(args: &Args, lease: &'a LeaseInfo) -> &'a str {
    let name = lease.name.strip_prefix(&args.store.namespace).and_then(|n| n.strip_prefix('/'));
    name.unwrap_or(&lease.name)
}

fn row(args: &Args, lease: &LeaseInfo) -> Vec<String> {
    let lines = |cell: fn(&Holder) -> String| lease.holders.iter().map(cell).collect::<Vec<_>>().join(", ");
    vec![
        name(args, lease).to_owned(),
        if lease.holders.is_empty() { "-".to_owned() } else { lines(|h| h.owner.clone()) },
        if lease.holders.is_empty() { "-".to_owned() } else { lines(|h| h.token.get().to_string()) },
        lines(|h| h.since.map_or("unknown".to_owned(), |s| instant(s.at))),
        lines(|h| left(h.remaining).map_or("no expiry".to_owned(), |d| format!("{:.1} s", d.as_secs_f64()))),
        lease.waiting.to_string(),
        lease.note.clone(),
    ]
}

/// Tokens are text: a number beyond 2^53 does not survive every reader of JSON. `left_ms` is null where there is no
/// expiry, `since` where nobody wrote it down.
fn shown(args: &Args, lease: &LeaseInfo) -> Value {
    let holders: Vec<Value> = lease
        .holders
        .iter()
        .map(|h| {
            let left = left(h.remaining).map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
            let told = json!({"owner": h.owner, "token": h.token.get().to_string(), "left_ms": left});
            with_since(told, h)
        })
        .collect();
    json!({
        "name": name(args, lease),
        "holders": holders,
        "last_token": lease.last_token.get().to_string(),
        "waiting": lease.waiting,
        "note": lease.note,
    })
}
