//! Leases on etcd.
//!
//! - [`EtcdLeases`]: locks and elections on the keys of etcd's own recipes, so that `etcdctl lock`, `etcdctl elect` and
//!   whoever uses Go's concurrency package exclude ours and are excluded; readers, permits and several names besides.
//! - [`EtcdLeases`] keeps records too ([`RecordStore`](mainstay_store::RecordStore)), for schedules, barriers and
//!   latches.
//! - [`fence`]: what refuses a late writer where the data is: a comparison of the owner's key, or of the token.
//!
//! The messages are our own few, compiled in pure Rust: building needs no `protoc`. The page `docs/etcd.md` has the
//! table of what goes wrong and what follows.
//!
//! ```no_run
//! use mainstay_clock::{Deadline, Runtime};
//! use mainstay_coordination::Coordinator;
//! use mainstay_etcd::{EtcdConfig, EtcdLeases};
//! use std::{sync::Arc, time::Duration};
//!
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! let rt = Runtime::system();
//! let store = EtcdLeases::open(EtcdConfig::builder("etcd://127.0.0.1:2379").build()?, &rt).await?;
//! let locks = Coordinator::builder(Arc::new(store), rt).namespace("billing").owner("node-7").build()?;
//! // `etcdctl lock billing/nightly` waits for this one.
//! let guard = locks.mutex("nightly").ttl(Duration::from_secs(10)).build()?.acquire(Deadline::NONE).await?;
//! let token = guard.run(async |fence| fence.token()).await?;
//! assert_eq!(token, guard.token());
//! guard.release().await?;
//! # Ok(()) }
//! ```

#![forbid(unsafe_code)]

mod acquire;
mod config;
mod conn;
mod error;
pub mod fence;
mod hold;
mod hub;
mod keys;
mod line;
mod look;
mod ops;
mod records;
mod state;
mod store;
mod wire;

pub use config::{Builder, EtcdConfig};
pub use mainstay_store::ConfigError;
pub use mainstay_store::lease::Names;
pub use store::{EtcdLeases, LockKey};
