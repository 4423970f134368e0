//! The catalogue of what went wrong elsewhere, one test per id: the sketch (S), crates (B), the field (F) and
//! users (U). Ids about balance, load, memory, laws and other systems stand in the modules of those names.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_partition::slots::{SlotMap, SlotMapBuilder};
use mainstay_partition::{
    ConfigError, ErrorKind, Hash, Jump, JumpKind, MAX_POINTS, Maglev, Node, NodeIdx, Place, Rendezvous, Ring,
    Spread, jump, jump_back, jump_guava,
};

use crate::fleet::{
    Seeded, every, key, maglev, mixed, nodes, owner_name, owner_names, rendezvous, ring, slots,
};

#[test]
fn s1_b11_an_empty_fleet_answers_none() {
    let empty: Vec<Box<dyn Place>> = vec![
        Box::new(ring(vec![])),
        Box::new(rendezvous(vec![])),
        Box::new(Rendezvous::builder().by_zone().build().unwrap()),
        Box::new(maglev(vec![])),
        Box::new(SlotMap::builder(1).build().unwrap()),
        Box::new(mainstay_partition::compat::nginx().build().unwrap()),
        Box::new(mainstay_partition::compat::haproxy().build().unwrap()),
        Box::new(mainstay_partition::compat::envoy_ring(1024, 8_388_608).build().unwrap()),
        Box::new(mainstay_partition::compat::envoy_maglev(65_537).build().unwrap()),
        Box::new(mainstay_partition::compat::cassandra_murmur3().build().unwrap()),
    ];
    for place in empty {
        assert_eq!(place.owner(b"k"), None, "{place:?}");
        assert_eq!(place.owners(b"k").next(), None);
        assert_eq!(place.shares().as_slice(), &[] as &[f64]);
        let error = place.owners(b"k").pick(1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooFewNodes { have: 0, need: 1 });
    }
    let error = Jump::builder().shards(0).build().unwrap_err();
    assert_eq!((error.field(), error.value()), ("nodes", "0"));
}

#[test]
fn s2_a_lookup_looks_at_a_handful_of_points_whatever_the_size() {
    // The figure is a gate of the bench; its cause is that the index leaves at most a few points to look at.
    for n in [10, 100, 1000] {
        let place = Ring::builder().textbook().nodes(nodes(n)).build().unwrap();
        let longest = place.longest_scan();
        assert!(longest <= 3 * 8, "{n} nodes: {longest}");
        // One line at once; in a bucket that does not fit one, its points are halved.
        let looks = if longest <= 16 { 1 } else { 1 + u32::BITS - longest.leading_zeros() };
        assert!(looks <= 6, "{n} nodes: {looks} looks");
    }
}

#[test]
fn s3_nodes_whose_32_bit_points_collide_keep_all_of_theirs() {
    // 64-bit points of a thousand nodes do not coincide, so removing one touches no other. (Those that do: `points.rs`.)
    let all = ring(nodes(1_000));
    let mut rest = nodes(1_000);
    rest.remove(261);
    let fewer = ring(rest);
    assert_eq!((all.points(), fewer.points()), (160_000, 159_840));
    let kept = all.shares();
    let now = fewer.shares();
    assert!((0..261).all(|i| now.of(NodeIdx::new(i)) >= kept.of(NodeIdx::new(i)) - 1e-12));
}

#[test]
fn s4_weights_replicas_bounds_and_epochs_combine() {
    let map = slots(mixed(6), 3);
    assert_eq!(map.epoch(), 1);
    let bounded = mainstay_partition::Bounded::new(map, mainstay_partition::Load::default()).unwrap();
    let held: Vec<_> = (0..9).map(|_| bounded.acquire(b"k").unwrap()).collect();
    let nodes: BTreeSet<_> = held.iter().map(mainstay_partition::Lease::node).collect();
    assert!(nodes.len() > 1);
    let replicas = bounded.place().owners(b"k").spread(Spread::Hard { min: 3 }).pick(3).unwrap();
    assert!(nodes.iter().all(|n| replicas.contains(n)));
}

