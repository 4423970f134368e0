//! The laws about meaning, identity, clocks, versions and mixed fleets: they hold for what is here, and the harness sees
//! each of them broken by a planted bug.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock as _, Rng as _, SeededRng};
use mainstay_consistency::crdt::{
    AwMap, AwSet, BoundedCounter, DotFun, DotMap, DotSet, DwFlag, EwFlag, GCounter, GSet, LwwMap,
    LwwRegister, MaxRegister, MinRegister, MvRegister, PnCounter, ResettableCounter, RwMap, RwSet,
    TwoPhaseSet,
};
use mainstay_consistency::hlc::{DurableHlc, Hlc, MAX_SKEW, PERSIST_WINDOW};
use mainstay_consistency::identity::Identity;
use mainstay_consistency::laws::{
    self, Disk, Law, ManualClock, Meeting, Pair, Profile, Replica, SiblingStore, Stamping, Subject,
};
use mainstay_consistency::replicate::{Builder, DigestKey};
use mainstay_consistency::siblings::Siblings;
use mainstay_consistency::version::{Causality, VersionVector};
use mainstay_consistency::{Actor, ActorId};
use mainstay_store::DurableCell as _;
use mainstay_store::memory::MemoryCell;

use crate::laws::number;
use crate::{actor, block_on};

fn profile() -> Profile {
    Profile::batch(number("MAINSTAY_LAWS_SEED", 1), number("MAINSTAY_LAWS_SCHEDULES", 150))
}

#[test]
fn l7_a_delta_that_is_not_what_changed_is_found() {
    /// A counter whose increment tells what was added instead of the new total.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Careless(BTreeMap<u64, u64>);

    impl Subject for Careless {
        type Op = ();

        fn alphabet() -> Vec<()> {
            vec![()]
        }

        fn apply(&mut self, (): &(), replica: &mut Replica) -> Option<Self> {
            let node = replica.actor.id().node();
            *self.0.entry(node).or_default() += 1;
            Some(Self([(node, 1)].into()))
        }

        fn merge(&mut self, other: &Self) -> bool {
            let before = self.clone();
            for (node, n) in &other.0 {
                let mine = self.0.entry(*node).or_default();
                *mine = (*mine).max(*n);
            }
            *self != before
        }
    }

    let found = laws::check::<Careless>(Profile::standard()).unwrap_err();
    assert_eq!((found.law, found.schedule.len()), (Law::L7, 2), "{found}");
}

/// A node as the laws start it: what its disk holds, what it held, and how it makes itself an actor of that.
struct Node {
    disk: Option<u32>,
    backups: Vec<Option<u32>>,
    rng: SeededRng,
}

impl Node {
    fn new() -> RefCell<Self> {
        RefCell::new(Self { disk: None, backups: Vec::new(), rng: SeededRng::new(8) })
    }

    /// What the disk held at a start, after what happened to it.
    fn open(&mut self, what: Disk) -> Option<u32> {
        self.backups.push(self.disk);
        match what {
            Disk::Lost => self.disk = None,
            Disk::RolledBack => self.disk = self.backups[self.rng.below(self.backups.len() as u64) as usize],
            _ => {}
        }
        self.disk
    }
}

