//! Which bytes are an edit, found out before the library sees them.
//!
//! The decoder of `yrs` believes counts and nests without a limit. Here every count is bounded by the bytes that follow,
//! numbers by [`LIMIT`], and only what a draft makes gets through: runs of text, values of ours as bytes, removals and
//! gaps, in containers with a name. No formats, embeds, types inside types, links, documents inside documents, moves, and
//! nothing of which not even the container is known.

use crate::document::Json;
use crate::document::changes::{Changes, Content, Home, Id, Kind, MAX_NAME, Removal, Run};
use crate::error::{Error, Result};
use crate::wire::decode;

/// Most changes of one author: the library counts them in 32 bits and adds without looking.
const LIMIT: u32 = 1 << 31;
/// Authors have 53 bits, as numbers of JavaScript do.
const AUTHORS: u64 = 1 << 53;

/// Kinds of blocks, and the flags beside them.
pub(super) mod info {
    pub(in crate::document) const REMOVED: u8 = 1;
    pub(in crate::document) const TEXT: u8 = 4;
    pub(in crate::document) const VALUES: u8 = 8;
    pub(in crate::document) const GAP: u8 = 10;
    pub(in crate::document) const KEY: u8 = 0x20;
    pub(in crate::document) const RIGHT: u8 = 0x40;
    pub(in crate::document) const LEFT: u8 = 0x80;
}

/// Bytes as a value.
pub(super) const BUFFER: u8 = 116;

/// What `bytes` say, settled.
///
/// # Errors
/// [`Malformed`](crate::ErrorKind::Malformed): it is no edit.
pub(super) fn read(bytes: &[u8]) -> Result<Changes> {
    let mut scan = Scan(bytes);
    let mut changes = Changes::default();
    for _ in 0..scan.count(4)? {
        let blocks = scan.count(2)?;
        let author = scan.below(AUTHORS)?;
        let mut clock = scan.clock()?;
        for _ in 0..blocks {
            clock += scan.block(Id::new(author, clock), &mut changes.runs)?;
            if clock > LIMIT {
                return Err(malformed("more changes than an author can make"));
            }
        }
    }
    for _ in 0..scan.count(2)? {
        let author = scan.below(AUTHORS)?;
        for _ in 0..scan.count(2)? {
            let (from, len) = (scan.clock()?, scan.span()?);
            changes.removed.push(Removal { author, from, to: from + len });
        }
    }
    if !scan.0.is_empty() {
        return Err(malformed("bytes after its end"));
    }
    let changes = changes.settle();
    if changes.runs.windows(2).any(|w| w[0].id.author == w[1].id.author && w[0].end() > w[1].id.clock) {
        return Err(malformed("something in it twice"));
    }
    Ok(changes)
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

    fn clock(&mut self) -> Result<u32> {
        Ok(self.below(LIMIT.into())? as u32)
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

    fn id(&mut self) -> Result<Id> {
        Ok(Id::new(self.below(AUTHORS)?, self.clock()?))
    }

    fn span(&mut self) -> Result<u32> {
        let n = self.clock()?;
        if n > 0 { Ok(n) } else { Err(malformed("a block of nothing")) }
    }

    /// A block; how many changes it is.
    fn block(&mut self, id: Id, runs: &mut Vec<Run>) -> Result<u32> {
        let head = self.byte()?;
        if head == info::GAP {
            return self.span();
        }
        let (has_left, has_right) = (head & info::LEFT != 0, head & info::RIGHT != 0);
        let keyed = head & info::KEY != 0;
        let left = has_left.then(|| self.id()).transpose()?;
        let right = has_right.then(|| self.id()).transpose()?;
        // What an author put beside something was there already; and nothing is between a thing and itself.
        if left.iter().chain(&right).any(|at| at.author == id.author && at.clock >= id.clock) {
            return Err(malformed("a neighbor that comes later"));
        }
        if left.is_some() && left == right {
            return Err(malformed("the same neighbor on both sides"));
        }
        let home = if has_left || has_right { None } else { Some(self.home(keyed)?) };
        let content = self.content(head, keyed)?;
        let len = content.len();
        let suits = home.as_ref().is_none_or(|home| suits(&content, home));
        if !suits || (keyed && right.is_some()) {
            return Err(malformed("content that its container does not have"));
        }
        runs.push(Run { id, len, left, right, home, keyed, content });
        Ok(len)
    }

    fn content(&mut self, head: u8, keyed: bool) -> Result<Content> {
        match head & 0x1f {
            info::REMOVED => Ok(Content::Removed(self.span()?)),
            info::TEXT if !keyed => {
                let text = self.text()?;
                if text.is_empty() {
                    return Err(malformed("a block of nothing"));
                }
                Ok(Content::Text(text.to_owned()))
            }
            info::VALUES => {
                let count = self.count(2)?;
                if count == 0 || (keyed && count > 1) {
                    return Err(malformed("a block of nothing, or two values at one key"));
                }
                let mut values = Vec::new();
                for _ in 0..count {
                    if self.byte()? != BUFFER {
                        return Err(malformed("a value that is none of ours"));
                    }
                    let value = self.bytes()?;
                    decode::<Json>(value)?;
                    values.push(value.to_vec());
                }
                Ok(Content::Values(values))
            }
            _ => Err(malformed("a kind of content that documents here do not have")),
        }
    }

    /// The name of the container, and the key in it.
    fn home(&mut self, keyed: bool) -> Result<Home> {
        if self.number()? != 1 {
            return Err(malformed("a container inside another one"));
        }
        let name = self.text()?;
        let kind =
            [Kind::List, Kind::Map, Kind::Text].into_iter().find(|kind| name.starts_with(kind.letter()));
        let kind = kind.filter(|kind| (*kind == Kind::Map) == keyed);
        let key = keyed.then(|| self.text()).transpose()?;
        match kind {
            Some(kind) if fits(&name[1..]) && key.is_none_or(fits) => {
                Ok(Home { kind, name: name[1..].to_owned(), key: key.map(str::to_owned) })
            }
            _ => Err(malformed("a container of no kind, or a key where none is")),
        }
    }
}

/// Whether such things are in such a container.
pub(super) fn suits(content: &Content, home: &Home) -> bool {
    match content {
        Content::Removed(_) => true,
        Content::Text(_) => home.kind == Kind::Text,
        Content::Values(values) => match home.kind {
            Kind::List => true,
            Kind::Map => values.len() == 1,
            Kind::Text => false,
        },
    }
}

/// Whether this can be the name of a container or a key.
pub(super) fn fits(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
}
