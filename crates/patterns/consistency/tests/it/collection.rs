//! Causal stability: what may be forgotten, and what a forgetful or returning member may not bring back.

use std::collections::BTreeSet;

use mainstay_clock::{Rng, SeededRng};
use mainstay_consistency::crdt::{DotMap, DotSet, LwwMap, RwMap, RwSet};
use mainstay_consistency::laws::network::{Network, Weather, forgets_invisibly};
use mainstay_consistency::replicate::Event;
use mainstay_consistency::{Actor, ActorId};

use crate::{actor, clock};

fn actors(count: u64) -> Vec<Actor> {
    (1..=count).map(actor).collect()
}

#[test]
fn l14_tombstones_go_once_every_member_has_seen_them() {
    let mut net = Network::<RwSet<u64>>::new(3, 1, |c| c).unwrap();
    let mut actors = actors(3);
    for n in 0..20 {
        net.node_mut(0).change(|set| set.add(&mut actors[0], n)).unwrap();
    }
    net.run(4);
    for n in 0..20 {
        net.node_mut(1).change(|set| set.remove(&mut actors[1], n)).unwrap();
    }
    assert_eq!(net.node(1).state().tombstones(), 20);
    net.run(12);
    for i in 0..3 {
        assert_eq!(net.node(i).state().tombstones(), 0, "node {i}");
        assert_eq!(net.node(i).state().elements().count(), 0);
    }
    let collected = |e: &(usize, Event)| matches!(e.1, Event::Collected(n) if n > 0);
    assert!(net.events().iter().any(collected));
    // And they can come back by a new addition.
    net.node_mut(2).change(|set| set.add(&mut actors[2], 5)).unwrap();
    net.converge(5).unwrap();
    assert!(net.node(0).state().contains(&5));
}

#[test]
fn c25_nothing_goes_while_a_member_is_away() {
    let mut net = Network::<RwSet<u64>>::new(3, 2, |c| c).unwrap();
    let mut actors = actors(3);
    net.node_mut(0).change(|set| set.add(&mut actors[0], 1)).unwrap();
    net.run(4);
    net.set_down(2, true);
    net.node_mut(0).change(|set| set.remove(&mut actors[0], 1)).unwrap();
    net.run(60);
    assert_eq!(net.node(0).state().tombstones(), 1, "two of three acknowledgements are not enough");
    // It comes back with what it had, and removes nothing of the removal.
    net.set_down(2, false);
    net.run(12);
    for i in 0..3 {
        assert!(!net.node(i).state().contains(&1), "node {i}");
        assert_eq!(net.node(i).state().tombstones(), 0, "node {i}");
    }
}

#[test]
fn l14_collection_is_invisible() {
    let sets = forgets_invisibly::<RwSet<u64>>(0..20, |s| format!("{:?}", s.elements().collect::<Vec<_>>()))
        .unwrap();
    let maps =
        forgets_invisibly::<LwwMap<u64, u64>>(0..20, |m| format!("{:?}", m.iter().collect::<Vec<_>>()))
            .unwrap();
    let nested = forgets_invisibly::<RwMap<u64, DotMap<u64, DotSet>>>(0..20, |m| {
        let keys = m.iter().map(|(key, set)| (*key, set.iter().map(|e| *e.0).collect::<Vec<_>>()));
        format!("{:?}", keys.collect::<Vec<_>>())
    });
    let all = [sets, maps, nested.unwrap()];
    assert!(all.iter().all(|n| *n > 20), "{all:?}: little was collected, so little was shown");
}

