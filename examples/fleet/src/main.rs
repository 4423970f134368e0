//! Twenty nodes call one dependency. One has a broken network card: nobody else minds. The dependency dies: everybody
//! is armed by what the others report. It comes back: few probes meet it, not three per node.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use mainstay::clock::{Clock, Runtime, SystemClock};
use mainstay::resilience::Breaker;
use mainstay::resilience::breaker::State;
use mainstay::resilience::fleet::{Fleet, MemoryHub};

const NODES: usize = 20;
/// Short, so that the story ends within seconds of real time.
const PERIOD: Duration = Duration::from_millis(50);

struct Node {
    fleet: Fleet,
    breaker: Breaker,
}

fn node(hub: &MemoryHub, i: usize) -> anyhow::Result<Node> {
    let name = format!("node-{i}");
    let fleet = Fleet::builder(name.as_str(), Arc::new(hub.join(name.as_str()))).period(PERIOD).build()?;
    let breaker = Breaker::builder("db")
        .window(Duration::from_secs(1))
        .open_for(PERIOD * 4)
        .probe_gate(fleet.gate())
        .build()?;
    fleet.watch(&breaker);
    Ok(Node { fleet, breaker })
}

fn main() -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let hub = MemoryHub::new(Arc::clone(&clock));
    let nodes = (0..NODES).map(|i| node(&hub, i)).collect::<anyhow::Result<Vec<_>>>()?;
    let count = |f: &dyn Fn(&Node) -> bool| nodes.iter().filter(|n| f(n)).count();
    let closed = |n: &Node| n.breaker.state() == State::Closed;

    rounds(&nodes, 20, |i| i == 7);
    ensure!(!closed(&nodes[7]), "the node with the broken card has opened");
    ensure!(count(&closed) == NODES - 1 && count(&|n| n.fleet.is_armed("db")) == 0, "nobody else minds");
    println!("one broken card: 1 breaker open, 0 nodes armed");

    let mut most = 0;
    while count(&closed) > 0 {
        rounds(&nodes, 1, |_| true);
        most = most.max(count(&|n| n.fleet.is_armed("db")));
    }
    println!("dependency dead: {most} of {NODES} were armed by their peers");
    ensure!(most * 2 >= NODES, "{most}");

    // A probe passes now and then; each that succeeds closes one node.
    let begun = clock.now();
    while count(&closed) < NODES {
        rounds(&nodes, 1, |_| false);
        ensure!(clock.now().saturating_duration_since(begun) < Duration::from_secs(60), "no recovery");
    }
    println!("recovered: all {NODES} nodes closed after {:?}", clock.now().saturating_duration_since(begun));
    // In a service one call starts all of this: `fleet.start(&runtime)`.
    let _ = Runtime::system();
    Ok(())
}

/// Every node makes ten calls and one step per round; a round takes a quarter of a period.
fn rounds(nodes: &[Node], rounds: usize, fails: impl Fn(usize) -> bool) {
    for _ in 0..rounds {
        for (i, node) in nodes.iter().enumerate() {
            node.fleet.step();
            for _ in 0..10 {
                if let Ok(ticket) = node.breaker.admit() {
                    if fails(i) { ticket.failure() } else { ticket.success() }
                }
            }
        }
        std::thread::park_timeout(PERIOD / 4);
    }
}
