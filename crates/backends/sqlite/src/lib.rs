//! The embedded store: journal, records, cells and the participant barrier in one SQLite file, leases in another.
//!
//! One writer with group commit: whatever is queued goes into one transaction with one sync, and each item
//! is answered for itself. WAL with `synchronous=FULL`, read back on every connection: an answered write
//! survives power loss, as far as the disk honors a sync. Readers have their own connections and never wait
//! for the writer. A sync that fails stops the store; a log that was damaged is refused, not read in part.
//!
//! - [`SqliteStore`]: one engine per file. A [`Journal`](mainstay_store::Journal), and what stands beside it in the file.
//! - [`SqliteLeases`]: a [`LeaseStore`](mainstay_store::LeaseStore) in a file of its own, which the processes of one machine
//!   share.
//!
//! Both need a local disk. The page `docs/operations.md` says how to back the files up and what each failure of a disk
//! leads to.

pub mod barrier;
mod config;
mod desk;
mod error;
mod journal;
mod leases;
mod lockfile;
mod log;
mod open;
mod query;
mod records;
mod schema;
mod store;
mod writer;

pub use config::{Driver, StoreBuilder};
pub use journal::tx;
pub use leases::{LeasesBuilder, SqliteLeases};
pub use store::SqliteStore;
pub use writer::Writes;
