//! Makes a failing run smaller while it still fails: faults first, then operations, then nodes.

use std::collections::BTreeSet;

use super::Options;
use super::run::Ran;
use crate::history::Event;
use crate::verdict::Verdict;

/// Most runs spent on one failure.
const MAX_RUNS: usize = 300;

fn fails(ran: &Ran) -> bool {
    matches!(ran.verdict, Verdict::Fail(_))
}

/// The smallest failing run found, and its options.
pub(super) fn minimize(options: Options, ran: Ran, run: impl Fn(&Options) -> Ran) -> (Options, Ran) {
    let mut best = (options, ran);
    let mut runs = 0;
    let mut attempt = |best: &mut (Options, Ran), change: &dyn Fn(&mut Options)| {
        if runs >= MAX_RUNS {
            return false;
        }
        runs += 1;
        let mut options = best.0.clone();
        change(&mut options);
        let ran = run(&options);
        let still = fails(&ran);
        if still {
            *best = (options, ran);
        }
        still
    };
    for by_kind in [true, false] {
        for id in fired(&best.1.history, by_kind) {
            attempt(&mut best, &|o| {
                o.without.insert(id.clone());
            });
        }
    }
    while best.0.ops > 1 && attempt(&mut best, &|o| o.ops /= 2) {}
    while best.0.ops > 1 && attempt(&mut best, &|o| o.ops -= 1) {}
    while best.0.nodes > 1 && attempt(&mut best, &|o| o.nodes -= 1) {}
    best
}

/// The faults of a history, by kind or one by one.
fn fired(history: &[Event], by_kind: bool) -> BTreeSet<String> {
    let faults = history.iter().filter_map(|e| match e {
        Event::Fault { fault } if fault.fired => Some(fault),
        _ => None,
    });
    faults.map(|f| if by_kind { f.kind.to_string() } else { f.id.to_string() }).collect()
}
