//! Three orders against a real HTTP service: one goes through, one is declined, and one is refunded because its
//! shipment fails. Then the ledger is asked.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use example_axum_participant::Payments;
use mainstay::clock::Runtime;
use mainstay::saga::definition::Definition;
use mainstay::saga::engine::StartOptions;
use mainstay::saga::http::{AddressPolicy, HttpParticipant, install_tls};
use mainstay::saga::inbound::InboundLayer;
use mainstay::saga::signature::Secret;
use mainstay::saga::{Engine, LocalStep, Outcome, StepCx, StepError, Told, UndoError};
use mainstay::sqlite::SqliteStore;
use mainstay::store::BoxFuture;
use serde_json::{Value, json};

/// Shared by both sides; in production it comes from a file.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The last step runs in the process, beside the remote one.
struct Ship;

impl LocalStep for Ship {
    fn act(&self, _: StepCx, input: Value) -> BoxFuture<'_, Result<Value, StepError>> {
        Box::pin(async move {
            match input["address"].as_str() {
                Some("nowhere") => Err(StepError::rejected("no carrier delivers there")),
                _ => Ok(Value::Null),
            }
        })
    }

    fn undo(&self, _: StepCx, _: Told<Value>, _: Value) -> BoxFuture<'_, Result<(), UndoError>> {
        Box::pin(async { Ok(()) })
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    install_tls();
    let dir = tempfile::tempdir()?;
    let runtime = Runtime::system();
    let payments = Payments::open(&dir.path().join("ledger.db"))?;
    let inbound = InboundLayer::signed([Secret::parse(SECRET)?], Arc::clone(runtime.clock()))?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", listener.local_addr()?);
    let router = payments.router(&inbound);
    let _server = runtime.spawn("payments", async move {
        // It ends with the process.
        let _ = axum::serve(listener, router).await;
    });

    let definition = Definition::from_json(
        json!({
            "name": "order", "version": 1, "deadline": "1h", "timeout": "60s",
            "steps": [
                {"name": "charge", "action": format!("{origin}/charge"), "undo": format!("{origin}/refund")},
                {"name": "ship", "after": ["charge"], "no_undo": "a refused shipment never left"},
            ],
        })
        .to_string()
        .as_bytes(),
    )?;
    let policy = AddressPolicy::only([origin.as_str()])?;
    let caller = HttpParticipant::builder(policy, Arc::clone(runtime.clock()));
    let caller = caller.sign(&origin, [Secret::parse(SECRET)?]).build()?;
    let store = SqliteStore::builder(dir.path().join("node.db")).open(&runtime)?;
    let ship = ("ship".to_owned(), Arc::new(Ship) as Arc<dyn LocalStep>);
    let engine = Engine::builder(Arc::new(store), runtime)
        .participant(Arc::new(caller))
        .definition(definition, [ship])
        .open()
        .await?;

    let run = async |id: &str, order: Value| -> anyhow::Result<Outcome> {
        Ok(engine.start("order", order, StartOptions::id(id)).await?.outcome().await?)
    };
    let fine = run("1", json!({"cents": 700, "address": "here"})).await?;
    ensure!(matches!(fine, Outcome::Completed { .. }), "{fine:?}");
    let declined = run("2", json!({"cents": 900, "card": "declined"})).await?;
    ensure!(matches!(declined, Outcome::Compensated { .. }), "{declined:?}");
    let refunded = run("3", json!({"cents": 800, "address": "nowhere"})).await?;
    ensure!(matches!(refunded, Outcome::Compensated { .. }), "{refunded:?}");
    ensure!(payments.balance()? == 700 && payments.lines()? == 3, "the ledger does not fit");
    engine.shutdown(Duration::from_secs(1)).await;
    Ok(())
}
