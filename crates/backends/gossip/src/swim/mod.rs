//! Membership by SWIM: members probe each other, ask others to probe, suspect, and declare down.
//!
//! The protocol is [`foca`]'s. Added here: joining by address alone, coming back from a state in which nobody else
//! is known (foca#15), a bound on the identities that are remembered (foca#32), and lives: a node that comes back is the
//! same member in a later life, so its earlier lives take no room.

mod codec;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use foca::{
    AccumulatingRuntime, Codec as _, Foca, Header, Message, OwnedNotification, PeriodicParams, Timer,
};
use mainstay_clock::{Instant, Rng};
use rand_core::{Infallible, TryRng};

use crate::member::{Change, Member, Membership, Presence};
pub(crate) use codec::Life;
use codec::Plain;

/// Between two tries to join while nobody is known, and again while somebody is: halves of a cluster that lost each
/// other meet at their seeds.
const ALONE: Duration = Duration::from_secs(1);
const TOGETHER: Duration = Duration::from_secs(30);
/// How long a member that is down is remembered.
const FORGET: Duration = Duration::from_secs(900);
/// A probe, and when others are asked to help.
const PROBE: Duration = Duration::from_secs(1);
const PROBE_RTT: Duration = Duration::from_millis(400);
/// How long somebody suspected may take to object: what a fleet of a hundred needs to hear of it twice.
const SUSPECT: Duration = Duration::from_secs(4);
/// How often one piece of news travels along.
const TRANSMISSIONS: u8 = 8;
/// Between two times that news go out at once; what else of them is to be told goes with ticks and probes.
const BURST: Duration = Duration::from_millis(50);
/// Members that one answer to an announcement names, about: what a datagram holds.
const NAMED: usize = 40;
/// Strangers that are asked who they are, between two ticks: with their answers about 10 KB.
const QUESTIONS: usize = 8;

/// Randomness for foca.
struct Dice(Arc<dyn Rng>);

impl TryRng for Dice {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((self.0.next_u64() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(bytes);
        Ok(())
    }
}

type Engine = Foca<Life, Plain, Dice, foca::NoCustomBroadcast>;

/// A message for a member, or for whoever is at the address.
pub(crate) struct Letter {
    pub(crate) to: u64,
    pub(crate) address: SocketAddr,
    pub(crate) payload: Vec<u8>,
}

/// Who was seen.
#[derive(Clone, Copy, Debug)]
struct Seen {
    life: Life,
    up: bool,
    since: Instant,
}

/// What the protocol needs to know at the start.
pub(crate) struct Start {
    pub(crate) me: Life,
    pub(crate) seeds: Vec<SocketAddr>,
    pub(crate) configured: BTreeSet<u64>,
    pub(crate) max_packet: usize,
    pub(crate) limit: usize,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) now: Instant,
}

/// The membership of one node.
pub(crate) struct Swim {
    foca: Engine,
    me: Life,
    seeds: Vec<SocketAddr>,
    configured: BTreeSet<u64>,
    seen: BTreeMap<u64, Seen>,
    timers: BTreeMap<(Instant, u64), Timer<Life>>,
    count: u64,
    changes: Vec<Change>,
    letters: Vec<Letter>,
    next_join: Instant,
    /// When news are to go out.
    burst: Option<Instant>,
    last_burst: Instant,
    /// Who was asked since the last tick.
    asked: BTreeSet<SocketAddr>,
    /// Members that were asked whom they know, since the start.
    introduced: usize,
    limit: usize,
    crowded: u64,
    rng: Arc<dyn Rng>,
}

impl fmt::Debug for Swim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Swim").field("me", &self.me).field("seen", &self.seen.len()).finish_non_exhaustive()
    }
}

fn config(max_packet: usize) -> foca::Config {
    let mut config = foca::Config::simple();
    config.probe_period = PROBE;
    config.probe_rtt = PROBE_RTT;
    config.suspect_to_down_after = SUSPECT;
    config.remove_down_after = Some(FORGET);
    config.max_transmissions = NonZeroU8::new(TRANSMISSIONS).unwrap_or(NonZeroU8::MIN);
    config.max_packet_size = NonZeroUsize::new(max_packet).unwrap_or(NonZeroUsize::MIN);
    config.notify_down_members = true;
    let every =
        |seconds| PeriodicParams { frequency: Duration::from_secs(seconds), num_members: NonZeroUsize::MIN };
    config.periodic_announce = Some(every(30));
    config.periodic_announce_to_down_members = Some(every(5));
    config
}

