//! A durable value in a file.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mainstay_store::{BoxFuture, DurableCell, Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Largest file that is read: far above what a replica may hold in memory.
const MAX_FILE: u64 = 1 << 30;

/// A [`DurableCell`] in a file of its own: written beside it, synced, renamed over it, and the folder synced. A crash
/// leaves the old value or the new one. One process at a time: others are refused.
///
/// ```
/// use mainstay_gossip::FileCell;
/// use mainstay_store::DurableCell;
///
/// # let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # rt.block_on(async {
/// let folder = tempfile::tempdir()?;
/// let cell = FileCell::open(&folder.path().join("state"))?;
/// assert_eq!(cell.load().await?, None);
/// cell.store_synced(b"value".to_vec()).await?;
/// assert_eq!(cell.load().await?.as_deref(), Some(&b"value"[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct FileCell(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// Calls that were made, to keep their order.
    calls: AtomicU64,
    /// The call whose value is in the file.
    written: Mutex<u64>,
    lock: File,
}

impl Drop for Inner {
    /// Closing alone would not do: a process that another thread starts has a copy of the descriptor until it becomes
    /// its program, and the lock lasts as long as any copy.
    fn drop(&mut self) {
        // Refused only for what is no descriptor.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

impl FileCell {
    /// The cell in `path`. Beside it there are a file that is locked, and for moments one that is being written.
    ///
    /// # Errors
    /// [`ErrorKind::Occupied`] when another process has it open, [`ErrorKind::Unavailable`] when the folder cannot be
    /// used.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e| unavailable(path, e);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(beside(path, "lock"))
            .map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| refusal(path, e))?;
        let inner = Inner { path: path.to_owned(), calls: AtomicU64::new(0), written: Mutex::new(0), lock };
        Ok(Self(Arc::new(inner)))
    }
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(what);
    path.with_file_name(name)
}

/// Only a lock that somebody holds means another process; all else is the file system's trouble.
fn refusal(path: &Path, e: Errno) -> Error {
    let name = path.display();
    let (kind, text) = match e {
        Errno::WOULDBLOCK => (ErrorKind::Occupied, format!("{name} is in use by another process")),
        _ => {
            let text = format!("{name} cannot be locked; it needs a local file system that knows flock");
            (ErrorKind::Unavailable, text)
        }
    };
    Error::new(kind, text).with_source(io::Error::from(e))
}

fn unavailable(path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{} cannot be used", path.display())).with_source(error)
}

impl Inner {
    fn read(&self) -> Result<Option<Vec<u8>>> {
        let failed = |e| unavailable(&self.path, e);
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_FILE {
            let text = format!("{} is larger than {MAX_FILE} bytes", self.path.display());
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        Ok(Some(bytes))
    }

    fn write(&self, call: u64, value: &[u8]) -> Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if *written > call {
            // A later call overtook this one, whose caller went away.
            return Ok(());
        }
        let temporary = beside(&self.path, "new");
        let replace = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(value)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)?;
            let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        };
        replace().map_err(|e| unavailable(&self.path, e).with_outcome(mainstay_store::Outcome::Unknown))?;
        *written = call;
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "the runtime is ending")))
}

impl DurableCell for FileCell {
    fn load(&self) -> BoxFuture<'_, Result<Option<Vec<u8>>>> {
        let inner = Arc::clone(&self.0);
        Box::pin(blocking(move || inner.read()))
    }

    fn store_synced(&self, value: Vec<u8>) -> BoxFuture<'_, Result<()>> {
        let inner = Arc::clone(&self.0);
        let call = self.0.calls.fetch_add(1, Ordering::Relaxed) + 1;
        Box::pin(blocking(move || inner.write(call, &value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a fork does to a descriptor between itself and the program that it becomes, for as long as the test wants.
    #[test]
    fn a_copy_of_the_descriptor_in_a_child_keeps_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let cell = FileCell::open(&path).unwrap();
        let copy = cell.0.lock.try_clone().unwrap();
        assert_eq!(FileCell::open(&path).unwrap_err().kind(), ErrorKind::Occupied);
        drop(cell);
        FileCell::open(&path).unwrap();
        drop(copy);
    }

    #[test]
    fn only_a_held_lock_is_called_occupied() {
        let kind = |e| refusal(Path::new("state"), e).kind();
        assert_eq!(kind(Errno::WOULDBLOCK), ErrorKind::Occupied);
        for other in [Errno::NOLCK, Errno::NOTSUP, Errno::INTR, Errno::IO] {
            assert_eq!(kind(other), ErrorKind::Unavailable, "{other}");
        }
    }
}
