//! Failures of merges that others met first.

use mainstay_consistency::crdt::{Any, AnyKind, AwMap, AwSet, Document, DotFun, GCounter, MvRegister, RwSet};
use mainstay_consistency::version::Context;
use mainstay_consistency::wire::encode;
use mainstay_consistency::{DeltaState as _, ErrorKind, Join as _};

use crate::actor;

#[test]
fn c2_a_later_change_before_an_earlier_one_loses_nothing() {
    let mut at = actor(1);
    let mut source = AwSet::new();
    let deltas: Vec<_> = (0..10_u64).map(|n| source.add(&mut at, n).unwrap()).collect();
    let mut target = AwSet::new();
    for delta in deltas.iter().rev() {
        let _ = target.join(delta).unwrap();
        // What came is there, what has not come is neither there nor forgotten.
        assert!(target.elements().count() as u64 == target.context().count());
    }
    assert_eq!(target, source);
    assert_eq!(target.context().cloud_len(), 0);
}

#[test]
fn l10_a_gap_heals_for_every_order_of_three() {
    let mut at = actor(1);
    let mut source = MvRegister::new();
    let deltas: Vec<_> = (0..3_u64).map(|n| source.write(&mut at, n).unwrap()).collect();
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut target = MvRegister::new();
        for i in order {
            let _ = target.join(&deltas[i]).unwrap();
        }
        assert_eq!(target, source, "{order:?}");
    }
}

#[test]
fn c16_a_type_change_under_one_key_is_an_error_and_both_sides_keep_their_state() {
    let (mut at_a, mut at_b) = (actor(1), actor(2));
    let (mut a, mut b) = (Document::new(), Document::new());
    let _ = a.update(&mut at_a, "x".into(), |any, m| any.counter(m, |c, m| c.count(m, 1, 0))).unwrap();
    let _ = a.update(&mut at_a, "y".into(), |any, m| any.flag(m, |f, m| f.turn_on(m))).unwrap();
    let _ =
        b.update(&mut at_b, "x".into(), |any, m| any.register(m, |r, m| r.write_value(m, vec![7]))).unwrap();
    let (before_a, before_b) = (a.clone(), b.clone());
    assert_eq!(a.join(&b).unwrap_err().kind(), ErrorKind::TypeMismatch);
    assert_eq!(b.join(&a).unwrap_err().kind(), ErrorKind::TypeMismatch);
    assert_eq!((&a, &b), (&before_a, &before_b));
    // The same locally.
    let refused = a.update(&mut at_a, "x".into(), |any, m| any.flag(m, |f, m| f.turn_on(m))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TypeMismatch);
    // A person removes the key on one side, and the sides meet.
    let removed = b.remove(&mut at_b, &"x".into()).unwrap();
    let _ = a.join(&removed).unwrap();
    let _ = a.join(&b).unwrap();
    let _ = b.join(&a).unwrap();
    assert_eq!(a, b);
    assert_eq!(a.get(&"x".into()).map(Any::kind), Some(AnyKind::Counter));
    // A type may change once what was there is gone.
    let _ = a.remove(&mut at_a, &"x".into()).unwrap();
    let _ = a.update(&mut at_a, "x".into(), |any, m| any.flag(m, |f, m| f.turn_on(m))).unwrap();
    let _ = b.join(&a).unwrap();
    assert_eq!(a, b);
}

#[test]
fn c20_a_refused_join_changes_nothing_of_any_key() {
    let (mut at_a, mut at_b) = (actor(1), actor(2));
    let (mut a, mut b) = (Document::new(), Document::new());
    for n in 0..40 {
        let key = format!("k{n:02}");
        let _ = b.update(&mut at_b, key, |any, m| any.flag(m, |f, m| f.turn_on(m))).unwrap();
    }
    let _ = b.update(&mut at_b, "z".into(), |any, m| any.flag(m, |f, m| f.turn_on(m))).unwrap();
    let _ = a.update(&mut at_a, "z".into(), |any, m| any.counter(m, |c, m| c.count(m, 1, 0))).unwrap();
    let before = encode(&a);
    assert!(a.join(&b).is_err());
    assert_eq!(encode(&a), before);
    // A mutator that fails in the middle takes its dots back.
    let failed = a.update(&mut at_a, "q".into(), |any, m| {
        any.flag(m, |f, m| f.turn_on(m))?;
        any.counter(m, |c, m| c.count(m, u64::MAX, 0))?.counter(m, |c, m| c.count(m, 1, 0))
    });
    assert!(failed.is_err());
    assert_eq!(encode(&a), before);
    let _ = a.update(&mut at_a, "q".into(), |any, m| any.flag(m, |f, m| f.turn_on(m))).unwrap();
    assert_eq!(a.context().cloud_len(), 0);
}

