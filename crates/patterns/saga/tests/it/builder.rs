//! The typed builder says what a definition says as data; and what is suspicious about either.

use std::time::Duration;

use mainstay_saga::definition::{Definition, DefinitionData, Lint, OnUnknown, RetryData, StepData, StepKind};
use mainstay_saga::exhaust::lint;
use mainstay_saga::{Known, Saga, StepCx, StepError, Told, UndoError};
use serde_json::json;

const MS: fn(u64) -> Duration = Duration::from_millis;

async fn act(_: StepCx, n: u32) -> Result<u32, StepError> {
    Ok(n)
}

async fn undo(_: StepCx, _: Told<u32>) -> Result<(), UndoError> {
    Ok(())
}

async fn status(_: StepCx, _: u32) -> Known<u32> {
    Known::Unclear
}

/// Every option of every kind of step.
fn built() -> Definition {
    let mut b = Saga::<u32>::builder("order", 3)
        .timeout(MS(900))
        .retry(7, MS(10), MS(90))
        .undo_retry(8, MS(20), MS(80))
        .deadline(MS(60_000));
    let plain = b.step("plain", b.input(), act).no_undo("nothing is kept").add();
    let charge = b
        .step("charge", b.input(), act)
        .undo(undo)
        .after(&plain)
        .timeout(MS(500))
        .undo_timeout(MS(700))
        .retry(3, MS(1), MS(2))
        .undo_retry(4, MS(3), MS(4))
        .ask_when_unknown()
        .status(status)
        .policy("payments")
        .runbook("Ask the bank.")
        .add();
    let (shipped, mut forward) = b
        .pivot("ship", &charge, act)
        .timeout(MS(501))
        .retry(5, MS(5), MS(6))
        .status(status)
        .policy("carrier")
        .runbook("Ask the carrier.")
        .add();
    let label = forward.retriable("label", &shipped, act).add();
    let input = forward.input();
    forward
        .retriable("mail", input, act)
        .after(&label)
        .timeout(MS(502))
        .retry(30, MS(7), MS(8))
        .status(status)
        .policy("mail")
        .runbook("Ask the postmaster.")
        .add();
    forward.build().unwrap().definition().clone()
}

fn written() -> Definition {
    let retry = |attempts, base, cap| Some(RetryData::new(attempts, MS(base), MS(cap)));
    let step = |name: &str, input: &str, after: &[&str]| {
        let mut step = StepData::new(name);
        step.input = Some(json!(input));
        step.after = after.iter().map(|s| (*s).to_owned()).collect();
        step
    };
    let mut data = DefinitionData::new("order", 3);
    (data.timeout, data.deadline) = (Some(MS(900)), Some(MS(60_000)));
    (data.retry, data.undo_retry) = (retry(7, 10, 90), retry(8, 20, 80));
    let mut plain = step("plain", "$input", &[]);
    plain.no_undo = Some("nothing is kept".to_owned());
    let mut charge = step("charge", "$input", &["plain"]);
    (charge.timeout, charge.undo_timeout) = (Some(MS(500)), Some(MS(700)));
    (charge.retry, charge.undo_retry) = (retry(3, 1, 2), retry(4, 3, 4));
    (charge.on_unknown, charge.local_undo, charge.local_status) = (OnUnknown::Ask, true, true);
    (charge.policy, charge.runbook) = (Some("payments".to_owned()), Some("Ask the bank.".to_owned()));
    let mut ship = step("ship", "$charge", &["plain", "charge"]);
    (ship.kind, ship.timeout, ship.retry) = (StepKind::Pivot, Some(MS(501)), retry(5, 5, 6));
    (ship.local_status, ship.policy) = (true, Some("carrier".to_owned()));
    ship.runbook = Some("Ask the carrier.".to_owned());
    let mut label = step("label", "$ship", &["ship"]);
    label.kind = StepKind::Retriable;
    let mut mail = step("mail", "$input", &["ship", "label"]);
    (mail.kind, mail.timeout, mail.retry) = (StepKind::Retriable, Some(MS(502)), retry(30, 7, 8));
    (mail.local_status, mail.policy) = (true, Some("mail".to_owned()));
    mail.runbook = Some("Ask the postmaster.".to_owned());
    data.steps = vec![plain, charge, ship, label, mail];
    Definition::from_data(data).unwrap()
}

/// A pivot and what follows it took no timeout, no retry, no runbook; a saga no defaults.
#[test]
fn whatever_is_said_as_data_can_be_said_by_the_builder() {
    let (built, written) = (built(), written());
    assert_eq!(built.data(), written.data());
    assert_eq!(built, written);
    let steps = built.steps();
    assert_eq!((steps[0].timeout, steps[0].retry.attempts), (MS(900), 7), "the defaults of the saga");
    assert_eq!((steps[3].timeout, steps[3].retry.attempts), (MS(900), 7));
    assert_eq!((steps[2].timeout, steps[2].retry.cap), (MS(501), MS(6)));
    assert_eq!(steps[4].after, [2, 3]);
    let json = serde_json::to_vec(built.data()).unwrap();
    assert_eq!(Definition::from_json(&json).unwrap(), built);
}

