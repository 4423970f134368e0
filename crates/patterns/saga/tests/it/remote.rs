//! Remote steps on the engine, with a participant that answers by script.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::HeaderMap;
use mainstay_clock::{Clock, Instant};
use mainstay_resilience::{Breaker, Bulkhead, Policy};
use mainstay_saga::definition::{Definition, RetryData};
use mainstay_saga::engine::{ActionRequest, Config, StartOptions};
use mainstay_saga::exhaust::{Tap, TapJournal};
use mainstay_saga::participant::{Attempt, Guarded, Kind, Participant, Reply, Request};
use mainstay_saga::wire::{
    AttemptRef, Cause, Completed, Fact, Operation, Started, UndoVerdict, Verdict, decode, encode,
};
use mainstay_saga::{Engine, ErrorKind, Handle, Outcome};
use mainstay_store::journal::{Append, ClaimRequest, Claimant, Create, Hash, Row, SagaStatus, Uid};
use mainstay_store::{BoxFuture, Journal};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::bounds::{Looks, is_calm, nested};
use crate::world::World;

/// What one address answers, call by call; the last goes on for ever.
#[derive(Clone, Debug)]
pub(crate) enum Say {
    Status(u16, Vec<(&'static str, &'static str)>, Value),
    NotSent,
    Unknown,
    Never,
}

pub(crate) fn ok(body: Value) -> Say {
    Say::Status(200, Vec::new(), body)
}

pub(crate) fn say(status: u16) -> Say {
    Say::Status(status, Vec::new(), Value::Null)
}

#[derive(Debug, Default)]
pub(crate) struct Remote {
    script: Mutex<BTreeMap<String, Vec<Say>>>,
    calls: Mutex<Vec<Request>>,
}

impl Remote {
    pub(crate) fn script(&self, url: &str, says: &[Say]) {
        self.script.lock().unwrap().insert(format!("http://p/{url}"), says.to_vec());
    }

    /// The calls so far as `GET status`, in order.
    pub(crate) fn calls(&self) -> Vec<String> {
        let calls = self.calls.lock().unwrap();
        let verb = |kind| if kind == Kind::Act { "POST" } else { "GET" };
        calls.iter().map(|r| format!("{} {}", verb(r.kind), r.url.trim_start_matches("http://p/"))).collect()
    }

    /// All requests to an address, in order.
    pub(crate) fn all(&self, url: &str) -> Vec<Request> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|r| r.url == format!("http://p/{url}")).cloned().collect()
    }

    pub(crate) fn last(&self, url: &str) -> Request {
        let calls = self.calls.lock().unwrap();
        calls.iter().rev().find(|r| r.url == format!("http://p/{url}")).unwrap().clone()
    }
}

impl Participant for Remote {
    fn call(&self, request: Request, _: Instant) -> BoxFuture<'_, Reply> {
        let next = {
            let mut script = self.script.lock().unwrap();
            match script.get_mut(&request.url) {
                None => ok(json!({"at": request.url})),
                Some(says) if says.len() > 1 => says.remove(0),
                Some(says) => says[0].clone(),
            }
        };
        self.calls.lock().unwrap().push(request);
        Box::pin(async move {
            match next {
                Say::NotSent => Reply::NotSent("refused".to_owned()),
                Say::Unknown => Reply::Unknown("reset".to_owned()),
                Say::Never => std::future::pending().await,
                Say::Status(status, pairs, body) => {
                    let mut headers = HeaderMap::new();
                    for (name, value) in pairs {
                        headers.insert(name, value.parse().unwrap());
                    }
                    Reply::Answered(Attempt { status, headers, body: body.to_string().into_bytes() })
                }
            }
        })
    }
}

/// A breaker that opens at the second failure, and one call at a time.
fn narrow(world: &World) -> Policy {
    let breaker = Breaker::builder("p").consecutive(2).open_for(Duration::from_secs(5)).jitter(0.0);
    let breaker = breaker.runtime(&world.runtime()).build().unwrap();
    let bulkhead = Bulkhead::builder("p", 1).runtime(&world.runtime()).build().unwrap();
    let policy = Policy::builder("p").runtime(&world.runtime());
    policy.breaker(&breaker).bulkhead(&bulkhead).build().unwrap()
}

pub(crate) struct Bench {
    pub(crate) world: World,
    pub(crate) remote: Arc<Remote>,
    pub(crate) engine: Engine,
    definition: Definition,
}

