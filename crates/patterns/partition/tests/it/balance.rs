//! Shares: what balance to expect, and that nobody starves unseen.

use mainstay_partition::{Bounded, Load, Maglev, Node, NodeIdx, Place, Ring, Warning};

use crate::fleet::{Seeded, key, maglev, nodes, rendezvous, ring, slots};

/// Counts per node of so many hashed keys.
fn counts(place: &dyn Place, keys: u64) -> Vec<u64> {
    let mut counts = vec![0; place.nodes().len()];
    let mut rng = Seeded(1);
    for _ in 0..keys {
        counts[place.owner_of_hash(rng.next()).unwrap().as_usize()] += 1;
    }
    counts
}

#[test]
fn s5_shares_at_150_points_are_reported_both_ways() {
    // Names decide where in the band a fleet falls; the sheet measured 1.09 to 1.35 at 150 points.
    for n in [10, 100, 1000] {
        let shares = Ring::builder().textbook().nodes(nodes(n)).build().unwrap().shares();
        assert!((1.05..1.45).contains(&shares.max_over_mean()), "{n}: {}", shares.max_over_mean());
        assert!((0.6..0.97).contains(&shares.min_over_mean()), "{n}: {}", shares.min_over_mean());
    }
    let fine = Ring::builder().points(500).nodes(nodes(100)).build().unwrap().shares();
    assert!(fine.max_over_mean() < 1.2, "{}", fine.max_over_mean());
}

#[test]
fn shares_are_the_measured_ones() {
    let place = ring(nodes(20));
    let shares = place.shares();
    let keys = 200_000;
    for (at, count) in counts(&place, keys).into_iter().enumerate() {
        let share = shares.of(NodeIdx::new(at as u32));
        assert!((count as f64 / keys as f64 - share).abs() < 0.003, "node {at}");
    }
}

#[test]
fn b2_seventy_thousand_nodes_each_get_a_share() {
    let many = Ring::builder().points(4).nodes(nodes(70_000)).build().unwrap();
    let shares = many.shares();
    assert!(shares.as_slice().iter().all(|s| *s > 0.0));
    assert!(shares.as_slice()[65_536..].iter().sum::<f64>() > 0.05);
    let mut beyond = 0;
    let mut rng = Seeded(2);
    for _ in 0..20_000 {
        beyond += u32::from(many.owner_of_hash(rng.next()).unwrap().get() > 65_535);
    }
    assert!(beyond > 900, "{beyond} of 20000 keys beyond node 65535");
    let table = Maglev::builder().table(1_048_573).nodes(nodes(70_000)).build().unwrap();
    assert!(table.shares().min_over_mean() > 0.8);
}

#[test]
fn b17_balance_is_at_the_noise_level() {
    for place in [Box::new(rendezvous(nodes(10))) as Box<dyn Place>, Box::new(maglev(nodes(10)))] {
        let counts = counts(&*place, 1_000_000);
        let max = *counts.iter().max().unwrap() as f64 / 100_000.0;
        assert!(max < 1.0 + 4.0 * (1.0 / 100_000.0_f64).sqrt(), "{max}");
    }
    assert_eq!(slots(nodes(16), 1).shares().max_over_mean(), 1.0);
}

#[test]
fn b15_points_of_a_ring_are_where_chance_would_put_them() {
    // The largest of ten shares of 150 random points each is 1.13 times the mean in the middle, and hardly ever 1.35.
    for n in [10, 100] {
        let shares = Ring::builder().textbook().nodes(nodes(n)).build().unwrap().shares();
        assert!(shares.max_over_mean() < 1.35 && shares.min_over_mean() > 0.7, "{n}: {shares:?}");
    }
}

#[test]
fn f8_the_smallest_share_is_always_there() {
    let starved = Ring::builder().points(1).nodes(nodes(100)).build().unwrap();
    assert!(starved.shares().min_over_mean() < 0.1);
    let table = Maglev::builder().nodes([Node::new("a").weight(1_000), Node::new("b")]).build().unwrap();
    assert!(table.shares().min_over_mean() > 0.9);
}

