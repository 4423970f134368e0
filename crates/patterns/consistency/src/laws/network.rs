//! Whole networks in memory: loss, repetition, reordering, partitions, for L11 and L14.

use std::collections::BTreeSet;

use mainstay_clock::{Instant, Rng, SeededRng};

use crate::error::Result;
use crate::laws::{Law, Replica, Subject, Violation};
use crate::replicate::{AntiEntropy, AntiEntropyConfig, DigestKey, Event, Replicated};

/// What the network does to messages, each in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Weather {
    /// Lost.
    pub loss: u64,
    /// Delivered twice.
    pub doubled: u64,
    /// Held back behind later ones.
    pub late: u64,
}

impl Weather {
    /// Nothing happens.
    pub const CALM: Self = Self { loss: 0, doubled: 0, late: 0 };
    /// Half of everything is lost, and the rest is doubled and shuffled.
    pub const STORM: Self = Self { loss: 50, doubled: 20, late: 30 };

    /// Weather with these percentages.
    #[must_use]
    pub const fn new(loss: u64, doubled: u64, late: u64) -> Self {
        Self { loss, doubled, late }
    }
}

/// Nodes that talk through memory. One seed is one execution.
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, crdt::AwSet};
/// use mainstay_consistency::laws::network::{Network, Weather};
///
/// let mut net = Network::<AwSet<u64>>::new(3, 7, |config| config)?;
/// let mut actor = Actor::new(ActorId::new(1, 1, 0));
/// net.node_mut(0).change(|set| set.add(&mut actor, 5))?;
/// net.weather = Weather::STORM;
/// net.run(20);
/// net.weather = Weather::CALM;
/// net.converge(20).unwrap();
/// assert!(net.node(2).state().contains(&5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Network<T> {
    nodes: Vec<AntiEntropy<T>>,
    /// Nodes that do not run.
    down: BTreeSet<usize>,
    /// Pairs that cannot hear each other: messages from the first never reach the second.
    cut: BTreeSet<(usize, usize)>,
    /// What the network does now.
    pub weather: Weather,
    waiting: Vec<(usize, usize, Vec<u8>)>,
    rng: SeededRng,
    bytes: u64,
    messages: u64,
    largest: usize,
    events: Vec<(usize, Event)>,
}

impl<T: Replicated> Network<T> {
    /// `count` members with empty states; `options` changes the options of each. Node `i` has the identity `i + 1`.
    ///
    /// # Errors
    /// A refused option.
    pub fn new(
        count: usize,
        seed: u64,
        options: impl Fn(crate::replicate::Builder) -> crate::replicate::Builder,
    ) -> Result<Self> {
        let members = 1..=count as u64;
        let node = |me: u64| -> Result<AntiEntropy<T>> {
            let config = AntiEntropyConfig::builder(me, seed.wrapping_add(me << 32), DigestKey::new([9; 16]));
            Ok(options(config.members(members.clone())).build(T::default())?)
        };
        Ok(Self {
            nodes: (1..=count as u64).map(node).collect::<Result<_>>()?,
            down: BTreeSet::new(),
            cut: BTreeSet::new(),
            weather: Weather::CALM,
            waiting: Vec::new(),
            rng: SeededRng::new(seed),
            bytes: 0,
            messages: 0,
            largest: 0,
            events: Vec::new(),
        })
    }

    /// A node.
    #[must_use]
    pub fn node(&self, index: usize) -> &AntiEntropy<T> {
        &self.nodes[index]
    }

    /// A node, to change it.
    pub fn node_mut(&mut self, index: usize) -> &mut AntiEntropy<T> {
        &mut self.nodes[index]
    }

    /// Stops or starts a node. It keeps its memory.
    pub fn set_down(&mut self, index: usize, down: bool) {
        if down {
            self.down.insert(index);
        } else {
            self.down.remove(&index);
        }
    }

    /// Cuts what `from` sends to `to`; the other direction goes on.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    /// Heals every cut.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Bytes sent so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Messages sent so far.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// The largest message so far.
    #[must_use]
    pub fn largest(&self) -> usize {
        self.largest
    }

    /// What the nodes reported so far.
    #[must_use]
    pub fn events(&self) -> &[(usize, Event)] {
        &self.events
    }

    /// One tick of every node, and everything that follows from it.
    pub fn round(&mut self) {
        for index in 0..self.nodes.len() {
            if !self.down.contains(&index) {
                let send = self.nodes[index].on_tick(Instant::ZERO);
                self.send(index, send);
            }
        }
        // Answers to answers end; the bound is against bugs.
        for _ in 0..64 {
            let now = std::mem::take(&mut self.waiting);
            if now.is_empty() {
                return;
            }
            for (from, to, bytes) in now {
                if self.rng.below(100) < self.weather.late {
                    self.waiting.push((from, to, bytes));
                } else {
                    self.deliver(from, to, &bytes);
                }
            }
        }
    }

