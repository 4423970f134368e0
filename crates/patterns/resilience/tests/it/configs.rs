//! Policies as TOML, and the linter.

use std::collections::BTreeMap;
use std::sync::Arc;

use mainstay_clock::Runtime;
use mainstay_resilience::breaker::{HalfOpen, State};
use mainstay_resilience::budget::Cost;
use mainstay_resilience::config::{FileError, Policies};
use mainstay_resilience::lint::{Layer, Rule, stack};
use mainstay_resilience::{Budget, CallContext, Policy};

use crate::world::{Heard, Oops, now};

/// A file without any finding; each case spoils one thing.
const GOOD: &str = r#"
[budgets.shared]
ratio = 0.2
floor = 10
credit = "1s"

[defaults]
deadline = "2s"
attempt_timeout = "300ms"
idempotent = "always"
budget = "shared"
[defaults.retry]
attempts = 3
base = "50ms"
cap = "1s"
jitter = "equal"
on = ["failure", "timeout"]
[defaults.breaker]
window = "10s"
min_calls = 20
failure_rate = 0.4

[targets.payments]
within = "shop"
[targets.payments.breaker]
open_for = "5s"
[targets.shop.bulkhead]
limit = 64
queue = 128
wait = "1s"
[targets.shop.attempt_bulkhead]
limit = 16
[targets.shop.send_rate]
longest_wait = "500ms"
[targets.shop.hedge]
percentile = 0.95
after = "80ms"
[targets.reports]
deadline = "30s"
retry = false
breaker = { count = 50 }
rate = { cells = 10, per = "1s", burst = 5 }
adaptive = { algorithm = "vegas", max = 50 }
throttle = { k = 1.5 }
"#;

fn lint(text: &str) -> Vec<Rule> {
    Policies::from_toml(text).unwrap().lint().iter().map(mainstay_resilience::lint::Finding::rule).collect()
}

#[test]
fn a_good_file_builds_what_it_says() {
    let policies = Policies::from_toml(GOOD).unwrap();
    assert_eq!(policies.targets().collect::<Vec<_>>(), ["payments", "reports", "shop"]);
    assert_eq!(policies.lint(), []);
    let built = policies.build(&Runtime::system()).unwrap();
    let (payments, shop, reports) =
        (built["payments"].snapshot(), built["shop"].snapshot(), built["reports"].snapshot());
    let breaker = payments.breaker.unwrap();
    assert_eq!(breaker.config.failure_rate(), 0.4, "inherited beside an own key of the same table");
    assert_eq!(breaker.config.min_calls(), 20);
    assert_eq!((payments.max_attempts, reports.max_attempts), (3, 1));
    assert_eq!(shop.bulkhead.unwrap().limit, 64);
    let attempts = shop.attempt_bulkhead.unwrap();
    assert_eq!((&*attempts.name, attempts.limit), ("shop attempts", 16));
    assert!(shop.send_rate.is_some() && payments.send_rate.is_none());
    assert!(shop.hedged && !payments.hedged);
    assert_eq!(reports.limits.len(), 3);
    assert_eq!(reports.deadline, Some(std::time::Duration::from_secs(30)));
}

#[test]
fn a_ramp_of_half_open_is_its_own_rule() {
    let build = |breaker: &str| {
        let text = format!("[targets.a]\nattempt_timeout = \"1s\"\nbreaker = {{ {breaker} }}\n");
        Policies::from_toml(&text).unwrap().build(&Runtime::system())
    };
    let built = build("permits = 5, ramp = \"2s\"").unwrap();
    let config = built["a"].snapshot().breaker.unwrap().config;
    let mut expected = config.clone();
    expected.set_half_open(HalfOpen::progressive(5, std::time::Duration::from_secs(2)));
    assert_eq!(config, expected);
    let Err(FileError::Config { error, .. }) = build("required = 2, ramp = \"2s\"") else { panic!() };
    assert_eq!((error.field(), error.value()), ("required", "2"));
}