#[test]
fn s6_a_secret_decides_who_owns_a_key() {
    let keyed = |secret| Ring::builder().nodes(nodes(10)).hash(Hash::keyed(secret)).build().unwrap();
    let (a, b) = (keyed([1; 16]), keyed([2; 16]));
    // Keys chosen to hit one node under the default or another secret say nothing about this one.
    let public = ring(nodes(10));
    let aimed: Vec<usize> = (0..4_000).filter(|i| public.owner(&key(*i)) == Some(NodeIdx::new(3))).collect();
    for place in [&a, &b] {
        let hit = aimed.iter().filter(|i| place.owner(&key(**i)) == Some(NodeIdx::new(3))).count();
        assert!(hit * 4 < aimed.len(), "{hit} of {}", aimed.len());
    }
    assert_ne!(a.fingerprint(), b.fingerprint());
    assert!(!format!("{a:?}").contains("1, 1, 1"), "a secret does not print");
}

#[test]
fn s7_a_node_twice_is_refused() {
    let twice = || [Node::new("a"), Node::new("b"), Node::new("a")];
    let errors: Vec<ConfigError> = vec![
        Ring::builder().nodes(twice()).build().unwrap_err(),
        Rendezvous::builder().nodes(twice()).build().unwrap_err(),
        Maglev::builder().nodes(twice()).build().unwrap_err(),
        Jump::builder().nodes(twice()).build().unwrap_err(),
        SlotMap::builder(1).nodes(twice()).build().unwrap_err(),
        mainstay_partition::compat::nginx().server("a", 1).server("a", 1).build().unwrap_err(),
    ];
    for error in errors {
        assert_eq!((error.value(), error.allowed().contains("once")), ("a", true), "{error}");
    }
}

#[test]
fn s8_a_key_named_like_a_node_does_not_follow_it() {
    // With one domain the key "node-00007" would sit on that node's own point.
    let list = nodes(500);
    let place = ring(list.clone());
    let own = list
        .iter()
        .filter(|n| owner_name(&place, n.id.as_str().as_bytes()).as_deref() == Some(n.id.as_str()));
    assert!(own.count() < 10);
    assert_ne!(Hash::default().key(b"a"), Hash::default().node("a"));
    assert_ne!(Hash::keyed([3; 16]).key(b"a"), Hash::keyed([3; 16]).node("a"));
}

#[test]
fn b1_ten_thousand_nodes_in_reverse_are_the_same_fleet() {
    let list = nodes(10_000);
    let forward = Ring::builder().points(20).nodes(list.clone()).build().unwrap();
    let backward = Ring::builder().points(20).nodes(list.into_iter().rev()).build().unwrap();
    assert_eq!(forward.fingerprint(), backward.fingerprint());
    let mut rng = Seeded(11);
    for _ in 0..50_000 {
        let hash = rng.next();
        assert_eq!(forward.owner_of_hash(hash), backward.owner_of_hash(hash));
    }
    let grown = Ring::builder().points(20).nodes(nodes(10_001)).build().unwrap();
    for _ in 0..50_000 {
        let hash = rng.next();
        let (old, new) = (forward.owner_of_hash(hash).unwrap(), grown.owner_of_hash(hash).unwrap());
        assert!(old == new || new.get() == 10_000);
    }
}

#[test]
fn b1_circles_of_32_bits_decide_ties_by_the_list() {
    // With 160 points of 10,000 names some coincide; the server that stands first has them.
    let names: Vec<String> = (0..10_000).map(|i| format!("10.{}.{}.1:80", i / 256, i % 256)).collect();
    let build = |names: &[String]| {
        names
            .iter()
            .fold(mainstay_partition::compat::nginx(), |b, n| b.server(n.as_str(), 1))
            .build()
            .unwrap()
    };
    let place = build(&names);
    assert!(place.points() < 1_600_000, "{} points: nothing coincides", place.points());
    assert_eq!(place.fingerprint(), build(&names).fingerprint());
}