#[test]
fn c15_l14_no_wall_clock_and_no_storm_resurrects() {
    for seed in 1..=10_u64 {
        let mut net = Network::<RwSet<u64>>::new(3, seed, |c| c).unwrap();
        let (mut actors, rng) = (actors(3), SeededRng::new(seed));
        net.weather = Weather::STORM;
        let mut removed = BTreeSet::new();
        for n in 0..60_u64 {
            let at = rng.below(3) as usize;
            net.node_mut(at).change(|set| set.add(&mut actors[at], n)).unwrap();
            net.run(2);
            // Removed by somebody, never added again.
            let by = rng.below(3) as usize;
            net.node_mut(by).change(|set| set.remove(&mut actors[by], n)).unwrap();
            removed.insert(n);
        }
        net.converge(300).unwrap_or_else(|v| panic!("seed {seed}: {v}"));
        net.weather = Weather::CALM;
        net.run(20);
        for i in 0..3 {
            assert_eq!(net.node(i).state().elements().count(), 0, "seed {seed}, node {i}");
            assert_eq!(net.node(i).state().tombstones(), 0, "seed {seed}, node {i}");
        }
    }
}

/// Adds and removes by `authors` actors at three nodes, each of an epoch of its own: more than any datagram names.
fn written_by_many(net: &mut Network<RwSet<u64>>, authors: u64, rng: &SeededRng) {
    for author in 0..authors {
        let at = rng.below(3) as usize;
        let mut actor = Actor::new(ActorId::new(at as u64 + 1, author as u32 + 1, 7));
        net.node_mut(at).change(|set| set.add(&mut actor, author)).unwrap();
        net.round();
        net.node_mut(at).change(|set| set.remove(&mut actor, author)).unwrap();
    }
}

#[test]
fn l14_tombstones_of_any_number_of_authors_go_whatever_is_lost_meanwhile() {
    for (authors, seed) in [(40, 1), (150, 2), (400, 3)] {
        let mut net = Network::<RwSet<u64>>::new(3, seed, |c| c).unwrap();
        let rng = SeededRng::new(seed);
        net.weather = Weather::new(20, 10, 20);
        written_by_many(&mut net, authors, &rng);
        // Half of everything goes on being lost: nothing that is said once may be needed.
        net.weather = Weather::STORM;
        net.converge(600).unwrap_or_else(|v| panic!("{authors} authors: {v}"));
        net.run(120);
        for i in 0..3 {
            assert_eq!(net.node(i).state().elements().count(), 0, "{authors} authors, node {i}");
            assert_eq!(net.node(i).state().tombstones(), 0, "{authors} authors, node {i}");
        }
        // What was collected is told in as many messages as it takes.
        assert!(net.largest() <= 1_200, "{authors} authors: {} bytes", net.largest());
    }
}

#[test]
fn c14_c15_nobody_who_was_away_or_removed_brings_back_what_many_authors_removed() {
    let mut collected = 0;
    for seed in 1..=30_u64 {
        let mut net = Network::<RwSet<u64>>::new(3, seed, |c| c).unwrap();
        let rng = SeededRng::new(seed);
        net.weather = Weather::new(30, 20, 30);
        written_by_many(&mut net, 45, &rng);
        let away = rng.below(3) as usize;
        // It goes away with everything visible that was not told it; the others remove all there is, and go on.
        net.set_down(away, true);
        let mut late = Actor::new(ActorId::new(99, 1, seed as u32));
        let other = (away + 1) % 3;
        for n in 0..45 {
            net.node_mut(other).change(|set| set.remove(&mut late, n)).unwrap();
        }
        net.run(60);
        let gone = |net: &Network<RwSet<u64>>, i: usize| net.node(i).state().elements().count() == 0;
        if seed % 2 == 0 {
            // Comes back by itself: what it had not heard of was kept for it.
            net.set_down(away, false);
            net.converge(600).unwrap_or_else(|v| panic!("seed {seed}: {v}"));
        } else {
            // Was removed, and the others forgot: it is refused until it takes their state.
            for i in (0..3).filter(|i| *i != away) {
                net.node_mut(i).remove_member(away as u64 + 1);
            }
            net.run(120);
            assert_eq!(net.node(other).state().tombstones(), 0, "seed {seed}: two decide now");
            net.set_down(away, false);
            net.run(40);
            assert!((0..3).filter(|i| *i != away).all(|i| gone(&net, i)), "seed {seed}: resurrected");
            let full = net.node(other).state().clone();
            let _ = net.node_mut(away).rejoin(full);
            for i in (0..3).filter(|i| *i != away) {
                net.node_mut(i).add_member(away as u64 + 1);
            }
            net.converge(600).unwrap_or_else(|v| panic!("seed {seed}: {v}"));
        }
        net.run(160);
        for i in 0..3 {
            assert!(gone(&net, i), "seed {seed}, node {i}: resurrected");
            assert_eq!(net.node(i).state().tombstones(), 0, "seed {seed}, node {i}");
        }
        collected += net.events().iter().filter(|e| matches!(e.1, Event::Collected(_))).count();
    }
    assert!(collected > 60, "{collected}: little was collected, so little was shown");
}

