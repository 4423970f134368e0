//! Anti-entropy over networks that lose, double, delay and cut.

use mainstay_clock::{Instant, Rng, SeededRng};
use mainstay_consistency::crdt::{
    AwMap, AwSet, Document, DotMap, DotSet, GCounter, GSet, LwwMap, LwwRegister, MaxRegister, MinRegister,
    MvRegister, PnCounter, RwSet, TwoPhaseSet,
};
use mainstay_consistency::laws::network::{Network, Weather};
use mainstay_consistency::replicate::{
    AntiEntropy, AntiEntropyConfig, Builder, DigestKey, Event, Replicated,
};
use mainstay_consistency::{Actor, ErrorKind, Join as _};

use crate::{actor, clock};

fn actors(count: u64) -> Vec<Actor> {
    (1..=count).map(actor).collect()
}

/// Random additions and removals at every node, while the network does what `weather` says.
fn churn(net: &mut Network<AwSet<u64>>, actors: &mut [Actor], rng: &SeededRng, rounds: usize) {
    for _ in 0..rounds {
        for (i, at) in actors.iter_mut().enumerate() {
            let n = rng.below(40);
            let change =
                |set: &mut AwSet<u64>| if rng.below(3) == 0 { set.remove(at, &n) } else { set.add(at, n) };
            net.node_mut(i).change(change).unwrap();
        }
        net.round();
    }
}

#[test]
fn g5_half_of_everything_lost_doubled_and_shuffled_converges() {
    for seed in 1..=8 {
        let mut net = Network::<AwSet<u64>>::new(4, seed, |c| c).unwrap();
        let (mut actors, rng) = (actors(4), SeededRng::new(seed));
        net.weather = Weather::STORM;
        churn(&mut net, &mut actors, &rng, 15);
        let rounds = net.converge(200).unwrap_or_else(|v| panic!("seed {seed}: {v}"));
        println!("seed {seed}: {rounds} rounds in the storm");
    }
}

#[test]
fn g5_a_one_way_partition_heals() {
    let mut net = Network::<AwSet<u64>>::new(3, 5, |c| c).unwrap();
    let (mut actors, rng) = (actors(3), SeededRng::new(5));
    net.cut(0, 1);
    net.cut(0, 2);
    churn(&mut net, &mut actors, &rng, 10);
    assert!(!net.agrees());
    net.heal();
    net.converge(10).unwrap();
}

#[test]
fn g5_old_packets_replayed_take_nothing_back() {
    let mut one = AntiEntropyConfig::builder(1, 11, DigestKey::new([1; 16]))
        .members([1, 2])
        .build(AwSet::<u64>::new())
        .unwrap();
    let mut two = AntiEntropyConfig::builder(2, 12, DigestKey::new([1; 16]))
        .members([1, 2])
        .build(AwSet::<u64>::new())
        .unwrap();
    let mut at = actor(1);
    let mut packets = Vec::new();
    for n in 0..10 {
        one.change(|set| set.add(&mut at, n)).unwrap();
        if n % 2 == 0 {
            one.change(|set| set.remove(&mut at, &n)).unwrap();
        }
        for (_, packet) in one.on_tick(Instant::ZERO) {
            for (_, answer) in two.on_msg(1, &packet, Instant::ZERO).send {
                one.on_msg(2, &answer, Instant::ZERO);
            }
            packets.push(packet);
        }
    }
    assert_eq!(one.state(), two.state());
    let before = two.state().clone();
    for packet in packets.iter().rev() {
        assert!(!two.on_msg(1, packet, Instant::ZERO).changed.is_yes());
    }
    assert_eq!(*two.state(), before);
}

#[test]
fn l11_equal_states_exchange_digests_of_constant_size_only() {
    let mut net = Network::<AwSet<u64>>::new(3, 3, |c| c).unwrap();
    let mut at = actor(1);
    for n in 0..1_000 {
        net.node_mut(0).change(|set| set.add(&mut at, n)).unwrap();
    }
    net.converge(300).unwrap();
    net.run(12); // acknowledgements of what was learned
    let (bytes, messages) = (net.bytes(), net.messages());
    net.run(10);
    let each = (net.bytes() - bytes) / (net.messages() - messages);
    assert_eq!(net.messages() - messages, 10 * 3 * 2, "one root for each peer");
    assert!(each <= 48, "{each} bytes");
}