#[test]
fn b3_u2_weights_that_overflow_are_refused_by_name() {
    let heavy = |weight| [Node::new("a").weight(weight), Node::new("b")];
    for weight in [26_843_546, u32::MAX] {
        let error = Ring::builder().nodes(heavy(weight)).build().unwrap_err();
        assert_eq!((error.field(), error.value()), ("nodes.weight", format!("{weight} of a").as_str()));
        assert!(error.allowed().contains("points"), "{error}");
        let error = Ring::builder().points(u32::MAX).nodes(heavy(weight)).build().unwrap_err();
        assert!(error.allowed().contains("points"), "{error}");
        let nginx = mainstay_partition::compat::nginx().server("a", weight).build().unwrap_err();
        assert_eq!(nginx.field(), "server.weight");
    }
    // In a larger unit the same proportion is fine, and a tiny weight keeps a point.
    let place = Ring::builder().weight_unit(26_843_546).nodes(heavy(26_843_546)).build().unwrap();
    assert_eq!(place.points(), 161);
    assert!(place.shares().as_slice()[1] > 0.0);
    let beyond = Ring::builder().points(MAX_POINTS as u32 + 1).nodes([Node::new("a")]).build().unwrap_err();
    assert_eq!(beyond.field(), "nodes.weight", "{beyond}");
    assert_eq!(rendezvous(heavy(u32::MAX).to_vec()).owners(b"k").count(), 2);
}

#[test]
fn u2_a_tiny_weight_still_gets_an_entry() {
    let list = [Node::new("a").weight(u32::MAX), Node::new("b").weight(1)];
    let shares = maglev(list.to_vec()).shares();
    assert_eq!(shares.of(NodeIdx::new(1)), 1.0 / 65_537.0);
}

#[test]
fn b4_the_walk_over_owners_ends() {
    for (name, place) in every(&mixed(3)) {
        assert!((0..1_000).all(|i| place.owners(&key(i)).count() == 3), "{name}");
    }
}

#[test]
fn b7_three_replicas_of_three_nodes_are_three_and_one_that_leaves_takes_no_points_of_others() {
    for (name, place) in every(&mixed(3)) {
        for i in 0..1_000 {
            let three = place.owners(&key(i)).pick(3).unwrap();
            assert_eq!(three.iter().collect::<BTreeSet<_>>().len(), 3, "{name}");
        }
    }
    let (all, two) = (ring(nodes(3)), ring(nodes(2)));
    let kept = |i: &usize| {
        all.owner(&key(*i)) == Some(NodeIdx::new(2)) || all.owner(&key(*i)) == two.owner(&key(*i))
    };
    assert!((0..3_000).all(|i| kept(&i)));
}

#[test]
fn b8_the_first_replica_is_the_owner() {
    for (name, place) in every(&mixed(3)) {
        for i in 0..1_000 {
            assert_eq!(place.owners(&key(i)).pick(1).unwrap()[0], place.owner(&key(i)).unwrap(), "{name}");
        }
    }
}

#[test]
fn u4_more_replicas_than_nodes_is_an_answer_and_never_a_repeat() {
    for (name, place) in every(&mixed(3)) {
        let error = place.owners(b"k").pick(4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooFewNodes { have: 3, need: 4 }, "{name}");
    }
}

#[test]
fn b12_two_fleets_in_one_process_have_the_same_owners() {
    for ((name, one), (_, other)) in every(&mixed(20)).into_iter().zip(every(&mixed(20))) {
        assert!((0..3_000).all(|i| one.owner(&key(i)) == other.owner(&key(i))), "{name}");
    }
}

#[test]
fn b16_keys_are_hashed_as_published_whatever_the_toolchain_and_the_machine() {
    // XXH3, 64 bits, seed 0, of nothing: the first vector of its specification.
    assert_eq!(ring(nodes(3)).hash_of(b""), 0x2d06_8005_38d3_94c2);
}

#[test]
fn b5_identity_is_the_name_as_written() {
    let place =
        ring(vec![Node::new("cache.example:80"), Node::new("10.0.0.1:80"), Node::new("Cache.example:80")]);
    assert_eq!(place.nodes().len(), 3);
    assert_eq!(place.nodes().find("10.0.0.1:80"), Some(NodeIdx::new(0)));
    assert_eq!(place.nodes().find("cache.example"), None);
}

