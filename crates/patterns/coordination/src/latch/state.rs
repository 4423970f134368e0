//! Counting ids until there are enough. No I/O.

use std::collections::BTreeSet;

/// What a latch has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) generation: u64,
    pub(super) size: u32,
    pub(super) ids: BTreeSet<String>,
}

/// Why a step is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The others count to this.
    Size(u32),
    /// It is still closed.
    Closed,
    /// It was armed again meanwhile: this is its generation.
    Generation(u64),
}

impl Count {
    pub(super) fn new(size: u32) -> Self {
        Self { generation: 1, size, ids: BTreeSet::new() }
    }

    pub(super) fn is_open(&self) -> bool {
        self.ids.len() >= self.size as usize
    }

    fn check(&self, size: u32) -> Result<(), Refused> {
        if self.size == size { Ok(()) } else { Err(Refused::Size(self.size)) }
    }

    /// Counts `id` in `generation`, once; whether that changed anything. What comes after that opened is not counted.
    pub(super) fn count_down(&mut self, id: &str, generation: u64, size: u32) -> Result<bool, Refused> {
        self.check(size)?;
        Ok(!self.opened(generation) && self.ids.insert(id.to_owned()))
    }

    /// Closes an open latch of `generation`; whether that changed anything.
    pub(super) fn rearm(&mut self, generation: u64, size: u32) -> Result<bool, Refused> {
        self.check(size)?;
        if self.generation == generation.saturating_add(1) {
            return Ok(false);
        }
        if self.generation != generation {
            return Err(Refused::Generation(self.generation));
        }
        if !self.is_open() {
            return Err(Refused::Closed);
        }
        self.generation += 1;
        self.ids.clear();
        Ok(true)
    }

    /// Whether it opened for those who wait in `generation`: only an open latch is armed again.
    pub(super) fn opened(&self, generation: u64) -> bool {
        self.generation > generation || (self.generation == generation && self.is_open())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_count_down_counts_once() {
        let mut count = Count::new(2);
        assert_eq!(count.count_down("a", 1, 2), Ok(true));
        assert_eq!(count.count_down("a", 1, 2), Ok(false));
        assert!(!count.is_open());
        assert_eq!(count.count_down("b", 1, 2), Ok(true));
        assert!(count.is_open());
        assert_eq!(count.count_down("c", 1, 2), Ok(false), "it opened without it");
        assert_eq!(count.ids.len(), 2);
    }

    #[test]
    fn it_opens_once_and_arming_again_is_another_generation() {
        let mut count = Count::new(1);
        assert_eq!(count.rearm(1, 1), Err(Refused::Closed));
        assert!(!count.opened(1));
        count.count_down("a", 1, 1).unwrap();
        assert!(count.opened(1));
        assert_eq!(count.rearm(1, 1), Ok(true));
        assert_eq!(count.rearm(1, 1), Ok(false), "repeated after a lost answer");
        assert!(count.opened(1) && !count.opened(2), "who waits in the old one is not held up");
        assert_eq!(count.rearm(7, 1), Err(Refused::Generation(2)));
        assert_eq!(count.count_down("b", 1, 1), Ok(false), "repeated after a lost answer");
        assert!(!count.opened(2), "it is of the generation before");
        count.count_down("a", 2, 1).unwrap();
        assert!(count.opened(2), "the same id counts anew");
    }

    #[test]
    fn who_counts_to_something_else_is_told() {
        let mut count = Count::new(3);
        assert_eq!(count.count_down("a", 1, 2), Err(Refused::Size(3)));
        assert_eq!(count.rearm(1, 2), Err(Refused::Size(3)));
    }
}
