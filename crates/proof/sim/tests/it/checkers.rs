//! PV-3, PV-7, and what each checker says about small histories.

use std::time::Duration;

use mainstay_clock::{Rng, SeededRng};
use mainstay_sim::check::zones::{RegisterOp, decide};
use mainstay_sim::check::{
    Automaton, CasRegister, Checker, Coverage, Limits, LockModel, QueueModel, amplification, converges,
    counter, epochs_grow, jitter, judge, kolmogorov_p, ledger, legal, linearizable, mutual_exclusion, rate,
    recovers_within, register, schedule, session_guarantees,
};
use mainstay_sim::history::{Config, Datum, Effect, Ended, Event, Fault, Op, read, write};
use mainstay_sim::verdict::{Level, Verdict};

fn all() -> Vec<(&'static str, Box<dyn Checker>)> {
    vec![
        ("sweep", mutual_exclusion()),
        ("epochs", epochs_grow()),
        ("zones", register(0)),
        ("ledger", ledger()),
        ("counter", counter()),
        ("sessions", session_guarantees()),
        ("convergence", converges(10)),
        ("search", linearizable(CasRegister::default(), Limits::default())),
        ("automaton", legal(Automaton::new("a", &[("a", "b")], &[]))),
        ("liveness", recovers_within("acquire", Duration::from_secs(1))),
        ("rate", rate("acquire", Duration::from_secs(1), 5)),
        ("amplification", amplification("call", "attempt", 2.0)),
        ("schedule", schedule("attempt", vec![1], Duration::ZERO)),
        ("jitter", jitter("delay", 0.0, 1.0, 1e-6)),
    ]
}

#[test]
fn pv_3_an_empty_history_never_passes() {
    for (name, checker) in all() {
        assert!(matches!(judge(&[], checker), Verdict::Unknown(_)), "{name}");
    }
}

#[test]
fn pv_3_a_history_of_unknown_operations_never_passes() {
    let names = ["acquire", "read", "write", "cas", "add", "state", "call", "attempt", "delay"];
    let unknown: Vec<Event> =
        (1..).zip(names).map(|(i, f)| Event::Op(Op::new(i, f, "x", i, None, Ended::Unknown))).collect();
    for (name, checker) in all() {
        // Calls are counted whatever they answer: how often was asked is known.
        if matches!(name, "rate" | "amplification" | "schedule") {
            continue;
        }
        let verdict = judge(&unknown, checker);
        assert!(matches!(verdict, Verdict::Unknown(_)), "{name}: {verdict}");
    }
}

#[test]
fn pv_3_one_operation_counts_only_where_it_felt_the_fault() {
    let op = |via: &str, at| {
        let mut op = Op::new(1, "read", "x", at, Some(at + 5), Ended::Ok);
        op.via = Some(via.into());
        Event::Op(op)
    };
    let fault = Event::Fault { fault: Fault::new("f1", "partition", "n0>store", 10, 20) };
    let felt = |event| Coverage::of(&[event, fault.clone()]).vacuous(["partition"], []);
    assert_eq!(felt(op("n0>store", 12)), None);
    assert!(felt(op("n1>store", 12)).is_some(), "another link");
    assert!(felt(op("n0>store", 30)).is_some(), "another time");
    let none = Coverage::of(&[op("n0>store", 12)]);
    assert!(none.vacuous(["partition"], []).unwrap().contains("never fired"));
    assert!(none.vacuous([], ["leader changed"]).unwrap().contains("never reached"));
}

#[test]
fn pv_7_a_search_that_hits_its_limit_is_unknown_never_a_pass() {
    let mut events = Vec::new();
    for i in 0..12 {
        let mut op = Op::new(i, "write", "x", i + 1, None, Ended::Unknown);
        op.arg = Some(Datum::Int(i64::try_from(i).unwrap()));
        events.push(Event::Op(op));
    }
    let mut last = Op::new(99, "read", "x", 50, Some(60), Ended::Ok);
    last.value = Some(Datum::Int(77));
    events.push(Event::Op(last));
    let with = |states| judge(&events, linearizable(CasRegister::default(), Limits { states }));
    assert!(matches!(with(20), Verdict::Unknown(_)));
    assert!(matches!(with(1_000_000), Verdict::Fail(_)));
}

fn op(proc: u64, f: &str, at: (u64, u64), arg: Option<Datum>, value: Option<Datum>) -> Event {
    let mut op = Op::new(proc, f, "x", at.0, Some(at.1), Ended::Ok);
    op.arg = arg;
    op.value = value;
    Event::Op(op)
}

#[test]
fn queues_and_locks_are_searched() {
    let queue = |second: i64| {
        [
            op(1, "push", (1, 2), Some(1.into()), None),
            op(1, "push", (3, 4), Some(2.into()), None),
            op(2, "pop", (5, 6), None, Some(1.into())),
            op(2, "pop", (7, 8), None, Some(second.into())),
            op(2, "pop", (9, 10), None, None),
        ]
    };
    let says = |second| judge(&queue(second), linearizable(QueueModel::default(), Limits::default())).name();
    assert_eq!((says(2), says(1)), ("PASS", "FAIL"));
    let lock = |second_at: (u64, u64)| {
        [
            op(1, "lock", (1, 2), Some("a".into()), None),
            op(2, "lock", second_at, Some("b".into()), None),
            op(1, "unlock", (5, 6), Some("a".into()), None),
        ]
    };
    let says = |at| judge(&lock(at), linearizable(LockModel::default(), Limits::default())).name();
    assert_eq!((says((3, 8)), says((3, 4))), ("PASS", "FAIL"));
}

