//! Writes from a clock that is hours ahead, over anti-entropy: nobody takes them in before their time, and nothing is lost.

use mainstay_consistency::crdt::{DotMap, Latest, LwwCell, LwwMap, LwwRegister, RwMap};
use mainstay_consistency::hlc::Hlc;
use mainstay_consistency::laws::network::{Network, Weather};
use mainstay_consistency::replicate::{Event, Replicated};

use crate::{actor, clock};

const NOW: i64 = 1_000_000_000;
const AHEAD: i64 = 7_200_000;

/// Three nodes that go by `hlc`.
fn network<T: Replicated>(hlc: &Hlc) -> Network<T> {
    Network::new(3, 5, |config| config.clock(hlc.clone())).unwrap()
}

/// How often `node` told of a write of the future.
fn told<T: Replicated>(net: &Network<T>, node: usize) -> usize {
    net.events().iter().filter(|e| **e == (node, Event::FromTheFuture { peer: 3 })).count()
}

#[test]
fn c7_s4_a_write_of_the_future_is_held_back_everywhere_and_comes_in_its_time() {
    for weather in [Weather::CALM, Weather::STORM] {
        let (hlc, wall) = clock(NOW);
        let (fast, _) = clock(NOW + AHEAD);
        let (mut one, mut three) = (actor(1), actor(3));
        let mut net = network::<LwwMap<u64, u64>>(&hlc);
        net.node_mut(0).change(|map| map.set(&mut one, &hlc, 7, 1)).unwrap();
        net.converge(20).unwrap();
        net.weather = weather;

        net.node_mut(2).change(|map| map.set(&mut three, &fast, 7, 666)).unwrap();
        net.node_mut(2).change(|map| map.set(&mut three, &hlc, 8, 5)).unwrap();
        net.run(60);
        for node in 0..2 {
            let state = net.node(node).state();
            assert_eq!(state.get(&7), Some(&1), "what it replaces is not gone before its time");
            assert_eq!(state.get(&8), Some(&5), "nothing else waits for it");
            assert_eq!(told(&net, node), 1, "it is told once");
        }
        // Its key can still be written, and read by all whose clocks are right.
        net.node_mut(0).change(|map| map.set(&mut one, &hlc, 7, 2)).unwrap();
        net.run(60);
        assert_eq!(net.node(1).state().get(&7), Some(&2));

        wall.set(NOW + AHEAD);
        hlc.accept_jump();
        net.weather = Weather::CALM;
        net.converge(50).unwrap();
        assert_eq!(net.node(0).state().get(&7), Some(&666), "nothing is lost: it is the newest now");
    }
}

#[test]
fn c7_a_register_of_the_future_is_held_back() {
    let (hlc, wall) = clock(NOW);
    let (fast, _) = clock(NOW + AHEAD);
    let mut net = network::<LwwRegister<u64>>(&hlc);
    net.node_mut(0).change(|register| register.set(&hlc, actor(1).id(), 1)).unwrap();
    net.converge(20).unwrap();
    net.node_mut(2).change(|register| register.set(&fast, actor(3).id(), 666)).unwrap();
    net.run(20);
    assert_eq!((net.node(0).state().get(), net.node(1).state().get()), (Some(&1), Some(&1)));
    assert!(told(&net, 0) == 1 && told(&net, 1) == 1);
    wall.set(NOW + AHEAD);
    hlc.accept_jump();
    net.converge(20).unwrap();
    assert_eq!(net.node(1).state().get(), Some(&666));
}

#[test]
fn c7_a_key_comes_with_its_value_of_the_future() {
    type Record = DotMap<u64, LwwCell<u64>, Latest>;
    let (hlc, wall) = clock(NOW);
    let (fast, _) = clock(NOW + AHEAD);
    let (mut one, mut three) = (actor(1), actor(3));
    let mut net = network::<RwMap<u64, Record>>(&hlc);
    let write = |hlc: &Hlc, value: u64| {
        let hlc = hlc.clone();
        move |record: &Record, mint: &mut mainstay_consistency::crdt::Mint<'_>| {
            record.write_key(mint, &hlc, 0, Some(value))
        }
    };
    net.node_mut(0).change(|map| map.update(&mut one, 7, write(&hlc, 1))).unwrap();
    net.converge(20).unwrap();
    net.node_mut(2).change(|map| map.update(&mut three, 7, write(&fast, 666))).unwrap();
    net.node_mut(2).change(|map| map.update(&mut three, 8, write(&fast, 667))).unwrap();
    net.run(20);
    let read = |net: &Network<RwMap<u64, Record>>, key| {
        net.node(0).state().get(&key).map(|record| record.get(&0).copied())
    };
    assert_eq!((read(&net, 7), read(&net, 8)), (Some(Some(1)), None));
    wall.set(NOW + AHEAD);
    hlc.accept_jump();
    net.converge(20).unwrap();
    assert_eq!((read(&net, 7), read(&net, 8)), (Some(Some(666)), Some(Some(667))));
}

#[test]
fn l18_a_clock_takes_note_of_what_anti_entropy_brings() {
    let (hlc, _) = clock(NOW);
    let (ahead, _) = clock(NOW + 400);
    let mut three = actor(3);
    let mut net = network::<LwwMap<u64, u64>>(&hlc);
    net.node_mut(2).change(|map| map.set(&mut three, &ahead, 7, 1)).unwrap();
    net.converge(20).unwrap();
    assert!(hlc.now().unwrap() > ahead.last(), "what follows has the larger stamp");
}
