//! The canonical encoding: equal values are equal bytes, on every platform.
//!
//! Numbers are varints in their shortest form, collections are sorted and counted, actors are indices into a
//! dictionary in front. A reader accepts exactly what a writer produces: anything else is
//! [`ErrorKind::Malformed`]. No count is believed before the bytes for it are there, so memory is bounded by a
//! constant times the input; nesting is bounded by [`MAX_DEPTH`].

use std::collections::BTreeMap;

use crate::ActorId;
use crate::error::{Error, ErrorKind, Result};
use crate::version::{Context, Dot, Runs, VersionVector};

/// The version in the first byte of every encoding.
pub const VERSION: u8 = 1;
/// Deepest nesting of maps in maps. Deep enough for documents of people, shallow enough for every stack.
pub const MAX_DEPTH: u8 = 16;

/// A value with a canonical encoding of at least one byte.
///
/// Implement it for your own values by combining the ones here; the law L20 of the harness checks the result.
///
/// ```
/// use mainstay_consistency::wire::{Reader, Wire, Writer, decode, encode};
/// use mainstay_consistency::Result;
///
/// #[derive(Debug, PartialEq)]
/// struct Price { cents: u64, currency: String }
///
/// impl Wire for Price {
///     fn write(&self, out: &mut Writer) {
///         self.cents.write(out);
///         self.currency.write(out);
///     }
///     fn read(input: &mut Reader<'_>) -> Result<Self> {
///         Ok(Self { cents: u64::read(input)?, currency: String::read(input)? })
///     }
/// }
///
/// let price = Price { cents: 1_250, currency: "EUR".into() };
/// assert_eq!(decode::<Price>(&encode(&price))?, price);
/// assert!(decode::<Price>(b"garbage").is_err());
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
pub trait Wire: Sized {
    /// Appends the encoding.
    fn write(&self, out: &mut Writer);

    /// Reads what [`write`](Wire::write) appended.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] or [`ErrorKind::TooDeep`] for anything else.
    fn read(input: &mut Reader<'_>) -> Result<Self>;
}

/// The whole encoding of `value`, with version and dictionary.
#[must_use]
pub fn encode<T: Wire>(value: &T) -> Vec<u8> {
    encode_for(value, &[])
}

/// The encoding for a reader who knows the actors in `known` already, in this order. A change of one's own then
/// costs a few bytes instead of an identity of sixteen.
#[must_use]
pub fn encode_for<T: Wire>(value: &T, known: &[ActorId]) -> Vec<u8> {
    let mut writer = Writer::knowing(known);
    value.write(&mut writer);
    writer.finish()
}

/// Reads a whole encoding.
///
/// # Errors
/// [`ErrorKind::Malformed`] or [`ErrorKind::TooDeep`] when it is not exactly one.
pub fn decode<T: Wire>(bytes: &[u8]) -> Result<T> {
    decode_from(bytes, &[])
}

/// Reads what [`encode_for`] wrote for readers who know these actors.
///
/// # Errors
/// As for [`decode`].
pub fn decode_from<T: Wire>(bytes: &[u8], known: &[ActorId]) -> Result<T> {
    let mut reader = Reader::open(bytes, known)?;
    let value = T::read(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// Collects an encoding. The dictionary lists actors in the order in which they appear.
#[derive(Debug, Default)]
pub struct Writer {
    body: Vec<u8>,
    dictionary: BTreeMap<ActorId, u64>,
    added: Vec<ActorId>,
    last: Option<(ActorId, u64)>,
}

impl Writer {
    fn knowing(known: &[ActorId]) -> Self {
        let mut writer = Self::default();
        for actor in known {
            let next = writer.dictionary.len() as u64;
            writer.dictionary.entry(*actor).or_insert(next);
        }
        writer
    }

    fn finish(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.body.len() + 2 + 16 * self.added.len());
        out.push(VERSION);
        varint(self.added.len() as u64, &mut out);
        for actor in &self.added {
            out.extend_from_slice(&actor.to_bytes());
        }
        out.extend_from_slice(&self.body);
        out
    }

    /// Appends one byte.
    pub fn byte(&mut self, byte: u8) {
        self.body.push(byte);
    }

    /// Appends a number.
    pub fn number(&mut self, n: u64) {
        varint(n, &mut self.body);
    }

    /// Appends bytes as they are; the reader must know how many.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.body.extend_from_slice(bytes);
    }

    /// Appends an actor as an index.
    pub fn actor(&mut self, actor: ActorId) {
        let index = match self.last {
            Some((last, index)) if last == actor => index,
            _ => {
                let next = self.dictionary.len() as u64;
                let index = *self.dictionary.entry(actor).or_insert(next);
                if index == next {
                    self.added.push(actor);
                }
                index
            }
        };
        self.last = Some((actor, index));
        self.number(index);
    }

    pub(crate) fn dot(&mut self, dot: Dot) {
        self.actor(dot.actor());
        self.number(dot.counter());
    }
}

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push((n as u8 & 0x7f) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Reads an encoding, never past its end.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    actors: Vec<ActorId>,
    /// Dictionary entries used so far: they must appear in order, each at least once.
    known: usize,
    used: usize,
    depth: u8,
}

impl<'a> Reader<'a> {
    fn open(bytes: &'a [u8], known: &[ActorId]) -> Result<Self> {
        let mut reader =
            Self { rest: bytes, actors: known.to_vec(), known: known.len(), used: known.len(), depth: 0 };
        let version = reader.byte()?;
        if version != VERSION {
            return Err(Error::malformed(format!("version {version} is not {VERSION}")));
        }
        let count = reader.count(16)?;
        for _ in 0..count {
            let bytes: [u8; 16] = reader.array()?;
            reader.actors.push(ActorId::from_bytes(bytes));
        }
        Ok(reader)
    }

