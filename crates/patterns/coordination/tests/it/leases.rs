//! Locks under random schedules of faults, on every kind of lease store: judged by what the holders did and by what the
//! resource accepted.
//!
//! `cargo xtask sim leases --seed N` replays a seed that was printed, `--seeds N` runs more. In `leases` no pause of a
//! process is longer than the margin that the deadline rule keeps, and the work of two holders must never overlap. In
//! `leases-paused` processes stand still for as long as they like; then only what runs counts, and the resource refuses
//! what comes late.

use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_sim::Sim;
use mainstay_sim::check::{counter, epochs_grow, mutual_exclusion};
use mainstay_sim::sim::{FaultKind, Faults, Report, World};

use crate::holder::{Holder, KEY, Resource, Rules};
use crate::stores::{Kind, Stores};

/// A little less than the twentieth of a ttl that work is stopped before the deadline: a timer is late by up to 1 ms.
const SHORT_PAUSE: Duration = Duration::from_millis(45);

/// Reached in every campaign, or it proves nothing.
const REACHED: [&str; 6] =
    ["a dropped acquisition", "a refused write", "a renewal", "a stopped work", "majority", "sqlite"];

fn faults(paused: bool) -> Faults {
    let faults = Faults::all()
        .without(FaultKind::MessageLost)
        .without(FaultKind::MessageDuplicated)
        .windows(3)
        .healing_after(Duration::from_millis(2_500));
    if paused { faults } else { faults.longest_pause(SHORT_PAUSE) }
}

async fn scenario(world: World, rules: Rules, stores: Rc<Stores>) {
    let (kind, lease_stores) = stores.of(&world);
    match kind {
        Kind::Majority => mainstay_sim::sometimes!(world, "majority"),
        Kind::Memory => {}
        Kind::Sqlite => mainstay_sim::sometimes!(world, "sqlite"),
    }
    let resource: Arc<Mutex<Resource>> = Arc::default();
    let shared = Arc::clone(&resource);
    world.start_all(move |node| {
        let store = lease_stores(&node);
        Holder::new(node, store, rules, Arc::clone(&shared)).run()
    });
    world.finished().await;
    (0..world.nodes()).for_each(|i| world.crash(i));
    // What is still on its way arrives before the final look: at most ten seconds there and a second more.
    world.until(world.elapsed() + Duration::from_secs(12)).await;
    let total = resource.lock().unwrap().value;
    world.process().begin("total", KEY).ok_with(total);
    stores.next();
}

fn campaign(name: &str, rules: Rules, seeds: Range<u64>) -> Report {
    let mut builder = Sim::builder(name).seeds(seeds).nodes(3).faults(faults(rules.paused));
    if rules == (Rules { paused: rules.paused, ..Rules::ALL }) {
        builder = REACHED.into_iter().fold(builder, mainstay_sim::sim::SimBuilder::sometimes);
    }
    let stores = Rc::new(Stores::new(rules.silent));
    builder
        .build()
        .unwrap()
        .run(move |world| scenario(world, rules, Rc::clone(&stores)))
        .check(mutual_exclusion)
        .check(epochs_grow)
        .check(counter)
        .judge()
}

/// The campaign behind a recorded seed, if it is one of these.
pub(crate) fn replayed(name: &str, seeds: Range<u64>) -> Option<Report> {
    let rules = match name {
        "leases" => Rules::ALL,
        "leases-paused" => Rules { paused: true, ..Rules::ALL },
        "leases-forgetful" => Rules { silent: false, ..Rules::ALL },
        "leases-unfenced" => Rules { fenced: false, ..Rules::ALL },
        "leases-unstopped" => Rules { stops: false, ..Rules::ALL },
        _ => return None,
    };
    Some(campaign(name, rules, seeds))
}

/// How many seeds of a batch; a search asks for more by its own switches.
const BATCH: u64 = 1_000;

#[test]
fn f25_m_l2_work_stops_before_the_next_holder_starts_and_writes_never_interleave() {
    campaign("leases", Rules::ALL, 0..BATCH).assert_pass();
}

#[test]
fn f25_m_l1_a_holder_that_stood_still_for_long_does_nothing_more_and_its_late_writes_are_refused() {
    campaign("leases-paused", Rules { paused: true, ..Rules::ALL }, 0..BATCH).assert_pass();
}

/// Seeds within which each missing rule must be found.
const WITHIN: u64 = 3_000;

#[test]
fn f25_without_the_fence_late_writes_of_an_old_holder_are_accepted() {
    for paused in [false, true] {
        let report = campaign("leases-unfenced", Rules { fenced: false, paused, ..Rules::ALL }, 0..WITHIN);
        let seed = report.assert_fail();
        let text = report.failures[0].verdict.to_string();
        println!("found with seed {seed}");
        assert!(text.contains("a stale holder acted"), "seed {seed}: {text}");
    }
}

#[test]
fn f25_without_the_deadline_work_goes_on_beside_the_next_holder() {
    for paused in [false, true] {
        let rules = Rules { stops: false, paused, ..Rules::ALL };
        let report = campaign("leases-unstopped", rules, 0..WITHIN);
        let seed = report.assert_fail();
        let text = report.failures[0].verdict.to_string();
        println!("found with seed {seed}");
        assert!(text.contains("is held 2 of 1"), "seed {seed}: {text}");
    }
}

#[test]
fn f25_a_server_that_forgot_and_answers_at_once_gives_a_majority_twice() {
    let rules = Rules { silent: false, ..Rules::ALL };
    let report = campaign("leases-forgetful", rules, 0..WITHIN);
    let seed = report.assert_fail();
    println!("found with seed {seed}: {}", report.failures[0].verdict);
}

#[test]
fn one_seed_is_one_execution_whatever_ran_before() {
    let traced = |seeds: Range<u64>| {
        let stores = Rc::new(Stores::new(true));
        let sim = Sim::builder("leases-traced").seeds(seeds).nodes(3).faults(faults(true)).build().unwrap();
        let sim = sim.run(move |world| scenario(world, Rules::ALL, Rc::clone(&stores)));
        sim.check(counter).traced().judge().trace
    };
    assert_eq!(traced(0..40), traced(0..40));
    assert_ne!(traced(0..40), traced(1..41));
}
