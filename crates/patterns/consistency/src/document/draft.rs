//! Changes of one edit.

use std::fmt;
use std::ops::Range;

use yrs::{Any, Array as _, GetString as _, Map as _, Text as _, TransactionMut, WriteTxn as _};

use crate::document::Json;
use crate::document::changes::{Kind, MAX_NAME};
use crate::document::read::fits;
use crate::error::{Error, ErrorKind, Result};

/// The changes that become one edit. Later ones see earlier ones.
pub struct Draft<'a>(pub(super) TransactionMut<'a>);

impl fmt::Debug for Draft<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft").finish_non_exhaustive()
    }
}

/// The name by which the library knows a container.
pub(super) fn named(kind: Kind, name: &str) -> Result<String> {
    if fits(name) { Ok(format!("{}{name}", kind.letter())) } else { Err(no_name(name)) }
}

fn no_name(name: &str) -> Error {
    let text = format!("a name of {} bytes; 1 to {MAX_NAME} are allowed", name.len());
    Error::new(ErrorKind::OutOfBounds { at: name.len(), len: MAX_NAME }, text)
}

fn outside(what: &str, at: usize, len: usize) -> Error {
    let text = format!("{at} is no place in {what}, which ends at {len}");
    Error::new(ErrorKind::OutOfBounds { at, len }, text)
}

/// A place as the library counts.
fn place(at: usize) -> Result<u32> {
    u32::try_from(at).map_err(|_| Error::new(ErrorKind::Overflow, format!("{at} is beyond every document")))
}

fn value(value: &Json) -> Result<Any> {
    Ok(Any::Buffer(value.encoded()?.into()))
}

impl Draft<'_> {
    /// Inserts into the text `name`, `at` so many bytes.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfBounds`] beyond its end or inside a letter, or for a name that is empty or too long.
    pub fn insert_text(&mut self, name: &str, at: usize, text: &str) -> Result<()> {
        let target = self.0.get_or_insert_text(named(Kind::Text, name)?);
        let whole = target.get_string(&self.0);
        if !whole.is_char_boundary(at) {
            return Err(outside(name, at, whole.len()));
        }
        target.insert(&mut self.0, place(at)?, text);
        Ok(())
    }

    /// Removes these bytes from the text `name`.
    ///
    /// # Errors
    /// As for [`insert_text`](Self::insert_text), at both ends.
    pub fn remove_text(&mut self, name: &str, range: Range<usize>) -> Result<()> {
        let target = self.0.get_or_insert_text(named(Kind::Text, name)?);
        let whole = target.get_string(&self.0);
        for end in [range.start, range.end] {
            if !whole.is_char_boundary(end) {
                return Err(outside(name, end, whole.len()));
            }
        }
        if !range.is_empty() {
            target.remove_range(&mut self.0, place(range.start)?, place(range.len())?);
        }
        Ok(())
    }

    /// Inserts a value into the list `name`, in front of the element `at`.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfBounds`] beyond its end or for a bad name; [`ErrorKind::TooDeep`] or [`ErrorKind::Overflow`] for a
    /// value that JSON or this crate does not have.
    pub fn insert(&mut self, name: &str, at: usize, element: &Json) -> Result<()> {
        let target = self.0.get_or_insert_array(named(Kind::List, name)?);
        let len = target.len(&self.0) as usize;
        if at > len {
            return Err(outside(name, at, len));
        }
        target.insert(&mut self.0, place(at)?, value(element)?);
        Ok(())
    }

    /// Removes these elements from the list `name`.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfBounds`] when one of them is not there, or for a bad name.
    pub fn remove(&mut self, name: &str, range: Range<usize>) -> Result<()> {
        let target = self.0.get_or_insert_array(named(Kind::List, name)?);
        let len = target.len(&self.0) as usize;
        if range.start > len || range.end > len {
            return Err(outside(name, range.start.max(range.end), len));
        }
        if !range.is_empty() {
            target.remove_range(&mut self.0, place(range.start)?, place(range.len())?);
        }
        Ok(())
    }

    /// Sets a key of the map `name`.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfBounds`] for a bad name or key; as for [`insert`](Self::insert) for the value.
    pub fn set(&mut self, name: &str, key: &str, to: &Json) -> Result<()> {
        let target = self.0.get_or_insert_map(named(Kind::Map, name)?);
        if !fits(key) {
            return Err(no_name(key));
        }
        target.insert(&mut self.0, key, value(to)?);
        Ok(())
    }

    /// Removes a key of the map `name`; nothing happens when it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfBounds`] for a bad name.
    pub fn unset(&mut self, name: &str, key: &str) -> Result<()> {
        let target = self.0.get_or_insert_map(named(Kind::Map, name)?);
        target.remove(&mut self.0, key);
        Ok(())
    }
}