#[test]
fn a_share_of_samples_of_half_open_is_its_own_rule() {
    let build = |breaker: &str| {
        let text = format!("[targets.a]\nattempt_timeout = \"1s\"\nbreaker = {{ {breaker} }}\n");
        Policies::from_toml(&text).unwrap().build(&Runtime::system())
    };
    for (rate, expected) in [("", 0.5), (", sample_rate = 0.25", 0.25)] {
        let config = build(&format!("permits = 5, samples = 8{rate}")).unwrap()["a"].snapshot();
        let config = config.breaker.unwrap().config;
        let mut same = config.clone();
        same.set_half_open(HalfOpen::ratio(5, 8, expected));
        assert_eq!(config, same, "{rate}");
    }
    for (keys, field) in [
        ("samples = 8, required = 2", "required"),
        ("samples = 8, ramp = \"2s\"", "samples"),
        ("sample_rate = 0.3", "sample_rate"),
        ("sample_rate = 0.3, ramp = \"2s\"", "sample_rate"),
        ("samples = 0", "half_open.samples"),
        ("samples = 8, sample_rate = 1.5", "half_open.rate"),
    ] {
        let Err(FileError::Config { error, .. }) = build(keys) else { panic!("{keys}") };
        assert_eq!(error.field(), field, "{keys}");
    }
}

#[test]
fn a_budget_of_a_file_has_every_rule_and_one_at_a_time() {
    let build = |budget: &str| {
        let text = format!("[budgets.b]\n{budget}\n[targets.a]\nbudget = \"b\"\n");
        Policies::from_toml(&text).unwrap().build(&Runtime::system())
    };
    let available = |budget: &str| build(budget).unwrap()["a"].snapshot().budget.unwrap().available;
    assert_eq!(available("in_flight = { share = 0.2, at_least = 4 }"), 4.0, "nothing is in flight");
    // Above half of its tokens a retry costs nothing: what is left is told from there.
    let grpc = Budget::builder("b").grpc(20, 0.1).build().unwrap();
    assert_eq!(available("grpc = { max = 20, ratio = 0.1 }"), grpc.snapshot().available);
    for (keys, field) in [
        ("in_flight = { share = 0.2 }", "at_least"),
        ("in_flight = { at_least = 2 }", "share"),
        ("in_flight = { share = 1.2, at_least = 2 }", "share"),
        ("grpc = { ratio = 0.1 }", "max"),
        ("grpc = { max = 10 }", "ratio"),
        ("grpc = { max = 0, ratio = 0 }", "max"),
        ("grpc = { max = 10, ratio = 0.1 }\nfloor = 3", "grpc"),
        ("grpc = { max = 10, ratio = 0.1 }\nin_flight = { share = 0.2, at_least = 3 }", "in_flight"),
        ("in_flight = { share = 0.2, at_least = 3 }\npreset = \"aws\"", "preset"),
    ] {
        let Err(FileError::Config { error, .. }) = build(keys) else { panic!("{keys}") };
        assert_eq!(error.field(), field, "{keys}");
    }
    let Err(FileError::UnknownKey { path, suggestion }) =
        Policies::from_toml("[budgets.b]\nin_flight = { shares = 0.2 }\n")
    else {
        panic!()
    };
    assert_eq!((path.as_str(), suggestion), ("budgets.b.in_flight.shares", Some("share")));
}

#[test]
fn rt12_the_aws_preset_is_three_words_of_a_file() {
    let build = |text: &str| Policies::from_toml(text).unwrap().build(&Runtime::system());
    let built = build(
        "[budgets.table]\npreset = \"aws\"\n[targets.table]\nidempotent = \"always\"\nbudget = \"table\"\n\
         retry = { preset = \"aws\" }\nsend_rate = {}\n",
    )
    .unwrap();
    let table = built["table"].snapshot();
    assert_eq!(
        (table.max_attempts, table.budget.unwrap().available, table.send_rate.unwrap().rate),
        (3, 35.0, None)
    );
    for (text, value) in [
        ("[budgets.b]\npreset = \"azure\"\n", "azure"),
        ("[budgets.b]\npreset = \"finagle\"\nratio = 0.5\n", "finagle"),
        ("[targets.a]\nidempotent = \"always\"\nretry = { preset = \"gcp\" }\n", "gcp"),
        ("[targets.a]\nidempotent = \"always\"\nretry = { preset = \"aws\", base = \"1s\" }\n", "aws"),
    ] {
        let Err(FileError::Config { error, .. }) = build(text) else { panic!("{text}") };
        assert_eq!((error.field(), error.value()), ("preset", value));
    }
}