#[test]
fn l13_identities_repeat_no_actor_and_epochs_alone_do() {
    let (disk, backups) = (RefCell::new(MemoryCell::new()), RefCell::new(Vec::new()));
    let rng = Arc::new(SeededRng::new(3));
    let ours = |what: Disk| {
        block_on(async {
            let here = disk.borrow().clone();
            let before = here.load().await.unwrap();
            backups.borrow_mut().push(before.clone());
            let bytes = match what {
                Disk::Lost => None,
                Disk::RolledBack => {
                    backups.borrow()[rng.below(backups.borrow().len() as u64) as usize].clone()
                }
                _ => before,
            };
            let here = MemoryCell::new();
            if let Some(bytes) = bytes {
                here.store_synced(bytes).await.unwrap();
            }
            if what != Disk::Cloned {
                disk.replace(here.clone());
            }
            Identity::open(Arc::new(here), rng.clone()).await.unwrap().actor().id()
        })
    };
    laws::actors(1, 2_000, ours).unwrap();

    // An epoch on the disk is not enough where disks come back: not as a copy, and not as a backup.
    let node = Node::new();
    let epochs = |what: Disk| {
        let mut node = node.borrow_mut();
        let epoch = node.open(what).unwrap_or(0) + 1;
        if what != Disk::Cloned {
            node.disk = Some(epoch);
        }
        ActorId::new(7, epoch, 0)
    };
    let found = laws::actors(1, 2_000, epochs).unwrap_err();
    assert_eq!(found.law, Law::L13, "{found}");
    // A random node that is written down, and nothing else.
    let node = Node::new();
    let nodes = |what: Disk| {
        let mut node = node.borrow_mut();
        let drawn = node.rng.next_u64() as u32;
        let id = node.open(what).unwrap_or(drawn);
        node.disk = Some(id);
        ActorId::new(u64::from(id), 1, 0)
    };
    let found = laws::actors(1, 2_000, nodes).unwrap_err();
    assert_eq!((found.law, found.schedule.len()), (Law::L13, 2), "a restart is enough: {found}");
}

/// A specification over sets: adds, removals, clears.
fn set_of(made: &[&str]) -> BTreeSet<u64> {
    let mut set = BTreeSet::new();
    for op in made {
        match op.split_once(' ') {
            Some(("add", n)) => set.extend([n.parse::<u64>().unwrap()]),
            Some((_, n)) => set.retain(|held| *held != n.parse::<u64>().unwrap()),
            None => set.clear(),
        }
    }
    set
}

/// The last change that was made.
fn last(made: &[&str]) -> Option<u64> {
    made.last().and_then(|op| op.split_once(' ')).map(|(_, n)| n.parse().unwrap())
}

/// So much for each change that was made, since the last `reset`.
fn total(made: &[&str], each: &[(&str, i128)]) -> i128 {
    let since = made.iter().rposition(|op| *op == "reset").map_or(0, |at| at + 1);
    let worth = |op: &&str| each.iter().find(|e| e.0 == *op).map_or(0, |e| e.1);
    made[since..].iter().map(worth).sum()
}

fn of_maps(made: &[&str]) -> Vec<u64> {
    let mut inner = BTreeSet::new();
    for op in made {
        match *op {
            "add 1" => inner.extend([1]),
            "add 2" => inner.extend([2]),
            "remove inner" => inner.retain(|n| *n != 1),
            _ => inner.clear(),
        }
    }
    inner.into_iter().collect()
}

#[test]
fn l15_every_type_is_its_sequential_specification() {
    let p = profile();
    laws::sequential(p, |s: &AwSet<u64>| s.elements().copied().collect(), set_of).unwrap();
    laws::sequential(p, |s: &RwSet<u64>| s.elements().copied().collect(), set_of).unwrap();
    laws::sequential(p, |s: &GSet<u64>| s.elements().copied().collect(), set_of).unwrap();
    let once = |made: &[&str]| {
        let gone = made.contains(&"remove 1");
        set_of(made).into_iter().filter(|n| *n != 1 || !gone).collect::<BTreeSet<_>>()
    };
    laws::sequential(p, |s: &TwoPhaseSet<u64>| s.elements().copied().collect(), once).unwrap();
    let is_on = |made: &[&str]| made.last() == Some(&"on");
    laws::sequential(p, EwFlag::is_on, is_on).unwrap();
    laws::sequential(p, DwFlag::is_on, is_on).unwrap();
    let values = |r: &MvRegister<u64>| r.values().copied().collect::<Vec<_>>();
    laws::sequential(p, values, |made| last(made).into_iter().collect()).unwrap();
    laws::sequential(p, |r: &LwwRegister<u64>| r.get().copied(), last).unwrap();
    let most = |made: &[&str]| made.iter().filter_map(|op| last(&[*op])).max();
    laws::sequential(p, |r: &MaxRegister<u64>| r.get().copied(), most).unwrap();
    let least = |made: &[&str]| made.iter().filter_map(|op| last(&[*op])).min();
    laws::sequential(p, |r: &MinRegister<u64>| r.get().copied(), least).unwrap();
    laws::sequential(p, GCounter::value, |made| total(made, &[("inc", 2)])).unwrap();
    laws::sequential(p, PnCounter::value, |made| total(made, &[("inc", 2), ("dec", -3)])).unwrap();
    laws::sequential(p, BoundedCounter::value, |made| total(made, &[("inc", 2), ("dec", -1)])).unwrap();
    laws::sequential(p, ResettableCounter::value, |made| total(made, &[("inc", 3), ("dec", -1)])).unwrap();
    type Inner = DotMap<u64, DotSet>;
    let of_7 =
        |inner: Option<&Inner>| inner.into_iter().flat_map(|m| m.iter().map(|e| *e.0)).collect::<Vec<_>>();
    laws::sequential(p, |m: &AwMap<u64, Inner>| of_7(m.get(&7)), of_maps).unwrap();
    laws::sequential(p, |m: &RwMap<u64, Inner>| of_7(m.get(&7)), of_maps).unwrap();
    let of_key = |made: &[&str]| {
        let mut now = None;
        for op in made {
            match *op {
                "remove" => now = None,
                "set other" | "write other" => {}
                _ => now = last(&[*op]),
            }
        }
        now
    };
    laws::sequential(p, |m: &LwwMap<u64, u64>| m.get(&7).copied(), of_key).unwrap();
    let only = |m: &AwMap<u64, DotFun<u64>>| m.get(&7).and_then(|r| r.values().next().copied());
    laws::sequential(p, only, of_key).unwrap();
}

