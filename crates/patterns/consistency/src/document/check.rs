//! Which bytes are an edit, found out before the library sees them.
//!
//! The decoder of `yrs` believes counts and nests without a limit. Here every count is bounded by the bytes that follow,
//! numbers by [`LIMIT`], and only what a draft makes gets through: runs of text, values of ours as bytes, removals and
//! gaps, in containers with a name.

use crate::document::Json;
use crate::error::{Error, Result};
use crate::wire::decode;

/// Most changes of one author: the library counts them in 32 bits and adds without looking.
const LIMIT: u64 = 1 << 31;
/// Authors have 53 bits, as numbers of JavaScript do.
const AUTHORS: u64 = 1 << 53;
/// Longest name of a container or key.
pub(super) const MAX_NAME: usize = 256;

/// Kinds of blocks, and the flags beside them.
mod info {
    pub(super) const COLLECTED: u8 = 0;
    pub(super) const DELETED: u8 = 1;
    pub(super) const TEXT: u8 = 4;
    pub(super) const VALUES: u8 = 8;
    pub(super) const GAP: u8 = 10;
    pub(super) const KEY: u8 = 0x20;
    pub(super) const RIGHT: u8 = 0x40;
    pub(super) const LEFT: u8 = 0x80;
}

/// Bytes as a value.
const BUFFER: u8 = 116;

/// What a container is, as the first letter of its name: two kinds never share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    List,
    Map,
    Text,
}

impl Kind {
    pub(super) const fn letter(self) -> char {
        match self {
            Self::List => 'l',
            Self::Map => 'm',
            Self::Text => 't',
        }
    }
}

/// # Errors
/// [`Malformed`](crate::ErrorKind::Malformed): it is no edit.
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    let mut scan = Scan(bytes);
    for _ in 0..scan.count(4)? {
        let blocks = scan.count(2)?;
        scan.below(AUTHORS)?;
        let mut clock = scan.below(LIMIT)?;
        for _ in 0..blocks {
            clock += scan.block()?;
            if clock > LIMIT {
                return Err(malformed("more changes than an author can make"));
            }
        }
    }
    // What was removed: by author, from where, how much.
    for _ in 0..scan.count(2)? {
        scan.below(AUTHORS)?;
        for _ in 0..scan.count(2)? {
            scan.below(LIMIT)?;
            scan.below(LIMIT)?;
        }
    }
    if scan.0.is_empty() { Ok(()) } else { Err(malformed("bytes after its end")) }
}

fn malformed(what: &str) -> Error {
    Error::malformed(format!("no edit of a document: {what}"))
}

struct Scan<'a>(&'a [u8]);

impl<'a> Scan<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| malformed("it ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u64> {
        let mut n = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            n |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(n);
            }
        }
        Err(malformed("a number without an end"))
    }

    fn below(&mut self, limit: u64) -> Result<u64> {
        let n = self.number()?;
        if n < limit { Ok(n) } else { Err(malformed("a number out of range")) }
    }

    /// How many things follow that take at least `least` bytes each.
    fn count(&mut self, least: u64) -> Result<u64> {
        let n = self.number()?;
        if n <= self.0.len() as u64 / least { Ok(n) } else { Err(malformed("a count beyond its end")) }
    }

    fn bytes(&mut self) -> Result<&'a [u8]> {
        let count = self.count(1)?;
        self.take(usize::try_from(count).unwrap_or(usize::MAX))
    }

    fn text(&mut self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| malformed("text that is not UTF-8"))
    }

    fn id(&mut self) -> Result<()> {
        self.below(AUTHORS)?;
        self.below(LIMIT)?;
        Ok(())
    }

    fn span(&mut self) -> Result<u64> {
        let n = self.below(LIMIT)?;
        if n > 0 { Ok(n) } else { Err(malformed("a block of nothing")) }
    }

    /// A block; how many changes it is.
    fn block(&mut self) -> Result<u64> {
        let head = self.byte()?;
        if head == info::COLLECTED || head == info::GAP {
            return self.span();
        }
        let (left, right, keyed) = (head & info::LEFT != 0, head & info::RIGHT != 0, head & info::KEY != 0);
        if left {
            self.id()?;
        }
        if right {
            self.id()?;
        }
        let mut container = None;
        if !left && !right {
            container = Some(self.container(keyed)?);
        }
        match head & 0x1f {
            info::DELETED => self.span(),
            info::TEXT if container.is_none_or(|kind| kind == Kind::Text) => {
                let text = self.text()?;
                if text.is_empty() {
                    return Err(malformed("a block of nothing"));
                }
                Ok(text.encode_utf16().count() as u64)
            }
            info::VALUES if container != Some(Kind::Text) => {
                let count = self.count(2)?;
                if count == 0 || (keyed && count > 1) {
                    return Err(malformed("a block of nothing, or two values at one key"));
                }
                for _ in 0..count {
                    if self.byte()? != BUFFER {
                        return Err(malformed("a value that is none of ours"));
                    }
                    decode::<Json>(self.bytes()?)?;
                }
                Ok(count)
            }
            _ => Err(malformed("a kind of content that documents here do not have")),
        }
    }

    /// The name of the container, and the key in it.
    fn container(&mut self, keyed: bool) -> Result<Kind> {
        if self.number()? != 1 {
            return Err(malformed("a container inside another one"));
        }
        let name = self.text()?;
        let kind =
            [Kind::List, Kind::Map, Kind::Text].into_iter().find(|kind| name.starts_with(kind.letter()));
        let kind = kind.filter(|kind| (*kind == Kind::Map) == keyed);
        let key = if keyed { self.text()? } else { "k" };
        match kind {
            Some(kind) if fits(&name[1..]) && fits(key) => Ok(kind),
            _ => Err(malformed("a container of no kind, or a key where none is")),
        }
    }
}

/// Whether this can be the name of a container or a key.
pub(super) fn fits(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
}