/// What a running service has built from a file.
struct Running {
    file: Policies,
    built: BTreeMap<Arc<str>, Policy>,
}

impl Running {
    fn of(text: &str) -> Self {
        let file = Policies::from_toml(text).unwrap();
        let built = file.build(&Runtime::system()).unwrap();
        Self { file, built }
    }

    fn again(&self, text: &str) -> Result<Self, FileError> {
        let file = Policies::from_toml(text)?;
        let built = file.rebuild(&self.file, &self.built, &Runtime::system(), None)?;
        Ok(Self { file, built })
    }
}

const FIRST: &str = r#"
[budgets.shared]
preset = "aws"

[defaults]
attempt_timeout = "300ms"
idempotent = "always"
budget = "shared"
[defaults.retry]
attempts = 2

[targets.shop]
breaker = { consecutive = 1, open_for = "1h", open_cap = "1h" }
bulkhead = { limit = 4, queue = 8, wait = "1s" }
attempt_bulkhead = { limit = 4 }
send_rate = {}
hedge = { after = "80ms" }
[targets.stock]
breaker = { consecutive = 1, open_for = "1h", open_cap = "1h" }
budget = "own"
rate = { cells = 2, per = "1h", burst = 2 }
[targets.gone]
"#;

#[test]
fn a_file_that_changed_keeps_what_its_parts_know() {
    let first = Running::of(FIRST);
    let (shop, stock) = (&first.built["shop"], &first.built["stock"]);
    shop.breaker().unwrap().admit().unwrap().failure();
    stock.breaker().unwrap().admit().unwrap().failure();
    let held = shop.bulkhead().unwrap().try_acquire().unwrap();
    let inside = shop.attempt_bulkhead().unwrap().try_acquire().unwrap();
    shop.budget().unwrap().spend(Cost::Retry).unwrap();
    while stock.budget().unwrap().spend(Cost::Retry).is_ok() {}
    let text = FIRST
        .replace("attempts = 2", "attempts = 3")
        .replacen("open_for = \"1h\"", "open_for = \"30m\"", 1)
        .replace("limit = 4, queue = 8", "limit = 2, queue = 4")
        .replace("[targets.gone]", "[targets.new]");
    let second = first.again(&text).unwrap();
    assert_eq!(second.built.keys().map(|name| &**name).collect::<Vec<_>>(), ["new", "shop", "stock"]);
    let shop = &second.built["shop"];
    let snapshot = shop.snapshot();
    let (breaker, bulkhead) = (snapshot.breaker.unwrap(), snapshot.bulkhead.unwrap());
    assert_eq!((breaker.state, breaker.config.open_for().as_secs()), (State::Open, 1_800));
    assert_eq!((bulkhead.limit, bulkhead.max_queue, bulkhead.in_flight), (2, 4, 1));
    assert_eq!(snapshot.attempt_bulkhead.unwrap().in_flight, 1);
    assert_eq!((snapshot.max_attempts, shop.budget().unwrap().tokens()), (3, Some(486.0)));
    let stock = &second.built["stock"];
    assert_eq!((stock.snapshot().max_attempts, stock.breaker().unwrap().state()), (3, State::Open));
    assert_eq!(stock.budget().unwrap().snapshot().refused, 1, "its own budget goes on too");
    drop((held, inside));
    assert_eq!(shop.bulkhead().unwrap().snapshot().in_flight, 0, "one bulkhead, old handles and new");
    // Nothing changed: the policy itself, with its counts.
    let third = second.again(&text).unwrap();
    third.built["shop"].breaker().unwrap().force_open("stocktaking", None);
    assert_eq!(second.built["shop"].breaker().unwrap().state(), State::ForcedOpen);
}

