//! L15 and L16: what concurrent changes mean, and what resets and removals leave.

use std::collections::BTreeSet;

use mainstay_clock::{Rng, SeededRng};
use mainstay_consistency::crdt::{
    AwMap, AwSet, BoundedCounter, Causal, DotFun, DotMap, DotSet, DotStore, DwFlag, EwFlag, GCounter, LwwMap,
    LwwRegister, MvRegister, PnCounter, ResettableCounter, RwMap, RwSet, Tally, TwoPhaseSet,
};
use mainstay_consistency::{Actor, ErrorKind, Join, Result};

use crate::{actor, clock};

/// Makes two changes that do not know of each other, after a common start, and joins them both ways.
fn concurrently<S: DotStore>(
    start: impl Fn(&mut Causal<S>, &mut Actor) -> Result<Causal<S>>,
    left: impl Fn(&mut Causal<S>, &mut Actor) -> Result<Causal<S>>,
    right: impl Fn(&mut Causal<S>, &mut Actor) -> Result<Causal<S>>,
) -> Causal<S> {
    let (mut at_a, mut at_b) = (actor(1), actor(2));
    let mut a = Causal::<S>::new();
    start(&mut a, &mut at_a).unwrap();
    let mut b = a.clone();
    let from_a = left(&mut a, &mut at_a).unwrap();
    let from_b = right(&mut b, &mut at_b).unwrap();
    let _ = a.join(&from_b).unwrap();
    let _ = b.join(&from_a).unwrap();
    assert_eq!(a, b);
    a
}

#[test]
fn l15_flags() {
    let on = concurrently(|f: &mut EwFlag, a| f.enable(a), |f, a| f.enable(a), |f, a| f.disable(a));
    assert!(on.is_on());
    let off = concurrently(|f: &mut DwFlag, a| f.enable(a), |f, a| f.enable(a), |f, a| f.disable(a));
    assert!(!off.is_on());
}

#[test]
fn c27_a_disable_wins_flag_starts_off() {
    assert!(!DwFlag::new().is_on());
    assert!(!EwFlag::new().is_on());
    // Enabled inside a map, it does not vanish.
    let mut map: AwMap<u64, DotFun<mainstay_consistency::crdt::Vote>> = AwMap::new();
    let _ = map.update(&mut actor(1), 7, |flag, mint| flag.turn_on(mint)).unwrap();
    assert!(map.get(&7).unwrap().is_on());
}

#[test]
fn c11_sets_and_who_wins() {
    let aw = concurrently(|s: &mut AwSet<u64>, a| s.add(a, 1), |s, a| s.remove(a, &1), |s, a| s.add(a, 1));
    assert!(aw.contains(&1));
    let rw = concurrently(|s: &mut RwSet<u64>, a| s.add(a, 1), |s, a| s.remove(a, 1), |s, a| s.add(a, 1));
    assert!(!rw.contains(&1));
    let mut again = rw.clone();
    let _ = again.add(&mut actor(3), 1).unwrap();
    assert!(again.contains(&1));
}

#[test]
fn l15_maps_keep_what_the_removal_had_not_seen() {
    type Map = AwMap<u64, DotMap<u64, DotSet>>;
    let add = |n| move |m: &mut Map, a: &mut Actor| m.update(a, 7, |s, mint| s.insert(mint, n));
    let map = concurrently(add(1), |m: &mut Map, a| m.remove(a, &7), add(2));
    assert!(map.get(&7).unwrap().iter().map(|e| *e.0).eq([2]), "no old value returns");

    type RwM = RwMap<u64, DotMap<u64, DotSet>>;
    let put = |n| move |m: &mut RwM, a: &mut Actor| m.update(a, 7, |s, mint| s.insert(mint, n));
    let map = concurrently(put(1), |m: &mut RwM, a| m.remove(a, 7), put(2));
    assert!(map.get(&7).is_none());
}

#[test]
fn c28_a_hidden_value_does_not_return_with_its_key() {
    type RwM = RwMap<u64, DotMap<u64, DotSet>>;
    let put = |n| move |m: &mut RwM, a: &mut Actor| m.update(a, 7, |s, mint| s.insert(mint, n));
    let mut map = concurrently(put(1), |m: &mut RwM, a| m.remove(a, 7), put(2));
    let _ = map.update(&mut actor(3), 7, |s, mint| s.insert(mint, 3)).unwrap();
    assert!(map.get(&7).unwrap().iter().map(|e| *e.0).eq([3]));
}

#[test]
fn c9_a_reset_counter_starts_from_zero() {
    let mut at = actor(1);
    let mut counter = ResettableCounter::new();
    let _ = counter.inc(&mut at, 5).unwrap();
    let _ = counter.reset(&mut at).unwrap();
    assert_eq!(counter.value(), 0);
    let _ = counter.inc(&mut at, 2).unwrap();
    assert_eq!(counter.value(), 2);
    // Removed and added again in a map.
    let mut map: AwMap<u64, DotFun<Tally>> = AwMap::new();
    let mut at = actor(2);
    let _ = map.update(&mut at, 7, |c, mint| c.count(mint, 5, 0)).unwrap();
    let _ = map.remove(&mut at, &7).unwrap();
    let _ = map.update(&mut at, 7, |c, mint| c.count(mint, 1, 0)).unwrap();
    assert_eq!(map.get(&7).unwrap().total(), 1);
}

