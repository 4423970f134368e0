//! Damage in the write-ahead log, which SQLite takes for its end.
//!
//! SQLite reads the log up to the first frame whose checksum is wrong: what a power cut tore off was never
//! answered. A frame in the middle that went bad later looks the same to it, and all behind it would be
//! forgotten without a word. The two can be told apart: a transaction begins to be written only after the one
//! before it was synced, so a commit that is followed by a frame that chains to it proves that everything up to
//! the commit was whole once. Damage inside the last transaction of the log looks like a torn one and stays
//! unseen. The format is that of the page "WAL-mode File Format" of SQLite's documentation.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use mainstay_store::Error;

use crate::error::corrupt;

const HEAD: usize = 32;
const FRAME_HEAD: usize = 24;
/// The smallest and largest page that SQLite knows.
const PAGES: std::ops::RangeInclusive<usize> = 512..=65_536;
/// Magic number of a log; its last bit says which end of a word comes first in checksums.
const MAGIC: u32 = 0x377f_0682;

type Sum = (u32, u32);

/// Refuses a file whose log was damaged after it was written.
pub(crate) fn check(database: &Path) -> Result<(), Error> {
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    let found = look(database, &PathBuf::from(path)).or_else(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => Ok(None),
        // SQLite meets the same trouble and says it better.
        _ => {
            tracing::warn!(target: "mainstay::sqlite", error = %e, "the write-ahead log cannot be looked at");
            Ok(None)
        }
    })?;
    match found {
        Some(what) => Err(corrupt(format!(
            "the write-ahead log is damaged: {what}; opening it would forget commits that were answered: \
             restore it from a backup"
        ))),
        None => Ok(()),
    }
}

fn look(database: &Path, log: &Path) -> io::Result<Option<String>> {
    let mut reader = BufReader::with_capacity(256 * 1024, File::open(log)?);
    let mut head = [0; HEAD];
    reader.read_exact(&mut head)?;
    let magic = word(&head, 0);
    let (big, page) = (magic & 1 == 1, word(&head, 8) as usize);
    let sum = checksum(big, (0, 0), &head[..24]);
    let whole = magic & !1 == MAGIC && PAGES.contains(&page) && sum == (word(&head, 24), word(&head, 28));
    if !whole {
        return headless(database, log);
    }
    let salt = (word(&head, 16), word(&head, 20));
    let mut scan = Scan { big, previous: sum, commit: false, read: Some(0) };
    let mut frame = vec![0; FRAME_HEAD + page];
    for number in 1_u64.. {
        if !fill(&mut reader, &mut frame)? {
            break;
        }
        let ours = (word(&frame, 8), word(&frame, 12)) == salt;
        let follows_commit = scan.commit;
        if scan.chains(&frame, ours) && follows_commit && scan.read.is_none() {
            return Ok(Some(format!(
                "commits up to frame {} are whole behind a frame that is not",
                number - 1
            )));
        }
    }
    Ok(None)
}

/// One walk over the frames.
struct Scan {
    big: bool,
    /// The checksum that the frame before says it has.
    previous: Sum,
    /// Whether the frame before ends a transaction.
    commit: bool,
    /// Frames that SQLite will read; none once it has met one that is not whole.
    read: Option<u64>,
}

impl Scan {
    /// Whether `frame` was written after the one before it, whatever is before that.
    fn chains(&mut self, frame: &[u8], ours: bool) -> bool {
        let sum = checksum(self.big, self.previous, &frame[..8]);
        let sum = checksum(self.big, sum, &frame[FRAME_HEAD..]);
        let said = (word(frame, 16), word(frame, 20));
        let chains = ours && sum == said;
        self.read = if chains { self.read.map(|n| n + 1) } else { None };
        (self.previous, self.commit) = (said, ours && word(frame, 4) != 0);
        chains
    }
}

/// A log without a head is read by nobody. That is right when it was torn as the log started over: then
/// everything in the old frames is in the database, too.
fn headless(database: &Path, log: &Path) -> io::Result<Option<String>> {
    let file = File::open(database)?;
    let mut size = [0; 2];
    file.read_exact_at(&mut size, 16)?;
    let page = match usize::from(u16::from_be_bytes(size)) {
        1 => 65_536,
        n if PAGES.contains(&n) => n,
        _ => return Ok(None),
    };
    for big in [false, true] {
        let mut reader = BufReader::with_capacity(256 * 1024, File::open(log)?);
        reader.read_exact(&mut [0; HEAD])?;
        let mut frame = vec![0; FRAME_HEAD + page];
        if !fill(&mut reader, &mut frame)? {
            return Ok(None);
        }
        let salt = frame[8..16].to_vec();
        let mut scan = Scan { big, previous: (0, 0), commit: false, read: None };
        let (mut latest, mut open) = (BTreeMap::new(), BTreeMap::new());
        for number in 0_u64.. {
            if !scan.chains(&frame, frame[8..16] == salt) && number > 0 {
                break;
            }
            open.insert(word(&frame, 0), number);
            if scan.commit {
                latest.append(&mut open);
            }
            if !fill(&mut reader, &mut frame)? {
                break;
            }
        }
        let frames = File::open(log)?;
        for (number, at) in latest {
            let (mut written, mut there) = (vec![0; page], vec![0; page]);
            let place = HEAD as u64 + at * (FRAME_HEAD + page) as u64 + FRAME_HEAD as u64;
            frames.read_exact_at(&mut written, place)?;
            let read = file.read_exact_at(&mut there, u64::from(number - 1) * page as u64);
            if read.is_err() || written != there {
                return Ok(Some("its head is not whole, and its frames are not in the database".to_owned()));
            }
        }
    }
    Ok(None)
}

/// Reads one frame; not when the log ends before it does.
fn fill(reader: &mut impl Read, frame: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(frame) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The running checksum over pairs of words.
fn checksum(big: bool, start: Sum, bytes: &[u8]) -> Sum {
    let value = |b: &[u8]| {
        let b = [b[0], b[1], b[2], b[3]];
        if big { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) }
    };
    bytes.chunks_exact(8).fold(start, |(a, b), pair| {
        let a = a.wrapping_add(value(&pair[..4])).wrapping_add(b);
        (a, b.wrapping_add(value(&pair[4..])).wrapping_add(a))
    })
}