#[test]
fn f7_maglev_moves_more_than_it_must() {
    // 1.03 to 10 times the ideal, growing with the nodes: that is why it is not for data.
    let factor = |n: usize| {
        let (before, after) = (maglev(nodes(n)), maglev(nodes(n + 1)));
        let keys = 40_000_u64;
        let mut rng = Seeded(3);
        let moved = (0..keys)
            .map(|_| rng.next())
            .filter(|h| {
                let name = |m: &Maglev| m.nodes()[m.owner_of_hash(*h).unwrap()].id.clone();
                name(&before) != name(&after)
            })
            .count();
        moved as f64 / (keys as f64 / (n + 1) as f64)
    };
    let (ten, hundred) = (factor(10), factor(100));
    assert!((1.0..1.4).contains(&ten), "{ten}");
    assert!(hundred > ten && hundred < 3.5, "{hundred}");
}

#[test]
fn u1_few_points_are_warned_of() {
    let meager = Ring::builder().points(3).nodes(nodes(10)).build().unwrap();
    let warnings = meager.warnings();
    assert_eq!(warnings.len(), 10);
    assert!(matches!(warnings[0], Warning::FewPoints { points: 3, .. }));
    assert!(warnings[0].to_string().contains("58%"), "{}", warnings[0]);
    assert!(ring(nodes(10)).warnings().is_empty());
    let small = Maglev::builder().table(251).nodes(nodes(10)).build().unwrap();
    assert_eq!(small.warnings(), [Warning::SmallTable { size: 251, nodes: 10 }]);
}

#[test]
fn f17_a_dead_nodes_keys_spread_over_many() {
    let place = ring(nodes(20));
    let dead = NodeIdx::new(7);
    let mut heirs = [0_u32; 20];
    for i in 0..20_000 {
        if place.owner(&key(i)) == Some(dead) {
            heirs[place.owners(&key(i)).healthy(|n| n != dead).next().unwrap().as_usize()] += 1;
        }
    }
    let all: u32 = heirs.iter().sum();
    assert!(heirs.iter().filter(|n| **n > 0).count() >= 18);
    assert!(heirs.iter().all(|n| *n * 4 < all), "{heirs:?}");
}

#[test]
fn rendezvous_by_zone_gives_each_zone_its_weight_and_names_do_not_interfere() {
    // A node named like its zone gets no more than its part.
    let list = ["a", "b", "c"]
        .into_iter()
        .flat_map(|z| [Node::new(z).zone(z), Node::new(format!("{z}-2")).zone(z).weight(2)]);
    let place = mainstay_partition::Rendezvous::builder().nodes(list).by_zone().build().unwrap();
    let keys = 90_000;
    for (at, count) in counts(&place, keys).into_iter().enumerate() {
        let want = place.shares().of(NodeIdx::new(at as u32)) * keys as f64;
        assert!((count as f64 - want).abs() < 5.0 * want.sqrt(), "node {at}: {count}, not {want}");
    }
}

#[test]
fn hot_keys_are_bounded_and_cold_ones_stay() {
    // One tenth of the calls asks for one key; without a bound its owner would carry more than 3 times the mean.
    let n = 30;
    let bounded = Bounded::new(ring(nodes(n)), Load::default()).unwrap();
    let mut rng = Seeded(9);
    let mut open = std::collections::VecDeque::new();
    let (mut spilled, mut worst) = (0_u32, 0.0_f64);
    for call in 0..20_000_usize {
        let id = if rng.below(10) == 0 { 0 } else { rng.below(5_000) as usize };
        let lease = bounded.acquire(&key(id)).unwrap();
        spilled += u32::from(lease.spilled() > 0);
        open.push_back(lease);
        if open.len() > n * 20 {
            open.pop_front();
        }
        if call > n * 40 {
            let max = bounded.nodes().iter().map(|(i, _)| bounded.in_flight(i)).max().unwrap();
            worst = worst.max(max as f64 / (open.len() as f64 / n as f64));
        }
    }
    assert!(worst <= 1.31, "in-flight max/mean {worst}");
    assert!(spilled > 500);
}
