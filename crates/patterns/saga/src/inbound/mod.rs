//! The participant's side of the protocol (feature `tower`), over `http` types, for any server.
//!
//! [`InboundLayer`] reads a request of a saga engine within bounds, checks its signature, and hands the inner
//! service a [`Call`] among the request's extensions. [`Steps`] is an inner service that does the rest: it gives
//! the call to an [`Executor`], which runs [`barrier::perform`](mainstay_store::barrier::perform) inside one
//! transaction of the participant's own database, and answers what came of it: the stored reply of a duplicate,
//! 409 for an action that comes after its undo, success for an undo that came first, 412 for a stale fencing token.
//!
//! Guaranteed, as far as the executor's transaction is one and is committed before the answer: a step takes
//! effect once per key, whatever is delivered how often and in which order. Not guaranteed: anything about work
//! outside that transaction.
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::sync::{Arc, Mutex};
//! use http_body_util::Full;
//! use mainstay_saga::inbound::{Call, ExecuteError, Executor, InboundLayer, Steps, done};
//! use mainstay_store::BoxFuture;
//! use mainstay_store::barrier::{MemoryRows, Performed, perform};
//! use tower::{Layer as _, ServiceExt as _};
//!
//! /// State in memory: rows by (saga, step).
//! #[derive(Debug, Default)]
//! struct InMemory(Mutex<BTreeMap<(String, String), MemoryRows>>);
//!
//! impl Executor for InMemory {
//!     fn execute(&self, call: Call) -> BoxFuture<'_, Result<Performed, ExecuteError>> {
//!         Box::pin(async move {
//!             let mut all = self.0.lock().map_err(|_| "poisoned")?;
//!             let rows = all.entry((call.saga.clone(), call.step.clone())).or_default();
//!             perform(rows, &call.op, call.fencing_token, |_| Ok(done(&call.input)))
//!         })
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let service = InboundLayer::unsigned().layer(Steps::new(Arc::new(InMemory::default())));
//! let request = http::Request::post("/charge")
//!     .header("idempotency-key", "\"saga-1/charge/action\"")
//!     .header("fencing-token", "1")
//!     .body(Full::<bytes::Bytes>::from("{\"cents\":700}"))
//!     .unwrap();
//! assert_eq!(service.oneshot(request).await.unwrap().status(), 200);
//! # });
//! ```

mod answer;
mod call;
mod layer;
mod steps;

pub use answer::{answer, done, no};
pub use call::{BadCall, Call};
pub use layer::{Inbound, InboundFuture, InboundLayer};
pub use steps::{ExecuteError, Executor, Steps, StepsFuture};
