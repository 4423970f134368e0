//! The load-aware loop and the advice.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay_clock::{Instant, Rng, SeededRng};
use mainstay_partition::advise::{Choice, Constraints, Purpose, System, advise, simulate};
use mainstay_partition::slots::{Action, Planner, SlotHash, SlotMap, Steer, SteerConfig};
use mainstay_partition::{ErrorKind, MAX_NODES, MAX_POINTS, Node, Place as _, Spread};

fn fleet(n: usize) -> Vec<Node> {
    (0..n).map(|i| Node::new(format!("n{i:04}"))).collect()
}

fn map(slots: usize, nodes: usize) -> SlotMap {
    let empty = SlotMap::builder(1).slots(slots).build().unwrap();
    Planner::new(&empty).target(fleet(nodes)).solve().unwrap().next().clone()
}

fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

#[test]
fn m_h4_a_load_that_swings_moves_nothing_twice_and_stays_within_the_budget() {
    let mut current = map(4096, 8);
    let mut steer = Steer::new(SteerConfig::new().moves_per_minute(30)).unwrap();
    let rng = SeededRng::new(7);
    let home: Vec<u32> = (0..4096).map(|s| current.replicas(s)[0].get()).collect();
    let mut moves: Vec<(u64, usize)> = Vec::new();
    for second in (0..3600).step_by(10) {
        // Every half minute another node's slots are hot: following it would never end.
        let hot = u32::try_from(second / 30 % 8).unwrap();
        let load: Vec<f64> =
            home.iter().map(|n| if *n == hot { 4.0 } else { 1.0 } * (0.9 + 0.2 * rng.unit())).collect();
        if let Action::Move(plan) = steer.observe(&current, &load, at(second)).unwrap() {
            moves.extend(plan.moves().iter().map(|m| (second, m.slot)));
            current = plan.next().clone();
        }
    }
    for start in (0..3600).step_by(60) {
        let minute = moves.iter().filter(|(t, _)| (start..start + 60).contains(t)).count();
        assert!(
            minute <= 60,
            "{minute} moves in the minute from {start}: the budget and one minute's savings"
        );
    }
    assert!(moves.len() <= 30 * 60 + 30, "{} in an hour", moves.len());
    let mut last: BTreeMap<usize, u64> = BTreeMap::new();
    for (t, slot) in moves {
        if let Some(before) = last.insert(slot, t) {
            assert!(t - before >= 600, "slot {slot} moved at {before} and at {t}");
        }
    }
}

#[test]
fn m_h4_a_spike_moves_nothing_and_a_lasting_load_is_evened_out_and_then_left_alone() {
    let mut current = map(4096, 4);
    let even = vec![1.0; 4096];
    let hot: Vec<f64> =
        (0..4096).map(|s| if current.replicas(s)[0].get() == 0 { 3.0 } else { 1.0 }).collect();
    let mut steer = Steer::new(SteerConfig::new().moves_per_minute(600)).unwrap();
    for (second, load) in
        [(0, &even), (10, &hot), (20, &hot), (30, &even), (40, &even), (50, &hot), (60, &even)]
    {
        assert!(matches!(steer.observe(&current, load, at(second)).unwrap(), Action::Rest), "at {second}");
    }
    let (mut moved, mut quiet) = (0, 0);
    for second in (70..3000).step_by(10) {
        match steer.observe(&current, &hot, at(second)).unwrap() {
            Action::Move(plan) => {
                moved += plan.moves().len();
                current = plan.next().clone();
                quiet = 0;
            }
            _ => quiet += 1,
        }
    }
    let worst = steer.nodes(&current).into_iter().map(|(_, r)| r).fold(0.0, f64::max);
    // Moving ends at the goal by the loads as smoothed then; they still settle, by less than one hot slot.
    let share = hot.iter().sum::<f64>() / 4.0;
    assert!(worst <= 1.1 + 3.0 / share, "{worst}");
    // Half of the load is on one node, whose share is a quarter: a good part of it must go, once.
    assert!((300..700).contains(&moved), "{moved}");
    assert!(quiet > 100, "and then it rests");
}

