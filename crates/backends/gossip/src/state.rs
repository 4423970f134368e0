//! A node without sockets, clock or disk: packets and time in, packets out.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Instant, Rng};
use mainstay_consistency::replicate::{
    AntiEntropy, AntiEntropyConfig, DigestKey, Event as StateEvent, Outgoing, Replicated,
};
use mainstay_consistency::wire::{decode, encode};
use mainstay_consistency::{Actor, ActorId};

use crate::config::{Config, Joining};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Stats};
use crate::member::{Change, Member, Membership, Presence, StaticList, hash};
use crate::network::{Inbound, MAX_DATAGRAM, MAX_FRAME, Way};
use crate::seal::{Kind, OVERHEAD, Opened, Refusal, Seal};
use crate::snapshot::Snapshot;
use crate::swim::{Life, Start, Swim};

/// Between two bursts of news: what arrives together travels on together.
const BURST: Duration = Duration::from_millis(50);
/// Events that wait to be fetched; the oldest go.
const EVENTS: usize = 256;
/// Strangers whose packets were dropped and who are greeted when the membership names them; the others wait for a tick.
const STRANGERS: usize = 32;
/// Versions of packets that were reported, so that a peer is named once and not with every packet.
const NAMED: usize = 32;

/// A packet to send.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) to: SocketAddr,
    pub(crate) way: Way,
    pub(crate) bytes: Vec<u8>,
}

/// Where members come from.
#[derive(Debug)]
enum Group {
    Swim(Box<Swim>),
    Other(Box<dyn Membership>),
}

impl Group {
    fn membership(&self) -> &dyn Membership {
        match self {
            Self::Swim(swim) => &**swim,
            Self::Other(other) => &**other,
        }
    }
}

/// Who makes changes here.
#[derive(Debug)]
struct Author {
    node: u64,
    epoch: u32,
    actor: Actor,
    nonces: BTreeSet<u32>,
    /// Actors that the state knew when it was last looked at.
    looked: usize,
}

impl Author {
    /// `largest`: what one change may take, so that it gets through.
    fn new(node: u64, epoch: u32, largest: usize, rng: &dyn Rng) -> Self {
        let nonce = (rng.next_u64() >> 32) as u32;
        let actor = Actor::new(ActorId::new(node, epoch, nonce)).largest_change(largest);
        Self { node, epoch, actor, nonces: BTreeSet::from([nonce]), looked: 0 }
    }
}

/// The node.
#[derive(Debug)]
pub(crate) struct Core<T> {
    config: Config,
    engine: AntiEntropy<T>,
    author: Author,
    group: Group,
    seal: Seal,
    session: u64,
    rng: Arc<dyn Rng>,
    members: Vec<Member>,
    out: Vec<Packet>,
    events: VecDeque<Event>,
    pub(crate) stats: Stats,
    named: BTreeSet<u8>,
    /// Who had something to say before it was known, since the last tick.
    strangers: BTreeSet<u64>,
    next_tick: Instant,
    burst: Option<Instant>,
    last_burst: Instant,
    version: u64,
    saved: u64,
}

/// What a start needs beside the options.
pub(crate) struct Begin {
    pub(crate) address: SocketAddr,
    pub(crate) membership: Option<Box<dyn Membership>>,
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) now: Instant,
    /// Milliseconds since 1970, for lives that are later than earlier ones.
    pub(crate) wall: i64,
}