#[test]
fn l15_a_type_that_is_not_what_it_is_taken_for_is_found() {
    // Whoever takes a two-phase set for a set.
    let read = |s: &TwoPhaseSet<u64>| s.elements().copied().collect();
    let found = laws::sequential(Profile::standard(), read, set_of).unwrap_err();
    assert_eq!((found.law, found.schedule.len()), (Law::L15, 3), "add, remove, add: {found}");

    /// A register that replaces its value by a slower clock too.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct ByWallTime(Option<(i64, u64)>);

    impl Subject for ByWallTime {
        type Op = (i64, u64);

        fn alphabet() -> Vec<(i64, u64)> {
            vec![(10, 1), (5, 2)]
        }

        fn apply(&mut self, op: &(i64, u64), _: &mut Replica) -> Option<Self> {
            self.0 = self.0.max(Some(*op));
            Some(self.clone())
        }

        fn merge(&mut self, other: &Self) -> bool {
            let before = self.0;
            self.0 = self.0.max(other.0);
            self.0 != before
        }
    }

    // It obeys every law of joins, and yet loses what was written later.
    laws::check::<ByWallTime>(Profile::standard()).unwrap();
    let read = |r: &ByWallTime| r.0.map(|v| v.1);
    let found = laws::sequential(Profile::standard(), read, |made| made.last().map(|op| op.1)).unwrap_err();
    assert_eq!((found.law, found.schedule.len()), (Law::L15, 2), "{found}");
}

#[test]
fn l15_the_tables_of_concurrent_changes() {
    let rows = |wins: &[u64]| {
        let with_two = wins.iter().copied().chain([2]).collect::<Vec<_>>();
        [
            Pair::new(["add 1"], "remove 1", "add 1", wins.to_vec()),
            Pair::new(["add 1"], "add 1", "remove 1", wins.to_vec()),
            Pair::new(["add 1"], "remove 1", "remove 1", Vec::<u64>::new()),
            Pair::new(["add 1"], "add 2", "remove 1", vec![2]),
            Pair::new(["add 1", "add 2"], "remove 1", "add 1", with_two),
        ]
    };
    laws::concurrent(&rows(&[1]), |s: &AwSet<u64>| s.elements().copied().collect::<Vec<_>>()).unwrap();
    laws::concurrent(&rows(&[]), |s: &RwSet<u64>| s.elements().copied().collect::<Vec<_>>()).unwrap();
    let flags = |wins| {
        [
            Pair::new(["on"], "off", "on", wins),
            Pair::new(["on"], "on", "off", wins),
            Pair::new(["on"], "off", "off", false),
            Pair::new(["on"], "on", "on", true),
        ]
    };
    laws::concurrent(&flags(true), EwFlag::is_on).unwrap();
    laws::concurrent(&flags(false), DwFlag::is_on).unwrap();
    let found = laws::concurrent(&flags(true), DwFlag::is_on).unwrap_err();
    assert_eq!(found.law, Law::L15);
    assert_eq!(found.schedule, ["r0: \"on\"", "r0: \"off\"", "r1: \"on\""], "{found}");
    // A row whose change is not possible shows nothing.
    let none = [Pair::new([], "remove 1", "add 1", Vec::<u64>::new())];
    let found = laws::concurrent(&none, |s: &TwoPhaseSet<u64>| s.elements().copied().collect::<Vec<_>>());
    assert!(found.unwrap_err().detail.contains("not possible"));
}

