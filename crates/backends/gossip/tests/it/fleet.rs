//! Fleets in virtual time: rounds, bytes, loss, size.

use std::sync::Arc;
use std::time::Duration;

use mainstay_consistency::crdt::{AwSet, LwwMap};
use mainstay_consistency::hlc::Hlc;
use mainstay_gossip::{Gossip, Presence};

use crate::Test;
use crate::net::{World, address, name, run};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_cold_fleet_of_a_hundred_knows_everything_at_once",
        a_cold_fleet_of_a_hundred_knows_everything_at_once,
    ),
    (
        "a_cold_fleet_of_five_hundred_knows_everything_in_a_few_rounds",
        a_cold_fleet_of_five_hundred_knows_everything_in_a_few_rounds,
    ),
    ("a_hundred_nodes_converge_in_three_rounds", a_hundred_nodes_converge_in_three_rounds),
    ("a_hundred_idle_nodes_send_little", a_hundred_idle_nodes_send_little),
    ("g5_half_of_everything_lost_still_converges", g5_half_of_everything_lost_still_converges),
    ("g1_five_hundred_nodes_converge_in_datagrams", g1_five_hundred_nodes_converge_in_datagrams),
    ("c7_what_a_wrong_clock_stamped_waits_for_its_time", c7_what_a_wrong_clock_stamped_waits_for_its_time),
];

/// The time of a round.
const ROUND: Duration = Duration::from_millis(300);

pub(crate) fn all_up(nodes: &[Gossip<AwSet<u64>>]) -> bool {
    nodes.iter().all(|n| n.members().iter().filter(|m| m.presence == Presence::Up).count() == nodes.len() - 1)
}

async fn formed(world: &World, count: usize, members: bool) -> Vec<Gossip<AwSet<u64>>> {
    let names: Vec<String> = (0..count).map(name).collect();
    let nodes = world.fleet(count, |c| if members { c.members(names.clone()) } else { c }).await;
    let took = world.until(Duration::from_secs(120), || all_up(&nodes)).await;
    println!("{count} nodes found each other in {:?}", took.expect("all are seen"));
    nodes
}

/// Rounds until every node has what one of them adds.
async fn rounds(world: &World, nodes: &[Gossip<AwSet<u64>>], value: u64) -> u128 {
    let at = world.below(nodes.len());
    nodes[at].change(|set, actor| set.add(actor, value)).unwrap();
    let has = || nodes.iter().all(|n| n.read(|set| set.contains(&value)));
    let took = world.until(Duration::from_secs(60), has).await.expect("everybody has it");
    took.as_nanos().div_ceil(ROUND.as_nanos())
}

/// A hundred nodes that start together know one seed and have something to tell. What each heard from several it passed on
/// as often: after four seconds and half a gigabyte some still lacked something.
fn a_cold_fleet_of_a_hundred_knows_everything_at_once() {
    for seed in [15, 16, 17] {
        run(seed, async |world| {
            let nodes = world.fleet::<AwSet<u64>>(100, |c| c.seeds([address(0)])).await;
            for (n, node) in nodes.iter().enumerate() {
                node.change(|set, actor| set.add(actor, n as u64)).unwrap();
            }
            let all = || nodes.iter().all(|n| n.read(|set| set.elements().count() == 100));
            let took = world.until(Duration::from_secs(30), all).await.expect("everybody has everything");
            let each = world.bytes() / 100;
            println!("100 nodes from cold: {took:?}, {each} bytes each");
            assert!(took <= 4 * ROUND, "{took:?}");
            assert!(each <= 200_000, "{each} bytes each");
            let took = world.until(Duration::from_secs(60), || all_up(&nodes)).await.expect("all are seen");
            println!("and {took:?} more until each had seen each");
        });
    }
}

/// Five hundred that start together. Whoever met somebody for the first time told it all of its log, in datagrams of which
/// those counted that came in order: after thirteen rounds, with 4,300 packets and two megabytes each, some lacked something.
fn a_cold_fleet_of_five_hundred_knows_everything_in_a_few_rounds() {
    const NODES: usize = 500;
    run(19, async |world| {
        let nodes = world.fleet::<AwSet<u64>>(NODES, |c| c.seeds([address(0)])).await;
        for (n, node) in nodes.iter().enumerate() {
            node.change(|set, actor| set.add(actor, n as u64)).unwrap();
        }
        let all = || nodes.iter().all(|n| n.read(|set| set.elements().count() == NODES));
        let took = world.until(8 * ROUND, all).await.expect("everybody has everything");
        let packets = nodes.iter().map(|n| n.stats().sent).sum::<u64>() / NODES as u64;
        let each = world.bytes() / NODES as u64;
        println!("{NODES} nodes from cold: {took:?}, {packets} packets and {each} bytes each");
        assert!(took <= 4 * ROUND, "{took:?}");
        assert!(packets <= 600 && each <= 400_000, "{packets} packets, {each} bytes each");
        // Hardly any two of them ever found out that they have the same.
        let mut all = Vec::new();
        for value in 0..3 {
            all.push(rounds(&world, &nodes, 1_000 + value).await);
        }
        println!("rounds of a change right after: {all:?}");
        assert!(all.iter().all(|r| *r <= 6), "{all:?}");
    });
}

