//! What happened to a saga: every attempt as a bar on one scale of time, with what people did in between.

use std::collections::BTreeMap;

use mainstay_clock::WallTime;
use mainstay_saga::definition::{Call, Definition, Undo};
use mainstay_saga::wire::{Cause, Fact, UndoEnded, UndoVerdict, Verdict, decode};
use mainstay_store::barrier::Op;
use mainstay_store::journal::{Loaded, Record};
use maud::{Markup, html};
use serde_json::Value;

use crate::console::words::{self, Sign};
use crate::redact::Redact;

/// Entries shown; a saga may have thousands, the export has them all.
const SHOWN: usize = 120;
/// Units of the bars.
const SCALE: i64 = 1_000;
/// No bar is thinner.
const THIN: i64 = 6;
/// So many equal attempts in a row are shown as their first, a fold and their last.
const ALIKE: usize = 4;

/// One attempt.
#[derive(Debug)]
struct Attempt {
    step: String,
    undo: bool,
    attempt: u32,
    generation: u32,
    start: WallTime,
    end: Option<WallTime>,
    sign: Sign,
    /// Why, and when it is tried again.
    why: String,
    next: Option<i64>,
    output: Option<Value>,
}

impl Attempt {
    fn is_like(&self, other: &Self) -> bool {
        (&self.step, self.undo, self.sign.2, &self.why) == (&other.step, other.undo, other.sign.2, &other.why)
    }
}

/// One line.
#[derive(Debug)]
enum Entry {
    Attempt(Attempt),
    Event { at: WallTime, who: String, text: String },
}

impl Entry {
    fn start(&self) -> WallTime {
        match self {
            Self::Attempt(a) => a.start,
            Self::Event { at, .. } => *at,
        }
    }
}

fn done(verdict: &Verdict) -> (Sign, String) {
    match verdict {
        Verdict::ContractBroken { reason } => (Sign("bad", "!", "contract broken"), reason.clone()),
        Verdict::Done { output: None } => (Sign("good", "\u{2713}", "done"), "its output is lost".to_owned()),
        Verdict::Done { .. } => (Sign("good", "\u{2713}", "done"), String::new()),
        Verdict::NotSent { reason } => (Sign("off", "\u{d7}", "not sent"), reason.clone()),
        Verdict::Rejected { reason, .. } => (Sign("off", "\u{d7}", "refused"), reason.clone()),
        Verdict::Unknown { reason, interrupted: true } => {
            (Sign("warn", "?", "cut short"), format!("the node died: {reason}"))
        }
        Verdict::Unknown { reason, .. } => (Sign("warn", "?", "unknown"), reason.clone()),
    }
}

fn undone(end: &UndoEnded) -> (Sign, String) {
    match &end.verdict {
        UndoVerdict::Failed { reason } if end.withheld => (Sign("off", "\u{d7}", "not sent"), reason.clone()),
        UndoVerdict::Failed { reason } => (Sign("warn", "?", "failed"), reason.clone()),
        UndoVerdict::Refused { reason } => (Sign("bad", "!", "refused"), reason.clone()),
        UndoVerdict::Undone => (Sign("back", "\u{21e4}", "undone"), String::new()),
    }
}

/// Reads the log. Unreadable records are lines too: nothing is left out silently.
fn entries(records: &[Record]) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    let mut open: BTreeMap<(String, bool), usize> = BTreeMap::new();
    for record in records {
        let at = record.at;
        let event = |who: &str, text: String| Entry::Event { at, who: who.to_owned(), text };
        let begin = |r: &mainstay_saga::wire::AttemptRef, undo| {
            Entry::Attempt(Attempt {
                step: r.step.clone(),
                undo,
                attempt: r.attempt,
                generation: r.generation,
                start: at,
                end: None,
                sign: Sign("run", if undo { "\u{2190}" } else { "\u{2192}" }, "in flight"),
                why: String::new(),
                next: None,
                output: None,
            })
        };
        let mut finish = |key: (String, bool), (sign, why): (Sign, String), next, output| {
            if let Some(Entry::Attempt(a)) = open.remove(&key).and_then(|i| all.get_mut(i)) {
                (a.end, a.sign, a.why, a.next, a.output) = (Some(at), sign, why, next, output);
            }
        };
        match decode(record) {
            Ok(Fact::StepEnded(e)) => {
                let came = done(&e.verdict);
                let output = if let Verdict::Done { output } = e.verdict { output } else { None };
                finish((e.at.step, false), came, e.retry_at, output);
            }
            Ok(Fact::UndoEnded(e)) => {
                let came = undone(&e);
                finish((e.at.step, true), came, e.retry_at, None);
            }
            Ok(Fact::StepStarted(r)) => {
                open.insert((r.step.clone(), false), all.len());
                all.push(begin(&r, false));
            }
            Ok(Fact::UndoStarted(r)) => {
                open.insert((r.step.clone(), true), all.len());
                all.push(begin(&r, true));
            }
            Ok(fact) => all.extend(told(&fact).map(|(who, text)| event(&who, text))),
            Err(error) => all.push(event("log", error.to_string())),
        }
    }
    all
}

