//! `GET /metrics`: Prometheus text. Labels are configured names and closed sets, never ids.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use mainstay_resilience::breaker;
use mainstay_resilience::bulkhead::BulkheadSnapshot;
use mainstay_saga::Engine;
use mainstay_sqlite::SqliteStore;
use mainstay_store::journal::SagaStatus;

use crate::api::App;
use crate::api::json::{bytes, store_problem};
use crate::fleet::Fleet;
use crate::http::Problem;
use crate::leases::{Count, Tally};
use crate::nearly::Watched;
use crate::participants::Participants;

/// Most definitions that get a label of their own; the rest is `other`.
const MAX_LABELS: usize = 200;

/// The states of a breaker.
const STATES: [breaker::State; 6] = [
    breaker::State::Closed,
    breaker::State::ForcedClosed,
    breaker::State::ForcedOpen,
    breaker::State::HalfOpen,
    breaker::State::MetricsOnly,
    breaker::State::Open,
];

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let counts = app.journal.counts().await.map_err(|e| store_problem(&e))?;
    let now = app.rt.clock().wall();
    let mut names: Vec<&str> = counts.iter().map(|c| c.definition.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let unnamed = names.len().saturating_sub(MAX_LABELS);
    names.truncate(MAX_LABELS);
    let mut sagas: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let (mut retrying, mut overdue) = (0, 0);
    let mut oldest = 0.0_f64;
    for c in &counts {
        let name = if names.contains(&c.definition.as_str()) { c.definition.as_str() } else { "other" };
        *sagas.entry((name, c.status.as_str())).or_default() += c.count;
        retrying += c.retrying;
        overdue += c.overdue;
        if c.status == SagaStatus::NeedsAttention && c.count > 0 {
            oldest = oldest.max(now.saturating_duration_since(c.oldest).as_secs_f64());
        }
    }
    let mut text = String::new();
    head(&mut text, "mainstay_sagas", "gauge", "Sagas by definition and state");
    for ((definition, state), count) in &sagas {
        let _ = writeln!(
            text,
            "mainstay_sagas{{definition=\"{}\",state=\"{state}\"}} {count}",
            label(definition)
        );
    }
    let resets = app.resets.load(Ordering::Relaxed);
    single(&mut text, "mainstay_sagas_retrying", "gauge", "Sagas between two attempts", retrying);
    single(
        &mut text,
        "mainstay_sagas_overdue",
        "gauge",
        "Sagas past their deadline that nobody acknowledged",
        overdue,
    );
    of_engine(&mut text, &app.engine, &app.watched);
    single(
        &mut text,
        "mainstay_saga_attention_oldest_seconds",
        "gauge",
        "Age of the oldest saga that needs a person",
        oldest,
    );
    single(
        &mut text,
        "mainstay_sse_resets_total",
        "counter",
        "Event readers cut because they were too slow",
        resets,
    );
    of_participants(&mut text, &app.participants, unnamed);
    if let Some(store) = &app.store {
        of_store(&mut text, store);
    }
    of_leases(&mut text, app.desk.tally());
    if let Some(fleet) = &app.fleet {
        of_fleet(&mut text, fleet);
    }
    head(&mut text, "mainstay_build_info", "gauge", "The running version");
    let _ = writeln!(text, "mainstay_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    Ok(bytes(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text))
}

/// What the engine holds in memory, and what of the node was nearly used up.
fn of_engine(text: &mut String, engine: &Engine, watched: &Watched) {
    single(text, "mainstay_sagas_in_memory", "gauge", "Sagas this node drives", engine.in_flight());
    let help = "Most sagas that this node drives at once";
    single(text, "mainstay_sagas_in_memory_limit", "gauge", help, engine.max_in_flight());
    let warned = engine.warnings();
    let name = "mainstay_warnings_total";
    head(
        text,
        name,
        "counter",
        "Times that a bound was used up to 80 %, or clocks went apart; each is logged",
    );
    let all = [
        ("clock_drift", warned.clock_drifts),
        ("disk_nearly_full", watched.disk.times()),
        ("log_nearly_full", warned.logs_nearly_full),
        ("memory_nearly_full", warned.memory_nearly_full),
        ("requests_nearly_full", watched.requests.times()),
    ];
    for (about, count) in all {
        let _ = writeln!(text, "{name}{{about=\"{about}\"}} {count}");
    }
    if let Some((free, size)) = watched.space() {
        let help = "Bytes of the disk of the data folder that are free for this node";
        single(text, "mainstay_disk_free_bytes", "gauge", help, free);
        single(text, "mainstay_disk_size_bytes", "gauge", "Bytes of that disk, free or used", size);
    }
}

/// Calls of participants, and what guards them. A breaker that is built anew counts from zero again.
fn of_participants(text: &mut String, participants: &Participants, unnamed: usize) {
    let (name, durations) = ("mainstay_saga_step_duration_seconds", participants.durations());
    head(text, name, "histogram", "Calls of participants, refused and unanswered ones included");
    durations.write(text, name, label);
    let breakers = participants.breakers();
    head(
        text,
        "mainstay_breaker_state",
        "gauge",
        "1 for the state that the breaker of an origin or of a policy is in",
    );
    for one in breakers.iter().take(MAX_LABELS) {
        for state in STATES {
            let (name, is) = (label(&one.name), u8::from(one.state == state));
            let _ =
                writeln!(text, "mainstay_breaker_state{{name=\"{name}\",state=\"{}\"}} {is}", state.name());
        }
    }
    head(
        text,
        "mainstay_breaker_calls_total",
        "counter",
        "Calls by how the breaker of their origin or their policy counted them",
    );
    for one in breakers.iter().take(MAX_LABELS) {
        let (name, life) = (label(&one.name), &one.lifetime);
        let outcomes = [
            ("abandoned", life.abandoned),
            ("failure", life.failures),
            ("ignored", life.ignored),
            ("rejected", life.rejected),
            ("success", life.successes.unwrap_or_default()),
        ];
        for (outcome, count) in outcomes {
            let _ = writeln!(
                text,
                "mainstay_breaker_calls_total{{name=\"{name}\",outcome=\"{outcome}\"}} {count}"
            );
        }
    }
    let places = participants.places();
    type Read = fn(&BulkheadSnapshot) -> u32;
    let gauges: [(&str, &str, Read); 3] = [
        ("mainstay_bulkhead_in_flight", "Calls of an origin or through a policy under way", |s| s.in_flight),
        ("mainstay_bulkhead_limit", "Most calls of an origin or through a policy at once", |s| s.limit),
        ("mainstay_bulkhead_queued", "Calls of an origin or through a policy that wait for a place", |s| {
            s.queued
        }),
    ];
    for (metric, help, read) in gauges {
        head(text, metric, "gauge", help);
        for place in places.iter().take(MAX_LABELS) {
            let _ = writeln!(text, "{metric}{{name=\"{}\"}} {}", label(&place.name), read(place));
        }
    }
    let origins = breakers.len().max(places.len()).saturating_sub(MAX_LABELS);
    let help = "Definitions and origins that have no labels of their own now";
    single(text, "mainstay_metric_names_hidden", "gauge", help, unnamed + origins);
    let help = "Calls counted under `other`, because there are too many steps";
    single(text, "mainstay_metric_names_overflow_total", "counter", help, durations.overflow());
}

/// Commits of the journal: each is one sync, which all that waited share.
fn of_store(text: &mut String, store: &SqliteStore) {
    let writes = store.writes();
    let name = "mainstay_store_fsync_seconds";
    head(text, name, "histogram", "Commits of the journal, each with its sync");
    for (bound, below) in &writes.commits_within {
        let _ = writeln!(text, "{name}_bucket{{le=\"{}\"}} {below}", bound.as_secs_f64());
    }
    let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {}", writes.commits);
    let _ = writeln!(text, "{name}_sum {}", writes.commit_time.as_secs_f64());
    let _ = writeln!(text, "{name}_count {}", writes.commits);
    single(
        text,
        "mainstay_store_queue_depth",
        "gauge",
        "Writes that wait for the next commit",
        writes.queued,
    );
}

/// What became of requests for leases over HTTP.
fn of_leases(text: &mut String, tally: &Tally) {
    let mut each = |name: &str, help: &str, counts: &[(&str, &Count)]| {
        head(text, name, "counter", help);
        for (outcome, count) in counts {
            let _ = writeln!(text, "{name}{{outcome=\"{outcome}\"}} {}", count.get());
        }
    };
    each(
        "mainstay_lease_requests_total",
        "Requests for locks and terms, and renewals that the store could not answer",
        &[
            ("failed", &tally.failed),
            ("granted", &tally.granted),
            ("held", &tally.held),
            ("late", &tally.late),
            ("refused", &tally.refused),
        ],
    );
    each(
        "mainstay_lease_renewals_total",
        "Renewals of locks and terms",
        &[("lost", &tally.lost), ("renewed", &tally.renewed)],
    );
    each(
        "mainstay_lease_ends_total",
        "Locks and terms that were given back, taken away or handed on",
        &[("broken", &tally.broken), ("handed_on", &tally.handed_on), ("released", &tally.released)],
    );
}

/// Nodes, open breakers and packets.
fn of_fleet(text: &mut String, fleet: &Fleet) {
    head(text, "mainstay_fleet_nodes", "gauge", "Nodes of the fleet as this one sees them");
    let nodes = fleet.nodes();
    for state in ["down", "here", "unseen", "up"] {
        let count = nodes.iter().filter(|n| n.state == state).count();
        let _ = writeln!(text, "mainstay_fleet_nodes{{state=\"{state}\"}} {count}");
    }
    head(text, "mainstay_fleet_breaker_open_nodes", "gauge", "Nodes that see the breaker open");
    for open in fleet.open_breakers().iter().take(MAX_LABELS) {
        let (name, count) = (label(&open.origin), open.nodes.len());
        let _ = writeln!(text, "mainstay_fleet_breaker_open_nodes{{name=\"{name}\"}} {count}");
    }
    let s = fleet.stats();
    single(text, "mainstay_gossip_sent_bytes_total", "counter", "Bytes of packets sent", s.sent_bytes);
    single(
        text,
        "mainstay_gossip_received_bytes_total",
        "counter",
        "Bytes of packets received",
        s.received_bytes,
    );
    head(text, "mainstay_gossip_dropped_total", "counter", "Packets dropped by reason");
    let reasons = [
        ("foreign", s.foreign),
        ("full", s.full),
        ("malformed", s.malformed),
        ("misdirected", s.misdirected),
        ("other_version", s.other_version),
        ("oversized", s.oversized),
        ("own", s.own),
        ("stranger", s.strangers),
        ("unauthenticated", s.unauthenticated),
    ];
    for (reason, count) in reasons {
        let _ = writeln!(text, "mainstay_gossip_dropped_total{{reason=\"{reason}\"}} {count}");
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}");
}

fn single(text: &mut String, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
    head(text, name, kind, help);
    let _ = writeln!(text, "{name} {value}");
}

fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
