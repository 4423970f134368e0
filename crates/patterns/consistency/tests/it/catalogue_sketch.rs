//! The holes of the textbook's sketch of conflict resolution.

use mainstay_consistency::crdt::{AwSet, LwwMap, LwwRegister};
use mainstay_consistency::laws::{merge_function, total_order};
use mainstay_consistency::lww::{Document, Holdback};
use mainstay_consistency::version::Causality;
use mainstay_consistency::{ErrorKind, Join as _};

use crate::{actor, clock};

#[test]
fn s1_a_later_write_wins_although_its_wall_clock_is_slower() {
    let ((fast, _), (slow, _)) = (clock(10_400), clock(10_000));
    let first = Document::new(&fast, actor(1).id(), 1_u64).unwrap();
    let second = first.edit(&slow, actor(2).id(), 2).unwrap();
    assert_eq!(first.version().compare(second.version()), Causality::Before);
    assert!(second.stamp() > first.stamp());
    assert_eq!(first.clone().resolve(&second).value(), Some(&2));
    assert_eq!(second.resolve(&first).value(), Some(&2));
}

#[test]
fn s2_resolution_is_a_total_order() {
    let nodes: Vec<_> = (1..=3).map(|n| (clock(10_000).0, actor(n).id())).collect();
    let start = Document::new(&nodes[0].0, nodes[0].1, 0_u64).unwrap();
    let mut versions = vec![start.clone()];
    for (hlc, id) in &nodes {
        let mut last = start.clone();
        for n in 0..3 {
            last = last.edit(hlc, *id, n).unwrap();
            versions.push(last.clone());
        }
    }
    merge_function(&versions, |a, b| a.clone().resolve(b)).unwrap();
    total_order(&versions, |a, b| a.stamp() < b.stamp()).unwrap();
}

#[test]
fn s3_the_same_millisecond_is_no_tie() {
    let (hlc, _) = clock(10_000);
    let (other, _) = clock(10_000);
    let a = Document::new(&hlc, actor(1).id(), "a".to_owned()).unwrap();
    let b = Document::new(&hlc, actor(1).id(), "b".to_owned()).unwrap();
    let c = Document::new(&other, actor(2).id(), "c".to_owned()).unwrap();
    assert_eq!(a.stamp().at().physical_ms(), b.stamp().at().physical_ms());
    assert!(a.stamp() != b.stamp() && a.stamp() != c.stamp());
    assert_eq!(a.clone().resolve(&c), c.resolve(&a));
}

#[test]
fn s4_a_write_from_the_future_poisons_nothing() {
    let ((now, wall), (future, _)) = (clock(10_000), clock(10_000_000));
    let mut register = LwwRegister::new();
    let _ = register.set(&now, actor(1).id(), 1_u64).unwrap();
    let mut wrong = LwwRegister::new();
    let poison = wrong.set(&future, actor(2).id(), 666_u64).unwrap();

    let mut held = Holdback::new(1).unwrap();
    let at = poison.stamp().unwrap().at();
    assert_eq!(held.offer(&now, at, poison.clone()).unwrap(), None);
    assert_eq!(held.offer(&now, at, poison.clone()).unwrap_err().kind(), ErrorKind::Full);
    let _ = register.set(&now, actor(1).id(), 2).unwrap();
    assert_eq!(register.get(), Some(&2));
    assert!(held.due(&now).is_empty());

    // Never dropped: its time comes.
    wall.set(10_000_000);
    now.accept_jump();
    assert_eq!(held.due(&now), [poison]);
    assert!(held.is_empty());
}

#[test]
fn s5_the_winner_takes_the_losers_version_over() {
    let (hlc, _) = clock(10_000);
    let start = Document::new(&hlc, actor(1).id(), 0_u64).unwrap();
    let left = start.edit(&hlc, actor(1).id(), 1).unwrap();
    let right = start.edit(&hlc, actor(2).id(), 2).unwrap();
    assert_eq!(left.version().compare(right.version()), Causality::Concurrent);
    let winner = left.clone().resolve(&right);
    for version in [&left, &right] {
        assert_eq!(version.version().compare(winner.version()), Causality::Before);
        assert_eq!(winner.clone().resolve(version), winner);
    }
}

#[test]
fn s6_disjoint_fields_both_survive() {
    let (hlc, _) = clock(10_000);
    let (mut at_a, mut at_b) = (actor(1), actor(2));
    let mut a = LwwMap::<String, u64>::new();
    let mut b = LwwMap::new();
    let _ = a.set(&mut at_a, &hlc, "price".into(), 5).unwrap();
    let _ = b.set(&mut at_b, &hlc, "stock".into(), 7).unwrap();
    let _ = a.join(&b).unwrap();
    assert_eq!((a.get(&"price".into()), a.get(&"stock".into())), (Some(&5), Some(&7)));
}

#[test]
fn s7_deletes_do_not_come_back() {
    let (hlc, _) = clock(10_000);
    let first = Document::new(&hlc, actor(1).id(), 1_u64).unwrap();
    let deleted = first.delete(&hlc, actor(1).id()).unwrap();
    assert_eq!(deleted.clone().resolve(&first).value(), None);
    assert_eq!(first.resolve(&deleted).value(), None);

    let mut at = actor(1);
    let mut map = LwwMap::<u64, u64>::new();
    let old = map.set(&mut at, &hlc, 7, 1).unwrap();
    let _ = map.remove(&mut at, &hlc, 7).unwrap();
    assert!(!map.join(&old).unwrap().is_yes());
    assert_eq!(map.get(&7), None);

    let mut at = actor(1);
    let mut set = AwSet::new();
    let old = set.add(&mut at, 1_u64).unwrap();
    let _ = set.remove(&mut at, &1).unwrap();
    assert!(!set.join(&old).unwrap().is_yes());
    assert!(!set.contains(&1));
}

#[test]
fn c6_equal_stamps_mean_equal_values() {
    let (hlc, _) = clock(10_000);
    let mut x = LwwRegister::new();
    let mut y = LwwRegister::new();
    let _ = x.set(&hlc, actor(1).id(), 1_u64).unwrap();
    let _ = y.set(&clock(10_000).0, actor(1).id(), 2).unwrap();
    // A duplicated actor at the same tick: the value's hash decides, on both sides alike.
    let (mut xy, mut yx) = (x.clone(), y.clone());
    let _ = xy.join(&y).unwrap();
    let _ = yx.join(&x).unwrap();
    assert_eq!(xy, yx);
}