impl Swim {
    pub(crate) fn new(start: Start) -> Self {
        let Start { me, seeds, configured, max_packet, limit, rng, now } = start;
        let foca = Foca::new(me, config(max_packet), Dice(Arc::clone(&rng)), Plain);
        Self {
            foca,
            me,
            seeds: seeds.into_iter().filter(|seed| *seed != me.address).collect(),
            configured: configured.into_iter().filter(|id| *id != me.id).collect(),
            seen: BTreeMap::new(),
            timers: BTreeMap::new(),
            count: 0,
            changes: Vec::new(),
            letters: Vec::new(),
            next_join: now,
            burst: None,
            last_burst: now,
            asked: BTreeSet::new(),
            introduced: 0,
            limit,
            crowded: 0,
            rng,
        }
    }

    /// How often somebody new found no room.
    pub(crate) fn crowded(&self) -> u64 {
        self.crowded
    }

    /// Identities that are remembered.
    pub(crate) fn remembered(&self) -> usize {
        self.foca.iter_membership_state().len()
    }

    /// The generation of the present life.
    pub(crate) fn generation(&self) -> u64 {
        self.me.generation
    }

    /// When [`on_time`](Self::on_time) has something to do.
    pub(crate) fn due(&self) -> Instant {
        let due = self.burst.map_or(self.next_join, |at| at.min(self.next_join));
        self.timers.keys().next().map_or(due, |(at, _)| (*at).min(due))
    }

    /// Runs what is due.
    pub(crate) fn on_time(&mut self, now: Instant) {
        while let Some(entry) = self.timers.first_entry().filter(|e| e.key().0 <= now) {
            let timer = entry.remove();
            self.run(now, |foca, out| foca.handle_timer(timer, out));
        }
        if now >= self.next_join {
            self.join(now);
        }
        if self.burst.is_some_and(|at| now >= at) {
            (self.burst, self.last_burst) = (None, now);
            self.spread(now);
        }
    }

    /// Who sent something and is not known, yet has a key: it is asked who it is, and hears of this node by that.
    pub(crate) fn ask(&mut self, address: SocketAddr, now: Instant) {
        if self.asked.len() < QUESTIONS && self.remembered() < self.limit && self.asked.insert(address) {
            self.announce(address, now);
        }
    }

    /// Spreads news while there are any.
    pub(crate) fn on_tick(&mut self, now: Instant) {
        self.asked.clear();
        self.introduce(now);
        self.spread(now);
    }

    /// A node that is new asks some members whom they know, until their answers would have named everybody twice. The seed
    /// names some at random, and news about the others may be over: what it missed it would hear of half a minute later.
    fn introduce(&mut self, now: Instant) {
        let up = self.seen.values().filter(|s| s.up);
        let count = up.clone().count();
        if self.introduced >= 2 * count.div_ceil(NAMED) {
            return;
        }
        let one = usize::try_from(self.rng.below(count as u64)).unwrap_or(0);
        let Some(life) = up.clone().nth(one).map(|s| s.life) else { return };
        self.introduced += 1;
        self.run(now, |foca, out| foca.announce(life, out));
    }

    fn spread(&mut self, now: Instant) {
        if self.foca.updates_backlog() > 0 {
            self.run(now, |foca, out| foca.gossip(out));
        }
    }

    /// Announces this node to its seeds: to all of them while nobody is known, to one of them otherwise.
    fn join(&mut self, now: Instant) {
        let alone = self.foca.iter_members().next().is_none();
        let base = if alone { ALONE } else { TOGETHER };
        // Jitter, so that a fleet that starts at once does not ask at once.
        self.next_join = now.saturating_add(base.mul_f64(0.5 + self.rng.unit()));
        if self.seeds.is_empty() {
            return;
        }
        let first = usize::try_from(self.rng.below(self.seeds.len() as u64)).unwrap_or(0);
        let count = if alone { self.seeds.len() } else { 1 };
        for i in 0..count {
            self.announce(self.seeds[(first + i) % self.seeds.len()], now);
        }
    }

    fn announce(&mut self, address: SocketAddr, now: Instant) {
        let whoever = Life { id: 0, address, generation: 0 };
        self.run(now, |foca, out| foca.announce(whoever, out));
    }

    /// Says good-bye.
    pub(crate) fn leave(&mut self, now: Instant) {
        self.run(now, |foca, out| foca.leave_cluster(out));
    }

    /// Takes a message in; whether it was one.
    pub(crate) fn on_packet(&mut self, payload: &[u8], now: Instant) -> bool {
        let Some(payload) = self.admit(payload) else { return false };
        self.run(now, |foca, out| foca.handle_data(&payload, out))
    }

