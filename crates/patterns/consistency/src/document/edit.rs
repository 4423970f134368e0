//! What is replicated.

use std::fmt;

use crate::crdt::{Causal, DotFun};
use crate::document::changes::Changes;
use crate::document::read::read;
use crate::document::write::write;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::{Reader, Wire, Writer};

/// Largest edit in bytes: with its dot and the frame around it, it fits into the largest message there is.
pub const MAX_EDIT: usize = 48 << 10;

/// A document: the set of its edits. It joins, travels and is stored like every other type of this crate; look into it
/// with an [`Editor`](crate::document::Editor).
pub type Edits = Causal<DotFun<Edit>>;

/// What one call changed, or several edits that were joined. Only what can be read is an edit, and what says the same has
/// the same bytes.
///
/// ```
/// use mainstay_consistency::ErrorKind;
/// use mainstay_consistency::document::Edit;
///
/// assert_eq!(Edit::read_from(b"garbage").unwrap_err().kind(), ErrorKind::Malformed);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Edit {
    /// Whether it is of one call: then it is taken in as a whole.
    one: bool,
    bytes: Vec<u8>,
}

impl fmt::Debug for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Edit({} bytes)", self.bytes.len())
    }
}

impl Edit {
    /// The edit that `bytes` are, in the first version of the encoding of Yjs, for documents that come from elsewhere: its
    /// parts are taken in each on its own, as those of joined edits.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] above [`MAX_EDIT`]; [`ErrorKind::Malformed`] for what cannot be read, or has something
    /// else in it than texts, lists and maps as [`Draft`](crate::document::Draft) makes them.
    pub fn read_from(bytes: &[u8]) -> Result<Self> {
        fits(bytes)?;
        Self::joined(&read(bytes)?)
    }

    /// What one call made.
    pub(super) fn one(changes: &Changes) -> Result<Self> {
        if !changes.is_one() {
            return Err(Error::malformed("no edit of one call: it has several authors or gaps"));
        }
        Ok(Self { one: true, ..Self::joined(changes)? })
    }

    pub(super) fn joined(changes: &Changes) -> Result<Self> {
        let bytes = write(changes);
        fits(&bytes)?;
        Ok(Self { one: false, bytes })
    }

    pub(super) fn is_one(&self) -> bool {
        self.one
    }

    /// Its bytes, in the first version of the encoding of Yjs.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn fits(bytes: &[u8]) -> Result<()> {
    if bytes.len() <= MAX_EDIT {
        return Ok(());
    }
    let text = format!("an edit of {} bytes; {MAX_EDIT} are allowed, make several", bytes.len());
    Err(Error::new(ErrorKind::TooLarge, text))
}

impl Wire for Edit {
    fn write(&self, out: &mut Writer) {
        self.one.write(out);
        out.number(self.bytes.len() as u64);
        out.raw(&self.bytes);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let one = bool::read(input)?;
        let count = input.count(1)?;
        let bytes = input.raw(count)?;
        fits(bytes)?;
        let changes = read(bytes)?;
        let edit = if one { Self::one(&changes)? } else { Self::joined(&changes)? };
        if edit.bytes != bytes {
            return Err(Error::malformed("an edit that is not in its one form"));
        }
        Ok(edit)
    }
}
