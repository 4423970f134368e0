//! Bounded loads: F12, U6, B14 and the corners of the formula.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use mainstay_partition::{Bounded, ErrorKind, Lease, Load, Node, NodeIdx, Place, Ring, WhenFull};

use crate::fleet::{key, maglev, mixed, nodes, rendezvous, ring, slots};

fn bounded(n: usize, load: Load) -> Bounded<Ring> {
    Bounded::new(ring(nodes(n)), load).unwrap()
}

fn loads(b: &Bounded<Ring>) -> Vec<u64> {
    b.nodes().iter().map(|(i, _)| b.in_flight(i)).collect()
}

#[test]
fn u6_an_idle_fleet_does_not_spill() {
    let b = bounded(50, Load::default());
    // The even share of three calls is next to nothing; the gap of two lets a node carry three.
    let held: Vec<_> = (0..3).map(|_| b.acquire(b"k").unwrap()).collect();
    assert!(held.iter().all(|l| l.spilled() == 0 && l.node() == held[0].node()));
    let fourth = b.acquire(b"k").unwrap();
    assert_eq!((fourth.spilled(), fourth.load_before()), (1, 0));
    assert_eq!(fourth.node(), b.place().owners(b"k").nth(1).unwrap());
}

#[test]
fn u6_a_lease_counts_for_its_whole_life() {
    let b = bounded(3, Load::default());
    let stream: Lease = b.acquire(b"k").unwrap();
    let node = stream.node();
    for _ in 0..10 {
        drop(b.acquire(b"k").unwrap());
        assert_eq!(b.in_flight(node), 1);
    }
    drop(stream);
    assert_eq!(b.total_in_flight(), 0);
}

#[test]
fn b14_f12_the_bound_counts_nodes_and_weights() {
    // One hot key fills every node up to its bound, in proportion to its weight, and never past it.
    let weights = [1, 2, 3, 4];
    let list = (0..4).map(|i| Node::new(format!("n{i}")).weight(weights[i]));
    let b = Bounded::new(Ring::builder().nodes(list).build().unwrap(), Load::default()).unwrap();
    let leases: Vec<_> = (0..1_000).map(|_| b.acquire(b"hot").unwrap()).collect();
    assert_eq!(b.total_in_flight(), 1_000);
    for (i, weight) in weights.iter().enumerate() {
        let cap = (1.25 * 1_000.0 * f64::from(*weight) / 10.0).ceil() as u64;
        assert!(b.in_flight(NodeIdx::new(i as u32)) <= cap);
    }
    drop(leases);
    assert_eq!(loads(&b), [0, 0, 0, 0]);
}

#[test]
fn b14_f12_the_bound_is_a_share_of_what_is_up() {
    // Whatever many are down, the others take all the load, and none much more than its share of it.
    for down in [0, 3, 9] {
        let b = bounded(10, Load::default());
        let up = |node: NodeIdx| node.as_usize() >= down;
        let held: Vec<_> = (0..1_000).map(|i| b.acquire_healthy(&key(i), up).unwrap()).collect();
        assert!(held.iter().all(|l| up(l.node())), "{down} down");
        let cap = (1.25 * 1_000.0 / (10 - down) as f64).ceil() as u64;
        assert!(loads(&b).iter().all(|n| *n <= cap), "{down} down: {:?}", loads(&b));
    }
    let b = bounded(3, Load::default());
    let none = b.acquire_healthy(b"k", |_| false).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::TooFewNodes { have: 0, need: 1 });
}

#[test]
fn f12_all_full_is_an_answer_and_no_loop() {
    let load = Load::default().hard_limit(2);
    let b = bounded(3, load.clone());
    let held: Vec<_> = (0..6).map(|i| b.acquire(&key(i)).unwrap()).collect();
    assert_eq!(loads(&b), [2, 2, 2]);
    assert_eq!(b.acquire(b"k").unwrap_err().kind(), ErrorKind::AllFull);
    assert_eq!(b.total_in_flight(), 6, "a refusal takes no room");
    drop(held);
    let b = bounded(3, load.when_full(WhenFull::LeastLoaded));
    let _held: Vec<_> = (0..6).map(|i| b.acquire(&key(i)).unwrap()).collect();
    assert_eq!(b.acquire(b"k").unwrap_err().kind(), ErrorKind::AllFull, "a hard limit is hard");
}

#[test]
fn f12_few_probes_refuse_or_take_the_least_loaded() {
    let one = Load::default().max_probes(1).min_gap(0).factor(1.0);
    let b = bounded(10, one.clone());
    let _first = b.acquire(b"k").unwrap();
    assert_eq!(b.acquire(b"k").unwrap_err().kind(), ErrorKind::AllFull);
    let b = bounded(10, one.max_probes(2).when_full(WhenFull::LeastLoaded));
    let held: Vec<_> = (0..20).map(|_| b.acquire(b"k").unwrap()).collect();
    let two: Vec<_> = b.place().owners(b"k").take(2).collect();
    assert!(held.iter().all(|l| two.contains(&l.node())));
    assert_eq!(b.in_flight(two[0]), 10);
}

