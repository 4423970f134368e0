//! The checks every definition passes, and its hash.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use mainstay_store::journal::Hash;
use serde_json::{Value, json};

use super::data::{DefinitionData, RetryData, StepData};
use super::{Call, DEFAULT_TIMEOUT, Definition, MAX_STEPS, RetrySpec, Step, StepKind, Template, Undo};
use crate::canonical::canonical;

/// One thing wrong with a definition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A compensable step neither before the pivot nor forbidden: it could fail after the point of no return.
    #[error("compensable step `{step}` is not an ancestor of the pivot `{pivot}`: it could fail after it")]
    BesidePivot {
        /// The step.
        step: String,
        /// The pivot.
        pivot: String,
    },
    /// The steps depend on each other in a circle.
    #[error("steps depend on each other in a circle: {}", .steps.join(" -> "))]
    Cycle {
        /// The circle.
        steps: Vec<String>,
    },
    /// Two steps of one name.
    #[error("step name `{step}` is used twice")]
    DuplicateStep {
        /// The name.
        step: String,
    },
    /// Neither a deadline nor an explicit absence of one, or both.
    #[error("say either `deadline = \"..\"` or `no_deadline = true`")]
    Deadline,
    /// A value outside its range.
    #[error("`{field}` is {value}; allowed: {allowed}")]
    Field {
        /// Path of the field.
        field: String,
        /// The refused value.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A compensable step without an undo and without a reason for that.
    #[error("compensable step `{step}` needs `undo`, or `no_undo = \"reason\"`")]
    MissingUndo {
        /// The step.
        step: String,
    },
    /// A retriable step must be idempotent by key.
    #[error("retriable step `{step}` needs a participant that honors the idempotency key")]
    NotIdempotent {
        /// The step.
        step: String,
    },
    /// The text cannot be read.
    #[error("{message}")]
    Syntax {
        /// What the parser says.
        message: String,
    },
    /// More than one pivot.
    #[error("`{first}` and `{second}` are both pivots; at most one is allowed")]
    TwoPivots {
        /// The first.
        first: String,
        /// The second.
        second: String,
    },
    /// An undo on a step that has none by nature.
    #[error("step `{step}` is after the point of no return and cannot have an undo")]
    UndoAfterPivot {
        /// The step.
        step: String,
    },
    /// A retriable step that is not behind the pivot.
    #[error("retriable step `{step}` must come after the pivot")]
    RetriableBeforePivot {
        /// The step.
        step: String,
    },
    /// A reference to a step that does not exist.
    #[error("step `{step}` refers to `{reference}`, an output nobody produces")]
    UnknownReference {
        /// The step.
        step: String,
        /// What it refers to.
        reference: String,
    },
    /// A reference to a step that is not before it.
    #[error("step `{step}` waits for unknown step `{reference}`")]
    UnknownStep {
        /// The step.
        step: String,
        /// What it waits for.
        reference: String,
    },
}

/// A refused definition: every problem found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefinitionError {
    problems: Vec<Problem>,
    pointers: Vec<String>,
}

impl DefinitionError {
    pub(super) fn one(problem: Problem) -> Self {
        Self { problems: vec![problem], pointers: vec![String::new()] }
    }

    fn add(&mut self, pointer: String, problem: Problem) {
        self.problems.push(problem);
        self.pointers.push(pointer);
    }

    /// The problems.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Where each of them is: JSON pointers (RFC 6901) into the definition, in the order of the problems. Empty, which is
    /// all of it, for a text that cannot be read.
    ///
    /// ```
    /// use mainstay_saga::definition::Definition;
    ///
    /// let text = r#"{"name": "order", "version": 1, "no_deadline": true, "steps": [{"name": "pay", "after": ["cart"]}]}"#;
    /// let refused = Definition::from_json(text.as_bytes()).unwrap_err();
    /// assert_eq!(refused.pointers(), ["/steps/0/after/0", "/steps/0/undo"]);
    /// ```
    #[must_use]
    pub fn pointers(&self) -> &[String] {
        &self.pointers
    }
}

impl fmt::Display for DefinitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.problems.iter().map(ToString::to_string).collect();
        write!(f, "the definition is refused: {}", lines.join("; "))
    }
}

impl std::error::Error for DefinitionError {}

impl From<DefinitionError> for crate::Error {
    fn from(e: DefinitionError) -> Self {
        Self::new(crate::ErrorKind::Config, e.to_string())
    }
}

