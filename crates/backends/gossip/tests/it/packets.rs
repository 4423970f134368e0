//! Packets that nobody wants: foreign, forged, malformed, old, oversized, of other versions.

use std::time::Duration;

use mainstay_clock::{Rng as _, SeededRng};
use mainstay_consistency::crdt::AwSet;
use mainstay_gossip::{Config, ErrorKind, Event, Gossip, Keys, Way};

use crate::Test;
use crate::net::{World, address, keys, name, run};

pub(crate) const TESTS: &[Test] = &[
    ("g10_without_a_key_nobody_joins_reads_or_writes", g10_without_a_key_nobody_joins_reads_or_writes),
    ("g5_old_packets_played_back_take_nothing_back", g5_old_packets_played_back_take_nothing_back),
    (
        "malformed_and_oversized_packets_are_counted_and_harmless",
        malformed_and_oversized_packets_are_counted_and_harmless,
    ),
    ("c17_another_protocol_version_is_refused_by_name", c17_another_protocol_version_is_refused_by_name),
    ("c17_another_schema_is_refused_by_name", c17_another_schema_is_refused_by_name),
    ("keys_change_without_a_gap", keys_change_without_a_gap),
    ("a_large_change_goes_by_stream", a_large_change_goes_by_stream),
];

async fn node(world: &World, n: usize, cluster: &str, keys: Keys) -> Gossip<AwSet<u64>> {
    let config =
        Config::builder(&name(n), cluster).keys(keys).seeds([address(0), address(1)]).build().unwrap();
    world.start(n, config, None).await
}

fn count(node: &Gossip<AwSet<u64>>) -> usize {
    node.read(|set| set.elements().count())
}

fn g10_without_a_key_nobody_joins_reads_or_writes() {
    run(31, async |world| {
        let one = node(&world, 0, "test", keys()).await;
        let two = node(&world, 1, "test", keys()).await;
        // Another key, another id of a key, another cluster with the same key.
        let strangers = [
            node(&world, 2, "test", Keys::new(1, [8; 32])).await,
            node(&world, 3, "test", Keys::new(2, [7; 32])).await,
            node(&world, 4, "else", keys()).await,
        ];
        one.change(|set, actor| set.add(actor, 1)).unwrap();
        strangers.iter().for_each(|s| s.change(|set, actor| set.add(actor, 666)).unwrap());
        world.until(Duration::from_secs(10), || count(&two) == 1).await.unwrap();
        world.sleep(Duration::from_secs(60)).await;
        assert!(one.read(|set| !set.contains(&666)) && two.read(|set| !set.contains(&666)));
        assert!(strangers.iter().all(|s| s.read(|set| !set.contains(&1))));
        assert!(one.members().len() == 1 && two.members().len() == 1);
        let stats = one.stats();
        assert!(stats.unauthenticated > 20 && stats.foreign > 10, "{stats:?}");
    });
}

fn g5_old_packets_played_back_take_nothing_back() {
    run(32, async |world| {
        let nodes = [node(&world, 0, "test", keys()).await, node(&world, 1, "test", keys()).await];
        let extra = node(&world, 2, "test", keys()).await;
        world.air.lock().unwrap().tape = Some(Vec::new());
        for n in 0..20 {
            nodes[n as usize % 2].change(|set, actor| set.add(actor, n)).unwrap();
            world.sleep(Duration::from_millis(200)).await;
            if n % 3 == 0 {
                nodes[0].change(|set, actor| set.remove(actor, &n)).unwrap();
            }
        }
        let same = || nodes[0].digest() == nodes[1].digest() && nodes[0].digest() == extra.digest();
        world.until(Duration::from_secs(20), same).await.unwrap();
        extra.shutdown().await.unwrap();
        world.sleep(Duration::from_secs(2)).await;
        let before = nodes[0].read(Clone::clone);
        let tape = world.air.lock().unwrap().tape.take().unwrap();
        assert!(tape.len() > 200);
        // Twice, backwards, to whom they were meant for and to everybody else.
        for round in 0..2 {
            for (i, (from, to, bytes)) in tape.iter().rev().enumerate() {
                let other = if round == 0 { *to } else { address((i + 1) % 2) };
                world.inject(*from, other, Way::Datagram, bytes.clone());
                if i % 50 == 0 {
                    world.sleep(Duration::from_millis(20)).await;
                    assert_eq!(nodes[0].read(Clone::clone), before);
                    assert_eq!(nodes[1].read(Clone::clone), before);
                }
            }
        }
        let misdirected = nodes[0].stats().misdirected + nodes[1].stats().misdirected;
        assert!(misdirected > 50, "{misdirected}");
        // And changes still travel.
        nodes[1].change(|set, actor| set.add(actor, 1_000)).unwrap();
        let has = || nodes[0].read(|set| set.contains(&1_000));
        world.until(Duration::from_secs(10), has).await.expect("played back packets stop nothing");
    });
}

