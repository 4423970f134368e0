//! The engine: one replicated value, and what it tells its peers.

mod repair;

use std::collections::{BTreeMap, BTreeSet};

use mainstay_clock::Instant;

use crate::crdt::Changed;
use crate::error::{Error, ErrorKind, Result};
use crate::hash;
use crate::replicate::config::AntiEntropyConfig;
use crate::replicate::event::{Event, Outgoing, Rejoined, Step};
use crate::replicate::log::Log;
use crate::replicate::message::{Body, Header, Mark, Message, Peek, Stand};
use crate::replicate::peer::{MAX_PARTS, Peer, Taken, Whole};
use crate::replicate::replicated::pieces;
use crate::replicate::stability::{Stability, cut_hash};
use crate::replicate::{Place, Replicated};
use crate::version::{Context, VersionVector};
use crate::wire::{decode, encode};

/// Messages of changes that are told to a peer before it is known what it has: at 500 nodes that start at once, what one
/// of them hears within a burst of gossip. For more it is asked first: others may have told it most of them.
const PUSH: usize = 8;
/// What a message needs beside its state: header, marks, parts.
const OVERHEAD: usize = 64;

/// One replicated value and its peers.
///
/// ```
/// use mainstay_clock::Instant;
/// use mainstay_consistency::{Actor, ActorId, crdt::AwSet, replicate::{AntiEntropy, AntiEntropyConfig, DigestKey}};
///
/// let node = |me: u64| {
///     AntiEntropyConfig::builder(me, 100 + me, DigestKey::new([7; 16])).members([1, 2]).build(AwSet::<String>::new())
/// };
/// let (mut one, mut two, mut actor) = (node(1)?, node(2)?, Actor::new(ActorId::new(1, 1, 0)));
/// one.change(|set| set.add(&mut actor, "hello".into()))?;
///
/// for (_, message) in one.on_tick(Instant::ZERO) {
///     for (_, answer) in two.on_msg(1, &message, Instant::ZERO).send {
///         one.on_msg(2, &answer, Instant::ZERO);
///     }
/// }
/// assert_eq!(one.state(), two.state());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AntiEntropy<T> {
    config: AntiEntropyConfig,
    state: T,
    log: Log<T>,
    peers: BTreeMap<u64, Peer<T>>,
    removed: BTreeSet<u64>,
    stability: Stability,
    turn: usize,
    /// Of the changes that [`news`](Self::news) tells: where the log was when they began, and when they ended.
    fresh: (u64, u64),
    events: Vec<Event>,
    /// The digests, until something changes.
    digest: Option<(u128, u64)>,
    /// Whether stability may have moved since it was last looked at.
    unsettled: bool,
}

impl<T: Replicated> AntiEntropy<T> {
    pub(super) fn start(config: AntiEntropyConfig, state: T) -> Self {
        let peers = config.members.iter().filter(|m| **m != config.me);
        let peers = peers.map(|m| (*m, Peer::new(config.budget))).collect();
        let log = Log::new(config.log_bytes);
        let removed = config.removed.difference(&config.members).copied().collect();
        Self {
            config,
            state,
            log,
            peers,
            removed,
            stability: Stability::default(),
            turn: 0,
            fresh: (0, 0),
            events: Vec::new(),
            digest: None,
            unsettled: true,
        }
    }

    /// The value.
    #[must_use]
    pub fn state(&self) -> &T {
        &self.state
    }

