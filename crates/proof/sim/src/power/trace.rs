//! The notes of the library, as data.

use std::io;
use std::path::PathBuf;

/// Bytes before the payload of a note.
const HEAD: usize = 24;

/// One operation that happened, or was made to fail.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a note has these parts")]
pub struct Op {
    /// The descriptor it was made on; -1 for operations on names.
    pub fd: i32,
    /// What it was.
    pub kind: OpKind,
    /// Where its note ends in the trace.
    pub end: u64,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "what the library notes")]
pub enum OpKind {
    /// A file was made and opened.
    Create(PathBuf),
    /// A file or folder that exists was opened.
    Open(PathBuf),
    /// A sync failed with this error number.
    SyncFailed(i32),
    /// A sync succeeded.
    Sync,
    /// The file was cut or extended to this length.
    Truncate(u64),
    /// A name was removed.
    Unlink(PathBuf),
    /// Bytes were written at a position.
    Write(u64, Vec<u8>),
    /// A write failed with this error number, and wrote nothing.
    WriteFailed(i32),
}

/// What a process did to the files of a folder, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a list")]
pub struct Trace {
    /// The operations.
    pub ops: Vec<Op>,
}

impl Trace {
    /// Reads notes. One that was cut off, because the process was killed while it wrote it, ends the trace.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for bytes that are no notes.
    pub fn parse(bytes: &[u8]) -> io::Result<Self> {
        let (mut ops, mut at) = (Vec::new(), 0);
        while let Some(head) = bytes.get(at..at + HEAD) {
            let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
            let position = u64::from(word(8)) | u64::from(word(12)) << 32;
            let length = word(20) as usize;
            let Some(payload) = bytes.get(at + HEAD..at + HEAD + length) else { break };
            at += HEAD + length;
            let kind = kind(head[0], position, word(16).cast_signed(), payload)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no note ends at {at}")))?;
            ops.push(Op { fd: word(4).cast_signed(), kind, end: at as u64 });
        }
        Ok(Self { ops })
    }

    /// The same on a disk that says that it synced and did not.
    #[must_use]
    pub fn without_syncs(mut self) -> Self {
        self.ops.retain(|op| op.kind != OpKind::Sync);
        self
    }
}

fn kind(letter: u8, position: u64, errno: i32, payload: &[u8]) -> Option<OpKind> {
    let path = || Some(PathBuf::from(std::str::from_utf8(payload).ok()?));
    Some(match letter {
        b'c' => OpKind::Create(path()?),
        b'e' if position == u64::from(b's') => OpKind::SyncFailed(errno),
        b'e' if position == u64::from(b'w') => OpKind::WriteFailed(errno),
        b'o' => OpKind::Open(path()?),
        b's' => OpKind::Sync,
        b't' => OpKind::Truncate(position),
        b'u' => OpKind::Unlink(path()?),
        b'w' => OpKind::Write(position, payload.to_vec()),
        _ => return None,
    })
}
