//! From text to [`Spec`]: merges the defaults in, refuses what nobody reads.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::{Table, Value};

use super::spec::{
    AdaptiveSpec, BreakerSpec, BudgetSpec, BudgetUse, BulkheadSpec, GrpcSpec, HedgeSpec, Idempotent,
    InFlightSpec, RateSpec, RetrySpec, Spec, ThrottleSpec,
};
use super::{FileError, Policies};
use crate::lint::Layer;

const TOP: &[&str] = &["budgets", "defaults", "targets"];
const TARGET: &[&str] = &[
    "adaptive",
    "attempt_bulkhead",
    "attempt_timeout",
    "breaker",
    "budget",
    "bulkhead",
    "deadline",
    "expected_rate",
    "hedge",
    "idempotent",
    "order",
    "rate",
    "retry",
    "send_rate",
    "throttle",
    "within",
];
const BUDGET: &[&str] = &["credit", "floor", "grpc", "in_flight", "preset", "ratio"];
const GRPC: &[&str] = &["max", "ratio"];
const IN_FLIGHT: &[&str] = &["at_least", "share"];
const RETRY: &[&str] = &[
    "attempts",
    "base",
    "cap",
    "growth",
    "jitter",
    "max_retry_after",
    "min_attempt_time",
    "on",
    "preset",
    "total_time",
];
const BREAKER: &[&str] = &[
    "consecutive",
    "count",
    "failure_rate",
    "jitter",
    "min_calls",
    "open_cap",
    "open_for",
    "open_growth",
    "permits",
    "probe_lease",
    "ramp",
    "required",
    "sample_rate",
    "samples",
    "slow_after",
    "slow_rate",
    "window",
];
const BULKHEAD: &[&str] = &["limit", "queue", "wait"];
const HEDGE: &[&str] = &["after", "percentile", "window"];
const RATE: &[&str] = &["burst", "cells", "per"];
const ADAPTIVE: &[&str] = &["algorithm", "initial", "max", "min"];
const SEND_RATE: &[&str] = &["longest_wait"];
const THROTTLE: &[&str] = &["k", "trickle", "window"];
/// The slots that are tables of their own, and their keys.
const SLOTS: &[(&str, &[&str])] = &[
    ("adaptive", ADAPTIVE),
    ("attempt_bulkhead", BULKHEAD),
    ("breaker", BREAKER),
    ("bulkhead", BULKHEAD),
    ("hedge", HEDGE),
    ("rate", RATE),
    ("retry", RETRY),
    ("send_rate", SEND_RATE),
    ("throttle", THROTTLE),
];
/// Least similarity of a suggestion: below it the nearest key is no help.
const SIMILAR: f64 = 0.7;

pub(super) fn file(text: &str) -> Result<Policies, FileError> {
    let table: Table = text.parse().map_err(|e: toml::de::Error| FileError::Syntax(e.to_string()))?;
    known("", &table, TOP)?;
    let defaults = child(&table, "", "defaults")?.cloned().unwrap_or_default();
    known_target("defaults", &defaults)?;
    let mut policies = Policies::default();
    for (name, value) in child(&table, "", "budgets")?.into_iter().flatten() {
        let path = format!("budgets.{name}");
        let view = View { table: as_table(&path, value)?, path: path.clone() };
        policies.budgets.insert(name.clone(), budget(&view)?);
    }
    for (name, value) in child(&table, "", "targets")?.into_iter().flatten() {
        let path = format!("targets.{name}");
        let own = as_table(&path, value)?;
        known_target(&path, own)?;
        let merged = merge(&defaults, own);
        policies.targets.insert(name.clone(), target(&path, &merged, &policies.budgets)?);
    }
    known_within(&policies)?;
    Ok(policies)
}

/// Refuses a target that stands within nobody: a name with a slip in it would switch a rule of the linter off.
fn known_within(policies: &Policies) -> Result<(), FileError> {
    for (name, spec) in &policies.targets {
        let Some(within) = spec.within.as_deref().filter(|name| !policies.targets.contains_key(*name)) else {
            continue;
        };
        let near = nearest(within, policies.targets.keys().map(String::as_str));
        let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        let path = format!("targets.{name}.within");
        let allowed = format!("a name of [targets]{hint}");
        return Err(FileError::Value { path, given: format!("{within:?}"), allowed });
    }
    Ok(())
}

