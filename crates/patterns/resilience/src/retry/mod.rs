//! When to try again, and after how long.

/// A retry setting.
#[derive(Clone, Debug)]
pub struct Retry(());
