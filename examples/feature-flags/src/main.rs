//! Feature flags of a fleet: ten nodes, a network that loses half of everything, an emergency stop that wins over
//! a roll-out at the same moment. First in memory, then over real sockets.

mod real;

use anyhow::ensure;
use mainstay::clock::{Instant, Rng as _, SeededRng};
use mainstay::consistency::crdt::{AwMap, DotFun, Vote};
use mainstay::consistency::replicate::{AntiEntropy, AntiEntropyConfig, DigestKey};
use mainstay::consistency::{Actor, ActorId};

/// A flag is on when nobody turned it off at the same time.
type Flags = AwMap<String, DotFun<Vote>>;

const NODES: u64 = 10;

fn is_on(node: &AntiEntropy<Flags>, flag: &str) -> bool {
    node.state().get(&flag.to_owned()).is_some_and(|votes| votes.is_on())
}

/// One tick everywhere. Every second message is lost.
fn round(nodes: &mut [AntiEntropy<Flags>], rng: &SeededRng) {
    for from in 0..nodes.len() {
        let mut open: Vec<(usize, u64, Vec<u8>)> =
            nodes[from].on_tick(Instant::ZERO).into_iter().map(|(to, m)| (from, to, m)).collect();
        while let Some((from, to, message)) = open.pop() {
            if rng.below(2) == 0 {
                continue;
            }
            let to = usize::try_from(to - 1).unwrap_or(usize::MAX);
            let step = nodes[to].on_msg(from as u64 + 1, &message, Instant::ZERO);
            open.extend(step.send.into_iter().map(|(next, m)| (to, next, m)));
        }
    }
}

fn main() -> anyhow::Result<()> {
    let node = |me: u64| {
        let config = AntiEntropyConfig::builder(me, 500 + me, DigestKey::new(*b"flags of a fleet"));
        config.members(1..=NODES).build(Flags::new())
    };
    let mut nodes = (1..=NODES).map(node).collect::<Result<Vec<_>, _>>()?;
    let mut actors: Vec<Actor> = (1..=NODES).map(|n| Actor::new(ActorId::new(n, 1, 0))).collect();
    let rng = SeededRng::new(7);

    nodes[0].change(|f| f.update(&mut actors[0], "new-checkout".into(), |flag, mint| flag.turn_on(mint)))?;
    nodes[1].change(|f| f.update(&mut actors[1], "dark-mode".into(), |flag, mint| flag.turn_on(mint)))?;
    let mut rounds = 0;
    while !nodes.iter().all(|n| is_on(n, "new-checkout") && is_on(n, "dark-mode")) {
        round(&mut nodes, &rng);
        rounds += 1;
        ensure!(rounds < 100, "the fleet does not agree");
    }

    // Somebody rolls out further, and at the same moment somebody else pulls the emergency stop.
    nodes[3].change(|f| f.update(&mut actors[3], "new-checkout".into(), |flag, mint| flag.turn_on(mint)))?;
    nodes[7].change(|f| f.update(&mut actors[7], "new-checkout".into(), |flag, mint| flag.turn_off(mint)))?;
    let mut stopped = 0;
    while nodes.iter().any(|n| n.state() != nodes[0].state()) {
        round(&mut nodes, &rng);
        stopped += 1;
        ensure!(stopped < 100, "the fleet does not agree");
    }
    ensure!(nodes.iter().all(|n| !is_on(n, "new-checkout")), "off wins");
    ensure!(nodes.iter().all(|n| is_on(n, "dark-mode")), "and nothing else changed");
    println!(
        "on everywhere after {rounds} rounds, off everywhere after {stopped}, half of all messages lost"
    );
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(real::run())
}