#[test]
fn what_a_part_cannot_take_begins_anew() {
    let first = Running::of(FIRST);
    let shop = &first.built["shop"];
    shop.breaker().unwrap().admit().unwrap().failure();
    let _held = shop.bulkhead().unwrap().try_acquire().unwrap();
    shop.budget().unwrap().spend(Cost::Retry).unwrap();
    let text = FIRST
        .replacen("consecutive = 1", "count = 50", 1)
        .replace("wait = \"1s\"", "wait = \"2s\"")
        .replace("preset = \"aws\"", "preset = \"aws_legacy\"");
    let second = first.again(&text).unwrap();
    let shop = second.built["shop"].snapshot();
    assert_eq!((shop.breaker.unwrap().state, shop.bulkhead.unwrap().in_flight), (State::Closed, 0));
    assert_eq!(second.built["shop"].budget().unwrap().tokens(), Some(500.0));
    // One named budget for all who name it, also for who did not change.
    let new = |target: &str| second.built[target].budget().unwrap().tokens();
    second.built["shop"].budget().unwrap().spend(Cost::Retry).unwrap();
    assert_eq!((new("shop"), new("gone")), (Some(495.0), Some(495.0)));
}

#[test]
fn a_file_that_is_refused_changes_nothing_that_runs() {
    let first = Running::of(FIRST);
    let breaker = first.built["shop"].breaker().unwrap();
    let config = breaker.config();
    // The first target would be taken, the second is refused.
    let text = FIRST.replacen("open_for = \"1h\"", "open_for = \"30m\"", 1).replace("cells = 2", "cells = 0");
    let Err(FileError::Config { target, .. }) = first.again(&text).map(drop) else { panic!("refused") };
    assert_eq!((&*target, breaker.config() == config), ("stock", true));
    let text = FIRST.replace("idempotent = \"always\"", "");
    assert!(matches!(first.again(&text), Err(FileError::Lint(_))));
    assert!(breaker.config() == config);
}

#[test]
fn a_listener_hears_every_part_of_a_file() {
    let heard = Arc::new(Heard::default());
    let file = Policies::from_toml(FIRST).unwrap();
    let built = file.build_with(&Runtime::system(), heard.clone()).unwrap();
    let (shop, stock) = (&built["shop"], &built["stock"]);
    shop.breaker().unwrap().force_open("stocktaking", None);
    assert_eq!(heard.take(), ["2 closed->forced_open"]);
    let _all: Vec<_> = (0..4).map(|_| shop.attempt_bulkhead().unwrap().try_acquire().unwrap()).collect();
    assert!(shop.attempt_bulkhead().unwrap().try_acquire().is_err());
    assert_eq!(heard.take(), ["rejected full"]);
    let cx = CallContext::new();
    for _ in 0..3 {
        let _ = now(stock.call(&cx, |_| async { Ok::<_, Oops>(()) }));
    }
    let told = heard.take();
    // The attempt and the call of two; the third is refused by its rate, and by the policy around it.
    assert_eq!(told.iter().filter(|told| *told == "call Success 1").count(), 4, "{told:?}");
    assert_eq!(told.iter().filter(|told| *told == "rejected rate").count(), 2, "{told:?}");
}

