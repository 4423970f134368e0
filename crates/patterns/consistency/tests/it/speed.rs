//! Causes of speed: allocations and steps. The figures are in the bench.

use mainstay_consistency::crdt::AwSet;
use mainstay_consistency::hlc::{Hlc, Source};
use mainstay_consistency::version::VersionVector;
use mainstay_consistency::wire::encode_for;
use mainstay_consistency::{ActorId, DeltaState as _, Join as _};

use crate::{actor, clock};

fn set_of(n: u64) -> (AwSet<u64>, mainstay_consistency::Actor) {
    let (mut set, mut at) = (AwSet::new(), actor(1));
    for e in 0..n {
        let _ = set.add(&mut at, e.wrapping_mul(0x9e37_79b9_7f4a_7c15)).unwrap();
    }
    (set, at)
}

#[test]
fn vectors_and_clocks_allocate_nothing() {
    let vector = |n: u64| {
        let mut v = VersionVector::new();
        for node in 0..10 {
            for _ in 0..=n % (node + 1) {
                v.advance(ActorId::new(node, 1, 0));
            }
        }
        v
    };
    let (mut a, b) = (vector(7), vector(5));
    let (hlc, wall) = clock(1_000);
    let cached = Hlc::builder(wall).source(Source::Cached).build().unwrap();
    let info = allocation_counter::measure(|| {
        let _ = a.compare(&b);
        let _ = a.merge(&b);
        let stamp = hlc.now().unwrap();
        hlc.observe(stamp).unwrap();
        cached.now().unwrap();
    });
    assert_eq!(info.count_total, 0);
}

#[test]
fn a_repeated_join_allocates_nothing_that_grows() {
    let cost = |n: u64| {
        let (mut set, _) = set_of(n);
        let other = set.clone();
        allocation_counter::measure(|| assert!(!set.join(&other).unwrap().is_yes())).count_total
    };
    assert_eq!(cost(100), cost(10_000));
}

#[test]
fn one_change_into_many_touches_few() {
    let cost = |n: u64| {
        let (mut set, mut at) = set_of(n);
        let mut copy = set.clone();
        let delta = set.add(&mut at, 1).unwrap();
        let gone = set.remove(&mut at, &1).unwrap();
        let info = allocation_counter::measure(|| {
            assert!(copy.join(&delta).unwrap().is_yes());
            assert!(copy.join(&gone).unwrap().is_yes());
        });
        info.count_total
    };
    let (small, large) = (cost(1_000), cost(50_000));
    assert!(large <= small + 4, "{small} and {large}");
}

#[test]
fn an_element_takes_at_most_64_bytes_with_its_index() {
    let info = allocation_counter::measure(|| {
        let set = set_of(100_000).0;
        std::mem::forget(set);
    });
    // Current, not maximal: what the set keeps.
    let each = info.bytes_current / 100_000;
    println!("{each} bytes per element");
    assert!(each <= 64, "{each}");
}

#[test]
fn an_addition_takes_at_most_16_bytes_on_the_wire() {
    let (mut set, mut at) = set_of(100_000);
    let delta = set.add(&mut at, 7).unwrap();
    // To a reader who knows the actor, as one does after the first change.
    let bytes = encode_for(&delta, &[at.id()]).len();
    println!("{bytes} bytes");
    assert!(bytes <= 16, "{bytes}");
}

#[test]
fn what_is_missing_is_as_large_as_the_difference() {
    let (mut set, mut at) = set_of(20_000);
    let before = set.context().clone();
    let _ = set.add(&mut at, 3).unwrap();
    assert_eq!(set.delta_since(&before).elements().count(), 1);
}