impl<T: Replicated> Core<T> {
    /// The node as it was, in a new epoch; or a new one.
    pub(crate) fn new(config: Config, begin: Begin) -> Result<Self> {
        let Begin { address, membership, snapshot, rng, now, wall } = begin;
        let me = Member::id_of(&config.name);
        if let Some(s) = &snapshot {
            check_owner(&config, s)?;
        }
        let state = match &snapshot {
            None => T::default(),
            Some(s) => decode(&s.state).map_err(|e| {
                Error::new(ErrorKind::Damaged, "the snapshot holds another type of state").with(e)
            })?,
        };
        let (node, epoch, generation) =
            snapshot.as_ref().map_or((rng.next_u64(), 0, 0), |s| (s.node, s.epoch, s.generation));
        let epoch = epoch.checked_add(1).ok_or_else(|| {
            Error::new(ErrorKind::Damaged, "every epoch of this node is used; remove its snapshot")
        })?;
        let life = Life {
            id: me,
            address,
            generation: u64::try_from(wall).unwrap_or(0).max(generation.saturating_add(1)),
        };
        let session = rng.next_u64();
        let removed = snapshot.as_ref().map(|s| s.removed.clone()).unwrap_or_default();
        let engine = engine(&config, (me, session), removed, state)?;
        let group = group(&config, membership, life, Arc::clone(&rng), now);
        let mut core = Self {
            author: Author::new(node, epoch, engine.largest_change(), &*rng),
            seal: Seal::new(config.keys().clone(), &config.cluster, me),
            config,
            engine,
            group,
            session,
            rng,
            members: Vec::new(),
            out: Vec::new(),
            events: VecDeque::new(),
            stats: Stats::default(),
            named: BTreeSet::new(),
            strangers: BTreeSet::new(),
            next_tick: now,
            burst: None,
            last_burst: now,
            version: 1,
            saved: 0,
        };
        core.members = core.group.membership().members();
        Ok(core)
    }

    pub(crate) fn state(&self) -> &T {
        self.engine.state()
    }