#[test]
fn c23_a_piece_claims_only_what_it_carries() {
    let mut at = actor(1);
    let mut set = AwSet::new();
    let deltas: Vec<_> = (0..50_u64).map(|n| set.add(&mut at, n).unwrap()).collect();
    // Every delta knows its own change only; joined into a full replica it removes nothing.
    for delta in &deltas {
        assert_eq!(delta.context().count(), 1);
        let mut full = set.clone();
        assert!(!full.join(delta).unwrap().is_yes());
    }
    // What somebody misses never mentions what they have.
    let mut half = AwSet::new();
    for delta in &deltas[..25] {
        let _ = half.join(delta).unwrap();
    }
    let missing = set.delta_since(half.context());
    assert_eq!(missing.context().count(), 25);
    assert_eq!(missing.elements().count(), 25);
}

#[test]
fn l12_what_is_missing_carries_removals_too() {
    let mut at = actor(1);
    let mut set = AwSet::new();
    for n in 0..10_u64 {
        let _ = set.add(&mut at, n).unwrap();
    }
    let old = set.clone();
    let _ = set.remove(&mut at, &3).unwrap();
    // The removal minted nothing: both contexts are equal, and the delta still says it.
    assert_eq!(set.context(), old.context());
    let missing = set.delta_since(old.context());
    let mut next = old;
    assert!(next.join(&missing).unwrap().is_yes());
    assert_eq!(next, set);
    assert!(set.delta_since(&Context::new()).elements().eq(set.elements()));
}

#[test]
fn c11_remove_wins_variants_exist() {
    let mut at = actor(1);
    let mut set = RwSet::new();
    let _ = set.add(&mut at, 1_u64).unwrap();
    let _ = set.remove(&mut at, 1).unwrap();
    assert_eq!((set.contains(&1), set.tombstones()), (false, 1));
}

#[test]
fn a_wrapped_value_joins_its_concurrent_changes_at_the_next_one() {
    let (mut at_a, mut at_b) = (actor(1), actor(2));
    let mut a: AwMap<u64, DotFun<GCounter>> = AwMap::new();
    let count = |counter: &mut GCounter, id| -> mainstay_consistency::Result<()> {
        let delta = counter.clone().inc(&mut mainstay_consistency::Actor::new(id), 1)?;
        let _ = counter.join(&delta)?;
        Ok(())
    };
    let (id_a, id_b) = (at_a.id(), at_b.id());
    let mut b = a.clone();
    let _ = a.update(&mut at_a, 1, |s, m| s.apply(m, |c| count(c, id_a))).unwrap();
    let _ = b.update(&mut at_b, 1, |s, m| s.apply(m, |c| count(c, id_b))).unwrap();
    let _ = a.join(&b).unwrap();
    assert_eq!(a.get(&1).unwrap().joined().unwrap().value(), 2);
    let _ = a.update(&mut at_a, 1, |s, m| s.apply(m, |c| count(c, id_a))).unwrap();
    assert_eq!(a.get(&1).unwrap().values().count(), 1);
    assert_eq!(a.get(&1).unwrap().joined().unwrap().value(), 3);
}

#[test]
fn a_change_that_panics_leaves_its_actor_as_it_was() {
    let (mut at, mut map) = (actor(1), AwMap::<u64, DotFun<u64>>::new());
    let change = std::panic::AssertUnwindSafe(|| {
        map.update(&mut at, 1, |register, mint| {
            let _ = register.write_value(mint, 1);
            panic!("a mistake of the caller")
        })
    });
    assert!(std::panic::catch_unwind(change).is_err());
    assert_eq!((at.minted(), map.len()), (0, 0));
    map.update(&mut at, 1, |register, mint| register.write_value(mint, 2)).unwrap();
    assert!(map.get(&1).unwrap().values().eq(&[2]));
}