/// Policies, statuses and runbooks may be tuned under sagas in flight.
#[test]
fn what_guards_a_step_is_no_part_of_the_graph() {
    let mut data = written().data().clone();
    for step in &mut data.steps {
        (step.policy, step.runbook, step.local_status) = (None, None, false);
    }
    let bare = Definition::from_data(data).unwrap();
    assert_eq!(bare.hash(), written().hash());
    let mut data = written().data().clone();
    data.steps[1].status = Some("http://p/status".to_owned());
    assert!(Definition::from_data(data).unwrap_err().to_string().contains("local_status"));
}

fn codes(change: impl FnOnce(&mut DefinitionData)) -> Vec<(&'static str, String)> {
    let mut data = DefinitionData::new("order", 1);
    data.deadline = Some(MS(60_000));
    data.timeout = Some(MS(1_000));
    let mut charge = StepData::new("charge");
    charge.action = Some("http://p/charge".to_owned());
    charge.undo = Some("http://p/refund".to_owned());
    charge.status = Some("http://p/status".to_owned());
    let mut ship = StepData::new("ship");
    (ship.kind, ship.after) = (StepKind::Pivot, vec!["charge".to_owned()]);
    ship.action = Some("http://p/ship".to_owned());
    ship.status = Some("http://p/shipped".to_owned());
    ship.runbook = Some("Ask the carrier.".to_owned());
    let mut mail = StepData::new("mail");
    (mail.kind, mail.after) = (StepKind::Retriable, vec!["ship".to_owned()]);
    mail.action = Some("http://p/mail".to_owned());
    data.steps = vec![charge, ship, mail];
    change(&mut data);
    let definition = Definition::from_data(data).unwrap();
    let lints = definition.lints();
    assert_eq!(lint(&definition, &json!(1)), lints);
    let found = |l: &Lint| (l.code(), l.step().unwrap_or_default().to_owned());
    for lint in &lints {
        assert!(lint.to_string().contains(lint.step().unwrap()), "{lint}");
    }
    lints.iter().map(found).collect()
}

#[test]
fn what_is_suspicious_is_said_and_what_is_not_is_not() {
    type Change = fn(&mut DefinitionData);
    let fine: Change = |_| {};
    assert!(codes(fine).is_empty());
    let cases: &[(&str, &str, Change)] = &[
        ("longer_than_deadline", "charge", |d| d.steps[0].timeout = Some(MS(13_000))),
        // Ten seconds of attempts, and nearly a minute of pauses.
        ("longer_than_deadline", "ship", |d| {
            d.steps[1].retry = Some(RetryData::new(10, MS(5_000), MS(6_000)));
        }),
        ("no_runbook", "ship", |d| d.steps[1].runbook = None),
        ("no_runbook", "charge", |d| d.steps[0].on_unknown = OnUnknown::Ask),
        ("no_status_address", "charge", |d| d.steps[0].status = None),
        ("no_status_address", "ship", |d| d.steps[1].status = None),
        ("not_idempotent", "charge", |d| d.steps[0].idempotent = false),
        ("undo_tried_once", "charge", |d| d.steps[0].undo_retry = Some(RetryData::new(1, MS(1), MS(1)))),
        ("ignored", "ship", |d| d.steps[1].on_unknown = OnUnknown::Ask),
        ("ignored", "ship", |d| d.steps[1].undo_retry = Some(RetryData::default())),
        ("ignored", "mail", |d| d.steps[2].undo_timeout = Some(MS(1))),
        ("ignored", "mail", |d| d.steps[2].no_undo = Some("mail".to_owned())),
        ("ignored", "mail", |d| d.steps[2].retry = Some(RetryData::new(3, MS(1), MS(1)))),
        ("irreversible", "charge", |d| {
            (d.steps[0].undo, d.steps[0].no_undo) = (None, Some("nothing to undo".to_owned()));
        }),
    ];
    for (code, step, change) in cases {
        assert_eq!(codes(change), [(*code, (*step).to_owned())]);
    }
    // Told often enough, a retriable step may say how often; a step that is tried once may forget its key.
    assert!(codes(|d| d.steps[2].retry = Some(RetryData::new(20, MS(1), MS(1)))).is_empty());
    assert!(
        codes(|d| {
            d.steps[0].idempotent = false;
            d.steps[0].retry = Some(RetryData::new(1, MS(1), MS(1)));
        })
        .is_empty()
    );
    let big = json!("x".repeat(220 * 1024));
    assert!(matches!(lint(&built(), &big)[..], [.., Lint::PayloadNearLimit { .. }]));
}
