//! A shopping cart on three nodes: a partition, changes on both sides of it, and one cart afterwards.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use mainstay::clock::Instant;
use mainstay::consistency::crdt::{AwMap, DotFun, Tally};
use mainstay::consistency::replicate::{AntiEntropy, AntiEntropyConfig, DigestKey};
use mainstay::consistency::{Actor, ActorId};

/// Articles and how many of each. Removing an article takes away the pieces that were seen.
type Cart = AwMap<String, DotFun<Tally>>;

struct Shop {
    nodes: Vec<AntiEntropy<Cart>>,
    actors: Vec<Actor>,
    /// Nodes that hear each other.
    groups: Vec<Vec<usize>>,
}

impl Shop {
    fn open() -> anyhow::Result<Self> {
        let node = |me: u64| {
            AntiEntropyConfig::builder(me, 1_000 + me, DigestKey::new(*b"shop of examples"))
                .members(1..=3)
                .build(Cart::new())
        };
        Ok(Self {
            nodes: (1..=3).map(node).collect::<Result<_, _>>()?,
            actors: (1..=3).map(|n| Actor::new(ActorId::new(n, 1, 0))).collect(),
            groups: vec![vec![0, 1, 2]],
        })
    }

    fn add(&mut self, at: usize, article: &str, pieces: u64) -> anyhow::Result<()> {
        let actor = &mut self.actors[at];
        let add =
            |cart: &mut Cart| cart.update(actor, article.to_owned(), |n, mint| n.count(mint, pieces, 0));
        Ok(self.nodes[at].change(add)?)
    }

    fn remove(&mut self, at: usize, article: &str) -> anyhow::Result<()> {
        let actor = &mut self.actors[at];
        Ok(self.nodes[at].change(|cart| cart.remove(actor, &article.to_owned()))?)
    }

    fn sees(&self, at: usize) -> BTreeMap<String, i128> {
        self.nodes[at].state().iter().map(|(article, n)| (article.clone(), n.total())).collect()
    }

    fn hears(&self, from: usize, to: usize) -> bool {
        self.groups.iter().any(|group| group.contains(&from) && group.contains(&to))
    }

    /// A few rounds of gossip; a message between two groups is lost.
    fn gossip(&mut self) {
        for _ in 0..4 {
            for from in 0..3 {
                let mut open: Vec<(usize, u64, Vec<u8>)> = self.nodes[from]
                    .on_tick(Instant::ZERO)
                    .into_iter()
                    .map(|(to, m)| (from, to, m))
                    .collect();
                while let Some((from, to, message)) = open.pop() {
                    let to = usize::try_from(to - 1).unwrap_or(usize::MAX);
                    if self.hears(from, to) {
                        let step = self.nodes[to].on_msg(from as u64 + 1, &message, Instant::ZERO);
                        open.extend(step.send.into_iter().map(|(next, m)| (to, next, m)));
                    }
                }
            }
        }
    }
}

fn main() -> anyhow::Result<()> {
    let mut shop = Shop::open()?;
    shop.add(0, "tea", 2)?;
    shop.add(1, "bread", 1)?;
    shop.gossip();
    ensure!(shop.sees(2) == BTreeMap::from([("bread".into(), 1), ("tea".into(), 2)]));

    // The customer's phone ends up on one side, the laptop on the other.
    shop.groups = vec![vec![0], vec![1, 2]];
    shop.remove(0, "tea")?;
    shop.add(0, "milk", 1)?;
    shop.add(1, "tea", 3)?;
    shop.add(2, "bread", 1)?;
    shop.gossip();
    ensure!(shop.sees(0) != shop.sees(1), "nothing crosses the partition");
    ensure!(shop.sees(1) == shop.sees(2), "a side agrees with itself");

    // It heals. Of the tea, the three pieces that the removal had not seen are there.
    shop.groups = vec![vec![0, 1, 2]];
    shop.gossip();
    let cart = shop.sees(0);
    ensure!(cart == shop.sees(1) && cart == shop.sees(2), "one cart: {cart:?}");
    let tea = cart.get("tea").context("an update wins over a removal that did not see it")?;
    ensure!(*tea == 3 && cart["milk"] == 1 && cart["bread"] == 2, "{cart:?}");
    println!("both sides went on, and afterwards there is one cart: {cart:?}");
    Ok(())
}
