//! Judges what became of the slots of a schedule.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay_sim::check::Checker;
use mainstay_sim::history::{Datum, Event, Op};
use mainstay_sim::verdict::{Evidence, Verdict};

use crate::runner::{AT_LEAST, AT_MOST, EVERY, LATE, LONGEST_WAIT, Mode};

/// After the heal: what was still on its way has arrived (a slow call takes ten seconds, a late one three), and what it
/// took has ended.
pub(crate) const SETTLED: Duration = Duration::from_secs(16);

/// Rules of a schedule:
///
/// - no slot is started twice, and with larger tokens come later slots, at the resource too;
/// - by a store that tells the time nothing is started early, and what is due is what the store's time says;
/// - nobody is told that a slot is done, or that nothing is due, while no one has it: each slot that somebody looked
///   for is started, given up with a reason, or was in the hands of who crashed or was not answered;
/// - starts are apart for as long as they are kept, and no run is longer than allowed;
/// - when everything is healed, each slot is taken, and runs go on.
///
/// Reads `mode` (its argument is the mode, its value the store's time), `nodes`, `due`, `acquire` and what it became,
/// `release`, and effects whose amount is a slot.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    ops: Vec<Op>,
    effects: Vec<Event>,
    healed: Option<u64>,
    end: u64,
}

pub(crate) fn slots() -> Box<dyn Checker> {
    Box::new(Slots::default())
}

impl Checker for Slots {
    fn feed(&mut self, event: &Event) {
        match event {
            Event::Op(op) => {
                self.end = self.end.max(op.return_ns.unwrap_or(op.invoke_ns));
                self.ops.push(op.clone());
            }
            Event::Effect(effect) if effect.accepted => self.effects.push(event.clone()),
            Event::Heal { at_ns } => self.healed = Some(*at_ns),
            _ => {}
        }
    }

    fn verdict(self: Box<Self>) -> Verdict {
        let Some(facts) = Facts::of(&self) else {
            return Verdict::Unknown("the history does not say how the job was built".to_owned());
        };
        let rules = [
            facts.once(),
            facts.in_order(&self.effects),
            facts.in_time(),
            facts.given_away(),
            facts.passed_over(),
            facts.apart(),
            facts.short(),
            facts.all_taken(),
            facts.goes_on(),
        ];
        if let Some(failed) = rules.into_iter().flatten().next() {
            return failed;
        }
        Verdict::pass(Evidence::of(facts.started.len() as u64))
    }
}

/// Who had a slot, or may have had it.
#[derive(Clone, Copy)]
struct Taker<'h> {
    slot: i64,
    op: &'h Op,
    /// Whether the slot was taken for sure.
    certain: bool,
}