pub(super) fn build(data: DefinitionData) -> Result<Definition, DefinitionError> {
    let mut found = DefinitionError { problems: Vec::new(), pointers: Vec::new() };
    check_head(&data, &mut found);
    let index = check_names(&data, &mut found);
    let after = edges(&data, &index, &mut found);
    let steps = data
        .steps
        .iter()
        .enumerate()
        .map(|(i, step)| build_step(&data, step, &after, i, &mut found))
        .collect::<Vec<_>>();
    if found.problems.is_empty() {
        match cycle(&after) {
            Some(path) => {
                let pointer = path.first().map_or("/steps".to_owned(), |i| format!("/steps/{i}/after"));
                let steps = path.into_iter().map(|i| data.steps[i].name.clone()).collect();
                found.add(pointer, Problem::Cycle { steps });
            }
            None => check_kinds(&steps, &after, &mut found),
        }
    }
    if !found.problems.is_empty() {
        return Err(found);
    }
    let hash = graph_hash(&data.name, &steps);
    Ok(Definition {
        name: data.name.clone(),
        version: data.version,
        steps,
        deadline: data.deadline,
        hash,
        source: data,
    })
}

fn check_head(data: &DefinitionData, found: &mut DefinitionError) {
    let mut refuse = |name: &str, problem| found.add(format!("/{name}"), problem);
    if data.name.is_empty() || data.name.len() > 255 || data.name.chars().any(char::is_control) {
        refuse("name", field("name", &data.name, "1 to 255 bytes without control characters"));
    }
    if data.version == 0 {
        refuse("version", field("version", &data.version, "1 or more"));
    }
    if data.deadline.is_some() == data.no_deadline {
        refuse("deadline", Problem::Deadline);
    }
    if data.deadline.is_some_and(|d| d.is_zero()) {
        refuse("deadline", field("deadline", &"0s", "more than 0s"));
    }
    if data.steps.is_empty() || data.steps.len() > MAX_STEPS {
        refuse("steps", field("steps", &data.steps.len(), "1 to 1,000 steps"));
    }
}

fn field(name: &str, value: &dyn fmt::Display, allowed: &'static str) -> Problem {
    Problem::Field { field: name.to_owned(), value: value.to_string(), allowed }
}

fn check_names(data: &DefinitionData, found: &mut DefinitionError) -> BTreeMap<String, usize> {
    let mut index = BTreeMap::new();
    for (i, step) in data.steps.iter().enumerate() {
        let pointer = || format!("/steps/{i}/name");
        let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if step.name.is_empty()
            || step.name.len() > 100
            || !step.name.chars().all(fine)
            || step.name == "input"
        {
            let name = format!("steps[{i}].name");
            found.add(pointer(), field(&name, &step.name, "1 to 100 of a-z A-Z 0-9 _ -, not `input`"));
        }
        if index.insert(step.name.clone(), i).is_some() {
            found.add(pointer(), Problem::DuplicateStep { step: step.name.clone() });
        }
    }
    index
}

fn edges(
    data: &DefinitionData,
    index: &BTreeMap<String, usize>,
    found: &mut DefinitionError,
) -> Vec<BTreeSet<usize>> {
    let mut after = Vec::with_capacity(data.steps.len());
    for (at, step) in data.steps.iter().enumerate() {
        let mut set = BTreeSet::new();
        for (nth, name) in step.after.iter().enumerate() {
            match index.get(name) {
                Some(i) => drop(set.insert(*i)),
                None => {
                    let unknown = Problem::UnknownStep { step: step.name.clone(), reference: name.clone() };
                    found.add(format!("/steps/{at}/after/{nth}"), unknown);
                }
            }
        }
        // A step that uses an output waits for it.
        for name in step.input.clone().map_or_else(BTreeSet::new, |v| Template::new(v).steps()) {
            match index.get(&name) {
                Some(i) => drop(set.insert(*i)),
                None => {
                    let unknown = Problem::UnknownReference { step: step.name.clone(), reference: name };
                    found.add(format!("/steps/{at}/input"), unknown);
                }
            }
        }
        after.push(set);
    }
    after
}

