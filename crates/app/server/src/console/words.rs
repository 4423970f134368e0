//! How states, times and numbers read.

use std::time::Duration;

use mainstay_clock::WallTime;
use mainstay_store::journal::{Row, SagaStatus};
use maud::{Markup, html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::api::instant;

/// Longest payload shown; the export has the whole.
const MAX_SHOWN: usize = 4 * 1024;

/// A state: its class, a sign that does not need color, and its word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sign(pub(super) &'static str, pub(super) &'static str, pub(super) &'static str);

impl Sign {
    /// As a badge.
    pub(super) fn badge(self) -> Markup {
        html! { span class={ "sign " (self.0) } { i aria-hidden="true" { (self.1) } " " (self.2) } }
    }
}

/// The sign of a row: a flag that matters more than the status wins.
pub(super) fn of_row(row: &Row) -> Sign {
    match row.status {
        status if status.is_final() => of_status(status),
        SagaStatus::NeedsAttention => of_status(SagaStatus::NeedsAttention),
        _ if row.overdue => Sign("warn", "!", "overdue"),
        _ if row.paused => Sign("off", "\u{2016}", "paused"),
        SagaStatus::Compensating if row.retrying => Sign("warn", "\u{21bb}", "retrying undo"),
        _ if row.retrying => Sign("warn", "\u{21bb}", "retrying"),
        status => of_status(status),
    }
}

/// The sign of a status. Forward and back are arrows.
pub(super) fn of_status(status: SagaStatus) -> Sign {
    match status {
        SagaStatus::Abandoned => Sign("off", "\u{d7}", "abandoned"),
        SagaStatus::Compensated => Sign("back", "\u{21e4}", "compensated"),
        SagaStatus::Compensating => Sign("back", "\u{2190}", "compensating"),
        SagaStatus::Completed => Sign("good", "\u{2713}", "completed"),
        SagaStatus::NeedsAttention => Sign("bad", "!", "needs attention"),
        SagaStatus::Running => Sign("run", "\u{2192}", "running"),
        SagaStatus::Waiting => Sign("run", "\u{2026}", "waiting"),
    }
}

/// The sign of a step, by the word of the API.
pub(super) fn of_step(word: &str) -> Sign {
    match word {
        "done" => Sign("good", "\u{2713}", "done"),
        "failed" => Sign("off", "\u{d7}", "failed"),
        "needs_attention" => Sign("bad", "!", "needs attention"),
        "retrying" => Sign("warn", "\u{21bb}", "retrying"),
        "running" => Sign("run", "\u{2192}", "running"),
        "skipped" => Sign("off", "\u{d7}", "left as it is"),
        "undoing" => Sign("back", "\u{2190}", "undoing"),
        "undone" => Sign("back", "\u{21e4}", "undone"),
        _ => Sign("wait", "\u{b7}", "not started"),
    }
}

/// A moment in the past, as an age. Never negative, whatever the clocks say.
pub(super) fn ago(now: WallTime, at: WallTime) -> Markup {
    let text = instant(at);
    html! {
        time datetime=(text) title=(text) data-ago=(at.unix_millis()) {
            (span(now.saturating_duration_since(at))) " ago"
        }
    }
}

/// How long it has been since a moment.
pub(super) fn lasting(now: WallTime, since: WallTime) -> Markup {
    let text = instant(since);
    html! {
        time datetime=(text) title={ "since " (text) } data-for=(since.unix_millis()) {
            (span(now.saturating_duration_since(since)))
        }
    }
}

/// A moment that comes, as a countdown.
pub(super) fn countdown(now: WallTime, at: WallTime) -> Markup {
    let text = instant(at);
    let left = at.saturating_duration_since(now);
    html! {
        time datetime=(text) title=(text) data-in=(at.unix_millis()) {
            @if left.is_zero() { "now" } @else { "in " (span(left)) }
        }
    }
}

/// A moment, for reading: the date, the time and that it is UTC.
pub(super) fn moment(at: WallTime) -> Markup {
    let text = instant(at);
    html! { time datetime=(text) { (text.replace('T', " ").replace('Z', " UTC")) } }
}

/// A duration in its two largest units.
pub(super) fn span(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => format!("{} min", s / 60),
        3_600..86_400 => format!("{} h {} min", s / 3_600, s % 3_600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// How long something took.
pub(super) fn took(d: Duration) -> String {
    match d.as_millis() {
        ms @ 0..1_000 => format!("{ms} ms"),
        ms @ 1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => span(d),
    }
}

/// A count with thin groups of three, so that digits can be told apart.
pub(super) fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(c);
    }
    text
}

/// `1 step`, `2 steps`.
pub(super) fn plural(n: u64, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{} {one}s", number(n)) }
}

/// JSON as text, bounded.
pub(super) fn json(value: &Value) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    cut(&text, MAX_SHOWN)
}

/// At most `max` bytes of a text, saying what is left out.
pub(super) fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    format!("{}\n({} more bytes: see the export)", &text[..end], text.len() - end)
}

/// Everything but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Percent-encodes one part of an address. A part of nothing but dots would be resolved away.
pub(super) fn encode(text: &str) -> String {
    let coded = utf8_percent_encode(text, RESERVED).to_string();
    if coded.bytes().all(|b| b == b'.') { coded.replace('.', "%2E") } else { coded }
}

/// An address of a definition without its query, which may be a key of the participant's.
pub(super) fn address(url: &str) -> String {
    url.split_once('?').map_or_else(|| url.to_owned(), |(place, _)| format!("{place}?..."))
}

/// A text as one word of a POSIX shell.
pub(super) fn shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn if_c10_clock_differences_never_show_as_negative_durations() {
        let (early, late) = (WallTime::from_unix_millis(1_000), WallTime::from_unix_millis(900_000));
        assert!(ago(early, late).0.contains(">0 s ago<"), "{}", ago(early, late).0);
        assert!(countdown(late, early).0.contains(">now<"));
        assert!(ago(late, early).0.contains(">14 min ago<"));
    }

    #[test]
    fn numbers_and_durations_read_well() {
        assert_eq!(number(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!((number(0).as_str(), number(999).as_str()), ("0", "999"));
        for (ms, text) in [(0, "0 ms"), (999, "999 ms"), (1_250, "1.2 s"), (61_000, "1 min")] {
            assert_eq!(took(Duration::from_millis(ms)), text);
        }
        assert_eq!(span(Duration::from_secs(90_061)), "1 d 1 h");
        assert_eq!(shell("it's"), r"'it'\''s'");
        assert_eq!(
            (address("http://p/a?key=k&b").as_str(), address("http://p/a").as_str()),
            ("http://p/a?...", "http://p/a")
        );
    }
}