#[test]
fn g1_a_digest_does_not_grow_with_the_state_or_the_fleet() {
    let sizes = [10_u64, 600].map(|elements| {
        let mut net = Network::<AwSet<u64>>::new(20, 3, |c| c).unwrap();
        let mut actors = actors(20);
        for n in 0..elements {
            net.node_mut((n % 20) as usize).change(|set| set.add(&mut actors[(n % 20) as usize], n)).unwrap();
        }
        net.converge(200).unwrap();
        assert!(net.largest() <= 1_200, "{} bytes", net.largest());
        net.run(60);
        let (bytes, messages) = (net.bytes(), net.messages());
        net.round();
        (net.bytes() - bytes) / (net.messages() - messages)
    });
    assert!(sizes.iter().all(|each| *each <= 48), "{sizes:?}");
}

#[test]
fn c24_equal_contexts_with_different_stores_are_noticed_and_repaired() {
    // The log holds nothing, so that only digests can find the difference.
    let mut net = Network::<AwSet<u64>>::new(2, 3, |c| c.log_bytes(0)).unwrap();
    let mut at = actor(1);
    for n in 0..500 {
        net.node_mut(0).change(|set| set.add(&mut at, n)).unwrap();
    }
    net.converge(50).unwrap();
    net.node_mut(0).change(|set| set.remove(&mut at, &77)).unwrap();
    assert_eq!(net.node(0).state().context(), net.node(1).state().context());
    assert!(!net.agrees());
    let before = net.bytes();
    net.converge(5).unwrap();
    assert!(!net.node(1).state().contains(&77));
    assert!(net.bytes() - before < 6_000, "{} bytes for one removal of 500", net.bytes() - before);
}

/// Elements without dots are compared by ranges only; a range with few of them here and many there went into one message,
/// which had more than 800 bytes.
#[test]
fn g1_no_message_is_larger_than_it_may_be_whatever_differs() {
    for max in [512, 600, 1_200] {
        for seed in 1..=4 {
            let mut net = Network::<GSet<u64>>::new(2, seed, |c| c.max_message(max).log_bytes(0)).unwrap();
            let rng = SeededRng::new(seed);
            for n in 0..2_000 {
                // One node has most of it, the other one some.
                let at = usize::from(rng.below(8) == 0);
                net.node_mut(at).change(|set| Ok(set.add(n))).unwrap();
            }
            net.converge(60).unwrap_or_else(|v| panic!("{max} bytes, seed {seed}: {v}"));
            assert!(net.largest() <= max, "{} of {max} bytes, seed {seed}", net.largest());
            assert_eq!(net.node(1).state().len(), 2_000);
        }
    }
}

#[test]
fn g2_a_part_never_claims_the_whole() {
    // Messages so small that every exchange is in parts, half of them lost.
    for seed in 1..=4 {
        let mut net = Network::<AwSet<u64>>::new(3, seed, |c| c.max_message(512).budget(2_048)).unwrap();
        let (mut actors, rng) = (actors(3), SeededRng::new(seed));
        net.weather = Weather::new(50, 10, 10);
        churn(&mut net, &mut actors, &rng, 8);
        for n in 100..400 {
            net.node_mut(0).change(|set| set.add(&mut actors[0], n)).unwrap();
        }
        net.converge(600).unwrap_or_else(|v| panic!("seed {seed}: {v}"));
        assert!(net.largest() <= 512, "{}", net.largest());
        assert!((100..400).all(|n| net.node(2).state().contains(&n)));
    }
}

#[test]
fn g3_a_heavy_key_does_not_starve_a_rare_one() {
    let mut net = Network::<LwwMap<u64, String>>::new(2, 3, |c| c.budget(4_096)).unwrap();
    let ((hlc, _), mut at) = (clock(1_000), actor(1));
    net.node_mut(0).change(|map| map.set(&mut at, &hlc, 1, "rare".into())).unwrap();
    let mut seen_after = None;
    for round in 0..20 {
        for n in 0..20 {
            let text = format!("{n:0>500}");
            net.node_mut(0).change(|map| map.set(&mut at, &hlc, 2, text)).unwrap();
        }
        net.round();
        if net.node(1).state().get(&1).is_some() {
            seen_after.get_or_insert(round);
        }
    }
    assert_eq!(seen_after, Some(0), "the oldest goes first");
}

