//! Sealed packets: who does not hold the key can neither read nor make one.
//!
//! ```text
//! byte 0        version 1
//! byte 1        key id
//! bytes 2-5     hash of the cluster's name
//! bytes 6-29    nonce, random
//! the rest      XChaCha20-Poly1305 of: kind 1, from 8, to 8, payload; the tag of 16 bytes is last
//! ```
//! The first six bytes and the whole name of the cluster are authenticated with the contents.

use std::fmt;

use chacha20poly1305::{AeadInOut as _, Key, KeyInit as _, XChaCha20Poly1305, XNonce};
use mainstay_clock::Rng;

use crate::error::ConfigError;
use crate::member::hash;

/// The version of packets. Another one is refused by name.
pub const PROTOCOL: u8 = 1;
/// Version, key id, cluster.
const HEAD: usize = 6;
const NONCE: usize = 24;
const TAG: usize = 16;
/// Kind, sender, receiver.
const INNER: usize = 17;
/// What a packet has beside its payload.
pub(crate) const OVERHEAD: usize = HEAD + NONCE + INNER + TAG;
/// Keys of one set: the present one, the next one, and one that is late.
const MAX_KEYS: usize = 4;

/// The shared keys of a cluster: one seals, all open.
///
/// To change keys without a gap: add the new one everywhere with [`also`](Keys::also), then make it the first one
/// everywhere, then take the old one away everywhere.
///
/// ```
/// use mainstay_gossip::Keys;
///
/// let keys = Keys::new(1, [7; 32]).also(2, [8; 32]);
/// assert_eq!(format!("{keys:?}"), "Keys([1, 2])");
/// assert!(Keys::parse("1:tooshort").is_err());
/// ```
#[derive(Clone)]
pub struct Keys(Vec<(u8, XChaCha20Poly1305)>);

impl Keys {
    /// A set of one key, which seals.
    #[must_use]
    pub fn new(id: u8, secret: [u8; 32]) -> Self {
        Self(vec![(id, cipher(secret))])
    }

    /// Also opens what was sealed with this one. An id that is there already is kept as it was.
    #[must_use]
    pub fn also(mut self, id: u8, secret: [u8; 32]) -> Self {
        if self.0.iter().all(|k| k.0 != id) && self.0.len() < MAX_KEYS {
            self.0.push((id, cipher(secret)));
        }
        self
    }

    /// Reads the text of a key file: a line per key, `ID:SECRET` with 64 hexadecimal digits; the first one seals. Empty
    /// lines and lines with `#` in front are left out.
    ///
    /// # Errors
    /// No key, more than four, an id twice, or a line that is none. No error shows a secret.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut keys: Option<Self> = None;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong =
                || ConfigError::new("keys", format!("line {}", number + 1), "ID:64 hexadecimal digits");
            let (id, secret) = line.split_once(':').ok_or_else(wrong)?;
            let id: u8 = id.trim().parse().map_err(|_| wrong())?;
            let secret = from_hex(secret.trim()).ok_or_else(wrong)?;
            keys = Some(match keys {
                None => Self::new(id, secret),
                Some(keys) if keys.0.len() == MAX_KEYS || keys.0.iter().any(|k| k.0 == id) => {
                    return Err(ConfigError::new("keys", format!("key {id}"), "up to four different ids"));
                }
                Some(keys) => keys.also(id, secret),
            });
        }
        keys.ok_or_else(|| ConfigError::new("keys", "nothing", "at least one key"))
    }
}

fn cipher(secret: [u8; 32]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&Key::from(secret))
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(digits.chunks(2)) {
        let digit = |d: u8| char::from(d).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<u8> = self.0.iter().map(|k| k.0).collect();
        write!(f, "Keys({ids:?})")
    }
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Of the replicated value.
    State,
    /// Of the membership.
    Swim,
}

/// An opened packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) kind: Kind,
    pub(crate) from: u64,
    /// Zero: whoever is at this address.
    pub(crate) to: u64,
    pub(crate) payload: Vec<u8>,
}

/// Why a packet was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Short,
    Version(u8),
    Cluster,
    Key,
    Forged,
    Kind,
}

/// Seals and opens the packets of one node.
#[derive(Debug)]
pub(crate) struct Seal {
    keys: Keys,
    cluster: String,
    tag: [u8; 4],
    me: u64,
}

impl Seal {
    pub(crate) fn new(keys: Keys, cluster: &str, me: u64) -> Self {
        let [a, b, c, d, ..] = hash(cluster.as_bytes()).to_be_bytes();
        Self { keys, cluster: cluster.to_owned(), tag: [a, b, c, d], me }
    }

    /// Exchanges the keys.
    pub(crate) fn set_keys(&mut self, keys: Keys) {
        self.keys = keys;
    }

