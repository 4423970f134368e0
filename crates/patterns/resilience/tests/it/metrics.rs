//! The adapter to the `metrics` facade.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use mainstay_resilience::metrics::{MetricsListener, Naming};
use mainstay_resilience::{Breaker, Bulkhead, CallContext, Policy, Retry};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use crate::world::{Oops, ms, secs, world};

type Values = Arc<Mutex<BTreeMap<String, f64>>>;

/// Keeps every value under its name and labels.
#[derive(Debug, Default)]
struct Memory(Values);

#[derive(Debug)]
struct Cell(String, Values);

impl metrics::CounterFn for Cell {
    fn increment(&self, n: u64) {
        *self.1.lock().unwrap().entry(self.0.clone()).or_default() += n as f64;
    }
    fn absolute(&self, n: u64) {
        self.1.lock().unwrap().insert(self.0.clone(), n as f64);
    }
}

impl metrics::GaugeFn for Cell {
    fn increment(&self, x: f64) {
        *self.1.lock().unwrap().entry(self.0.clone()).or_default() += x;
    }
    fn decrement(&self, x: f64) {
        *self.1.lock().unwrap().entry(self.0.clone()).or_default() -= x;
    }
    fn set(&self, x: f64) {
        self.1.lock().unwrap().insert(self.0.clone(), x);
    }
}

impl metrics::HistogramFn for Cell {
    fn record(&self, _: f64) {
        *self.1.lock().unwrap().entry(self.0.clone()).or_default() += 1.0;
    }
}

impl Memory {
    fn cell(&self, key: &Key) -> Arc<Cell> {
        let labels: Vec<_> = key.labels().map(|l| format!("{}={}", l.key(), l.value())).collect();
        Arc::new(Cell(format!("{}{{{}}}", key.name(), labels.join(",")), Arc::clone(&self.0)))
    }
}

impl Recorder for Memory {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.cell(key))
    }
}

fn recorded(naming: Naming) -> BTreeMap<String, f64> {
    let memory = Memory::default();
    let values = Arc::clone(&memory.0);
    metrics::with_local_recorder(&memory, || {
        world(|w| async move {
            let m = MetricsListener::with_naming(naming);
            let b =
                Breaker::builder("b").runtime(&w.runtime).consecutive(2).listener(m.clone()).build().unwrap();
            let k = Bulkhead::builder("k", 3).runtime(&w.runtime).listener(m.clone()).build().unwrap();
            let p = Policy::builder("p")
                .runtime(&w.runtime)
                .idempotent()
                .breaker(&b)
                .bulkhead(&k)
                .retry(Retry::constant(ms(1)).attempts(2).build().unwrap())
                .listener(m.clone())
                .build()
                .unwrap();
            let cx = CallContext::new();
            p.call(&cx, |_| async { Ok::<_, Oops>(()) }).await.unwrap();
            assert!(p.call(&cx, |_| async { Err::<(), _>(Oops::Broken) }).await.is_err());
            assert!(p.call(&cx, |_| async { Ok::<_, Oops>(()) }).await.is_err());
            m.breaker(&b.snapshot());
            m.bulkhead(&k.snapshot());
            w.advance(secs(1)).await;
        });
    });
    std::mem::take(&mut *values.lock().unwrap())
}

#[test]
fn our_names_count_calls_states_and_refusals() {
    let v = recorded(Naming::Mainstay);
    assert_eq!(v["mainstay_breaker_calls_total{name=b,outcome=success}"], 1.0);
    assert_eq!(v["mainstay_breaker_calls_total{name=b,outcome=failure}"], 2.0);
    assert_eq!(v["mainstay_breaker_call_duration_seconds{name=b}"], 3.0); // attempts ...
    assert_eq!(v["mainstay_call_duration_seconds{name=p}"], 3.0); // ... and calls are told apart
    assert_eq!(v["mainstay_calls_total{name=p,outcome=success}"], 1.0);
    assert_eq!(v["mainstay_calls_total{name=p,outcome=failure}"], 1.0);
    assert_eq!(v["mainstay_retry_attempts_total{name=p}"], 1.0);
    assert_eq!(v["mainstay_rejected_total{name=b,reason=open}"], 1.0);
    let on: Vec<_> =
        v.iter().filter(|(k, x)| k.starts_with("mainstay_breaker_state") && **x == 1.0).collect();
    assert_eq!(on.len(), 1, "{on:?}");
    assert_eq!(v["mainstay_breaker_state{name=b,state=open}"], 1.0);
    assert_eq!(v["mainstay_bulkhead_limit{name=k}"], 3.0);
}