fn definition() -> Definition {
    let policy = json!({"attempts": 2, "base": "10ms", "cap": "10ms"});
    let data = json!({
        "name": "remote", "version": 1, "deadline": "1h", "timeout": "10s", "retry": policy, "undo_retry": policy,
        "steps": [
            {"name": "charge", "action": "http://p/charge", "undo": "http://p/refund", "status": "http://p/status"},
            {"name": "ship", "after": ["charge"], "action": "http://p/ship", "no_undo": "a refused one never left"},
        ],
    });
    Definition::from_json(data.to_string().as_bytes()).unwrap()
}

impl Bench {
    pub(crate) async fn new() -> Self {
        Self::of(definition()).await
    }

    /// With a definition of one's own, called `remote`.
    pub(crate) async fn of(definition: Definition) -> Self {
        let (world, remote) = (World::new(), Arc::new(Remote::default()));
        let engine = Self::engine_of(&world, &remote, definition.clone()).await;
        Self { world, remote, engine, definition }
    }

    pub(crate) fn with(world: World, remote: Arc<Remote>, engine: Engine, definition: Definition) -> Self {
        Self { world, remote, engine, definition }
    }

    async fn engine_of(world: &World, remote: &Arc<Remote>, definition: Definition) -> Engine {
        Engine::builder(Arc::clone(&world.journal), world.runtime())
            .participant(Arc::clone(remote) as Arc<dyn Participant>)
            .definition(definition, [])
            .open()
            .await
            .unwrap()
    }

    /// Stops the engine where it is, and starts another one.
    pub(crate) async fn restart(&mut self) {
        self.engine.shutdown(Duration::ZERO).await;
        self.engine = Self::engine_of(&self.world, &self.remote, self.definition.clone()).await;
    }

    async fn engine(world: &World, remote: &Arc<Remote>) -> Engine {
        Self::engine_of(world, remote, definition()).await
    }

    /// An engine whose calls of `charge` go through a policy.
    async fn guarded() -> Self {
        let (world, remote) = (World::new(), Arc::new(Remote::default()));
        let policy = narrow(&world);
        let choose = move |url: &str| url.ends_with("/charge").then(|| policy.clone());
        let caller = Guarded::new(Arc::clone(&remote) as Arc<dyn Participant>, choose);
        let engine = Engine::builder(Arc::clone(&world.journal), world.runtime())
            .participant(Arc::new(caller))
            .definition(definition(), [])
            .open()
            .await
            .unwrap();
        Self { world, remote, engine, definition: definition() }
    }

    pub(crate) async fn start(&self) -> Handle {
        self.engine.start("remote", json!({"n": 1}), StartOptions::id("one")).await.unwrap()
    }

    pub(crate) async fn run(&self) -> Outcome {
        self.start().await.outcome().await.unwrap()
    }

    pub(crate) async fn facts(&self, handle: &Handle) -> Vec<Fact> {
        let loaded = self.world.journal.load(handle.uid()).await.unwrap().unwrap();
        loaded.records.iter().map(|r| decode(r).unwrap()).collect()
    }

    /// Waits until an address was called so often.
    pub(crate) async fn called(&self, url: &str, times: usize) {
        for _ in 0..1_000 {
            let calls = self.remote.calls().iter().filter(|c| c.ends_with(&format!(" {url}"))).count();
            if calls >= times {
                return;
            }
            self.world.clock.sleep(Duration::from_millis(10)).await;
        }
        panic!("{url} was not called {times} times: {:?}", self.remote.calls());
    }
}

pub(crate) fn at(step: &str, attempt: u32) -> AttemptRef {
    AttemptRef { step: step.to_owned(), attempt, generation: 1 }
}

#[tokio::test(start_paused = true)]
async fn a_maybe_is_asked_about_before_it_is_undone() {
    let undo = |body: &Value| body["effect"].as_str().unwrap().to_owned();
    for (status, undone_as) in [
        // It happened, and this was its output: the undo is told.
        (ok(json!({"state": "done", "output": {"receipt": 7}})), Some("did")),
        // Not so far: a late action may still come, so the undo must block it.
        (ok(json!({"state": "none"})), Some("maybe")),
        // Never: there is nothing to undo.
        (ok(json!({"state": "none", "effect": "none"})), None),
        (say(404), Some("maybe")),
        (say(500), Some("maybe")),
        (say(202), Some("maybe")),
        (Say::Unknown, Some("maybe")),
        (Say::Never, Some("maybe")),
    ] {
        let bench = Bench::new().await;
        bench.remote.script("charge", &[Say::Unknown]);
        bench.remote.script("status", std::slice::from_ref(&status));
        let outcome = bench.run().await;
        assert!(matches!(outcome, Outcome::Compensated { .. }), "{status:?}: {outcome:?}");
        let calls = bench.remote.calls();
        assert!(calls.contains(&"GET status".to_owned()), "{calls:?}");
        assert_eq!(calls.contains(&"POST refund".to_owned()), undone_as.is_some(), "{status:?}: {calls:?}");
        if let Some(told) = undone_as {
            let body: Value = serde_json::from_slice(&bench.remote.last("refund").body).unwrap();
            assert_eq!(undo(&body), told, "{status:?}");
            assert_eq!(body["input"], json!({"n": 1}));
            let output = if told == "did" { json!({"receipt": 7}) } else { Value::Null };
            assert_eq!(body["output"], output, "{status:?}");
        }
        // The question carries the key of the action that it asks after.
        assert!(bench.remote.last("status").idempotency_key.ends_with("/charge/action"));
    }
    // What certainly happened is not asked about.
    let bench = Bench::new().await;
    bench.remote.script("ship", &[say(409)]);
    bench.run().await;
    assert_eq!(bench.remote.calls(), ["POST charge", "POST ship", "POST refund"]);
}

