//! Version vectors, contexts, siblings, identities.

use std::sync::Arc;

use mainstay_clock::{Rng, SeededRng};
use mainstay_consistency::identity::{Alarm, Identity};
use mainstay_consistency::replicate::DigestKey;
use mainstay_consistency::siblings::Siblings;
use mainstay_consistency::version::{Causality, VersionVector};
use mainstay_consistency::wire::encode;
use mainstay_consistency::{Actor, ActorId, ErrorKind, Join as _, crdt::AwSet};
use mainstay_store::DurableCell as _;
use mainstay_store::memory::MemoryCell;

use crate::{actor, block_on};

fn vector(counts: &[u64]) -> VersionVector {
    let mut vector = VersionVector::new();
    for (node, count) in counts.iter().enumerate() {
        for _ in 0..*count {
            vector.advance(ActorId::new(node as u64, 1, 0));
        }
    }
    vector
}

#[test]
fn l19_version_vectors_are_a_partial_order_with_joins() {
    let rng = SeededRng::new(3);
    let draw = || vector(&std::array::from_fn::<u64, 4, _>(|_| rng.below(3)));
    for _ in 0..2_000 {
        let (a, b, c) = (draw(), draw(), draw());
        let below = |x: &VersionVector, y: &VersionVector| {
            matches!(x.compare(y), Causality::Before | Causality::Equal)
        };
        let model = (0..4).all(|n| a.get(ActorId::new(n, 1, 0)) <= b.get(ActorId::new(n, 1, 0)));
        assert_eq!(below(&a, &b), model);
        assert_eq!(a.compare(&b) == Causality::Equal, a == b);
        assert!(!below(&a, &b) || !below(&b, &c) || below(&a, &c));
        let (mut ab, mut ba) = (a.clone(), b.clone());
        assert_eq!(ab.merge(&b).is_yes(), !below(&b, &a));
        let _ = ba.merge(&a);
        assert_eq!(ab, ba);
        assert!(below(&a, &ab) && below(&b, &ab));
        assert!(below(&a.common(&b), &a) && below(&a.common(&b), &b));
    }
}

#[test]
fn l19_interleaving_clients_leave_no_more_siblings_than_clients() {
    let mut at = actor(1);
    let mut key = Siblings::<u64>::new(DigestKey::new([1; 16]), b"k");
    let mut tokens = vec![key.get().token; 5];
    for round in 0..200_u64 {
        let client = (round % 5) as usize;
        key.put(&mut at, &tokens[client], round).unwrap();
        let read = key.get();
        assert!(read.values.len() <= 5, "{read:?}");
        assert!(read.values.contains(&round));
        tokens[client] = read.token;
    }
}

#[test]
fn c12_blind_puts_are_warned_about_and_then_refused() {
    let mut at = actor(1);
    let mut key = Siblings::<u64>::new(DigestKey::new([1; 16]), b"k");
    for n in 1..=100 {
        let put = key.put(&mut at, b"", n).unwrap();
        assert_eq!(put.many, (n >= 25).then_some(n as usize));
    }
    let refused = key.put(&mut at, b"", 101).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooManySiblings { count: 101 });
    assert_eq!(key.get().values.len(), 100);
    // A merge is never refused, and a read resolves.
    let mut other = Siblings::<u64>::new(DigestKey::new([1; 16]), b"k");
    other.put(&mut actor(2), b"", 7).unwrap();
    let (changed, many) = key.join(other.state()).unwrap();
    assert!(changed.is_yes());
    assert_eq!(many, Some(101));
    assert_eq!(key.resolved(|a, b| a.max(*b)), Some(100));
    let token = key.get().token;
    key.put(&mut at, &token, 1).unwrap();
    assert_eq!(key.get().values, [1]);
}

#[test]
fn c13_nothing_is_pruned_by_size() {
    let mut old = VersionVector::new();
    for node in 0..2_000 {
        old.advance(ActorId::new(node, 1, 0));
    }
    let mut new = old.clone();
    new.advance(ActorId::new(5, 1, 0));
    assert_eq!(old.compare(&new), Causality::Before);
    assert_eq!(new.len(), 2_000);
}

#[test]
fn c19_a_token_of_another_key_or_cluster_is_refused() {
    let mut at = actor(1);
    let mut key = Siblings::<u64>::new(DigestKey::new([1; 16]), b"a");
    let other_key = Siblings::<u64>::new(DigestKey::new([1; 16]), b"b").get().token;
    let other_cluster = Siblings::<u64>::new(DigestKey::new([2; 16]), b"a").get().token;
    key.put(&mut at, b"", 1).unwrap();
    for token in [&other_key[..], &other_cluster, &[1, 2, 3, 4, 5, 6, 7, 8, 9]] {
        assert_eq!(key.put(&mut at, token, 2).unwrap_err().kind(), ErrorKind::ForeignContext);
    }
    assert_eq!(key.put(&mut at, &[1], 2).unwrap_err().kind(), ErrorKind::Malformed);
    assert_eq!(key.get().values, [1]);
}

