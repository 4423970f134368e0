//! Judges what was seen of the members of a group.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay_sim::check::Checker;
use mainstay_sim::history::{Datum, Event, Op, Text};
use mainstay_sim::verdict::{Evidence, Verdict};

use crate::member::TTL;

/// After the heal: what was still on its way has arrived (a slow call takes ten seconds, a late one three), and what it
/// took or kept alive has ended.
pub(crate) const SETTLED: Duration = Duration::from_secs(16);

/// Longest time on the way there, of what was sent just before an end.
const ON_ITS_WAY: Duration = Duration::from_millis(10);
/// A watcher looks again after a second at the latest, by a clock that may be off by a hundredth, and its look takes
/// three messages each way.
const SEEN: Duration = Duration::from_millis(1_050);

/// Rules of a group:
///
/// - nobody is told that a member is gone while that member has every right to believe that it is there;
/// - when everything is healed, a member that ended is gone after its ttl, in every look and for every watcher; who said
///   goodbye is reported as left, and who crashed as expired;
/// - nobody is reported as left who did not say so; when everything is healed, nobody loses an entry who renews it;
/// - behind a name come larger incarnations only, and what is said under an incarnation was said by that incarnation, in
///   its order.
///
/// Reads `acquire` and `ended` of members (incarnation as epoch, its own name as `op_id`), `leave`, `look`, and what
/// watchers were told: `joined`, `updated`, `expired`, `left`, `gone`, with the watcher as session.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    ops: Vec<Op>,
    healed: Option<u64>,
}

pub(crate) fn presence() -> Box<dyn Checker> {
    Box::new(Presence::default())
}

impl Checker for Presence {
    fn feed(&mut self, event: &Event) {
        match event {
            Event::Op(op) => self.ops.push(op.clone()),
            Event::Heal { at_ns } => self.healed = Some(*at_ns),
            _ => {}
        }
    }

    fn verdict(self: Box<Self>) -> Verdict {
        let facts = Facts::of(&self);
        let rules = [
            facts.alive(),
            facts.order(),
            facts.words(),
            facts.goodbyes(),
            facts.looks(),
            facts.departures(),
            facts.kept(),
        ];
        if let Some(failed) = rules.into_iter().flatten().next() {
            return failed;
        }
        Verdict::pass(Evidence::of(facts.told.len() as u64))
    }
}

/// One incarnation.
#[derive(Default)]
struct Life<'h> {
    /// What it calls itself.
    id: Option<Text>,
    /// When and how it ended.
    ended: Option<(u64, Text)>,
    leave: Option<&'h Op>,
}

struct Facts<'h> {
    lives: BTreeMap<u64, Life<'h>>,
    /// What watchers were told, in their order.
    told: Vec<&'h Op>,
    looks: Vec<&'h Op>,
    /// From here on everything is at rest but the members.
    calm: u64,
}

fn text(datum: Option<&Datum>) -> &str {
    match datum {
        Some(Datum::Text(text)) => text,
        _ => "",
    }
}

fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

fn listed(entry: &str) -> Option<(&str, u64)> {
    let (name, rest) = entry.split_once('#')?;
    Some((name, rest.split('=').next()?.parse().ok()?))
}

fn is_gone(op: &Op) -> bool {
    matches!(&*op.f, "expired" | "left" | "gone")
}

impl<'h> Facts<'h> {
    fn of(history: &'h Presence) -> Self {
        let calm = history.healed.map_or(u64::MAX, |at| at + ns(SETTLED));
        let mut facts = Self { lives: BTreeMap::new(), told: Vec::new(), looks: Vec::new(), calm };
        for op in &history.ops {
            match (&*op.f, op.epoch) {
                ("acquire", Some(incarnation)) if op.is_ok() => {
                    facts.lives.entry(incarnation).or_default().id.clone_from(&op.op_id);
                }
                ("ended", Some(incarnation)) => {
                    let how = text(op.value.as_ref()).into();
                    facts.lives.entry(incarnation).or_default().ended = Some((op.invoke_ns, how));
                }
                ("leave", Some(incarnation)) => {
                    facts.lives.entry(incarnation).or_default().leave = Some(op);
                }
                ("look", _) if op.is_ok() => facts.looks.push(op),
                ("joined" | "updated" | "expired" | "left" | "gone", Some(_)) => facts.told.push(op),
                _ => {}
            }
        }
        facts
    }

