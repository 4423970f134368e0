//! How a barrier is kept.

use std::collections::{BTreeSet, VecDeque};

use mainstay_store::FencingToken;

use super::state::{Barrier, Kind, Outcome};
use crate::record::written;

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Double => "double",
        Kind::Single => "single",
    }
}

/// The record of a barrier.
pub(super) fn encoded(b: &Barrier) -> Vec<u8> {
    let line = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let mut lines = vec![line(&["barrier", kind(b.kind), &b.size.to_string(), &b.generation.to_string()])];
    for (word, members) in [("waits", &b.gathering), ("inside", &b.inside)] {
        lines.extend(members.iter().map(|(id, token)| line(&[word, id, &token.get().to_string()])));
    }
    lines.extend(b.dead.iter().map(|id| line(&["dead", id])));
    for outcome in &b.past {
        let how = if outcome.opened { "opened" } else { "broke" };
        lines.push(line(&["round", &outcome.generation.to_string(), how]));
        let member = |(id, token): &(String, FencingToken)| line(&["member", id, &token.get().to_string()]);
        lines.extend(outcome.members.iter().map(member));
        lines.extend(outcome.dead.iter().map(|id| line(&["lost", id])));
    }
    written(&lines)
}

/// The barrier of a record; none for another recipe's.
pub(super) fn decoded(lines: &[Vec<String>]) -> Option<Barrier> {
    let (head, rest) = lines.split_first()?;
    let [_, used, size, generation] = head.as_slice() else { return None };
    let used = [Kind::Double, Kind::Single].into_iter().find(|k| kind(*k) == used)?;
    let mut barrier = Barrier::new(used, size.parse().ok()?);
    barrier.generation = generation.parse().ok()?;
    let (mut gathering, mut inside) = (Vec::new(), Vec::new());
    let mut past: VecDeque<Outcome> = VecDeque::new();
    for line in rest {
        let words: Vec<&str> = line.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["waits", id, token] => {
                gathering.push(((*id).to_owned(), FencingToken::new(token.parse().ok()?)));
            }
            ["inside", id, token] => {
                inside.push(((*id).to_owned(), FencingToken::new(token.parse().ok()?)));
            }
            ["dead", id] => drop(barrier.dead.insert((*id).to_owned())),
            ["round", generation, how] => past.push_back(Outcome {
                generation: generation.parse().ok()?,
                opened: *how == "opened",
                members: Vec::new(),
                dead: BTreeSet::new(),
            }),
            ["member", id, token] => {
                let token = FencingToken::new(token.parse().ok()?);
                past.back_mut()?.members.push(((*id).to_owned(), token));
            }
            ["lost", id] => drop(past.back_mut()?.dead.insert((*id).to_owned())),
            _ => return None,
        }
    }
    (barrier.gathering, barrier.inside, barrier.past) = (gathering, inside, past);
    (head[0] == "barrier").then_some(barrier)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::read;

    #[test]
    fn what_is_kept_is_read_back() {
        let mut barrier = Barrier::new(Kind::Double, 2);
        let m = |id: &str, token| (id.to_owned(), FencingToken::new(token));
        let same = |barrier: &Barrier| {
            assert_eq!(decoded(&read("k", &encoded(barrier)).unwrap()).unwrap(), *barrier);
        };
        for member in [m("a b", 1), m("c", 2), m("d\n", 3), m("e", 4)] {
            barrier.enter(&member, Kind::Double, 2).unwrap();
            barrier.looked(&barrier.expected(), &[], false);
            same(&barrier);
        }
        barrier.looked(&[], &[m("c", 2), m("d\n", 3)], false);
        same(&barrier);
        barrier.looked(&[], &[m("e", 4)], true);
        same(&barrier);
        assert!(decoded(&[]).is_none());
        assert!(decoded(&[vec!["latch".to_owned(), "1".to_owned(), "2".to_owned()]]).is_none());
    }
}
