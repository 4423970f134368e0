//! PV-2: every checker against brute force, on many small random histories, legal and illegal.

use mainstay_clock::{Rng, SeededRng};
use mainstay_sim::check::{
    Automaton, CasRegister, Checker, Limits, at_most, converges, counter, epochs_grow, judge, ledger, legal,
    linearizable, mutual_exclusion, rate, recovers_within, register, session_guarantees,
};
use mainstay_sim::history::{Datum, Effect, Ended, Event, Op};
use mainstay_sim::verdict::Verdict;
use std::time::Duration;

const HISTORIES: u64 = 20_000;

struct Draw(SeededRng);

impl Draw {
    fn below(&self, n: u64) -> u64 {
        self.0.below(n)
    }

    fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn ended(&self) -> Ended {
        match self.below(10) {
            0 => Ended::Fail,
            1 | 2 => Ended::Unknown,
            _ => Ended::Ok,
        }
    }

    /// Intervals with distinct ends; unknown ones are open.
    fn op(&self, proc: u64, f: &str, span: u64, stamps: &mut Vec<u64>) -> Op {
        let mut fresh = |from: u64| {
            let mut at = from + self.below(span);
            while stamps.contains(&at) {
                at += 1;
            }
            stamps.push(at);
            at
        };
        let invoke = fresh(1);
        let end = fresh(invoke + 1);
        let outcome = self.ended();
        Op::new(proc, f, "x", invoke, (outcome != Ended::Unknown).then_some(end), outcome)
    }
}

fn by_end(mut ops: Vec<Op>) -> Vec<Event> {
    ops.sort_by_key(Op::end);
    ops.into_iter().map(Event::Op).collect()
}

/// Runs `make` over many seeds and compares what the checker says with `brute`: true = legal.
fn compare(
    what: &str,
    make: impl Fn(&Draw) -> Vec<Event>,
    checker: impl Fn() -> Box<dyn Checker>,
    brute: impl Fn(&[Event]) -> bool,
) {
    let (mut legal, mut illegal, mut vacuous) = (0, 0, 0);
    for seed in 0..HISTORIES {
        let events = make(&Draw(SeededRng::new(seed)));
        let verdict = judge(&events, checker());
        let expected = brute(&events);
        match verdict {
            Verdict::Pass(_) => {
                assert!(expected, "{what} seed {seed}: passed, but illegal: {events:#?}");
                legal += 1;
            }
            Verdict::Fail(c) => {
                assert!(!expected, "{what} seed {seed}: failed, but legal: {} {events:#?}", c.text);
                illegal += 1;
            }
            _ => {
                assert!(expected, "{what} seed {seed}: a vacuous history cannot be illegal: {events:#?}");
                vacuous += 1;
            }
        }
    }
    println!("{what}: {legal} legal, {illegal} illegal, {vacuous} with nothing to judge");
    assert!(legal > HISTORIES / 20 && illegal > HISTORIES / 20, "{what}: {legal} legal, {illegal} illegal");
}

fn ops(events: &[Event]) -> Vec<&Op> {
    events
        .iter()
        .filter_map(|e| match e {
            Event::Op(op) => Some(op),
            _ => None,
        })
        .collect()
}

fn int(datum: Option<&Datum>) -> i64 {
    match datum {
        Some(Datum::Int(n)) => *n,
        _ => panic!("a number is expected"),
    }
}

/// Tries every order: the specification, as slow as it is plain.
fn explains(ops: &[&Op], done: u32, state: i64) -> bool {
    let open = |i: &usize| done & (1 << i) == 0;
    let left: Vec<usize> = (0..ops.len()).filter(open).collect();
    if left.iter().all(|i| !ops[*i].is_ok()) {
        return true;
    }
    left.iter().any(|i| {
        let op = ops[*i];
        // Nothing that ended before it was called may still be missing.
        if left.iter().any(|j| ops[*j].end() < op.invoke_ns) {
            return false;
        }
        let known = op.is_ok();
        let next = match &*op.f {
            "write" => Some(int(op.arg.as_ref())),
            "read" => (!known || int(op.value.as_ref()) == state).then_some(state),
            _ => {
                let swaps = op.epoch == u64::try_from(state).ok();
                let said = op.value.as_ref().map(|v| int(Some(v)) == 1);
                let after = if swaps { int(op.arg.as_ref()) } else { state };
                (!known || said == Some(swaps)).then_some(after)
            }
        };
        next.is_some_and(|next| explains(ops, done | (1 << i), next))
    })
}

