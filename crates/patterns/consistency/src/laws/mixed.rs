//! L21: two versions of a type meet.

use std::fmt;
use std::ops::Range;

use mainstay_clock::{Instant, Rng, SeededRng};

use crate::laws::run::Replica;
use crate::laws::{Law, Subject, Violation};
use crate::replicate::{
    AntiEntropy, AntiEntropyConfig, Builder, DigestKey, Event, Outgoing, Replicated, Step,
};

/// Rounds after which two nodes that lose nothing agree, if they ever do.
const ROUNDS: usize = 40;

/// How two versions get along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Meeting {
    /// They read the same in the end.
    Converged,
    /// One refused the other by its version, and took nothing from it.
    Refused,
}

/// Checks L21: a node of the version `old` and one of `new`, both of which make changes, read the same in the end; or one
/// of them refuses the other by name, and is as if it had never met it. What neither does is to take the other's messages
/// for garbage, or for something else. The answer is the same for all `seeds`. Of a version there are its options, above
/// all schema and merge version, and what its states mean: two versions read alike when they mean the same.
///
/// ```
/// use mainstay_consistency::crdt::AwSet;
/// use mainstay_consistency::laws::{self, Meeting};
/// use mainstay_consistency::replicate::Builder;
///
/// let read = |set: &AwSet<u64>| set.elements().copied().collect::<Vec<_>>();
/// let old = (|c: Builder| c.merge_version(1, 1..=1), read);
/// let both = (|c: Builder| c.merge_version(1, 1..=2), read);
/// let new = (|c: Builder| c.merge_version(2, 1..=2), read);
/// assert_eq!(laws::versions_meet(1..20, &both, &new)?, Meeting::Converged);
/// assert_eq!(laws::versions_meet(1..20, &old, &new)?, Meeting::Refused);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The first seed that shows otherwise, or an answer that is not the same for all.
pub fn versions_meet<A, B, R>(
    seeds: Range<u64>,
    old: &(impl Fn(Builder) -> Builder, impl Fn(&A) -> R),
    new: &(impl Fn(Builder) -> Builder, impl Fn(&B) -> R),
) -> Result<Meeting, Violation>
where
    A: Replicated + Subject,
    B: Replicated + Subject,
    R: PartialEq + fmt::Debug,
{
    let mut all = None;
    for seed in seeds {
        let met = meet(seed, old, new).map_err(|found| Violation { seed, ..found })?;
        if *all.get_or_insert(met) != met {
            return Err(Violation {
                seed,
                ..Violation::of(Law::L21, format!("{met:?}, and other seeds not"))
            });
        }
    }
    all.ok_or_else(|| Violation::of(Law::L21, "no seeds, nothing shown"))
}

/// A node and what it heard.
struct Node<T> {
    engine: AntiEntropy<T>,
    replica: Replica,
    id: u64,
    /// Whether it refused the other by its version.
    refused: bool,
    /// Whether it took something from the other.
    taken: bool,
}

impl<T: Replicated + Subject> Node<T> {
    fn new(id: u64, seed: u64, options: &impl Fn(Builder) -> Builder) -> Result<Self, Violation> {
        let config = AntiEntropyConfig::builder(id, seed.wrapping_add(id << 32), DigestKey::new([9; 16]));
        let refused = |error: &dyn fmt::Display| Violation::of(Law::L21, error.to_string());
        let engine = options(config.members([1, 2])).build(T::default()).map_err(|e| refused(&e))?;
        let replica = Replica::new(usize::try_from(id - 1).unwrap_or(0), 2)
            .ok_or_else(|| refused(&"a clock cannot be built"))?;
        Ok(Self { engine, replica, id, refused: false, taken: false })
    }

    fn change(&mut self, rng: &SeededRng) -> Result<(), Violation> {
        let alphabet = T::alphabet();
        let op = &alphabet[usize::try_from(rng.below(alphabet.len() as u64)).unwrap_or(0)];
        let replica = &mut self.replica;
        let change = |state: &mut T| Ok(state.apply(op, replica).unwrap_or_default());
        self.engine.change(change).map_err(|e| Violation::of(Law::L21, e.to_string()))
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<Vec<Outgoing>, Violation> {
        let Step { changed, send, events } = self.engine.on_msg(3 - self.id, bytes, Instant::ZERO);
        self.taken |= changed.is_yes();
        for event in events {
            match event {
                Event::Incompatible { .. } | Event::Refused { .. } => self.refused = true,
                Event::Malformed { .. } | Event::Mismatch { .. } => {
                    let detail = format!("node {} takes what the other says for {event:?}", self.id);
                    return Err(Violation::of(Law::L21, detail));
                }
                _ => {}
            }
        }
        Ok(send)
    }
}

fn meet<A: Replicated + Subject, B: Replicated + Subject, R: PartialEq + fmt::Debug>(
    seed: u64,
    old: &(impl Fn(Builder) -> Builder, impl Fn(&A) -> R),
    new: &(impl Fn(Builder) -> Builder, impl Fn(&B) -> R),
) -> Result<Meeting, Violation> {
    let (mut a, mut b) = (Node::<A>::new(1, seed, &old.0)?, Node::<B>::new(2, seed, &new.0)?);
    let rng = SeededRng::new(seed);
    // Both have something to say before they meet.
    a.change(&rng)?;
    b.change(&rng)?;
    for round in 0..ROUNDS {
        if round < ROUNDS / 4 && rng.below(2) == 0 {
            if rng.below(2) == 0 { a.change(&rng)? } else { b.change(&rng)? }
        }
        let (mut to_b, mut to_a) = (a.engine.on_tick(Instant::ZERO), b.engine.on_tick(Instant::ZERO));
        // Answers to answers end; the bound is against bugs.
        for _ in 0..64 {
            if to_a.is_empty() && to_b.is_empty() {
                break;
            }
            let (now_a, now_b) = (std::mem::take(&mut to_a), std::mem::take(&mut to_b));
            for (_, bytes) in now_a {
                to_b.extend(a.hear(&bytes)?);
            }
            for (_, bytes) in now_b {
                to_a.extend(b.hear(&bytes)?);
            }
        }
    }
    for (refused, taken, id) in [(a.refused, a.taken, a.id), (b.refused, b.taken, b.id)] {
        if refused && taken {
            return Err(Violation::of(Law::L21, format!("node {id} refuses the other and takes from it")));
        }
    }
    if a.refused || b.refused {
        return Ok(Meeting::Refused);
    }
    let (left, right) = ((old.1)(a.engine.state()), (new.1)(b.engine.state()));
    if left == right {
        return Ok(Meeting::Converged);
    }
    Err(Violation::of(Law::L21, format!("the old version reads {left:?}, the new one {right:?}")))
}
