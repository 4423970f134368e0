//! Power cuts under a real process: what it wrote but did not sync is dropped, reordered and torn.
//!
//! A [`Recorder`] runs a program with a small preloaded library that notes every operation on the files of one
//! folder, in order: the program, its SQLite and its threads are those that ship, and neither root nor a
//! device is needed. The [`Trace`] is then cut: a [`Disk`] replays it up to any point and hands out an
//! [`Image`] of what a machine may find after the power came back there. Opening images with the shipped code
//! and comparing what was acknowledged with what is found is the test.
//!
//! What may survive of an operation that no sync covered is decided by a [`Loss`] and a seed: writes survive
//! in pieces of a sector and in any order, or as garbage; files keep or lose their length; names appear and
//! vanish with the sync of their folder only. A sync that failed covers nothing, and a later one does not
//! cover what the failed one should have: the kernel has marked those pages clean.
//!
//! Not simulated: damage to bytes that nobody wrote (flip bits of an image for that), disks that lie about a
//! sync (drop the syncs of a trace, see [`Trace::without_syncs`]), and what goes through shared mappings.
//!
//! The library is C, compiled when a test runs, with the compiler that SQLite needs anyway: intercepting calls
//! below another library cannot be written in safe Rust, and no crate offers it with SQLite's shared memory.
//! It is loaded into children of tests only; it calls the kernel directly, under one lock, with fixed buffers,
//! and aborts rather than miss a note.
//!
//! Seen are calls of `open`, `write`, `pwrite`, `ftruncate`, `fsync`, `fdatasync`, `close` and `unlink` of one
//! process; not the buffered files of C, copies of descriptors, and renames, at which the library aborts.
//!
//! ```
//! use mainstay_sim::power::{Disk, Loss, Op, OpKind};
//!
//! let mut disk = Disk::new("/data");
//! let mut apply = |fd, kind| disk.apply(&Op { fd, kind, end: 0 });
//! apply(3, OpKind::Create("/data/log".into()));
//! apply(3, OpKind::Write(0, b"told".to_vec()));
//! assert!(disk.cut(Loss::Everything, 1).files.is_empty(), "nobody synced it");
//! assert_eq!(disk.cut(Loss::Nothing, 1).files.len(), 1, "a killed process loses nothing");
//! ```

mod disk;
mod recorder;
mod trace;

pub use disk::{Disk, Image, Loss};
pub use recorder::{Fault, Recorder};
pub use trace::{Op, OpKind, Trace};
