//! Give-backs that a server did not answer for, to be tried again.
//!
//! One task per server tries, one lease at a time: a server that hangs while others serve thousands of leases is asked
//! for one of them. When it answers, it is asked for all.

use std::collections::VecDeque;
use std::sync::Arc;

use mainstay_clock::Instant;

use crate::ops::Op;

/// Most of one server. More are given back in one ttl only by a process that does little else; the oldest goes then,
/// whose lease ends by itself soonest.
const MOST: usize = 1 << 16;

/// A lease to be given back.
#[derive(Debug)]
pub(super) struct Debt {
    pub(super) op_id: String,
    pub(super) op: Arc<Op>,
    /// From then on the lease has ended there by itself.
    pub(super) until: Instant,
}

/// All of one server.
#[derive(Debug, Default)]
pub(super) struct Debts {
    list: VecDeque<Debt>,
    /// Whether somebody tries.
    tried: bool,
}

impl Debts {
    /// One more; whether the caller must try, because nobody does.
    #[must_use]
    pub(super) fn owe(&mut self, debt: Debt) -> bool {
        self.later(debt);
        !std::mem::replace(&mut self.tried, true)
    }

    /// One that was tried in vain comes after the others: it may be the only one that the server refuses.
    pub(super) fn later(&mut self, debt: Debt) {
        if self.list.len() == MOST {
            self.list.pop_front();
        }
        self.list.push_back(debt);
    }

    /// The one to try next; none ends the trying.
    pub(super) fn next(&mut self, now: Instant) -> Option<Debt> {
        let next = std::iter::from_fn(|| self.list.pop_front()).find(|debt| now < debt.until);
        self.tried = next.is_some();
        next
    }

    /// Who tried is gone with its runtime: the next debt finds another.
    pub(super) fn abandoned(&mut self) {
        self.tried = false;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mainstay_store::lease::Share;

    use super::*;
    use crate::ops::Ops;

    const TTL: Duration = Duration::from_secs(1);

    fn debt(op_id: &str, until: u64) -> Debt {
        let ops = Ops::new(1);
        assert!(ops.asked(op_id, &Arc::from([]), TTL, Share::Exclusive, Instant::ZERO).is_some());
        let op = Arc::new(ops.get(op_id).unwrap());
        Debt { op_id: op_id.to_owned(), op, until: Instant::from_nanos(until) }
    }

    #[test]
    fn one_tries_for_all_and_what_is_over_is_not_tried() {
        let mut debts = Debts::default();
        let next = |debts: &mut Debts, now| debts.next(Instant::from_nanos(now)).map(|d| d.op_id);
        assert!(debts.owe(debt("a", 10)));
        assert!(!debts.owe(debt("b", 30)), "somebody tries already");
        assert!(!debts.owe(debt("c", 20)));
        let first = debts.next(Instant::from_nanos(9)).unwrap();
        assert_eq!(first.op_id, "a");
        debts.later(first);
        assert_eq!(next(&mut debts, 10).as_deref(), Some("b"));
        assert_eq!(next(&mut debts, 20), None, "both are over");
        assert!(debts.owe(debt("d", 40)), "nobody tries any more");
        debts.abandoned();
        assert!(debts.owe(debt("e", 40)));
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let mut debts = Debts::default();
        let op = debt("x", 1).op;
        for n in 0..=MOST {
            let debt = Debt { op_id: n.to_string(), op: Arc::clone(&op), until: Instant::from_nanos(1) };
            let _ = debts.owe(debt);
        }
        assert_eq!(debts.list.len(), MOST);
        assert_eq!(debts.next(Instant::ZERO).unwrap().op_id, "1");
    }
}
