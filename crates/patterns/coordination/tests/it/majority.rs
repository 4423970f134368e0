//! A majority of independent lease servers in virtual time, after the rules of the Redis quorum: its own state machine
//! decides, each server hands out its own counter, and a server that lost everything stays silent for a whole ttl.
//!
//! The bytes between a client and a server keep their order, as on one connection: what arrives after a later one is
//! dropped.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use mainstay_clock::{Clock, Instant, Runtime};
use mainstay_sim::sim::{Node, World};
use mainstay_store::lease::{
    AcquireRequest, Acquired, Fencing, Grant, Guarantees, LeaseInfo, Released, Renewed,
};
use mainstay_store::{BoxFuture, Error, ErrorKind, FencingToken, LeaseStore, Outcome, Result};

use crate::holder::TTL;
use crate::round::{Round, Step, Vote, majority};

const SERVERS: usize = 3;

/// One server: one lock and its counter.
#[derive(Debug, Default)]
struct Server {
    owner: Option<(String, String)>,
    ends: Instant,
    fence: Option<u64>,
    /// The newest message of each client.
    newest: BTreeMap<String, u64>,
    /// When it came back with nothing.
    restarted: Option<Instant>,
}

/// The servers of one schedule.
#[derive(Debug)]
pub(crate) struct Majority {
    servers: [Mutex<Server>; SERVERS],
    /// When which server comes back with nothing.
    restarts: Vec<(Instant, usize)>,
    clock: Arc<dyn Clock>,
    silent: bool,
}

/// A question to one server.
#[derive(Clone, Debug)]
enum Ask {
    Acquire { op: String, owner: String, ttl: Duration },
    Raise { op: String, to: u64 },
    Release { op: String },
    Renew { op: String, ttl: Duration },
}

impl Ask {
    fn op(&self) -> &str {
        match self {
            Self::Acquire { op, .. }
            | Self::Raise { op, .. }
            | Self::Release { op }
            | Self::Renew { op, .. } => op,
        }
    }
}

/// What one server says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    /// Granted, with the counter.
    Counter(u64),
    Held {
        by: String,
        remaining: Duration,
    },
    /// Whether it was ours.
    Own(bool),
}

impl Majority {
    pub(crate) fn new(world: &World, silent: bool) -> Arc<Self> {
        let (rng, clock) = (world.rng("servers"), world.store_clock());
        // In every second schedule servers lose their data, one after the other or at once.
        let count = if rng.below(2) == 0 { 0 } else { 1 + rng.below(3) };
        let restart = |_| {
            let at = clock.now().saturating_add(Duration::from_millis(rng.below(2_500)));
            (at, usize::try_from(rng.below(SERVERS as u64)).unwrap())
        };
        let mut restarts: Vec<_> = (0..count).map(restart).collect();
        restarts.sort_unstable();
        Arc::new(Self { servers: Default::default(), restarts, clock, silent })
    }

    /// The counter that a server without one begins with: its clock, in units of 16 us.
    fn floor(&self) -> u64 {
        u64::try_from(self.clock.wall().unix_millis()).unwrap() * 1_000 / 16
    }

    fn answer(&self, server: usize, client: &str, number: u64, ask: &Ask) -> Result<Said> {
        let refused = |text: &str| Err(Error::new(ErrorKind::Unavailable, text));
        let now = self.clock.now();
        let mut s = self.servers[server].lock().unwrap();
        for (at, _) in self.restarts.iter().filter(|(at, which)| *which == server && *at <= now) {
            if s.restarted.is_none_or(|last| last < *at) {
                *s = Server { restarted: Some(*at), ..Server::default() };
            }
        }
        if self.silent && s.restarted.is_some_and(|at| now < at.saturating_add(TTL)) {
            return refused("the server lost its data and stays silent");
        }
        let newest = s.newest.entry(client.to_owned()).or_default();
        if number < *newest {
            return refused("a later message came first: the connection was replaced");
        }
        *newest = number;
        if s.owner.is_some() && now >= s.ends {
            s.owner = None;
        }
        let own = s.owner.as_ref().is_some_and(|(op, _)| op == ask.op());
        Ok(match ask {
            Ask::Acquire { owner, .. } if s.owner.is_some() && !own => {
                let by = s.owner.as_ref().map_or(owner, |(_, by)| by).clone();
                Said::Held { by, remaining: s.ends.saturating_duration_since(now) }
            }
            Ask::Acquire { op, owner, ttl } => {
                let floor = self.floor();
                if !own {
                    s.fence = Some(s.fence.map_or(floor, |f| f + 1));
                }
                s.owner = Some((op.clone(), owner.clone()));
                s.ends = now.saturating_add(*ttl);
                Said::Counter(s.fence.unwrap_or(floor))
            }
            Ask::Raise { to, .. } => {
                if own {
                    s.fence = Some(s.fence.unwrap_or(0).max(*to));
                }
                Said::Own(own)
            }
            Ask::Release { .. } => {
                s.owner.take_if(|_| own);
                Said::Own(own)
            }
            Ask::Renew { ttl, .. } => {
                if own {
                    s.ends = now.saturating_add(*ttl);
                }
                Said::Own(own)
            }
        })
    }
}

