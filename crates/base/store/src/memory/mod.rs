//! Every contract in memory. Nothing survives the process.

mod cell;
mod journal;
mod leases;
mod records;
mod replicas;
mod state;

pub use cell::MemoryCell;
pub use journal::MemoryJournal;
pub use leases::MemoryLeaseStore;
pub use records::MemoryRecordStore;
pub use replicas::{MemoryCluster, MemoryNode, Read};
