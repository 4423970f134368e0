//! Sessions: your write is there, or we say that it is lost.
//!
//! A write has a position in its store's log; a [`SessionToken`] carries the positions of one user; a [`Router`] reads
//! from a replica that is *judged* to contain them, waits for one within a limit, or reads from the primary. The
//! judgment is a [`Verdict`], never a bool: a failover that lost the write is an error before anything is read.
//!
//! - [`Router`]: samples of every node, taken by a poller, so that reads cost no round trip.
//! - [`Session`]: the four [`Guarantees`] of one user; [`Consistency`] for single reads.
//! - `TokenKeys` (feature `tokens`): seal and open tokens; what cannot be opened means the primary.
//! - [`SessionConsistency`]: two calls, `write` and `read`, that take and give a token.
//! - `carrier` (feature `tower`): tokens in headers and cookies.
//! - `headers` (feature `tokens`): tokens in the metadata of gRPC calls and of messages.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use mainstay_clock::SystemClock;
//! use mainstay_consistency::session::Router;
//! use mainstay_store::memory::{MemoryCluster, MemoryNode};
//! use mainstay_store::Error;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let clock = Arc::new(SystemClock::new());
//! let cluster = MemoryCluster::new(clock.clone(), "orders", 1);
//! cluster.set_lag(1, Duration::from_secs(3600))?;
//! let router = Router::builder("orders", clock)
//!     .shared("a", cluster.node(0)?)
//!     .shared("b", cluster.node(1)?)
//!     .max_wait(Duration::from_millis(1))
//!     .build()?;
//! router.poll_once().await;
//!
//! let mut session = router.session();
//! session.write(async |node: &mut MemoryNode| node.write("k", b"v").await).await?;
//! let read = session.read(async |node: &mut MemoryNode| Ok::<_, Error>(node.read("k").value)).await?;
//! assert_eq!(read.as_deref(), Some(&b"v"[..]), "the replica is an hour behind; the session is not");
//!
//! cluster.fail_over(1)?; // what the replica had not seen is gone
//! router.poll_once().await;
//! let lost = session.read(async |node: &mut MemoryNode| Ok::<_, Error>(node.read("k").value)).await;
//! assert!(lost.unwrap_err().is_lost());
//! # Ok::<(), Box<dyn std::error::Error>>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod call;
#[cfg(feature = "tower")]
pub mod carrier;
mod config;
mod handle;
#[cfg(feature = "tokens")]
pub mod headers;
mod leader;
mod router;
#[cfg(feature = "tokens")]
mod seal;
mod simple;
mod state;
mod token;

pub use call::CallError;
pub use config::{Consistency, Guarantees, RouterBuilder, SessionEvent};
pub use handle::{Plan, Session};
pub use router::{NodeStatus, Poller, Router};
#[cfg(feature = "tokens")]
pub use seal::{TokenKeys, TokenKeysBuilder, Unopened};
pub use simple::SessionConsistency;
pub use state::{Verdict, Why, verdict};
pub use token::{MAX_POSITIONS, MAX_TEXT, Refusal, SessionToken};