#[tokio::test(start_paused = true)]
async fn an_accepted_step_is_asked_again_or_polled_where_it_says() {
    let bench = Bench::new().await;
    let busy = Say::Status(202, vec![("location", "http://p/jobs/7"), ("retry-after", "1")], Value::Null);
    bench.remote.script("charge", &[busy]);
    bench.remote.script("jobs/7", &[say(202), say(425), ok(json!({"receipt": 7}))]);
    let start = bench.world.clock.now();
    let Outcome::Completed { outputs } = bench.run().await else { panic!("not completed") };
    assert_eq!(outputs[0].1, json!({"receipt": 7}));
    assert_eq!(bench.remote.calls(), ["POST charge", "GET jobs/7", "GET jobs/7", "GET jobs/7", "POST ship"]);
    assert!(bench.world.clock.now().saturating_duration_since(start) >= Duration::from_secs(1));
    // Bounded by the attempt timeout: then nobody knows.
    let bench = Bench::new().await;
    bench.remote.script("charge", &[say(202)]);
    let outcome = bench.run().await;
    assert!(
        matches!(&outcome, Outcome::Compensated { cause: Some(Cause::StepFailed { reason, .. }), .. }
        if reason.contains("in progress")),
        "{outcome:?}"
    );
    assert_eq!(bench.remote.calls().last().unwrap(), "POST refund");
}

/// Whoever goes on has only the log to tell a step, and an undo, what the steps before it answered.
#[tokio::test(start_paused = true)]
async fn sg_s07_later_steps_and_undos_are_told_earlier_outputs_also_after_a_crash() {
    let mut data = definition().data().clone();
    data.steps[1].input = Some(json!({"paid": "$charge.receipt"}));
    data.steps[1].retry = Some(RetryData::new(3, Duration::from_millis(10), Duration::from_millis(10)));
    let mut bench = Bench::of(Definition::from_data(data).unwrap()).await;
    bench.remote.script("charge", &[ok(json!({"receipt": 7}))]);
    bench.remote.script("ship", &[Say::Never, say(409)]);
    let handle = bench.start().await;
    bench.called("ship", 1).await;
    bench.restart().await;
    let outcome = bench.engine.outcome(handle.uid()).await.unwrap();
    assert!(matches!(outcome, Outcome::Compensated { .. }), "{outcome:?}");
    let told = |url: &str| -> Vec<Value> {
        bench.remote.all(url).iter().map(|r| serde_json::from_slice(&r.body).unwrap()).collect()
    };
    assert_eq!(told("ship"), [json!({"paid": 7}), json!({"paid": 7})]);
    assert_eq!(told("refund"), [json!({"effect": "did", "input": {"n": 1}, "output": {"receipt": 7}})]);
    assert_eq!(bench.remote.all("charge").len(), 1);
}