/// The servers as one process sees them.
pub(crate) struct Client {
    node: Node,
    rt: Runtime,
    name: String,
    numbers: Arc<[AtomicU64; SERVERS]>,
    servers: Arc<Majority>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("name", &self.name).finish_non_exhaustive()
    }
}

type Answers = FuturesUnordered<BoxFuture<'static, (usize, Result<Said>)>>;

impl Client {
    pub(crate) fn new(node: &Node, servers: &Arc<Majority>) -> Self {
        let name = format!("{}-{}", node.name(), node.incarnation());
        let (node, servers) = (node.clone(), Arc::clone(servers));
        Self { rt: node.runtime(), node, name, numbers: Arc::default(), servers }
    }

    /// One server; the number is taken when the question is sent.
    fn ask(&self, server: usize, ask: Ask) -> BoxFuture<'static, (usize, Result<Said>)> {
        let (node, servers, client) = (self.node.clone(), Arc::clone(&self.servers), self.name.clone());
        let number = 1 + self.numbers[server].fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let apply = move || -> BoxFuture<'static, Result<Said>> {
                let said = servers.answer(server, &client, number, &ask);
                Box::pin(async move { said })
            };
            (server, node.call(apply).await)
        })
    }

    fn all(&self, ask: &Ask) -> Answers {
        (0..SERVERS).map(|server| self.ask(server, ask.clone())).collect()
    }

    /// Hears the rest in the background.
    fn hear(&self, mut answers: Answers) {
        self.rt.spawn("stragglers", Box::pin(async move { while answers.next().await.is_some() {} }));
    }

    async fn round(&self, request: AcquireRequest) -> Result<Acquired> {
        let op = request.op_id.clone();
        let mut round: Round<Result<Said>> = Round::new(SERVERS, true);
        let ask = Ask::Acquire { op: op.clone(), owner: request.owner.clone(), ttl: request.ttl };
        let mut answers = self.all(&ask);
        let mut step = Step::Wait;
        while step == Step::Wait {
            let Some((server, said)) = answers.next().await else { break };
            step = round.vote(server, vote(said));
        }
        if let Step::Raise(behind, to) = step {
            let raise = |server: usize| self.ask(server, Ask::Raise { op: op.clone(), to: to[0] });
            let mut raised: Answers = behind.into_iter().map(raise).collect();
            step = Step::Wait;
            while step == Step::Wait {
                let Some((_, said)) = raised.next().await else { break };
                step = round.raised(matches!(said, Ok(Said::Own(true))));
            }
            self.hear(raised);
        }
        self.hear(answers);
        if let Step::Won(token) = step {
            let grant = Grant {
                name: request.names[0].clone(),
                token: FencingToken::new(token[0]),
                ttl: request.ttl,
            };
            return Ok(Acquired::Granted(vec![grant]));
        }
        // Everywhere, also where nothing was answered.
        self.hear(self.all(&Ask::Release { op }));
        let mut held = None;
        for why in round.refusals() {
            if let Ok(Said::Held { by, remaining }) = why {
                held = Some((by.clone(), *remaining));
            }
        }
        match held {
            Some((by, remaining)) => Ok(Acquired::Held { by, remaining: Some(remaining), since: None }),
            None => Err(unknown("no majority answered")),
        }
    }

    /// How many servers say that it is ours, as far as a majority needs to know.
    async fn own(&self, ask: Ask) -> Result<bool> {
        let mut answers = self.all(&ask);
        let (mut ours, mut others) = (0, 0);
        while let Some((_, said)) = answers.next().await {
            match said {
                Ok(Said::Own(true)) => ours += 1,
                Ok(_) => others += 1,
                Err(_) => {}
            }
            if ours >= majority(SERVERS) || others > SERVERS - majority(SERVERS) {
                self.hear(answers);
                return Ok(ours >= majority(SERVERS));
            }
        }
        Err(unknown("no majority answered"))
    }
}

fn unknown(text: &str) -> Error {
    Error::new(ErrorKind::Unavailable, text).with_outcome(Outcome::Unknown)
}

fn vote(said: Result<Said>) -> Vote<Result<Said>> {
    match said {
        Ok(Said::Counter(counter)) => Vote::Granted(vec![counter]),
        other => Vote::Refused(other),
    }
}

impl LeaseStore for Client {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        Box::pin(self.round(request))
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        let ask = Ask::Renew { op: op_id.to_owned(), ttl: TTL };
        Box::pin(async move {
            let ours = self.own(ask).await?;
            Ok(if ours { Renewed::Renewed(Vec::new()) } else { Renewed::Lost })
        })
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        let ask = Ask::Release { op: op_id.to_owned() };
        Box::pin(async move {
            let ours = self.own(ask).await?;
            Ok(if ours { Released::Clean } else { Released::AlreadyGone })
        })
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        let info = LeaseInfo::free(name, FencingToken::ZERO);
        Box::pin(async move { Ok(info) })
    }

    fn guarantees(&self) -> Guarantees {
        let mut guarantees = Guarantees::new(Fencing::Strict, "a clock per server", "a majority keeps");
        guarantees.min_ttl = Duration::from_millis(200);
        guarantees
    }
}
