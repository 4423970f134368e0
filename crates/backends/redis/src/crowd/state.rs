//! Who of the callers goes alone, who waits, and who goes together: calls go in, decisions come out.

use std::collections::VecDeque;

use mainstay_clock::Instant;

/// So many callers at once go alone, each by the way that is fastest for one.
const ALONE: usize = 4;
/// Callers of one batch. A script holds up everybody else while it runs: this many take about 0.2 ms.
pub(super) const MOST: usize = 32;
/// Batches on their way at once: one at the server, one in each direction. More would only be smaller.
const CARRIERS: usize = 3;

/// What a caller wants. Each kind has a script of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Acquire,
    Release,
}

/// How a caller goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    Alone,
    /// It waits under this number, and a carrier must be started for it.
    First(u64),
    /// It waits under this number.
    Waits(u64),
}

/// One that waits.
#[derive(Debug)]
struct Place<T> {
    number: u64,
    until: Instant,
    caller: T,
}

/// All callers of one server.
///
/// Nobody is in the queue unless a carrier runs that will come for it. The queue is as long as there are
/// callers that wait, each with a future of its own and for as long as one answer may take.
#[derive(Debug)]
pub(super) struct Line<T> {
    alone: usize,
    carried: usize,
    carriers: usize,
    next: u64,
    acquires: VecDeque<Place<T>>,
    releases: VecDeque<Place<T>>,
}

impl<T> Line<T> {
    pub(super) fn new() -> Self {
        let (acquires, releases) = (VecDeque::new(), VecDeque::new());
        Self { alone: 0, carried: 0, carriers: 0, next: 0, acquires, releases }
    }

    fn queue(&mut self, kind: Kind) -> &mut VecDeque<Place<T>> {
        match kind {
            Kind::Acquire => &mut self.acquires,
            Kind::Release => &mut self.releases,
        }
    }

    /// A caller comes. It waits only behind others, so that nobody overtakes.
    pub(super) fn enter(&mut self, kind: Kind, caller: impl FnOnce() -> (Instant, T)) -> Entered {
        if self.alone + self.carried + self.acquires.len() + self.releases.len() < ALONE {
            self.alone += 1;
            return Entered::Alone;
        }
        let number = self.next;
        self.next += 1;
        let (until, caller) = caller();
        self.queue(kind).push_back(Place { number, until, caller });
        if self.carriers == CARRIERS {
            return Entered::Waits(number);
        }
        self.carriers += 1;
        Entered::First(number)
    }

    /// One that went alone is done.
    pub(super) fn returned(&mut self) {
        self.alone -= 1;
    }

    /// One that waits goes away; none when it is on its way already.
    pub(super) fn leave(&mut self, kind: Kind, number: u64) -> Option<T> {
        let queue = self.queue(kind);
        let at = queue.binary_search_by_key(&number, |p| p.number).ok()?;
        queue.remove(at).map(|p| p.caller)
    }

    /// The next batch of a carrier: those of one kind that wait longest, in their order. None ends the carrier.
    pub(super) fn take(&mut self) -> Option<(Kind, Vec<T>)> {
        let head = |queue: &VecDeque<Place<T>>| queue.front().map(|p| p.number);
        let kind = match (head(&self.acquires), head(&self.releases)) {
            (None, None) => {
                self.carriers -= 1;
                return None;
            }
            (Some(a), Some(r)) if a < r => Kind::Acquire,
            (Some(_), None) => Kind::Acquire,
            (_, Some(_)) => Kind::Release,
        };
        let queue = self.queue(kind);
        let count = queue.len().min(MOST);
        let batch: Vec<T> = queue.drain(..count).map(|p| p.caller).collect();
        self.carried += count;
        Some((kind, batch))
    }

    /// A batch of this many came back.
    pub(super) fn delivered(&mut self, count: usize) {
        self.carried -= count;
    }

    /// A carrier was torn off its work, with a batch of this many. The last one leaves nobody behind.
    pub(super) fn lost(&mut self, count: usize) -> Vec<T> {
        self.carried -= count;
        self.carriers -= 1;
        if self.carriers > 0 {
            return Vec::new();
        }
        self.acquires.drain(..).chain(self.releases.drain(..)).map(|p| p.caller).collect()
    }

