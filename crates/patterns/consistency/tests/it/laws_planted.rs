//! Types with a bug each: the check of the law that it breaks finds it, and a sound one passes. What only a meaning, a clock
//! or a version breaks is in `laws_parts`.

use std::collections::BTreeSet;

use mainstay_consistency::crdt::{AwSet, Changed, GSet};
use mainstay_consistency::laws::network::{Weather, converges};
use mainstay_consistency::laws::{self, Law, Profile, Replica, Subject};
use mainstay_consistency::replicate::{DigestKey, Place, Replicated};
use mainstay_consistency::version::{Context, Dot};
use mainstay_consistency::wire::{Reader, Wire, Writer};
use mainstay_consistency::{ActorId, DeltaState, Join, Result};

/// Runs every law over `T` on so many replicas: `law` is found broken, by a schedule that a seed replays.
#[track_caller]
fn finds<T: Subject>(law: Law, replicas: usize) -> laws::Violation {
    let mut profile = Profile::standard();
    profile.replicas = replicas;
    let found = laws::check::<T>(profile).unwrap_err();
    assert_eq!(found.law, law, "{found}");
    // What is shuffled differs by length, so not every shorter schedule shows as much.
    let most = if law == Law::L8 { 8 } else { 4 };
    assert!((1..=most).contains(&found.schedule.len()), "it is not small: {found}");
    (profile.seed, profile.schedules) = (found.seed, 1);
    assert_eq!(laws::check::<T>(profile).unwrap_err(), found, "a seed replays");
    found
}

/// A set of numbers with the bug of the law `BUG`; zero is none.
#[derive(Clone, Debug, Default, PartialEq)]
struct Set<const BUG: usize>(BTreeSet<u64>);

impl<const BUG: usize> Subject for Set<BUG> {
    type Op = u64;

    fn alphabet() -> Vec<u64> {
        vec![1, 2, 300]
    }

    fn apply(&mut self, op: &u64, _: &mut Replica) -> Option<Self> {
        self.0.insert(*op).then(|| Self([*op].into()))
    }

    fn merge(&mut self, other: &Self) -> bool {
        let before = self.0.clone();
        let (ours, theirs) = (self.0.len(), other.0.len());
        self.0.extend(&other.0);
        match BUG {
            // What both sides have counts as taken back.
            1 if before == other.0 && ours > 1 => drop(self.0.pop_last()),
            // One side that is empty is taken for one that lost something.
            5 if (ours == 0) != (theirs == 0) && ours + theirs > 1 => drop(self.0.pop_last()),
            // Says nothing about what comes from a large one.
            9 if theirs > 1 => return false,
            _ => {}
        }
        self.0 != before
    }

    fn leq(&self, other: &Self) -> Option<bool> {
        match BUG {
            0 => Some(self.0.is_subset(&other.0)),
            // As many are taken for the same ones.
            4 => Some(self.0.len() <= other.0.len()),
            _ => None,
        }
    }

    fn missing_at(&self, other: &Self) -> Option<Self> {
        (BUG == 0).then(|| Self(&self.0 - &other.0))
    }

    fn round_trip(&self) -> Option<(Vec<u8>, Option<Self>)> {
        // A byte per number, into which not every number fits.
        let bytes: Vec<u8> = self.0.iter().map(|n| (*n & 0xff) as u8).collect();
        let wide = |bytes: &[u8]| bytes.iter().map(|b| if *b == 44 { 300 } else { u64::from(*b) }).collect();
        let narrow = |bytes: &[u8]| bytes.iter().map(|b| u64::from(*b)).collect();
        match BUG {
            0 => Some((bytes.clone(), Some(Self(wide(&bytes))))),
            20 => Some((bytes.clone(), Some(Self(narrow(&bytes))))),
            _ => None,
        }
    }
}

#[test]
fn a_sound_type_passes_where_planted_bugs_do_not() {
    let report = laws::check::<Set<0>>(Profile::standard()).unwrap();
    assert!(report.changes > report.schedules, "{report:?}");
    laws::exhaustive::<Set<0>>(3).unwrap();
}

#[test]
fn l1_a_join_with_itself_that_changes_something_is_found() {
    finds::<Set<1>>(Law::L1, 1);
    assert_eq!(laws::merge_function(&[1, 2], |a, b| a + b).unwrap_err().law, Law::L1);
}

#[test]
fn l2_a_tie_that_goes_to_whoever_comes_last_is_found() {
    /// The number of the write, and its value.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Latest(Option<(u64, u64)>);

    impl Subject for Latest {
        type Op = (u64, u64);

        fn alphabet() -> Vec<(u64, u64)> {
            vec![(1, 1), (1, 2), (2, 3)]
        }

        fn apply(&mut self, op: &(u64, u64), _: &mut Replica) -> Option<Self> {
            let later = self.0.is_none_or(|held| held.0 < op.0);
            later.then(|| {
                self.0 = Some(*op);
                self.clone()
            })
        }

        fn merge(&mut self, other: &Self) -> bool {
            let before = self.clone();
            if other.0.map(|theirs| theirs.0) >= self.0.map(|ours| ours.0) {
                self.0 = other.0;
            }
            *self != before
        }
    }

    finds::<Latest>(Law::L2, 3);
    assert_eq!(laws::exhaustive::<Latest>(2).unwrap_err().law, Law::L2);
}

