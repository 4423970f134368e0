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
//! | against | take | guide |
//! |---|---|---|
//! | a dependency that fails or hangs, and callers who wait for it | [`Breaker`] | `docs/breaker.md` |
//! | one slow dependency that takes every thread and socket | [`Bulkhead`] | `docs/bulkhead.md` |
//! | a stumble that passes | [`Retry`] | `docs/retry.md` |
//! | retries that keep an overload alive | [`Budget`] | `docs/budget.md` |
//! | what never ends | deadline and attempt timeout, [`timeout`] | `docs/timeout.md` |
//! | the slowest one call in twenty | [`hedge`] | `docs/hedge.md` |
//! | more than somebody can take | [`limit`] | `docs/limit.md` |
//! | one bad endpoint among good ones | [`outlier`] | `docs/outlier.md` |
//! | no answer at all | [`fallback`] | `docs/fallback.md` |
//! | fifty nodes that find out one by one | [`fleet`] | `docs/fleet.md` |
//! | all of them, put together wrongly | [`Policy`], [`lint`] | `docs/order-and-budgets.md` |
//!
//! Three things are asked of whoever calls:
//!
//! - Say what errors mean: implement [`Classify`], or pass a closure. "Not found" is an answer and not an outage; a
//!   breaker that is told otherwise learns nonsense.
//! - Say what may be repeated: [`idempotent`](policy::PolicyBuilder::idempotent), or a key per call
//!   ([`CallContext::with_key`]). An error is no proof that nothing happened.
//! - Pass the context down: [`Attempt::nest`] to a layer below, [`timeout::wire::headers`] to another machine. It is what
//!   makes one deadline and one budget out of many.
//!
//! ```
//! use std::time::Duration;
//! use mainstay_resilience::{Breaker, CallContext, Classify, Policy, Retry, Verdict};
//!
//! #[derive(Debug, PartialEq)]
//! enum Stock { Unreachable, UnknownArticle }
//!
//! impl Classify for Stock {
//!     fn verdict(&self) -> Verdict {
//!         match self {
//!             Self::Unreachable => Verdict::RETRYABLE,
//!             Self::UnknownArticle => Verdict::Ignore,
//!         }
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let stock = Policy::builder("stock")
//!     .idempotent()
//!     .deadline(Duration::from_secs(2))
//!     .retry(Retry::exponential(Duration::from_millis(1), Duration::from_millis(20)).build().unwrap())
//!     .breaker(&Breaker::builder("stock").build().unwrap())
//!     .attempt_timeout(Duration::from_millis(300))
//!     .build()
//!     .unwrap();
//! let cx = CallContext::new();
//! let pieces = stock.call(&cx, |attempt| async move {
//!     if attempt.number() < 3 { Err(Stock::Unreachable) } else { Ok(17) }
//! });
//! assert_eq!(pieces.await.unwrap(), 17);
//! let unknown = stock.call(&cx, |_| async { Err::<u32, _>(Stock::UnknownArticle) }).await.unwrap_err();
//! assert_eq!((unknown.inner(), unknown.attempts()), (Some(&Stock::UnknownArticle), 1));
//! # });
//! ```
//!
//! Time, randomness and tasks come from a [`Runtime`](mainstay_clock::Runtime), so that the same code runs on a machine
//! and in a simulation. For what plugs in from outside see [`policy::seam`]: limiters, hedge plans and probe gates.
//!
//! Features, all additive: `metrics` (the adapter to that facade), `serde` (policies as TOML), `tower` (policies as
//! layers).

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
mod pad;
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
