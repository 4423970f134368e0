//! What happened to a saga: every attempt as a bar on one scale of time, with what people did in between.

use std::collections::BTreeMap;

use maud::{Markup, html};
use mainstay_clock::WallTime;
use mainstay_saga::wire::{Cause, Fact, UndoVerdict, Verdict, decode};
use mainstay_store::journal::Record;

use crate::console::words::{self, Sign};

/// Entries shown; a saga may have thousands, the export has them all.
const SHOWN: usize = 120;
/// Units of the bars.
const SCALE: i64 = 1_000;
/// No bar is thinner.
const THIN: i64 = 6;

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

fn undone(verdict: &UndoVerdict) -> (Sign, String) {
    match verdict {
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
            })
        };
        let mut finish = |key: (String, bool), (sign, why): (Sign, String), next| {
            if let Some(Entry::Attempt(a)) = open.remove(&key).and_then(|i| all.get_mut(i)) {
                (a.end, a.sign, a.why, a.next) = (Some(at), sign, why, next);
            }
        };
        match decode(record) {
            Ok(Fact::StepEnded(e)) => finish((e.at.step, false), done(&e.verdict), e.retry_at),
            Ok(Fact::UndoEnded(e)) => finish((e.at.step, true), undone(&e.verdict), e.retry_at),
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

/// The lines, oldest first.
pub(super) fn draw(uid: &str, records: &[Record], now: WallTime, over: bool) -> Markup {
    let all = entries(records);
    let left_out = all.len().saturating_sub(SHOWN);
    let shown = &all[left_out..];
    let first = shown.first().map_or(now, Entry::start);
    let last = if over { records.last().map_or(now, |r| r.at) } else { now };
    let whole = i64::try_from(last.saturating_duration_since(first).as_millis()).unwrap_or(i64::MAX).max(1);
    html! {
        @if left_out > 0 { p.dim { (words::plural(left_out as u64, "earlier line")) " in the export." } }
        ol.timeline {
            @for entry in shown {
                @match entry {
                    Entry::Attempt(a) => (attempt(uid, a, first, whole, last, now)),
                    Entry::Event { at, who, text } => li.event {
                        span.at { (offset(first, *at)) }
                        span.who { (who) }
                        span.text { (words::cut(text, 600)) }
                    },
                }
            }
        }
        p.dim { "Times count from " (words::moment(first)) "; the whole bar is " (words::took(last.saturating_duration_since(first))) "." }
    }
}

fn offset(first: WallTime, at: WallTime) -> String {
    format!("+{}", words::took(at.saturating_duration_since(first)))
}

fn attempt(uid: &str, a: &Attempt, first: WallTime, whole: i64, last: WallTime, now: WallTime) -> Markup {
    let millis = |t: WallTime| i64::try_from(t.saturating_duration_since(first).as_millis()).unwrap_or(0);
    let (from, to) = (millis(a.start), millis(a.end.unwrap_or(last)));
    let x = (from.saturating_mul(SCALE) / whole).clamp(0, SCALE - THIN);
    let width = ((to - from).saturating_mul(SCALE) / whole).clamp(THIN, SCALE - x);
    let op = if a.undo { "undo" } else { "action" };
    let op_key = if a.generation > 1 { format!("{op}~{}", a.generation) } else { op.to_owned() };
    html! {
        li.attempt {
            span.at { (offset(first, a.start)) }
            span.what { code { (a.step) } " " @if a.undo { "undo " } span.dim { "#" (a.attempt) } }
            svg class={ "bar " (a.sign.0) @if a.undo { " undo" } } viewBox={ "0 0 " (SCALE) " 10" } preserveAspectRatio="none" aria-hidden="true" {
                rect.track x="0" y="4" width=(SCALE) height="2" {}
                rect x=(x) y="0" width=(width) height="10" rx="2" {}
            }
            span.took { @match a.end { Some(end) => (words::took(end.saturating_duration_since(a.start))), None => "\u{2026}" } }
            span.came { (a.sign.badge()) }
            div.more {
                @if !a.why.is_empty() { p { (words::cut(&a.why, 600)) } }
                @if let Some(next) = a.next { p.dim { "then tried again " (words::countdown(now, WallTime::from_unix_millis(next))) } }
                p.key { span.dim { "key" } " " code { (uid) "/" (a.step) "/" (op_key) } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mainstay_saga::wire::{AttemptRef, Note, StepEnded, encode};

    use super::*;

    fn record(seq: u64, at: i64, fact: &Fact) -> Record {
        let new = encode(fact);
        Record { seq, kind: new.kind, at: WallTime::from_unix_millis(at), bytes: new.bytes }
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
            retry_at: Some(500),
            item: None,
        };
        let records = [
            record(1, 1_000, &Fact::StepStarted(at(1))),
            record(2, 400, &Fact::StepEnded(end)),
            record(3, 300, &Fact::StepStarted(at(2))),
        ];
        let text = draw("u", &records, WallTime::from_unix_millis(0), false).0;
        assert!(!text.contains("\"-") && !text.contains(">-"), "{text}");
        assert!(text.contains("no answer") && text.contains("u/charge/action") && text.contains("in flight"));
    }

    #[test]
    fn if_c02_a_long_history_is_cut_and_says_so() {
        let note = |n: u64| Fact::Note(Note { text: format!("note {n}") });
        let records: Vec<Record> = (1..=10_000).map(|n| record(n, 0, &note(n))).collect();
        let text = draw("u", &records, WallTime::from_unix_millis(0), false).0;
        assert!(text.len() < 40_000, "{}", text.len());
        assert!(text.contains("9\u{202f}880 earlier lines in the export") && text.contains("note 10000"));
    }
}