/// A fact that is no attempt, in words.
fn told(fact: &Fact) -> Option<(String, String)> {
    let node = |text: &str| Some(("node".to_owned(), text.to_owned()));
    match fact {
        Fact::Action(a) => {
            let on = a.operation.step().map(|s| format!(" on {s}")).unwrap_or_default();
            Some((a.who.clone(), format!("{}{on}: {}", a.operation.name().replace('_', " "), a.reason)))
        }
        Fact::ActionRefused(a) => {
            Some((a.who.clone(), format!("{} was refused: {}", a.action.replace('_', " "), a.why)))
        }
        Fact::Carried(c) => node(&format!("{} was done by an earlier run, its effect stays there", c.step)),
        Fact::Closed(c) => Some((c.who.clone(), format!("gave it up, set aside as it was: {}", c.reason))),
        Fact::Created(_) => node("started"),
        Fact::Finished(f) => node(&format!("ended: {}", f.status)),
        Fact::Note(n) => node(&n.text),
        Fact::Overdue(_) => node("the deadline passed; past the pivot the saga goes on"),
        Fact::Stopped(s) => match &s.cause {
            Cause::Cancelled { by, reason } => Some((by.clone(), format!("turned back: {reason}"))),
            Cause::DeadlineExceeded => node("turned back: the deadline passed"),
            Cause::Operator { by, reason } => Some((by.clone(), format!("turned back: {reason}"))),
            Cause::StepFailed { step, reason } => node(&format!("turned back: {step} failed: {reason}")),
            _ => node("turned back"),
        },
        _ => None,
    }
}

/// What the lines are drawn with.
struct Scale<'a> {
    uid: &'a str,
    definition: Option<&'a Definition>,
    redact: &'a Redact,
    trace: Option<String>,
    first: WallTime,
    last: WallTime,
}

impl Scale<'_> {
    fn whole(&self) -> i64 {
        i64::try_from(self.last.saturating_duration_since(self.first).as_millis()).unwrap_or(i64::MAX).max(1)
    }

    fn millis(&self, at: WallTime) -> i64 {
        i64::try_from(at.saturating_duration_since(self.first).as_millis()).unwrap_or(0)
    }

    fn offset(&self, at: WallTime) -> String {
        format!("+{}", words::took(at.saturating_duration_since(self.first)))
    }
}

/// The lines, oldest first.
pub(super) fn draw(
    redact: &Redact,
    definition: Option<&Definition>,
    loaded: &Loaded,
    now: WallTime,
) -> Markup {
    let all = entries(&loaded.records);
    let left_out = all.len().saturating_sub(SHOWN);
    let shown = &all[left_out..];
    // While nothing is in flight nothing grows.
    let moving = all.iter().any(|e| matches!(e, Entry::Attempt(a) if a.end.is_none()));
    let scale = Scale {
        uid: loaded.summary.uid.as_str(),
        definition,
        redact,
        trace: loaded.records.first().and_then(|r| match decode(r) {
            Ok(Fact::Created(started)) => started.trace,
            _ => None,
        }),
        first: shown.first().map_or(now, Entry::start),
        last: if moving { now } else { loaded.records.last().map_or(now, |r| r.at) },
    };
    html! {
        @if left_out > 0 { p.dim { (words::plural(left_out as u64, "earlier line")) " in the export." } }
        ol.timeline { @for group in groups(shown) { (lines(&scale, group)) } }
        p.dim { "Times count from " (words::moment(scale.first)) "; a whole line is " (words::took(scale.last.saturating_duration_since(scale.first))) "." }
    }
}

/// Cuts where an attempt is not like the one before.
fn groups(shown: &[Entry]) -> impl Iterator<Item = &[Entry]> {
    shown.chunk_by(|a, b| match (a, b) {
        (Entry::Attempt(a), Entry::Attempt(b)) => a.is_like(b),
        _ => false,
    })
}

fn lines(scale: &Scale<'_>, group: &[Entry]) -> Markup {
    let [first, inner @ .., last] = group else {
        return html! { @for entry in group { (line(scale, entry)) } };
    };
    html! {
        (line(scale, first))
        @if group.len() >= ALIKE {
            li {
                details.group id={ "g-" (scale.millis(first.start())) } {
                    summary { (inner.len()) " more of the same" }
                    ol { @for entry in inner { (line(scale, entry)) } }
                }
            }
        } @else {
            @for entry in inner { (line(scale, entry)) }
        }
        (line(scale, last))
    }
}

fn line(scale: &Scale<'_>, entry: &Entry) -> Markup {
    html! {
        @match entry {
            Entry::Attempt(a) => (attempt(scale, a)),
            Entry::Event { at, who, text } => li.event {
                span.at { (scale.offset(*at)) }
                span.who { (who) }
                span.text { (words::cut(text, 600)) }
            },
        }
    }
}

