//! The participant-side middleware, driven as a service.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use mainstay_clock::Clock as _;
use mainstay_clock::virtual_time::VirtualClock;
use mainstay_saga::Told;
use mainstay_saga::inbound::{Call, ExecuteError, Executor, InboundLayer, Steps, done, no};
use mainstay_saga::participant::{Attempt, Reply, Verdict, judge};
use mainstay_saga::signature::{Secret, sign};
use mainstay_store::BoxFuture;
use mainstay_store::barrier::{MemoryRows, Op, Performed, perform};
use serde_json::{Value, json};
use tower::{Layer as _, ServiceExt as _};

/// Barrier rows by saga and step, money, and the calls that ran.
type Books = (BTreeMap<(String, String), MemoryRows>, i64, Vec<Call>);

/// A till: what was charged, by saga. Its rows and its money are one transaction under one lock.
#[derive(Debug, Default)]
struct Till(Mutex<Books>);

impl Executor for Till {
    fn execute(&self, call: Call) -> BoxFuture<'_, Result<Performed, ExecuteError>> {
        Box::pin(async move {
            let mut guard = self.0.lock().unwrap();
            let (rows, money, ran) = &mut *guard;
            if call.input["fails"] == true {
                return Err("the disk is full: /secret/path".into());
            }
            let rows = rows.entry((call.saga.clone(), call.step.clone())).or_default();
            perform(rows, &call.op, call.fencing_token, |before| {
                if call.input["card"] == "declined" {
                    return Ok(no("declined"));
                }
                let cents = call.input["cents"].as_i64().unwrap_or(0);
                match &call.told {
                    None => *money += cents,
                    Some(told) => {
                        assert!(before.is_some(), "an undo that runs knows what the action answered");
                        assert!(matches!(told, Told::Did(_) | Told::Maybe));
                        *money -= cents;
                    }
                }
                ran.push(call.clone());
                Ok(done(&json!({"receipt": cents})))
            })
        })
    }
}

fn request(key: &str, token: u64, body: &Value) -> Request<Full<Bytes>> {
    let request = Request::post("/charge").header("idempotency-key", format!("\"{key}\""));
    request.header("fencing-token", token).body(Full::from(body.to_string())).unwrap()
}

async fn send(till: &Arc<Till>, request: Request<Full<Bytes>>) -> (u16, Value, Response<()>) {
    unpack(
        InboundLayer::unsigned()
            .layer(Steps::new(Arc::clone(till) as Arc<dyn Executor>))
            .oneshot(request)
            .await,
    )
    .await
}

async fn unpack(answer: Result<Response<Full<Bytes>>, Infallible>) -> (u16, Value, Response<()>) {
    let Ok(answer) = answer;
    let (parts, body) = answer.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    (parts.status.as_u16(), body, Response::from_parts(parts, ()))
}

fn action(cents: i64) -> Value {
    json!({"cents": cents})
}

fn undo(cents: i64) -> Value {
    json!({"effect": "maybe", "input": {"cents": cents}, "output": null})
}

#[tokio::test]
async fn sg_f01_if_k5_over_the_middleware_every_order_nets_zero() {
    // All orders of two actions and two undos; a set bit is an undo.
    for bits in [0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100_u32] {
        let till = Arc::new(Till::default());
        let mut statuses = Vec::new();
        for i in 0..4 {
            let (key, body) = match bits >> i & 1 {
                1 => ("s/charge/undo", undo(700)),
                _ => ("s/charge/action", action(700)),
            };
            statuses.push(send(&till, request(key, 1, &body)).await.0);
        }
        assert_eq!(till.0.lock().unwrap().1, 0, "{bits:04b}");
        let undone_before = bits & 1 == 1;
        let late = statuses.contains(&409);
        assert_eq!(
            late, undone_before,
            "an action that comes first after its undo is refused: {bits:04b} {statuses:?}"
        );
    }
}

#[tokio::test]
async fn sg_s08_a_duplicate_is_answered_with_the_stored_reply_and_runs_nothing() {
    let till = Arc::new(Till::default());
    let first = send(&till, request("s/charge/action", 1, &action(700))).await;
    let again = send(&till, request("s/charge/action", 2, &action(700))).await;
    assert_eq!((first.0, &first.1), (200, &json!({"receipt": 700})));
    assert_eq!((again.0, &again.1), (first.0, &first.1));
    assert_eq!(till.0.lock().unwrap().1, 700);
    // A retry with edited input is another key: it takes effect beside the first, and both can be undone.
    assert_eq!(send(&till, request("s/charge/action~2", 2, &action(30))).await.0, 200);
    assert_eq!(till.0.lock().unwrap().1, 730);
    assert_eq!(send(&till, request("s/charge/undo", 2, &undo(700))).await.0, 200);
    assert_eq!(send(&till, request("s/charge/undo~2", 2, &undo(30))).await.0, 200);
    assert_eq!(till.0.lock().unwrap().1, 0);
}

#[tokio::test]
async fn sg_f03_a_stale_token_is_refused_and_changes_nothing() {
    let till = Arc::new(Till::default());
    assert_eq!(send(&till, request("s/charge/action", 5, &action(700))).await.0, 200);
    let stale = send(&till, request("s/charge/undo", 4, &undo(700))).await;
    assert_eq!(stale.0, 412, "{}", stale.1);
    assert_eq!(till.0.lock().unwrap().1, 700);
    assert_eq!(send(&till, request("s/charge/undo", 5, &undo(700))).await.0, 200, "an equal one is taken");
}