    /// The message as it may be taken in: an announcement to an address is one to whoever is there, and when there is no
    /// room nobody new is learned of.
    fn admit(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        let mut rest = payload;
        let mut header: Header<Life> = Plain.decode_header(&mut rest).ok()?;
        if header.message == Message::Announce {
            header.dst = self.me;
        }
        let mut out = Vec::with_capacity(payload.len());
        Plain.encode_header(&header, &mut out).ok()?;
        if self.remembered() < self.limit {
            out.extend_from_slice(rest);
            return Some(out);
        }
        let known: BTreeSet<u64> = self.foca.iter_membership_state().map(|m| m.id().id).collect();
        if !known.contains(&header.src.id) {
            self.crowded += 1;
            return None;
        }
        if let Some((count, mut members)) = rest.split_at_checked(2) {
            let count = u16::from_be_bytes([count[0], count[1]]);
            let mut kept = Vec::new();
            for _ in 0..count {
                let member = Plain.decode_member(&mut members).ok()?;
                if known.contains(&member.id().id) || member.id().id == self.me.id {
                    kept.push(member);
                } else {
                    self.crowded += 1;
                }
            }
            out.extend_from_slice(&u16::try_from(kept.len()).unwrap_or(0).to_be_bytes());
            for member in kept {
                Plain.encode_member(&member, &mut out).ok()?;
            }
        }
        Some(out)
    }

    fn run(
        &mut self,
        now: Instant,
        f: impl FnOnce(&mut Engine, &mut AccumulatingRuntime<Life>) -> Result<(), foca::Error>,
    ) -> bool {
        let mut out = AccumulatingRuntime::new();
        let done = f(&mut self.foca, &mut out);
        if let Err(error) = &done {
            tracing::trace!(%error, "membership");
        }
        while let Some((to, bytes)) = out.to_send() {
            self.letters.push(Letter { to: to.id, address: to.address, payload: bytes.to_vec() });
        }
        while let Some((after, timer)) = out.to_schedule() {
            self.count += 1;
            self.timers.insert((now.saturating_add(after), self.count), timer);
        }
        while let Some(note) = out.to_notify() {
            self.note(note, now);
        }
        done.is_ok()
    }

    fn note(&mut self, note: OwnedNotification<Life>, now: Instant) {
        match note {
            OwnedNotification::MemberUp(life) => self.set(life, true, now),
            OwnedNotification::MemberDown(life) => self.set(life, false, now),
            OwnedNotification::Rename(_, life) => {
                // The address may be new; whether it is up is said apart.
                if let Some(seen) = self.seen.get_mut(&life.id) {
                    seen.life = life;
                }
            }
            OwnedNotification::Rejoin(life) => self.me = life,
            OwnedNotification::Idle => self.next_join = now,
            _ => {}
        }
    }

    fn set(&mut self, life: Life, up: bool, now: Instant) {
        let before = self.seen.insert(life.id, Seen { life, up, since: now });
        if before.is_none_or(|b| b.up != up) {
            self.changes.push(if up { Change::Up(life.id) } else { Change::Down(life.id) });
            // Told at once: what waits for ticks and probes takes a second for each generation of hearers.
            let soonest = self.last_burst.saturating_add(BURST);
            self.burst.get_or_insert(if now > soonest { now } else { soonest });
        }
        self.forget(now);
    }

    /// Forgets who is down for long and not configured.
    fn forget(&mut self, now: Instant) {
        let gone = |id: &u64, s: &Seen| {
            !s.up && !self.configured.contains(id) && now.saturating_duration_since(s.since) > FORGET
        };
        let ids: Vec<u64> = self.seen.iter().filter(|(id, s)| gone(id, s)).map(|(id, _)| *id).collect();
        for id in ids {
            self.seen.remove(&id);
            self.changes.push(Change::Gone(id));
        }
    }

    /// What is to be sent.
    pub(crate) fn letters(&mut self) -> Vec<Letter> {
        std::mem::take(&mut self.letters)
    }
}

impl Membership for Swim {
    fn members(&self) -> Vec<Member> {
        let seen = self.seen.iter().map(|(id, seen)| {
            let presence = if seen.up { Presence::Up } else { Presence::Down };
            Member::new(*id, Some(seen.life.address), self.configured.contains(id), presence)
        });
        let unseen = self.configured.iter().filter(|id| !self.seen.contains_key(*id));
        seen.chain(unseen.map(|id| Member::new(*id, None, true, Presence::Unseen))).collect()
    }

    fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    fn me(&self) -> Member {
        Member::new(self.me.id, Some(self.me.address), true, Presence::Up)
    }
}
