//! A durable value in a file.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mainstay_store::{BoxFuture, DurableCell, Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, flock};

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
    _lock: File,
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
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Error::new(ErrorKind::Occupied, format!("{} is in use by another process", path.display()))
        })?;
        let inner =
            Inner { path: path.to_owned(), calls: AtomicU64::new(0), written: Mutex::new(0), _lock: lock };
        Ok(Self(Arc::new(inner)))
    }
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(what);
    path.with_file_name(name)
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