struct Facts<'h> {
    mode: Mode,
    nodes: i64,
    /// The store's time at an instant of the history.
    wall: (u64, i64),
    dues: Vec<(&'h Op, i64)>,
    takers: Vec<Taker<'h>>,
    taken: Vec<(&'h Op, i64)>,
    /// By token.
    started: BTreeMap<u64, (&'h Op, i64)>,
    releases: Vec<&'h Op>,
    healed: Option<u64>,
    end: u64,
}

fn value(op: &Op) -> Option<i64> {
    match op.value {
        Some(Datum::Int(n)) => Some(n),
        _ => None,
    }
}

fn ms(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}

fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

fn latest(wall: i64) -> i64 {
    wall - wall.rem_euclid(ms(EVERY))
}

impl<'h> Facts<'h> {
    fn of(history: &'h Slots) -> Option<Self> {
        let one = |f: &str| history.ops.iter().find(|op| &*op.f == f);
        let said = one("mode")?;
        let mode = match &said.arg {
            Some(Datum::Text(name)) => Mode::ALL.into_iter().find(|m| m.name() == &**name)?,
            _ => return None,
        };
        let mut facts = Self {
            mode,
            nodes: value(one("nodes")?)?,
            wall: (said.invoke_ns, value(said)?),
            dues: Vec::new(),
            takers: Vec::new(),
            taken: Vec::new(),
            started: BTreeMap::new(),
            releases: Vec::new(),
            healed: history.healed,
            end: history.end,
        };
        for op in &history.ops {
            match (&*op.f, value(op)) {
                ("due", Some(slot)) if op.is_ok() => facts.dues.push((op, slot)),
                ("acquire", Some(slot)) => {
                    facts.takers.push(Taker { slot, op, certain: op.is_ok() });
                    if let Some(token) = op.epoch.filter(|_| op.is_ok()) {
                        facts.started.insert(token, (op, slot));
                    }
                }
                ("kept" | "overlapped" | "superseded", Some(slot)) => {
                    facts.takers.push(Taker { slot, op, certain: true });
                }
                ("taken", Some(slot)) => facts.taken.push((op, slot)),
                ("release", _) => facts.releases.push(op),
                _ => {}
            }
        }
        Some(facts)
    }

    /// The store's time, in milliseconds, at an instant of the history.
    fn wall(&self, at: u64) -> i64 {
        let since = i64::try_from(at).unwrap_or(i64::MAX) - i64::try_from(self.wall.0).unwrap_or(i64::MAX);
        self.wall.1 + since.div_euclid(1_000_000)
    }

    fn once(&self) -> Option<Verdict> {
        let mut seen: BTreeMap<i64, &Op> = BTreeMap::new();
        for (op, slot) in self.started.values() {
            if let Some(first) = seen.insert(*slot, op) {
                return failed(format!("slot {slot} was started twice"), &[first, op]);
            }
        }
        None
    }

    fn in_order(&self, effects: &[Event]) -> Option<Verdict> {
        let by_token: Vec<&(&Op, i64)> = self.started.values().collect();
        if let Some(pair) = by_token.windows(2).find(|pair| pair[1].1 <= pair[0].1) {
            let text = format!("slot {} was started after slot {}", pair[1].1, pair[0].1);
            return failed(text, &[pair[0].0, pair[1].0]);
        }
        let slot = |event: &Event| match event {
            Event::Effect(effect) => effect.amount,
            _ => 0,
        };
        let back = effects.windows(2).find(|pair| slot(&pair[1]) < slot(&pair[0]))?;
        let text = format!("the resource took slot {} after slot {}", slot(&back[1]), slot(&back[0]));
        Some(Verdict::fail(text, back.to_vec()))
    }

    fn in_time(&self) -> Option<Verdict> {
        if self.mode == Mode::OwnClock {
            return None;
        }
        for (op, slot) in self.dues.iter().filter(|(_, slot)| *slot >= 0) {
            let (from, to) = (latest(self.wall(op.invoke_ns)), latest(self.wall(op.end())));
            if !(from..=to).contains(slot) || slot % ms(EVERY) != 0 {
                return failed(format!("slot {slot} was due between {from} and {to}"), &[op]);
            }
        }
        let early = self.started.values().find(|(op, slot)| self.wall(op.invoke_ns) < *slot);
        early.and_then(|(op, slot)| failed(format!("slot {slot} was started before its time"), &[op]))
    }

    /// Whether a new job may have begun behind a slot: nobody had taken any by then.
    fn was_new(&self, at: u64) -> bool {
        !self.takers.iter().any(|t| t.certain && t.op.end() < at)
    }

    /// Whether a slot or a later one was in somebody's hands by an instant. Whoever is told only after it that another
    /// has it may have taken it without hearing of that, before a later slot was taken.
    fn has_taker(&self, slot: i64, by: u64) -> bool {
        let still_asks = |(op, other): &(&Op, i64)| *other >= slot && op.invoke_ns < by && op.end() > by;
        self.takers.iter().any(|t| t.slot >= slot && t.op.invoke_ns < by) || self.taken.iter().any(still_asks)
    }

    /// Who is told that a slot is taken can rely on it.
    fn given_away(&self) -> Option<Verdict> {
        for (op, slot) in &self.taken {
            let fresh = self.wall(op.end()) - slot <= ms(LATE);
            let begun = self.was_new(op.invoke_ns) && (!fresh || self.mode == Mode::OwnClock);
            if !begun && !self.has_taker(*slot, op.end()) {
                return failed(format!("slot {slot} was taken, and by nobody"), &[op]);
            }
        }
        None
    }

    /// Who is told that nothing is due can rely on it.
    fn passed_over(&self) -> Option<Verdict> {
        if self.mode == Mode::OwnClock {
            return None;
        }
        for (op, _) in self.dues.iter().filter(|(_, slot)| *slot < 0) {
            let slot = latest(self.wall(op.invoke_ns));
            let fresh = self.wall(op.end()) - slot <= ms(LATE);
            let owed = fresh || self.mode == Mode::Latest && !self.was_new(op.invoke_ns);
            if owed && !self.has_taker(slot, op.end()) {
                return failed(format!("slot {slot} was passed over"), &[op]);
            }
        }
        None
    }

    /// A start is never earlier than the call that led to it.
    fn apart(&self) -> Option<Verdict> {
        if !matches!(self.mode, Mode::AtLeast | Mode::OwnClock) {
            return None;
        }
        let starts: Vec<&Op> = self.started.values().map(|(op, _)| *op).collect();
        let near = starts.windows(2).find(|pair| pair[1].end() < pair[0].invoke_ns + ns(AT_LEAST))?;
        let gap = Duration::from_nanos(near[1].end().saturating_sub(near[0].end()));
        failed(format!("a run was started {gap:?} after another one"), near)
    }

    fn short(&self) -> Option<Verdict> {
        if self.mode != Mode::AtMost {
            return None;
        }
        // What the node's clock may be off, and what a timer is late.
        let most = ns(AT_MOST + AT_MOST / 100 + Duration::from_millis(2));
        for (op, slot) in self.started.values() {
            let last = self.releases.iter().filter(|r| r.op_id == op.op_id).map(|r| r.invoke_ns).max();
            if let Some(last) = last.filter(|last| *last > op.end() + most) {
                let ran = Duration::from_nanos(last - op.end());
                return failed(format!("the run of slot {slot} took {ran:?}"), &[op]);
            }
        }
        None
    }

    /// With one node alone a slot may go by during a run.
    fn all_taken(&self) -> Option<Verdict> {
        let healed = self.healed.filter(|_| self.mode != Mode::OwnClock && self.nodes >= 3)?;
        let from = latest(self.wall(healed + ns(SETTLED))) + ms(EVERY);
        // Who begins at the end may still wait for an earlier run.
        let to = self.wall(self.end) - ms(EVERY + LONGEST_WAIT);
        let lost = (from..to)
            .step_by(usize::try_from(ms(EVERY)).unwrap_or(1))
            .find(|slot| !self.takers.iter().any(|t| t.certain && t.slot == *slot))?;
        failed(format!("slot {lost} was taken by nobody though everything was healed"), &[])
    }

    /// A clock that is wrong by years may have used up every slot of the years between.
    fn goes_on(&self) -> Option<Verdict> {
        let calm = self.healed.filter(|_| self.mode != Mode::OwnClock)? + ns(SETTLED);
        let goes_on = self.started.values().any(|(op, _)| op.end() >= calm);
        if goes_on { None } else { failed("no slot was started once everything had settled".to_owned(), &[]) }
    }
}

fn failed(text: String, ops: &[&Op]) -> Option<Verdict> {
    Some(Verdict::fail(text, ops.iter().map(|op| Event::Op((*op).clone())).collect()))
}