fn build_step(
    data: &DefinitionData,
    step: &StepData,
    after: &[BTreeSet<usize>],
    i: usize,
    found: &mut DefinitionError,
) -> Step {
    let call = |url: &Option<String>| url.clone().map_or(Call::Local, Call::Http);
    let pointer = |what: &str| format!("/steps/{i}/{what}");
    let undo = match (&step.undo, step.local_undo, &step.no_undo) {
        (Some(url), false, None) => Undo::Call(Call::Http(url.clone())),
        (None, true, None) => Undo::Call(Call::Local),
        (None, false, Some(reason)) => Undo::None(reason.clone()),
        (None, false, None) if step.kind != StepKind::Compensable => {
            Undo::None("after the point of no return".to_owned())
        }
        _ => {
            found.add(pointer("undo"), Problem::MissingUndo { step: step.name.clone() });
            Undo::None(String::new())
        }
    };
    if step.kind != StepKind::Compensable && matches!(undo, Undo::Call(_)) {
        let what = if step.local_undo { "local_undo" } else { "undo" };
        found.add(pointer(what), Problem::UndoAfterPivot { step: step.name.clone() });
    }
    if step.status.is_some() && step.local_status {
        let name = format!("steps.{}.status", step.name);
        found.add(pointer("status"), field(&name, &"given beside `local_status`", "one of both"));
    }
    if step.kind == StepKind::Retriable && !step.idempotent {
        found.add(pointer("idempotent"), Problem::NotIdempotent { step: step.name.clone() });
    }
    for (what, url) in [("action", &step.action), ("undo", &step.undo), ("status", &step.status)] {
        if let Some(url) = url.as_ref().filter(|url| !is_url(url)) {
            let allowed = "an http:// or https:// address of at most 2,048 bytes";
            found.add(pointer(what), field(&format!("steps.{}.{what}", step.name), url, allowed));
        }
    }
    let mut place = Place { i, step, found };
    let own = step.timeout;
    let timeout = place.positive("timeout", own.is_some(), own.or(data.timeout).unwrap_or(DEFAULT_TIMEOUT));
    let undo_timeout = step.undo_timeout.map_or(timeout, |d| place.positive("undo_timeout", true, d));
    Step {
        name: step.name.clone(),
        kind: step.kind,
        after: after[i].iter().copied().collect(),
        before: (0..after.len()).filter(|j| after[*j].contains(&i)).collect(),
        action: call(&step.action),
        undo,
        status: step.status.clone(),
        local_status: step.local_status,
        input: step.input.clone().map_or_else(Template::input, Template::new),
        timeout,
        undo_timeout,
        retry: place.retry("retry", [step.retry, data.retry], RetrySpec::ACTION),
        undo_retry: place.retry("undo_retry", [step.undo_retry, data.undo_retry], RetrySpec::UNDO),
        on_unknown: step.on_unknown,
        policy: step.policy.clone(),
        runbook: step.runbook.clone(),
    }
}

fn is_url(url: &str) -> bool {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    rest.is_some_and(|r| !r.is_empty() && !r.starts_with('/'))
        && url.len() <= 2_048
        && !url.chars().any(|c| c.is_control() || c == ' ')
}

/// A step whose values are looked at; what it does not say itself stands in the head.
struct Place<'a> {
    i: usize,
    step: &'a StepData,
    found: &'a mut DefinitionError,
}

impl Place<'_> {
    fn refuse(&mut self, what: &str, is_own: bool, value: &dyn fmt::Display, allowed: &'static str) {
        let pointer = what.replace('.', "/");
        let pointer = if is_own { format!("/steps/{}/{pointer}", self.i) } else { format!("/{pointer}") };
        self.found.add(pointer, field(&format!("steps.{}.{what}", self.step.name), value, allowed));
    }

    fn positive(&mut self, what: &str, is_own: bool, d: Duration) -> Duration {
        if d.is_zero() || d > Duration::from_secs(86_400) {
            self.refuse(what, is_own, &humantime::format_duration(d), "more than 0s, at most 1day");
        }
        d
    }

    fn retry(&mut self, what: &str, given: [Option<RetryData>; 2], default: RetrySpec) -> RetrySpec {
        let is_own = given[0].is_some();
        let pick = given.into_iter().flatten().next().unwrap_or_default();
        // A cap below the default base asks for a base no larger than it.
        let cap = pick.cap.unwrap_or(default.cap);
        let spec = RetrySpec {
            attempts: pick.attempts.unwrap_or(default.attempts),
            base: pick.base.unwrap_or(default.base.min(cap)),
            cap: cap.max(pick.base.filter(|_| pick.cap.is_none()).unwrap_or(Duration::ZERO)),
        };
        if spec.attempts == 0 {
            let allowed = "1 or more; the first attempt counts";
            self.refuse(&format!("{what}.attempts"), is_own, &0, allowed);
        }
        if spec.base.is_zero() || spec.base > spec.cap {
            let base = humantime::format_duration(spec.base);
            self.refuse(&format!("{what}.base"), is_own, &base, "more than 0s, at most `cap`");
        }
        spec
    }
}