/// It accepted the charge and was restarted. That nobody was there to be asked again was taken for "never sent", and
/// the charge, which it went on with, was never refunded.
#[tokio::test(start_paused = true)]
async fn sg_f02_an_accepted_step_whose_participant_goes_away_may_have_happened() {
    let busy = Say::Status(202, vec![("retry-after", "1")], Value::Null);
    let bench = Bench::new().await;
    bench.remote.script("charge", &[busy.clone(), Say::NotSent]);
    bench.remote.script("status", &[say(404)]);
    assert!(matches!(bench.run().await, Outcome::Compensated { .. }));
    let body: Value = serde_json::from_slice(&bench.remote.last("refund").body).unwrap();
    assert_eq!(body["effect"], "maybe");
    // The same when the call is refused here, by the breaker that another saga's calls opened meanwhile.
    let bench = Bench::guarded().await;
    bench.remote.script("charge", &[busy, say(503)]);
    let handle = bench.start().await;
    bench.called("charge", 1).await;
    let other = bench.engine.start("remote", json!({}), StartOptions::id("two")).await.unwrap();
    other.outcome().await.unwrap();
    handle.outcome().await.unwrap();
    let first = bench.facts(&handle).await.into_iter().find_map(|f| match f {
        Fact::StepEnded(end) => Some(end.verdict),
        _ => None,
    });
    assert!(
        matches!(&first, Some(Verdict::Unknown { reason, .. }) if reason.contains("breaker is open")),
        "its second question was refused: {first:?}"
    );
    assert_eq!(bench.remote.all("refund").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_participant_completes_an_accepted_step_by_itself() {
    let bench = Bench::new().await;
    bench.remote.script("charge", &[Say::Never]);
    let handle = bench.start().await;
    bench.called("charge", 1).await;
    let done = || Completed::Action(Verdict::Done { output: Some(json!({"receipt": 9})) });
    bench.engine.complete(handle.uid(), at("charge", 1), done()).await.unwrap();
    // The report again, as a participant repeats it when the answer was lost.
    bench.engine.complete(handle.uid(), at("charge", 1), done()).await.unwrap();
    let Outcome::Completed { outputs } = handle.outcome().await.unwrap() else { panic!("not completed") };
    assert_eq!(outputs[0].1, json!({"receipt": 9}));
    assert_eq!(bench.remote.calls(), ["POST charge", "POST ship"]);
    let over = bench.engine.complete(handle.uid(), at("charge", 2), done()).await.unwrap_err();
    assert_eq!(over.kind(), ErrorKind::Conflict);

    // The undo likewise, and a no.
    let bench = Bench::new().await;
    bench.remote.script("ship", &[Say::Never]);
    bench.remote.script("refund", &[Say::Never]);
    let handle = bench.start().await;
    bench.called("ship", 1).await;
    let no = Completed::Action(Verdict::Rejected { reason: "no carrier".to_owned(), is_final: true });
    bench.engine.complete(handle.uid(), at("ship", 1), no).await.unwrap();
    bench.called("refund", 1).await;
    bench.engine.complete(handle.uid(), at("charge", 1), Completed::Undo(UndoVerdict::Undone)).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
}

#[tokio::test(start_paused = true)]
async fn sg_f16_a_late_result_of_attempt_1_cannot_complete_attempt_2() {
    let bench = Bench::new().await;
    bench.remote.script("charge", &[Say::Unknown, Say::Never]);
    let handle = bench.start().await;
    bench.called("charge", 2).await;
    let done = |receipt: u32| Completed::Action(Verdict::Done { output: Some(json!({"receipt": receipt})) });
    let late = bench.engine.complete(handle.uid(), at("charge", 1), done(1)).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Conflict, "{late}");
    let again = bench.engine.complete(handle.uid(), at("charge", 1), done(1)).await.unwrap_err();
    assert_eq!((again.kind(), again.to_string()), (late.kind(), late.to_string()), "the answer of the first");
    let none = bench.engine.complete(handle.uid(), at("nothing", 1), done(1)).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::Conflict, "{none}");
    bench.engine.complete(handle.uid(), at("charge", 2), done(2)).await.unwrap();
    let Outcome::Completed { outputs } = handle.outcome().await.unwrap() else { panic!("not completed") };
    assert_eq!(outputs[0].1, json!({"receipt": 2}), "attempt 2 decides");
    let notes = bench.facts(&handle).await.into_iter().filter(|f| matches!(f, Fact::Note(_))).count();
    assert_eq!(notes, 2, "what came too late is kept");
}

/// A no to a step after the pivot is no end, also when somebody asked too late to turn back: it is repeated.
#[tokio::test(start_paused = true)]
async fn a_no_reported_after_the_pivot_sets_nothing_aside_when_a_cancel_came_too_late() {
    let data = json!({
        "name": "remote", "version": 1, "deadline": "1h", "timeout": "10s",
        "retry": {"attempts": 2, "base": "10ms", "cap": "10ms"},
        "steps": [
            {"name": "ship", "kind": "pivot", "action": "http://p/ship"},
            {"name": "email", "kind": "retriable", "after": ["ship"], "action": "http://p/email"},
        ],
    });
    let bench = Bench::of(Definition::from_json(data.to_string().as_bytes()).unwrap()).await;
    bench.remote.script("ship", &[Say::Never]);
    bench.remote.script("email", &[Say::Never, ok(json!({}))]);
    let handle = bench.start().await;
    bench.called("ship", 1).await;
    let cancel = ActionRequest::new("ann", "changed my mind", Operation::Cancel);
    bench.engine.attention().act(handle.uid(), cancel).await.unwrap();
    let done = Completed::Action(Verdict::Done { output: Some(json!({})) });
    bench.engine.complete(handle.uid(), at("ship", 1), done).await.unwrap();
    bench.called("email", 1).await;
    let no = Completed::Action(Verdict::Rejected { reason: "no such box".to_owned(), is_final: true });
    bench.engine.complete(handle.uid(), at("email", 1), no).await.unwrap();
    let outcome = handle.outcome().await.unwrap();
    assert!(matches!(outcome, Outcome::Completed { .. }), "{outcome:?}");
    assert_eq!(bench.remote.calls(), ["POST ship", "POST email", "POST email"]);
}