fn linearizes(events: &[Event]) -> bool {
    let all = ops(events);
    let counted: Vec<&Op> = all.into_iter().filter(|o| o.outcome != Ended::Fail).collect();
    explains(&counted, 0, 0)
}

/// A plausible register: most reads answer with a value that some order explains.
fn registers(draw: &Draw, unique: bool) -> Vec<Event> {
    let n = 2 + draw.below(6);
    let mut stamps = Vec::new();
    let mut next = 0;
    let mut made = Vec::new();
    for proc in 0..n {
        let mut op = draw.op(proc, "read", 14, &mut stamps);
        match draw.below(if unique { 2 } else { 3 }) {
            0 => {
                next += 1;
                op.f = "write".into();
                op.arg = Some(Datum::Int(if unique { next } else { i64::try_from(draw.below(3)).unwrap() }));
            }
            1 => op.value = Some(Datum::Int(i64::try_from(draw.below(n / 2 + 1)).unwrap())),
            _ => {
                op.f = "cas".into();
                op.epoch = Some(draw.below(3));
                op.arg = Some(Datum::Int(i64::try_from(draw.below(3)).unwrap()));
                op.value = Some(Datum::Int(i64::try_from(draw.below(2)).unwrap()));
            }
        }
        made.push(op);
    }
    by_end(made)
}

#[test]
fn pv_2_ck_3_zones() {
    compare("zones", |d| registers(d, true), || register(0), linearizes);
}

#[test]
fn pv_2_ck_7_search() {
    let checker = || linearizable(CasRegister::default(), Limits::default());
    compare("search", |d| registers(d, false), checker, linearizes);
    compare("search, unique writes", |d| registers(d, true), checker, linearizes);
}

fn holds(draw: &Draw) -> Vec<Event> {
    let mut stamps = Vec::new();
    let mut made = Vec::new();
    for grant in 0..2 + draw.below(3) {
        let with = |mut op: Op| {
            op.epoch = Some(grant);
            op.op_id = Some(grant.to_string().as_str().into());
            op
        };
        let mut acquire = with(draw.op(grant, "acquire", 30, &mut stamps));
        let end = acquire.return_ns.unwrap_or(acquire.invoke_ns + 1);
        acquire.until_ns = Some(end + draw.below(12));
        acquire.arg = Some(Datum::Int(1 + i64::try_from(draw.below(2)).unwrap()));
        made.push(acquire.clone());
        if acquire.is_ok() && draw.chance(40) {
            let at = end + draw.below(10);
            let mut renew = with(Op::new(grant, "renew", "x", end, Some(at), draw.ended()));
            renew.until_ns = Some(at + draw.below(12));
            made.push(renew);
        }
        if acquire.is_ok() && draw.chance(40) {
            let at = end + draw.below(15);
            let f = if draw.chance(50) { "release" } else { "lost" };
            made.push(with(Op::new(grant, f, "x", at, Some(at + 1), Ended::Ok)));
        }
    }
    by_end(made)
}

/// Replays each holder's belief instant by instant.
fn weight_fits(events: &[Event], capacity: i64) -> bool {
    let all = ops(events);
    (0..120).all(|t| {
        let held = |acquire: &&&Op| {
            let mine: Vec<&&Op> = all.iter().filter(|o| o.op_id == acquire.op_id).collect();
            let mut until = None;
            // What the holder learned by then, in order.
            let mut learned: Vec<(u64, u8, &&Op)> = mine
                .into_iter()
                .filter_map(|o| match &*o.f {
                    "acquire" | "renew" if o.is_ok() => Some((o.end(), 0, o)),
                    "release" | "lost" => Some((o.invoke_ns, 1, o)),
                    _ => None,
                })
                .filter(|(at, ..)| *at <= t)
                .collect();
            learned.sort_by_key(|(at, kind, _)| (*at, *kind));
            for (at, kind, op) in learned {
                until = match (kind, until) {
                    (1, Some(u)) => Some(at.min(u)),
                    (1, None) => None,
                    // A renewal in time never shortens what is held; a late one begins anew.
                    (_, Some(u)) if u >= at => Some(op.until_ns.unwrap().max(u)),
                    _ => op.until_ns,
                };
            }
            until.is_some_and(|u| t < u)
        };
        let acquires = all.iter().filter(|o| &*o.f == "acquire" && o.is_ok());
        acquires.filter(held).map(|o| int(o.arg.as_ref())).sum::<i64>() <= capacity
    })
}

