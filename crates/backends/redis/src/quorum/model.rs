//! The two phases over servers that lose leases and counters at random moments: does a token ever come twice,
//! or go back?

use std::collections::BTreeSet;

use mainstay_clock::{Rng as _, SeededRng};

use super::{Round, Step, Vote, majority};

/// How the protocol is weakened, to show that the check sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weakness {
    None,
    /// F29: the second phase lifts counters whoever owns the lock.
    RaisesForAnybody,
    /// F30: a counter that was lost starts at 1, not at the clock.
    StartsAtOne,
}

#[derive(Clone, Copy, Debug, Default)]
struct Server {
    owner: Option<u32>,
    fence: Option<u64>,
}

struct World {
    rng: SeededRng,
    weakness: Weakness,
    servers: Vec<Server>,
    now: u64,
}

/// What is under way for one acquisition.
struct Client {
    op: u32,
    round: Round<()>,
    /// Servers still to be asked, in this order; then those to be lifted.
    asks: Vec<usize>,
    raises: Vec<(usize, u64)>,
    /// The token that its server-side majority had at the start: a later grant must be larger.
    floor: u64,
}

impl World {
    fn grant(&mut self, server: usize, op: u32) -> Vote<()> {
        let floor = if self.weakness == Weakness::StartsAtOne { 1 } else { self.now };
        let s = &mut self.servers[server];
        match s.owner {
            Some(other) if other != op => Vote::Refused(()),
            Some(_) => Vote::Granted(vec![s.fence.unwrap_or(floor)]),
            None => {
                s.owner = Some(op);
                let next = s.fence.map_or(floor, |f| f + 1);
                s.fence = Some(next);
                Vote::Granted(vec![next])
            }
        }
    }

    fn raise(&mut self, server: usize, op: u32, to: u64) -> bool {
        let weak = self.weakness == Weakness::RaisesForAnybody;
        let s = &mut self.servers[server];
        if s.owner != Some(op) && !weak {
            return false;
        }
        s.fence = Some(s.fence.unwrap_or(0).max(to));
        true
    }

    fn client(&mut self, op: u32, floor: u64) -> Client {
        let mut asks: Vec<usize> = (0..self.servers.len()).collect();
        for i in (1..asks.len()).rev() {
            asks.swap(i, self.rng.below(i as u64 + 1) as usize);
        }
        Client { op, round: Round::new(asks.len(), true), asks, raises: Vec::new(), floor }
    }

    /// One message of one client; its token once it won, `Err` once it lost.
    fn step(&mut self, client: &mut Client) -> Option<Result<u64, ()>> {
        let step = if let Some((server, to)) = client.raises.pop() {
            let lifted = self.raise(server, client.op, to);
            client.round.raised(lifted)
        } else if let Some(server) = client.asks.pop() {
            let vote = self.grant(server, client.op);
            client.round.vote(server, vote)
        } else {
            return Some(Err(()));
        };
        match step {
            Step::Wait => None,
            Step::Lost => Some(Err(())),
            Step::Won(tokens) => Some(Ok(tokens[0])),
            Step::Raise(servers, tokens) => {
                client.raises = servers.into_iter().map(|s| (s, tokens[0])).collect();
                None
            }
        }
    }

    /// A lease ends early on one server, or one server loses its data.
    fn fault(&mut self) {
        let at = self.rng.below(self.servers.len() as u64) as usize;
        match self.rng.below(8) {
            0 | 1 => self.servers[at].owner = None,
            2 if self.weakness != Weakness::RaisesForAnybody => self.servers[at] = Server::default(),
            _ => {}
        }
    }
}

/// Tokens that came twice or went back, and grants, in `rounds` messages of two clients at a time.
fn campaign(seed: u64, servers: usize, rounds: u32, weakness: Weakness) -> (u32, u32) {
    let mut world = World {
        rng: SeededRng::new(seed),
        weakness,
        servers: vec![Server::default(); servers],
        now: 1_000_000,
    };
    let (mut seen, mut highest, mut bad, mut grants, mut ops) = (BTreeSet::new(), 0_u64, 0, 0, 0_u32);
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..rounds {
        // The clock that seeds a lost counter runs far ahead of what is handed out.
        world.now += 50;
        while clients.len() < 2 {
            ops += 1;
            clients.push(world.client(ops, highest));
        }
        let turn = world.rng.below(2) as usize;
        let done = world.step(&mut clients[turn]);
        if let Some(outcome) = done {
            let client = clients.remove(turn);
            if let Ok(token) = outcome {
                grants += 1;
                // Larger than whatever had been granted when it began.
                if !seen.insert(token) || token <= client.floor {
                    bad += 1;
                }
                highest = highest.max(token);
            }
            // Released, or given up: everywhere.
            for s in world.servers.iter_mut().filter(|s| s.owner == Some(client.op)) {
                s.owner = None;
            }
        }
        world.fault();
    }
    (bad, grants)
}

fn over_seeds(servers: usize, weakness: Weakness) -> (u32, u32) {
    let runs = (0..20).map(|seed| campaign(seed, servers, 20_000, weakness));
    runs.fold((0, 0), |(bad, grants), (b, g)| (bad + b, grants + g))
}

#[test]
fn f29_tokens_of_a_quorum_never_repeat_and_never_go_back() {
    for servers in [3, 5] {
        let (bad, grants) = over_seeds(servers, Weakness::None);
        assert!(grants > 5_000, "{servers} servers: {grants} grants");
        assert_eq!(bad, 0, "{servers} servers: of {grants} grants");
        assert!(majority(servers) * 2 > servers);
    }
}

#[test]
fn f29_lifting_without_owning_is_seen_by_the_check() {
    let (bad, grants) = over_seeds(3, Weakness::RaisesForAnybody);
    assert!(bad > 0, "of {grants} grants");
}

#[test]
fn f30_a_counter_that_starts_at_one_is_seen_by_the_check() {
    let (bad, grants) = over_seeds(3, Weakness::StartsAtOne);
    assert!(bad > 0, "of {grants} grants");
}
