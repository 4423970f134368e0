//! The `crdts` crate: what the laws find in its map, and what its set and counters agree on with ours.

use crdts::{CmRDT, CvRDT, Orswot};
use mainstay_clock::{Rng, SeededRng};
use mainstay_consistency::Join as _;
use mainstay_consistency::crdt::{AwMap, AwSet, DotFun};
use mainstay_consistency::laws::{self, Profile};

use crate::actor;
use crate::theirs::Theirs;

#[test]
fn c1_the_harness_finds_the_divergence_of_the_known_map_quickly() {
    // The second of the goal is far more schedules than these, which take a debug build less of it.
    let violation = laws::check::<Theirs>(Profile::batch(1, 100)).unwrap_err();
    println!("{violation}");
    assert!(!violation.schedule.is_empty());
}

/// r2 writes 168; r0 sees it and writes 17; r1, having seen only r0's first write, removes.
#[test]
fn c1_one_result_whatever_the_order() {
    let (mut at0, mut at1, mut at2) = (actor(1), actor(2), actor(3));
    let mut r0: AwMap<u8, DotFun<u64>> = AwMap::new();
    let write = |map: &mut AwMap<u8, DotFun<u64>>, at: &mut mainstay_consistency::Actor, n| {
        map.update(at, 7, |register, mint| register.write_value(mint, n)).unwrap()
    };
    let first = write(&mut r0, &mut at0, 1);
    let mut r1 = AwMap::new();
    let _ = r1.join(&first).unwrap();
    let mut r2 = AwMap::new();
    let early = write(&mut r2, &mut at2, 168);
    let _ = r0.join(&early).unwrap();
    let late = write(&mut r0, &mut at0, 17);
    let removed = r1.remove(&mut at1, &7).unwrap();
    let deltas = [&first, &early, &late, &removed];
    let mut results = Vec::new();
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]] {
        let mut map: AwMap<u8, DotFun<u64>> = AwMap::new();
        for i in order {
            let _ = map.join(deltas[i]).unwrap();
        }
        results.push(map);
    }
    assert!(results.windows(2).all(|w| w[0] == w[1]), "{results:?}");
    assert!(results[0].get(&7).unwrap().values().eq(&[17]));
}

#[test]
fn the_add_wins_set_agrees_with_the_known_one() {
    for seed in 0..60_u64 {
        let rng = SeededRng::new(seed);
        let mut actors = [actor(1), actor(2), actor(3)];
        let mut ours: [AwSet<u64>; 3] = Default::default();
        let mut theirs: [Orswot<u64, u64>; 3] = Default::default();
        for _ in 0..80 {
            let (at, from, n) = (rng.below(3) as usize, rng.below(3) as usize, rng.below(6));
            match rng.below(4) {
                0 | 1 => {
                    let _ = ours[at].add(&mut actors[at], n).unwrap();
                    let context = theirs[at].read_ctx().derive_add_ctx(at as u64);
                    let change = theirs[at].add(n, context);
                    theirs[at].apply(change);
                }
                2 => {
                    let _ = ours[at].remove(&mut actors[at], &n).unwrap();
                    let context = theirs[at].contains(&n).derive_rm_ctx();
                    let change = theirs[at].rm(n, context);
                    theirs[at].apply(change);
                }
                _ => {
                    let other = ours[from].clone();
                    let _ = ours[at].join(&other).unwrap();
                    let other = theirs[from].clone();
                    theirs[at].merge(other);
                }
            }
            let mut elements: Vec<u64> = theirs[at].read().val.into_iter().collect();
            elements.sort_unstable();
            assert!(ours[at].elements().eq(&elements), "seed {seed}");
        }
    }
}
