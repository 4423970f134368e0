//! The contracts that patterns stand on and backends implement.
//!
//! - [`LeaseStore`]: named leases with fencing tokens.
//! - [`RecordStore`]: small versioned records with compare-and-set.
//! - [`DurableCell`]: one small value that must survive a crash.
//! - [`Journal`]: the saga log, with claims, an inbox and an event stream.
//! - [`ReplicatedStore`]: positions for read-your-writes sessions.
//!
//! Every trait is object-safe, and every error answers two questions: may I retry, and did it happen
//! ([`Outcome`])? The rules that are data live here as pure code: [`FencingToken`], the [`barrier`] of
//! participants. Execution lives where the driver is, in the backend crates; a plain file has none, so `FencedFile`
//! lives here. [`memory`] implements every
//! contract in memory; nothing there survives the process.

pub mod address;
pub mod barrier;
mod cell;
mod error;
#[cfg(unix)]
mod fenced_file;
pub mod journal;
pub mod lease;
pub mod memory;
mod records;
pub mod replicated;
mod token;

use std::future::Future;
use std::pin::Pin;

pub use cell::DurableCell;
pub use error::{Answered, ConfigError, Error, ErrorKind, Outcome};
#[cfg(unix)]
pub use fenced_file::FencedFile;
pub use journal::Journal;
pub use lease::LeaseStore;
pub use records::{PutIf, RecordStore, VersionedRecord};
pub use replicated::ReplicatedStore;
pub use token::{FenceCheck, FencingToken};

/// A boxed future of an object-safe contract.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The result of a store call.
pub type Result<T> = std::result::Result<T, Error>;
