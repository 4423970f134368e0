//! The types of this crate as subjects: few keys and values, every mutator.

use crate::crdt::{
    Any, AwMap, AwSet, BoundedCounter, Causal, DeltaState, Document, DotFun, DotMap, DotSet, DotStore,
    DwFlag, EwFlag, GCounter, GSet, Join, Lattice, LwwMap, LwwRegister, MaxRegister, MinRegister, MvRegister,
    PnCounter, ResettableCounter, RwMap, RwSet, Tally, TwoPhaseSet,
};
use crate::error::Result;
use crate::laws::{Replica, Subject};
use crate::version::Context;
use crate::wire::{Wire, decode, encode};

/// What a subject needs beside its operations; every type here has it.
trait Ours: DeltaState + Wire {
    fn seen(&self) -> Context;
}

impl<S: DotStore> Ours for Causal<S> {
    fn seen(&self) -> Context {
        self.context().clone()
    }
}

impl<T: Lattice> Ours for T {
    fn seen(&self) -> Context {
        Context::new()
    }
}

/// A subject from its operations: `(name, (value, actor) -> delta)`.
macro_rules! subject {
    ($type:ty, [$(($name:literal, |$v:ident, $r:ident| $body:expr)),* $(,)?]) => {
        impl Subject for $type {
            type Op = &'static str;

            fn alphabet() -> Vec<Self::Op> {
                vec![$($name),*]
            }

            fn apply(&mut self, op: &Self::Op, replica: &mut Replica) -> Option<Self> {
                let made: Result<Self> = match *op {
                    $($name => { let ($v, $r) = (self, replica); $body })*
                    _ => return None,
                };
                made.ok()
            }

            fn merge(&mut self, other: &Self) -> bool {
                self.join(other).is_ok_and(crate::Changed::is_yes)
            }

            fn leq(&self, other: &Self) -> Option<bool> {
                Some(Join::leq(self, other))
            }

            fn missing_at(&self, other: &Self) -> Option<Self> {
                Some(self.delta_since(&other.seen()))
            }

            fn round_trip(&self) -> Option<(Vec<u8>, Option<Self>)> {
                let bytes = encode(self);
                let back = decode(&bytes).ok();
                Some((bytes, back))
            }
        }
    };
}

subject!(EwFlag, [("on", |v, r| v.enable(&mut r.actor)), ("off", |v, r| v.disable(&mut r.actor))]);
subject!(DwFlag, [("on", |v, r| v.enable(&mut r.actor)), ("off", |v, r| v.disable(&mut r.actor))]);
subject!(
    MvRegister<u64>,
    [("write 1", |v, r| v.write(&mut r.actor, 1)), ("write 2", |v, r| v.write(&mut r.actor, 2))]
);
subject!(
    ResettableCounter,
    [
        ("inc", |v, r| v.inc(&mut r.actor, 3)),
        ("dec", |v, r| v.dec(&mut r.actor, 1)),
        ("reset", |v, r| v.reset(&mut r.actor)),
    ]
);
subject!(
    AwSet<u64>,
    [
        ("add 1", |v, r| v.add(&mut r.actor, 1)),
        ("add 2", |v, r| v.add(&mut r.actor, 2)),
        ("remove 1", |v, r| v.remove(&mut r.actor, &1)),
        ("clear", |v, r| v.clear(&mut r.actor)),
    ]
);
subject!(
    RwSet<u64>,
    [
        ("add 1", |v, r| v.add(&mut r.actor, 1)),
        ("add 2", |v, r| v.add(&mut r.actor, 2)),
        ("remove 1", |v, r| v.remove(&mut r.actor, 1)),
    ]
);
subject!(AwMap<u64, DotFun<u64>>, [
    ("write 1", |v, r| v.update(&mut r.actor, 7, |s, m| s.write_value(m, 1))),
    ("write 2", |v, r| v.update(&mut r.actor, 7, |s, m| s.write_value(m, 2))),
    ("write other", |v, r| v.update(&mut r.actor, 8, |s, m| s.write_value(m, 3))),
    ("remove", |v, r| v.remove(&mut r.actor, &7)),
]);
subject!(AwMap<u64, DotMap<u64, DotSet>>, [
    ("add 1", |v, r| v.update(&mut r.actor, 7, |s, m| s.insert(m, 1))),
    ("add 2", |v, r| v.update(&mut r.actor, 7, |s, m| s.insert(m, 2))),
    ("remove inner", |v, r| v.update(&mut r.actor, 7, |s, m| s.remove_key(m, &1))),
    ("remove", |v, r| v.remove(&mut r.actor, &7)),
]);
subject!(AwMap<u64, DotFun<Tally>>, [
    ("inc", |v, r| v.update(&mut r.actor, 7, |s, m| s.count(m, 3, 0))),
    ("reset", |v, r| v.update(&mut r.actor, 7, |s, m| s.reset_all(m))),
    ("remove", |v, r| v.remove(&mut r.actor, &7)),
]);
subject!(AwMap<u64, DotFun<GCounter>>, [
    ("max", |v, r| {
        let id = r.actor.id();
        v.update(&mut r.actor, 7, |s, m| s.apply(m, |c| {
            let delta = c.clone().inc(&mut crate::Actor::new(id), 1)?;
            let _ = c.join(&delta)?;
            Ok(())
        }))
    }),
    ("remove", |v, r| v.remove(&mut r.actor, &7)),
]);
subject!(RwMap<u64, DotMap<u64, DotSet>>, [
    ("add 1", |v, r| v.update(&mut r.actor, 7, |s, m| s.insert(m, 1))),
    ("add 2", |v, r| v.update(&mut r.actor, 7, |s, m| s.insert(m, 2))),
    ("remove", |v, r| v.remove(&mut r.actor, 7)),
]);
subject!(LwwMap<u64, u64>, [
    ("set 1", |v, r| v.set(&mut r.actor, &r.hlc, 7, 1)),
    ("set 2", |v, r| v.set(&mut r.actor, &r.hlc, 7, 2)),
    ("set other", |v, r| v.set(&mut r.actor, &r.hlc, 8, 3)),
    ("remove", |v, r| v.remove(&mut r.actor, &r.hlc, 7)),
]);
subject!(
    Document,
    [
        ("count", |v, r| v.update(&mut r.actor, "a".into(), |s, m| s.counter(m, |c, m| c.count(m, 1, 0)))),
        ("list", |v, r| v.update(&mut r.actor, "b".into(), |s, m| s.set(m, |c, m| c.insert(m, vec![1])))),
        ("nest", |v, r| v.update(&mut r.actor, "c".into(), |s: &Any, m| {
            s.map(m, |c, m| c.update_value(m, "d".into(), |x, m| x.flag(m, |f, m| f.turn_on(m))))
        })),
        ("remove", |v, r| v.remove(&mut r.actor, &"c".to_owned())),
    ]
);
subject!(GCounter, [("inc", |v, r| v.inc(&mut r.actor, 2))]);
subject!(PnCounter, [("inc", |v, r| v.inc(&mut r.actor, 2)), ("dec", |v, r| v.dec(&mut r.actor, 3))]);
subject!(
    BoundedCounter,
    [
        ("inc", |v, r| v.inc(&mut r.actor, 2)),
        ("dec", |v, r| v.dec(&mut r.actor, 1)),
        ("transfer", |v, r| {
            let to = r.all[r.all.len() - 1];
            v.transfer(&mut r.actor, to, 1)
        }),
    ]
);
subject!(
    LwwRegister<u64>,
    [("set 1", |v, r| v.set(&r.hlc, r.actor.id(), 1)), ("set 2", |v, r| v.set(&r.hlc, r.actor.id(), 2)),]
);
subject!(MaxRegister<u64>, [("raise 1", |v, _r| Ok(v.raise(1))), ("raise 2", |v, _r| Ok(v.raise(2)))]);
subject!(MinRegister<u64>, [("lower 1", |v, _r| Ok(v.lower(1))), ("lower 2", |v, _r| Ok(v.lower(2)))]);
subject!(GSet<u64>, [("add 1", |v, _r| Ok(v.add(1))), ("add 2", |v, _r| Ok(v.add(2)))]);
subject!(
    TwoPhaseSet<u64>,
    [("add 1", |v, _r| Ok(v.add(1))), ("add 2", |v, _r| Ok(v.add(2))), ("remove 1", |v, _r| v.remove(&1)),]
);