/// A deadline counts for a saga that waits for a person, also when no node has it in memory.
#[tokio::test(start_paused = true)]
async fn a_deadline_turns_a_saga_that_waits_for_a_person_also_after_a_restart() {
    let bench = Bench::new().await;
    bench.remote.script("charge", &[say(404)]);
    let handle = bench.start().await;
    let steps = vec!["charge".to_owned()];
    assert_eq!(handle.outcome().await.unwrap(), Outcome::NeedsAttention { steps });
    bench.engine.shutdown(Duration::ZERO).await;
    let engine = Bench::engine(&bench.world, &bench.remote).await;
    bench.world.clock.sleep(Duration::from_secs(3_602)).await;
    let outcome = engine.outcome(handle.uid()).await.unwrap();
    let cause = Cause::DeadlineExceeded;
    assert!(matches!(&outcome, Outcome::Compensated { cause: Some(c), .. } if *c == cause), "{outcome:?}");
    assert_eq!(bench.remote.calls().last().unwrap(), "POST refund");
}

/// A journal that was restored from a copy. Each refusal counted as an attempt that a crash had cut short: after three of
/// them the saga turned back, or an undo was given up.
#[tokio::test(start_paused = true)]
async fn a_fence_that_knows_of_later_claims_than_the_journal_needs_a_person_and_spends_nothing() {
    for (url, ends_as) in [("charge", SagaStatus::Completed), ("refund", SagaStatus::Compensated)] {
        let (mut world, remote) = (World::new(), Arc::new(Remote::default()));
        let (looks, journal) = Looks::on(&world);
        world.journal = journal;
        if url == "refund" {
            remote.script("ship", &[say(409)]);
        }
        remote.script(url, &[say(412)]);
        let engine = Bench::engine(&world, &remote).await;
        let bench = Bench { world, remote, engine, definition: definition() };
        let handle = bench.start().await;
        let waits = handle.outcome().await.unwrap();
        assert!(matches!(waits, Outcome::NeedsAttention { .. }), "{waits:?}");
        bench.world.clock.sleep(Duration::from_secs(100)).await;
        is_calm(&looks, 100);
        assert_eq!(bench.remote.all(url).len(), 1);
        let there = bench.world.journal.summary(handle.uid()).await.unwrap().unwrap();
        let why = there.row.error.unwrap_or_default();
        assert_eq!((there.row.status, there.owner), (SagaStatus::NeedsAttention, None), "{why}");
        assert!(why.contains("step `charge`") && why.contains("larger fencing token than 1"), "{why}");
        // Read anew in vain, and then with the epoch of the store raised.
        for tries in 2..=6 {
            if tries == 6 {
                bench.remote.script(url, &[ok(json!({}))]);
            }
            let anew = ActionRequest::new("ann", "the epoch is raised", Operation::TakeUp);
            bench.engine.attention().act(handle.uid(), anew).await.unwrap();
            bench.world.clock.sleep(Duration::from_secs(10)).await;
            let there = bench.world.journal.summary(handle.uid()).await.unwrap().unwrap();
            let expected = if tries == 6 { ends_as } else { SagaStatus::NeedsAttention };
            assert_eq!(there.row.status, expected, "{:?}", bench.remote.calls());
            let sent = bench.remote.all(url);
            assert!(sent.len() == tries && sent.iter().all(|r| r.attempt == 1), "{sent:?}");
        }
    }
}

/// Claims what is due for a newer run of the node, then refuses the older token.
struct Overtaken(Arc<dyn Journal>);

impl std::fmt::Debug for Overtaken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Overtaken")
    }
}

impl Participant for Overtaken {
    fn call(&self, _: Request, _: Instant) -> BoxFuture<'_, Reply> {
        Box::pin(async move {
            let ttl = Duration::from_secs(3_600);
            let claimant = Claimant { node: "local".to_owned(), incarnation: u64::MAX / 4, ttl };
            let claimed = self.0.claim(ClaimRequest { claimant, limit: 10 }).await.unwrap();
            assert_eq!(claimed.len(), 1);
            Reply::Answered(Attempt { status: 412, headers: HeaderMap::new(), body: Vec::new() })
        })
    }
}