#[test]
fn g7_digests_settle_while_writes_go_on() {
    let mut net = Network::<AwSet<u64>>::new(3, 3, |c| c).unwrap();
    let mut actors = actors(3);
    for n in 0..2_000 {
        net.node_mut(0).change(|set| set.add(&mut actors[0], n)).unwrap();
    }
    net.converge(200).unwrap();
    net.run(3);
    let before = net.bytes();
    for n in 0..30_u64 {
        net.node_mut((n % 3) as usize)
            .change(|set| set.add(&mut actors[(n % 3) as usize], 10_000 + n))
            .unwrap();
        net.round();
    }
    // Live changes travel as deltas; the 2,000 others are not talked about again.
    let each = (net.bytes() - before) / 30;
    assert!(each < 2_500, "{each} bytes per change and round in a fleet of three");
    net.converge(5).unwrap();
}

#[test]
fn g8_a_mass_change_keeps_to_its_budget() {
    let mut net = Network::<AwSet<u64>>::new(2, 3, |c| c.budget(8_192)).unwrap();
    let mut at = actor(1);
    for n in 0..3_000 {
        net.node_mut(0).change(|set| set.add(&mut at, n)).unwrap();
    }
    for _ in 0..5 {
        let before = net.bytes();
        net.round();
        assert!(net.bytes() - before <= 2 * 8_192);
    }
    net.converge(200).unwrap();
}

#[test]
fn g9_a_restart_reuses_no_sequence_number() {
    let key = DigestKey::new([1; 16]);
    let start = |me: u64, session: u64, state: AwSet<u64>| {
        AntiEntropyConfig::builder(me, session, key).members([1, 2]).build(state).unwrap()
    };
    let (mut one, mut two) = (start(1, 11, AwSet::new()), start(2, 12, AwSet::new()));
    let mut at = actor(1);
    let talk = |one: &mut AntiEntropy<AwSet<u64>>, two: &mut AntiEntropy<AwSet<u64>>| {
        for _ in 0..4 {
            for (_, packet) in one.on_tick(Instant::ZERO) {
                for (_, answer) in two.on_msg(1, &packet, Instant::ZERO).send {
                    for (_, last) in one.on_msg(2, &answer, Instant::ZERO).send {
                        two.on_msg(1, &last, Instant::ZERO);
                    }
                }
            }
        }
    };
    for n in 0..5 {
        one.change(|set| set.add(&mut at, n)).unwrap();
    }
    talk(&mut one, &mut two);
    assert_eq!(one.state(), two.state());
    // It comes back from its snapshot with an empty log, and counts from one again, in another session.
    let mut one = start(1, 99, one.state().clone());
    one.change(|set| set.add(&mut at, 100)).unwrap();
    talk(&mut one, &mut two);
    assert!(two.state().contains(&100));
    assert_eq!(one.state(), two.state());
}

#[test]
fn c17_l21_versions_converge_or_refuse_by_name() {
    let key = DigestKey::new([1; 16]);
    let build = |me: u64, version: u32, accepts| {
        let config = AntiEntropyConfig::builder(me, me, key).members([1, 2]).merge_version(version, accepts);
        config.build(AwSet::<u64>::new()).unwrap()
    };
    let mut at = actor(1);
    let mut old = build(1, 1, 1..=1);
    old.change(|set| set.add(&mut at, 5)).unwrap();
    let packet = old.on_tick(Instant::ZERO).remove(0).1;
    // N+1 that knows N.
    let mut both = build(2, 2, 1..=2);
    assert!(both.on_msg(1, &packet, Instant::ZERO).changed.is_yes());
    // N+1 that does not.
    let mut new = build(2, 2, 2..=2);
    let step = new.on_msg(1, &packet, Instant::ZERO);
    assert_eq!(step.events, [Event::Incompatible { peer: 1, theirs: (1, 1) }]);
    assert!(!step.changed.is_yes() && new.state().elements().next().is_none());
}

