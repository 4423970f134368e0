//! What most programs name: `use mainstay::prelude::*;`
//!
//! The handles that one builds, the context that travels, the traits one implements or needs in scope. Not in it:
//! errors, settings and everything whose name means something else in another module (`Error`, `Outcome`,
//! `State`); take those from their modules.
//!
//! ```
//! use std::time::Duration;
//! use mainstay::prelude::*;
//!
//! #[derive(Debug)]
//! struct Unreachable;
//!
//! impl Classify for Unreachable {
//!     fn verdict(&self) -> Verdict {
//!         Verdict::RETRYABLE
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! let policy = Policy::builder("greetings")
//!     .idempotent()
//!     .deadline(Duration::from_secs(2))
//!     .retry(Retry::exponential(Duration::from_millis(1), Duration::from_millis(10)).build()?)
//!     .breaker(&Breaker::builder("greetings").build()?)
//!     .attempt_timeout(Duration::from_millis(300))
//!     .build()?;
//! let greeting = policy
//!     .call(&CallContext::new(), |attempt| async move {
//!         if attempt.number() == 1 { Err(Unreachable) } else { Ok("hello") }
//!     })
//!     .await;
//! assert_eq!(greeting.ok(), Some("hello"));
//! # Ok(()) })
//! # }
//! ```

pub use crate::clock::{Clock, Deadline, Runtime};
pub use crate::partition::{Place, Rendezvous, Ring};
pub use crate::resilience::{
    Attempt, Breaker, Budget, Bulkhead, CallContext, CallError, Classify, Policy, Priority, Retry, Verdict,
};
pub use crate::saga::{Engine, Saga, StepCx, StepError, Told, UndoError};
pub use crate::store::{DurableCell, FencingToken, Journal, LeaseStore, RecordStore, ReplicatedStore};