    fn send(&mut self, from: usize, send: Vec<(u64, Vec<u8>)>) {
        for (to, bytes) in send {
            self.bytes += bytes.len() as u64;
            self.messages += 1;
            self.largest = self.largest.max(bytes.len());
            let to = to as usize - 1;
            if self.rng.below(100) < self.weather.doubled {
                self.waiting.push((from, to, bytes.clone()));
            }
            if self.rng.below(100) >= self.weather.loss {
                let at = if self.rng.below(100) < self.weather.late {
                    self.rng.below(self.waiting.len() as u64 + 1) as usize
                } else {
                    self.waiting.len()
                };
                self.waiting.insert(at, (from, to, bytes));
            }
        }
    }

    fn deliver(&mut self, from: usize, to: usize, bytes: &[u8]) {
        if self.down.contains(&to) || self.cut.contains(&(from, to)) || to >= self.nodes.len() {
            return;
        }
        let step = self.nodes[to].on_msg(from as u64 + 1, bytes, Instant::ZERO);
        self.events.extend(step.events.into_iter().map(|event| (to, event)));
        self.send(to, step.send);
    }

    /// One tick of `from`, of which only `to` hears, and everything that the two say to each other after it. Nothing is
    /// lost.
    pub fn talk(&mut self, from: usize, to: usize) {
        let both = |a: usize, b: u64| (a == from && b == to as u64 + 1) || (a == to && b == from as u64 + 1);
        let mut open: Vec<(usize, u64, Vec<u8>)> = self.nodes[from]
            .on_tick(Instant::ZERO)
            .into_iter()
            .map(|(peer, bytes)| (from, peer, bytes))
            .collect();
        open.reverse();
        while let Some((sender, peer, bytes)) = open.pop() {
            if both(sender, peer) {
                let receiver = peer as usize - 1;
                let step = self.nodes[receiver].on_msg(sender as u64 + 1, &bytes, Instant::ZERO);
                self.events.extend(step.events.into_iter().map(|event| (receiver, event)));
                open.extend(step.send.into_iter().rev().map(|(next, bytes)| (receiver, next, bytes)));
            }
        }
    }

    /// So many rounds.
    pub fn run(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.round();
        }
    }

    /// Whether every running node has the same state.
    #[must_use]
    pub fn agrees(&self) -> bool {
        let mut running =
            (0..self.nodes.len()).filter(|i| !self.down.contains(i)).map(|i| self.nodes[i].state());
        let first = running.next();
        running.all(|state| Some(state) == first)
    }

    /// Rounds until every running node has the same state.
    ///
    /// # Errors
    /// L11, when `most` rounds were not enough.
    pub fn converge(&mut self, most: usize) -> std::result::Result<usize, Violation> {
        for round in 0..=most {
            if self.agrees() {
                return Ok(round);
            }
            self.round();
        }
        let states: Vec<&T> = self.nodes.iter().map(AntiEntropy::state).collect();
        let mut detail = format!("{most} rounds without agreement: {states:?}");
        detail.truncate(2_000);
        Err(Violation::of(Law::L11, detail))
    }
}

/// What one schedule needs: a network and whoever makes its changes.
struct Scene<T> {
    net: Network<T>,
    replicas: Vec<Replica>,
}

impl<T: Replicated + Subject> Scene<T> {
    fn new(count: usize, seed: u64, absent: bool) -> std::result::Result<Self, Violation> {
        let options = |builder: crate::replicate::Builder| {
            if absent { builder.members([count as u64 + 1]) } else { builder }
        };
        let refused = |error: crate::Error| Violation::of(Law::L11, error.to_string());
        let net = Network::new(count, seed, options).map_err(refused)?;
        Ok(Self { net, replicas: (0..count).filter_map(|i| Replica::new(i, count)).collect() })
    }

    /// Two nodes talk until each knows what the other knows, and their clocks take note of the stamps exchanged. Less
    /// would compare two ways of asking, not two ways of forgetting.
    fn talk(&mut self, from: usize, to: usize) -> std::result::Result<(), Violation> {
        for _ in 0..4 {
            self.net.talk(from, to);
            self.net.talk(to, from);
        }
        for (a, b) in [(from, to), (to, from)] {
            let stamp = self.replicas[a].hlc.last();
            self.replicas[b].hlc.observe(stamp).map_err(|e| Violation::of(Law::L14, e.to_string()))?;
        }
        Ok(())
    }

    fn change(&mut self, at: usize, op: &T::Op) -> std::result::Result<(), Violation> {
        let replica = &mut self.replicas[at];
        let change = |state: &mut T| Ok(state.apply(op, replica).unwrap_or_default());
        self.net.node_mut(at).change(change).map_err(|e| Violation::of(Law::L11, e.to_string()))
    }
}

/// Checks L11: after random changes in `weather`, four nodes agree within 300 rounds of it. The rounds it took at most.
///
/// # Errors
/// The first seed that does not converge.
pub fn converges<T: Replicated + Subject>(
    seeds: std::ops::Range<u64>,
    weather: Weather,
) -> std::result::Result<usize, Violation> {
    const NODES: usize = 4;
    let (alphabet, mut most) = (T::alphabet(), 0);
    for seed in seeds {
        let (mut scene, rng) = (Scene::<T>::new(NODES, seed, false)?, SeededRng::new(seed));
        scene.net.weather = weather;
        for _ in 0..40 {
            scene.change(
                rng.below(NODES as u64) as usize,
                &alphabet[rng.below(alphabet.len() as u64) as usize],
            )?;
            if rng.below(3) == 0 {
                scene.net.round();
            }
        }
        let rounds = scene.net.converge(300).map_err(|found| Violation { seed, ..found })?;
        most = most.max(rounds);
    }
    Ok(most)
}

