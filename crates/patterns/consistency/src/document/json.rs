//! Values of lists and maps.

use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::{MAX_DEPTH, Reader, Wire, Writer, encode};

/// A JSON value. It changes as a whole.
///
/// ```
/// use mainstay_consistency::document::Json;
/// use mainstay_consistency::wire::{decode, encode};
///
/// let line = Json::Map([("sku".to_owned(), Json::from("a-1")), ("count".to_owned(), Json::from(2))].into());
/// assert_eq!(decode::<Json>(&encode(&line))?, line);
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::exhaustive_enums, reason = "RFC 8259 has no other values; numbers are whole or not")]
pub enum Json {
    /// True or false.
    Bool(bool),
    /// A number that is not whole. Only finite ones can be written.
    Float(f64),
    /// A whole number.
    Int(i64),
    /// Several values.
    List(Vec<Json>),
    /// Values by name.
    Map(BTreeMap<String, Json>),
    /// Nothing.
    Null,
    /// A text that changes as a whole.
    Text(String),
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for Json {
    fn from(n: i64) -> Self {
        Self::Int(n)
    }
}

impl From<bool> for Json {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

impl Json {
    /// The encoding, if it can be read back.
    pub(super) fn encoded(&self) -> Result<Vec<u8>> {
        self.check(MAX_DEPTH)?;
        Ok(encode(self))
    }

    fn check(&self, levels: u8) -> Result<()> {
        let deeper = || {
            let text = format!("a value nested deeper than {MAX_DEPTH}");
            levels.checked_sub(1).ok_or_else(|| Error::new(ErrorKind::TooDeep, text))
        };
        match self {
            Self::Float(n) if !n.is_finite() => {
                Err(Error::new(ErrorKind::Overflow, format!("{n} is no number of JSON")))
            }
            Self::List(values) => {
                let levels = deeper()?;
                values.iter().try_for_each(|value| value.check(levels))
            }
            Self::Map(values) => {
                let levels = deeper()?;
                values.values().try_for_each(|value| value.check(levels))
            }
            _ => Ok(()),
        }
    }
}

impl Wire for Json {
    fn write(&self, out: &mut Writer) {
        match self {
            Self::Null => out.byte(0),
            Self::Bool(b) => {
                out.byte(1);
                b.write(out);
            }
            Self::Int(n) => {
                out.byte(2);
                n.write(out);
            }
            Self::Float(n) => {
                out.byte(3);
                out.raw(&n.to_bits().to_be_bytes());
            }
            Self::Text(text) => {
                out.byte(4);
                text.write(out);
            }
            Self::List(values) => {
                out.byte(5);
                values.write(out);
            }
            Self::Map(values) => {
                out.byte(6);
                out.number(values.len() as u64);
                for (name, value) in values {
                    name.write(out);
                    value.write(out);
                }
            }
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(match input.byte()? {
            0 => Self::Null,
            1 => Self::Bool(bool::read(input)?),
            2 => Self::Int(i64::read(input)?),
            3 => {
                let n = f64::from_bits(u64::from_be_bytes(input.array()?));
                if !n.is_finite() {
                    return Err(Error::malformed("no number of JSON"));
                }
                Self::Float(n)
            }
            4 => Self::Text(String::read(input)?),
            5 => Self::List(input.nested(Vec::read)?),
            6 => {
                let entries = input
                    .nested(|input| input.entries(|input| Ok((String::read(input)?, Self::read(input)?))))?;
                Self::Map(entries.into_iter().collect())
            }
            tag => return Err(Error::malformed(format!("{tag} is no kind of value"))),
        })
    }
}