#[test]
fn l16_what_is_reset_or_removed_starts_anew() {
    let p = profile();
    let shown = |report: laws::Report| assert!(report.changes > report.schedules, "{report:?}");
    shown(laws::starts_anew(p, &"reset", ResettableCounter::value).unwrap());
    shown(
        laws::starts_anew(p, &"clear", |s: &AwSet<u64>| s.elements().copied().collect::<Vec<_>>()).unwrap(),
    );
    shown(laws::starts_anew(p, &"remove 1", |s: &RwSet<u64>| s.contains(&1)).unwrap());
    type Inner = DotMap<u64, DotSet>;
    let of_7 =
        |inner: Option<&Inner>| inner.into_iter().flat_map(|m| m.iter().map(|e| *e.0)).collect::<Vec<_>>();
    shown(laws::starts_anew(p, &"remove", |m: &AwMap<u64, Inner>| of_7(m.get(&7))).unwrap());
    shown(laws::starts_anew(p, &"remove", |m: &RwMap<u64, Inner>| of_7(m.get(&7))).unwrap());
    shown(laws::starts_anew(p, &"remove", |m: &LwwMap<u64, u64>| m.get(&7).copied()).unwrap());
    shown(laws::starts_anew(p, &"off", EwFlag::is_on).unwrap());
}

#[test]
fn l16_a_reset_of_the_own_share_only_is_found() {
    /// A counter whose reset takes off what its own replica added. It obeys every law of joins.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Down(BTreeMap<u64, (u64, u64)>);

    impl Down {
        fn value(&self) -> i128 {
            self.0.values().map(|(up, down)| i128::from(*up) - i128::from(*down)).sum()
        }
    }

    impl Subject for Down {
        type Op = &'static str;

        fn alphabet() -> Vec<&'static str> {
            vec!["inc", "remove"]
        }

        fn apply(&mut self, op: &&'static str, replica: &mut Replica) -> Option<Self> {
            let me = replica.actor.id().node();
            if *op == "inc" {
                self.0.entry(me).or_default().0 += 1;
            } else {
                let mine = self.0.entry(me).or_default();
                mine.1 = mine.0;
            }
            Some(Self(self.0.get_key_value(&me).map(|(k, v)| (*k, *v)).into_iter().collect()))
        }

        fn merge(&mut self, other: &Self) -> bool {
            let before = self.clone();
            for (node, (up, down)) in &other.0 {
                let mine = self.0.entry(*node).or_default();
                *mine = (mine.0.max(*up), mine.1.max(*down));
            }
            *self != before
        }
    }

    laws::check::<Down>(Profile::standard()).unwrap();
    let found = laws::starts_anew(Profile::standard(), &"remove", Down::value).unwrap_err();
    assert_eq!((found.law, found.schedule.len()), (Law::L16, 1), "{found}");
    // What cannot be reset is no reset.
    let found = laws::starts_anew(Profile::standard(), &"remove 1", |s: &TwoPhaseSet<u64>| s.contains(&1));
    assert_eq!(found.unwrap_err().law, Law::L16);
}

/// A hybrid clock with a bug. Its disk is written with every stamp.
struct Planted {
    bug: Bug,
    wall: Arc<ManualClock>,
    disk: Rc<Cell<u64>>,
    last: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    Amnesia,
    Deaf,
    Gullible,
    Narrow,
}