#[test]
fn unknown_keys_are_refused_with_a_suggestion() {
    let refused = |text: &str| match Policies::from_toml(text).unwrap_err() {
        FileError::UnknownKey { path, suggestion } => (path, suggestion),
        other => panic!("{other}"),
    };
    for (text, path, suggestion) in [
        ("[default.breaker]\n", "default", Some("defaults")),
        ("[defaults]\ndead_line = \"1s\"\n", "defaults.dead_line", Some("deadline")),
        ("[defaults.breaker]\nopen_four = \"1s\"\n", "defaults.breaker.open_four", Some("open_for")),
        ("[targets.a.retry]\nattemps = 2\n", "targets.a.retry.attemps", Some("attempts")),
        ("[targets.a.hedge]\nxyz = 2\n", "targets.a.hedge.xyz", None),
        ("[budgets.a]\nratios = 2\n", "budgets.a.ratios", Some("ratio")),
    ] {
        assert_eq!(refused(text), (path.to_owned(), suggestion), "{text}");
    }
    let error = Policies::from_toml("[targets.a.retry]\nattemps = 2\n").unwrap_err();
    assert_eq!(error.to_string(), "unknown key `targets.a.retry.attemps`; did you mean `attempts`?");
}

#[test]
fn wrong_values_name_path_value_and_range() {
    for (text, path) in [
        ("[defaults]\ndeadline = 5\n", "targets.a.deadline"),
        ("[defaults]\ndeadline = \"5 parsecs\"\n", "targets.a.deadline"),
        ("[defaults.retry]\nattempts = -1\n", "targets.a.retry.attempts"),
        ("[defaults]\nretry = true\n", "targets.a.retry"),
        ("[defaults]\nbudget = \"nobody\"\n", "targets.a.budget"),
        ("[defaults]\nidempotent = \"maybe\"\n", "targets.a.idempotent"),
        ("[defaults]\norder = [\"retry\", \"sauce\"]\n", "targets.a.order"),
        ("[defaults.breaker]\nfailure_rate = \"half\"\n", "targets.a.breaker.failure_rate"),
        ("targets = 3\n[defaults]\n", "targets"),
    ] {
        let text = if text.contains("targets") { text.to_owned() } else { format!("{text}[targets.a]\n") };
        match Policies::from_toml(&text).unwrap_err() {
            FileError::Value { path: p, allowed, .. } => assert!(p == path && !allowed.is_empty(), "{p}"),
            other => panic!("{text}: {other}"),
        }
    }
    assert!(matches!(Policies::from_toml("deadline = ").unwrap_err(), FileError::Syntax(_)));
}

#[test]
fn settings_that_a_pattern_refuses_name_their_target() {
    for (text, field) in [
        ("[targets.a.bulkhead]\nlimit = 0\n", "limit"),
        ("[targets.a.bulkhead]\nqueue = 5\n", "limit"),
        ("[targets.a.rate]\nper = \"1s\"\n", "rate"),
        ("[targets.a.adaptive]\nalgorithm = \"magic\"\n", "algorithm"),
        ("[targets.a.throttle]\nk = 0.5\n", "k"),
        ("[targets.a]\ndeadline = \"0s\"\n", "deadline"),
        (
            "[targets.a]\nattempt_timeout = \"1s\"\n[targets.a.breaker]\nwindow = \"1s\"\ncount = 50\n",
            "window",
        ),
        ("[budgets.a]\nratio = 7\n", "ratio"),
    ] {
        match Policies::from_toml(text).unwrap().build(&Runtime::system()).unwrap_err() {
            FileError::Config { target, error } => {
                assert_eq!((&*target, error.field()), ("a", field), "{text}")
            }
            other => panic!("{text}: {other}"),
        }
    }
}