#[test]
fn f12_every_node_accepts_at_least_one() {
    let b = bounded(100, Load::default().factor(1.0).min_gap(0));
    let held: Vec<_> = (0..100).map(|_| b.acquire(b"k").unwrap()).collect();
    assert!(loads(&b).iter().all(|l| *l == 1));
    drop(held);
}

#[test]
fn hot_keys_yield_so_that_the_others_stay_at_home() {
    // A hot key has 600 of 1,000 calls on 10 nodes; the rest are a thousand keys, one call at a time.
    let flood = |load: Load| {
        let bounded = Bounded::new(ring(nodes(10)), load).unwrap();
        let mut leases = Vec::new();
        let mut displaced = 0;
        for i in 0..1_000_u32 {
            if i % 5 < 3 {
                leases.push(bounded.acquire(b"hot").unwrap());
            } else {
                let lease = bounded.acquire(&i.to_le_bytes()).unwrap();
                displaced += usize::from(lease.spilled() > 0);
                leases.push(lease);
            }
        }
        let loads: Vec<u64> = bounded.nodes().iter().map(|(n, _)| bounded.in_flight(n)).collect();
        assert!(loads.iter().all(|l| *l <= 126), "the bound holds: {loads:?}");
        leases.clear();
        assert_eq!(bounded.total_in_flight(), 0);
        displaced
    };
    let (plain, yielding) = (flood(Load::default().hot_keys_stay()), flood(Load::default()));
    assert!(plain > 100 && yielding * 4 < plain, "{plain} displaced, {yielding} when the hot key yields");
    // With nobody else there, the hot key may fill every node up to the bound and no further.
    let alone = Bounded::new(ring(nodes(3)), Load::default().hard_limit(5)).unwrap();
    let all: Vec<_> = (0..15).map(|_| alone.acquire(b"hot").unwrap()).collect();
    assert_eq!(alone.acquire(b"hot").unwrap_err().kind(), ErrorKind::AllFull);
    drop(all);
    assert_eq!(alone.total_in_flight(), 0);
}

#[test]
fn l12_a_hot_key_is_cold_again_when_its_calls_have_ended() {
    let bounded = Bounded::new(ring(nodes(10)), Load::default()).unwrap();
    let flood: Vec<_> = (0..600).map(|_| bounded.acquire(b"hot").unwrap()).collect();
    drop(flood);
    let owner = bounded.place().owner(b"hot").unwrap();
    let mut held: Vec<_> = (0..300).map(|i| bounded.acquire(&key(i)).unwrap()).collect();
    // Its owner is filled to where no hot key is let in, and others are.
    for i in (300..10_000).filter(|i| bounded.place().owner(&key(*i)) == Some(owner)) {
        if bounded.in_flight(owner) * 10 >= bounded.total_in_flight() + 30 {
            break;
        }
        held.push(bounded.acquire(&key(i)).unwrap());
    }
    assert_eq!(bounded.acquire(b"hot").unwrap().spilled(), 0);
}

#[test]
fn zero_weights_and_ramps_are_left_out_of_the_bound_and_not_of_the_ring() {
    let mut list = nodes(4);
    list[2].weight = 0;
    let b = Bounded::new(ring(list), Load::default()).unwrap();
    let held: Vec<_> = (0..100).map(|i| b.acquire(&key(i)).unwrap()).collect();
    assert_eq!(b.in_flight(NodeIdx::new(2)), 0);
    drop(held);
    let b = bounded(4, Load::default());
    b.ramp(NodeIdx::new(1), 0.1).unwrap();
    let held: Vec<_> = (0..310).map(|_| b.acquire(b"hot").unwrap()).collect();
    let cap = (1.25 * 310.0 * 0.1 / 3.1_f64).ceil() as u64 + 1;
    assert!(b.in_flight(NodeIdx::new(1)) <= cap, "{:?}", loads(&b));
    assert_eq!(b.place().fingerprint(), ring(nodes(4)).fingerprint());
    drop(held);
    for i in 0..4 {
        b.ramp(NodeIdx::new(i), 0.0).unwrap();
    }
    assert_eq!(b.acquire(b"k").unwrap_err().kind(), ErrorKind::TooFewNodes { have: 0, need: 1 });
    assert_eq!(b.ramp(NodeIdx::new(9), 0.5).unwrap_err().field(), "node");
    assert_eq!(b.ramp(NodeIdx::new(0), f64::NAN).unwrap_err().field(), "part");
    assert_eq!(b.ramp(NodeIdx::new(0), 1.5).unwrap_err().field(), "part");
}

#[test]
fn bad_loads_are_refused_by_name() {
    let cases = [
        (Load::default().factor(f64::NAN), "NaN", "factor"),
        (Load::default().factor(f64::INFINITY), "inf", "factor"),
        (Load::default().factor(0.99), "0.99", "factor"),
        (Load::default().factor(-1.0), "-1", "factor"),
        (Load::default().max_probes(0), "0", "max_probes"),
        (Load::default().hard_limit(0), "0", "hard_limit"),
    ];
    for (load, value, field) in cases {
        let error = Bounded::new(ring(nodes(2)), load).unwrap_err();
        assert_eq!((error.value(), error.field()), (value, field));
    }
    let none = Bounded::new(ring(vec![]), Load::default()).unwrap();
    assert_eq!(none.acquire(b"k").unwrap_err().kind(), ErrorKind::TooFewNodes { have: 0, need: 1 });
}

