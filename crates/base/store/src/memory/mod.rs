//! The journal in memory. Nothing survives the process.

mod journal;
mod state;

pub use journal::MemoryJournal;
