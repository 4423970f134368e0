//! L19: versions are a partial order, and siblings are what nobody replaced.

use std::collections::BTreeSet;
use std::fmt;

use mainstay_clock::{Rng, SeededRng};

use crate::laws::run::{Profile, Report, smallest};
use crate::laws::{Law, Violation};
use crate::version::Causality;

/// Checks L19 of versions over every triple of `samples`: `compare` is a partial order under which only equals are
/// equal, and `merge` gives the least version that is above both.
///
/// ```
/// use mainstay_consistency::laws::{self, Law};
/// use mainstay_consistency::version::Causality;
///
/// // Sizes instead of sets: what only the one knows looks like what both know.
/// let compare = |a: &Vec<u8>, b: &Vec<u8>| match a.len().cmp(&b.len()) {
///     std::cmp::Ordering::Less => Causality::Before,
///     std::cmp::Ordering::Equal => Causality::Equal,
///     std::cmp::Ordering::Greater => Causality::After,
/// };
/// let merge = |a: &Vec<u8>, b: &Vec<u8>| [&a[..], b].concat();
/// let found = laws::partial_order(&[vec![], vec![1], vec![2]], compare, merge).unwrap_err();
/// assert_eq!(found.law, Law::L19);
/// ```
///
/// # Errors
/// The first violation.
pub fn partial_order<V: PartialEq + fmt::Debug>(
    samples: &[V],
    compare: impl Fn(&V, &V) -> Causality,
    merge: impl Fn(&V, &V) -> V,
) -> Result<(), Violation> {
    let broken = |detail: String| Err(Violation::of(Law::L19, detail));
    let below = |a: &V, b: &V| matches!(compare(a, b), Causality::Before | Causality::Equal);
    for a in samples {
        for b in samples {
            let (there, back) = (compare(a, b), compare(b, a));
            let fits = match there {
                Causality::Equal => back == Causality::Equal,
                Causality::Before => back == Causality::After,
                Causality::After => back == Causality::Before,
                Causality::Concurrent => back == Causality::Concurrent,
            };
            if !fits || (a == b) != (there == Causality::Equal) {
                return broken(format!("{a:?} is {there:?} {b:?}, and the other way {back:?}"));
            }
            let both = merge(a, b);
            if !below(a, &both) || !below(b, &both) {
                return broken(format!("{a:?} and {b:?} are not both in {both:?}"));
            }
            for c in samples {
                if below(a, b) && below(b, c) && !below(a, c) {
                    return broken(format!("{a:?}, {b:?}, {c:?}, but the first is not before the last"));
                }
                if below(a, c) && below(b, c) && !below(&both, c) {
                    return broken(format!("{a:?} and {b:?} are in {c:?}, but together they are {both:?}"));
                }
            }
        }
    }
    Ok(())
}

/// A store under test that keeps conflicting values of one key beside each other.
pub trait SiblingStore {
    /// What a read hands to the client, which puts with it.
    type Token: Clone;

    /// The values, and the token of this read.
    fn read(&self) -> (Vec<u64>, Self::Token);

    /// Replaces what the token's read saw; with none, nothing. `false`: it is refused, and nothing changed.
    fn put(&mut self, token: Option<&Self::Token>, value: u64) -> bool;

    /// Takes in what another replica has.
    fn join(&mut self, other: &Self);
}

/// Replicas of the key, and clients, each with the token of its last read.
const REPLICAS: usize = 2;
const CLIENTS: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    Read { client: usize, at: usize },
    Put { client: usize, at: usize, value: u64 },
    Blind { at: usize, value: u64 },
    Join { to: usize },
}

