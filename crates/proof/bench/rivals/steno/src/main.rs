//! The saga workload on steno. Variants: `memory` (no durability) and `sync` (one fdatasync per event).

#[path = "../../../src/load.rs"]
mod load;

use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use steno::{
    Action, ActionContext, ActionError, ActionFunc, ActionRegistry, DagBuilder, Node, SagaCachedState,
    SagaCreateParams, SagaDag, SagaId, SagaName, SagaNodeEvent, SagaType, SecStore,
};

#[derive(Debug, Deserialize, Serialize)]
struct Params {
    n: u64,
    fails: bool,
}

#[derive(Debug)]
struct Order;

impl SagaType for Order {
    type ExecContextType = Arc<()>;
}

async fn forward(cx: ActionContext<Order>) -> Result<u64, ActionError> {
    Ok(cx.saga_params::<Params>()?.n + 1)
}

async fn ship(cx: ActionContext<Order>) -> Result<u64, ActionError> {
    let params = cx.saga_params::<Params>()?;
    if params.fails { Err(ActionError::action_failed("no carrier".to_owned())) } else { Ok(params.n + 1) }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn back(_: ActionContext<Order>) -> Result<(), anyhow::Error> {
    Ok(())
}

static RESERVE: LazyLock<Arc<dyn Action<Order>>> =
    LazyLock::new(|| ActionFunc::new_action("reserve", forward, back));
static CHARGE: LazyLock<Arc<dyn Action<Order>>> =
    LazyLock::new(|| ActionFunc::new_action("charge", forward, back));
static SHIP: LazyLock<Arc<dyn Action<Order>>> = LazyLock::new(|| ActionFunc::new_action("ship", ship, back));

/// Appends each event to a file and syncs it.
#[derive(Debug)]
struct Synced(Mutex<File>);

impl Synced {
    fn write(&self, bytes: &[u8]) {
        tokio::task::block_in_place(|| {
            let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            file.write_all(bytes).expect("the log takes no more bytes");
            rustix::fs::fdatasync(&*file).expect("the log cannot be synced");
        });
    }
}

#[async_trait::async_trait]
impl SecStore for Synced {
    async fn saga_create(&self, params: SagaCreateParams) -> Result<(), anyhow::Error> {
        self.write(&serde_json::to_vec(&params)?);
        Ok(())
    }

    async fn record_event(&self, event: SagaNodeEvent) {
        self.write(&serde_json::to_vec(&event).expect("an event is plain data"));
    }

    async fn saga_update(&self, id: SagaId, update: SagaCachedState) {
        self.write(format!("{id} {update}").as_bytes());
    }
}

fn dag(n: u64, fails: bool) -> Arc<SagaDag> {
    let mut b = DagBuilder::new(SagaName::new("order"));
    b.append(Node::action("reserved", "Reserve", RESERVE.as_ref()));
    b.append(Node::action("charged", "Charge", CHARGE.as_ref()));
    b.append(Node::action("shipped", "Ship", SHIP.as_ref()));
    let params = serde_json::to_value(Params { n, fails }).expect("params are plain data");
    Arc::new(SagaDag::new(b.build().expect("the graph is a line"), params))
}

fn main() -> Result<(), Failure> {
    let order = load::Order::read(std::env::args().skip(1))?;
    let runtime = tokio::runtime::Runtime::new()?;
    let figures = runtime.block_on(async {
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let store: Arc<dyn SecStore> = match order.variant.as_str() {
            "sync" => Arc::new(Synced(Mutex::new(File::create(format!("{}/steno.log", order.dir))?))),
            _ => Arc::new(steno::InMemorySecStore::new()),
        };
        let sec = Arc::new(steno::sec(log, store));
        let mut registry = ActionRegistry::new();
        [&RESERVE, &CHARGE, &SHIP].into_iter().for_each(|a| registry.register(Arc::clone(a)));
        let registry = Arc::new(registry);
        let fails = order.fails();
        let figures = load::closed_loop(&order, move |n| {
            let (sec, registry) = (Arc::clone(&sec), Arc::clone(&registry));
            async move {
                let id = SagaId::new_v4();
                let created = sec.saga_create(id, Arc::new(Arc::new(())), dag(n, fails), registry).await;
                let Ok(ended) = created else { return false };
                if sec.saga_start(id).await.is_err() {
                    return false;
                }
                match ended.await.kind {
                    Ok(_) => !fails,
                    Err(e) => fails && e.undo_failure.is_none(),
                }
            }
        });
        Ok::<_, Failure>(figures.await)
    })?;
    println!("{}", figures.line());
    Ok(())
}
