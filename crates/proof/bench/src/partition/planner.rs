//! The planner: 16,384 slots, from a few nodes to a thousand and more.

use mainstay_partition::slots::{Planner, SlotMap};
use mainstay_partition::{Node, Spread};

use super::measure::millis;
use crate::report::Section;

fn fleet(n: usize, zones: usize) -> Vec<Node> {
    (0..n).map(|i| Node::new(super::name(i)).zone(format!("zone-{:03}", i % zones))).collect()
}

/// A change of the fleet.
struct Case {
    what: &'static str,
    rf: usize,
    zones: usize,
    from: usize,
    to: usize,
}

const fn case(what: &'static str, rf: usize, zones: usize, from: usize, to: usize) -> Case {
    Case { what, rf, zones, from, to }
}

const CASES: &[Case] = &[
    case("3 to 7 masters, rf 1", 1, 1, 3, 7),
    case("1,000 nodes from nothing, rf 3, 3 zones", 3, 3, 0, 1000),
    case("1,000 nodes get one more, rf 1", 1, 1, 1000, 1001),
    case("1,000 nodes get one more, rf 3, 3 zones", 3, 3, 1000, 1001),
    case("1,000 nodes get 100 more, rf 3, 5 zones", 3, 5, 1000, 1100),
    case("1,000 nodes lose 100, rf 3, 5 zones", 3, 5, 1000, 900),
    case("12 to 15 nodes, rf 3, 3 zones", 3, 3, 12, 15),
];

/// What redis-cli 7.0 moved for the first case: 9364 slots, empty ones in 64.6 s (facts, measured).
const GATE_MS: f64 = 100.0;

pub(super) fn run(smoke: bool, section: &mut Section) {
    let cases = if smoke { &CASES[..1] } else { CASES };
    let mut rows = Vec::new();
    let (mut slowest, mut proven) = (0.0_f64, true);
    for case in cases {
        let zones = if case.zones > 1 { Spread::Hard { min: case.rf } } else { Spread::Any };
        let solve = |map: &SlotMap, n: usize| {
            let planner = Planner::new(map).target(fleet(n, case.zones)).rf(case.rf).zones(zones);
            planner.solve().expect("a fleet that can hold everything")
        };
        let empty = SlotMap::builder(0).build().expect("an empty map");
        let base = if case.from == 0 { empty } else { solve(&empty, case.from).next().clone() };
        let plan = solve(&base, case.to);
        let ms = millis(|| solve(&base, case.to));
        slowest = slowest.max(ms);
        proven &= plan.is_minimal();
        rows.push(vec![
            case.what.to_owned(),
            format!("{ms:.1}"),
            plan.moves().len().to_string(),
            plan.lower_bound().to_string(),
            plan.certified_bound().to_string(),
            format!("{} ({})", plan.waves(), plan.fewest_waves()),
        ]);
    }
    section.table(
        &["plan over 16,384 slots", "ms", "moves", "lower bound", "certified", "waves (fewest)"],
        &rows,
    );
    section.gate("planner", "every plan below 100 ms", format!("{slowest:.1} ms"), slowest < GATE_MS);
    section.gate("planner moves", "as many as are proven necessary", proven.to_string(), proven);
}
