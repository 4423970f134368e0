//! Who is there: joining, leaving, dying, coming back.

use std::time::Duration;

use mainstay_consistency::crdt::{AwSet, RwSet};
use mainstay_gossip::{Change, Config, Event, Gossip, Member, Presence};

use crate::Test;
use crate::fleet::all_up;
use crate::net::{World, address, keys, name, run};

pub(crate) const TESTS: &[Test] = &[
    (
        "g6_a_node_that_knows_nobody_goes_on_asking_its_seeds",
        g6_a_node_that_knows_nobody_goes_on_asking_its_seeds,
    ),
    ("g6_halves_that_lost_each_other_meet_again", g6_halves_that_lost_each_other_meet_again),
    ("g4_dead_lives_take_no_room", g4_dead_lives_take_no_room),
    (
        "g4_more_members_than_there_is_room_for_are_not_learned_of",
        g4_more_members_than_there_is_room_for_are_not_learned_of,
    ),
    (
        "a_member_that_dies_is_noticed_and_one_that_leaves_at_once",
        a_member_that_dies_is_noticed_and_one_that_leaves_at_once,
    ),
    ("only_configured_members_decide_what_is_forgotten", only_configured_members_decide_what_is_forgotten),
    ("a_list_needs_no_seeds", a_list_needs_no_seeds),
];

fn up(node: &Gossip<AwSet<u64>>) -> usize {
    node.members().iter().filter(|m| m.presence == Presence::Up).count()
}

fn g6_a_node_that_knows_nobody_goes_on_asking_its_seeds() {
    run(21, async |world| {
        // The seed is not there for two minutes.
        let early = world.fleet::<AwSet<u64>>(2, |c| c.seeds([address(9)])).await;
        world.sleep(Duration::from_secs(120)).await;
        assert!(early.iter().all(|n| up(n) == 0));
        let config = Config::builder("late", "test").keys(keys()).build().unwrap();
        let seed = world.start::<AwSet<u64>>(9, config, None).await;
        let all = || up(&seed) == 2 && early.iter().all(|n| up(n) == 2);
        let took = world.until(Duration::from_secs(30), all).await.expect("all found each other");
        assert!(took < Duration::from_secs(10), "{took:?}");
    });
}

fn g6_halves_that_lost_each_other_meet_again() {
    run(22, async |world| {
        let nodes = world.fleet::<AwSet<u64>>(6, |c| c).await;
        world.until(Duration::from_secs(30), || all_up(&nodes)).await.unwrap();
        // For longer than anybody is remembered: each half forgets the other.
        for a in 0..3 {
            for b in 3..6 {
                let pair = (address(a), address(b));
                world.air.lock().unwrap().cut.extend([pair, (pair.1, pair.0)]);
            }
        }
        world.sleep(Duration::from_secs(1_000)).await;
        assert!(nodes.iter().all(|n| up(n) == 2), "{:?}", nodes.iter().map(up).collect::<Vec<_>>());
        nodes[0].change(|set, actor| set.add(actor, 1)).unwrap();
        nodes[5].change(|set, actor| set.add(actor, 2)).unwrap();
        world.air.lock().unwrap().cut.clear();
        world.until(Duration::from_secs(120), || all_up(&nodes)).await.expect("the halves met");
        let same = || nodes.iter().all(|n| n.read(|set| set.elements().count() == 2));
        world.until(Duration::from_secs(10), same).await.expect("and agree");
    });
}

async fn one_life(world: &World, seed: &Gossip<AwSet<u64>>, life: u64) {
    let config = Config::builder("guest", "test").keys(keys()).seeds([address(0)]).build().unwrap();
    let guest = world.start::<AwSet<u64>>(1, config, None).await;
    let there = |up: bool| {
        move || {
            let id = Member::id_of("guest");
            seed.members().iter().any(|m| m.id == id && (m.presence == Presence::Up) == up)
        }
    };
    world.until(Duration::from_secs(30), there(true)).await.unwrap_or_else(|| panic!("life {life}"));
    guest.shutdown().await.unwrap();
    world.until(Duration::from_secs(30), there(false)).await.unwrap_or_else(|| panic!("end of life {life}"));
}