    fn life(&self, op: &Op) -> Option<&Life<'h>> {
        self.lives.get(&op.epoch?)
    }

    fn alive(&self) -> Option<Verdict> {
        let op = self.told.iter().find(|op| text(op.arg.as_ref()) == "believes")?;
        failed(format!("`{}` was reported gone, and it lives", op.key), &[op])
    }

    /// What each watcher is told of each name.
    fn order(&self) -> Option<Verdict> {
        let mut last: BTreeMap<(&Option<Text>, &Text), &Op> = BTreeMap::new();
        for op in &self.told {
            let before = last.insert((&op.session, &op.key), op);
            let there = before.filter(|b| !is_gone(b));
            let follows = match &*op.f {
                "joined" => there.is_none() && before.is_none_or(|b| b.epoch < op.epoch),
                _ => there.is_some_and(|b| b.epoch == op.epoch),
            };
            if !follows {
                let was: Vec<&Op> = before.into_iter().chain([*op]).collect();
                return failed(format!("`{}`: an older incarnation came after a newer one", op.key), &was);
            }
        }
        None
    }

    /// The words of an incarnation are its own.
    fn words(&self) -> Option<Verdict> {
        let mut heard: BTreeMap<(&Option<Text>, u64), u64> = BTreeMap::new();
        let mut names: BTreeMap<u64, &str> = BTreeMap::new();
        for op in &self.told {
            let incarnation = op.epoch?;
            let said = text(op.value.as_ref()).rsplit_once('/');
            let Some((id, version)) = said.and_then(|(id, v)| Some((id, v.parse::<u64>().ok()?))) else {
                return failed(format!("`{}` said what no member says", op.key), &[op]);
            };
            let known = self.life(op).and_then(|life| life.id.as_deref());
            let first = *names.entry(incarnation).or_insert(known.unwrap_or(id));
            if first != id {
                let said =
                    format!("`{}`: what incarnation {incarnation} of {first} says was said by {id}", op.key);
                return failed(said, &[op]);
            }
            let newest = heard.entry((&op.session, incarnation)).or_default();
            if version < *newest {
                let said = format!("`{}`: word {version} of {id} came after word {newest}", op.key);
                return failed(said, &[op]);
            }
            *newest = version;
        }
        None
    }

    fn goodbyes(&self) -> Option<Verdict> {
        for op in self.told.iter().filter(|op| is_gone(op)) {
            let Some(life) = self.life(op) else { continue };
            let said = life.leave.is_some_and(|leave| leave.invoke_ns < op.end());
            let calm = |at: u64| at >= self.calm;
            let wrong = match &*op.f {
                "left" => !said,
                // All that it takes to be sure went well.
                _ if life.leave.is_some_and(|leave| leave.is_ok() && calm(leave.invoke_ns)) => true,
                "gone" => life.ended.as_ref().is_some_and(|(at, how)| &**how == "crashed" && calm(*at)),
                _ => false,
            };
            if wrong {
                let how = life.ended.as_ref().map_or("lives", |(_, how)| how);
                return failed(format!("`{}` {how}, and was reported as `{}`", op.key, op.f), &[op]);
            }
        }
        None
    }

    /// By when an incarnation must be gone from the store.
    fn gone_by(&self, life: &Life<'_>) -> Option<u64> {
        let (ended, _) = life.ended.as_ref()?;
        Some((*ended).max(self.calm.min(u64::MAX / 2)) + ns(TTL + ON_ITS_WAY))
    }

    fn looks(&self) -> Option<Verdict> {
        for op in &self.looks {
            for entry in text(op.value.as_ref()).split_whitespace() {
                let Some((name, incarnation)) = listed(entry) else {
                    return failed(format!("`{entry}` is no entry"), &[op]);
                };
                let by = self.lives.get(&incarnation).and_then(|life| self.gone_by(life));
                if by.is_some_and(|by| op.invoke_ns > by) {
                    return failed(format!("`{name}` ended more than a ttl ago and is listed"), &[op]);
                }
            }
        }
        None
    }

    /// A loss just after the heal may come of what was before.
    fn kept(&self) -> Option<Verdict> {
        let from = self.calm.saturating_add(ns(TTL));
        let lost =
            |life: &&Life<'_>| life.ended.as_ref().is_some_and(|(at, how)| &**how == "lost" && *at >= from);
        let life = self.lives.values().find(lost)?;
        let id = life.id.as_deref().unwrap_or_default();
        failed(format!("{id} lost its entry though everything was healed"), &[])
    }

    fn departures(&self) -> Option<Verdict> {
        let late = |op: &&&Op| {
            let by = self.life(op).and_then(|life| self.gone_by(life));
            is_gone(op) && by.is_some_and(|by| op.end() > by + ns(SEEN))
        };
        let op = self.told.iter().find(late)?;
        failed(format!("`{}` was reported gone long after it ended", op.key), &[op])
    }
}

fn failed(text: String, ops: &[&Op]) -> Option<Verdict> {
    Some(Verdict::fail(text, ops.iter().map(|op| Event::Op((*op).clone())).collect()))
}