/// Checks L19 of a store: on two replicas, whose clients read at one and put at the other, the values are exactly those
/// written that no later put's read had seen; and where clients read after each of their puts, there are never more
/// values than clients. `make` gives an empty replica by its number.
///
/// # Errors
/// The first violation, with its seed and the smallest schedule that shows it.
pub fn siblings<S: SiblingStore>(profile: Profile, make: impl Fn(usize) -> S) -> Result<Report, Violation> {
    let mut report = Report { schedules: 0, changes: 0 };
    for seed in profile.seed..profile.seed.saturating_add(profile.schedules) {
        let rng = SeededRng::new(seed);
        let below = |n: usize| usize::try_from(rng.below(n as u64)).unwrap_or(0);
        let one = |value: usize| {
            let (client, at, value) = (below(CLIENTS), below(REPLICAS), value as u64);
            match below(8) {
                0..=2 => Step::Read { client, at },
                3..=5 => Step::Put { client, at, value },
                6 => Step::Blind { at, value },
                _ => Step::Join { to: at },
            }
        };
        let steps: Vec<_> = (0..profile.steps).map(one).collect();
        match exact(&steps, &make) {
            Ok(changes) => report.changes += changes,
            Err(found) => return Err(smallest(steps, seed, found, |fewer| exact(fewer, &make).err())),
        }
        report.schedules += 1;
    }
    interleaved(&make)?;
    Ok(report)
}

/// What a replica should hold: the values, and all that it knows of, replaced or not.
#[derive(Clone, Default)]
struct Model {
    live: BTreeSet<u64>,
    known: BTreeSet<u64>,
}

impl Model {
    fn put(&mut self, seen: &BTreeSet<u64>, value: u64) {
        self.live.retain(|value| !seen.contains(value));
        self.known.extend(seen);
        self.live.insert(value);
        self.known.insert(value);
    }

    fn join(&mut self, other: &Self) {
        let news = other.live.difference(&self.known).copied().collect::<Vec<_>>();
        self.live.retain(|value| other.live.contains(value) || !other.known.contains(value));
        self.live.extend(news);
        self.known.extend(&other.known);
    }
}

fn exact<S: SiblingStore>(steps: &[Step], make: &impl Fn(usize) -> S) -> Result<u64, Violation> {
    let mut stores: Vec<S> = (0..REPLICAS).map(make).collect();
    let mut models = vec![Model::default(); REPLICAS];
    let mut clients = vec![None::<(S::Token, BTreeSet<u64>)>; CLIENTS];
    let mut changes = 0;
    for step in steps {
        match *step {
            Step::Read { client, at } => {
                clients[client] = Some((stores[at].read().1, models[at].known.clone()));
            }
            Step::Put { client, at, value } => {
                let Some((token, seen)) = &clients[client] else { continue };
                if stores[at].put(Some(token), value) {
                    models[at].put(seen, value);
                    changes += 1;
                }
            }
            Step::Blind { at, value } => {
                if stores[at].put(None, value) {
                    models[at].put(&BTreeSet::new(), value);
                    changes += 1;
                }
            }
            Step::Join { to } => {
                let from = (to + 1) % REPLICAS;
                let (a, b) = stores.split_at_mut(1);
                if to == 0 {
                    a[0].join(&b[0])
                } else {
                    b[0].join(&a[0])
                }
                let other = models[from].clone();
                models[to].join(&other);
            }
        }
        for (at, (store, model)) in stores.iter().zip(&models).enumerate() {
            let mut values = store.read().0;
            values.sort_unstable();
            if !values.iter().eq(&model.live) {
                let detail = format!("replica {at} holds {values:?} instead of {:?}", model.live);
                return Err(Violation::of(Law::L19, detail));
            }
        }
    }
    Ok(changes)
}

/// Clients in turn, each with the token of the read after its last put.
fn interleaved<S: SiblingStore>(make: &impl Fn(usize) -> S) -> Result<(), Violation> {
    let mut store = make(0);
    let mut tokens = vec![store.read().1; CLIENTS];
    for value in 0..20 * CLIENTS as u64 {
        let client = usize::try_from(value).unwrap_or(0) % CLIENTS;
        if !store.put(Some(&tokens[client]), value) {
            return Err(Violation::of(Law::L19, "a put with the token of a read is refused"));
        }
        let (values, token) = store.read();
        if values.len() > CLIENTS {
            return Err(Violation::of(Law::L19, format!("{CLIENTS} clients in turn leave {values:?}")));
        }
        tokens[client] = token;
    }
    Ok(())
}