#[tokio::test(start_paused = true)]
async fn sg_f03_whoever_was_overtaken_leaves_the_saga_as_it_is() {
    let world = World::new();
    let engine = Engine::builder(Arc::clone(&world.journal), world.runtime())
        .participant(Arc::new(Overtaken(Arc::clone(&world.journal))))
        .definition(definition(), [])
        .open()
        .await
        .unwrap();
    let handle = engine.start("remote", json!({}), StartOptions::id("one")).await.unwrap();
    tokio::select! {
        biased;
        outcome = handle.outcome() => panic!("{outcome:?}"),
        () = world.clock.sleep(Duration::from_secs(10)) => {}
    }
    let there = world.journal.summary(handle.uid()).await.unwrap().unwrap();
    assert_eq!((there.row.status, there.row.error, there.epoch), (SagaStatus::Running, None, 2));
}

#[tokio::test(start_paused = true)]
async fn a_report_that_meets_a_dead_node_is_taken_up_by_the_next_run() {
    let bench = Bench::new().await;
    bench.remote.script("charge", &[Say::Never]);
    let handle = bench.start().await;
    bench.called("charge", 1).await;
    // The node is gone: only the journal hears the report.
    bench.engine.shutdown(Duration::ZERO).await;
    let body = json!({"message": "m", "at": {"step": "charge", "attempt": 1, "generation": 1},
        "result": {"action": {"verdict": "done", "output": {"receipt": 5}}}});
    let kind = mainstay_saga::wire::POST_COMPLETE;
    bench.world.journal.post(handle.uid(), "m", kind, body.to_string().into_bytes()).await.unwrap();
    let engine = Bench::engine(&bench.world, &bench.remote).await;
    let Outcome::Completed { outputs } = engine.outcome(handle.uid()).await.unwrap() else { panic!() };
    assert_eq!(outputs[0].1, json!({"receipt": 5}));
    assert_eq!(bench.remote.calls(), ["POST charge", "POST ship"], "the step was not repeated");
}

