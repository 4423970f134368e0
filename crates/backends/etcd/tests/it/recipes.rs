//! x
use crate::world::Test;
pub(crate) const TESTS: &[Test] = &[];