#[cfg(feature = "documents")]
fn edit(
    edits: &mut crate::document::Edits,
    replica: &mut Replica,
    f: impl FnOnce(&mut crate::document::Draft<'_>) -> Result<()>,
) -> Result<crate::document::Edits> {
    crate::document::Editor::new().edit(edits, &mut replica.actor, f)
}

#[cfg(feature = "documents")]
subject!(
    crate::document::Edits,
    [
        ("type", |v, r| edit(v, r, |draft| draft.insert_text("t", 0, "ab"))),
        ("erase", |v, r| edit(v, r, |draft| draft.remove_text("t", 0..1))),
        ("set", |v, r| edit(v, r, |draft| draft.set("m", "k", &1.into()))),
        ("compact", |v, r| crate::document::Editor::new().compact(v, &mut r.actor)),
    ]
);

#[cfg(test)]
mod tests {
    use mainstay_clock::{Rng as _, SeededRng};

    use super::*;

    /// The second half of L12: what is missing holds no change that its receiver knows.
    fn holds_nothing_known<S: DotStore>(name: &str)
    where
        Causal<S>: Subject,
    {
        let (rng, alphabet) = (SeededRng::new(12), Causal::<S>::alphabet());
        let mut replicas: Vec<Replica> = (0..3).filter_map(|i| Replica::new(i, 3)).collect();
        let (mut states, mut known) = (vec![Causal::<S>::new(); 3], 0);
        for _ in 0..600 {
            let (at, from) = (rng.below(3) as usize, rng.below(3) as usize);
            if rng.below(4) == 0 {
                let other = states[from].clone();
                states[at].merge(&other);
            } else {
                let op = &alphabet[rng.below(alphabet.len() as u64) as usize];
                states[at].apply(op, &mut replicas[at]);
            }
            let seen = states[from].context();
            let missing = states[at].delta_since(seen);
            assert!(!missing.store().any_dot(&mut |dot| seen.contains(dot)), "{name}: {missing:?}, {seen:?}");
            known += usize::from(states[at].store().any_dot(&mut |dot| seen.contains(dot)));
        }
        assert!(known > 50, "{name}: {known} times something was known, so little was shown");
    }

    #[test]
    fn l12_what_is_missing_has_nothing_in_it_that_is_known() {
        holds_nothing_known::<DotSet>("EwFlag");
        holds_nothing_known::<DotFun<u64>>("MvRegister");
        holds_nothing_known::<DotFun<Tally>>("ResettableCounter");
        holds_nothing_known::<DotMap<u64, DotSet>>("AwSet");
        holds_nothing_known::<DotMap<u64, DotMap<u64, DotSet>>>("AwMap");
        holds_nothing_known::<DotMap<u64, crate::crdt::Votes, crate::crdt::RemoveWins>>("RwSet");
        holds_nothing_known::<DotMap<u64, crate::crdt::LwwCell<u64>, crate::crdt::Latest>>("LwwMap");
    }
}