#[test]
fn l3_a_join_that_depends_on_the_grouping_is_found() {
    /// Of two different ones one beats the other, in a circle.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Hand(Option<u8>);

    impl Subject for Hand {
        type Op = u8;

        fn alphabet() -> Vec<u8> {
            vec![0, 1, 2]
        }

        fn apply(&mut self, op: &u8, _: &mut Replica) -> Option<Self> {
            self.0.is_none().then(|| {
                self.0 = Some(*op);
                self.clone()
            })
        }

        fn merge(&mut self, other: &Self) -> bool {
            let before = self.clone();
            let beaten = self.0.zip(other.0).is_none_or(|(ours, theirs)| (theirs + 3 - ours) % 3 == 1);
            if beaten && other.0.is_some() {
                self.0 = other.0;
            }
            *self != before
        }
    }

    let found = laws::exhaustive::<Hand>(3).unwrap_err();
    assert_eq!((found.law, found.schedule.len()), (Law::L3, 3), "{found}");
    let middle = |a: &u64, b: &u64| (a + b) / 2;
    assert_eq!(laws::merge_function(&[0, 4, 8], middle).unwrap_err().law, Law::L3);
}

#[test]
fn l4_an_order_that_is_not_that_of_the_join_is_found() {
    finds::<Set<4>>(Law::L4, 3);
}

#[test]
fn l5_a_bottom_that_takes_something_away_is_found() {
    finds::<Set<5>>(Law::L5, 1);
}

#[test]
fn l6_a_removal_that_leaves_nothing_behind_is_found() {
    /// Numbers, and those that a delta takes away. No state remembers them.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Erasing(BTreeSet<u64>, BTreeSet<u64>);

    impl Subject for Erasing {
        type Op = (bool, u64);

        fn alphabet() -> Vec<(bool, u64)> {
            vec![(true, 1), (true, 2), (false, 1)]
        }

        fn apply(&mut self, (adds, n): &(bool, u64), _: &mut Replica) -> Option<Self> {
            let only = BTreeSet::from([*n]);
            if *adds {
                self.0.insert(*n).then(|| Self(only, BTreeSet::new()))
            } else {
                self.0.remove(n).then(|| Self(BTreeSet::new(), only))
            }
        }

        fn merge(&mut self, other: &Self) -> bool {
            let before = self.clone();
            self.0.extend(&other.0);
            self.0.retain(|n| !other.1.contains(n));
            *self != before
        }
    }

    // Its delta does what the change did, so only growth tells: an old copy brings it back.
    let found = finds::<Erasing>(Law::L6, 3);
    assert_eq!(found.schedule.len(), 2, "add and remove: {found}");
}

/// How the changes of one replica are known, which has numbered them from one on.
#[derive(Clone, Debug, Default, PartialEq)]
struct Numbered<const BUG: usize>(BTreeSet<u64>);

impl<const BUG: usize> Subject for Numbered<BUG> {
    type Op = ();

    fn alphabet() -> Vec<()> {
        vec![()]
    }

    fn apply(&mut self, (): &(), _: &mut Replica) -> Option<Self> {
        let next = self.0.len() as u64 + 1;
        self.0.insert(next);
        Some(Self([next].into()))
    }

    fn merge(&mut self, other: &Self) -> bool {
        let before = self.0.clone();
        let (first, last) = (before.first().copied(), before.last().copied());
        let known = |n: u64| match BUG {
            // All between the first and the last one that came.
            8 => first.is_some_and(|first| first <= n) && last.is_some_and(|last| n <= last),
            // Of single changes all up to the last one that came.
            _ => other.0.len() == 1 && last.is_some_and(|last| n <= last),
        };
        self.0.extend(other.0.iter().filter(|n| !known(**n)));
        self.0 != before
    }
}

#[test]
fn l8_a_stream_that_loses_what_comes_out_of_order_is_found() {
    let found = finds::<Numbered<8>>(Law::L8, 1);
    assert!(found.schedule.len() >= 3, "first, last, and one between them: {found}");
}

#[test]
fn l9_a_join_that_does_not_say_what_it_changed_is_found() {
    finds::<Set<9>>(Law::L9, 3);
}

#[test]
fn l10_a_change_that_comes_before_the_one_before_it_and_hides_it_is_found() {
    let found = finds::<Numbered<10>>(Law::L10, 1);
    assert_eq!(found.schedule.len(), 2, "{found}");
}

/// A growing set whose digest is always the same.
#[derive(Clone, Debug, Default, PartialEq)]
struct Blind(GSet<u64>);

impl Join for Blind {
    fn join(&mut self, other: &Self) -> Result<Changed> {
        self.0.join(&other.0)
    }