#[test]
fn b10_maglev_does_not_depend_on_the_list() {
    let forward = maglev(mixed(50));
    let backward = maglev(mixed(50).into_iter().rev().collect());
    for i in 0..20_000 {
        assert_eq!(forward.owner(&key(i)), backward.owner(&key(i)));
    }
}

#[test]
fn b13_weights_that_are_all_zero_are_refused_and_drained_nodes_own_nothing() {
    let zero = || nodes(3).into_iter().map(|n| n.weight(0));
    let errors = [
        Ring::builder().nodes(zero()).build().unwrap_err(),
        Rendezvous::builder().nodes(zero()).build().unwrap_err(),
        Maglev::builder().nodes(zero()).build().unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.field(), "nodes.weight");
    }
    let mut list = nodes(4);
    list[1].weight = 0;
    for place in [
        Box::new(ring(list.clone())) as Box<dyn Place>,
        Box::new(rendezvous(list.clone())),
        Box::new(maglev(list)),
    ] {
        assert_eq!(place.shares().of(NodeIdx::new(1)), 0.0);
        assert!((0..2_000).all(|i| place.owners(&key(i)).all(|n| n.get() != 1)));
        assert_eq!(place.owners(b"k").count(), 3);
    }
}

#[test]
fn f9_only_the_last_shard_goes_and_nothing_else_moves() {
    let ten = Jump::builder().shards(10).build().unwrap();
    let nine = ten.shrink().unwrap();
    let moved = (0..5_000).filter(|i| ten.owner(&key(*i)) != nine.owner(&key(*i))).count();
    let last = (0..5_000).filter(|i| ten.owner(&key(*i)) == Some(NodeIdx::new(9))).count();
    assert_eq!(moved, last);
    assert!(Jump::builder().shards(1).build().unwrap().shrink().is_err());
    let weighted = Jump::builder().nodes([Node::new("a").weight(2)]).build().unwrap_err();
    assert_eq!((weighted.field(), weighted.value()), ("nodes.weight", "2 of a"));
}

#[test]
fn f11_a_retry_meets_the_next_distinct_node() {
    for (name, place) in every(&mixed(8)) {
        let tried: Vec<_> = place.owners(b"request").take(4).collect();
        assert_eq!(tried.iter().collect::<BTreeSet<_>>().len(), 4, "{name}");
    }
}

#[test]
fn f13_rediscovery_in_another_order_moves_nothing() {
    let mut list = nodes(30);
    let before = ring(list.clone());
    Seeded(4).shuffle(&mut list);
    let after = ring(list);
    assert!((0..3_000).all(|i| owner_names(&before, &key(i))[..3] == owner_names(&after, &key(i))[..3]));
}

#[test]
fn u3_a_restart_moves_nothing_though_the_order_is_another_one() {
    let mut list = mixed(30);
    let before = every(&list);
    Seeded(5).shuffle(&mut list);
    for ((name, before), (_, after)) in before.into_iter().zip(every(&list)) {
        // Shards and the servers of HAProxy are numbered: their order has a meaning.
        if !name.starts_with("jump") && name != "haproxy" {
            assert!(
                (0..3_000).all(|i| owner_name(&*before, &key(i)) == owner_name(&*after, &key(i))),
                "{name}"
            );
        }
    }
}

#[test]
fn f15_clients_that_disagree_have_other_fingerprints() {
    let base = || Ring::builder().nodes(mixed(5));
    let mut renamed = mixed(5);
    renamed[2] = Node::new("node-0000x").weight(3).zone("west");
    let mut moved = mixed(5);
    moved[2].zone = None;
    let clients = [
        base().build().unwrap(),
        base().points(161).build().unwrap(),
        base().textbook().build().unwrap(),
        base().hash(Hash::xxh3(1)).build().unwrap(),
        base().hash(Hash::keyed([0; 16])).build().unwrap(),
        base().weight_unit(2).build().unwrap(),
        Ring::builder().nodes(mixed(6)).build().unwrap(),
        Ring::builder().nodes(renamed).build().unwrap(),
        Ring::builder().nodes(moved).build().unwrap(),
    ];
    let prints: BTreeSet<u128> = clients.iter().map(Place::fingerprint).collect();
    assert_eq!(prints.len(), clients.len());
    assert_eq!(base().build().unwrap().fingerprint(), clients[0].fingerprint());
    let kinds: BTreeMap<u128, &str> =
        every(&mixed(5)).into_iter().map(|(n, p)| (p.fingerprint(), n)).collect();
    assert_eq!(kinds.len(), every(&mixed(5)).len());
}