#[test]
fn pv_2_ck_1_sweep() {
    let single = |d: &Draw| {
        let mut events = holds(d);
        for event in &mut events {
            if let Event::Op(op) = event {
                op.arg = op.arg.as_ref().map(|_| Datum::Int(1));
            }
        }
        events
    };
    compare("sweep 1", single, mutual_exclusion, |e| weight_fits(e, 1));
    compare("sweep 3", holds, || at_most(3), |e| weight_fits(e, 3));
}

#[test]
fn pv_2_ck_2_epochs() {
    let make = |d: &Draw| {
        let mut stamps = Vec::new();
        let mut made = Vec::new();
        for i in 0..2 + d.below(4) {
            let mut op = d.op(i, "acquire", 20, &mut stamps);
            // Mostly growing with time.
            op.epoch = Some(if d.chance(85) { op.invoke_ns } else { 1 + d.below(24) });
            op.op_id = Some(i.to_string().as_str().into());
            made.push(op);
        }
        let mut events = by_end(made);
        let mut last = 1;
        for i in 0..d.below(3) {
            last += d.below(4);
            let mut effect = Effect::new("r", "x", &i.to_string(), 1, 100 + i);
            effect.epoch = Some(if d.chance(90) { last } else { d.below(4) });
            effect.accepted = d.chance(80);
            events.push(Event::Effect(effect));
        }
        events
    };
    let brute = |events: &[Event]| {
        let grants: Vec<&Op> = ops(events).into_iter().filter(|o| o.is_ok()).collect();
        let ordered =
            grants.iter().all(|a| grants.iter().all(|b| a.end() >= b.invoke_ns || a.epoch < b.epoch));
        let owned = grants.iter().all(|a| grants.iter().all(|b| a.op_id == b.op_id || a.epoch != b.epoch));
        let effects: Vec<u64> = events
            .iter()
            .filter_map(|e| match e {
                Event::Effect(e) if e.accepted => e.epoch,
                _ => None,
            })
            .collect();
        ordered && owned && effects.windows(2).all(|w| w[0] <= w[1])
    };
    compare("epochs", make, epochs_grow, brute);
}

#[test]
fn pv_2_ck_4_ledger_and_counter() {
    let make = |d: &Draw| {
        let mut events = Vec::new();
        for saga in 0..1 + d.below(2) {
            let done = d.chance(50);
            for step in 0..2 {
                let mut add = |op: &str, amount| {
                    let id = format!("{saga}/{step}/{op}");
                    events.push(Event::Effect(Effect::new("r", &format!("{saga}/{step}"), &id, amount, 1)));
                };
                if d.chance(97) {
                    add("action", 1);
                }
                if !done && d.chance(90) {
                    add("undo", -1);
                }
                if d.chance(5) {
                    add("action", 1);
                }
            }
        }
        events
    };
    let brute = |events: &[Event]| {
        let effects: Vec<&Effect> = events
            .iter()
            .filter_map(|e| match e {
                Event::Effect(e) => Some(e),
                _ => None,
            })
            .collect();
        let twice = effects.iter().enumerate().any(|(i, a)| effects[..i].iter().any(|b| a.op_id == b.op_id));
        let steps: std::collections::BTreeSet<&str> =
            effects.iter().map(|e| e.key.split_once('/').unwrap().1).collect();
        let even = ["0", "1"].iter().all(|saga| {
            let net = |step: &&str| -> i64 {
                let key = format!("{saga}/{step}");
                effects.iter().filter(|e| *e.key == *key).map(|e| e.amount).sum()
            };
            let nets: Vec<i64> = steps.iter().map(net).collect();
            nets.iter().all(|n| *n == 0) || nets.iter().all(|n| *n == 1)
        });
        !twice && even
    };
    compare("ledger", make, ledger, brute);

    let make = |d: &Draw| {
        let mut stamps = Vec::new();
        let mut events: Vec<Event> =
            (0..1 + d.below(5)).map(|i| Event::Op(d.op(i, "add", 20, &mut stamps))).collect();
        let mut total = Op::new(9, "total", "x", 90, Some(91), Ended::Ok);
        total.value = Some(Datum::Int(i64::try_from(d.below(5)).unwrap()));
        events.push(Event::Op(total));
        events
    };
    let brute = |events: &[Event]| {
        let adds = |outcome| ops(events).iter().filter(|o| &*o.f == "add" && o.outcome == outcome).count();
        let total = int(ops(events).last().unwrap().value.as_ref());
        let (ok, unknown) = (adds(Ended::Ok) as i64, adds(Ended::Unknown) as i64);
        (ok..=ok + unknown).contains(&total)
    };
    compare("counter", make, counter, brute);
}