/// What a target inherits: everything it does not say itself, slot by slot and key by key.
fn merge(defaults: &Table, own: &Table) -> Table {
    let mut merged = defaults.clone();
    for (key, value) in own {
        match (merged.get_mut(key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => {
                below.extend(above.iter().map(|(k, v)| (k.clone(), v.clone())));
            }
            _ => drop(merged.insert(key.clone(), value.clone())),
        }
    }
    // The three kinds of window exclude each other: the target's own choice wins.
    let kinds = ["window", "count", "consecutive"];
    if let (Some(Value::Table(breaker)), Some(Value::Table(own))) =
        (merged.get_mut("breaker"), own.get("breaker"))
        && kinds.iter().any(|k| own.contains_key(*k))
    {
        breaker.retain(|key, _| !kinds.contains(&key) || own.contains_key(key));
    }
    merged
}

fn known_target(path: &str, table: &Table) -> Result<(), FileError> {
    known(path, table, TARGET)?;
    for (slot, keys) in SLOTS {
        if let Some(Value::Table(slot_table)) = table.get(*slot) {
            known(&format!("{path}.{slot}"), slot_table, keys)?;
        }
    }
    Ok(())
}

fn known(path: &str, table: &Table, keys: &'static [&'static str]) -> Result<(), FileError> {
    let Some(unknown) = table.keys().find(|key| !keys.contains(&key.as_str())) else { return Ok(()) };
    let suggestion = nearest(unknown, keys.iter().copied());
    Err(FileError::UnknownKey { path: join(path, unknown), suggestion })
}

/// The most similar of the known words, if it is similar enough to be meant.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|known| (strsim::jaro_winkler(known, word), known));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score >= SIMILAR);
    best.map(|(_, known)| known)
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn child<'a>(table: &'a Table, path: &str, key: &str) -> Result<Option<&'a Table>, FileError> {
    table.get(key).map(|value| as_table(&join(path, key), value)).transpose()
}

fn as_table<'a>(path: &str, value: &'a Value) -> Result<&'a Table, FileError> {
    value.as_table().ok_or_else(|| wrong(path.to_owned(), value, "a table"))
}

fn wrong(path: String, given: &Value, allowed: &str) -> FileError {
    FileError::Value { path, given: given.to_string(), allowed: allowed.to_owned() }
}

/// A table and where it stands.
struct View<'a> {
    path: String,
    table: &'a Table,
}

impl<'a> View<'a> {
    fn read<T>(
        &self,
        key: &str,
        allowed: &str,
        f: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FileError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        f(value).map(Some).ok_or_else(|| wrong(join(&self.path, key), value, allowed))
    }

    fn time(&self, key: &str) -> Result<Option<Duration>, FileError> {
        let parse = |v: &Value| humantime::parse_duration(v.as_str()?).ok();
        self.read(key, "a duration as text, as in \"300ms\" or \"2s\"", parse)
    }

    fn count(&self, key: &str) -> Result<Option<u32>, FileError> {
        self.read(key, "a whole number of at least 0", |v| u32::try_from(v.as_integer()?).ok())
    }

    fn number(&self, key: &str) -> Result<Option<f64>, FileError> {
        self.read(key, "a number", |v| v.as_float().or_else(|| Some(v.as_integer()? as f64)))
    }

    fn text(&self, key: &str) -> Result<Option<String>, FileError> {
        self.read(key, "text", |v| v.as_str().map(str::to_owned))
    }

    fn texts(&self, key: &str) -> Result<Option<Vec<String>>, FileError> {
        let list = |v: &Value| v.as_array()?.iter().map(|v| v.as_str().map(str::to_owned)).collect();
        self.read(key, "a list of text", list)
    }

    /// A slot: its table, or nothing when absent or `false`.
    fn slot(&self, key: &str) -> Result<Option<View<'a>>, FileError> {
        let path = join(&self.path, key);
        match self.table.get(key) {
            None | Some(Value::Boolean(false)) => Ok(None),
            Some(Value::Table(table)) => Ok(Some(View { path, table })),
            Some(other) => Err(wrong(path, other, "a table, or false to switch it off")),
        }
    }
}

fn target(path: &str, table: &Table, budgets: &BTreeMap<String, BudgetSpec>) -> Result<Spec, FileError> {
    let view = View { path: path.to_owned(), table };
    let idempotent =
        view.read("idempotent", "\"always\", \"per_call\" or \"never\"", |v| match v.as_str()? {
            "always" => Some(Idempotent::Always),
            "never" => Some(Idempotent::Never),
            "per_call" => Some(Idempotent::PerCall),
            _ => None,
        })?;
    let budget =
        view.read("budget", "\"own\", \"none\" or a name of [budgets]", |v| match v.as_str()? {
            "none" => Some(BudgetUse::None),
            "own" => Some(BudgetUse::Own),
            name => budgets.contains_key(name).then(|| BudgetUse::Named(name.to_owned())),
        })?;
    Ok(Spec {
        deadline: view.time("deadline")?,
        attempt_timeout: view.time("attempt_timeout")?,
        idempotent: idempotent.unwrap_or_default(),
        budget: budget.unwrap_or_default(),
        within: view.text("within")?,
        expected_rate: view.number("expected_rate")?,
        order: order(&view)?,
        retry: view.slot("retry")?.map(|v| retry(&v)).transpose()?,
        breaker: view.slot("breaker")?.map(|v| breaker(&v)).transpose()?,
        bulkhead: view.slot("bulkhead")?.map(|v| bulkhead(&v)).transpose()?,
        attempt_bulkhead: view.slot("attempt_bulkhead")?.map(|v| bulkhead(&v)).transpose()?,
        send_rate: view.slot("send_rate")?.map(|v| v.time("longest_wait")).transpose()?,
        hedge: view.slot("hedge")?.map(|v| hedge(&v)).transpose()?,
        rate: view.slot("rate")?.map(|v| rate(&v)).transpose()?,
        adaptive: view.slot("adaptive")?.map(|v| adaptive(&v)).transpose()?,
        throttle: view.slot("throttle")?.map(|v| throttle(&v)).transpose()?,
    })
}