/// `GOOD` with one line replaced.
#[track_caller]
fn spoiled(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

#[test]
fn pl2_every_miscomposition_is_rejected_with_its_number() {
    let order = |order: &str| spoiled("[defaults]\n", &format!("[defaults]\norder = [{order}]\n"));
    let cases = [
        (order(r#""breaker", "retry", "attempt_timeout""#), Rule::M1),
        (order(r#""retry", "deadline""#), Rule::M2),
        (order(r#""attempt_timeout", "breaker""#), Rule::M3),
        (spoiled("attempt_timeout = \"300ms\"\n", ""), Rule::M3),
        (spoiled("attempt_timeout = \"300ms\"", "attempt_timeout = \"2s\""), Rule::M4),
        (spoiled("on = [\"failure\"", "on = [\"open\""), Rule::M5),
        (spoiled("[targets.payments]\n", "[targets.payments]\nbudget = \"own\"\n"), Rule::M6),
        (spoiled("budget = \"shared\"\n", "budget = \"none\"\n"), Rule::M6),
        (spoiled("idempotent = \"always\"\n", ""), Rule::M7),
        (spoiled("min_calls = 20\n", "min_calls = 20\nprobe_lease = \"100ms\"\n"), Rule::M8),
        (spoiled("[defaults]\n", "[defaults]\nexpected_rate = 1\n"), Rule::M9),
        (spoiled("breaker = { count = 50 }", "breaker = { count = 10 }"), Rule::M9),
        (spoiled("base = \"50ms\"", "base = \"1500ms\""), Rule::M9),
        (spoiled("cap = \"1s\"", "cap = \"60s\"").replacen("base = \"50ms\"", "base = \"3s\"", 1), Rule::M9),
        (order(r#""retry", "fallback""#), Rule::M10),
        (order(r#""breaker", "attempt_timeout", "fallback""#), Rule::M10),
    ];
    for (text, rule) in &cases {
        let found = lint(text);
        assert!(!found.is_empty() && found.iter().all(|r| r == rule), "{rule}: {found:?}\n{text}");
        let error = Policies::from_toml(text).unwrap().build(&Runtime::system()).unwrap_err();
        assert!(error.to_string().contains(&format!("\n  {rule} ")), "{error}");
    }
    let tried: std::collections::BTreeSet<_> = cases.iter().map(|(_, rule)| *rule).collect();
    assert_eq!(tried.len(), Rule::ALL.len(), "every rule has a case");
}

#[test]
fn pl2_nested_retries_are_seen_through_layers_without_one() {
    // a > b > c: b has no retry, so a and c multiply.
    let text = "
        [defaults]
        idempotent = \"always\"
        [targets.a.retry]
        [targets.b]
        within = \"a\"
        [targets.c]
        within = \"b\"
        retry = {}
    ";
    let found = Policies::from_toml(text).unwrap().lint();
    assert_eq!(found.iter().map(|f| (f.target(), f.rule())).collect::<Vec<_>>(), [("c", Rule::M6)]);
    assert!(found[0].to_string().contains("`a`"), "{}", found[0]);
    // In a circle, and around itself by the defaults: looked at once.
    let text = "
        [defaults]
        within = \"a\"
        idempotent = \"always\"
        [targets.a]
        within = \"b\"
        [targets.b]
    ";
    assert_eq!(lint(text), []);
}

#[test]
fn a_target_within_nobody_is_refused_with_a_suggestion() {
    let text = "[targets.shop]\n[targets.payments]\nwithin = \"shopp\"\n";
    let error = Policies::from_toml(text).unwrap_err();
    let said = "`targets.payments.within` = \"shopp\" is refused; allowed: a name of [targets]; did you mean `shop`?";
    assert_eq!(error.to_string(), said);
    let error = Policies::from_toml("[targets.a]\nwithin = \"zzz\"\n").unwrap_err();
    assert!(error.to_string().ends_with("allowed: a name of [targets]"), "{error}");
}

#[test]
fn pl2_stacks_of_other_libraries_are_looked_at_too() {
    assert_eq!(stack(&Layer::ORDER), []);
    let found: Vec<Rule> = stack(&[Layer::Breaker, Layer::Retry, Layer::Deadline, Layer::Fallback])
        .iter()
        .map(|f| f.rule())
        .collect();
    assert_eq!(found, [Rule::M1, Rule::M2, Rule::M3, Rule::M10, Rule::M10]);
}

#[test]
fn the_order_of_a_policy_passes_its_own_linter() {
    // What the crate's documentation draws is what the linter calls right.
    assert_eq!(
        Layer::ORDER.map(Layer::name).join(" > "),
        "fallback > deadline > limit > bulkhead > retry > hedge > send_rate > attempt_bulkhead > breaker \
         > attempt_timeout"
    );
}