    fn leq(&self, other: &Self) -> bool {
        Join::leq(&self.0, &other.0)
    }
}

impl DeltaState for Blind {
    fn delta_since(&self, seen: &Context) -> Self {
        Self(self.0.delta_since(seen))
    }
}

impl Wire for Blind {
    fn write(&self, out: &mut Writer) {
        self.0.write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        GSet::read(input).map(Self)
    }
}

impl Replicated for Blind {
    const FORGETS: bool = false;

    fn known(&self) -> Option<&Context> {
        None
    }

    fn sum(&mut self, _: Place, _: Place, _: &DigestKey) -> (u64, u128) {
        (0, 0)
    }

    fn list(&self, lo: Place, hi: Place, key: &DigestKey) -> Vec<(Place, u64)> {
        self.0.list(lo, hi, key)
    }

    fn answer(&self, lo: Place, hi: Place, theirs: &[(Place, u64)], key: &DigestKey) -> Self {
        Self(self.0.answer(lo, hi, theirs, key))
    }

    fn missing(&self, from: ActorId, to: ActorId, theirs: &Context) -> Self {
        Self(self.0.missing(from, to, theirs))
    }

    fn halves(&self) -> Option<(Self, Self)> {
        self.0.halves().map(|(first, second)| (Self(first), Self(second)))
    }

    fn change(&mut self, _largest: usize, f: impl FnOnce(&mut Self) -> Result<Self>) -> Result<Self> {
        f(self)
    }

    fn join_news(&mut self, other: Self) -> Result<Option<Self>> {
        Ok(self.0.join_news(other.0)?.map(Self))
    }

    fn collect(&mut self, stable: &dyn Fn(Dot) -> bool) -> usize {
        self.0.collect(stable)
    }
}

impl Subject for Blind {
    type Op = u64;

    fn alphabet() -> Vec<u64> {
        (0..40).collect()
    }

    fn apply(&mut self, op: &u64, _: &mut Replica) -> Option<Self> {
        (!self.0.contains(op)).then(|| Self(self.0.add(*op)))
    }

    fn merge(&mut self, other: &Self) -> bool {
        self.join(other).is_ok_and(Changed::is_yes)
    }
}

#[test]
fn l11_a_digest_that_does_not_see_the_contents_is_found() {
    // Its algebra is sound: only a network that loses something tells.
    laws::check::<Blind>(Profile::standard()).unwrap();
    let found = converges::<Blind>(1..20, Weather::STORM).unwrap_err();
    assert_eq!(found.law, Law::L11, "{found}");
    assert!(found.seed > 0 && found.detail.contains("without agreement"), "{found}");
}

#[test]
fn l12_what_is_missing_without_the_removals_is_found() {
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Adding(AwSet<u64>);

    impl Subject for Adding {
        type Op = (bool, u64);

        fn alphabet() -> Vec<(bool, u64)> {
            vec![(true, 1), (true, 2), (false, 1)]
        }

        fn apply(&mut self, (adds, n): &(bool, u64), replica: &mut Replica) -> Option<Self> {
            let at = &mut replica.actor;
            if *adds { self.0.add(at, *n) } else { self.0.remove(at, n) }.ok().map(Self)
        }

        fn merge(&mut self, other: &Self) -> bool {
            self.0.join(&other.0).is_ok_and(Changed::is_yes)
        }

        fn missing_at(&self, other: &Self) -> Option<Self> {
            // Whoever has every element here lacks nothing: the removals are forgotten.
            let all = self.0.elements().all(|n| other.0.contains(n));
            Some(if all { Self::default() } else { Self(self.0.delta_since(other.0.context())) })
        }
    }

    finds::<Adding>(Law::L12, 3);
}

#[test]
fn l20_bytes_that_tell_of_the_history_and_bytes_that_lose_something_are_found() {
    finds::<Set<20>>(Law::L20, 3);

    /// A set that is written in the order in which its numbers came.
    #[derive(Clone, Debug, Default)]
    struct InOrder(Vec<u64>);

    impl PartialEq for InOrder {
        fn eq(&self, other: &Self) -> bool {
            let set = |s: &Self| s.0.iter().copied().collect::<BTreeSet<_>>();
            set(self) == set(other)
        }
    }

    impl Subject for InOrder {
        type Op = u64;

        fn alphabet() -> Vec<u64> {
            vec![1, 2]
        }

        fn apply(&mut self, op: &u64, _: &mut Replica) -> Option<Self> {
            let delta = Self(vec![*op]);
            self.merge(&delta).then_some(delta)
        }

        fn merge(&mut self, other: &Self) -> bool {
            let before = self.0.len();
            for n in &other.0 {
                if !self.0.contains(n) {
                    self.0.push(*n);
                }
            }
            self.0.len() > before
        }

        fn round_trip(&self) -> Option<(Vec<u8>, Option<Self>)> {
            let bytes = self.0.iter().map(|n| *n as u8).collect();
            Some((bytes, Some(self.clone())))
        }
    }

    finds::<InOrder>(Law::L20, 3);
}