#[tokio::test(start_paused = true)]
async fn if_h08_the_trace_of_the_start_is_sent_to_every_participant() {
    let bench = Bench::new().await;
    bench.remote.script("ship", &[say(409)]);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut options = StartOptions::id("traced");
    options.trace = Some(trace.to_owned());
    options.trace_state = Some("vendor=1".to_owned());
    let handle = bench.engine.start("remote", json!({}), options).await.unwrap();
    handle.outcome().await.unwrap();
    for url in ["charge", "ship", "refund"] {
        let sent = bench.remote.last(url);
        assert_eq!(
            (sent.traceparent.as_deref(), sent.tracestate.as_deref()),
            (Some(trace), Some("vendor=1")),
            "{url}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_before_a_byte_was_sent_leaves_nothing_to_undo() {
    let bench = Bench::new().await;
    bench.remote.script("charge", &[Say::NotSent]);
    let outcome = bench.run().await;
    assert!(matches!(outcome, Outcome::Compensated { .. }), "{outcome:?}");
    assert_eq!(bench.remote.calls(), ["POST charge", "POST charge"], "repeated, and nothing to undo");
}

/// Nonsense, silence and stale tokens from a participant never become success, and never hang a saga.
#[tokio::test(start_paused = true)]
async fn nonsense_from_a_participant_needs_a_person_and_is_not_repeated() {
    for nonsense in [say(100), say(302), say(404), say(418), say(999), ok(nested(101))] {
        let bench = Bench::new().await;
        bench.remote.script("charge", std::slice::from_ref(&nonsense));
        let outcome = bench.run().await;
        assert_eq!(outcome, Outcome::NeedsAttention { steps: vec!["charge".to_owned()] }, "{nonsense:?}");
        assert_eq!(bench.remote.calls(), ["POST charge"], "{nonsense:?}");
    }
}

/// What a policy refuses was never sent: the saga has nothing to undo there.
#[tokio::test(start_paused = true)]
async fn what_a_policy_refuses_leaves_no_effect() {
    let bench = Bench::guarded().await;
    // Two failures of one saga open the breaker; each may have had an effect, so that saga undoes.
    bench.remote.script("charge", &[say(503)]);
    let first = bench.start().await;
    assert!(matches!(first.outcome().await.unwrap(), Outcome::Compensated { .. }));
    let sent = |url: &str| bench.remote.calls().iter().filter(|c| c.ends_with(&format!(" {url}"))).count();
    assert_eq!((sent("charge"), sent("refund")), (2, 1));
    // The next one is refused here, and has nothing to undo and nothing to ask about.
    let second = bench.engine.start("remote", json!({}), StartOptions::id("two")).await.unwrap();
    let withheld = |f: &Fact| {
        matches!(f, Fact::StepEnded(e) if e.withheld
        && matches!(&e.verdict, Verdict::NotSent { reason } if reason.contains("breaker is open")))
    };
    for _ in 0..1_000 {
        if bench.facts(&second).await.iter().any(withheld) {
            break;
        }
        bench.world.clock.sleep(Duration::from_millis(1)).await;
    }
    assert!(bench.facts(&second).await.iter().any(withheld));
    let cancel = ActionRequest::new("ann", "enough", Operation::Cancel);
    bench.engine.attention().act(second.uid(), cancel).await.unwrap();
    assert!(matches!(second.outcome().await.unwrap(), Outcome::Compensated { .. }));
    assert_eq!((sent("charge"), sent("refund"), sent("status")), (2, 1, 1));
    // After its time a probe is let through, and the participant answers again.
    bench.world.clock.sleep(Duration::from_secs(6)).await;
    bench.remote.script("charge", &[ok(json!({}))]);
    let third = bench.engine.start("remote", json!({}), StartOptions::id("three")).await.unwrap();
    assert!(matches!(third.outcome().await.unwrap(), Outcome::Completed { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_full_bulkhead_refuses_before_a_byte_is_sent_and_a_business_no_blames_nobody() {
    let bench = Bench::guarded().await;
    bench.remote.script("charge", &[Say::Never]);
    let first = bench.start().await;
    bench.called("charge", 1).await;
    let second = bench.engine.start("remote", json!({}), StartOptions::id("two")).await.unwrap();
    let outcome = second.outcome().await.unwrap();
    assert!(
        matches!(&outcome, Outcome::Compensated { cause: Some(Cause::StepFailed { reason, .. }), .. }
        if reason.contains("full")),
        "{outcome:?}"
    );
    assert_eq!(bench.remote.calls(), ["POST charge"]);
    bench
        .engine
        .complete(first.uid(), at("charge", 1), Completed::Action(Verdict::Done { output: None }))
        .await
        .unwrap();
    first.outcome().await.unwrap();
    // However often the participant says no, its breaker stays closed.
    bench.remote.script("charge", &[say(409)]);
    for n in 0..5 {
        let id = format!("no-{n}");
        let no = bench.engine.start("remote", json!({}), StartOptions::id(id)).await.unwrap();
        let outcome = no.outcome().await.unwrap();
        assert!(
            matches!(&outcome, Outcome::Compensated { cause: Some(Cause::StepFailed { reason, .. }), .. }
            if reason.contains("409")),
            "{outcome:?}"
        );
    }
}

/// Holds the append that sets a saga aside.
#[derive(Default)]
struct Parking {
    reached: Notify,
    go_on: Notify,
}

impl Tap for Parking {
    fn before_append<'a>(&'a self, append: &'a Append) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if append.row.status == SagaStatus::NeedsAttention && append.records.is_empty() {
                self.reached.notify_one();
                self.go_on.notified().await;
            }
        })
    }
}

/// A deploy that comes while a saga is being parked for it found no parked saga, and the saga waited for the next one.
#[tokio::test(start_paused = true)]
async fn sg_f19_a_definition_that_comes_while_its_saga_is_being_parked_wakes_it() {
    let (world, remote, parking) = (World::new(), Arc::new(Remote::default()), Arc::new(Parking::default()));
    let started =
        Started { input: json!({"n": 1}), deadline: None, trace: None, trace_state: None, again: None };
    let uid = Uid::new("u1");
    let create = Create {
        uid: uid.clone(),
        id: "one".to_owned(),
        definition: "remote".to_owned(),
        version: 1,
        definition_hash: definition().hash(),
        input_hash: Hash::of(b"n"),
        records: vec![encode(&Fact::Created(started))],
        row: Row::running(world.clock.wall()),
        owner: None,
        reply: None,
        parent: None,
        locks: Vec::new(),
    };
    world.journal.create(create).await.unwrap();
    let journal = TapJournal::new(Arc::clone(&world.journal), Arc::clone(&parking) as Arc<dyn Tap>);
    let engine = Engine::builder(Arc::new(journal), world.runtime())
        .participant(Arc::clone(&remote) as Arc<dyn Participant>)
        .open()
        .await
        .unwrap();
    parking.reached.notified().await;
    engine.put_definition(definition()).await.unwrap();
    parking.go_on.notify_one();
    world.clock.sleep(Duration::from_secs(30)).await;
    let row = world.journal.summary(&uid).await.unwrap().unwrap().row;
    assert_eq!((row.status, row.error), (SagaStatus::Completed, None));
}

/// "Ask me in a minute", within an attempt of ten seconds: it ended there and then, and the report was refused.
#[tokio::test(start_paused = true)]
async fn a_participant_that_needs_longer_than_it_is_asked_for_may_report_until_the_attempt_is_over() {
    let later = || Say::Status(202, vec![("retry-after", "60")], Value::Null);
    let bench = Bench::new().await;
    bench.remote.script("charge", &[later()]);
    let handle = bench.start().await;
    bench.called("charge", 1).await;
    bench.world.clock.sleep(Duration::from_secs(5)).await;
    let done = Completed::Action(Verdict::Done { output: Some(json!({"receipt": 9})) });
    bench.engine.complete(handle.uid(), at("charge", 1), done).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }));
    assert_eq!(bench.remote.calls(), ["POST charge", "POST ship"]);
    // Without a report it is asked again when it said, not when the attempt was over.
    let bench = Bench::new().await;
    bench.remote.script("charge", &[later(), ok(json!({"receipt": 9}))]);
    let start = bench.world.clock.now();
    assert!(matches!(bench.run().await, Outcome::Completed { .. }));
    let took = bench.world.clock.now().saturating_duration_since(start);
    assert!((60..62).contains(&took.as_secs()), "{took:?}");
}