    fn end(&self) -> Result<()> {
        if !self.rest.is_empty() {
            return Err(Error::malformed(format!("{} bytes after the end", self.rest.len())));
        }
        if self.used != self.actors.len() {
            return Err(Error::malformed("the dictionary names an actor that nothing uses"));
        }
        let mut all = self.actors.clone();
        all.sort_unstable();
        if all.windows(2).any(|w| w[0] == w[1]) {
            return Err(Error::malformed("the dictionary names an actor twice"));
        }
        Ok(())
    }

    /// Leaves everything that follows unread.
    pub(crate) fn skip(&mut self) {
        self.rest = &[];
        self.used = self.actors.len();
    }

    /// How many bytes are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// One byte.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] at the end.
    pub fn byte(&mut self) -> Result<u8> {
        let (first, rest) = self.rest.split_first().ok_or_else(|| Error::malformed("ends too early"))?;
        self.rest = rest;
        Ok(*first)
    }

    /// Exactly `n` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] when there are fewer.
    pub fn raw(&mut self, n: usize) -> Result<&'a [u8]> {
        let (first, rest) =
            self.rest.split_at_checked(n).ok_or_else(|| Error::malformed("ends too early"))?;
        self.rest = rest;
        Ok(first)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.raw(N)?);
        Ok(out)
    }

    /// A number in its shortest form.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] when it is longer than needed or than 64 bits.
    pub fn number(&mut self) -> Result<u64> {
        let mut n = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if (shift == 63 && part > 1) || (shift > 0 && byte == 0) {
                return Err(Error::malformed("a number that is not in its shortest form"));
            }
            n |= part << shift;
            if byte < 0x80 {
                return Ok(n);
            }
        }
        Err(Error::malformed("a number of more than 64 bits"))
    }

    /// A count of things of at least `each` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] when there are not that many bytes.
    pub fn count(&mut self, each: usize) -> Result<usize> {
        let n = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if n > self.rest.len() / each.max(1) {
            return Err(Error::malformed(format!("announces {n} things in {} bytes", self.rest.len())));
        }
        Ok(n)
    }

    /// An actor.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] when the dictionary does not have it.
    pub fn actor(&mut self) -> Result<ActorId> {
        let index = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        let actor =
            *self.actors.get(index).ok_or_else(|| Error::malformed("an actor outside the dictionary"))?;
        if index >= self.known && index > self.used {
            return Err(Error::malformed("a dictionary out of order"));
        }
        self.used = self.used.max(index + 1);
        Ok(actor)
    }

    pub(crate) fn dot(&mut self) -> Result<Dot> {
        let (actor, n) = (self.actor()?, self.number()?);
        // The largest number is kept free: intervals end before it.
        if n == 0 || n == u64::MAX {
            return Err(Error::malformed("a dot that nobody mints"));
        }
        Ok(Dot::new(actor, n))
    }

    /// Runs `f` one level deeper.
    ///
    /// # Errors
    /// [`ErrorKind::TooDeep`] beyond [`MAX_DEPTH`].
    pub fn nested<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == MAX_DEPTH {
            return Err(Error::new(ErrorKind::TooDeep, format!("nested deeper than {MAX_DEPTH}")));
        }
        self.depth += 1;
        let value = f(self);
        self.depth -= 1;
        value
    }

    /// Reads sorted, distinct keys with their values.
    pub(crate) fn entries<K: Ord, V>(
        &mut self,
        mut entry: impl FnMut(&mut Self) -> Result<(K, V)>,
    ) -> Result<Vec<(K, V)>> {
        let count = self.count(1)?;
        let mut all: Vec<(K, V)> = Vec::new();
        for _ in 0..count {
            let next = entry(self)?;
            if all.last().is_some_and(|last| last.0 >= next.0) {
                return Err(Error::malformed("keys out of order"));
            }
            all.push(next);
        }
        Ok(all)
    }
}

