//! What travels. The frames are of this version only; [`Header`] is what every version can read.

use crate::ActorId;
use crate::error::{Error, Result};
use crate::replicate::Place;
use crate::version::{Context, VersionVector};
use crate::wire::{Reader, Wire, Writer};

/// In front of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) schema: u32,
    pub(super) merge_version: u32,
}

impl Wire for Header {
    fn write(&self, out: &mut Writer) {
        self.schema.write(out);
        self.merge_version.write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { schema: u32::read(input)?, merge_version: u32::read(input)? })
    }
}

/// The header of a message, whatever follows.
pub(super) struct Peek(pub(super) Header);

impl Wire for Peek {
    fn write(&self, out: &mut Writer) {
        self.0.write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let header = Header::read(input)?;
        input.skip();
        Ok(Self(header))
    }
}

/// How far a sender's log goes, in which run of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) session: u64,
    pub(super) seq: u64,
}

impl Wire for Mark {
    fn write(&self, out: &mut Writer) {
        out.raw(&self.session.to_be_bytes());
        out.number(self.seq);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { session: u64::from_be_bytes(input.array()?), seq: input.number()? })
    }
}

/// What a replica knows and forgot, for stability.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Stand {
    /// Changes it knows without gaps.
    pub(super) knows: VersionVector,
    /// Changes it holds for stable.
    pub(super) stable: VersionVector,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Body<T> {
    /// A digest of the contents, one of the context, and one of what the sender holds for stable.
    Root { sum: u128, context: u64, stable: u64, mark: Mark },
    /// The joined changes `from + 1 ..= mark.seq` of the sender's log.
    Delta { from: u64, mark: Mark, collected: Option<VersionVector>, part: u64, parts: u64, state: T },
    /// How much of the receiver's log arrived.
    Ack { applied: Mark, stand: Option<Stand>, collected: u64 },
    /// A part of a repair.
    Repair { collected: Option<VersionVector>, state: T },
    /// What the sender knows of the actors in a range.
    Known { from: ActorId, to: ActorId, context: Context, want: bool },
    /// Sums of consecutive ranges from `lo` on, each up to the place named.
    Ranges { lo: Place, parts: Vec<(Place, u64, u128)> },
    /// Everything the sender holds in a range.
    Items { lo: Place, hi: Place, items: Vec<(Place, u64)>, want: bool },
    /// The sender does not talk to the receiver.
    Refused { removed: bool },
}

pub(super) struct Message<T> {
    pub(super) header: Header,
    pub(super) body: Body<T>,
}

impl<T: Wire> Wire for Message<T> {
    fn write(&self, out: &mut Writer) {
        self.header.write(out);
        write_body(&self.body, out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let header = Header::read(input)?;
        Ok(Self { header, body: read_body(input)? })
    }
}

fn write_sum(sum: u128, out: &mut Writer) {
    out.raw(&sum.to_be_bytes());
}

fn read_sum(input: &mut Reader<'_>) -> Result<u128> {
    Ok(u128::from_be_bytes(input.array()?))
}

fn write_body<T: Wire>(body: &Body<T>, out: &mut Writer) {
    match body {
        Body::Root { sum, context, stable, mark } => {
            out.byte(0);
            write_sum(*sum, out);
            out.raw(&context.to_be_bytes());
            out.raw(&stable.to_be_bytes());
            mark.write(out);
        }
        Body::Delta { from, mark, collected, part, parts, state } => {
            out.byte(1);
            out.number(*from);
            mark.write(out);
            collected.write(out);
            out.number(*part);
            out.number(*parts);
            state.write(out);
        }
        Body::Ack { applied, stand, collected } => {
            out.byte(2);
            applied.write(out);
            match stand {
                None => out.byte(0),
                Some(stand) => {
                    out.byte(1);
                    stand.knows.write(out);
                    stand.stable.write(out);
                }
            }
            out.raw(&collected.to_be_bytes());
        }
        Body::Repair { collected, state } => {
            out.byte(3);
            collected.write(out);
            state.write(out);
        }
        Body::Known { from, to, context, want } => {
            out.byte(4);
            out.raw(&from.to_bytes());
            out.raw(&to.to_bytes());
            context.write(out);
            want.write(out);
        }
        Body::Ranges { lo, parts } => {
            out.byte(5);
            lo.write(out);
            out.number(parts.len() as u64);
            for (hi, count, sum) in parts {
                hi.write(out);
                out.number(*count);
                write_sum(*sum, out);
            }
        }
        Body::Items { lo, hi, items, want } => {
            out.byte(6);
            lo.write(out);
            hi.write(out);
            out.number(items.len() as u64);
            for (place, content) in items {
                place.write(out);
                out.raw(&content.to_be_bytes());
            }
            want.write(out);
        }
        Body::Refused { removed } => {
            out.byte(7);
            removed.write(out);
        }
    }
}

fn read_body<T: Wire>(input: &mut Reader<'_>) -> Result<Body<T>> {
    Ok(match input.byte()? {
        0 => Body::Root {
            sum: read_sum(input)?,
            context: u64::from_be_bytes(input.array()?),
            stable: u64::from_be_bytes(input.array()?),
            mark: Mark::read(input)?,
        },
        1 => Body::Delta {
            from: input.number()?,
            mark: Mark::read(input)?,
            collected: Option::read(input)?,
            part: input.number()?,
            parts: input.number()?,
            state: T::read(input)?,
        },
        2 => {
            let applied = Mark::read(input)?;
            let stand = if bool::read(input)? {
                Some(Stand { knows: VersionVector::read(input)?, stable: VersionVector::read(input)? })
            } else {
                None
            };
            Body::Ack { applied, stand, collected: u64::from_be_bytes(input.array()?) }
        }
        3 => Body::Repair { collected: Option::read(input)?, state: T::read(input)? },
        4 => Body::Known {
            from: ActorId::from_bytes(input.array()?),
            to: ActorId::from_bytes(input.array()?),
            context: Context::read(input)?,
            want: bool::read(input)?,
        },
        5 => {
            let lo = Place::read(input)?;
            let count = input.count(33)?;
            let part = |input: &mut Reader<'_>| Ok((Place::read(input)?, input.number()?, read_sum(input)?));
            Body::Ranges { lo, parts: (0..count).map(|_| part(input)).collect::<Result<_>>()? }
        }
        6 => {
            let (lo, hi) = (Place::read(input)?, Place::read(input)?);
            let count = input.count(25)?;
            let item = |input: &mut Reader<'_>| Ok((Place::read(input)?, u64::from_be_bytes(input.array()?)));
            let items = (0..count).map(|_| item(input)).collect::<Result<_>>()?;
            Body::Items { lo, hi, items, want: bool::read(input)? }
        }
        7 => Body::Refused { removed: bool::read(input)? },
        kind => return Err(Error::malformed(format!("{kind} is no message"))),
    })
}
