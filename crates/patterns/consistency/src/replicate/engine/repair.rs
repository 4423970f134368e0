//! Repairs: what differs is found out by contexts or by sums of ranges, and told without the log.

use super::{AntiEntropy, OVERHEAD};
use crate::ActorId;
use crate::replicate::event::Outgoing;
use crate::replicate::message::Body;
use crate::replicate::{Place, Replicated};
use crate::version::Context;
use crate::wire::encode;

/// Sub-ranges per question: with their sums they fill about half a datagram.
const FAN: usize = 8;
/// From so few items on a range is listed instead of split.
const LEAF: u64 = 8;
/// What an item takes in a message at most: a place and a hash.
const ITEM: usize = 34;

impl<T: Replicated> AntiEntropy<T> {
    /// What this replica knows, by actor, in as many messages as it takes.
    pub(super) fn send_known(&mut self, peer: u64, want: bool, send: &mut Vec<Outgoing>) {
        let first = ActorId::from_bytes([0; 16]);
        let last = ActorId::from_bytes([u8::MAX; 16]);
        let context = self.state.known().cloned().unwrap_or_default();
        self.send_known_between(peer, (first, last), &context, want, send);
    }

    fn send_known_between(
        &mut self,
        peer: u64,
        (first, last): (ActorId, ActorId),
        context: &Context,
        want: bool,
        send: &mut Vec<Outgoing>,
    ) {
        let part = context.between(first, last);
        let actors: Vec<ActorId> = part.entries().iter().map(|e| e.0).collect();
        let size = encode(&part).len() + OVERHEAD;
        if size > self.config.max_message && actors.len() > 1 {
            let middle = actors[actors.len() / 2];
            let before = actors[actors.len() / 2 - 1];
            // Between two actors of the list there may be others that the peer knows: the first half reaches up to the
            // second.
            self.send_known_between(peer, (first, middle.just_before().max(before)), context, want, send);
            self.send_known_between(peer, (middle, last), context, want, send);
            return;
        }
        // One actor's gaps may be too many: what it knows without gaps is enough to go on.
        let context = if size > self.config.max_message { part.gap_free() } else { part };
        self.push(peer, Body::Known { from: first, to: last, context, want }, send);
    }

    pub(super) fn on_known(
        &mut self,
        from: u64,
        (lo, hi): (ActorId, ActorId),
        theirs: &Context,
        want: bool,
        send: &mut Vec<Outgoing>,
    ) {
        let missing = self.state.missing(lo, hi, theirs);
        self.send_repair(from, missing, send);
        let lacks = self.state.known().is_none_or(|mine| !mine.covers(theirs));
        if want && lacks {
            let context = self.state.known().cloned().unwrap_or_default();
            self.send_known_between(from, (lo, hi), &context, false, send);
        }
    }

    pub(super) fn send_repair(&mut self, peer: u64, state: T, send: &mut Vec<Outgoing>) {
        if state.is_nothing() {
            return;
        }
        self.send_collected(peer, send);
        let collected = self.collected_for(peer);
        for state in self.cut(state, collected.as_ref()) {
            self.push(peer, Body::Repair { collected: collected.clone(), state }, send);
        }
    }

    /// Sends sums of `lo..=hi` in parts of about equal size.
    pub(super) fn ask_ranges(&mut self, peer: u64, lo: Place, hi: Place, send: &mut Vec<Outgoing>) {
        let places = self.state.list(lo, hi, &self.config.key);
        let step = places.len().div_ceil(FAN).max(1);
        let mut ends: Vec<Place> = places.iter().skip(step - 1).step_by(step).map(|e| e.0).collect();
        ends.pop();
        ends.push(hi);
        let (mut start, mut parts) = (lo, Vec::new());
        for end in ends {
            let (count, sum) = self.state.sum(start, end, &self.config.key);
            parts.push((end, count, sum));
            start = end.next();
        }
        self.push(peer, Body::Ranges { lo, parts }, send);
    }

    pub(super) fn on_ranges(
        &mut self,
        from: u64,
        lo: Place,
        parts: &[(Place, u64, u128)],
        send: &mut Vec<Outgoing>,
    ) {
        let mut start = lo;
        for (end, count, sum) in parts.iter().take(2 * FAN) {
            if *end < start {
                return;
            }
            let mine = self.state.sum(start, *end, &self.config.key);
            if mine != (*count, *sum) {
                if mine.0.max(*count) <= LEAF || mine.0 == 0 {
                    self.send_items(from, start, *end, true, send);
                } else {
                    self.ask_ranges(from, start, *end, send);
                }
            }
            start = end.next();
        }
    }

    fn send_items(&mut self, peer: u64, lo: Place, hi: Place, want: bool, send: &mut Vec<Outgoing>) {
        let items = self.state.list(lo, hi, &self.config.key);
        self.push(peer, Body::Items { lo, hi, items, want }, send);
    }

    pub(super) fn on_items(
        &mut self,
        from: u64,
        (lo, hi): (Place, Place),
        items: &[(Place, u64)],
        want: bool,
        send: &mut Vec<Outgoing>,
    ) {
        let answer = self.state.answer(lo, hi, items, &self.config.key);
        self.send_repair(from, answer, send);
        let mine = self.state.list(lo, hi, &self.config.key);
        // What is here and not there may have been removed there: only the other side can tell.
        if want && mine != items {
            // A range that is long here, or fits into no message, goes back as questions again.
            let most = (4 * LEAF).min(((self.config.max_message - OVERHEAD) / ITEM) as u64);
            if mine.len() as u64 > most {
                self.ask_ranges(from, lo, hi, send);
            } else {
                self.send_items(from, lo, hi, false, send);
            }
        }
    }
}
