//! Anti-entropy.
pub use crate::hash::DigestKey;