#[test]
fn pv_2_ck_5_sessions() {
    let make = |d: &Draw| {
        let mut events = Vec::new();
        let mut at = 0;
        let mut version = 0;
        for _ in 0..2 + d.below(5) {
            at += 2;
            let mut op = Op::new(1, "read", "x", at, Some(at + 1), Ended::Ok);
            op.session = Some(if d.chance(70) { "a" } else { "b" }.into());
            if d.chance(40) {
                version += 1;
                op.f = "write".into();
                op.op_id = Some(format!("w{version}").as_str().into());
                op.value = Some(Datum::Int(version));
            } else {
                let seen =
                    if d.chance(75) { version } else { d.below(u64::try_from(version).unwrap() + 1) as i64 };
                op.value = Some(Datum::Int(seen));
                op.op_id = (seen > 0).then(|| format!("w{seen}").as_str().into());
                if d.chance(5) {
                    op.arg = Some("lost".into());
                }
            }
            events.push(Event::Op(op));
        }
        let mut log: Vec<i64> = (1..=version).collect();
        if log.len() > 1 && d.chance(25) {
            let i = usize::try_from(d.below(log.len() as u64 - 1)).unwrap();
            log.swap(i, i + 1);
        }
        for w in log {
            at += 1;
            events.push(Event::Effect(Effect::new("replica/1", "x", &format!("w{w}"), 1, at)));
        }
        events
    };
    let brute = |events: &[Event]| {
        let all = ops(events);
        let version = |o: &Op| int(o.value.as_ref());
        let reads = all.iter().enumerate().all(|(i, read)| {
            &*read.f != "read"
                || read.arg.is_some()
                || all[..i]
                    .iter()
                    .all(|o| o.session != read.session || o.arg.is_some() || version(o) <= version(read))
        });
        let log: Vec<&str> = events
            .iter()
            .filter_map(|e| match e {
                Event::Effect(e) => Some(&*e.op_id),
                _ => None,
            })
            .collect();
        let place = |id: &str| log.iter().position(|w| *w == id).unwrap();
        let order = all.iter().enumerate().all(|(i, write)| {
            &*write.f != "write"
                || all[..i].iter().filter(|o| o.session == write.session).all(|o| {
                    o.op_id.as_ref().is_none_or(|id| place(id) <= place(write.op_id.as_ref().unwrap()))
                })
        });
        reads && order
    };
    compare("sessions", make, session_guarantees, brute);
}

#[test]
fn pv_2_ck_6_convergence() {
    let make = |d: &Draw| {
        let mut events = Vec::new();
        for i in 0..2 + d.below(3) {
            let delivered = d.below(2).to_string();
            let digest = if d.chance(85) { delivered.clone() } else { "odd".to_owned() };
            events.push(Event::Digest {
                replica: format!("r{i}").as_str().into(),
                delivered: delivered.as_str().into(),
                digest: digest.as_str().into(),
                rounds: d.below(12),
            });
            events.push(Event::Effect(Effect::new("dot", "x", &d.below(40).to_string(), 1, i)));
        }
        events
    };
    let brute = |events: &[Event]| {
        let digests: Vec<(&str, &str, u64)> = events
            .iter()
            .filter_map(|e| match e {
                Event::Digest { delivered, digest, rounds, .. } => Some((&**delivered, &**digest, *rounds)),
                _ => None,
            })
            .collect();
        let dots: Vec<&Event> = events.iter().filter(|e| matches!(e, Event::Effect(_))).collect();
        let name = |e: &Event| match e {
            Event::Effect(e) => e.op_id.to_string(),
            _ => String::new(),
        };
        let agree = digests.iter().all(|a| digests.iter().all(|b| a.0 != b.0 || a.1 == b.1));
        let unique = (0..dots.len()).all(|i| (0..i).all(|j| name(dots[i]) != name(dots[j])));
        agree && unique && digests.iter().all(|d| d.2 <= 10)
    };
    compare("convergence", make, || converges(10), brute);
}

