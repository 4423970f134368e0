//! What definitions refuse, and what their hash covers.

use std::time::Duration;

use mainstay_saga::definition::{Definition, DefinitionData, Problem, StepData, StepKind};

use crate::world::step;

fn refused(steps: Vec<StepData>) -> Vec<Problem> {
    let mut data = DefinitionData::new("order", 1);
    data.no_deadline = true;
    data.steps = steps;
    Definition::from_data(data).unwrap_err().problems().to_vec()
}

fn kind(mut step: StepData, kind: StepKind) -> StepData {
    step.kind = kind;
    step.local_undo = false;
    step
}

#[test]
fn a_circle_is_refused_and_named() {
    let problems = refused(vec![step("a", &["c"]), step("b", &["a"]), step("c", &["b"])]);
    let [Problem::Cycle { steps }] = problems.as_slice() else { panic!("{problems:?}") };
    assert_eq!(steps.len(), 4);
    assert_eq!(steps.first(), steps.last());
}

#[test]
fn sg_x05_a_compensable_step_beside_the_pivot_is_refused_naming_both() {
    let problems =
        refused(vec![step("a", &[]), kind(step("ship", &["a"]), StepKind::Pivot), step("b", &["a"])]);
    let expected = Problem::BesidePivot { step: "b".to_owned(), pivot: "ship".to_owned() };
    assert_eq!(problems, [expected]);
}

#[test]
fn sg_s10_an_undo_after_the_pivot_is_refused() {
    let mut email = step("email", &["ship"]);
    email.kind = StepKind::Retriable;
    let problems = refused(vec![kind(step("ship", &[]), StepKind::Pivot), email]);
    assert_eq!(problems, [Problem::UndoAfterPivot { step: "email".to_owned() }]);
}

#[test]
fn sg_f10_an_output_nobody_produces_is_refused() {
    let mut charge = step("charge", &[]);
    charge.input = Some(serde_json::json!({"hold": "$reserve.id"}));
    let problems = refused(vec![charge]);
    let expected = Problem::UnknownReference { step: "charge".to_owned(), reference: "reserve".to_owned() };
    assert_eq!(problems, [expected]);
}

#[test]
fn a_retriable_step_needs_an_idempotent_participant_and_a_pivot_before_it() {
    let mut email = kind(step("email", &["ship"]), StepKind::Retriable);
    email.idempotent = false;
    let problems = refused(vec![kind(step("ship", &[]), StepKind::Pivot), email]);
    assert_eq!(problems, [Problem::NotIdempotent { step: "email".to_owned() }]);
    let problems = refused(vec![kind(step("email", &[]), StepKind::Retriable)]);
    assert_eq!(problems, [Problem::RetriableBeforePivot { step: "email".to_owned() }]);
}

#[test]
fn missing_undo_two_pivots_duplicates_and_zeros_are_refused() {
    let mut bare = step("a", &[]);
    bare.local_undo = false;
    assert_eq!(refused(vec![bare]), [Problem::MissingUndo { step: "a".to_owned() }]);
    let pivots = vec![kind(step("a", &[]), StepKind::Pivot), kind(step("b", &["a"]), StepKind::Pivot)];
    assert!(matches!(refused(pivots).as_slice(), [Problem::TwoPivots { .. }]));
    assert!(
        refused(vec![step("a", &[]), step("a", &[])])
            .contains(&Problem::DuplicateStep { step: "a".to_owned() })
    );
    let mut zero = step("a", &[]);
    zero.timeout = Some(Duration::ZERO);
    assert!(
        matches!(refused(vec![zero]).as_slice(), [Problem::Field { field, .. }] if field == "steps.a.timeout")
    );
}

#[test]
fn more_steps_than_a_readable_history_has_are_refused() {
    let steps = |n: usize| (0..n).map(|i| step(&format!("s{i}"), &[])).collect::<Vec<_>>();
    let problems = refused(steps(1_001));
    assert!(
        matches!(&problems[..], [Problem::Field { field, value, .. }] if field == "steps" && value == "1001")
    );
    let mut data = DefinitionData::new("order", 1);
    data.no_deadline = true;
    data.steps = steps(1_000);
    assert_eq!(Definition::from_data(data).unwrap().steps().len(), 1_000);
}

#[test]
fn unknown_keys_in_toml_are_refused() {
    let text = "name = \"order\"\nversion = 1\nno_deadline = true\n[[steps]]\nname = \"a\"\nno_undo = \"x\"\ntimout = \"5s\"\n";
    let error = Definition::from_toml(text).unwrap_err();
    assert!(error.to_string().contains("timout"), "{error}");
}