#[test]
fn malformed_and_foreign_messages_are_named_and_harmless() {
    let mut net = Network::<AwSet<u64>>::new(2, 3, |c| c).unwrap();
    let mut at = actor(1);
    net.node_mut(0).change(|set| set.add(&mut at, 5)).unwrap();
    let before = net.node(0).state().clone();
    let rng = SeededRng::new(8);
    let real = net.node_mut(0).on_tick(Instant::ZERO).remove(0).1;
    for _ in 0..3_000 {
        let mut packet = real.clone();
        for _ in 0..=rng.below(3) {
            let at = rng.below(packet.len() as u64) as usize;
            packet[at] = rng.next_u64() as u8;
        }
        packet.truncate(1 + rng.below(packet.len() as u64) as usize);
        net.node_mut(0).on_msg(2, &packet, Instant::ZERO);
    }
    let step = net.node_mut(0).on_msg(2, b"\x01\x00nonsense", Instant::ZERO);
    assert!(step.events.iter().any(|e| matches!(e, Event::Malformed { .. } | Event::Incompatible { .. })));
    assert!(before.leq(net.node(0).state()));
}

#[test]
fn types_without_dots_replicate_too() {
    let mut sets = Network::<GSet<u64>>::new(3, 3, |c| c.log_bytes(0)).unwrap();
    let mut counters = Network::<PnCounter>::new(3, 3, |c| c).unwrap();
    let mut actors = actors(3);
    for n in 0..300_u64 {
        let at = (n % 3) as usize;
        sets.node_mut(at).change(|set| Ok(set.add(n))).unwrap();
        counters.node_mut(at).change(|c| c.inc(&mut actors[at], n)).unwrap();
    }
    sets.weather = Weather::new(20, 10, 10);
    sets.converge(200).unwrap();
    assert_eq!(sets.node(1).state().len(), 300);
    counters.converge(20).unwrap();
    assert_eq!(counters.node(2).state().value(), (0..300).sum::<i128>());
}

#[test]
fn a_type_mismatch_is_reported_and_does_not_stop_the_rest() {
    let mut net = Network::<Document>::new(2, 3, |c| c).unwrap();
    let mut actors = actors(2);
    net.node_mut(0)
        .change(|d| d.update(&mut actors[0], "x".into(), |a, m| a.flag(m, |f, m| f.turn_on(m))))
        .unwrap();
    net.node_mut(1)
        .change(|d| d.update(&mut actors[1], "x".into(), |a, m| a.counter(m, |c, m| c.count(m, 1, 0))))
        .unwrap();
    net.run(3);
    assert!(net.events().iter().any(|(_, e)| matches!(e, Event::Mismatch { .. })), "{:?}", net.events());
    net.node_mut(0).change(|d| d.remove(&mut actors[0], &"x".into())).unwrap();
    net.converge(10).unwrap();
}

#[test]
fn a_change_larger_than_a_message_is_named() {
    let mut net = Network::<RwSet<String>>::new(2, 3, |c| c).unwrap();
    let mut at = actor(1);
    net.node_mut(0).change(|set| set.add(&mut at, "x".repeat(5_000))).unwrap();
    net.run(2);
    // The event is reported with the next message that node takes in.
    net.node_mut(1).change(|set| set.add(&mut actor(2), "small".into())).unwrap();
    net.run(2);
    assert!(net.events().iter().any(|(_, e)| *e == Event::TooLarge), "{:?}", net.events());
}