fn malformed_and_oversized_packets_are_counted_and_harmless() {
    run(33, async |world| {
        let nodes = [node(&world, 0, "test", keys()).await, node(&world, 1, "test", keys()).await];
        nodes[0].change(|set, actor| set.add(actor, 1)).unwrap();
        world.air.lock().unwrap().tape = Some(Vec::new());
        world.until(Duration::from_secs(10), || count(&nodes[1]) == 1).await.unwrap();
        let real = world.air.lock().unwrap().tape.take().unwrap();
        let rng = SeededRng::new(5);
        for i in 0..2_000_usize {
            let mut bytes = real[i % real.len()].2.clone();
            match i % 4 {
                0 => bytes.truncate(rng.below(bytes.len() as u64) as usize),
                1 => {
                    let at = rng.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << rng.below(8);
                }
                2 => bytes = vec![1; rng.below(1_200) as usize],
                _ => bytes.resize(1_201 + rng.below(60_000) as usize, 0),
            }
            world.inject(address(9), address(0), Way::Datagram, bytes);
            if i % 100 == 0 {
                world.sleep(Duration::from_millis(50)).await;
            }
        }
        world.inject(address(9), address(0), Way::Stream, vec![1; 70_000]);
        world.sleep(Duration::from_secs(1)).await;
        let stats = nodes[0].stats();
        assert_eq!(stats.oversized, 501, "{stats:?}");
        assert!(
            stats.malformed + stats.unauthenticated + stats.foreign + stats.other_version >= 1_450,
            "{stats:?}"
        );
        assert_eq!((count(&nodes[0]), count(&nodes[1])), (1, 1));
        assert!(nodes[0].take_events().len() <= 256);
    });
}

fn c17_another_protocol_version_is_refused_by_name() {
    run(34, async |world| {
        let nodes = [node(&world, 0, "test", keys()).await, node(&world, 1, "test", keys()).await];
        world.air.lock().unwrap().tape = Some(Vec::new());
        world.sleep(Duration::from_secs(3)).await;
        let tape = world.air.lock().unwrap().tape.take().unwrap();
        drop(nodes[0].take_events());
        for (from, _, bytes) in &tape {
            let mut next = bytes.clone();
            next[0] = 2;
            world.inject(*from, address(0), Way::Datagram, next);
        }
        world.sleep(Duration::from_millis(10)).await;
        let named: Vec<Event> = nodes[0].take_events();
        let want = |e: &Event| matches!(e, Event::OtherVersion { theirs: 2, .. });
        assert_eq!(named.iter().filter(|e| want(e)).count(), 1, "once, not with every packet: {named:?}");
        assert_eq!(nodes[0].stats().other_version, tape.len() as u64);
    });
}

fn c17_another_schema_is_refused_by_name() {
    run(35, async |world| {
        let one = node(&world, 0, "test", keys()).await;
        let config =
            Config::builder("n1", "test").keys(keys()).seeds([address(0)]).schema(2).build().unwrap();
        let two = world.start::<AwSet<u64>>(1, config, None).await;
        one.change(|set, actor| set.add(actor, 1)).unwrap();
        two.change(|set, actor| set.add(actor, 2)).unwrap();
        world.sleep(Duration::from_secs(10)).await;
        assert_eq!((count(&one), count(&two)), (1, 1));
        for node in [&one, &two] {
            let events = node.take_events();
            assert!(events.iter().any(|e| format!("{e:?}").contains("Incompatible")), "{events:?}");
        }
    });
}

fn keys_change_without_a_gap() {
    run(36, async |world| {
        let (old, new) = ([7; 32], [8; 32]);
        let nodes = [
            node(&world, 0, "test", Keys::new(1, old)).await,
            node(&world, 1, "test", Keys::new(1, old)).await,
        ];
        let mut value = 0;
        let mut works = async |nodes: &[Gossip<AwSet<u64>>; 2]| {
            for at in [0, 1] {
                value += 1;
                nodes[at].change(|set, actor| set.add(actor, value)).unwrap();
                let has = || nodes[1 - at].read(|set| set.contains(&value));
                world.until(Duration::from_secs(10), has).await.unwrap_or_else(|| panic!("change {value}"));
            }
        };
        works(&nodes).await;
        let steps = [Keys::new(1, old).also(2, new), Keys::new(2, new).also(1, old), Keys::new(2, new)];
        for keys in steps {
            // One node after the other, as people do it.
            for node in &nodes {
                node.set_keys(keys.clone());
                works(&nodes).await;
            }
        }
        assert!(nodes.iter().all(|n| n.stats().unauthenticated == 0));
        // The old key opens nothing any more.
        nodes[0].set_keys(Keys::new(1, old));
        world.sleep(Duration::from_secs(5)).await;
        assert!(nodes[1].stats().unauthenticated > 0);
    });
}

fn a_large_change_goes_by_stream() {
    run(37, async |world| {
        let start = async |n: usize| {
            let config = Config::builder(&name(n), "test").keys(keys()).seeds([address(0)]).build().unwrap();
            world.start::<AwSet<String>>(n, config, None).await
        };
        let (one, two) = (start(0).await, start(1).await);
        let large = "x".repeat(50_000);
        one.change(|set, actor| set.add(actor, large.clone())).unwrap();
        let has = || two.read(|set| set.contains(&large));
        world.until(Duration::from_secs(10), has).await.expect("it came");
        assert!(world.air.lock().unwrap().frames > 0);
        // What fits nowhere is refused before it is made, and stops nothing else.
        let error = one.change(|set, actor| set.add(actor, "y".repeat(100_000))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Change);
        let source = std::error::Error::source(&error).unwrap().downcast_ref::<mainstay_consistency::Error>();
        assert_eq!(source.unwrap().kind(), mainstay_consistency::ErrorKind::TooLarge);
        assert_eq!(one.read(|set| set.elements().count()), 1);
        one.change(|set, actor| set.add(actor, "small".into())).unwrap();
        let all = || two.read(|set| set.elements().count() == 2);
        world.until(Duration::from_secs(10), all).await.expect("it came");
        assert_eq!(one.digest(), two.digest());
    });
}
