//! How identities and headers of the membership protocol look on the wire. Bounded: nothing here is a list.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Member, Message, State};

/// A node in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
    /// Grows with every start and whenever the others took it for dead.
    pub(crate) generation: u64,
}

impl foca::Identity for Life {
    type Addr = u64;

    fn renew(&self) -> Option<Self> {
        Some(Self { generation: self.generation.saturating_add(1), ..*self })
    }

    fn addr(&self) -> u64 {
        self.id
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        self.generation > other.generation
    }
}

/// Why bytes are no packet of the membership.
#[derive(Debug)]
pub(crate) struct Garbled;

impl fmt::Display for Garbled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a message of the membership")
    }
}

impl std::error::Error for Garbled {}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain;

fn put_life(life: &Life, mut out: impl BufMut) -> Result<(), Garbled> {
    let size = 8 + 8 + 1 + 2 + if life.address.is_ipv4() { 4 } else { 16 };
    if out.remaining_mut() < size {
        return Err(Garbled);
    }
    out.put_u64(life.id);
    out.put_u64(life.generation);
    match life.address.ip() {
        IpAddr::V4(ip) => {
            out.put_u8(4);
            out.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.put_u8(6);
            out.put_slice(&ip.octets());
        }
    }
    out.put_u16(life.address.port());
    Ok(())
}

fn get_life(mut from: impl Buf) -> Result<Life, Garbled> {
    let short = |_| Garbled;
    let id = from.try_get_u64().map_err(short)?;
    let generation = from.try_get_u64().map_err(short)?;
    let ip = match from.try_get_u8().map_err(short)? {
        4 => IpAddr::V4(Ipv4Addr::from(from.try_get_u32().map_err(short)?)),
        6 => IpAddr::V6(Ipv6Addr::from(from.try_get_u128().map_err(short)?)),
        _ => return Err(Garbled),
    };
    let port = from.try_get_u16().map_err(short)?;
    Ok(Life { id, address: SocketAddr::new(ip, port), generation })
}

impl Codec<Life> for Plain {
    type Error = Garbled;

    fn encode_header(&mut self, header: &Header<Life>, mut out: impl BufMut) -> Result<(), Garbled> {
        put_life(&header.src, &mut out)?;
        put_life(&header.dst, &mut out)?;
        if out.remaining_mut() < 4 + 35 {
            return Err(Garbled);
        }
        out.put_u16(header.src_incarnation);
        let (tag, number, life) = match &header.message {
            Message::Ping(n) => (0, *n, None),
            Message::Ack(n) => (1, *n, None),
            Message::PingReq { target, probe_number } => (2, *probe_number, Some(target)),
            Message::IndirectPing { origin, probe_number } => (3, *probe_number, Some(origin)),
            Message::IndirectAck { target, probe_number } => (4, *probe_number, Some(target)),
            Message::ForwardedAck { origin, probe_number } => (5, *probe_number, Some(origin)),
            Message::Announce => (6, 0, None),
            Message::Feed => (7, 0, None),
            Message::Gossip => (8, 0, None),
            Message::Broadcast => (9, 0, None),
            Message::TurnUndead => (10, 0, None),
        };
        out.put_u8(tag);
        out.put_u8(number);
        life.map_or(Ok(()), |life| put_life(life, &mut out))
    }

    fn decode_header(&mut self, mut from: impl Buf) -> Result<Header<Life>, Garbled> {
        let short = |_| Garbled;
        let (src, dst) = (get_life(&mut from)?, get_life(&mut from)?);
        let src_incarnation = from.try_get_u16().map_err(short)?;
        let (tag, probe_number) = (from.try_get_u8().map_err(short)?, from.try_get_u8().map_err(short)?);
        let message = match tag {
            0 => Message::Ping(probe_number),
            1 => Message::Ack(probe_number),
            2 => Message::PingReq { target: get_life(&mut from)?, probe_number },
            3 => Message::IndirectPing { origin: get_life(&mut from)?, probe_number },
            4 => Message::IndirectAck { target: get_life(&mut from)?, probe_number },
            5 => Message::ForwardedAck { origin: get_life(&mut from)?, probe_number },
            6 => Message::Announce,
            7 => Message::Feed,
            8 => Message::Gossip,
            9 => Message::Broadcast,
            10 => Message::TurnUndead,
            _ => return Err(Garbled),
        };
        Ok(Header { src, src_incarnation, dst, message })
    }

    fn encode_member(&mut self, member: &Member<Life>, mut out: impl BufMut) -> Result<(), Garbled> {
        if out.remaining_mut() < 3 + 35 {
            return Err(Garbled);
        }
        out.put_u16(member.incarnation());
        out.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        put_life(member.id(), &mut out)
    }

    fn decode_member(&mut self, mut from: impl Buf) -> Result<Member<Life>, Garbled> {
        let short = |_| Garbled;
        let incarnation = from.try_get_u16().map_err(short)?;
        let state = match from.try_get_u8().map_err(short)? {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            _ => return Err(Garbled),
        };
        Ok(Member::new(get_life(from)?, incarnation, state))
    }
}