/// A change that is refused changes nothing; the largest that is not refused arrives, and so does a later small one.
#[track_caller]
fn refused_before_it_is_made<T: Replicated>(
    options: impl Fn(Builder) -> Builder,
    make: impl Fn(&mut T, &mut Actor, usize) -> mainstay_consistency::Result<T>,
) {
    let mut net = Network::<T>::new(2, 3, options).unwrap();
    let limit = net.node(0).largest_change();
    let mut at = actor(1).largest_change(limit);
    let mut largest = 0;
    // Down from a size that no message holds, to the first that one does.
    for size in (limit - 60..limit + 20).rev() {
        let (before, minted) = (net.node(0).state().clone(), at.minted());
        match net.node_mut(0).change(|state| make(state, &mut at, size)) {
            Ok(()) => {
                largest = size;
                break;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::TooLarge),
        }
        assert_eq!((net.node(0).state(), at.minted()), (&before, minted), "{size}");
        assert_eq!(net.node(0).log_len(), 0);
    }
    assert!(largest > limit - 60 && largest < limit, "{largest} of {limit}");
    net.node_mut(0).change(|state| make(state, &mut at, 3)).unwrap();
    net.converge(5).unwrap();
    assert!(net.events().iter().all(|(_, e)| *e != Event::TooLarge), "{:?}", net.events());
}

#[test]
fn a_change_that_no_message_holds_is_refused_before_it_is_made() {
    let text = |size: usize| "x".repeat(size);
    let sizes = [0, 9_000].map(|most| move |c: Builder| c.largest_change(most));
    for options in sizes {
        refused_before_it_is_made::<AwSet<String>>(options, |set, at, size| set.add(at, text(size)));
        refused_before_it_is_made::<RwSet<String>>(options, |set, at, size| set.add(at, text(size)));
        refused_before_it_is_made::<MvRegister<String>>(options, |value, at, size| {
            value.write(at, text(size))
        });
        refused_before_it_is_made::<AwMap<u64, DotMap<String, DotSet>>>(options, |map, at, size| {
            map.update(at, size as u64, |set, mint| set.insert(mint, text(size)))
        });
    }
    // Types without dots, whose mutators know of no bound.
    for options in sizes {
        refused_before_it_is_made::<GSet<String>>(options, |set, _, size| Ok(set.add(text(size))));
        refused_before_it_is_made::<TwoPhaseSet<String>>(options, |set, _, size| Ok(set.add(text(size))));
        refused_before_it_is_made::<MaxRegister<String>>(options, |value, _, size| {
            Ok(value.raise(text(size)))
        });
        refused_before_it_is_made::<MinRegister<String>>(options, |value, _, size| {
            Ok(value.lower(text(size)))
        });
        let (hlc, _) = clock(1_000);
        refused_before_it_is_made::<LwwRegister<String>>(options, |value, at, size| {
            value.set(&hlc, at.id(), text(size))
        });
    }
    // Where nothing is forgotten a whole message is for changes.
    let all = |c: Builder| c.keep_all();
    refused_before_it_is_made::<AwSet<String>>(all, |set, at, size| set.add(at, text(size)));
}