fn budget(view: &View<'_>) -> Result<BudgetSpec, FileError> {
    known(&view.path, view.table, BUDGET)?;
    let (in_flight, grpc) = (view.slot("in_flight")?, view.slot("grpc")?);
    if let Some(view) = &in_flight {
        known(&view.path, view.table, IN_FLIGHT)?;
    }
    if let Some(view) = &grpc {
        known(&view.path, view.table, GRPC)?;
    }
    let in_flight = in_flight.map(|v| -> Result<_, FileError> {
        Ok(InFlightSpec { share: v.number("share")?, at_least: v.count("at_least")? })
    });
    let grpc = grpc.map(|v| -> Result<_, FileError> {
        Ok(GrpcSpec { max: v.count("max")?, ratio: v.number("ratio")? })
    });
    Ok(BudgetSpec {
        ratio: view.number("ratio")?,
        floor: view.number("floor")?,
        credit: view.time("credit")?,
        preset: view.text("preset")?,
        in_flight: in_flight.transpose()?,
        grpc: grpc.transpose()?,
    })
}

fn order(view: &View<'_>) -> Result<Option<Vec<Layer>>, FileError> {
    let layer = |v: &Value| {
        let name = v.as_str()?;
        Layer::ORDER.into_iter().find(|layer| layer.name() == name)
    };
    let names: Vec<_> = Layer::ORDER.iter().map(|layer| layer.name()).collect();
    let allowed = format!("a list of {}, outermost first", names.join(", "));
    view.read("order", &allowed, |v| v.as_array()?.iter().map(layer).collect())
}

fn retry(view: &View<'_>) -> Result<RetrySpec, FileError> {
    Ok(RetrySpec {
        attempts: view.count("attempts")?,
        base: view.time("base")?,
        cap: view.time("cap")?,
        growth: view.text("growth")?,
        jitter: view.text("jitter")?,
        total_time: view.time("total_time")?,
        max_retry_after: view.time("max_retry_after")?,
        min_attempt_time: view.time("min_attempt_time")?,
        on: view.texts("on")?,
        preset: view.text("preset")?,
    })
}

fn breaker(view: &View<'_>) -> Result<BreakerSpec, FileError> {
    Ok(BreakerSpec {
        window: view.time("window")?,
        count: view.count("count")?,
        consecutive: view.count("consecutive")?,
        failure_rate: view.number("failure_rate")?,
        min_calls: view.count("min_calls")?,
        slow_after: view.time("slow_after")?,
        slow_rate: view.number("slow_rate")?,
        open_for: view.time("open_for")?,
        open_growth: view.number("open_growth")?,
        open_cap: view.time("open_cap")?,
        jitter: view.number("jitter")?,
        permits: view.count("permits")?,
        required: view.count("required")?,
        probe_lease: view.time("probe_lease")?,
        ramp: view.time("ramp")?,
        samples: view.count("samples")?,
        sample_rate: view.number("sample_rate")?,
    })
}

fn bulkhead(view: &View<'_>) -> Result<BulkheadSpec, FileError> {
    Ok(BulkheadSpec { limit: view.count("limit")?, queue: view.count("queue")?, wait: view.time("wait")? })
}

fn hedge(view: &View<'_>) -> Result<HedgeSpec, FileError> {
    Ok(HedgeSpec {
        after: view.time("after")?,
        percentile: view.number("percentile")?,
        window: view.time("window")?,
    })
}

fn rate(view: &View<'_>) -> Result<RateSpec, FileError> {
    Ok(RateSpec { cells: view.count("cells")?, per: view.time("per")?, burst: view.count("burst")? })
}

fn adaptive(view: &View<'_>) -> Result<AdaptiveSpec, FileError> {
    Ok(AdaptiveSpec {
        algorithm: view.text("algorithm")?,
        initial: view.count("initial")?,
        min: view.count("min")?,
        max: view.count("max")?,
    })
}

fn throttle(view: &View<'_>) -> Result<ThrottleSpec, FileError> {
    Ok(ThrottleSpec { k: view.number("k")?, window: view.time("window")?, trickle: view.number("trickle")? })
}