fn attempt(scale: &Scale<'_>, a: &Attempt) -> Markup {
    let (from, to) = (scale.millis(a.start), scale.millis(a.end.unwrap_or(scale.last)));
    let x = (from.saturating_mul(SCALE) / scale.whole()).clamp(0, SCALE - THIN);
    let width = ((to - from).saturating_mul(SCALE) / scale.whole()).clamp(THIN, SCALE - x);
    let op = if a.undo { "undo" } else { "action" };
    html! {
        li {
            details id={ "t-" (a.step) "-" (op) "-" (a.generation) "-" (a.attempt) } {
                summary {
                    span.at { (scale.offset(a.start)) }
                    span.what { code { (a.step) } " " @if a.undo { "undo " } span.dim { "#" (a.attempt) } }
                    svg class={ "bar " (a.sign.0) } viewBox={ "0 0 " (SCALE) " 10" } preserveAspectRatio="none" aria-hidden="true" {
                        rect.track x="0" y="4" width=(SCALE) height="2" {}
                        rect x=(x) y="0" width=(width) height="10" rx="2" {}
                    }
                    span.took { @match a.end { Some(end) => (words::took(end.saturating_duration_since(a.start))), None => "\u{2026}" } }
                    span.came { (a.sign.badge()) }
                    @if !a.why.is_empty() { span.text.of { (words::cut(&a.why, 600)) } }
                }
                (more(scale, a))
            }
        }
    }
}

/// Request and answer of an attempt, as far as the log and the definition tell.
fn more(scale: &Scale<'_>, a: &Attempt) -> Markup {
    let step = scale.definition.and_then(|d| d.steps().get(d.index(&a.step)?));
    let call = step.and_then(|s| match (a.undo, &s.undo) {
        (false, _) => Some(&s.action),
        (true, Undo::Call(call)) => Some(call),
        (true, Undo::None(_)) => None,
    });
    let generation = a.generation;
    let op = if a.undo { Op::Undo { generation } } else { Op::Action { generation } };
    html! {
        p.pair { span.dim { "Request" } " " @match call {
            Some(Call::Http(url)) => { "POST " code { (words::address(url)) } },
            Some(Call::Local) => "in the process",
            None => "unknown here",
        } }
        p.pair { span.dim { "Key" } " " code { (scale.uid) "/" (a.step) "/" (op.text()) } }
        @if let Some(trace) = &scale.trace { p.pair { span.dim { "Trace" } " " code { (trace) } } }
        p.pair { span.dim { "Attempt" } " " (a.attempt) ", begun " (words::moment(a.start)) }
        @if let Some(output) = &a.output { p.pair { span.dim { "Output" } " " code { (words::cut(&scale.redact.shown(output).to_string(), 600)) } } }
        @if let (Some(next), Some(end)) = (a.next, a.end) {
            p.pair { span.dim { "Then" } " again after " (words::took(WallTime::from_unix_millis(next).saturating_duration_since(end))) }
        }
    }
}

#[cfg(test)]
mod tests {
    use mainstay_saga::wire::{AttemptRef, Note, StepEnded, encode};
    use mainstay_store::journal::{Hash, Row, Summary, Uid};

    use super::*;

    fn record(seq: u64, at: i64, fact: &Fact) -> Record {
        let new = encode(fact);
        Record { seq, kind: new.kind, at: WallTime::from_unix_millis(at), bytes: new.bytes }
    }

    fn drawn(records: Vec<Record>) -> String {
        let zero = WallTime::from_unix_millis(0);
        let summary = Summary {
            uid: Uid::new("u"),
            id: "i".to_owned(),
            definition: "d".to_owned(),
            version: 1,
            definition_hash: Hash([0; 32]),
            input_hash: Hash([0; 32]),
            epoch: 1,
            next_seq: 1,
            owner: None,
            created: zero,
            updated: zero,
            row: Row::running(zero),
            parent: None,
        };
        draw(&Redact::default(), None, &Loaded { summary, records, posts: Vec::new() }, zero).0
    }

    fn at(attempt: u32) -> AttemptRef {
        AttemptRef { step: "charge".to_owned(), attempt, generation: 1 }
    }

    #[test]
    fn if_c10_a_clock_that_went_back_gives_no_negative_bar_and_no_panic() {
        let reason = "no answer".to_owned();
        let end = StepEnded {
            at: at(1),
            verdict: Verdict::Unknown { reason, interrupted: false },
            withheld: false,
            retry_at: Some(500),
            item: None,
        };
        let records = vec![
            record(1, 1_000, &Fact::StepStarted(at(1))),
            record(2, 400, &Fact::StepEnded(end)),
            record(3, 300, &Fact::StepStarted(at(2))),
        ];
        let text = drawn(records);
        assert!(!text.contains("\"-") && !text.contains(">-"), "{text}");
        assert!(text.contains("no answer") && text.contains("u/charge/action") && text.contains("in flight"));
    }

    #[test]
    fn if_c02_a_long_history_is_cut_and_says_so() {
        let note = |n: u64| Fact::Note(Note { text: format!("note {n}") });
        let records: Vec<Record> = (1..=10_000).map(|n| record(n, 0, &note(n))).collect();
        let text = drawn(records);
        assert!(text.len() < 40_000, "{}", text.len());
        assert!(text.contains("9\u{202f}880 earlier lines in the export") && text.contains("note 10000"));
    }
}