/// What the documents say that a start costs. It is kept for ever, whatever becomes of its changes.
#[test]
fn c14_g4_an_epoch_that_changed_something_costs_twenty_bytes() {
    let mut set = AwSet::<u64>::new();
    for epoch in 1..=1_000 {
        let mut at = Actor::new(ActorId::new(7, epoch, epoch ^ 0x5bd1_e995));
        set.add(&mut at, 1).unwrap();
        set.remove(&mut at, &1).unwrap();
    }
    assert_eq!((set.elements().count(), set.context().actors()), (0, 1_000));
    let each = encode(set.context()).len() as f64 / 1_000.0;
    assert!((18.0..=20.0).contains(&each), "{each} bytes");
}

#[test]
fn l13_no_dot_is_minted_twice() {
    block_on(async {
        let mut seen = std::collections::BTreeSet::new();
        let rng = Arc::new(SeededRng::new(9));
        let cell = MemoryCell::new();
        let mut backup = None;
        for round in 0..40_u64 {
            // Now and then the disk is lost, or rolled back to a backup, or cloned.
            let disk = match round % 8 {
                3 => Arc::new(MemoryCell::new()),
                5 => {
                    let rolled = MemoryCell::new();
                    if let Some(bytes) = backup.clone() {
                        rolled.store_synced(bytes).await.unwrap();
                    }
                    Arc::new(rolled)
                }
                _ => Arc::new(cell.clone()),
            };
            let mut identity = Identity::open(disk, rng.clone()).await.unwrap();
            if round % 8 == 2 {
                backup = cell.load().await.unwrap();
            }
            let mut at = identity.actor();
            let mut set = AwSet::new();
            for n in 0..3_u64 {
                let _ = set.add(&mut at, n).unwrap();
                assert!(seen.insert((at.id(), at.minted())), "round {round}");
            }
        }
    });
}

#[test]
fn c3_an_actor_that_restarts_empty_is_a_new_actor() {
    block_on(async {
        let rng = Arc::new(SeededRng::new(4));
        let mut before = Identity::open(Arc::new(MemoryCell::new()), rng.clone()).await.unwrap();
        let mut set = AwSet::new();
        let mut at = before.actor();
        let _ = set.add(&mut at, 1_u64).unwrap();
        let _ = set.add(&mut at, 2).unwrap();
        let mut peer = set.clone();
        // The disk is gone, and with it the set.
        let mut after = Identity::open(Arc::new(MemoryCell::new()), rng).await.unwrap();
        let mut fresh = AwSet::new();
        let delta = fresh.add(&mut after.actor(), 3).unwrap();
        let _ = peer.join(&delta).unwrap();
        let _ = peer.join(&fresh).unwrap();
        assert!(peer.elements().eq(&[1, 2, 3]));
    });
}

#[test]
fn c4_a_clone_and_a_rollback_are_alarms_before_the_first_change() {
    block_on(async {
        let rng = Arc::new(SeededRng::new(6));
        let disk = MemoryCell::new();
        let mut original = Identity::open(Arc::new(disk.clone()), rng.clone()).await.unwrap();
        let snapshot = disk.load().await.unwrap().unwrap();
        let mut at = original.actor();
        let mut set = AwSet::new();
        let _ = set.add(&mut at, 1_u64).unwrap();
        // The peer knows the original's epoch; the clone starts from a snapshot taken before it.
        let cloned = MemoryCell::new();
        let mut older = snapshot.clone();
        older[11] -= 1;
        cloned.store_synced(older).await.unwrap();
        let mut clone = Identity::open(Arc::new(cloned), rng.clone()).await.unwrap();
        assert_eq!((clone.node(), clone.epoch()), (original.node(), original.epoch()));
        let nonce = at.id().nonce();
        assert_eq!(
            clone.hear(set.context()).await.unwrap(),
            Some(Alarm::Cloned { epoch: original.epoch(), nonce })
        );
        assert!(clone.epoch() > original.epoch());
        // And one that is several epochs back.
        let mut ahead = Identity::open(Arc::new(disk.clone()), rng.clone()).await.unwrap();
        let mut later = AwSet::new();
        let _ = later.add(&mut ahead.actor(), 1_u64).unwrap();
        let rolled = MemoryCell::new();
        let mut oldest = snapshot;
        oldest[11] = 0;
        rolled.store_synced(oldest).await.unwrap();
        let mut back = Identity::open(Arc::new(rolled), rng).await.unwrap();
        assert_eq!(
            back.hear(later.context()).await.unwrap(),
            Some(Alarm::RolledBack { known: ahead.epoch() })
        );
        assert!(back.epoch() > ahead.epoch());
        assert_eq!(back.hear(later.context()).await.unwrap(), None);
    });
}

#[test]
fn c4_a_duplicate_actor_is_refused_at_its_next_change() {
    let mut set = AwSet::new();
    let mut at = actor(1);
    let _ = set.add(&mut at, 1_u64).unwrap();
    // A second process with the same identity and an old state.
    let mut copy = AwSet::new();
    let _ = copy.join(&set).unwrap();
    let mut clone = actor(1);
    assert_eq!(copy.add(&mut clone, 2).unwrap_err().kind(), ErrorKind::DuplicateActor);
}

#[test]
fn c26_one_actor_for_two_contexts_is_refused() {
    let mut at = actor(1);
    let (mut a, mut b) = (AwSet::new(), AwSet::new());
    let _ = a.add(&mut at, 1_u64).unwrap();
    assert_eq!(b.add(&mut at, 1_u64).unwrap_err().kind(), ErrorKind::ForeignActor);
    assert!(b.context().is_empty());
    let _ = a.add(&mut at, 2).unwrap();
}