impl Stamping for Planted {
    type Stamp = u64;

    fn now(&mut self) -> Option<u64> {
        let wall = (self.wall.wall().unix_millis() as u64) << 16;
        let next = wall.max(self.last + 1);
        self.last = match self.bug {
            // The counter goes round within its millisecond.
            Bug::Narrow if next > wall => (self.last & !0xffff) | (next & 0xffff),
            _ => next,
        };
        self.disk.set(self.last);
        Some(self.last)
    }

    fn observe(&mut self, stamp: u64) -> bool {
        let ahead = (stamp >> 16) as i64 - self.wall.wall().unix_millis();
        if ahead > 400 && self.bug != Bug::Gullible {
            return false;
        }
        if self.bug != Bug::Deaf {
            self.last = self.last.max(stamp);
        }
        true
    }

    fn millis(stamp: u64) -> i64 {
        (stamp >> 16) as i64
    }
}

/// Runs the law over the planted clock.
fn planted(bug: Bug) -> Result<usize, laws::Violation> {
    let disks = [(); 3].map(|()| Rc::new(Cell::new(0)));
    laws::clocks(7, 2_000, MAX_SKEW, |node, wall| {
        let disk = Rc::clone(&disks[node]);
        let last = if bug == Bug::Amnesia { 0 } else { disk.get() };
        Planted { bug, wall, disk, last }
    })
}

#[test]
fn l18_clocks_rise_and_a_clock_that_forgets_or_does_not_listen_is_found() {
    let seed = number("MAINSTAY_LAWS_SEED", 1);
    let disks = [(); 3].map(|()| Arc::new(MemoryCell::new()));
    let durable = |node: usize, wall: Arc<ManualClock>| {
        let hlc = Hlc::builder(wall).build().unwrap();
        block_on(DurableHlc::open(hlc, disks[node].clone(), PERSIST_WINDOW)).unwrap()
    };
    assert!(laws::clocks(seed, 4_000, MAX_SKEW, durable).unwrap() > 2_000);
    // Without a disk a clock forgets: that is what the durable one is for.
    let found = laws::clocks(seed, 4_000, MAX_SKEW, |_, wall| Hlc::builder(wall).build().unwrap());
    assert_eq!(found.unwrap_err().law, Law::L18);

    for (bug, why) in [
        (Bug::Amnesia, "after"),
        (Bug::Deaf, "took note of"),
        (Bug::Gullible, "ahead of its wall clock"),
        (Bug::Narrow, "after"),
    ] {
        let found = planted(bug).unwrap_err();
        assert_eq!(found.law, Law::L18);
        assert!(found.detail.contains(why), "{bug:?}: {found}");
        assert!(!found.schedule.is_empty() && found.schedule.len() <= 12, "{found}");
    }
    assert!(planted(Bug::None).unwrap() > 70_000);
}

#[test]
fn l18_more_skew_than_is_allowed_is_found() {
    let found = laws::clocks(1, 2_000, Duration::from_millis(100), |_, wall| {
        Hlc::builder(wall).max_skew(Duration::from_millis(300)).build().unwrap()
    });
    assert_eq!(found.unwrap_err().law, Law::L18);
}

#[test]
fn l19_version_vectors_obey_and_vectors_that_forget_do_not() {
    let rng = SeededRng::new(5);
    let draw = |nodes: u64| {
        let mut vector = VersionVector::new();
        for _ in 0..rng.below(6) {
            vector.advance(ActorId::new(rng.below(nodes), 1, 0));
        }
        vector
    };
    let merged = |a: &VersionVector, b: &VersionVector| {
        let mut both = a.clone();
        let _ = both.merge(b);
        both
    };
    let samples: Vec<_> = (0..40).map(|_| draw(3)).collect();
    laws::partial_order(&samples, VersionVector::compare, merged).unwrap();
    // The textbook's pruning: a vector keeps two entries only.
    let pruned = |a: &VersionVector, b: &VersionVector| {
        let mut kept = VersionVector::new();
        for (actor, n) in merged(a, b).iter().take(2) {
            for _ in 0..n {
                kept.advance(actor);
            }
        }
        kept
    };
    let found = laws::partial_order(&samples, VersionVector::compare, pruned).unwrap_err();
    assert_eq!(found.law, Law::L19);
    // Whoever takes what is concurrent for older.
    let hasty = |a: &VersionVector, b: &VersionVector| match a.compare(b) {
        Causality::Concurrent => Causality::Before,
        other => other,
    };
    assert_eq!(laws::partial_order(&samples, hasty, merged).unwrap_err().law, Law::L19);
}

