//! What is replicated.

use std::fmt;

use crate::crdt::{Causal, DotFun};
use crate::document::check::check;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::{Reader, Wire, Writer};

/// Largest edit in bytes: with its dot and the frame around it, it fits into the largest message there is.
pub const MAX_EDIT: usize = 48 << 10;

/// A document: the set of its edits. It joins, travels and is stored like every other type of this crate; look into it
/// with an [`Editor`](crate::document::Editor).
pub type Edits = Causal<DotFun<Edit>>;

/// What one call changed, as the library writes it. Only what can be read is an edit.
///
/// ```
/// use mainstay_consistency::ErrorKind;
/// use mainstay_consistency::document::Edit;
///
/// assert_eq!(Edit::read_from(b"garbage").unwrap_err().kind(), ErrorKind::Malformed);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Edit(Vec<u8>);

impl fmt::Debug for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Edit({} bytes)", self.0.len())
    }
}

impl Edit {
    /// The edit that `bytes` are, in the first version of the encoding of Yjs; for documents that come from elsewhere.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] above [`MAX_EDIT`]; [`ErrorKind::Malformed`] for what cannot be read, or has something
    /// else in it than texts, lists and maps as [`Draft`](crate::document::Draft) makes them.
    pub fn read_from(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_EDIT {
            let text = format!("an edit of {} bytes; {MAX_EDIT} are allowed, make several", bytes.len());
            return Err(Error::new(ErrorKind::TooLarge, text));
        }
        check(bytes)?;
        Ok(Self(bytes.to_vec()))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Wire for Edit {
    fn write(&self, out: &mut Writer) {
        out.number(self.0.len() as u64);
        out.raw(&self.0);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let count = input.count(1)?;
        Self::read_from(input.raw(count)?)
    }
}