#[tokio::test]
async fn sg_x01_a_business_no_is_final_and_the_engine_reads_it_so() {
    let till = Arc::new(Till::default());
    let declined = json!({"cents": 700, "card": "declined"});
    for _ in 0..2 {
        let (status, body, response) = send(&till, request("s/charge/action", 1, &declined)).await;
        let attempt =
            Attempt { status, headers: response.headers().clone(), body: body.to_string().into_bytes() };
        let verdict = judge(&Op::Action { generation: 1 }, &Reply::Answered(attempt));
        assert_eq!(verdict, Verdict::Rejected { reason: "declined".to_owned(), is_final: true });
    }
    // A late action likewise: its undo has blocked the key for ever.
    assert_eq!(send(&till, request("t/charge/undo", 1, &undo(1))).await.0, 200);
    let (status, body, response) = send(&till, request("t/charge/action", 1, &action(1))).await;
    let attempt =
        Attempt { status, headers: response.headers().clone(), body: body.to_string().into_bytes() };
    let verdict = judge(&Op::Action { generation: 1 }, &Reply::Answered(attempt));
    assert!(matches!(verdict, Verdict::Rejected { is_final: true, .. }), "{verdict:?}");
}

#[tokio::test]
async fn a_failed_transaction_is_unknown_to_the_engine_and_tells_no_secret() {
    let till = Arc::new(Till::default());
    let (status, body, response) = send(&till, request("s/charge/action", 1, &json!({"fails": true}))).await;
    assert_eq!(status, 503);
    assert_eq!(response.headers()["retry-after"], "1");
    assert!(!body.to_string().contains("secret"), "{body}");
}

#[tokio::test]
async fn what_is_no_call_is_refused_and_never_reaches_the_executor() {
    let till = Arc::new(Till::default());
    let with = |name: &str, value: &str| {
        let mut r = request("s/charge/action", 1, &action(7));
        r.headers_mut()
            .insert(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        r
    };
    let mut none = request("s/charge/action", 1, &action(7));
    none.headers_mut().remove("fencing-token");
    let long = Full::from(vec![b' '; 600 * 1024]);
    let bad = [
        (none, 400),
        (with("idempotency-key", "s/charge"), 400),
        (with("idempotency-key", "s/charge/other"), 400),
        (with("idempotency-key", "/charge/action"), 400),
        (with("saga-id", "t"), 400),
        (with("saga-step", "refund"), 400),
        (with("saga-op", "undo"), 400),
        (with("fencing-token", "-1"), 400),
        (with("saga-attempt", "99999999999"), 400),
        (with("saga-deadline", "soon"), 400),
        (request("s/charge/undo", 1, &action(7)), 400),
        (request("s/charge/action", 1, &action(7)).map(|_| Full::from("{")), 400),
        (request("s/charge/action", 1, &action(7)).map(|_| long), 413),
    ];
    for (i, (request, status)) in bad.into_iter().enumerate() {
        assert_eq!(send(&till, request).await.0, status, "case {i}");
    }
    let mut get = request("s/charge/action", 1, &action(7));
    *get.method_mut() = http::Method::GET;
    assert_eq!(send(&till, get).await.0, 405);
    assert!(till.0.lock().unwrap().2.is_empty());
    let Ok(bare) = Steps::new(Arc::clone(&till) as Arc<dyn Executor>)
        .oneshot(request("s/c/action", 1, &action(7)))
        .await;
    assert_eq!(bare.status(), 500, "steps without the layer answer, and run nothing");
}

#[tokio::test]
async fn sec_16_only_signed_requests_pass_and_the_signature_covers_the_key() {
    use base64::Engine as _;
    let secret = |fill: u8| {
        let text = base64::engine::general_purpose::STANDARD.encode([fill; 32]);
        Secret::parse(&format!("whsec_{text}")).unwrap()
    };
    let clock = VirtualClock::new();
    let till = Arc::new(Till::default());
    let now = clock.wall().unix_millis() / 1_000;
    assert!(InboundLayer::signed([], Arc::new(clock.clone())).is_err());
    let layer = InboundLayer::signed([secret(1)], Arc::new(clock.clone())).unwrap();
    let signed = |key: &str, id: &str, by: Secret, at: i64| {
        let body = action(7);
        let mut request = request(key, 1, &body);
        let text = sign(&[by], id, at, body.to_string().as_bytes());
        for (name, value) in
            [("webhook-id", id), ("webhook-timestamp", &at.to_string()), ("webhook-signature", &text)]
        {
            request
                .headers_mut()
                .insert(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        request
    };
    let key = "s/charge/action";
    let cases = [
        (request(key, 1, &action(7)), 401),
        (signed(key, key, secret(2), now), 401),
        (signed(key, key, secret(1), now - 301), 401),
        // A signature of one key is none for another.
        (signed("s/charge/action~2", key, secret(1), now), 401),
        (signed(key, key, secret(1), now), 200),
    ];
    for (i, (request, status)) in cases.into_iter().enumerate() {
        let service = layer.layer(Steps::new(Arc::clone(&till) as Arc<dyn Executor>));
        assert_eq!(unpack(service.oneshot(request).await).await.0, status, "case {i}");
    }
    assert_eq!(till.0.lock().unwrap().1, 7);
    assert!(!format!("{layer:?}").contains("AQEB"), "{layer:?}");
}