fn g4_dead_lives_take_no_room() {
    run(23, async |world| {
        let config = Config::builder("seed", "test").keys(keys()).build().unwrap();
        let seed = world.start::<AwSet<u64>>(0, config, None).await;
        for life in 0..30 {
            one_life(&world, &seed, life).await;
        }
        let (peers, identities) = seed.remembered();
        assert!(identities <= 1, "{identities} identities of one guest with 30 lives");
        assert!(peers <= 1);
        // Whoever is gone for long is forgotten.
        world.sleep(Duration::from_secs(1_000)).await;
        assert_eq!(seed.remembered().1, 0);
    });
}

fn g4_more_members_than_there_is_room_for_are_not_learned_of() {
    run(24, async |world| {
        let config = Config::builder("seed", "test").keys(keys()).max_members(5).build().unwrap();
        let seed = world.start::<AwSet<u64>>(0, config, None).await;
        let mut guests = Vec::new();
        for n in 1..20 {
            let config = Config::builder(&name(n), "test").keys(keys()).seeds([address(0)]).build().unwrap();
            guests.push(world.start::<AwSet<u64>>(n, config, None).await);
        }
        world.sleep(Duration::from_secs(60)).await;
        assert_eq!(seed.remembered().1, 5);
        assert!(seed.stats().crowded > 0);
    });
}

fn a_member_that_dies_is_noticed_and_one_that_leaves_at_once() {
    run(25, async |world| {
        let nodes = world.fleet::<AwSet<u64>>(20, |c| c).await;
        world.until(Duration::from_secs(30), || all_up(&nodes)).await.unwrap();
        let gone = |n: usize| {
            let nodes = &nodes;
            move || {
                let id = Member::id_of(&name(n));
                nodes[..10]
                    .iter()
                    .all(|x| x.members().iter().any(|m| m.id == id && m.presence == Presence::Down))
            }
        };
        nodes[19].shutdown().await.unwrap();
        let left = world.until(Duration::from_secs(60), gone(19)).await.expect("it left");
        world.air.lock().unwrap().dark.insert(address(18));
        let died = world.until(Duration::from_secs(60), gone(18)).await.expect("it died");
        println!("left: seen after {left:?}; died: seen after {died:?}");
        assert!(left < Duration::from_secs(3), "{left:?}");
        assert!(died < Duration::from_secs(15), "{died:?}");
        let id = Member::id_of(&name(18));
        assert!(nodes[0].take_events().contains(&Event::Member(Change::Down(id))));
    });
}

fn only_configured_members_decide_what_is_forgotten() {
    run(26, async |world| {
        // Two configured members, one of them away; a third node is seen and acknowledges everything.
        let start = async |n: usize, list: [&str; 2]| {
            let mut config = Config::builder(&name(n), "test").keys(keys()).seeds([address(0)]);
            if n < 2 {
                config = config.members(list);
            }
            world.start::<RwSet<u64>>(n, config.build().unwrap(), None).await
        };
        let (one, seen) = (start(0, ["n0", "n1"]).await, start(2, ["n0", "n1"]).await);
        one.change(|set, actor| set.add(actor, 7)).unwrap();
        one.change(|set, actor| set.remove(actor, 7)).unwrap();
        let knows = || seen.digest() == one.digest();
        world.until(Duration::from_secs(30), knows).await.unwrap();
        world.sleep(Duration::from_secs(30)).await;
        let hidden = |node: &Gossip<RwSet<u64>>| node.read(|set| set.tombstones());
        assert_eq!(hidden(&one), 1, "a member that is away may still bring it back");
        let two = start(1, ["n0", "n1"]).await;
        let done = || hidden(&one) == 0 && hidden(&two) == 0;
        world.until(Duration::from_secs(60), done).await.expect("all members have it: it is forgotten");
    });
}

fn a_list_needs_no_seeds() {
    run(27, async |world| {
        let list: Vec<(String, std::net::SocketAddr)> = (0..3).map(|n| (name(n), address(n))).collect();
        let nodes = world.fleet::<AwSet<u64>>(3, |c| c.list(list.clone())).await;
        nodes[0].change(|set, actor| set.add(actor, 1)).unwrap();
        let has = || nodes.iter().all(|n| n.read(|set| set.contains(&1)));
        world.until(Duration::from_secs(5), has).await.unwrap();
        assert!(nodes[1].members().iter().all(|m| m.configured && m.address.is_some()));
    });
}