#[test]
fn the_names_of_resilience4j_are_an_option() {
    let v = recorded(Naming::Resilience4j);
    assert_eq!(v["resilience4j_circuitbreaker_state{name=b,state=open}"], 1.0);
    assert_eq!(v["resilience4j_circuitbreaker_state{name=b,state=closed}"], 0.0);
    assert_eq!(v["resilience4j_circuitbreaker_not_permitted_calls_total{name=b,kind=not_permitted}"], 1.0);
    // Boards ask the timer's count by kind, and how calls ended with and without a retry.
    assert_eq!(v["resilience4j_circuitbreaker_calls_seconds{name=b,kind=successful}"], 1.0);
    assert_eq!(v["resilience4j_circuitbreaker_calls_seconds{name=b,kind=failed}"], 2.0);
    assert_eq!(v["resilience4j_retry_calls_total{name=p,kind=successful_without_retry}"], 1.0);
    assert_eq!(v["resilience4j_retry_calls_total{name=p,kind=failed_with_retry}"], 1.0);
    assert_eq!(v["resilience4j_bulkhead_max_allowed_concurrent_calls{name=k}"], 3.0);
}

/// What `f` leaves in the recorder.
fn recording(f: impl FnOnce(&Values)) {
    let memory = Memory::default();
    let values = Arc::clone(&memory.0);
    metrics::with_local_recorder(&memory, || f(&values));
}

#[test]
fn a_refusal_is_counted_once_when_part_and_policy_share_a_name() {
    let calls = |breaker_heard: bool, policy_heard: bool| {
        let mut counted = 0.0;
        recording(|values| {
            let m = MetricsListener::new();
            let other = Arc::new(crate::world::Heard::default());
            let mut breaker = Breaker::builder("shop").listener(other);
            if breaker_heard {
                breaker = breaker.listener(m.clone());
            }
            let breaker = breaker.build().unwrap();
            let mut p = Policy::builder("shop").breaker(&breaker);
            if policy_heard {
                p = p.listener(m.clone());
            }
            let p = p.build().unwrap();
            breaker.force_open("stocktaking", None);
            for _ in 0..3 {
                let cx = CallContext::new();
                let refused = p.call(&cx, |_| async { Ok::<_, Oops>(()) });
                assert!(crate::world::now(refused).is_err());
            }
            let values = values.lock().unwrap();
            counted = values["mainstay_rejected_total{name=shop,reason=forced_open}"];
        });
        counted
    };
    assert_eq!(calls(true, true), 3.0);
    // Whoever alone has told it is counted, also when the breaker has told somebody else.
    assert_eq!((calls(true, false), calls(false, true)), (3.0, 3.0));
}

#[test]
fn the_state_of_a_registry_is_how_many_keys_are_in_it() {
    recording(|values| {
        let m = MetricsListener::new();
        let hosts = Breaker::builder("up").consecutive(1).listener(m.clone()).keyed(3, secs(60)).unwrap();
        let states = || {
            let values = values.lock().unwrap();
            ["closed", "open", "forced_open"]
                .map(|s| values[&format!("mainstay_breaker_state{{name=up,state={s}}}")])
        };
        for host in ["a", "b", "c"] {
            hosts.get(host).admit().unwrap().success();
        }
        assert_eq!(states(), [3.0, 0.0, 0.0]);
        hosts.get("a").admit().unwrap().failure();
        hosts.get("b").force_open("migration", None);
        assert_eq!(states(), [1.0, 1.0, 1.0]);
        // A scrape of one key says nothing about all of them.
        m.breaker(&hosts.get("c").snapshot());
        assert_eq!(states(), [1.0, 1.0, 1.0]);
        hosts.get("b").release();
        assert_eq!(states(), [2.0, 1.0, 0.0]);
        // The bound forgets a key, and its state with it.
        let _ = hosts.get("d");
        assert_eq!(states(), [2.0, 1.0, 0.0]);
        drop(hosts);
        assert_eq!(states(), [0.0; 3]);
    });
}

#[test]
fn labels_are_bounded() {
    let memory = Memory::default();
    let values = Arc::clone(&memory.0);
    metrics::with_local_recorder(&memory, || {
        let m = MetricsListener::new();
        for i in 0..300 {
            let b = Breaker::builder(format!("b{i}")).consecutive(1).listener(m.clone()).build().unwrap();
            b.admit().unwrap().success();
        }
    });
    let v = values.lock().unwrap();
    let names = v.keys().filter(|k| k.starts_with("mainstay_breaker_calls_total")).count();
    assert_eq!((names, v["mainstay_metric_names_overflow_total{}"]), (201, 100.0));
    assert_eq!(v["mainstay_breaker_calls_total{name=other,outcome=success}"], 100.0);
}
