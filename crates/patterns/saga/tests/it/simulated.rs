//! The engine itself under the simulator: several nodes on one journal, behind a network that loses, delays
//! and repeats, with crashes, pauses and partitions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_saga::definition::{Definition, DefinitionData, RetryData, StepData};
use mainstay_saga::engine::{Config, StartOptions};
use mainstay_saga::{Engine, LocalStep, StepCx, StepError, Told, UndoError};
use mainstay_sim::check::ledger;
use mainstay_sim::history::Effect;
use mainstay_sim::sim::{FaultKind, Faults, Node, Report, World, seed_lines};
use mainstay_sim::{Sim, sometimes};
use mainstay_store::journal::{Filter, SagaStatus};
use mainstay_store::{BoxFuture, Journal};
use serde_json::{Value, json};

/// What must have happened in a campaign, or it proves nothing.
const DID: &str = "an undo was told that its action did";
const MAYBE: &str = "an undo was told that its action may have";

/// Participants with a barrier: by key, by order, by token.
#[derive(Default)]
struct Participants(Mutex<BTreeMap<String, (bool, bool)>>);

/// One step, called over the network of its node.
struct Remote {
    node: Node,
    participants: Arc<Participants>,
    /// Every n-th saga is refused here.
    refuses: u64,
}

fn effect(world: &World, cx: &StepCx, what: &str, amount: i64) {
    let mut effect = Effect::new(
        "participant",
        &format!("{}/{}", cx.saga, cx.step),
        &format!("{}/{what}", cx.idempotency_key),
        amount,
        0,
    );
    effect.epoch = Some(cx.fence.get());
    world.effect(effect);
}

impl LocalStep for Remote {
    fn act(&self, cx: StepCx, input: Value) -> BoxFuture<'_, Result<Value, StepError>> {
        let (world, participants) = (self.node.world().clone(), Arc::clone(&self.participants));
        let refused = self.refuses > 0 && input["n"].as_u64().unwrap_or(0).is_multiple_of(self.refuses);
        let act = move || -> BoxFuture<'static, mainstay_store::Result<bool>> {
            let mut entries = participants.0.lock().unwrap();
            let entry = entries.entry(cx.idempotency_key.clone()).or_default();
            let runs = !entry.1 && !refused;
            if runs && !entry.0 {
                entry.0 = true;
                effect(&world, &cx, "act", 1);
            }
            Box::pin(async move { Ok(runs) })
        };
        Box::pin(async move {
            let process = self.node.process();
            let pending = process.begin("act", "step").via(&self.node.via());
            match self.node.call(act).await {
                Ok(true) => {
                    pending.ok();
                    Ok(json!({}))
                }
                Ok(false) => {
                    pending.fail();
                    Err(StepError::rejected("no"))
                }
                Err(error) => {
                    pending.error(&error, true);
                    Err(StepError::unknown(error))
                }
            }
        })
    }

    fn undo(&self, cx: StepCx, told: Told<Value>, _: Value) -> BoxFuture<'_, Result<(), UndoError>> {
        sometimes!(self.node.world(), if told == Told::Maybe { MAYBE } else { DID });
        let (world, participants) = (self.node.world().clone(), Arc::clone(&self.participants));
        let key = cx.idempotency_key.replace("/undo", "/action");
        let undo = move || -> BoxFuture<'static, mainstay_store::Result<()>> {
            let mut entries = participants.0.lock().unwrap();
            let entry = entries.entry(key.clone()).or_default();
            if entry.0 && !entry.1 {
                effect(&world, &cx, "undo", -1);
            }
            entry.1 = true;
            Box::pin(async { Ok(()) })
        };
        Box::pin(async move { self.node.call(undo).await.map_err(UndoError::failed) })
    }
}

fn definition() -> Definition {
    let mut data = DefinitionData::new("order", 1);
    data.no_deadline = true;
    for (name, after) in [("reserve", None), ("charge", Some("reserve")), ("ship", Some("charge"))] {
        let mut step = StepData::new(name);
        step.after = after.into_iter().map(str::to_owned).collect();
        step.local_undo = true;
        step.timeout = Some(Duration::from_secs(2));
        step.retry = Some(RetryData::new(4, Duration::from_millis(50), Duration::from_millis(500)));
        step.undo_retry = Some(RetryData::new(200, Duration::from_millis(50), Duration::from_secs(1)));
        step.input = Some(json!("$input"));
        data.steps.push(step);
    }
    Definition::from_data(data).unwrap()
}

