//! The laws over every type. `cargo xtask laws` makes the batches larger, in release, and counts them.

use mainstay_consistency::crdt::{
    AwMap, AwSet, BoundedCounter, Document, DotFun, DotMap, DotSet, DwFlag, EwFlag, GCounter, GSet, LwwMap,
    LwwRegister, MaxRegister, MinRegister, MvRegister, PnCounter, ResettableCounter, RwMap, RwSet, Tally,
    TwoPhaseSet,
};
use mainstay_consistency::document::Edits;
use mainstay_consistency::laws::network::{Weather, converges, passes_on_news};
use mainstay_consistency::laws::{self, Law, Profile, Replica, Subject};
use mainstay_consistency::replicate::Replicated;
use mainstay_consistency::{DeltaState as _, Join as _};

#[allow(clippy::disallowed_methods, reason = "the switch of long campaigns")]
pub(crate) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn holds<T: Subject>(name: &str) {
    let profile = Profile::batch(number("MAINSTAY_LAWS_SEED", 1), number("MAINSTAY_LAWS_SCHEDULES", 150));
    match laws::check::<T>(profile) {
        Ok(report) => {
            println!(
                "{name}: {} schedules from seed {}, {} changes",
                report.schedules, profile.seed, report.changes
            );
            assert!(report.changes > 0, "{name}: nothing was changed");
        }
        Err(violation) => panic!("{name}: {violation}"),
    }
    let operations = u32::try_from(number("MAINSTAY_LAWS_OPERATIONS", 4)).unwrap();
    match laws::exhaustive::<T>(operations) {
        Ok(report) => {
            println!("{name}: all {} schedules of {operations} operations", report.schedules);
            let kinds = T::alphabet().len() as u64;
            assert_eq!(report.schedules, SHAPES[operations as usize - 1] * kinds.pow(operations), "{name}");
        }
        Err(violation) => panic!("{name}: {violation}"),
    }
}

/// In how many ways three replicas can make one to four changes one after the other, when each first joins whichever of
/// the others knows something new.
const SHAPES: [u64; 4] = [1, 5, 34, 267];

macro_rules! laws_of {
    ($($test:ident: $type:ty),* $(,)?) => {$(
        #[test]
        fn $test() {
            holds::<$type>(stringify!($type));
        }
    )*};
}

laws_of! {
    l1_to_l12_and_l20_of_enable_wins_flags: EwFlag,
    l1_to_l12_and_l20_of_disable_wins_flags: DwFlag,
    l1_to_l12_and_l20_of_multi_value_registers: MvRegister<u64>,
    l1_to_l12_and_l20_of_resettable_counters: ResettableCounter,
    l1_to_l12_and_l20_of_add_wins_sets: AwSet<u64>,
    l1_to_l12_and_l20_of_remove_wins_sets: RwSet<u64>,
    l1_to_l12_and_l20_of_maps_of_registers: AwMap<u64, DotFun<u64>>,
    l1_to_l12_and_l20_of_maps_of_sets: AwMap<u64, DotMap<u64, DotSet>>,
    l1_to_l12_and_l20_of_maps_of_counters: AwMap<u64, DotFun<Tally>>,
    l1_to_l12_and_l20_of_maps_of_wrapped_values: AwMap<u64, DotFun<GCounter>>,
    l1_to_l12_and_l20_of_remove_wins_maps: RwMap<u64, DotMap<u64, DotSet>>,
    l1_to_l12_and_l20_of_lww_maps: LwwMap<u64, u64>,
    l1_to_l12_and_l20_of_documents: Document,
    l1_to_l12_and_l20_of_growing_counters: GCounter,
    l1_to_l12_and_l20_of_pn_counters: PnCounter,
    l1_to_l12_and_l20_of_bounded_counters: BoundedCounter,
    l1_to_l12_and_l20_of_lww_registers: LwwRegister<u64>,
    l1_to_l12_and_l20_of_max_registers: MaxRegister<u64>,
    l1_to_l12_and_l20_of_min_registers: MinRegister<u64>,
    l1_to_l12_and_l20_of_growing_sets: GSet<u64>,
    l1_to_l12_and_l20_of_edits: Edits,
    l1_to_l12_and_l20_of_two_phase_sets: TwoPhaseSet<u64>,
}

/// An add-wins set of sets with more keys than fit without an index.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wide(AwMap<u64, DotMap<u64, DotSet>>);