#[test]
fn leases_survive_a_change_of_nodes_and_are_given_back_where_they_belong() {
    let before = bounded(4, Load::default());
    let held: Vec<_> = (0..40).map(|i| before.acquire(&key(i)).unwrap()).collect();
    let after = before.moved_to(ring(nodes(3))).unwrap();
    assert_eq!(after.total_in_flight(), 40);
    for i in 0..3 {
        assert_eq!(after.in_flight(NodeIdx::new(i)), before.in_flight(NodeIdx::new(i)));
    }
    drop(before);
    drop(held);
    assert_eq!(after.total_in_flight(), 0);
    assert!((0..3).all(|i| after.in_flight(NodeIdx::new(i)) == 0));
}

#[test]
fn the_bound_works_over_every_placement() {
    let places: Vec<Box<dyn Fn() -> (u64, u64)>> = vec![
        Box::new(|| fill(rendezvous(mixed(8)))),
        Box::new(|| fill(maglev(mixed(8)))),
        Box::new(|| fill(slots(mixed(8), 8))),
    ];
    for place in places {
        let (max, all) = place();
        assert_eq!(all, 200);
        // The heaviest of 8 nodes has weight 4 of 20.
        assert!(max <= (1.25_f64 * 200.0 * 4.0 / 20.0).ceil() as u64);
    }
}

fn fill(place: impl Place) -> (u64, u64) {
    let b = Bounded::new(place, Load::default()).unwrap();
    let held: Vec<_> = (0..200).map(|_| b.acquire(b"hot").unwrap()).collect();
    let max = b.nodes().iter().map(|(i, _)| b.in_flight(i)).max().unwrap();
    let all = b.total_in_flight();
    drop(held);
    (max, all)
}

#[test]
fn l12_threads_never_pass_the_bound_and_leave_nothing() {
    let b = Arc::new(bounded(5, Load::default().hard_limit(8)));
    let (start, stop) = (Arc::new(Barrier::new(4)), Arc::new(AtomicBool::new(false)));
    let watcher = {
        let (b, stop) = (Arc::clone(&b), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut most = 0;
            while !stop.load(Ordering::Acquire) {
                most = most.max(loads(&b).into_iter().max().unwrap());
            }
            most
        })
    };
    let workers: Vec<_> = (0..4)
        .map(|t| {
            let (b, start) = (Arc::clone(&b), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                let mut held = Vec::new();
                for i in 0..5_000_usize {
                    if let Ok(lease) = b.acquire(&key(i % 3)) {
                        held.push(lease);
                    }
                    if held.len() > 12 || i % 7 == t {
                        held.clear();
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    stop.store(true, Ordering::Release);
    assert!(watcher.join().unwrap() <= 8);
    assert_eq!((b.total_in_flight(), loads(&b)), (0, vec![0; 5]));
}

#[test]
fn f12_calls_that_come_during_a_walk_raise_its_bounds() {
    // Others take their room while this call looks for its own: the fleet has room for all of them.
    let b = bounded(2, Load::default());
    let others = std::cell::RefCell::new(Vec::new());
    let mine = b.acquire_healthy(b"mine", |_| {
        if others.borrow().is_empty() {
            let taken: Vec<_> = (0..20).map(|i| b.acquire(&key(i)).unwrap()).collect();
            *others.borrow_mut() = taken;
        }
        true
    });
    assert!(loads(&b).iter().sum::<u64>() == 21 && mine.is_ok(), "{mine:?} at {:?}", loads(&b));
}

#[test]
fn f12_u6_a_slow_start_goes_on_over_a_change_of_nodes() {
    let before = bounded(4, Load::default());
    before.ramp(NodeIdx::new(1), 0.1).unwrap();
    before.ramp(NodeIdx::new(2), 0.0).unwrap();
    let after = before.moved_to(ring(nodes(5))).unwrap();
    let _held: Vec<_> = (0..410).map(|_| after.acquire(b"hot").unwrap()).collect();
    assert_eq!(after.in_flight(NodeIdx::new(2)), 0, "it was left out");
    let cap = (1.25 * 410.0 * 0.1 / 3.1_f64).ceil() as u64 + 1;
    assert!((1..=cap).contains(&after.in_flight(NodeIdx::new(1))), "{:?}", loads(&after));
    assert!(after.in_flight(NodeIdx::new(4)) > 50, "a new node takes all of its weight: {:?}", loads(&after));
    // The end of the slow start counts on the new nodes: the others have no room for all of these.
    after.ramp(NodeIdx::new(1), 1.0).unwrap();
    let _more: Vec<_> = (0..100).map(|_| after.acquire(b"hot").unwrap()).collect();
    assert!(after.in_flight(NodeIdx::new(1)) > cap, "{:?}", loads(&after));
}