    /// Those whose time is up before they were sent.
    pub(super) fn over(&mut self, now: Instant) -> Vec<T> {
        let mut over = Vec::new();
        for kind in [Kind::Acquire, Kind::Release] {
            let queue = self.queue(kind);
            while queue.front().is_some_and(|p| p.until <= now) {
                over.extend(queue.pop_front().map(|p| p.caller));
            }
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::Kind::{Acquire, Release};
    use super::*;
    use std::time::Duration;

    fn at(ms: u64) -> Instant {
        Instant::ZERO.saturating_add(Duration::from_millis(ms))
    }

    /// A line in which these wait behind four that went alone; each is its own number, and its time.
    fn line(kinds: &[Kind]) -> Line<usize> {
        let mut line = Line::new();
        for _ in 0..ALONE {
            assert_eq!(line.enter(Acquire, || unreachable!("it goes alone")), Entered::Alone);
        }
        for (n, kind) in kinds.iter().enumerate() {
            let number = n as u64;
            let expected = if n < CARRIERS { Entered::First(number) } else { Entered::Waits(number) };
            assert_eq!(line.enter(*kind, || (at(number), n)), expected);
        }
        line
    }

    #[test]
    fn four_go_alone_and_nobody_overtakes_who_waits() {
        let mut line = line(&[Acquire]);
        line.returned();
        assert_eq!(line.enter(Release, || (at(1), 1)), Entered::First(1), "three alone, but one waits");
        assert_eq!(line.take(), Some((Acquire, vec![0])));
        for _ in 0..3 {
            line.returned();
        }
        assert_eq!(line.enter(Release, || (at(2), 2)), Entered::Alone, "one on its way, one waits");
        assert_eq!(line.enter(Release, || (at(2), 2)), Entered::Alone);
        assert_eq!(line.enter(Release, || (at(2), 2)), Entered::First(2));
    }

    #[test]
    fn a_batch_is_of_one_kind_and_takes_those_who_wait_longest() {
        let mut line = line(&[Release, Acquire, Release, Acquire]);
        assert_eq!(line.take(), Some((Release, vec![0, 2])));
        assert_eq!(line.take(), Some((Acquire, vec![1, 3])));
        assert_eq!(line.take(), None);
        line.delivered(2);
        line.delivered(2);
        // The carrier that found nothing is gone, so another may start.
        assert_eq!(line.enter(Acquire, || (at(9), 9)), Entered::First(4));
    }

    #[test]
    fn a_batch_has_its_limit() {
        let mut line = line(&[Acquire; MOST + 3]);
        assert_eq!(line.take(), Some((Acquire, (0..MOST).collect())));
        assert_eq!(line.take(), Some((Acquire, (MOST..MOST + 3).collect())));
    }

    #[test]
    fn who_leaves_the_queue_is_not_taken_and_who_is_taken_cannot_leave() {
        let mut line = line(&[Acquire, Acquire, Acquire]);
        assert_eq!(line.leave(Acquire, 1), Some(1));
        assert_eq!(line.leave(Acquire, 1), None);
        assert_eq!(line.leave(Release, 0), None, "of the other kind");
        assert_eq!(line.take(), Some((Acquire, vec![0, 2])));
        assert_eq!(line.leave(Acquire, 2), None);
    }

    #[test]
    fn whose_time_is_up_is_found_in_both_queues() {
        let mut line = line(&[Release, Acquire, Acquire, Release]);
        assert_eq!(line.over(at(1)), [1, 0]);
        assert_eq!(line.over(at(9)), [2, 3]);
        assert_eq!(line.take(), None);
    }

    #[test]
    fn the_last_carrier_that_is_torn_off_leaves_nobody_behind() {
        let mut line = line(&[Acquire, Acquire, Release]);
        let taken = line.take().map_or(0, |(_, batch)| batch.len());
        assert_eq!(line.lost(taken), [] as [usize; 0], "two others run");
        assert_eq!(line.lost(0), [] as [usize; 0]);
        assert_eq!(line.lost(0), [2]);
        assert_eq!(line.enter(Acquire, || (at(9), 9)), Entered::First(3));
    }
}