    /// Makes a change: `f` changes the value and answers with the delta, as every mutator does. One that cannot be split
    /// and fits into no message is refused before it is made. Types without dots are refused here, and what `f` did before
    /// it is taken back. For [`Causal`](crate::crdt::Causal) types it is their actor who refuses, if it has
    /// [`largest_change`](Self::largest_change) for its bound; otherwise such a change stays here ([`Event::TooLarge`]). When
    /// `f` calls several of their mutators and one refuses, what those before it changed is told to nobody but by repairs:
    /// make it one [`mutate`](crate::crdt::Causal::mutate).
    ///
    /// ```
    /// use mainstay_consistency::{Actor, ActorId, ErrorKind, crdt::AwSet};
    /// use mainstay_consistency::replicate::{AntiEntropyConfig, DigestKey};
    ///
    /// let config = AntiEntropyConfig::builder(1, 7, DigestKey::new([7; 16])).members([1, 2]);
    /// let mut one = config.build(AwSet::<String>::new())?;
    /// let mut actor = Actor::new(ActorId::new(1, 1, 0)).largest_change(one.largest_change());
    /// let error = one.change(|set| set.add(&mut actor, "x".repeat(2_000))).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::TooLarge);
    /// assert_eq!(*one.state(), AwSet::new());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// What `f` answers, and [`ErrorKind::TooLarge`].
    pub fn change(&mut self, f: impl FnOnce(&mut T) -> Result<T>) -> Result<()> {
        self.digest = None;
        let largest = self.largest_change();
        let delta = self.state.change(largest, f)?;
        self.note(delta, None);
        Ok(())
    }

    fn note(&mut self, delta: T, origin: Option<u64>) {
        self.log.push(delta, origin);
        (self.digest, self.unsettled) = (None, true);
        self.owe();
    }

    /// The digests of contents and context.
    pub fn digest(&mut self) -> (u128, u64) {
        if let Some(known) = self.digest {
            return known;
        }
        let sum = self.state.sum(Place::FIRST, Place::LAST, &self.config.key).1;
        let context = self.state.known().map_or(0, hash::of_value);
        self.digest = Some((sum, context));
        (sum, context)
    }

    /// Whether nothing is ever forgotten here: nobody is asked for what everybody knows.
    fn keeps_all(&self) -> bool {
        self.config.keep_all || !T::FORGETS
    }

    /// How many bytes a change may take that cannot be split: it gets through whatever else its message has to carry. Give
    /// it to every [actor](crate::Actor::largest_change) that makes changes here. With the default `max_message` and no
    /// `largest_change` it is 568 bytes, and twice that where nothing is forgotten, by a type without tombstones or by
    /// [`keep_all`](crate::replicate::Builder::keep_all).
    #[must_use]
    pub fn largest_change(&self) -> usize {
        // What was collected may take half of every message.
        let room = self.config.max_message - OVERHEAD;
        let room = if self.keeps_all() { room } else { room / 2 };
        room.max(self.config.largest_change.saturating_sub(OVERHEAD))
    }

    /// Deltas that are kept for peers.
    #[must_use]
    pub fn log_len(&self) -> usize {
        self.log.len()
    }

