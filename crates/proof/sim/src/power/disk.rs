//! A disk that keeps what was synced, and of the rest what chance leaves.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use mainstay_clock::{Rng, SeededRng};

use super::{Op, OpKind};

/// What a disk writes whole, or not.
const SECTOR: usize = 512;

/// What is lost of the operations that no sync covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "all, none, some in order, some in any order")]
pub enum Loss {
    /// All of them.
    Everything,
    /// None: the process was killed and the machine lives on.
    Nothing,
    /// In the order in which they were made they survive up to a point; the one there is torn.
    Tail,
    /// Each sector of each write by itself survives, is lost, or is garbage; the rest by toss of a coin.
    Sectors,
}

#[derive(Clone, Debug)]
enum Change {
    Truncate(usize),
    Write(usize, Vec<u8>),
}

/// Whether a change is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody knows, and no later sync will tell: its own failed.
    Orphan,
    Pending,
    Synced,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// What is on the disk below all changes.
    base: Vec<u8>,
    /// In the order in which they were made, with their place in the order of all.
    changes: Vec<(u64, Change, Fate)>,
}

#[derive(Clone, Debug)]
enum Name {
    Made(PathBuf, usize),
    Removed(PathBuf),
}

/// The files of a folder as they are on a disk below a running system.
#[derive(Clone, Debug)]
pub struct Disk {
    root: PathBuf,
    inodes: Vec<Inode>,
    /// What the running system sees.
    names: HashMap<PathBuf, usize>,
    /// What is on the disk.
    synced: BTreeMap<PathBuf, usize>,
    changed: Vec<(u64, Name)>,
    /// Open files, and open folders.
    open: HashMap<i32, usize>,
    folders: HashMap<i32, PathBuf>,
    count: u64,
}

/// What is found after the power came back: paths below the root, and contents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "files are this")]
pub struct Image {
    /// The files.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Image {
    /// Reads the files of a folder, but not of the folders in it.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let mut image = Self::default();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if let (true, Some(name)) = (path.is_file(), path.file_name()) {
                image.files.insert(name.into(), std::fs::read(&path)?);
            }
        }
        Ok(image)
    }

    /// Puts the files into `dir`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        for (name, bytes) in &self.files {
            let path = dir.join(name);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(path, bytes)?;
        }
        Ok(())
    }
}

