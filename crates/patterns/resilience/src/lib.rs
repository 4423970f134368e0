//! Retry with budget, breaker, bulkhead, timeout and deadline, composed by one [`Policy`] in the one right
//! order.
//!
//! ```text
//! fallback > deadline > rate/adaptive limit > bulkhead + queue > retry (+ budget) > hedge > send rate
//!          > attempt bulkhead > breaker > attempt timeout > operation
//! ```
//!
//! Every part also stands alone. All of them are `Clone` (a clone is the same object), `Send`, `Sync` and
//! named; a refusal is data ([`Rejected`]); a dropped call gives everything back.
//!
//! For what plugs in from outside see [`policy::seam`]: limiters and hedge plans.

pub mod breaker;
pub mod budget;
pub mod bulkhead;
#[cfg(feature = "serde")]
pub mod config;
mod context;
mod error;
mod event;
pub mod fallback;
pub mod fleet;
pub mod hedge;
pub mod limit;
pub mod lint;
#[cfg(feature = "metrics")]
pub mod metrics;
mod outcome;
pub mod outlier;
pub mod policy;
pub mod retry;
mod shard;
mod streak;
mod sync;
pub mod timeout;
#[cfg(feature = "tower")]
pub mod tower;
mod window;

pub use breaker::Breaker;
pub use budget::Budget;
pub use bulkhead::Bulkhead;
pub use context::{CallContext, Priority};
pub use error::{CallError, ConfigError, GaveUp, Reason, Rejected, Stop, Timeout, TimeoutKind};
pub use event::{Event, Kind, Listener, Outcome, Source};
pub use outcome::{Classify, Verdict};
pub use policy::{Attempt, Policy};
pub use retry::Retry;