/// The siblings of a key, on a replica.
struct Key {
    values: Siblings<u64>,
    actor: Actor,
}

impl SiblingStore for Key {
    type Token = Vec<u8>;

    fn read(&self) -> (Vec<u64>, Vec<u8>) {
        let read = self.values.get();
        (read.values, read.token)
    }

    fn put(&mut self, token: Option<&Vec<u8>>, value: u64) -> bool {
        self.values.put(&mut self.actor, token.map_or(&[][..], |token| token), value).is_ok()
    }

    fn join(&mut self, other: &Self) {
        let _ = self.values.join(other.values.state()).unwrap();
    }
}

/// A store by plain version vectors: a put replaces everything if its client saw the newest version.
#[derive(Default)]
struct ByVersion {
    version: u64,
    values: BTreeSet<u64>,
}

impl SiblingStore for ByVersion {
    type Token = u64;

    fn read(&self) -> (Vec<u64>, u64) {
        (self.values.iter().copied().collect(), self.version)
    }

    fn put(&mut self, token: Option<&u64>, value: u64) -> bool {
        if token == Some(&self.version) {
            self.values.clear();
        }
        self.version += 1;
        self.values.insert(value)
    }

    fn join(&mut self, other: &Self) {
        self.version = self.version.max(other.version);
        self.values.extend(&other.values);
    }
}

#[test]
fn l19_siblings_are_what_no_put_had_seen_and_versions_alone_do_not_tell() {
    let make = |index: usize| Key {
        values: Siblings::new(DigestKey::new([1; 16]), b"k"),
        actor: actor(index as u64 + 1),
    };
    let report = laws::siblings(profile(), make).unwrap();
    assert!(report.changes > report.schedules, "{report:?}");
    let found = laws::siblings(Profile::standard(), |_| ByVersion::default()).unwrap_err();
    assert_eq!(found.law, Law::L19);
    assert!(found.schedule.len() <= 5, "{found}");
}

#[test]
fn l19_a_value_that_was_read_at_one_replica_is_replaced_at_every_other() {
    let key = || Siblings::<u64>::new(DigestKey::new([1; 16]), b"k");
    let (mut here, mut there) = (key(), key());
    let old = here.put(&mut actor(1), b"", 1).unwrap().delta;
    // A client reads here, and writes there before there has heard of it.
    let token = here.get().token;
    let new = there.put(&mut actor(2), &token, 2).unwrap().delta;
    let _ = there.join(&old).unwrap();
    let _ = here.join(&new).unwrap();
    assert_eq!((there.get().values, here.get().values), (vec![2], vec![2]));
    assert_eq!(here.state(), there.state());
}

#[test]
fn c4_a_token_with_changes_that_the_replica_has_lost_is_an_alarm() {
    let key = || Siblings::<u64>::new(DigestKey::new([1; 16]), b"k");
    let (mut before, mut at) = (key(), actor(1));
    before.put(&mut at, b"", 1).unwrap();
    let token = before.get().token;
    // The same actor with the state of a backup.
    let mut after = key();
    let error = after.put(&mut actor(1), &token, 2).unwrap_err();
    assert_eq!(error.kind(), mainstay_consistency::ErrorKind::DuplicateActor);
    assert!(after.get().values.is_empty());
}

/// The next version of a set of numbers, which keeps them tenfold.
mod next {
    use mainstay_consistency::crdt::{GSet, Item, Lattice};
    use mainstay_consistency::laws::{Replica, Subject};
    use mainstay_consistency::version::Context;
    use mainstay_consistency::wire::{Reader, Wire, Writer};
    use mainstay_consistency::{Changed, DeltaState, Join, Result};

