//! Those who wait for a permit: first in, first out within a class, more important classes first.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use mainstay_clock::Instant;

use crate::Priority;
use crate::sync::Mutex;

/// Where a waiter stands.
#[derive(Debug)]
pub(crate) enum Place {
    Cancelled,
    Granted { parity: u8 },
    Waiting { waker: Waker },
}

/// One that waits.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) place: Mutex<Place>,
    pub(crate) since: Instant,
}

impl Waiter {
    /// Hands over a permit; the waker to wake, or `None` if it does not wait any more.
    pub(crate) fn grant(&self, parity: u8) -> Option<Waker> {
        let mut place = self.place.lock();
        match &*place {
            Place::Waiting { .. } => match std::mem::replace(&mut *place, Place::Granted { parity }) {
                Place::Waiting { waker } => Some(waker),
                Place::Cancelled | Place::Granted { .. } => None,
            },
            Place::Cancelled | Place::Granted { .. } => None,
        }
    }
}

/// A cancelled waiter is only marked; so many marks more than waiters may stand before they are swept, which
/// makes cancelling cheap however long the queue is.
const SLACK: usize = 16;

/// All classes.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    classes: [VecDeque<Arc<Waiter>>; Priority::CLASSES],
}

impl Queue {
    pub(crate) fn push(&mut self, priority: Priority, waiter: Arc<Waiter>, live: u32) {
        let marks = self.classes.iter().map(VecDeque::len).sum::<usize>();
        if marks > 2 * live as usize + SLACK {
            for class in &mut self.classes {
                class.retain(|w| !matches!(*w.place.lock(), Place::Cancelled));
            }
        }
        self.classes[priority.index()].push_back(waiter);
    }

    /// Grants a permit to the first in line.
    pub(crate) fn grant(&mut self, parity: u8) -> Option<Waker> {
        let class = self.classes.iter_mut().rev();
        class.flat_map(|class| std::iter::from_fn(|| class.pop_front())).find_map(|w| w.grant(parity))
    }

    /// Since when the one who waits longest waits.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        let waiting = |w: &&Arc<Waiter>| matches!(*w.place.lock(), Place::Waiting { .. });
        self.classes.iter().filter_map(|class| class.iter().find(waiting)).map(|w| w.since).min()
    }
}