async fn node_main(node: Node, participants: Arc<Participants>) {
    let definition = definition();
    let remote = |refuses| {
        Arc::new(Remote { node: node.clone(), participants: Arc::clone(&participants), refuses })
            as Arc<dyn LocalStep>
    };
    let steps = [("reserve", 0), ("charge", 0), ("ship", 3)]
        .map(|(name, refuses)| (name.to_owned(), remote(refuses)));
    let engine = loop {
        let mut config = Config::default();
        config.node = node.name().to_owned();
        config.claim_ttl = Duration::from_secs(3);
        let builder = Engine::builder(node.journal(), node.runtime()).config(config);
        match builder.definition(definition.clone(), steps.clone()).open().await {
            Ok(engine) => break engine,
            // The store could not be reached: a supervisor starts the process again.
            Err(_) => node.clock().sleep(Duration::from_millis(200)).await,
        }
    };
    // Starts are repeated under their ids until they are answered, also after a crash.
    for n in 0..node.world().ops() {
        let id = format!("{}-{n}", node.name());
        while engine.start("order", json!({"n": n}), StartOptions::id(id.clone())).await.is_err() {
            node.clock().sleep(Duration::from_millis(100)).await;
        }
        node.clock().sleep(Duration::from_millis(300)).await;
    }
    std::future::pending().await
}

async fn scenario(world: World) {
    let participants: Arc<Participants> = Arc::default();
    world.start_all(move |node| node_main(node, Arc::clone(&participants)));
    world.finished().await;
    let rows = world.journal().query(&Filter::default(), None, 10_000).await.unwrap().rows;
    let expected = world.nodes() as u64 * world.ops();
    if rows.len() as u64 != expected {
        world.fail(format!("{} of {expected} sagas exist", rows.len()));
    }
    for row in rows {
        if !row.row.status.is_final() {
            let loaded = world.journal().load(&row.uid).await.unwrap().unwrap();
            let log: Vec<_> =
                loaded.records.iter().map(|r| mainstay_saga::wire::decode(r).unwrap()).collect();
            world.fail(format!("saga {} has not ended long after the heal: {row:?} {log:?}", row.id));
        }
        let refused = row
            .id
            .rsplit('-')
            .next()
            .and_then(|n| n.parse::<u64>().ok())
            .is_some_and(|n| n.is_multiple_of(3));
        if refused && row.row.status == SagaStatus::Completed {
            world.fail(format!("saga {} completed though its last step said no", row.id));
        }
    }
}

const REPLIES: [FaultKind; 4] =
    [FaultKind::ReplyLost, FaultKind::LateReply, FaultKind::LateRequest, FaultKind::DuplicateRequest];

const NODES: [FaultKind; 16] = [
    FaultKind::ClockRate,
    FaultKind::ClockSkew,
    FaultKind::WallJump,
    FaultKind::Crash,
    FaultKind::Pause,
    FaultKind::Isolate,
    FaultKind::OneWay,
    FaultKind::Clog,
    FaultKind::Reset,
    FaultKind::StoreCrash,
    FaultKind::StorePause,
    FaultKind::ErrorReply,
    FaultKind::RequestLost,
    FaultKind::ReplyLost,
    FaultKind::DuplicateRequest,
    FaultKind::Slow,
];

fn campaign(name: &str, kinds: &[FaultKind], seeds: std::ops::Range<u64>) -> Report {
    let faults = Faults::only(kinds).healing_after(Duration::from_secs(10));
    let sim = Sim::builder(name)
        .seeds(seeds)
        .nodes(2)
        .ops(6)
        .sometimes(DID)
        .sometimes(MAYBE)
        .faults(faults)
        .liveness(Duration::from_secs(240))
        .build()
        .unwrap();
    sim.run(scenario).check(ledger).judge()
}

#[test]
fn sg_x03_m_g2_replies_lost_in_commit_and_at_participants_double_nothing() {
    campaign("saga-replies", &REPLIES, 0..40).assert_pass();
}

#[test]
fn sg_f03_m_g4_m_g9_two_nodes_crash_pause_and_lose_each_other_without_a_half_done_saga() {
    campaign("saga-nodes", &NODES, 0..80).assert_pass();
}

#[test]
fn every_recorded_seed_gives_its_verdict() {
    let lines = seed_lines(include_str!("../../seeds.txt")).unwrap();
    assert!(!lines.is_empty());
    for line in lines {
        let kinds: &[FaultKind] = if line.suite == "saga-nodes" { &NODES } else { &REPLIES };
        let report = campaign(&line.suite, kinds, line.seed..line.seed + 1);
        let verdict = if report.failures.is_empty() { "PASS" } else { "FAIL" };
        assert_eq!(verdict, line.verdict, "{report}");
    }
}