#[test]
fn m_h4_what_the_rules_demand_keeps_the_budget_and_no_replica_is_given_up() {
    let zoned = || (0..4).map(|i| Node::new(format!("n{i:04}")).zone(format!("z{}", i % 2)));
    // All replicas of the first slots stand in one zone, and one node is hot.
    let with = |crowded: usize| {
        SlotMap::builder(1)
            .slots(4096)
            .nodes(zoned())
            .replicas(|slot| {
                let other = if slot < crowded { slot + 2 } else { slot + 1 };
                [slot % 4, other % 4].map(|n| format!("n{n:04}").into()).to_vec()
            })
            .build()
            .unwrap()
    };
    let hot = |map: &SlotMap| -> Vec<f64> {
        let holds = |s: usize| map.replicas(s).iter().any(|n| n.get() == 0);
        (0..4096).map(|s| if holds(s) { 5.0 } else { 1.0 }).collect()
    };
    let steer = |rf| {
        let config = SteerConfig::new().hold(1).rules(rf, Spread::Hard { min: rf }).moves_per_minute(30);
        Steer::new(config).unwrap()
    };
    // More than the budget is nobody's to move behind a person's back.
    let broken = with(100);
    match steer(2).observe(&broken, &hot(&broken), at(1)).unwrap() {
        Action::Repair { replicas } => assert_eq!(replicas, 100),
        other => panic!("{other:?}"),
    }
    // What fits is part of the budget.
    for crowded in [10, 30] {
        let broken = with(crowded);
        let Action::Move(plan) = steer(2).observe(&broken, &hot(&broken), at(1)).unwrap() else {
            panic!("{crowded} fit")
        };
        // A move that only trades two replicas of a crowded slot is paid for and copies nothing.
        assert!((20..=30).contains(&plan.moves().len()), "{} moves, {crowded} demanded", plan.moves().len());
        assert!(plan.removals().is_empty());
        let repaired = plan.moves().iter().filter(|m| m.slot < crowded).count();
        assert!(repaired >= crowded, "{repaired} of {crowded}");
    }
    // With fewer replicas than the map has, the others would go.
    let whole = with(0);
    let error = steer(1).observe(&whole, &hot(&whole), at(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let text = std::error::Error::source(&error).unwrap().to_string();
    assert!(text.contains("rf is `1`; allowed: at least 2, the replicas of slot 0"), "{text}");
}

#[test]
fn a_slot_that_no_node_can_hold_is_split_until_it_cannot_be() {
    let mut current = map(4096, 8);
    let mut load = vec![1.0; 4096];
    load[5] = 4096.0;
    let mut steer = Steer::new(SteerConfig::new().hold(1)).unwrap();
    let mut second = 0;
    let mut moved = 0;
    loop {
        second += 60;
        match steer.observe(&current, &load, at(second)).unwrap() {
            Action::Move(plan) => {
                moved += plan.moves().len();
                current = plan.next().clone();
            }
            Action::Split(slots) => {
                assert_eq!(slots, [5]);
                let hot = steer.hot_slots(&current);
                assert!(hot[0].slot == 5 && hot[0].of_share > 1.0, "{hot:?}");
                break;
            }
            other => assert!(second < 6000, "{other:?}"),
        }
    }
    assert!(moved > 0, "what can move away from it does first");
    let twice = current.split().unwrap();
    assert_eq!((twice.slots(), twice.epoch()), (8192, current.epoch() + 1));
    for i in 0..2000 {
        let key = format!("key {i}");
        let id = |m: &SlotMap| m.nodes()[m.owner(key.as_bytes()).unwrap()].id.clone();
        assert_eq!(id(&twice), id(&current), "nothing moves");
    }
    let full = map(65536, 2);
    assert_eq!(full.split().unwrap_err().kind(), ErrorKind::Config);
    let redis = SlotMap::builder(1).hash(SlotHash::Redis).nodes(fleet(2)).build().unwrap();
    assert_eq!(redis.split().unwrap_err().kind(), ErrorKind::Config);
}

#[test]
fn bad_input_is_refused_naming_the_item() {
    let config = |c: SteerConfig| Steer::new(c).unwrap_err().field();
    assert_eq!(config(SteerConfig::new().band(1.3, 1.2)), "band");
    assert_eq!(config(SteerConfig::new().band(f64::NAN, 1.2)), "band");
    assert_eq!(config(SteerConfig::new().hold(0)), "hold");
    assert_eq!(config(SteerConfig::new().smoothing(0.0)), "smoothing");
    assert_eq!(config(SteerConfig::new().moves_per_minute(0)), "moves_per_minute");
    let map = map(4096, 2);
    let mut steer = Steer::new(SteerConfig::new()).unwrap();
    assert_eq!(steer.observe(&map, &[1.0], at(1)).unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(steer.observe(&map, &vec![f64::NAN; 4096], at(1)).unwrap_err().kind(), ErrorKind::Config);
    let mut strict = Steer::new(SteerConfig::new().hold(1).rules(3, Spread::Any)).unwrap();
    let mut load = vec![1.0; 4096];
    (0..4096).filter(|s| map.replicas(*s)[0].get() == 0).for_each(|s| load[s] = 9.0);
    let error = strict.observe(&map, &load, at(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooFewNodes { have: 2, need: 3 });
    for bad in [
        Constraints::new(Purpose::Cache, 0),
        Constraints::new(Purpose::Cache, 2).replicas(3),
        Constraints::new(Purpose::Cache, 2).replicas(0),
        Constraints::new(Purpose::Cache, 5).replicas(2).zones(3),
    ] {
        assert_eq!(advise(&bad).unwrap_err().kind(), ErrorKind::Config, "{bad:?}");
    }
    let ring = Choice::Ring { points: 160 };
    assert_eq!(simulate(&ring, &fleet(2), &fleet(3), 0).unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(simulate(&ring, &fleet(2), &fleet(3), u64::MAX).unwrap_err().kind(), ErrorKind::Config);
    let even = simulate(&Choice::Maglev { table: 65536 }, &fleet(2), &fleet(3), 10).unwrap_err();
    assert_eq!(even.kind(), ErrorKind::Config);
}

#[test]
fn advice_follows_the_decision_table_and_says_why() {
    use Choice::{JumpBack, Maglev, Rendezvous, RendezvousByZone, Ring, Slots};
    use Purpose::{Cache, OwnData, Traffic};
    let cases = [
        (Constraints::new(OwnData, 12).replicas(3).zones(3), Slots { slots: 16384 }),
        (Constraints::new(OwnData, 3000), Slots { slots: 65536 }),
        (Constraints::new(OwnData, 12).no_shared_map(), Rendezvous),
        (Constraints::new(Cache, 500).no_shared_map(), Ring { points: 160 }),
        (Constraints::new(Cache, 64).replicas(2).zones(2).unequal(), RendezvousByZone),
        (Constraints::new(Traffic, 200), Maglev { table: 65537 }),
        (Constraints::new(Traffic, 2000), Maglev { table: 655_373 }),
        (Constraints::new(Traffic, 200).replicas(2), Ring { points: 160 }),
        (Constraints::new(Cache, 200).numbered(), JumpBack),
        (Constraints::new(Cache, 200).numbered().unequal(), Ring { points: 160 }),
    ];
    for (constraints, choice) in cases {
        let answer = advise(&constraints).unwrap();
        assert_eq!(answer.choice.as_ref(), Some(&choice), "{constraints:?}");
        assert!(!answer.reasons.is_empty() && answer.rejected.len() >= 4, "{answer:?}");
        assert!(answer.choice.unwrap().build(&fleet(constraints_nodes(&choice))).is_ok());
    }
    let redis = advise(&Constraints::new(Cache, 6).agree_with(System::Redis).hostile_keys()).unwrap();
    assert_eq!((redis.choice, redis.profile, redis.keyed), (None, Some("compat::redis_slots"), false));
    let hot = advise(&Constraints::new(Cache, 300).hot_keys().hostile_keys()).unwrap();
    assert!(hot.bounded && hot.keyed);
    assert_eq!(hot.to_string(), "ring, 160 points under bounded loads, keyed hash");
}

/// Enough nodes to build it with.
fn constraints_nodes(choice: &Choice) -> usize {
    if matches!(choice, Choice::Slots { .. }) { 12 } else { 60 }
}

#[test]
fn advice_can_be_built_for_any_fleet_or_is_refused() {
    for nodes in [10_001, 104_857, 104_858, 300_000] {
        let answer = advise(&Constraints::new(Purpose::Cache, nodes).no_shared_map()).unwrap();
        let Some(Choice::Ring { points }) = answer.choice else { panic!("{answer:?}") };
        assert!(points as usize * nodes <= MAX_POINTS && points > 0, "{points} points for {nodes} nodes");
        assert!(answer.limits[0].ends_with(&format!("at {points} points")), "{:?}", answer.limits);
    }
    let choice = advise(&Constraints::new(Purpose::Cache, 104_858).no_shared_map()).unwrap().choice.unwrap();
    assert!(choice.build(&fleet(104_858)).is_ok());
    for purpose in [Purpose::OwnData, Purpose::Cache, Purpose::Traffic] {
        let error = advise(&Constraints::new(purpose, usize::MAX)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(advise(&Constraints::new(purpose, MAX_NODES)).is_ok());
    }
}

#[test]
fn f7_simulation_shows_what_maglev_moves_before_it_is_used() {
    // The sheet, at a table of 65537: 1.03 / 1.6 times the ideal at 10 / 100 nodes.
    for (nodes, low, high) in [(10, 1.0, 1.2), (100, 1.35, 1.9)] {
        let s =
            simulate(&Choice::Maglev { table: 65537 }, &fleet(nodes), &fleet(nodes + 1), 200_000).unwrap();
        let multiple = s.multiple().unwrap();
        assert!((low..high).contains(&multiple), "{nodes}: {multiple}");
        assert!(s.needless > 0.0 || nodes == 10);
    }
    let ring = simulate(&Choice::Ring { points: 160 }, &fleet(100), &fleet(101), 200_000).unwrap();
    assert_eq!(ring.needless, 0.0);
    let slots = simulate(&Choice::Slots { slots: 16384 }, &fleet(100), &fleet(101), 200_000).unwrap();
    assert!(slots.needless == 0.0 && (0.9..1.1).contains(&slots.multiple().unwrap()), "{slots:?}");
}

#[test]
fn f8_s5_the_smallest_share_is_always_reported() {
    let s = simulate(&Choice::Ring { points: 160 }, &fleet(100), &fleet(100), 1000).unwrap();
    // The sheet: 1.28 and 0.82 at 100 nodes.
    assert!((1.2..1.4).contains(&s.max_over_mean) && (0.7..0.9).contains(&s.min_over_mean), "{s:?}");
    assert_eq!((s.moved, s.ideal, s.multiple()), (0.0, 0.0, None));
    assert_eq!(s.after.len(), 100);
}

#[test]
fn removal_and_drain_are_simulated_too() {
    let mut drained = fleet(10);
    drained[3].weight = 0;
    for choice in [Choice::Ring { points: 160 }, Choice::Slots { slots: 4096 }, Choice::Rendezvous] {
        for after in [drained.clone(), fleet(9)] {
            let s = simulate(&choice, &fleet(10), &after, 50_000).unwrap();
            assert!((s.ideal - 0.1).abs() < 1e-9, "{}", s.ideal);
            assert!((0.07..0.13).contains(&s.moved), "{choice}: {}", s.moved);
            assert_eq!(s.needless, 0.0, "{choice}");
        }
    }
    let rest = SteerConfig::new().rest(Duration::ZERO);
    assert!(Steer::new(rest).is_ok());
}