impl Disk {
    /// An empty folder.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self::holding(root, &Image::default())
    }

    /// A folder that holds `image`, all of it on the disk.
    #[must_use]
    pub fn holding(root: impl Into<PathBuf>, image: &Image) -> Self {
        let root = root.into();
        let names: Vec<_> = image.files.keys().enumerate().map(|(i, p)| (root.join(p), i)).collect();
        let inode = |base: &Vec<u8>| Inode { base: base.clone(), changes: Vec::new() };
        Self {
            inodes: image.files.values().map(inode).collect(),
            names: names.iter().cloned().collect(),
            synced: names.into_iter().collect(),
            changed: Vec::new(),
            open: HashMap::new(),
            folders: HashMap::new(),
            count: 0,
            root,
        }
    }

    /// Does what the process did.
    pub fn apply(&mut self, op: &Op) {
        self.count += 1;
        match &op.kind {
            OpKind::Create(path) => {
                let inode = self.inodes.len();
                self.inodes.push(Inode::default());
                self.names.insert(path.clone(), inode);
                self.changed.push((self.count, Name::Made(path.clone(), inode)));
                self.opened(op.fd, inode);
            }
            OpKind::Open(path) => match self.names.get(path) {
                Some(inode) => self.opened(op.fd, *inode),
                None => {
                    self.open.remove(&op.fd);
                    self.folders.insert(op.fd, path.clone());
                }
            },
            OpKind::Unlink(path) => {
                self.names.remove(path);
                self.changed.push((self.count, Name::Removed(path.clone())));
            }
            OpKind::Write(at, bytes) => {
                let at = usize::try_from(*at).unwrap_or(usize::MAX);
                self.change(op.fd, Change::Write(at, bytes.clone()));
            }
            OpKind::Truncate(length) => {
                self.change(op.fd, Change::Truncate(usize::try_from(*length).unwrap_or(usize::MAX)));
            }
            OpKind::Sync => self.sync(op.fd),
            OpKind::SyncFailed(_) => {
                for change in self.changes(op.fd).filter(|c| c.2 == Fate::Pending) {
                    change.2 = Fate::Orphan;
                }
            }
            OpKind::WriteFailed(_) => {}
        }
    }

    fn opened(&mut self, fd: i32, inode: usize) {
        self.folders.remove(&fd);
        self.open.insert(fd, inode);
    }

    fn changes(&mut self, fd: i32) -> impl Iterator<Item = &mut (u64, Change, Fate)> {
        let inode = self.open.get(&fd).copied();
        inode.and_then(|i| self.inodes.get_mut(i)).into_iter().flat_map(|i| i.changes.iter_mut())
    }

    fn change(&mut self, fd: i32, change: Change) {
        let count = self.count;
        if let Some(inode) = self.open.get(&fd).and_then(|i| self.inodes.get_mut(*i)) {
            inode.changes.push((count, change, Fate::Pending));
        }
    }

    fn sync(&mut self, fd: i32) {
        if let Some(folder) = self.folders.get(&fd) {
            let there = |name: &Name| {
                let (Name::Made(path, _) | Name::Removed(path)) = name;
                path.parent() == Some(folder)
            };
            let (done, left) = std::mem::take(&mut self.changed).into_iter().partition(|c| there(&c.1));
            self.changed = left;
            let done: Vec<(u64, Name)> = done;
            done.iter().for_each(|(_, name)| settle(&mut self.synced, name));
            return;
        }
        let Some(inode) = self.open.get(&fd).and_then(|i| self.inodes.get_mut(*i)) else { return };
        for change in inode.changes.iter_mut().filter(|c| c.2 == Fate::Pending) {
            change.2 = Fate::Synced;
        }
        let known = inode.changes.iter().take_while(|c| c.2 == Fate::Synced).count();
        for (_, change, _) in inode.changes.drain(..known) {
            put(&mut inode.base, &change);
        }
    }

    /// What is found when the power fails now.
    #[must_use]
    pub fn cut(&self, loss: Loss, seed: u64) -> Image {
        let rng = SeededRng::new(seed);
        let open = self.inodes.iter().flat_map(|i| &i.changes).filter(|c| c.2 != Fate::Synced);
        let first = open.map(|c| c.0).chain(self.changed.iter().map(|c| c.0)).min().unwrap_or(self.count);
        let lot = Lot { loss, last: first + rng.below(self.count + 1 - first.min(self.count)), rng };
        let mut names = self.synced.clone();
        for (at, name) in &self.changed {
            if lot.survives(*at) {
                settle(&mut names, name);
            }
        }
        let files = names.into_iter().filter_map(|(path, inode)| {
            let path = path.strip_prefix(&self.root).ok()?.to_owned();
            Some((path, self.inodes[inode].cut(&lot)))
        });
        Image { files: files.collect() }
    }
}

impl Inode {
    fn cut(&self, lot: &Lot) -> Vec<u8> {
        let mut bytes = self.base.clone();
        for (at, change, fate) in &self.changes {
            match change {
                _ if *fate == Fate::Synced => put(&mut bytes, change),
                Change::Write(to, data) if lot.tears(*at) => {
                    // In pieces that end where sectors of the file end.
                    let mut from = 0;
                    while from < data.len() {
                        let end = data.len().min(from + SECTOR - (to + from) % SECTOR);
                        if let Some(piece) = lot.piece(&data[from..end]) {
                            put(&mut bytes, &Change::Write(to + from, piece));
                        }
                        from = end;
                    }
                }
                _ if lot.survives(*at) => put(&mut bytes, change),
                _ => {}
            }
        }
        bytes
    }
}

/// Draws what survives.
struct Lot {
    loss: Loss,
    /// The operation at which a tail is torn.
    last: u64,
    rng: SeededRng,
}

impl Lot {
    fn survives(&self, at: u64) -> bool {
        match self.loss {
            Loss::Everything => false,
            Loss::Nothing => true,
            Loss::Tail => at <= self.last,
            Loss::Sectors => self.rng.below(2) == 0,
        }
    }

    fn tears(&self, at: u64) -> bool {
        self.loss == Loss::Sectors || self.loss == Loss::Tail && at == self.last
    }

    /// Half of the sectors survive; one of ten is neither what it was nor what it should be.
    fn piece(&self, data: &[u8]) -> Option<Vec<u8>> {
        match self.rng.below(10) {
            0..=4 => Some(data.to_vec()),
            5 => Some(data.iter().map(|_| self.rng.below(256) as u8).collect()),
            _ => None,
        }
    }
}

fn put(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Truncate(length) => bytes.resize(*length, 0),
        Change::Write(at, data) => {
            let end = at + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at..end].copy_from_slice(data);
        }
    }
}

fn settle(names: &mut BTreeMap<PathBuf, usize>, name: &Name) {
    match name {
        Name::Made(path, inode) => drop(names.insert(path.clone(), *inode)),
        Name::Removed(path) => drop(names.remove(path)),
    }
}