#[test]
fn the_hash_covers_the_graph_and_not_what_may_be_tuned() {
    let build = |steps: Vec<StepData>| {
        let mut data = DefinitionData::new("order", 1);
        data.no_deadline = true;
        data.steps = steps;
        Definition::from_data(data).unwrap()
    };
    let base = build(vec![step("a", &[]), step("b", &["a"])]);
    let mut slower = step("b", &["a"]);
    slower.timeout = Some(Duration::from_secs(9));
    assert_eq!(build(vec![step("a", &[]), slower]).hash(), base.hash());
    let parallel = build(vec![step("a", &[]), step("b", &[])]);
    assert_ne!(parallel.hash(), base.hash());
    assert_eq!(base.diff(&parallel).len(), 1);
    assert_eq!(base.diff(&base), Vec::<String>::new());
}

/// It was refused with a difference that named nothing.
#[test]
fn m_g7_steps_in_another_order_are_another_graph_and_the_difference_says_so() {
    let build = |names: [&str; 3]| {
        let mut data = DefinitionData::new("order", 1);
        data.no_deadline = true;
        data.steps = names.map(|name| step(name, &[])).to_vec();
        Definition::from_data(data).unwrap()
    };
    let (a, b) = (build(["a", "b", "c"]), build(["a", "c", "b"]));
    assert_ne!(a.hash(), b.hash());
    assert_eq!(a.diff(&b), ["step `c` stands where `b` stood"]);
}

#[test]
fn what_is_no_toml_is_said_in_one_line_with_its_place() {
    for (text, place) in
        [("nope", "at line 1 column 5: nope"), ("name = \"\u{e9}\"\nnope", "at line 2 column 5: nope")]
    {
        let said = Definition::from_toml(text).unwrap_err().to_string();
        assert!(said.contains(place) && !said.contains('\n'), "{said}");
    }
}

#[test]
fn a_definition_survives_its_own_json_and_toml() {
    let mut data = DefinitionData::new("order", 3);
    data.deadline = Some(Duration::from_secs(20));
    data.steps = vec![step("a", &[]), step("b", &["a"])];
    let built = Definition::from_data(data).unwrap();
    let json = serde_json::to_vec(built.data()).unwrap();
    assert_eq!(Definition::from_json(&json).unwrap(), built);
}

/// Problems of a definition that was stored over HTTP had no pointer.
#[test]
fn every_problem_says_where_it_is() {
    let at = |text: &str| {
        let refused = Definition::from_json(text.as_bytes()).unwrap_err();
        assert_eq!(refused.pointers().len(), refused.problems().len());
        refused.pointers().to_vec()
    };
    let head = r#""name": "n", "version": 1, "no_deadline": true"#;
    let of = |steps: &str| at(&format!("{{{head}, \"steps\": [{steps}]}}"));
    assert_eq!(
        at(r#"{"name": "", "version": 0, "steps": []}"#),
        ["/name", "/version", "/deadline", "/steps"]
    );
    assert_eq!(at(r#"{"name": "n""#), [""]);
    let a = r#"{"name": "a", "no_undo": "x"}"#;
    assert_eq!(
        of(&format!(r#"{a}, {a}, {{"name": "in put", "no_undo": "x"}}"#)),
        ["/steps/1/name", "/steps/2/name"]
    );
    assert_eq!(
        of(&format!(r#"{a}, {{"name": "b", "after": ["a", "c"], "input": "$d", "no_undo": "x"}}"#)),
        ["/steps/1/after/1", "/steps/1/input"]
    );
    assert_eq!(
        of(r#"{"name": "a"}, {"name": "b", "kind": "pivot", "local_undo": true}"#),
        ["/steps/0/undo", "/steps/1/local_undo"]
    );
    assert_eq!(
        of(
            r#"{"name": "a", "action": "ftp://p/a", "undo": "p", "status": "http:///s", "timeout": "0s", "undo_timeout": "2days",
            "retry": {"attempts": 0}, "undo_retry": {"base": "0s"}}"#
        ),
        ["action", "undo", "status", "timeout", "undo_timeout", "retry/attempts", "undo_retry/base"]
            .map(|what| format!("/steps/0/{what}"))
    );
    // What a step has from the head is wrong there.
    let inherits = format!(r#"{{{head}, "timeout": "0s", "retry": {{"attempts": 0}}, "steps": [{a}]}}"#);
    assert_eq!(at(&inherits), ["/timeout", "/retry/attempts"]);
    let circle =
        r#"{"name": "a", "after": ["b"], "no_undo": "x"}, {"name": "b", "after": ["a"], "no_undo": "x"}"#;
    assert!(["/steps/0/after", "/steps/1/after"].contains(&of(circle)[0].as_str()));
    let pivot = r#"{"name": "p", "kind": "pivot"}"#;
    assert_eq!(
        of(&format!(r#"{pivot}, {a}, {{"name": "r", "kind": "retriable"}}"#)),
        ["/steps/1/kind", "/steps/2/kind"]
    );
    assert_eq!(of(&format!(r#"{pivot}, {{"name": "q", "kind": "pivot"}}"#)), ["/steps/1/kind"]);
}
