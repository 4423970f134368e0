//! Breakers of participants that are not closed: which, why, since when, and when a call passes again.

use mainstay_clock::{Instant, Runtime, WallTime};
use mainstay_resilience::breaker::{BreakerSnapshot, Cause, State};
use maud::{Markup, html};

use crate::console::words::{self, Sign};

/// Most breakers with a row of their own.
const MAX_ROWS: usize = 20;

/// The section of *Now*; nothing while every breaker lets calls pass.
pub(super) fn section(all: &[BreakerSnapshot], rt: &Runtime) -> Markup {
    let noted: Vec<&BreakerSnapshot> = all.iter().filter(|b| b.state != State::Closed).collect();
    html! {
        @if !noted.is_empty() {
            section aria-labelledby="h-breakers" {
                h2 #h-breakers { "Breakers that are not closed" }
                ul.rows { @for one in noted.iter().take(MAX_ROWS) { (row(one, rt)) } }
                @if noted.len() > MAX_ROWS { p.dim { (noted.len() - MAX_ROWS) " more: see " code { "/metrics" } "." } }
            }
        }
    }
}

fn row(one: &BreakerSnapshot, rt: &Runtime) -> Markup {
    let wall = |at| wall_of(rt, at);
    let now = rt.clock().wall();
    html! {
        li.row {
            div.main {
                p.lead { strong { (one.name) } " " (sign(one.state).badge()) }
                p.why { (why(one)) }
            }
            div.side {
                "since " (words::lasting(now, wall(one.since)))
                @if let Some(until) = one.hold_until {
                    span.next { "held until " (words::countdown(now, wall(until))) }
                } @else if let Some(left) = one.retry_in {
                    span.next { "next try " (words::countdown(now, now.saturating_add(left))) }
                }
            }
        }
    }
}

/// The wall time of an instant of boot time, as the clocks stand now.
fn wall_of(rt: &Runtime, at: Instant) -> WallTime {
    let (boot, wall) = (rt.clock().now(), rt.clock().wall());
    let ahead = at.saturating_duration_since(boot);
    if !ahead.is_zero() {
        return wall.saturating_add(ahead);
    }
    let millis = i64::try_from(boot.saturating_duration_since(at).as_millis()).unwrap_or(i64::MAX);
    WallTime::from_unix_millis(wall.unix_millis().saturating_sub(millis))
}

fn sign(state: State) -> Sign {
    match state {
        State::Open => Sign("bad", "!", "open"),
        State::HalfOpen => Sign("warn", "?", "half open"),
        State::ForcedOpen => Sign("off", "\u{2016}", "held open"),
        State::ForcedClosed => Sign("off", "\u{2016}", "held closed"),
        State::MetricsOnly => Sign("off", "\u{2016}", "only counting"),
        _ => Sign("good", "\u{2713}", "closed"),
    }
}

/// What moved it, in a sentence.
fn why(one: &BreakerSnapshot) -> String {
    if let Some(why) = &one.why {
        return format!("a person: {why}");
    }
    let cause = one.last.iter().rev().find(|t| t.to() == one.state).map(|t| t.cause());
    match cause {
        Some(Cause::Abandoned { calls }) => format!("{calls} calls were given up before they were answered"),
        Some(Cause::Consecutive { failures }) => format!("{failures} calls in a row failed"),
        Some(Cause::FailureRate { failures, total }) => format!("{failures} of {total} calls failed"),
        Some(Cause::SlowRate { slow, total }) => format!("{slow} of {total} calls were slow"),
        Some(Cause::ProbeFailed) => {
            format!("tried again, and failed; rounds in a row: {}", one.round.saturating_sub(1))
        }
        _ => "a few calls are let through, to see whether they succeed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use mainstay_clock::{Clock as _, SeededRng, virtual_time::VirtualClock};
    use mainstay_resilience::Breaker;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_breaker_that_is_not_closed_says_why_since_when_and_until_when() {
        let clock = VirtualClock::new();
        let rt = Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(1)));
        let built = |name: &str| {
            let breaker = Breaker::builder(name).consecutive(2).open_for(Duration::from_secs(60)).jitter(0.0);
            breaker.runtime(&rt).build().unwrap()
        };
        let (open, held, fine) = (built("http://pay<b>"), built("http://ship"), built("http://fine"));
        let seen = || section(&[open.snapshot(), held.snapshot(), fine.snapshot()], &rt).0;
        assert_eq!(seen(), "", "nothing while all are closed");
        (0..2).for_each(|_| open.admit().unwrap().failure());
        held.force_open("moving the <database>", Some(Duration::from_secs(600)));
        clock.sleep(Duration::from_millis(19_900)).await;
        let html = seen();
        for said in ["http://pay&lt;b&gt;", "2 calls in a row failed", "since ", "next try", "in 40 s"] {
            assert!(html.contains(said), "{said}: {html}");
        }
        for said in ["a person: moving the &lt;database&gt;", "held open", "held until", "in 9 min"] {
            assert!(html.contains(said), "{said}: {html}");
        }
        assert!(!html.contains("http://fine"), "{html}");
        // A probe fails.
        clock.sleep(Duration::from_secs(41)).await;
        open.admit().unwrap().failure();
        let html = seen();
        assert!(html.contains("tried again, and failed; rounds in a row: 1"), "{html}");
    }
}