#[test]
fn pv_2_ck_8_automata() {
    let edges = [("new", "open"), ("open", "half"), ("half", "open"), ("half", "done")];
    let make = |d: &Draw| {
        let mut now = "new";
        let mut events = Vec::new();
        for at in 0..1 + d.below(5) {
            let next: Vec<&str> = edges.iter().filter(|(from, _)| *from == now).map(|(_, to)| *to).collect();
            let next = match next.len() as u64 {
                n if n > 0 && d.chance(90) => next[usize::try_from(d.below(n)).unwrap()],
                _ => ["new", "open", "half", "done"][usize::try_from(d.below(4)).unwrap()],
            };
            let mut op = Op::new(1, "state", "x", at + 1, Some(at + 1), Ended::Ok);
            op.value = Some(next.into());
            events.push(Event::Op(op));
            now = next;
        }
        events
    };
    let brute = |events: &[Event]| {
        let mut states = vec!["new".to_owned()];
        states.extend(ops(events).iter().map(|o| match &o.value {
            Some(Datum::Text(t)) => t.to_string(),
            _ => String::new(),
        }));
        let legal = states.windows(2).all(|w| edges.iter().any(|(a, b)| *a == w[0] && *b == w[1]));
        legal && states.last().is_some_and(|s| s == "done")
    };
    compare("automaton", make, || legal(Automaton::new("new", &edges, &["done"])), brute);
}

#[test]
fn pv_2_ck_9_liveness_and_ck_10_rate() {
    let heal = 20;
    let make = |d: &Draw| {
        let mut stamps = Vec::new();
        let mut made: Vec<Op> = (0..2 + d.below(8)).map(|i| d.op(i, "acquire", 40, &mut stamps)).collect();
        made.sort_by_key(Op::end);
        let mut events: Vec<Event> = made.into_iter().map(Event::Op).collect();
        events.insert(0, Event::Heal { at_ns: heal });
        events
    };
    let brute = |events: &[Event]| {
        let all = ops(events);
        let last = all.iter().map(|o| o.return_ns.unwrap_or(o.invoke_ns)).max().unwrap().max(heal);
        // Every stretch of bound + 1 after the heal contains a success.
        (heal..last.saturating_sub(15)).all(|from| {
            all.iter().any(|o| o.is_ok() && o.end() > from && o.end() <= from + 15) || last <= from + 15
        })
    };
    let checker = || recovers_within("acquire", Duration::from_nanos(15));
    compare("liveness", make, checker, brute);

    let brute = |events: &[Event]| {
        let calls: Vec<u64> = ops(events).iter().map(|o| o.invoke_ns).collect();
        (0..80).all(|from| calls.iter().filter(|c| (from..from + 10).contains(*c)).count() <= 2)
    };
    compare("rate", make, || rate("acquire", Duration::from_nanos(10), 2), brute);
}

/// The brute force itself is no oracle if it always agrees with itself: a known pair.
#[test]
fn the_specification_knows_a_stale_read() {
    let mut write = Op::new(1, "write", "x", 1, Some(2), Ended::Ok);
    write.arg = Some(Datum::Int(1));
    let mut read = Op::new(2, "read", "x", 3, Some(4), Ended::Ok);
    read.value = Some(Datum::Int(0));
    assert!(!linearizes(&[Event::Op(write.clone()), Event::Op(read.clone())]));
    write.outcome = Ended::Unknown;
    write.return_ns = None;
    assert!(linearizes(&[Event::Op(write), Event::Op(read)]));
}