#[test]
fn c5_a_collected_tombstone_kills_no_newer_write_and_revives_no_older_one() {
    let ((hlc, _), mut actors) = (clock(1_000), actors(3));
    let mut net = Network::<LwwMap<u64, u64>>::new(3, 4, |c| c).unwrap();
    net.node_mut(0).change(|map| map.set(&mut actors[0], &hlc, 7, 1)).unwrap();
    let old = net.node(0).state().clone();
    net.run(4);
    net.node_mut(1).change(|map| map.remove(&mut actors[1], &hlc, 7)).unwrap();
    net.run(12);
    assert!((0..3).all(|i| net.node(i).state().tombstones() == 0));
    // The old value, from a delayed copy of it.
    net.node_mut(2)
        .change(|map| {
            use mainstay_consistency::Join as _;
            let _ = map.join(&old)?;
            Ok(old.clone())
        })
        .unwrap();
    net.run(4);
    assert!((0..3).all(|i| net.node(i).state().get(&7).is_none()));
    net.node_mut(2).change(|map| map.set(&mut actors[2], &hlc, 7, 9)).unwrap();
    net.converge(5).unwrap();
    assert_eq!(net.node(0).state().get(&7), Some(&9));
}

#[test]
fn c14_a_removed_member_that_returns_is_refused_and_resynced() {
    let mut net = Network::<RwSet<u64>>::new(3, 6, |c| c).unwrap();
    let mut actors = actors(3);
    net.node_mut(0).change(|set| set.add(&mut actors[0], 1)).unwrap();
    net.run(4);
    // The third goes away with a change of its own that nobody saw.
    net.set_down(2, true);
    net.node_mut(2).change(|set| set.add(&mut actors[2], 66)).unwrap();
    for i in 0..2 {
        net.node_mut(i).remove_member(3);
    }
    net.node_mut(0).change(|set| set.remove(&mut actors[0], 1)).unwrap();
    net.run(12);
    assert_eq!(net.node(0).state().tombstones(), 0, "two members decide now");

    net.set_down(2, false);
    net.run(4);
    assert!(!net.node(0).state().contains(&66) && !net.node(0).state().contains(&1));
    assert!(net.events().contains(&(2, Event::Refused { peer: 1, removed: true })));
    assert!(net.events().iter().any(|(at, e)| *at < 2 && *e == Event::Returned { peer: 3 }));

    // It takes the cluster's state, learns what it lost, and is a member again, under a new epoch.
    let full = net.node(0).state().clone();
    let rejoined = net.node_mut(2).rejoin(full);
    assert_eq!(rejoined.lost.count(), 1);
    assert_eq!(rejoined.lost.top(actors[2].id()), 1);
    assert!(rejoined.before.contains(&66));
    for i in 0..2 {
        net.node_mut(i).add_member(3);
    }
    let mut reborn = Actor::new(ActorId::new(3, 2, 0));
    net.node_mut(2).change(|set| set.add(&mut reborn, 67)).unwrap();
    net.converge(10).unwrap();
    assert!(net.node(1).state().contains(&67) && !net.node(1).state().contains(&66));
}

#[test]
fn g4_deltas_that_everybody_has_are_dropped() {
    let mut net = Network::<RwSet<u64>>::new(3, 6, |c| c).unwrap();
    let mut actors = actors(3);
    for n in 0..200 {
        net.node_mut(0).change(|set| set.add(&mut actors[0], n)).unwrap();
        net.round();
    }
    net.run(6);
    assert!((0..3).all(|i| net.node(i).log_len() == 0));
}