macro_rules! unsigned {
    ($($t:ty),*) => {$(
        impl Wire for $t {
            fn write(&self, out: &mut Writer) {
                out.number(u64::from(*self));
            }
            fn read(input: &mut Reader<'_>) -> Result<Self> {
                Self::try_from(input.number()?).map_err(|_| Error::malformed("a number out of range"))
            }
        }
    )*};
}
unsigned!(u16, u32, u64);

impl Wire for u8 {
    fn write(&self, out: &mut Writer) {
        out.byte(*self);
    }
    fn read(input: &mut Reader<'_>) -> Result<Self> {
        input.byte()
    }
}

impl Wire for i64 {
    fn write(&self, out: &mut Writer) {
        // Zigzag: small magnitudes are small numbers.
        out.number(((*self << 1) ^ (*self >> 63)) as u64);
    }
    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let n = input.number()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }
}

impl Wire for bool {
    fn write(&self, out: &mut Writer) {
        out.byte(u8::from(*self));
    }
    fn read(input: &mut Reader<'_>) -> Result<Self> {
        match input.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Error::malformed(format!("{other} is no truth value"))),
        }
    }
}

impl Wire for () {
    fn write(&self, out: &mut Writer) {
        // One byte, so that a count of these is bounded by the input too.
        out.byte(0);
    }
    fn read(input: &mut Reader<'_>) -> Result<Self> {
        if input.byte()? == 0 { Ok(()) } else { Err(Error::malformed("no unit")) }
    }
}

impl Wire for String {
    fn write(&self, out: &mut Writer) {
        out.number(self.len() as u64);
        out.raw(self.as_bytes());
    }
    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let count = input.count(1)?;
        let bytes = input.raw(count)?;
        let text = std::str::from_utf8(bytes).map_err(|_| Error::malformed("text that is not UTF-8"))?;
        Ok(text.to_owned())
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn write(&self, out: &mut Writer) {
        out.number(self.len() as u64);
        for value in self {
            value.write(out);
        }
    }
    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let count = input.count(1)?;
        (0..count).map(|_| T::read(input)).collect()
    }
}

impl<T: Wire> Wire for Option<T> {
    fn write(&self, out: &mut Writer) {
        match self {
            None => out.byte(0),
            Some(value) => {
                out.byte(1);
                value.write(out);
            }
        }
    }
    fn read(input: &mut Reader<'_>) -> Result<Self> {
        if bool::read(input)? { T::read(input).map(Some) } else { Ok(None) }
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn write(&self, out: &mut Writer) {
        self.0.write(out);
        self.1.write(out);
    }
    fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok((A::read(input)?, B::read(input)?))
    }
}

impl Wire for ActorId {
    fn write(&self, out: &mut Writer) {
        out.actor(*self);
    }
    fn read(input: &mut Reader<'_>) -> Result<Self> {
        input.actor()
    }
}

impl Wire for VersionVector {
    fn write(&self, out: &mut Writer) {
        out.number(self.len() as u64);
        for (actor, n) in self.iter() {
            out.actor(actor);
            out.number(n);
        }
    }
    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let entries = input.entries(|input| {
            let dot = input.dot()?;
            Ok((dot.actor(), dot.counter()))
        })?;
        Ok(Self::from_sorted(entries))
    }
}

/// Every number is a distance, so that neighbours cost a byte each.
impl Wire for Context {
    fn write(&self, out: &mut Writer) {
        out.number(self.entries().len() as u64);
        for (actor, runs) in self.entries() {
            out.actor(*actor);
            out.number(runs.prefix());
            out.number(runs.rest().len() as u64);
            let mut end = runs.prefix();
            for (lo, hi) in runs.rest() {
                // A gap is at least two wide to the next number, an interval at least one long.
                out.number(lo - end - 2);
                out.number(hi - lo);
                end = *hi;
            }
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let entries = input.entries(|input| {
            let actor = input.actor()?;
            let prefix = input.number()?;
            let mut intervals = Vec::new();
            if prefix > 0 {
                intervals.push((1, prefix));
            }
            let (mut end, count) = (prefix, input.count(2)?);
            for _ in 0..count {
                let lo = end.checked_add(2).and_then(|n| n.checked_add(input.number().ok()?));
                let hi = lo.and_then(|lo| lo.checked_add(input.number().ok()?));
                let (Some(lo), Some(hi)) = (lo, hi) else {
                    return Err(Error::malformed("an interval past the end"));
                };
                intervals.push((lo, hi));
                end = hi;
            }
            if end == u64::MAX || end == 0 {
                return Err(Error::malformed("an actor without changes, or with too many"));
            }
            Ok((actor, Runs::of(intervals)))
        })?;
        Ok(Self::from_sorted(entries))
    }
}
