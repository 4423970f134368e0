//! The participant over real HTTP: what a faulty network and a paused owner deliver.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use example_axum_participant::Payments;
use mainstay::clock::{Clock, Runtime};
use mainstay::saga::http::{AddressPolicy, HttpParticipant, install_tls};
use mainstay::saga::inbound::InboundLayer;
use mainstay::saga::participant::{Kind, Participant as _, Reply, Request, Verdict, judge};
use mainstay::saga::signature::Secret;
use mainstay::store::FencingToken;
use mainstay::store::barrier::Op;
use serde_json::{Value, json};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER: &str = "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXM=";

struct World {
    payments: Payments,
    origin: String,
    runtime: Runtime,
    caller: HttpParticipant,
    _dir: tempfile::TempDir,
}

const ACTION: Op = Op::Action { generation: 1 };
const UNDO: Op = Op::Undo { generation: 1 };

impl World {
    async fn new(secret: &str) -> Self {
        install_tls();
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::system();
        let payments = Payments::open(&dir.path().join("ledger.db")).unwrap();
        let clock: Arc<dyn Clock> = Arc::clone(runtime.clock());
        let inbound = InboundLayer::signed([Secret::parse(SECRET).unwrap()], Arc::clone(&clock)).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let router = payments.router(&inbound);
        runtime.spawn("payments", async move { axum::serve(listener, router).await.unwrap() });
        let policy = AddressPolicy::only([origin.as_str()]).unwrap();
        let caller = HttpParticipant::builder(policy, clock);
        let caller = caller.sign(&origin, [Secret::parse(secret).unwrap()]).build().unwrap();
        Self { payments, origin, runtime, caller, _dir: dir }
    }

    async fn call(&self, op: Op, token: u64, body: Value) -> Verdict {
        let path = if op == ACTION { "charge" } else { "refund" };
        let request = Request {
            url: format!("{}/{path}", self.origin),
            body: body.to_string().into_bytes(),
            idempotency_key: format!("saga-1/charge/{}", op.text()),
            saga: "saga-1".to_owned(),
            definition: "order".to_owned(),
            step: "charge".to_owned(),
            op: op.clone(),
            attempt: 1,
            fencing_token: FencingToken::new(token),
            deadline_wall: Some(self.runtime.clock().wall()),
            traceparent: None,
            tracestate: None,
            kind: Kind::Act,
        };
        let deadline = self.runtime.clock().now().saturating_add(Duration::from_secs(90));
        let reply: Reply = self.caller.call(request, deadline).await;
        judge(&op, &reply)
    }

    async fn charge(&self, token: u64) -> Verdict {
        self.call(ACTION, token, json!({"cents": 700})).await
    }

    async fn refund(&self, token: u64) -> Verdict {
        self.call(UNDO, token, json!({"effect": "maybe", "input": {"cents": 700}, "output": null})).await
    }

    #[track_caller]
    fn books(&self, balance: i64, lines: i64) {
        assert_eq!((self.payments.balance().unwrap(), self.payments.lines().unwrap()), (balance, lines));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_is_answered_and_charges_nothing() {
    let world = World::new(SECRET).await;
    let first = world.charge(1).await;
    assert_eq!(first, Verdict::Done(json!({"cents": 700})));
    // At once, on connections of their own: they wait for each other.
    let (a, b, c, d) = tokio::join!(world.charge(1), world.charge(1), world.charge(1), world.charge(1));
    let all = [a, b, c, d];
    assert!(all.iter().all(|v| *v == first), "{all:?}");
    world.books(700, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_after_its_undo_is_refused_for_ever() {
    let world = World::new(SECRET).await;
    // A null undo: the action never came.
    assert_eq!(world.refund(1).await, Verdict::Done(Value::Null));
    let late = world.charge(1).await;
    assert!(matches!(late, Verdict::Rejected { is_final: true, .. }), "{late:?}");
    assert_eq!(world.refund(1).await, Verdict::Done(Value::Null));
    world.books(0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_owner_is_refused_and_changes_nothing() {
    let world = World::new(SECRET).await;
    assert!(matches!(world.charge(5).await, Verdict::Done(_)));
    assert_eq!(world.refund(4).await, Verdict::StaleToken);
    world.books(700, 1);
    assert_eq!(world.refund(6).await, Verdict::Done(Value::Null));
    world.books(0, 2);
    assert_eq!(world.charge(5).await, Verdict::StaleToken);
    world.books(0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_business_no_takes_back_what_it_wrote() {
    let world = World::new(SECRET).await;
    for _ in 0..2 {
        let no = world.call(ACTION, 1, json!({"cents": 700, "card": "declined"})).await;
        assert!(matches!(no, Verdict::Rejected { is_final: true, .. }), "{no:?}");
    }
    assert_eq!(world.refund(1).await, Verdict::Done(Value::Null));
    world.books(0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_signature_changes_nothing() {
    let world = World::new(OTHER).await;
    let refused = world.charge(1).await;
    assert!(matches!(&refused, Verdict::ContractBroken(why) if why.contains("401")), "{refused:?}");
    world.books(0, 0);
}