fn a_hundred_nodes_converge_in_three_rounds() {
    run(11, async |world| {
        let nodes = formed(&world, 100, true).await;
        let mut all = Vec::new();
        for value in 0..11 {
            all.push(rounds(&world, &nodes, value).await);
            world.sleep(Duration::from_millis(400)).await;
        }
        all.sort_unstable();
        println!("rounds to converge at 100 nodes: {all:?}");
        assert!(all[all.len() / 2] <= 3, "{all:?}");
        assert!(all[all.len() - 1] <= 6, "{all:?}");
    });
}

fn a_hundred_idle_nodes_send_little() {
    run(12, async |world| {
        let nodes = formed(&world, 100, true).await;
        // Every node is an author, as in a fleet that shares its status: the context names a hundred.
        for (n, node) in nodes.iter().enumerate() {
            node.change(|set, actor| set.add(actor, n as u64)).unwrap();
        }
        let same = || nodes.iter().all(|n| n.read(|set| set.elements().count() == 100));
        world.until(Duration::from_secs(60), same).await.expect("everybody has everything");
        world.sleep(Duration::from_secs(5)).await;
        let before = world.bytes();
        world.sleep(Duration::from_secs(10)).await;
        let each = (world.bytes() - before) / 10 / 100;
        println!("idle at 100 nodes: {each} bytes per second and node, with the headers of UDP and IP");
        assert!(each > 0 && each <= 10_000, "{each}");
        assert!(nodes.iter().all(|n| n.stats().malformed == 0 && n.stats().unauthenticated == 0));
    });
}

fn g5_half_of_everything_lost_still_converges() {
    run(13, async |world| {
        let nodes = formed(&world, 40, true).await;
        world.air.lock().unwrap().loss = 50;
        let mut all = Vec::new();
        for value in 0..7 {
            all.push(rounds(&world, &nodes, value).await);
        }
        println!("rounds at 40 nodes and 50 % loss: {all:?}");
        // And what was removed stays removed everywhere.
        nodes[3].change(|set, actor| set.remove(actor, &5)).unwrap();
        let gone = || nodes.iter().all(|n| n.read(|set| !set.contains(&5)));
        world.until(Duration::from_secs(60), gone).await.expect("everybody lost it");
    });
}

fn g1_five_hundred_nodes_converge_in_datagrams() {
    run(14, async |world| {
        // A list: how five hundred find each other is another question, and this one is about digests.
        let list: Vec<_> = (0..500).map(|n| (name(n), address(n))).collect();
        let nodes = world.fleet::<AwSet<u64>>(500, |c| c.list(list.clone())).await;
        let mut all = Vec::new();
        for value in 0..3 {
            all.push(rounds(&world, &nodes, value).await);
        }
        world.air.lock().unwrap().loss = 50;
        all.push(rounds(&world, &nodes, 100).await);
        println!("rounds at 500 nodes, the last one at 50 % loss: {all:?}");
        let air = world.air.lock().unwrap();
        assert!(air.largest_datagram <= 1_200 && air.frames == 0);
        assert!(all.iter().all(|r| *r <= 12), "{all:?}");
    });
}

/// How far the wrong clock is ahead.
const AHEAD: Duration = Duration::from_secs(20);

fn c7_what_a_wrong_clock_stamped_waits_for_its_time() {
    run(18, async |world| {
        let right = Hlc::builder(Arc::clone(world.rt.clock())).build().unwrap();
        let ahead = world.clock.node(Duration::ZERO, 1.0);
        ahead.jump_wall(AHEAD.as_millis() as i64);
        let wrong = Hlc::builder(Arc::new(ahead)).build().unwrap();
        let nodes = world.fleet::<LwwMap<u64, u64>>(3, |c| c.clock(right.clone())).await;
        nodes[0].change(|map, actor| map.set(actor, &right, 7, 1)).unwrap();
        let read = |n: usize, key: u64| nodes[n].read(|map| map.get(&key).copied());
        world.until(AHEAD, || (0..3).all(|n| read(n, 7) == Some(1))).await.expect("all have the first");
        nodes[2].change(|map, actor| map.set(actor, &wrong, 7, 666)).unwrap();
        nodes[2].change(|map, actor| map.set(actor, &right, 8, 2)).unwrap();
        let told = || (0..2).all(|n| nodes[n].stats().from_the_future == 1 && read(n, 8) == Some(2));
        world.until(AHEAD / 4, told).await.expect("both tell of it, and take what is of now");
        assert_eq!((read(0, 7), read(1, 7)), (Some(1), Some(1)));
        let took = world.until(2 * AHEAD, || (0..2).all(|n| read(n, 7) == Some(666))).await;
        assert!(took.expect("it comes in its time") > AHEAD / 2, "{took:?}");
        assert_eq!(nodes[0].stats().from_the_future, 1, "it is told once");
    });
}