#[test]
fn l16_an_increment_beside_a_reset_keeps_its_whole_contribution() {
    let counter =
        concurrently(|c: &mut ResettableCounter, a| c.inc(a, 5), |c, a| c.inc(a, 3), |c, a| c.reset(a));
    assert_eq!(counter.value(), 8);
    let other =
        concurrently(|c: &mut ResettableCounter, a| c.inc(a, 5), |c, a| c.reset(a), |c, a| c.inc(a, 3));
    assert_eq!(other.value(), 3, "the other actor's five are gone");
}

#[test]
fn l15_registers() {
    let both =
        concurrently(|r: &mut MvRegister<u64>, a| r.write(a, 1), |r, a| r.write(a, 2), |r, a| r.write(a, 3));
    assert!(both.values().eq(&[2, 3]));
    let (hlc, _) = clock(1_000);
    let mut register = LwwRegister::new();
    let first = register.set(&hlc, actor(1).id(), 1_u64).unwrap();
    let _ = register.set(&hlc, actor(1).id(), 2).unwrap();
    assert!(!register.join(&first).unwrap().is_yes());
    assert_eq!(register.get(), Some(&2));
}

#[test]
fn c10_a_bounded_counter_never_passes_its_floor() {
    for seed in 0..150_u64 {
        let rng = SeededRng::new(seed);
        let mut actors = [actor(1), actor(2), actor(3)];
        let ids = actors.each_ref().map(Actor::id);
        let mut replicas = [(); 3].map(|()| BoundedCounter::new(-2));
        let mut deltas = Vec::new();
        for _ in 0..60 {
            let at = rng.below(3) as usize;
            let made = match rng.below(4) {
                0 => replicas[at].inc(&mut actors[at], 1 + rng.below(3)),
                1 => replicas[at].dec(&mut actors[at], 1 + rng.below(3)),
                2 => replicas[at].transfer(&mut actors[at], ids[rng.below(3) as usize], 1 + rng.below(2)),
                _ => continue,
            };
            match made {
                Ok(delta) => deltas.push(delta),
                Err(error) => assert!(matches!(error.kind(), ErrorKind::NoRights { .. }), "{error}"),
            }
            // Deliveries of single deltas in any order: also what is seen in between holds the floor.
            for _ in 0..rng.below(3) {
                if !deltas.is_empty() {
                    let delta = &deltas[rng.below(deltas.len() as u64) as usize];
                    let _ = replicas[rng.below(3) as usize].join(delta).unwrap();
                }
            }
            assert!(replicas.iter().all(|r| r.value() >= -2), "seed {seed}");
        }
    }
    let mut other = BoundedCounter::new(5);
    assert_eq!(other.join(&BoundedCounter::new(6)).unwrap_err().kind(), ErrorKind::TypeMismatch);
    assert_eq!(other, BoundedCounter::new(5));
}

#[test]
fn l15_without_concurrency_every_type_is_its_sequential_self() {
    for seed in 0..40_u64 {
        let rng = SeededRng::new(seed);
        let (hlc, _) = clock(1_000);
        let (mut at_aw, mut at_rw, mut at_lww, mut at_count) = (actor(1), actor(1), actor(1), actor(1));
        let (mut aw, mut rw, mut lww, mut two) =
            (AwSet::new(), RwSet::new(), LwwMap::new(), TwoPhaseSet::new());
        let (mut pn, mut grows) = (PnCounter::new(), GCounter::new());
        let (mut set, mut ever, mut sum, mut up) = (BTreeSet::new(), BTreeSet::new(), 0_i128, 0_i128);
        for _ in 0..200 {
            let n = rng.below(12);
            if rng.below(2) == 0 {
                set.insert(n);
                let _ = aw.add(&mut at_aw, n).unwrap();
                let _ = rw.add(&mut at_rw, n).unwrap();
                let _ = lww.set(&mut at_lww, &hlc, n, n).unwrap();
                two.add(n);
                let _ = pn.inc(&mut at_count, n).unwrap();
                let _ = grows.inc(&mut at_count, n).unwrap();
                (sum, up) = (sum + i128::from(n), up + i128::from(n));
            } else {
                set.remove(&n);
                let _ = aw.remove(&mut at_aw, &n).unwrap();
                let _ = rw.remove(&mut at_rw, n).unwrap();
                let _ = lww.remove(&mut at_lww, &hlc, n).unwrap();
                if two.contains(&n) || ever.contains(&n) {
                    ever.insert(n);
                    two.remove(&n).unwrap();
                }
                let _ = pn.dec(&mut at_count, n).unwrap();
                sum -= i128::from(n);
            }
            assert!(aw.elements().eq(&set) && rw.elements().eq(&set), "seed {seed}");
            assert!(lww.iter().map(|e| e.0).eq(&set), "seed {seed}");
            assert!(two.elements().all(|n| set.contains(n) && !ever.contains(n)), "seed {seed}");
            assert_eq!((pn.value(), grows.value()), (sum, up));
        }
    }
}

#[test]
fn overflow_is_an_error_and_changes_nothing() {
    let mut at = actor(1);
    let mut counter = GCounter::new();
    let _ = counter.inc(&mut at, u64::MAX - 1).unwrap();
    assert_eq!(counter.inc(&mut at, 1).unwrap_err().kind(), ErrorKind::Overflow);
    let mut resettable = ResettableCounter::new();
    let _ = resettable.inc(&mut at, u64::MAX).unwrap();
    assert_eq!(resettable.inc(&mut at, 1).unwrap_err().kind(), ErrorKind::Overflow);
    assert_eq!(resettable.value(), i128::from(u64::MAX));
    // The actor can go on.
    let _ = resettable.reset(&mut at).unwrap();
    let _ = resettable.inc(&mut at, 1).unwrap();
    assert_eq!(resettable.value(), 1);
}