impl Subject for Wide {
    type Op = (&'static str, u64);

    fn alphabet() -> Vec<Self::Op> {
        let single = |n| [("add", n), ("remove", n)];
        (0..4).flat_map(single).chain([("fill", 0), ("fill", 1), ("clear", 0)]).collect()
    }

    fn apply(&mut self, (what, n): &Self::Op, replica: &mut Replica) -> Option<Self> {
        let at = &mut replica.actor;
        let map = &mut self.0;
        let delta = match *what {
            "add" => map.update(at, *n, |set, mint| set.insert(mint, *n)),
            "remove" => map.remove(at, n),
            "clear" => map.clear(at),
            _ => {
                let mut all = AwMap::new();
                for key in 0..24 {
                    let one = map.update(at, key, |set, mint| set.insert(mint, *n)).ok()?;
                    let _ = all.join(&one).ok()?;
                }
                Ok(all)
            }
        };
        delta.ok().map(Self)
    }

    fn merge(&mut self, other: &Self) -> bool {
        self.0.join(&other.0).is_ok_and(mainstay_consistency::Changed::is_yes)
    }

    fn leq(&self, other: &Self) -> Option<bool> {
        Some(mainstay_consistency::Join::leq(&self.0, &other.0))
    }

    fn missing_at(&self, other: &Self) -> Option<Self> {
        Some(Self(self.0.delta_since(other.0.context())))
    }
}

#[test]
fn l1_to_l12_of_maps_with_an_index() {
    let profile = Profile::batch(number("MAINSTAY_LAWS_SEED", 1), number("MAINSTAY_LAWS_SCHEDULES", 150) / 3);
    laws::check::<Wide>(profile).unwrap_or_else(|violation| panic!("{violation}"));
}

/// Calls a function with every type, and its name.
macro_rules! of_every_type {
    ($call:ident) => {
        $call::<EwFlag>("EwFlag");
        $call::<DwFlag>("DwFlag");
        $call::<MvRegister<u64>>("MvRegister");
        $call::<ResettableCounter>("ResettableCounter");
        $call::<AwSet<u64>>("AwSet");
        $call::<RwSet<u64>>("RwSet");
        $call::<AwMap<u64, DotMap<u64, DotSet>>>("AwMap");
        $call::<RwMap<u64, DotMap<u64, DotSet>>>("RwMap");
        $call::<LwwMap<u64, u64>>("LwwMap");
        $call::<Document>("Document");
        $call::<GCounter>("GCounter");
        $call::<PnCounter>("PnCounter");
        $call::<BoundedCounter>("BoundedCounter");
        $call::<LwwRegister<u64>>("LwwRegister");
        $call::<MaxRegister<u64>>("MaxRegister");
        $call::<MinRegister<u64>>("MinRegister");
        $call::<GSet<u64>>("GSet");
        $call::<TwoPhaseSet<u64>>("TwoPhaseSet");
        $call::<Edits>("Edits");
    };
}

#[test]
fn l11_every_type_converges_in_the_storm() {
    fn one<T: Replicated + Subject>(name: &str) {
        let seed = number("MAINSTAY_LAWS_SEED", 1);
        match converges::<T>(seed..seed + 4, Weather::STORM) {
            Ok(rounds) => println!("{name}: at most {rounds} rounds"),
            Err(violation) => panic!("{name}: {violation}"),
        }
    }
    of_every_type!(one);
}

#[test]
fn l9_l12_every_type_passes_on_what_was_new_and_no_more() {
    fn one<T: Replicated + Subject>(name: &str) {
        let seed = number("MAINSTAY_LAWS_SEED", 1);
        match passes_on_news::<T>(seed..seed + 60) {
            Ok(partly) => println!("{name}: {partly} times only a part was new"),
            Err(violation) => panic!("{name}: {violation}"),
        }
    }
    of_every_type!(one);
    // Of sets much is known in part, so there the check is one.
    let partly = passes_on_news::<AwSet<u64>>(1..61).unwrap();
    assert!(partly > 100, "{partly}: little was partly known, so little was shown");
}

/// A set whose join is silent about what came from a larger one.
#[derive(Clone, Debug, Default, PartialEq)]
struct Careless(std::collections::BTreeSet<u64>);

impl Subject for Careless {
    type Op = u64;

    fn alphabet() -> Vec<u64> {
        vec![1, 2]
    }

    fn apply(&mut self, op: &u64, _: &mut Replica) -> Option<Self> {
        self.0.insert(*op);
        Some(Self([*op].into()))
    }

    fn merge(&mut self, other: &Self) -> bool {
        // Says that nothing changed when the other one is larger.
        let before = self.0.len();
        self.0.extend(&other.0);
        self.0.len() > before && other.0.len() < 2
    }
}

#[test]
fn a_broken_law_is_found_with_the_smallest_schedule() {
    let violation = laws::check::<Careless>(Profile::standard()).unwrap_err();
    assert_eq!(violation.law, Law::L9);
    assert!(violation.schedule.len() <= 3, "{violation}");
    assert!(violation.seed > 0, "{violation}");
    let again = laws::check::<Careless>(Profile::batch(violation.seed, 1)).unwrap_err();
    assert_eq!(again, violation, "a seed replays");
}

#[test]
fn l17_total_orders_are_told_from_others() {
    assert_eq!(laws::total_order(&[3, 1, 2], |a, b| a < b), Ok(()));
    // The textbook's tie-break, which compares what both sides share.
    let textbook = |a: &(u64, &str), b: &(u64, &str)| a.0 <= b.0;
    let found = laws::total_order(&[(1, "x"), (1, "y")], textbook).unwrap_err();
    assert_eq!(found.law, Law::L17);
    assert_eq!(laws::total_order(&[1, 2, 3], |a, b| (b + 3 - a) % 3 == 1).unwrap_err().law, Law::L17);
}