    pub(crate) fn digest(&mut self) -> (u128, u64) {
        self.engine.digest()
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    pub(crate) fn me(&self) -> Member {
        self.group.membership().me()
    }

    pub(crate) fn actor(&self) -> ActorId {
        self.author.actor.id()
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn peers(&self) -> usize {
        self.engine.peer_count()
    }

    /// Identities that the membership remembers.
    pub(crate) fn remembered(&self) -> usize {
        match &self.group {
            Group::Swim(swim) => swim.remembered(),
            Group::Other(_) => self.members.len(),
        }
    }

    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    pub(crate) fn take_packets(&mut self) -> Vec<Packet> {
        std::mem::take(&mut self.out)
    }

    pub(crate) fn set_keys(&mut self, keys: crate::Keys) {
        self.seal.set_keys(keys);
    }

    /// When [`on_time`](Self::on_time) has something to do.
    pub(crate) fn due(&self) -> Instant {
        let due = self.burst.map_or(self.next_tick, |at| at.min(self.next_tick));
        match &self.group {
            Group::Swim(swim) => due.min(swim.due()),
            Group::Other(_) => due,
        }
    }

    /// Makes a change.
    pub(crate) fn change(
        &mut self,
        now: Instant,
        f: impl FnOnce(&mut T, &mut Actor) -> mainstay_consistency::Result<T>,
    ) -> Result<()> {
        let actor = &mut self.author.actor;
        self.engine.change(|state| f(state, actor))?;
        self.changed(now);
        Ok(())
    }

    fn changed(&mut self, now: Instant) {
        self.version += 1;
        self.hurry(now);
        self.look_for_doubles();
    }

    /// Tells some peers soon.
    fn hurry(&mut self, now: Instant) {
        let soonest = self.last_burst.saturating_add(BURST);
        self.burst.get_or_insert(if now > soonest { now } else { soonest });
    }

    /// Whether somebody else makes changes as this node: a copy of its disk, or this node before its disk was rolled
    /// back. Their changes are apart by the nonce; later ones get an epoch above.
    fn look_for_doubles(&mut self) {
        let Some(known) = self.engine.state().known() else { return };
        if known.actors() == self.author.looked {
            return;
        }
        self.author.looked = known.actors();
        let Some((epoch, nonces)) = known.latest_epochs().remove(&self.author.node) else { return };
        let foreign = nonces.iter().any(|n| !self.author.nonces.contains(n));
        if epoch < self.author.epoch || (epoch == self.author.epoch && !foreign) {
            return;
        }
        self.tell(Event::Doubled { epoch });
        let Some(epoch) = epoch.checked_add(1) else { return };
        let (looked, largest) = (self.author.looked, self.engine.largest_change());
        self.author = Author { looked, ..Author::new(self.author.node, epoch, largest, &*self.rng) };
    }

    fn tell(&mut self, event: Event) {
        event.trace();
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Runs what is due. `full` says for which addresses nothing more is to be made.
    pub(crate) fn on_time(&mut self, now: Instant, full: &dyn Fn(SocketAddr) -> bool) {
        if let Group::Swim(swim) = &mut self.group {
            swim.on_time(now);
        }
        if now >= self.next_tick {
            let jitter = 0.75 + self.rng.unit() / 2.0;
            self.next_tick = now.saturating_add(self.config.tick.mul_f64(jitter));
            self.tick(now, full);
        }
        if self.burst.is_some_and(|at| now >= at) {
            self.burst = None;
            self.last_burst = now;
            for peer in self.choose(full) {
                let news = self.engine.news(peer);
                self.post(news);
            }
        }
        self.follow_members(now);
    }

    fn tick(&mut self, now: Instant, full: &dyn Fn(SocketAddr) -> bool) {
        self.engine.begin_tick();
        self.strangers.clear();
        if let Group::Swim(swim) = &mut self.group {
            swim.on_tick(now);
        }
        for peer in self.choose(full) {
            let hello = self.engine.greet(peer);
            self.post(hello);
        }
    }

    /// Some members to talk to, by chance: of those that are there, and of the configured ones now and then also of those
    /// that are not, in case only this node cannot see them.
    fn choose(&self, full: &dyn Fn(SocketAddr) -> bool) -> Vec<u64> {
        let reachable = |m: &&Member| m.address.is_some_and(|a| !full(a));
        let here = |m: &&Member| m.presence == Presence::Up;
        let mut open: Vec<u64> = self.members.iter().filter(here).filter(reachable).map(|m| m.id).collect();
        let away = |m: &&Member| m.configured && m.presence != Presence::Up;
        let absent: Vec<u64> = self.members.iter().filter(away).filter(reachable).map(|m| m.id).collect();
        let mut chosen = Vec::with_capacity(self.config.fanout);
        let pick = |from: &mut Vec<u64>| {
            let at = usize::try_from(self.rng.below(from.len() as u64)).unwrap_or(0);
            from.swap_remove(at)
        };
        while chosen.len() < self.config.fanout && !open.is_empty() {
            chosen.push(pick(&mut open));
        }
        if !absent.is_empty() && (chosen.is_empty() || self.rng.below(8) == 0) {
            chosen.truncate(self.config.fanout - 1);
            chosen.push(pick(&mut absent.clone()));
        }
        chosen
    }

    /// Seals messages of the engine.
    fn post(&mut self, messages: Vec<Outgoing>) {
        for (peer, message) in messages {
            let member = self.members.iter().find(|m| m.id == peer);
            let Some(to) = member.and_then(|m| m.address) else {
                self.stats.unreachable += 1;
                continue;
            };
            let bytes = self.seal.seal(Kind::State, peer, &message, &*self.rng);
            self.push(to, bytes);
        }
    }

    fn push(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        let way = if bytes.len() <= MAX_DATAGRAM { Way::Datagram } else { Way::Stream };
        self.out.push(Packet { to, way, bytes });
    }

    /// Takes over what the membership says, and gives it what it wants to send.
    fn follow_members(&mut self, now: Instant) {
        let changes = match &mut self.group {
            Group::Swim(swim) => {
                let letters = swim.letters();
                self.stats.crowded = swim.crowded();
                let changes = swim.changes();
                for letter in letters {
                    let bytes = self.seal.seal(Kind::Swim, letter.to, &letter.payload, &*self.rng);
                    self.push(letter.address, bytes);
                }
                changes
            }
            Group::Other(other) => other.changes(),
        };
        if changes.is_empty() {
            return;
        }
        let alone = !self.members.iter().any(|m| m.presence == Presence::Up);
        self.members = self.group.membership().members();
        for change in changes {
            match change {
                Change::Gone(id) => self.engine.forget_peer(id),
                Change::Up(id) if self.strangers.remove(&id) => {
                    let hello = self.engine.greet(id);
                    self.post(hello);
                }
                Change::Up(_) if alone => self.hurry(now),
                Change::Up(_) | Change::Down(_) => {}
            }
            self.tell(Event::Member(change));
        }
    }

    /// Takes a packet in. False: nobody with a key made it.
    pub(crate) fn on_packet(&mut self, inbound: &Inbound, now: Instant) -> bool {
        self.stats.received += 1;
        self.stats.received_bytes += inbound.bytes.len() as u64;
        let most = if inbound.way == Way::Datagram { MAX_DATAGRAM } else { MAX_FRAME };
        if inbound.bytes.len() > most {
            self.stats.oversized += 1;
            return false;
        }
        let opened = match self.seal.open(&inbound.bytes) {
            Ok(opened) => opened,
            Err(refusal) => {
                self.refuse(refusal, inbound.from);
                return false;
            }
        };
        let me = self.me().id;
        if opened.from == me {
            // Its own packet played back, or somebody with its name.
            self.stats.own += 1;
        } else if opened.to != me && (opened.kind != Kind::Swim || opened.to != 0) {
            self.stats.misdirected += 1;
        } else if opened.kind == Kind::Swim {
            self.on_swim(&opened, now);
        } else {
            self.on_state(&opened, inbound, now);
        }
        true
    }

    fn refuse(&mut self, refusal: Refusal, from: SocketAddr) {
        match refusal {
            Refusal::Short | Refusal::Kind => self.stats.malformed += 1,
            Refusal::Cluster => self.stats.foreign += 1,
            Refusal::Key | Refusal::Forged => self.stats.unauthenticated += 1,
            Refusal::Version(theirs) => {
                self.stats.other_version += 1;
                if self.named.len() < NAMED && self.named.insert(theirs) {
                    self.tell(Event::OtherVersion { from, theirs });
                }
            }
        }
    }

    fn on_swim(&mut self, opened: &Opened, now: Instant) {
        let taken = match &mut self.group {
            Group::Swim(swim) => swim.on_packet(&opened.payload, now),
            Group::Other(_) => false,
        };
        if !taken {
            self.stats.malformed += 1;
        }
        self.follow_members(now);
    }

    fn on_state(&mut self, opened: &Opened, inbound: &Inbound, now: Instant) {
        let member = self.members.iter().find(|m| m.id == opened.from);
        let known = member.is_some();
        if member.is_none_or(|m| m.address.is_none()) {
            self.meet(opened.from, inbound, now);
        }
        if !known {
            // It will be known when the membership says so.
            self.stats.strangers += 1;
            return;
        }
        let step = self.engine.on_msg(opened.from, &opened.payload, now);
        self.post(step.send);
        for event in step.events {
            match event {
                StateEvent::Malformed { .. } => self.stats.malformed += 1,
                StateEvent::FromTheFuture { .. } => self.stats.from_the_future += 1,
                _ => {}
            }
            self.tell(Event::State(event));
        }
        if step.changed.is_yes() {
            self.changed(now);
        }
    }

    /// Somebody with a key whose address is not known: it is asked who it is, and greeted once it said so.
    fn meet(&mut self, who: u64, inbound: &Inbound, now: Instant) {
        if let Group::Swim(swim) = &mut self.group
            && inbound.way == Way::Datagram
            && self.strangers.len() < STRANGERS
        {
            self.strangers.insert(who);
            swim.ask(inbound.from, now);
            self.follow_members(now);
        }
    }

    /// Says good-bye.
    pub(crate) fn leave(&mut self, now: Instant) {
        if let Group::Swim(swim) = &mut self.group {
            swim.leave(now);
        }
        self.follow_members(now);
    }

    /// Removes a member for good.
    pub(crate) fn remove_member(&mut self, id: u64) {
        self.engine.remove_member(id);
        // So that it is saved: what a removed member would bring back may be forgotten by then.
        self.version += 1;
    }

    /// What is to be written, if the disk does not have it: with the number to report it by.
    pub(crate) fn snapshot(&self, wall: i64) -> Option<(u64, Snapshot)> {
        (self.saved != self.version).then(|| (self.version, self.copy(wall)))
    }

    /// The value as it is now, with who this node is.
    pub(crate) fn copy(&self, wall: i64) -> Snapshot {
        let generation = match &self.group {
            Group::Swim(swim) => swim.generation(),
            Group::Other(_) => 0,
        };
        Snapshot {
            cluster: self.config.cluster.clone(),
            name: self.config.name.clone(),
            node: self.author.node,
            epoch: self.author.epoch,
            session: self.session,
            seq: self.version,
            generation,
            saved_at: wall,
            removed: self.engine.removed().collect(),
            state: encode(self.engine.state()),
        }
    }

    /// The snapshot of this number is on disk.
    pub(crate) fn saved(&mut self, version: u64) {
        self.saved = self.saved.max(version);
        self.stats.snapshots += 1;
    }

    pub(crate) fn save_failed(&mut self, error: &Error) {
        self.stats.snapshot_errors += 1;
        self.tell(Event::SnapshotFailed(error.to_string()));
    }
}

fn check_owner(config: &Config, snapshot: &Snapshot) -> Result<()> {
    let (theirs, ours) = ((&snapshot.cluster, &snapshot.name), (&config.cluster, &config.name));
    if theirs == ours {
        return Ok(());
    }
    let text = format!(
        "the snapshot is of `{}` in cluster `{}`, this node is `{}` in `{}`",
        theirs.1, theirs.0, ours.1, ours.0
    );
    Err(Error::new(ErrorKind::Foreign, text))
}

fn engine<T: Replicated>(
    config: &Config,
    (me, session): (u64, u64),
    removed: Vec<u64>,
    state: T,
) -> Result<AntiEntropy<T>> {
    // Every node of a cluster needs the same; who could aim at collisions holds a key and may write anyway.
    let half = |salt: u8| hash(&[config.cluster.as_bytes(), &[salt]].concat()).to_be_bytes();
    let mut key = [0; 16];
    key[..8].copy_from_slice(&half(0));
    key[8..].copy_from_slice(&half(1));
    let mut builder = AntiEntropyConfig::builder(me, session, DigestKey::new(key))
        .max_message(MAX_DATAGRAM - OVERHEAD)
        .largest_change(MAX_FRAME - OVERHEAD)
        .log_bytes(config.log_bytes)
        .budget(2 * MAX_FRAME)
        .fanout(config.fanout)
        .schema(config.schema)
        .removed(removed)
        .root_first();
    if let Some(clock) = &config.clock {
        builder = builder.clock(clock.clone());
    }
    builder = if config.members.is_empty() {
        builder.keep_all()
    } else {
        builder.members(config.members.iter().map(|name| Member::id_of(name)))
    };
    let refused = |e| Error::new(ErrorKind::Config, "the options of anti-entropy were refused").with(e);
    builder.build(state).map_err(refused)
}

fn group(
    config: &Config,
    membership: Option<Box<dyn Membership>>,
    me: Life,
    rng: Arc<dyn Rng>,
    now: Instant,
) -> Group {
    if let Some(membership) = membership {
        return Group::Other(membership);
    }
    match &config.joining {
        Joining::List(list) => {
            let others = list.iter().map(|(name, at)| (name.clone(), *at));
            Group::Other(Box::new(StaticList::new(&config.name, me.address, others)))
        }
        Joining::Seeds(seeds) => Group::Swim(Box::new(Swim::new(Start {
            me,
            seeds: seeds.clone(),
            configured: config.members.iter().map(|name| Member::id_of(name)).collect(),
            max_packet: MAX_DATAGRAM - OVERHEAD,
            limit: config.max_members,
            rng,
            now,
        }))),
    }
}