#[test]
fn u7_another_number_of_points_on_one_node_is_seen_before_a_key_goes_astray() {
    let with = |points| Ring::builder().points(points).nodes(mixed(5)).build().unwrap();
    let (ours, theirs) = (with(160), with(150));
    assert!((0..1_000).any(|i| ours.owner(&key(i)) != theirs.owner(&key(i))), "they do disagree");
    assert_ne!(ours.fingerprint(), theirs.fingerprint());
}

#[test]
fn f15_the_epoch_is_not_in_the_fingerprint_and_the_replicas_are() {
    let map = |epoch, turn: usize| {
        let id = |n: usize| Node::new(["a", "b", "c"][n % 3]).id;
        let deal = move |slot: usize| vec![id(slot + turn), id(slot + turn + 1)];
        SlotMap::builder(epoch).nodes(["a", "b", "c"].map(Node::new)).replicas(deal).build().unwrap()
    };
    assert_eq!(map(1, 0).fingerprint(), map(2, 0).fingerprint());
    assert_ne!(map(1, 0).fingerprint(), map(1, 1).fingerprint());
}

#[test]
fn f17_hard_zones_are_an_error_and_preferred_ones_a_best_effort() {
    let list = [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")].map(|(n, z)| Node::new(n).zone(z));
    let place = ring(list.to_vec());
    let error = place.owners(b"k").spread(Spread::Hard { min: 3 }).pick(3).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooFewZones { have: 2, need: 3 });
    assert_eq!(place.owners(b"k").spread(Spread::Prefer { min: 3 }).pick(3).unwrap().len(), 3);
    let two = place.owners(b"k").spread(Spread::Hard { min: 2 }).pick(2).unwrap();
    assert_ne!(place.nodes()[two[0]].zone, place.nodes()[two[1]].zone);
    let all: Vec<_> = place.owners(b"k").spread(Spread::Hard { min: 2 }).collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 4);
    let short: Vec<_> = place.owners(b"k").spread(Spread::Hard { min: 3 }).collect();
    assert_eq!(short.len(), 2, "a walk that cannot meet a hard spread ends");
}

#[test]
fn f18_guava_differs_from_the_paper_on_rare_keys() {
    assert_eq!(
        (jump_guava(3_139_627_907_299_950_787, 2048), jump(3_139_627_907_299_950_787, 2048)),
        (48, 2047)
    );
    assert_eq!(
        (jump_guava(13_458_026_545_511_510_130, 1024), jump(13_458_026_545_511_510_130, 1024)),
        (48, 1023)
    );
    let wanted = [0, 55, 62, 8, 45, 59, 86, 97, 82, 59];
    for (key, bucket) in (0..).zip(wanted) {
        assert_eq!((jump(key, 100), jump_guava(key, 100)), (bucket, bucket));
    }
    assert_eq!(jump(10_863_919_174_838_991, 11), 6);
    for kind in [JumpKind::Back, JumpKind::Guava, JumpKind::Paper] {
        let one = Jump::builder().shards(1).kind(kind).build().unwrap();
        assert_eq!(one.owner(b"k").unwrap().get(), 0);
    }
}

#[test]
fn f18_an_overflow_of_javas_int_ends_guavas_loop() {
    // The step whose upper 31 bits are all ones: Java's `(int) (state >>> 33) + 1` is negative there.
    let inverse = (0..6).fold(1_u64, |x, _| {
        x.wrapping_mul(2_u64.wrapping_sub(2_862_933_555_777_941_757_u64.wrapping_mul(x)))
    });
    let state = 0xffff_fffe_0000_0000_u64 | 12345;
    let hash = state.wrapping_sub(1).wrapping_mul(inverse);
    assert_eq!(hash.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1), state);
    assert_eq!(jump_guava(hash, 1_000), 0);
    assert_ne!(jump(hash, 1_000), 0);
}

