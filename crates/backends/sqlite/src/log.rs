//! Damage in the write-ahead log, which SQLite takes for its end.
//!
//! SQLite reads the log up to the first frame whose checksum is wrong: what a power cut tore off was never
//! answered. A frame in the middle that went bad later looks the same to it, and all behind it would be
//! forgotten without a word. The two can be told apart: a transaction begins to be written only after the one
//! before it was synced, so a commit that is followed by a frame that chains to it proves that everything up to
//! the commit was whole once. Whether a frame that is not whole was a commit stands in its head, which is believed unless a
//! boundary of sectors goes through it: of such a one a power cut may have left either half. Damage inside the last
//! transaction of the log looks like a torn one and stays unseen. The format is that of the page "WAL-mode File Format" of SQLite's documentation.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use mainstay_store::Error;

use crate::error::corrupt;

const HEAD: usize = 32;
const FRAME_HEAD: usize = 24;
/// What a disk writes whole or not at all; larger ones begin where these do.
const SECTOR: u64 = 512;
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
        if scan.chains(&frame, place(number - 1, page), ours) && follows_commit && scan.read.is_none() {
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
    /// Whether `frame`, which stands at `place`, was written after the one before it, whatever is before that.
    fn chains(&mut self, frame: &[u8], place: u64, ours: bool) -> bool {
        let sum = checksum(self.big, self.previous, &frame[..8]);
        let sum = checksum(self.big, sum, &frame[FRAME_HEAD..]);
        let said = (word(frame, 16), word(frame, 20));
        let chains = ours && sum == said;
        self.read = if chains { self.read.map(|n| n + 1) } else { None };
        let of_one_piece = place / SECTOR == (place + FRAME_HEAD as u64 - 1) / SECTOR;
        self.commit = ours && word(frame, 4) != 0 && (chains || of_one_piece);
        self.previous = said;
        chains
    }
}

/// Where a frame begins; the first one has the number 0.
fn place(number: u64, page: usize) -> u64 {
    HEAD as u64 + number * (FRAME_HEAD + page) as u64
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
            if !scan.chains(&frame, place(number, page), frame[8..16] == salt) && number > 0 {
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
            frames.read_exact_at(&mut written, place(at, page) + FRAME_HEAD as u64)?;
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{FRAME_HEAD, HEAD, MAGIC, SECTOR, Sum, checksum, look, place};

    const PAGE: usize = 4_096;

    fn put(bytes: &mut [u8], at: usize, word: u32) {
        bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
    }

    fn sign(bytes: &mut [u8], at: usize, sum: Sum) {
        put(bytes, at, sum.0);
        put(bytes, at + 4, sum.1);
    }

    /// A log of transactions with so many frames each.
    fn log(transactions: &[usize]) -> Vec<u8> {
        let mut log = vec![0; HEAD];
        for (at, word) in [MAGIC, 3_007_000, PAGE as u32, 0, 7, 8].into_iter().enumerate() {
            put(&mut log, 4 * at, word);
        }
        let mut sum = checksum(false, (0, 0), &log[..24]);
        sign(&mut log, 24, sum);
        for frames in transactions {
            for n in 1..=*frames {
                let mut frame = vec![0; FRAME_HEAD + PAGE];
                put(&mut frame, 0, n as u32);
                put(&mut frame, 4, if n == *frames { 30 } else { 0 });
                put(&mut frame, 8, 7);
                put(&mut frame, 12, 8);
                frame[FRAME_HEAD..].fill(n as u8);
                sum = checksum(false, sum, &frame[..8]);
                sum = checksum(false, sum, &frame[FRAME_HEAD..]);
                sign(&mut frame, 16, sum);
                log.extend(frame);
            }
        }
        log
    }

    #[track_caller]
    fn damaged(log: &[u8]) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.db-wal");
        std::fs::write(&file, log).unwrap();
        look(Path::new("/nowhere"), &file).unwrap().is_some()
    }

    fn at(number: u64) -> usize {
        usize::try_from(place(number, PAGE)).unwrap()
    }

    /// A sweep of every cut found it (operation 126, sectors, seed 5708067753668533174): half a head of the last transaction's
    /// first frame was lost, and what stood there before read as the end of a transaction.
    #[test]
    fn sg_f12_half_a_head_of_the_last_transaction_is_no_damage() {
        let straddles = 41;
        assert_eq!(place(straddles, PAGE) % SECTOR, SECTOR - 8, "its first words are in the sector before");
        let mut torn = log(&[41, 7]);
        assert!(!damaged(&torn));
        torn[at(straddles)..at(straddles) + 8].fill(0xa5);
        assert!(!damaged(&torn), "none of it was ever answered");
    }

    /// Also where it is the end of the last transaction but one.
    #[test]
    fn sg_f12_damage_before_the_last_transaction_is_seen() {
        for number in [0, 3, 39, 40] {
            let mut log = log(&[41, 7]);
            log[at(number) + FRAME_HEAD + 99] ^= 1;
            assert!(damaged(&log), "frame {number}");
        }
        let mut last = log(&[41, 7]);
        last[at(44) + FRAME_HEAD + 99] ^= 1;
        assert!(!damaged(&last), "that may be a power cut");
    }
}