#[test]
fn counts_schedules_and_amplification_are_exact() {
    let calls: Vec<Event> = [100, 200, 400].map(|at| op(1, "attempt", (at, at + 1), None, None)).to_vec();
    let check =
        |expected: Vec<u64>| judge(&calls, schedule("attempt", expected, Duration::from_nanos(5))).name();
    assert_eq!((check(vec![100, 203, 400]), check(vec![100, 210, 400])), ("PASS", "FAIL"));
    assert_eq!(check(vec![100, 200]), "FAIL");
    let mut both = calls.clone();
    both.push(op(1, "call", (100, 500), None, None));
    let ratio = |most| judge(&both, amplification("call", "attempt", most)).name();
    assert_eq!((ratio(3.0), ratio(2.9)), ("PASS", "FAIL"));
}

#[test]
fn jitter_that_is_not_even_or_not_in_range_is_found() {
    let rng = SeededRng::new(3);
    let delays = |map: &dyn Fn(f64) -> f64| -> Vec<Event> {
        let value = |u: f64| Some(Datum::Int((map(u) * 1e6) as i64));
        (0..500).map(|i| op(1, "delay", (i + 1, i + 2), None, value(rng.unit()))).collect()
    };
    let says = |map: &dyn Fn(f64) -> f64| judge(&delays(map), jitter("delay", 0.0, 1e6, 1e-6)).name();
    assert_eq!(says(&|u| u), "PASS");
    assert_eq!(says(&|u| u * u), "FAIL", "squeezed to the low end");
    assert_eq!(says(&|u| 0.5 + u / 2.0), "FAIL", "only the upper half");
    assert_eq!(says(&|u| 1.5 * u), "FAIL", "jitter added after the cap");
    // Honest draws are accused at the stated rate only.
    let accused = (0..2_000).filter(|seed| {
        let rng = SeededRng::new(*seed);
        let values: Vec<f64> = (0..100).map(|_| rng.unit()).collect();
        kolmogorov_p(mainstay_sim::check::kolmogorov_statistic(&values, |v| v), 100) < 0.05
    });
    let accused = accused.count();
    assert!((60..=140).contains(&accused), "{accused} of 2,000 at 5 %");
}

#[test]
fn a_failure_beats_everything_and_unknown_beats_a_pass() {
    let fail = || Verdict::fail("no", Vec::new());
    let pass = || judge(&[op(1, "acquire", (1, 2), None, None)], mutual_exclusion());
    let unknown = || Verdict::Unknown("?".to_owned());
    let skipped = || Verdict::Skipped(Level::Disk);
    assert_eq!(unknown().and(fail()).name(), "FAIL");
    assert_eq!(pass().and(unknown()).name(), "UNKNOWN");
    assert_eq!(skipped().and(pass()).name(), "PASS");
    assert_eq!(pass().and(pass()).name(), "PASS");
}

#[test]
fn a_history_is_judged_again_from_its_file_alone() {
    let mut grant = Op::new(1, "acquire", "x", u64::MAX - 9, Some(u64::MAX - 5), Ended::Ok);
    grant.epoch = Some(1 << 60);
    grant.until_ns = Some(u64::MAX - 1);
    let mut other = grant.clone();
    other.epoch = Some((1 << 60) + 1);
    let mut effect = Effect::new("r", "x", "k", -1, 5);
    effect.epoch = Some(3);
    let events = vec![
        Event::Config(Config::new("lock", u64::MAX, "S")),
        Event::Op(grant),
        Event::Op(other),
        Event::Effect(effect),
        Event::Fault { fault: Fault::new("f", "pause", "n1", 1, 2) },
        Event::Heal { at_ns: 3 },
        Event::Sometimes { name: "leader changed".into(), count: 2 },
        Event::Digest { replica: "a".into(), delivered: "d".into(), digest: "e".into(), rounds: 1 },
        Event::Op(Op::new(2, "read", "y", 5, None, Ended::Unknown)),
    ];
    let text = write(&events);
    assert_eq!(text.lines().count(), events.len());
    assert!(
        text.contains(r#""epoch":"1152921504606846976""#) && text.contains(r#""return_ns":null"#),
        "{text}"
    );
    let again = read(&text).unwrap();
    assert_eq!(again, events);
    assert_eq!(judge(&again, mutual_exclusion()), judge(&events, mutual_exclusion()));
    assert_eq!(judge(&again, mutual_exclusion()).name(), "FAIL");
    let broken = read("{\"kind\":\"heal\",\"at_ns\":\"1\"}\n\nnonsense\n").unwrap_err();
    assert_eq!(broken.line, 3);
}

/// The cost that the design promises is linear; the figure itself is a gate of the bench.
#[test]
fn a_million_register_operations_are_decided() {
    let mut ops = Vec::new();
    for i in 0..500_000_u64 {
        let at = i * 10 + 1;
        let value = i64::try_from(i + 1).unwrap();
        ops.push(RegisterOp { is_write: true, value, invoke: at, end: at + 4, outcome: Ended::Ok });
        ops.push(RegisterOp { is_write: false, value, invoke: at + 5, end: at + 12, outcome: Ended::Ok });
    }
    assert!(decide(&ops, 0).is_ok());
    ops[500_001].value = 3;
    assert!(decide(&ops, 0).is_err());
}