    /// The configured members, this node included.
    pub fn members(&self) -> impl Iterator<Item = u64> + '_ {
        self.config.members.iter().copied()
    }

    /// The removed members: they are refused. Keep them with the state, and name them at the next start
    /// ([`removed`](crate::replicate::Builder::removed)).
    pub fn removed(&self) -> impl Iterator<Item = u64> + '_ {
        self.removed.iter().copied()
    }

    /// Adds a member: from now on nothing is forgotten that it has not seen.
    pub fn add_member(&mut self, member: u64) {
        self.unsettled = true;
        self.removed.remove(&member);
        self.config.members.insert(member);
        if member != self.config.me {
            self.peers.entry(member).or_insert_with(|| Peer::new(self.config.budget));
        }
    }

    /// Removes a member for good: it no longer holds collection up, and is refused when it returns. Log who did this and
    /// why: changes that only that member had are lost to the others. Those that it made and others know stay, and so do
    /// its [entries in contexts](Context#growth).
    pub fn remove_member(&mut self, member: u64) {
        self.config.members.remove(&member);
        self.peers.remove(&member);
        self.stability.forget(member);
        self.removed.insert(member);
        self.unsettled = true;
    }

    /// Forgets what is known about a peer that is no member and is not seen any more; it may come back.
    pub fn forget_peer(&mut self, peer: u64) {
        if !self.config.members.contains(&peer) {
            self.peers.remove(&peer);
            self.stability.forget(peer);
        }
    }

    /// Peers about which something is kept: members, and others that were talked to.
    #[must_use]
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// Takes the full state of a member in place of the own one, after this node was removed. Make later changes with an
    /// actor of a new epoch; [`Rejoined::lost`] names what the cluster never saw.
    pub fn rejoin(&mut self, full: T) -> Rejoined<T> {
        let before = std::mem::replace(&mut self.state, full);
        let known = self.state.known().cloned().unwrap_or_default();
        let lost = before.known().map(|had| had.minus(&known)).unwrap_or_default();
        (self.log, self.fresh) = (Log::new(self.config.log_bytes), (0, 0));
        // What was acknowledged in the former life says nothing now.
        self.config.session = hash::of_value(&(self.config.session, 1_u64));
        for peer in self.peers.values_mut() {
            *peer = Peer::new(self.config.budget);
        }
        self.stability = Stability::default();
        (self.digest, self.unsettled) = (None, true);
        Rejoined { lost, before }
    }

    /// What should be said now. Call it every few hundred milliseconds; the time is for the budget only.
    pub fn on_tick(&mut self, _now: Instant) -> Vec<Outgoing> {
        let ids: Vec<u64> = self.peers.keys().copied().collect();
        let mut send = Vec::new();
        if ids.is_empty() {
            return send;
        }
        self.begin_tick();
        for i in 0..ids.len().min(self.config.fanout) {
            let peer = ids[(self.turn + i) % ids.len()];
            self.tell(peer, &mut send);
        }
        self.turn = (self.turn + self.config.fanout) % ids.len();
        send
    }

    /// For callers that choose the peers themselves: settles, trims the log and gives every peer its budget anew. Call it
    /// once per tick, then [`greet`](Self::greet).
    pub fn begin_tick(&mut self) {
        self.settle();
        let least = self.peers.values().map(|p| p.acked).min().unwrap_or(0);
        self.log.trim(least);
        for peer in self.peers.values_mut() {
            (peer.budget, peer.answered, peer.told) = (self.config.budget, false, false);
        }
    }

    /// The root for `peer`, whatever the log holds for it: equal states stay silent, others answer.
    pub fn greet(&mut self, peer: u64) -> Vec<Outgoing> {
        let mut send = Vec::new();
        self.know(peer);
        self.send_root(peer, &mut send);
        if self.peers.get(&peer).is_some_and(|p| p.owed) {
            self.send_ack(peer, &mut send);
        }
        send
    }

    /// The changes that `peer` has not acknowledged, if one message holds them: to be sent while they are new. Otherwise
    /// those since the changes that were told last, to whomever; and where these take many messages, the root: others may
    /// have told it most of them.
    pub fn news(&mut self, peer: u64) -> Vec<Outgoing> {
        let mut send = Vec::new();
        self.know(peer);
        if self.fresh.1 != self.log.seq() {
            self.fresh = (self.fresh.1, self.log.seq());
        }
        let acked = self.peers.get(&peer).map_or(0, |p| p.acked);
        let room = self.room(self.collected_for(peer).as_ref());
        if self.log.reaches(acked) && self.log.fits(acked, peer, room) {
            self.send_news(peer, &mut send);
            return send;
        }
        match self.log.newest(self.fresh.0, peer, PUSH * room) {
            Ok((Some(news), true)) => self.send_repair(peer, news, &mut send),
            Ok((None, true)) => {}
            _ => self.send_root(peer, &mut send),
        }
        send
    }

    fn know(&mut self, peer: u64) {
        if peer != self.config.me && !self.removed.contains(&peer) {
            let budget = self.config.budget;
            self.peers.entry(peer).or_insert_with(|| Peer::new(budget));
        }
    }

    fn root(&mut self) -> Body<T> {
        let (sum, context) = self.digest();
        Body::Root { sum, context, stable: cut_hash(self.stability.stable()), mark: self.mark() }
    }

    fn send_root(&mut self, peer: u64, send: &mut Vec<Outgoing>) {
        let root = self.root();
        self.push(peer, root, send);
    }

    /// One interval after the other, as far as the budget goes: they arrive in order, or the rest is sent again. Whether
    /// that is under way; if not, only a repair helps.
    fn send_news(&mut self, peer: u64, send: &mut Vec<Outgoing>) -> bool {
        let acked = self.peers.get(&peer).map_or(0, |p| p.acked);
        let mut from = acked;
        if from >= self.log.seq() || !self.log.reaches(from) {
            return false;
        }
        while from < self.log.seq()
            && self.peers.get(&peer).is_some_and(|p| p.budget >= self.config.max_message)
        {
            match self.send_delta(peer, from, send) {
                Some(to) => from = to,
                None => return from > acked,
            }
        }
        true
    }

    /// New changes if there are, the digest otherwise.
    fn tell(&mut self, peer: u64, send: &mut Vec<Outgoing>) {
        if self.send_news(peer, send) {
            return;
        }
        self.send_root(peer, send);
        if self.peers.get(&peer).is_some_and(|p| p.owed) {
            self.send_ack(peer, send);
        }
    }

    fn mark(&self) -> Mark {
        Mark { session: self.config.session, seq: self.log.seq() }
    }

    /// Where the interval ends that was sent. None is sent that the receiver would not put together, or only in part,
    /// because the budget ends: a repair gets on by pieces.
    fn send_delta(&mut self, peer: u64, acked: u64, send: &mut Vec<Outgoing>) -> Option<u64> {
        self.send_collected(peer, send);
        let collected = self.collected_for(peer);
        let interval = self.log.interval(acked, peer, self.room(collected.as_ref())).ok()?;
        let left = self.peers.get(&peer).map_or(0, |p| p.budget);
        if interval.size > left {
            return None;
        }
        let mut states = self.cut(interval.delta.unwrap_or_default(), collected.as_ref());
        if states.is_empty() {
            // All of it was too large; what follows is not.
            states.push(T::default());
        }
        let parts = states.len() as u64;
        let mark = Mark { session: self.config.session, seq: interval.to };
        let message = |(part, state)| {
            let (part, collected) = (part as u64, collected.clone());
            self.sealed(Body::Delta { from: acked, mark, collected, part, parts, state })
        };
        let messages: Vec<_> = states.into_iter().enumerate().map(message).collect();
        if parts > MAX_PARTS || messages.iter().map(Vec::len).sum::<usize>() > left {
            return None;
        }
        for bytes in messages {
            self.post(peer, bytes, send);
        }
        Some(interval.to)
    }

    /// What a state may take in a message that also carries `collected`.
    fn room(&self, collected: Option<&VersionVector>) -> usize {
        self.config.max_message - OVERHEAD - collected.map_or(0, |c| encode(c).len())
    }

    /// `state` as messages hold it; what none holds is reported and left out.
    fn cut(&mut self, state: T, collected: Option<&VersionVector>) -> Vec<T> {
        let most = self.config.largest_change.saturating_sub(OVERHEAD);
        let pieces = pieces(state, self.room(collected), most);
        if pieces.too_large > 0 && self.events.last() != Some(&Event::TooLarge) {
            self.events.push(Event::TooLarge);
        }
        pieces.fit
    }

    /// The collected cut, unless the peer has it, or it takes more than half of a message.
    fn collected_for(&self, peer: u64) -> Option<VersionVector> {
        let cut = self.stability.collected();
        let known = self.peers.get(&peer).is_some_and(|p| p.collected == cut_hash(cut));
        (!known && !cut.is_empty() && self.carries(cut)).then(|| cut.clone())
    }

    /// Whether a message that has something else to say can say this, too.
    fn carries(&self, cut: &VersionVector) -> bool {
        encode(cut).len() <= (self.config.max_message - OVERHEAD) / 2
    }

    /// The collected cut in messages of its own, in front of those that cannot carry it; once per tick and peer.
    fn send_collected(&mut self, peer: u64, send: &mut Vec<Outgoing>) {
        let cut = self.stability.collected();
        let Some(entry) = self.peers.get_mut(&peer).filter(|p| !p.told && p.collected != cut_hash(cut))
        else {
            return;
        };
        entry.told = true;
        let mut open = vec![cut.clone()];
        if open.iter().all(|cut| self.carries(cut)) {
            return;
        }
        while let Some(cut) = open.pop() {
            if self.carries(&cut) {
                self.push(peer, Body::Repair { collected: Some(cut), state: T::default() }, send);
            } else {
                let (first, second) = cut.halves();
                open.extend([second, first]);
            }
        }
    }

    fn send_ack(&mut self, peer: u64, send: &mut Vec<Outgoing>) {
        let stand = self.stand();
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        entry.owed = false;
        let (applied, collected) = (entry.applied, cut_hash(self.stability.collected()));
        self.push(peer, Body::Ack { applied, stand, collected }, send);
    }

    /// What the others need to know for stability, if a message holds it.
    fn stand(&self) -> Option<Stand> {
        if self.keeps_all() {
            return None;
        }
        let knows = self.state.known().map(Context::vector).unwrap_or_default();
        let stand = Stand { knows, stable: self.stability.stable().clone() };
        // Above some thirty authors the vectors no longer fit; then equal roots move stability.
        let size = encode(&(stand.knows.clone(), stand.stable.clone())).len() + OVERHEAD;
        (size <= self.config.max_message).then_some(stand)
    }

    fn sealed(&self, body: Body<T>) -> Vec<u8> {
        let header = Header { schema: self.config.schema, merge_version: self.config.merge_version };
        encode(&Message { header, body })
    }

    fn push(&mut self, peer: u64, body: Body<T>, send: &mut Vec<Outgoing>) {
        let bytes = self.sealed(body);
        self.post(peer, bytes, send);
    }

    fn post(&mut self, peer: u64, bytes: Vec<u8>, send: &mut Vec<Outgoing>) {
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        // What does not fit is asked for again.
        if let Some(left) = entry.budget.checked_sub(bytes.len()) {
            entry.budget = left;
            send.push((peer, bytes));
        }
    }

    /// Takes a message in.
    pub fn on_msg(&mut self, from: u64, bytes: &[u8], _now: Instant) -> Step {
        let mut send = Vec::new();
        let changed = match self.receive(from, bytes, &mut send) {
            Ok(changed) => changed,
            Err(error) => {
                self.events.push(match error.kind() {
                    ErrorKind::TypeMismatch => Event::Mismatch { peer: from },
                    _ => Event::Malformed { peer: from },
                });
                false
            }
        };
        self.settle();
        Step { changed: Changed::from(changed), send, events: std::mem::take(&mut self.events) }
    }

    fn receive(&mut self, from: u64, bytes: &[u8], send: &mut Vec<Outgoing>) -> Result<bool> {
        let ours = Header { schema: self.config.schema, merge_version: self.config.merge_version };
        // Versions are compared before anything else is believed.
        let header = decode::<Peek>(bytes)?.0;
        let accepted = header.schema == ours.schema && self.config.accepts.contains(&header.merge_version);
        if from == self.config.me {
            return Err(Error::malformed("a message from this node"));
        }
        if self.removed.contains(&from) {
            self.events.push(Event::Returned { peer: from });
            send.push((from, encode(&Message { header: ours, body: Body::<T>::Refused { removed: true } })));
            return Ok(false);
        }
        if !accepted {
            self.events
                .push(Event::Incompatible { peer: from, theirs: (header.schema, header.merge_version) });
            return Ok(false);
        }
        let message: Message<T> = decode(bytes)?;
        let budget = self.config.budget;
        self.peers.entry(from).or_insert_with(|| Peer::new(budget));
        match message.body {
            Body::Root { sum, context, stable, mark } => {
                self.on_root(from, (sum, context), stable, mark, send);
            }
            Body::Delta { from: start, mark, collected, part, parts, state } => {
                return self.on_delta(from, (start, mark), collected.as_ref(), (part, parts), state, send);
            }
            Body::Ack { applied, stand, collected } => self.on_ack(from, applied, stand.as_ref(), collected),
            Body::Repair { collected, state } => {
                self.collect_up_to(collected.as_ref());
                return self.join(from, state);
            }
            Body::Known { from: lo, to: hi, context, want } => {
                self.on_known(from, (lo, hi), &context, want, send)
            }
            Body::Ranges { lo, parts } => self.on_ranges(from, lo, &parts, send),
            Body::Items { lo, hi, items, want } => self.on_items(from, (lo, hi), &items, want, send),
            Body::Refused { removed } => self.events.push(Event::Refused { peer: from, removed }),
        }
        Ok(false)
    }

    fn join(&mut self, from: u64, state: T) -> Result<bool> {
        let state = self.admit(from, state);
        // Only what was new goes on: with all of it, what many tell would be told again as often as it was heard.
        let news = self.state.join_news(state)?;
        let changed = news.is_some();
        if let Some(news) = news {
            self.note(news, Some(from));
        }
        Ok(changed)
    }

    /// What of `state` may be joined by now.
    fn admit(&mut self, from: u64, state: T) -> T {
        let Some(clock) = &self.config.clock else { return state };
        // A clock that cannot tell the time takes nothing that is newer than what it knows.
        let limit = clock.horizon().unwrap_or_else(|_| clock.last());
        let early = self.peers.get(&from).is_some_and(|p| p.early);
        let admitted = self.state.admit(state, limit, early);
        if let Some(at) = admitted.newest {
            let _ = clock.observe(at);
        }
        if admitted.held_back && !early {
            self.peers.get_mut(&from).into_iter().for_each(|p| p.early = true);
            self.events.push(Event::FromTheFuture { peer: from });
        }
        admitted.state
    }

    fn on_root(&mut self, from: u64, digest: (u128, u64), stable: u64, mark: Mark, send: &mut Vec<Outgoing>) {
        let mine = self.digest();
        // Where all is known, nothing is held back.
        let all_known = self.state.known().map_or(digest == mine, |_| digest.1 == mine.1);
        self.peers.get_mut(&from).into_iter().for_each(|p| p.early &= !all_known);
        if digest == mine {
            let (seq, knows) = (self.log.seq(), self.state.known().map(Context::vector).unwrap_or_default());
            if let Some(peer) = self.peers.get_mut(&from) {
                // It has everything I have, and I everything it has.
                peer.acked = seq;
                peer.owed |= peer.applied != mark;
                peer.has(mark);
            }
            // It knows what I know. That it holds as much for stable is told by eight bytes, which are the same for any
            // number of authors, and told again with every root, so that no loss keeps it from being heard.
            let cut = self.stability.stable();
            let stable = if stable == cut_hash(cut) { cut.clone() } else { VersionVector::new() };
            let stand = Stand { knows, stable };
            if self.stability.report(from, &stand) {
                self.unsettled = true;
                self.owe();
            }
            if self.peers.get(&from).is_some_and(|p| p.owed) {
                self.send_ack(from, send);
            }
        } else if !self.answers_by_log(from, mark, send) {
            if digest.1 != mine.1 {
                self.send_known(from, true, send);
            } else {
                self.ask_ranges(from, Place::FIRST, Place::LAST, send);
            }
        }
    }

    /// Whether the logs of the two may explain the difference: then they are exchanged, once per tick. Of a log that takes
    /// more than one message the newest changes are told, and no more: with hundreds of authors most of the rest is known
    /// by then, and what arrives in another order than it was sent is no interval.
    fn answers_by_log(&mut self, from: u64, mark: Mark, send: &mut Vec<Outgoing>) -> bool {
        let seq = self.log.seq();
        let room = self.room(self.collected_for(from).as_ref());
        let Some(peer) = self.peers.get_mut(&from).filter(|_| self.config.root_first) else { return false };
        let behind = peer.applied.session == mark.session && peer.applied.seq < mark.seq;
        let acked = peer.acked;
        let again = std::mem::replace(&mut peer.answered, true);
        let pending = acked < seq && self.log.reaches(acked) && self.log.fits(acked, from, room);
        if again {
            // A second root that differs within a tick: only contents can tell.
            return pending && self.send_news(from, send);
        }
        let newest = if pending { None } else { self.log.newest(acked, from, room).ok().and_then(|n| n.0) };
        if !(pending || behind || newest.is_some()) {
            return false;
        }
        if let Some(newest) = newest {
            self.send_repair(from, newest, send);
        } else {
            self.send_news(from, send);
        }
        self.send_root(from, send);
        true
    }

    fn owe(&mut self) {
        if self.keeps_all() {
            // Nobody waits for what is held for stable here.
            return;
        }
        for peer in self.peers.values_mut() {
            peer.owed = true;
        }
    }

    fn on_delta(
        &mut self,
        from: u64,
        (start, mark): (u64, Mark),
        collected: Option<&VersionVector>,
        (part, parts): (u64, u64),
        state: T,
        send: &mut Vec<Outgoing>,
    ) -> Result<bool> {
        let Some(peer) = self.peers.get_mut(&from) else { return Ok(false) };
        if peer.applied.session != mark.session {
            // The sender started anew: its numbers mean something else now.
            peer.has(Mark { session: mark.session, seq: 0 });
        }
        let fresh = start <= peer.applied.seq && peer.applied.seq < mark.seq;
        let of = Whole { start, mark, collected: collected.cloned(), parts };
        let taken = if fresh { peer.take(of, part, state) } else { Taken::Refused };
        let states = match taken {
            Taken::All(states) => states,
            Taken::Open => return Ok(false),
            Taken::Refused => {
                // A gap, a duplicate, or parts that do not fit together: say where to go on.
                self.send_ack(from, send);
                return Ok(false);
            }
        };
        let mut whole = T::default();
        for part in states {
            let _ = whole.join(&part)?;
        }
        self.collect_up_to(collected);
        let changed = self.join(from, whole)?;
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.has(mark);
        }
        self.send_ack(from, send);
        Ok(changed)
    }

    fn on_ack(&mut self, from: u64, applied: Mark, stand: Option<&Stand>, collected: u64) {
        if let Some(peer) = self.peers.get_mut(&from) {
            if applied.session == self.config.session {
                peer.acked = applied.seq.min(self.log.seq());
            }
            peer.collected = collected;
        }
        if let Some(stand) = stand
            && self.stability.report(from, stand)
        {
            self.unsettled = true;
            self.settle();
        }
    }

    /// Moves stability, and forgets what every member may forget.
    fn settle(&mut self) {
        if self.keeps_all() || !std::mem::take(&mut self.unsettled) {
            return;
        }
        let knows = self.state.known().map(Context::vector).unwrap_or_default();
        let me = self.config.me;
        if self.stability.advance(me, self.config.members.iter().copied(), &knows) {
            self.owe();
        }
        let cut = self.stability.collectable(me, self.config.members.iter().copied());
        self.collect_up_to(Some(&cut));
    }

    fn collect_up_to(&mut self, cut: Option<&VersionVector>) {
        let Some(cut) = cut.filter(|cut| !cut.is_empty()) else { return };
        if self.stability.collect(cut) {
            let stable = self.stability.collected();
            let dropped = self.state.collect(&|dot| stable.contains(dot));
            (self.digest, self.unsettled) = (None, true);
            if dropped > 0 {
                self.events.push(Event::Collected(dropped));
            }
            self.owe();
        }
    }
}