/// Checks what a node passes on of what it is told: joined to what it had, that gives what it has now (as L12 of what is
/// missing); every part of it was new; and there is something exactly if something changed (L9). Random changes at three
/// replicas, which tell each other single changes or all they have. How often something was told of which a part was known.
///
/// # Errors
/// The first seed that shows otherwise.
pub fn passes_on_news<T: Replicated + Subject>(
    seeds: std::ops::Range<u64>,
) -> std::result::Result<usize, Violation> {
    const NODES: usize = 3;
    let (alphabet, mut partly) = (T::alphabet(), 0);
    for seed in seeds {
        let rng = SeededRng::new(seed);
        let mut replicas: Vec<Replica> = (0..NODES).filter_map(|i| Replica::new(i, NODES)).collect();
        let (mut states, mut told) = (vec![T::default(); NODES], vec![T::default()]);
        for _ in 0..60 {
            let at = rng.below(NODES as u64) as usize;
            let op = &alphabet[rng.below(alphabet.len() as u64) as usize];
            if rng.below(2) == 0 {
                told.extend(states[at].apply(op, &mut replicas[at]));
                continue;
            }
            let heard = match rng.below(3) {
                0 => states[(at + 1) % NODES].clone(),
                // Several changes at once, some of them known, perhaps.
                1 => {
                    let mut several = T::default();
                    for _ in 0..3 {
                        several.merge(&told[rng.below(told.len() as u64) as usize]);
                    }
                    several
                }
                _ => told[rng.below(told.len() as u64) as usize].clone(),
            };
            partly += usize::from(hear(&mut states[at], heard).map_err(|found| Violation { seed, ..found })?);
        }
    }
    Ok(partly)
}

/// Lets `state` take in what it heard; whether a part of that was known and another was not.
fn hear<T: Replicated + Subject>(state: &mut T, heard: T) -> std::result::Result<bool, Violation> {
    let before = state.clone();
    let mut after = before.clone();
    let changed = after.merge(&heard);
    // Where types differ nothing is joined, and nothing passed on.
    let Ok(news) = state.join_news(heard.clone()) else { return Ok(false) };
    let broken = |law, what: &str| {
        Err(Violation::of(law, format!("{what}: {before:?} heard {heard:?} and passes on {news:?}")))
    };
    if *state != after || news.is_some() != changed {
        return broken(Law::L9, "a join and what it tells of itself differ");
    }
    let Some(told) = &news else { return Ok(false) };
    let mut again = before.clone();
    if !again.merge(told) || again != after {
        return broken(Law::L12, "what is passed on is not what was missing");
    }
    let mut parts = vec![told.clone()];
    while let Some(part) = parts.pop() {
        match part.halves() {
            Some((first, second)) => parts.extend([first, second]),
            None if before.clone().merge(&part) => {}
            None => return broken(Law::L12, "a part of it was known"),
        }
    }
    Ok(*told != heard)
}

/// Checks L14: the same schedule with and without collection reads the same on every node after every exchange. How
/// many tombstones were collected; zero means that nothing was shown.
///
/// # Errors
/// The first seed whose readings differ.
pub fn forgets_invisibly<T: Replicated + Subject>(
    seeds: std::ops::Range<u64>,
    read: impl Fn(&T) -> String,
) -> std::result::Result<usize, Violation> {
    const NODES: usize = 3;
    let (alphabet, mut collected) = (T::alphabet(), 0);
    for seed in seeds {
        // A member that is never there stops all collection in the second one.
        let (mut with, mut without) =
            (Scene::<T>::new(NODES, seed, false)?, Scene::<T>::new(NODES, seed, true)?);
        let rng = SeededRng::new(seed);
        for _ in 0..120 {
            let at = rng.below(NODES as u64) as usize;
            if rng.below(3) == 0 {
                let op = &alphabet[rng.below(alphabet.len() as u64) as usize];
                with.change(at, op)?;
                without.change(at, op)?;
                continue;
            }
            // Two of three talk, so that knowledge travels on all ways and at all speeds.
            let other = (at + 1 + rng.below(NODES as u64 - 1) as usize) % NODES;
            with.talk(at, other)?;
            without.talk(at, other)?;
            for node in [at, other] {
                let (a, b) = (read(with.net.node(node).state()), read(without.net.node(node).state()));
                if a != b {
                    let found =
                        Violation::of(Law::L14, format!("node {node} reads {a}, without collection {b}"));
                    return Err(Violation { seed, ..found });
                }
            }
        }
        collected += with.net.events.iter().filter(|e| matches!(e.1, Event::Collected(_))).count();
    }
    Ok(collected)
}
