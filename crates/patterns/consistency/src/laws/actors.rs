//! L13: who makes changes is nobody who made some before.

use std::collections::BTreeMap;

use mainstay_clock::{Rng, SeededRng};

use crate::ActorId;
use crate::laws::{Law, Violation};

/// What happened to the disk of a node before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disk {
    /// It is as the node left it when it crashed; before the first start it is empty.
    Kept,
    /// It is empty, and stays in use.
    Lost,
    /// It is as it was before an earlier start, and stays in use: a restored backup.
    RolledBack,
    /// This start is on a copy of it, beside the node that goes on with the original.
    Cloned,
}

/// Checks L13 of what gives a node its identity: no start repeats an actor, whatever happened to the disk. `start` does
/// to the disk what it is told, and then all that a start of the node does up to its actor. An actor counts its changes
/// from one, so one that two starts share makes two changes that others take for one.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::SystemRng;
/// use mainstay_consistency::identity::Identity;
/// use mainstay_consistency::laws::{self, Disk};
/// use mainstay_store::{DurableCell as _, memory::MemoryCell};
///
/// let rt = tokio::runtime::Builder::new_current_thread().build()?;
/// let (mut disk, mut backup, rng) = (MemoryCell::new(), None, Arc::new(SystemRng::new()));
/// laws::actors(1, 100, |what| rt.block_on(async {
///     let here = MemoryCell::new();
///     let bytes = match what {
///         Disk::Lost => None,
///         Disk::RolledBack => backup.clone(),
///         _ => disk.load().await.unwrap(),
///     };
///     if let Some(bytes) = bytes {
///         here.store_synced(bytes).await.unwrap();
///     }
///     if what != Disk::Cloned {
///         (disk, backup) = (here.clone(), backup.take().or(here.load().await.unwrap()));
///     }
///     Identity::open(Arc::new(here), rng.clone()).await.unwrap().actor().id()
/// }))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The first actor of two starts, with what happened to the disk from one to the other.
pub fn actors(seed: u64, starts: usize, mut start: impl FnMut(Disk) -> ActorId) -> Result<(), Violation> {
    let rng = SeededRng::new(seed);
    let (mut seen, mut all) = (BTreeMap::new(), Vec::new());
    for index in 0..starts {
        let disk = match rng.below(8) {
            _ if index == 0 => Disk::Kept,
            0 => Disk::Lost,
            1 | 2 => Disk::RolledBack,
            3 => Disk::Cloned,
            _ => Disk::Kept,
        };
        let actor = start(disk);
        all.push(format!("start {index}: {disk:?}"));
        if let Some(first) = seen.insert(actor, index) {
            let detail = format!("starts {first} and {index} both make changes as {actor}");
            return Err(Violation {
                seed,
                schedule: all.split_off(first),
                ..Violation::of(Law::L13, detail)
            });
        }
    }
    Ok(())
}