/// A question after an action that may have happened is no attempt: nobody reports to it, and the undo does not wait for it.
#[tokio::test(start_paused = true)]
async fn a_status_that_asks_for_more_time_than_there_is_holds_up_no_undo() {
    let bench = Bench::new().await;
    bench.remote.script("charge", &[Say::Unknown]);
    bench.remote.script("status", &[Say::Status(202, vec![("retry-after", "60")], Value::Null)]);
    let start = bench.world.clock.now();
    assert!(matches!(bench.run().await, Outcome::Compensated { .. }));
    assert!(bench.world.clock.now().saturating_duration_since(start) < Duration::from_secs(2));
}

async fn node(world: &World, name: &str, remote: Option<&Arc<Remote>>) -> Engine {
    let mut config = Config::default();
    config.node = name.to_owned();
    let mut builder = Engine::builder(Arc::clone(&world.journal), world.runtime()).config(config);
    if let Some(remote) = remote {
        builder = builder.participant(Arc::clone(remote) as Arc<dyn Participant>);
    }
    builder.open().await.unwrap()
}

/// A node that started before the definition was stored by another one set its sagas aside.
#[tokio::test(start_paused = true)]
async fn sg_f19_a_definition_that_another_node_stored_is_found_when_a_saga_needs_it() {
    let (world, remote) = (World::new(), Arc::new(Remote::default()));
    let (first, second) = (node(&world, "a", Some(&remote)).await, node(&world, "b", Some(&remote)).await);
    second.put_definition(definition()).await.unwrap();
    remote.script("charge", &[Say::Never, ok(json!({"receipt": 9}))]);
    let handle = second.start("remote", json!({"n": 1}), StartOptions::id("one")).await.unwrap();
    world.clock.sleep(Duration::from_millis(10)).await;
    second.shutdown(Duration::ZERO).await;
    assert!(matches!(first.outcome(handle.uid()).await.unwrap(), Outcome::Completed { .. }));
}

/// A definition that a node takes up as it starts, because it is stored, woke nothing: only one that was put did.
#[tokio::test(start_paused = true)]
async fn sg_f19_a_start_wakes_what_waits_for_a_definition_that_is_stored() {
    let (world, remote) = (World::new(), Arc::new(Remote::default()));
    let engine = node(&world, "a", Some(&remote)).await;
    engine.put_definition(definition()).await.unwrap();
    remote.script("charge", &[Say::Never, ok(json!({"receipt": 9}))]);
    let handle = engine.start("remote", json!({"n": 1}), StartOptions::id("one")).await.unwrap();
    world.clock.sleep(Duration::from_millis(10)).await;
    engine.shutdown(Duration::ZERO).await;
    // A node that calls nobody takes up no remote definition.
    let deaf = node(&world, "a", None).await;
    assert_eq!(deaf.outcome(handle.uid()).await.unwrap(), Outcome::NeedsAttention { steps: Vec::new() });
    deaf.shutdown(Duration::ZERO).await;
    let engine = node(&world, "a", Some(&remote)).await;
    world.clock.sleep(Duration::from_secs(5)).await;
    assert!(matches!(engine.outcome(handle.uid()).await.unwrap(), Outcome::Completed { .. }));
}