/// Of a change of several steps all is taken back, and of what was there before nothing.
#[test]
fn a_refused_change_of_several_steps_leaves_types_without_dots_as_they_were() {
    let large = "x".repeat(5_000);
    let mut net = Network::<TwoPhaseSet<String>>::new(2, 3, |c| c).unwrap();
    net.node_mut(0).change(|set| Ok(set.add("a".into()))).unwrap();
    let before = net.node(0).state().clone();
    let refused = net.node_mut(0).change(|set| {
        let mut delta = set.add("a".into());
        for part in [set.add("b".into()), set.remove(&"a".into())?, set.add(large.clone())] {
            let _ = delta.join(&part)?;
        }
        Ok(delta)
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(*net.node(0).state(), before);
    assert!(net.node(0).state().contains(&"a".into()));
    // What a mutator refuses takes back what those before it did, too.
    let refused = net.node_mut(0).change(|set| {
        let _ = set.add("c".into());
        set.remove(&"nobody".into())
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ForeignContext);
    assert_eq!(*net.node(0).state(), before);
    // What is too large and is there already, from a peer with larger messages, stays.
    let config = || AntiEntropyConfig::builder(1, 7, DigestKey::new([9; 16])).members([1, 2]);
    let mut held = GSet::new();
    held.add(large.clone());
    let mut node = config().build(held.clone()).unwrap();
    assert_eq!(node.change(|set| Ok(set.add(large.clone()))).unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(*node.state(), held);
    // A counter that refuses its second step keeps its first one to itself.
    let (mut count, mut at) = (config().build(GCounter::new()).unwrap(), actor(1));
    let refused = count.change(|count| {
        let _ = count.inc(&mut at, 5)?;
        count.inc(&mut at, u64::MAX)
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Overflow);
    assert_eq!(count.state().value(), 0);
}

#[test]
fn a_large_change_of_small_parts_is_not_refused() {
    let mut net = Network::<AwMap<u64, DotMap<u64, DotSet>>>::new(2, 3, |c| c).unwrap();
    let limit = net.node(0).largest_change();
    let mut at = actor(1).largest_change(limit);
    for n in 0..2_000 {
        net.node_mut(0).change(|map| map.update(&mut at, n, |set, mint| set.insert(mint, n))).unwrap();
    }
    for n in (0..2_000).step_by(2) {
        net.node_mut(0).change(|map| map.remove(&mut at, &n)).unwrap();
    }
    // It covers every second change, and names each of them.
    let mut size = 0;
    let clear = |map: &mut AwMap<u64, DotMap<u64, DotSet>>| {
        let delta = map.clear(&mut at)?;
        size = mainstay_consistency::wire::encode(&delta).len();
        Ok(delta)
    };
    net.node_mut(0).change(clear).unwrap();
    assert!(size > limit, "{size} bytes: it had to be split");
    net.converge(20).unwrap();
    assert!(net.node(1).state().is_empty());
    assert!(net.events().iter().all(|(_, e)| *e != Event::TooLarge), "{:?}", net.events());
}

#[test]
fn what_many_tell_is_passed_on_once() {
    let start = |me: u64| {
        let config = AntiEntropyConfig::builder(me, 10 + me, DigestKey::new([1; 16])).keep_all().root_first();
        config.build(AwSet::<u64>::new()).unwrap()
    };
    let mut first = start(100);
    first.change(|set| bulk(set, &mut actor(100), 60)).unwrap();
    let mut middle = start(50);
    for teller in 1..=8 {
        // Each tells all it has, and most of that is known by then.
        let mut other = start(teller);
        for (_, told) in first.news(teller) {
            other.on_msg(100, &told, Instant::ZERO);
        }
        other.change(|set| set.add(&mut actor(teller), 1_000 + teller)).unwrap();
        for (_, told) in other.news(50) {
            assert!(middle.on_msg(teller, &told, Instant::ZERO).changed.is_yes());
        }
    }
    assert_eq!(middle.state().elements().count(), 68);
    let news = middle.news(60);
    assert_eq!(news.len(), 1, "one message holds all there is to tell");
    let mut last = start(60);
    last.on_msg(50, &news[0].1, Instant::ZERO);
    assert_eq!(last.state(), middle.state());
}

#[test]
fn news_that_take_many_messages_are_asked_for_first() {
    let start = |me: u64| {
        let config = AntiEntropyConfig::builder(me, 10 + me, DigestKey::new([1; 16])).keep_all().root_first();
        config.build(AwSet::<u64>::new()).unwrap()
    };
    let (mut one, mut two, mut at) = (start(1), start(2), actor(1));
    for n in 0..2_000 {
        one.change(|set| set.add(&mut at, n)).unwrap();
    }
    let asked = one.news(2);
    assert_eq!(asked.len(), 1);
    assert!(asked[0].1.len() <= 48, "{} bytes", asked[0].1.len());
    // Who has it all is silent; who has not is told.
    let mut talk = |one: &mut AntiEntropy<AwSet<u64>>, asked: Vec<(u64, Vec<u8>)>| {
        let (mut open, mut bytes) = (asked, 0);
        while let Some((to, packet)) = open.pop() {
            bytes += packet.len();
            let step = if to == 2 {
                two.on_msg(1, &packet, Instant::ZERO)
            } else {
                one.on_msg(2, &packet, Instant::ZERO)
            };
            open.extend(step.send.into_iter().rev());
        }
        bytes
    };
    assert!(talk(&mut one, asked) > 5_000);
    let again = one.greet(2);
    assert!(talk(&mut one, again) < 200);
    assert_eq!(one.state(), two.state());
    // What is new is told without a question.
    one.change(|set| set.add(&mut at, 5_000)).unwrap();
    let news = one.news(2);
    assert!(news.len() == 1 && two.on_msg(1, &news[0].1, Instant::ZERO).changed.is_yes());
}

/// `count` changes, each by somebody else, as a node knows them that heard of a whole fleet.
fn many_authors(node: &mut AntiEntropy<AwSet<u64>>, count: u64) {
    for n in 0..count {
        node.change(|set| set.add(&mut actor(1_000 + n), n)).unwrap();
    }
}

#[test]
fn two_that_never_met_are_equal_after_one_root_in_whatever_order_the_answers_come() {
    for seed in 1..=50 {
        let start = |me: u64| {
            let config =
                AntiEntropyConfig::builder(me, 10 + me, DigestKey::new([1; 16])).keep_all().root_first();
            config.build(AwSet::<u64>::new()).unwrap()
        };
        let (mut one, mut two, rng) = (start(1), start(2), SeededRng::new(seed));
        many_authors(&mut one, 300);
        let heard = one.state().clone();
        // The other one heard most of it from others, and something else.
        two.change(|set| {
            let _ = set.join(&heard)?;
            Ok(heard.clone())
        })
        .unwrap();
        two.change(|set| set.add(&mut actor(2), 7_000)).unwrap();
        one.change(|set| set.add(&mut actor(1), 8_000)).unwrap();
        let (mut open, mut packets) = (one.greet(2), 0);
        while !open.is_empty() {
            let at = usize::try_from(rng.below(open.len() as u64)).unwrap();
            let (to, packet) = open.swap_remove(at);
            packets += 1;
            let step = if to == 2 {
                two.on_msg(1, &packet, Instant::ZERO)
            } else {
                one.on_msg(2, &packet, Instant::ZERO)
            };
            open.extend(step.send);
        }
        assert_eq!(one.state(), two.state(), "seed {seed}");
        assert!(packets <= 48, "seed {seed}: {packets} packets for two changes");
    }
}

#[test]
fn what_is_new_is_told_also_to_whom_nobody_knows_to_have_the_rest() {
    let start = |me: u64| {
        let config = AntiEntropyConfig::builder(me, 10 + me, DigestKey::new([1; 16])).keep_all().root_first();
        config.build(AwSet::<u64>::new()).unwrap()
    };
    for log_bytes in [2_000, 1 << 20] {
        let config = AntiEntropyConfig::builder(1, 11, DigestKey::new([1; 16])).keep_all().root_first();
        let mut one = config.log_bytes(log_bytes).build(AwSet::<u64>::new()).unwrap();
        many_authors(&mut one, 1_000);
        let (_, mut at) = (one.news(2), actor(1));
        for n in 0..5 {
            one.change(|set| set.add(&mut at, 9_000 + n)).unwrap();
        }
        for peer in [3, 4] {
            let news = one.news(peer);
            assert_eq!(news.len(), 1, "one message, not all that it may lack");
            let mut other = start(peer);
            assert!(other.on_msg(1, &news[0].1, Instant::ZERO).changed.is_yes());
            assert!((0..5).all(|n| other.state().contains(&(9_000 + n))));
        }
    }
}

#[test]
fn a_peer_that_is_no_member_can_be_forgotten() {
    let config = AntiEntropyConfig::builder(1, 1, DigestKey::new([1; 16])).members([1, 2]);
    let mut one = config.build(AwSet::<u64>::new()).unwrap();
    drop(one.greet(9));
    assert_eq!(one.peer_count(), 2);
    one.forget_peer(9);
    one.forget_peer(2);
    assert_eq!(one.peer_count(), 1, "a member stays");
}

#[test]
fn g3_a_change_that_fits_into_no_message_holds_nothing_else_up() {
    for log_bytes in [0, 1 << 20] {
        let mut net = Network::<LwwMap<u64, String>>::new(2, 3, |c| c.log_bytes(log_bytes)).unwrap();
        let ((hlc, _), mut at) = (clock(1_000), actor(1));
        net.node_mut(0).change(|map| map.set(&mut at, &hlc, 1, "x".repeat(5_000))).unwrap();
        for n in 2..200 {
            net.node_mut(0).change(|map| map.set(&mut at, &hlc, n, "small".into())).unwrap();
            net.round();
        }
        net.run(10);
        let there = net.node(1).state();
        assert!((2..200).all(|n| there.get(&n).is_some()), "a log of {log_bytes} bytes");
        assert!(there.get(&1).is_none() && !net.agrees());
        assert!(net.events().iter().any(|(node, e)| (*node, e) == (0, &Event::TooLarge)));
        // A smaller one in its place ends that.
        net.node_mut(0).change(|map| map.set(&mut at, &hlc, 1, "small".into())).unwrap();
        net.converge(10).unwrap();
    }
}

#[test]
fn g3_a_change_with_dots_that_fits_into_no_message_holds_nothing_else_up() {
    let mut net = Network::<RwSet<String>>::new(2, 3, |c| c).unwrap();
    let mut at = actor(1);
    let large = "x".repeat(5_000);
    net.node_mut(0).change(|set| set.add(&mut at, large.clone())).unwrap();
    for n in 0..100 {
        net.node_mut(0).change(|set| set.add(&mut at, format!("{n}"))).unwrap();
    }
    net.run(10);
    let there = net.node(1).state();
    assert!((0..100).all(|n| there.contains(&format!("{n}"))));
    assert!(!there.contains(&large) && net.node(0).state().contains(&large));
}

/// `count` elements, added at once.
fn bulk(set: &mut AwSet<u64>, at: &mut Actor, count: u64) -> mainstay_consistency::Result<AwSet<u64>> {
    let mut delta = AwSet::new();
    for n in 0..count {
        let _ = delta.join(&set.add(at, n)?)?;
    }
    Ok(delta)
}

#[test]
fn g8_a_change_of_more_parts_than_are_put_together_arrives_by_repair() {
    for root_first in [false, true] {
        let build = |c: Builder| if root_first { c.root_first() } else { c };
        let mut net = Network::<AwSet<u64>>::new(2, 3, build).unwrap();
        let mut at = actor(1);
        net.node_mut(0).change(|set| bulk(set, &mut at, 30_000)).unwrap();
        let size = mainstay_consistency::wire::encode(net.node(0).state()).len();
        assert!(size > 64 * 1_200 && size < 1 << 20, "{size} bytes: too many parts, and the log keeps it");
        net.node_mut(0).change(|set| set.add(&mut at, 77_777)).unwrap();
        let rounds = net.converge(40).unwrap_or_else(|v| panic!("root first: {root_first}: {v}"));
        println!("{size} bytes in {rounds} rounds");
        assert!(net.node(1).state().contains(&77_777));
    }
}

#[test]
fn g2_parts_of_different_deltas_are_never_one() {
    let start = |me: u64| {
        let config = AntiEntropyConfig::builder(me, 10 + me, DigestKey::new([1; 16])).members([1, 2]);
        config.max_message(512).build(AwSet::<u64>::new()).unwrap()
    };
    let (mut one, mut two) = (start(1), start(2));
    // Changes of many authors, as a node passes them on: together they take more than each for itself.
    let write = |one: &mut AntiEntropy<AwSet<u64>>, authors| {
        for n in authors {
            one.change(|set| set.add(&mut actor(n), n)).unwrap();
        }
    };
    let parts = |packets: Vec<(u64, Vec<u8>)>| {
        let [first, second] = <[_; 2]>::try_from(packets).expect("one delta in two parts");
        [first.1, second.1]
    };
    write(&mut one, 1..25);
    let [a0, _lost] = parts(one.news(2));
    write(&mut one, 25..30);
    let [_lost, b1] = parts(one.news(2));
    assert!(!two.on_msg(1, &a0, Instant::ZERO).changed.is_yes());
    let step = two.on_msg(1, &b1, Instant::ZERO);
    assert!(!step.changed.is_yes(), "the middle never arrived");
    for (_, ack) in step.send {
        one.on_msg(2, &ack, Instant::ZERO);
    }
    let again = parts(one.news(2));
    for part in again {
        two.on_msg(1, &part, Instant::ZERO);
    }
    assert_eq!(one.state(), two.state());
}