    #[derive(Clone, Debug, Default, PartialEq)]
    pub(super) struct Tenfold<const FRAME: u8>(pub(super) GSet<u64>);

    impl<const FRAME: u8> Join for Tenfold<FRAME> {
        fn join(&mut self, other: &Self) -> Result<Changed> {
            self.0.join(&other.0)
        }

        fn leq(&self, other: &Self) -> bool {
            Join::leq(&self.0, &other.0)
        }
    }

    impl<const FRAME: u8> DeltaState for Tenfold<FRAME> {
        fn delta_since(&self, seen: &Context) -> Self {
            Self(self.0.delta_since(seen))
        }
    }

    impl<const FRAME: u8> Wire for Tenfold<FRAME> {
        fn write(&self, out: &mut Writer) {
            if FRAME > 0 {
                out.byte(FRAME);
            }
            self.0.write(out);
        }

        fn read(input: &mut Reader<'_>) -> Result<Self> {
            if FRAME > 0 && input.byte()? != FRAME {
                // More than there can be.
                input.raw(usize::MAX)?;
            }
            GSet::read(input).map(Self)
        }
    }

    impl<const FRAME: u8> Lattice for Tenfold<FRAME> {
        fn each_item(&self, f: &mut dyn FnMut(Item)) {
            self.0.each_item(f);
        }

        fn subset(&self, keep: &dyn Fn(&Item) -> bool) -> Self {
            Self(self.0.subset(keep))
        }
    }

    impl<const FRAME: u8> Subject for Tenfold<FRAME> {
        type Op = u64;

        fn alphabet() -> Vec<u64> {
            vec![1, 2, 3]
        }

        fn apply(&mut self, op: &u64, _: &mut Replica) -> Option<Self> {
            Some(Self(self.0.add(op * 10)))
        }

        fn merge(&mut self, other: &Self) -> bool {
            self.0.join(&other.0).is_ok_and(Changed::is_yes)
        }
    }
}

#[test]
fn l21_versions_converge_or_refuse_and_one_that_does_neither_is_found() {
    use next::Tenfold;
    let read = |set: &AwSet<u64>| set.elements().copied().collect::<Vec<_>>();
    let aw = |version, accepts: std::ops::RangeInclusive<u32>| {
        (move |c: Builder| c.merge_version(version, accepts.clone()), read)
    };
    let seeds = 1..30;
    let met = |a, b| laws::versions_meet::<AwSet<u64>, AwSet<u64>, _>(seeds.clone(), &a, &b).unwrap();
    assert_eq!(met(aw(1, 1..=2), aw(2, 1..=2)), Meeting::Converged);
    assert_eq!(met(aw(1, 1..=1), aw(2, 1..=2)), Meeting::Refused);
    assert_eq!(met(aw(1, 1..=1), aw(2, 2..=2)), Meeting::Refused);

    let old = (|c: Builder| c, |set: &GSet<u64>| set.elements().copied().collect::<Vec<_>>());
    // Another meaning under the same version: both go on, and read differently for ever.
    let tenfold = (|c: Builder| c, |set: &Tenfold<0>| set.0.elements().map(|n| n / 10).collect::<Vec<_>>());
    let found = laws::versions_meet(seeds.clone(), &old, &tenfold).unwrap_err();
    assert_eq!(found.law, Law::L21);
    assert!(found.detail.contains("the old version reads"), "{found}");
    // Other bytes under the same version are garbage to the old one.
    let framed = |c: Builder| c;
    let framed = (framed, |set: &Tenfold<9>| set.0.elements().map(|n| n / 10).collect::<Vec<_>>());
    let found = laws::versions_meet(seeds.clone(), &old, &framed).unwrap_err();
    assert!(found.law == Law::L21 && found.detail.contains("Malformed"), "{found}");
    // Named, it is refused.
    let named =
        (|c: Builder| c.schema(2), |set: &Tenfold<9>| set.0.elements().map(|n| n / 10).collect::<Vec<_>>());
    assert_eq!(laws::versions_meet(seeds, &old, &named).unwrap(), Meeting::Refused);
}
