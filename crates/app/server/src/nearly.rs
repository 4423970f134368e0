//! What of a node is nearly used up: told once each time that it is, and counted.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::Runtime;
use tokio_util::sync::CancellationToken;

/// Tenths of a bound from which on it is nearly used up: early enough to do something about it.
const NEARLY: u64 = 8;
/// Tenths below which there is room again: what goes up and down around the bound is told once.
const ROOM: u64 = 7;
/// Between two looks at the disk: one that is filled in less is filled before anybody could come.
const LOOK: Duration = Duration::from_secs(30);

/// Something of which there is only so much.
#[derive(Debug, Default)]
pub(crate) struct Nearly {
    is_told: AtomicBool,
    times: AtomicU64,
}

impl Nearly {
    /// So much of it is used. Whether that is to be told now.
    pub(crate) fn passes(&self, used: u64, most: u64) -> bool {
        let tenths = used.saturating_mul(10);
        if tenths < most.saturating_mul(ROOM) {
            self.is_told.store(false, Ordering::Relaxed);
            return false;
        }
        let tells = tenths >= most.saturating_mul(NEARLY) && !self.is_told.swap(true, Ordering::Relaxed);
        self.times.fetch_add(u64::from(tells), Ordering::Relaxed);
        tells
    }

    /// How often it was told.
    pub(crate) fn times(&self) -> u64 {
        self.times.load(Ordering::Relaxed)
    }
}

/// What a node is watched for beside what its engine watches.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// The disk of the data folder.
    pub(crate) disk: Nearly,
    /// Requests in flight.
    pub(crate) requests: Nearly,
    free: AtomicU64,
    size: AtomicU64,
}

impl Watched {
    /// Bytes of the disk that are free for this process, and those that it could ever have; nothing before the first look.
    pub(crate) fn space(&self) -> Option<(u64, u64)> {
        let (free, size) = (self.free.load(Ordering::Relaxed), self.size.load(Ordering::Relaxed));
        (size > 0).then_some((free, size))
    }

    /// Looks at the disk of `folder` again and again until the node stops.
    pub(crate) async fn watch(&self, folder: &Path, rt: &Runtime, drain: &CancellationToken) {
        loop {
            let looked = folder.to_owned();
            // A disk that hangs must hold up neither a thread that requests need nor the end.
            let look = tokio::task::spawn_blocking(move || space_of(&looked));
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                there = look => match there {
                    Ok(Ok((free, size))) => self.has(free, size),
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "the free space of the data folder is not known");
                    }
                    // The process ends.
                    Err(_) => return,
                },
            }
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                () = rt.clock().sleep(LOOK) => {}
            }
        }
    }

    fn has(&self, free: u64, size: u64) {
        self.free.store(free, Ordering::Relaxed);
        self.size.store(size, Ordering::Relaxed);
        if self.disk.passes(size.saturating_sub(free), size) {
            tracing::warn!(
                free,
                size,
                "the disk of the data folder is used to 80 %; when it is full, nothing is driven"
            );
        }
    }
}

/// Free bytes and all bytes of the file system at `folder`. What is kept back for the superuser is no part of either.
fn space_of(folder: &Path) -> rustix::io::Result<(u64, u64)> {
    let there = rustix::fs::statvfs(folder)?;
    let used = there.f_blocks.saturating_sub(there.f_bfree);
    let bytes = |blocks: u64| blocks.saturating_mul(there.f_frsize);
    Ok((bytes(there.f_bavail), bytes(used.saturating_add(there.f_bavail))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nearly_used_up_is_told_once_until_there_is_room_again() {
        let nearly = Nearly::default();
        let told = |used: &[u64]| used.iter().filter(|used| nearly.passes(**used, 100)).count();
        assert_eq!(told(&[0, 79]), 0);
        assert_eq!(told(&[80, 81, 100, 75, 80]), 1);
        assert_eq!(told(&[69, 79, 80]), 1);
        assert_eq!(nearly.times(), 2);
        assert!(Nearly::default().passes(1, 1), "the smallest one is used up at once");
        assert!(Nearly::default().passes(u64::MAX, u64::MAX));
    }

    #[test]
    fn a_disk_that_fills_is_told_and_its_space_is_known() {
        let watched = Watched::default();
        assert_eq!(watched.space(), None);
        watched.has(300, 1_000);
        assert_eq!((watched.space(), watched.disk.times()), (Some((300, 1_000)), 0));
        watched.has(199, 1_000);
        watched.has(150, 1_000);
        assert_eq!((watched.space(), watched.disk.times()), (Some((150, 1_000)), 1));
        let dir = tempfile::tempdir().unwrap();
        let (free, size) = space_of(dir.path()).unwrap();
        assert!(free <= size && size > 0, "{free} of {size}");
        assert!(space_of(&dir.path().join("nothing")).is_err());
    }
}