    fn associated(&self, head: &[u8]) -> Vec<u8> {
        [head, self.cluster.as_bytes()].concat()
    }

    /// A packet for `to`.
    pub(crate) fn seal(&self, kind: Kind, to: u64, payload: &[u8], rng: &dyn Rng) -> Vec<u8> {
        let (id, cipher) = &self.keys.0[0];
        let mut packet = Vec::with_capacity(OVERHEAD + payload.len());
        packet.extend_from_slice(&[PROTOCOL, *id]);
        packet.extend_from_slice(&self.tag);
        let associated = self.associated(&packet);
        let mut nonce = [0; NONCE];
        rng.fill(&mut nonce);
        packet.extend_from_slice(&nonce);
        let mut body = Vec::with_capacity(INNER + payload.len() + TAG);
        body.push(match kind {
            Kind::State => 0,
            Kind::Swim => 1,
        });
        body.extend_from_slice(&self.me.to_be_bytes());
        body.extend_from_slice(&to.to_be_bytes());
        body.extend_from_slice(payload);
        cipher
            .encrypt_in_place(&XNonce::from(nonce), &associated, &mut body)
            .expect("invariant: a packet is far below the limit of the cipher, and a vector grows");
        packet.extend_from_slice(&body);
        packet
    }

    /// What a packet carries, if somebody with a key of this cluster made it.
    pub(crate) fn open(&self, packet: &[u8]) -> Result<Opened, Refusal> {
        let Some((head, rest)) = packet.split_at_checked(HEAD) else { return Err(Refusal::Short) };
        // The version is looked at first: another one may mean anything by the rest.
        if head[0] != PROTOCOL {
            return Err(Refusal::Version(head[0]));
        }
        if head[2..] != self.tag {
            return Err(Refusal::Cluster);
        }
        let Some((_, cipher)) = self.keys.0.iter().find(|k| k.0 == head[1]) else { return Err(Refusal::Key) };
        let Some((nonce, body)) = rest.split_at_checked(NONCE) else { return Err(Refusal::Short) };
        let nonce = <[u8; NONCE]>::try_from(nonce).map_err(|_| Refusal::Short)?;
        let mut body = body.to_vec();
        let opened = cipher.decrypt_in_place(&XNonce::from(nonce), &self.associated(head), &mut body);
        opened.map_err(|_| Refusal::Forged)?;
        let Some((inner, payload)) = body.split_at_checked(INNER) else { return Err(Refusal::Short) };
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&inner[at..at + 8]);
            u64::from_be_bytes(bytes)
        };
        let kind = match inner[0] {
            0 => Kind::State,
            1 => Kind::Swim,
            _ => return Err(Refusal::Kind),
        };
        Ok(Opened { kind, from: word(1), to: word(9), payload: payload.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use mainstay_clock::SeededRng;

    use super::*;

    fn seal(keys: Keys, cluster: &str, me: u64) -> Seal {
        Seal::new(keys, cluster, me)
    }

    #[test]
    fn what_is_sealed_opens_with_the_same_key_and_cluster_only() {
        let rng = SeededRng::new(1);
        let one = seal(Keys::new(1, [7; 32]), "shop", 11);
        let packet = one.seal(Kind::State, 12, b"hello", &rng);
        assert_eq!(packet.len(), OVERHEAD + 5);
        let want = Opened { kind: Kind::State, from: 11, to: 12, payload: b"hello".to_vec() };
        assert_eq!(seal(Keys::new(1, [7; 32]), "shop", 12).open(&packet), Ok(want));
        let refused = |keys, cluster| seal(keys, cluster, 12).open(&packet).unwrap_err();
        assert_eq!(refused(Keys::new(1, [8; 32]), "shop"), Refusal::Forged);
        assert_eq!(refused(Keys::new(2, [7; 32]), "shop"), Refusal::Key);
        assert_eq!(refused(Keys::new(1, [7; 32]), "bank"), Refusal::Cluster);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let rng = SeededRng::new(2);
        let one = seal(Keys::new(1, [7; 32]), "shop", 11);
        let packet = one.seal(Kind::Swim, 0, b"payload", &rng);
        for bit in 0..packet.len() * 8 {
            let mut bad = packet.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(one.open(&bad).is_err(), "bit {bit}");
        }
        for len in 0..packet.len() {
            assert!(one.open(&packet[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn keys_are_read_from_text_and_no_error_shows_them() {
        let good = "# the present one\n2: 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n\n1:ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff\n";
        assert_eq!(format!("{:?}", Keys::parse(good).unwrap()), "Keys([2, 1])");
        for bad in
            ["", "x", "1:ab", "300:00", "1:zz112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"]
        {
            let error = Keys::parse(bad).unwrap_err();
            assert_eq!(error.field(), "keys");
            assert!(!error.to_string().contains("112233"), "{error}");
        }
    }
}