/// A circle in the graph, if there is one.
fn cycle(after: &[BTreeSet<usize>]) -> Option<Vec<usize>> {
    // 0 = unseen, 1 = on the path, 2 = done.
    let mut mark = vec![0_u8; after.len()];
    for root in 0..after.len() {
        let mut path: Vec<(usize, Vec<usize>)> = Vec::new();
        if mark[root] == 0 {
            mark[root] = 1;
            path.push((root, after[root].iter().copied().collect()));
        }
        while let Some((at, rest)) = path.last_mut() {
            let at = *at;
            match rest.pop() {
                None => {
                    mark[at] = 2;
                    path.pop();
                }
                Some(next) if mark[next] == 1 => {
                    let from = path.iter().position(|(n, _)| *n == next).unwrap_or(0);
                    let mut circle: Vec<usize> = path[from..].iter().map(|(n, _)| *n).collect();
                    circle.push(next);
                    circle.reverse();
                    return Some(circle);
                }
                Some(next) if mark[next] == 0 => {
                    mark[next] = 1;
                    path.push((next, after[next].iter().copied().collect()));
                }
                Some(_) => {}
            }
        }
    }
    None
}

fn check_kinds(steps: &[Step], after: &[BTreeSet<usize>], found: &mut DefinitionError) {
    let mut pivots = (0..steps.len()).filter(|i| steps[*i].kind == StepKind::Pivot);
    let pivot = pivots.next();
    if let (Some(first), Some(second)) = (pivot, pivots.next()) {
        let pointer = format!("/steps/{second}/kind");
        let (first, second) = (steps[first].name.clone(), steps[second].name.clone());
        found.add(pointer, Problem::TwoPivots { first, second });
        return;
    }
    let before_pivot = pivot.map(|p| ancestors(p, after)).unwrap_or_default();
    for (i, step) in steps.iter().enumerate() {
        let name = || step.name.clone();
        let problem = match (step.kind, pivot) {
            (StepKind::Compensable, Some(p)) if !before_pivot.contains(&i) => {
                Problem::BesidePivot { step: name(), pivot: steps[p].name.clone() }
            }
            (StepKind::Retriable, None) => Problem::RetriableBeforePivot { step: name() },
            (StepKind::Retriable, Some(p)) if !ancestors(i, after).contains(&p) => {
                Problem::RetriableBeforePivot { step: name() }
            }
            _ => continue,
        };
        found.add(format!("/steps/{i}/kind"), problem);
    }
}

fn ancestors(of: usize, after: &[BTreeSet<usize>]) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open = vec![of];
    while let Some(at) = open.pop() {
        open.extend(after[at].iter().copied().filter(|p| found.insert(*p)));
    }
    found
}

/// The canonical graph: what a saga in flight depends on.
fn graph(name: &str, steps: &[Step]) -> Value {
    let steps: Vec<Value> = steps
        .iter()
        .map(|s| {
            let after: Vec<&str> = s.after.iter().map(|i| steps[*i].name.as_str()).collect();
            json!({
                "name": s.name, "kind": s.kind, "after": after, "input": s.input.value(),
                "undo": matches!(s.undo, Undo::Call(_)),
            })
        })
        .collect();
    json!({ "name": name, "steps": steps })
}

fn graph_hash(name: &str, steps: &[Step]) -> Hash {
    Hash::of(canonical(&graph(name, steps)).as_bytes())
}

pub(super) fn diff(a: &Definition, b: &Definition) -> Vec<String> {
    let rows = |d: &Definition| -> BTreeMap<String, String> {
        let graph = graph(&d.name, &d.steps);
        let steps = graph["steps"].as_array().cloned().unwrap_or_default();
        d.steps.iter().zip(steps).map(|(s, v)| (s.name.clone(), canonical(&v))).collect()
    };
    let moved = a.steps.iter().zip(&b.steps).find(|(x, y)| x.name != y.name);
    let moved = moved.map(|(x, y)| format!("step `{}` stands where `{}` stood", y.name, x.name));
    let (a, b) = (rows(a), rows(b));
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let mut lines: Vec<String> = names
        .into_iter()
        .filter_map(|name| match (a.get(name), b.get(name)) {
            (Some(x), Some(y)) if x == y => None,
            (Some(x), Some(y)) => Some(format!("step `{name}` changed from {x} to {y}")),
            (Some(_), None) => Some(format!("step `{name}` was removed")),
            (None, _) => Some(format!("step `{name}` was added")),
        })
        .collect();
    // Steps that wait for the same are started in their order: it is part of the graph, and of no row.
    lines.extend(moved.filter(|_| lines.is_empty()));
    lines
}