#[test]
fn jump_back_is_even_and_takes_any_number_of_buckets() {
    let mut rng = Seeded(6);
    for n in [1_u32, 2, 3, 7, 8, 9, 1000, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, u32::MAX] {
        for _ in 0..500 {
            assert!(jump_back(rng.next(), n) < n);
        }
    }
    let mut counts = [0_u32; 11];
    for _ in 0..110_000 {
        counts[jump_back(rng.next(), 11) as usize] += 1;
    }
    assert!(counts.iter().all(|c| (9_500..10_500).contains(c)), "{counts:?}");
}

#[test]
fn b11_tables_that_are_not_prime_or_too_small_are_refused() {
    for (size, composite) in
        [(0, false), (1, false), (5, false), (65_536, true), (65_535, true), (u32::MAX, false)]
    {
        let error = Maglev::builder().table(size).nodes(nodes(7)).build().unwrap_err();
        assert_eq!((error.field(), error.value()), ("table", size.to_string().as_str()));
        assert_eq!(error.allowed().starts_with("a prime"), composite, "{error}");
    }
    let error = Maglev::builder().table(100_000).nodes(nodes(7)).build().unwrap_err();
    assert!(error.to_string().contains("100003"), "{error}");
}

#[test]
fn names_and_settings_are_checked() {
    type Build = fn() -> Result<Ring, ConfigError>;
    let builders: [(Build, &str); 5] = [
        (|| Ring::builder().nodes([Node::new("")]).build(), "nodes.id"),
        (|| Ring::builder().nodes([Node::new("x".repeat(1025))]).build(), "nodes.id"),
        (|| Ring::builder().nodes([Node::new("a").zone("")]).build(), "nodes.zone"),
        (|| Ring::builder().points(0).build(), "points"),
        (|| Ring::builder().weight_unit(0).build(), "weight_unit"),
    ];
    for (build, field) in builders {
        assert_eq!(build().unwrap_err().field(), field);
    }
}

#[test]
fn slot_maps_are_checked() {
    let map = || SlotMap::builder(7).nodes(["a", "b"].map(Node::new));
    let refuse = |b: SlotMapBuilder| {
        let error = b.build().unwrap_err();
        (error.field(), error.value().to_owned())
    };
    for slots in [0, 1, 2048, 5000, 1 << 17] {
        assert_eq!(refuse(map().slots(slots)).0, "slots");
    }
    assert_eq!(refuse(map().replicas(|_| vec!["z".into()])), ("replicas", "z of slot 0".to_owned()));
    let twice = refuse(map().replicas(|_| vec!["a".into(), "a".into()]));
    assert_eq!(twice, ("replicas", "a of slot 0".to_owned()));
    assert_eq!(refuse(map().replicas(|_| vec![]).slots(1 << 12)).0, "slots");
    let held = map().replicas(|slot| if slot == 3 { vec!["b".into()] } else { vec![] }).build().unwrap();
    assert_eq!((held.epoch(), held.slots()), (7, 1 << 14));
    assert_eq!(held.replicas(3), [NodeIdx::new(1)]);
    assert_eq!(held.owner_of_hash(3), Some(NodeIdx::new(1)));
    assert_eq!(held.owner_of_hash(4), None);
    assert!(held.replicas(usize::MAX).is_empty());
    assert!(held.replicas(1 << 14).is_empty());
    for slots in [1 << 12, 1 << 16] {
        assert_eq!(map().slots(slots).build().unwrap().slots(), slots);
    }
}

#[test]
fn shared_types_cross_threads_and_the_trait_is_object_safe() {
    fn shared<T: Send + Sync + std::fmt::Debug + 'static>() {}
    shared::<Box<dyn Place>>();
    shared::<Ring>();
    shared::<Maglev>();
    shared::<Rendezvous>();
    shared::<SlotMap>();
    shared::<mainstay_partition::Bounded<Ring>>();
    shared::<mainstay_partition::Lease>();
    shared::<mainstay_partition::Error>();
}
