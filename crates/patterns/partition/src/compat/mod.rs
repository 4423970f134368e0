//! Profiles that answer bit by bit like other systems.

mod redis;

pub use redis::redis_slot;
