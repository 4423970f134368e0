//! A file that only the newest holder of a lease may change.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::{Error, ErrorKind, FenceCheck, FencingToken, Outcome, Result};

/// A file that is replaced as a whole, and only under a fencing token that is not smaller than the largest one seen.
///
/// Two files stand beside the data: `NAME.fence` with the largest token, and `NAME.lock`, which is locked while one of
/// the three is looked at or changed. A change writes a temporary file, syncs it and renames it over the old one, the
/// fence before the data: a crash in between leaves the old data behind the new fence, as if the new holder had only
/// announced itself.
///
/// Guarantees: among processes that use this type on one machine, accepted changes never go back in tokens; a reader
/// sees one whole version; a change that was answered survives a crash as far as the disk honors a sync. Not
/// guaranteed: anything against a writer that goes past it, and on network file systems whose locks are not shared. A
/// process that is stopped in the middle of a change holds up the others until it goes on or dies.
///
/// Every method blocks: in async code, call it where blocking is allowed.
///
/// ```
/// use mainstay_store::{FenceCheck, FencedFile, FencingToken};
///
/// # let dir = tempfile::tempdir()?;
/// let file = FencedFile::new(dir.path().join("balance"));
/// let (old, new) = (FencingToken::new(3), FencingToken::new(7));
/// assert_eq!(file.replace(new, b"100")?, FenceCheck::Pass);
/// assert_eq!(file.replace(old, b"late")?, FenceCheck::Stale { seen: new });
/// assert_eq!(file.update(new, |before| [before, b"0"].concat())?, FenceCheck::Pass);
/// assert_eq!(file.read()?.as_deref(), Some(&b"1000"[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct FencedFile {
    data: PathBuf,
    fence: PathBuf,
    lock: PathBuf,
}

impl FencedFile {
    /// The file at `path`. Its folder must exist; nothing is opened yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let data = path.into();
        let (fence, lock) = (beside(&data, ".fence"), beside(&data, ".lock"));
        Self { data, fence, lock }
    }

    /// What the file holds; nothing when it was never written.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> Result<Option<Vec<u8>>> {
        read(&self.data)
    }

    /// The largest token seen, [`FencingToken::ZERO`] before the first.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the fence holds no token: that is never taken for zero.
    pub fn seen(&self) -> Result<FencingToken> {
        let Some(bytes) = read(&self.fence)? else { return Ok(FencingToken::ZERO) };
        let text = std::str::from_utf8(&bytes).ok().map(|t| t.trim_end_matches('\n'));
        let digits = text.filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()));
        let token = digits.and_then(|t| t.parse().ok()).map(FencingToken::new);
        token.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("{} holds no fencing token", self.fence.display()))
        })
    }

    /// Announces `token` without a change: from here on smaller ones are refused.
    ///
    /// # Errors
    /// When a file cannot be read, written or synced. [`Error::outcome`] says whether the fence may have moved.
    pub fn advance(&self, token: FencingToken) -> Result<FenceCheck> {
        self.locked(|| self.pass(token))
    }

    /// Replaces what the file holds.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn replace(&self, token: FencingToken, contents: &[u8]) -> Result<FenceCheck> {
        self.update(token, |_| contents.to_vec())
    }

    /// Replaces what the file holds by what `change` makes of it, empty if it was never written. `change` is not called
    /// under a stale token.
    ///
    /// # Errors
    /// When a file cannot be read, written or synced. After [`Outcome::Unknown`] the change may be there.
    pub fn update(&self, token: FencingToken, change: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<FenceCheck> {
        self.locked(|| {
            let check = self.pass(token)?;
            if check == FenceCheck::Pass {
                let before = read(&self.data)?.unwrap_or_default();
                put(&self.data, &change(&before))?;
            }
            Ok(check)
        })
    }

    /// Compares, and stores a larger token. Needs the lock.
    fn pass(&self, token: FencingToken) -> Result<FenceCheck> {
        let seen = self.seen()?;
        let check = token.check(seen);
        if check == FenceCheck::Pass && token > seen {
            put(&self.fence, format!("{token}\n").as_bytes())?;
        }
        Ok(check)
    }

    fn locked<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let open = File::options().create(true).truncate(false).write(true).open(&self.lock);
        let file = open.map_err(|e| failed(&self.lock, e))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(failed(&self.lock, e.into())),
            }
        }
        let _held = Held(file);
        work()
    }
}

/// A lock that is freed when this is dropped, or when the process ends.
struct Held(File);

impl Drop for Held {
    /// Closing alone would not do: a process that another thread starts has a copy of the descriptor until it becomes
    /// its program, and the lock lasts as long as any copy.
    fn drop(&mut self) {
        // Refused only for what is no descriptor.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(end);
    name.into()
}

fn failed(path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("{}", path.display())).with_source(error)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(path, e)),
    }
}

/// Makes `path` hold `bytes`, wholly or not at all. Needs the lock.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = beside(path, ".new");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|e| failed(&temporary, e))?;
    // From here on it may be there.
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let renamed = fs::rename(&temporary, path).and_then(|()| File::open(folder)?.sync_all());
    renamed.map_err(|e| failed(path, e).with_outcome(Outcome::Unknown))
}
