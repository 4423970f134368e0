//! What a node keeps on disk: the state, and who it was, in one piece.
//!
//! ```text
//! magic 8, version 2, length of the body 8, body, checksum 16 (SipHash-1-3, 128 bits: against damage, not against people)
//! ```

use std::hash::Hasher as _;

use siphasher::sip128::{Hasher128 as _, SipHasher13};

use crate::error::{Error, ErrorKind, Result};

const MAGIC: &[u8; 8] = b"MSTGOSIP";
/// Version of the format. Older ones are read, newer ones are refused.
const VERSION: u16 = 2;
/// The one before removed members were kept. Still written where there are none: older programs read it.
const WITHOUT_REMOVED: u16 = 1;
const HEAD: usize = 18;
const SUM: usize = 16;

/// The contents of a snapshot.
///
/// ```
/// use mainstay_gossip::{ErrorKind, Snapshot};
///
/// let error = Snapshot::decode(b"something else").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Damaged);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The cluster it belongs to.
    pub cluster: String,
    /// The member that wrote it.
    pub name: String,
    /// The node under which changes were made: random, drawn with the file.
    pub node: u64,
    /// The actor epoch.
    pub epoch: u32,
    /// The run that wrote it; sequence numbers count within one.
    pub session: u64,
    /// Changes that run counted.
    pub seq: u64,
    /// The member's life, for the membership.
    pub generation: u64,
    /// When, in milliseconds since 1970.
    pub saved_at: i64,
    /// Members that were removed, by their ids: they stay refused.
    pub removed: Vec<u64>,
    /// The encoded state.
    pub state: Vec<u8>,
}

impl Snapshot {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.state.len() + 128);
        for text in [&self.cluster, &self.name] {
            body.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
            body.extend_from_slice(text.as_bytes());
        }
        body.extend_from_slice(&self.node.to_be_bytes());
        body.extend_from_slice(&self.epoch.to_be_bytes());
        for word in [self.session, self.seq, self.generation] {
            body.extend_from_slice(&word.to_be_bytes());
        }
        body.extend_from_slice(&self.saved_at.to_be_bytes());
        let version = if self.removed.is_empty() { WITHOUT_REMOVED } else { VERSION };
        if version == VERSION {
            body.extend_from_slice(&u32::try_from(self.removed.len()).unwrap_or(u32::MAX).to_be_bytes());
            body.extend(self.removed.iter().flat_map(|id| id.to_be_bytes()));
        }
        body.extend_from_slice(&self.state);
        let mut out = Vec::with_capacity(HEAD + body.len() + SUM);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&version.to_be_bytes());
        out.extend_from_slice(&(body.len() as u64).to_be_bytes());
        out.extend_from_slice(&body);
        let sum = sum(&out);
        out.extend_from_slice(&sum);
        out
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Newer`] for a version that this program does not know, [`ErrorKind::Damaged`] for anything else that
    /// is not exactly what [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let damaged = |what: &str| Error::new(ErrorKind::Damaged, format!("the snapshot is damaged: {what}"));
        let Some(rest) = bytes.strip_prefix(MAGIC) else { return Err(damaged("it does not begin as one")) };
        let Some((version, rest)) = rest.split_at_checked(2) else { return Err(damaged("it is cut short")) };
        let version = u16::from_be_bytes([version[0], version[1]]);
        if version > VERSION {
            let text = format!("the snapshot has version {version}, this program knows {VERSION}");
            return Err(Error::new(ErrorKind::Newer, text));
        }
        let mut input = Input(rest);
        let length = input.word().ok_or_else(|| damaged("it is cut short"))?;
        let length = usize::try_from(length).map_err(|_| damaged("its length is absurd"))?;
        let body = input.take(length).ok_or_else(|| damaged("it is cut short"))?;
        if input.0 != sum(&bytes[..HEAD + length]) {
            return Err(damaged("its checksum is wrong"));
        }
        Self::read(version, &mut Input(body)).ok_or_else(|| damaged("its contents make no sense"))
    }

    /// From bytes in which snapshots stand one behind the other.
    ///
    /// # Errors
    /// As [`decode`](Self::decode), for the first one that is none.
    pub fn decode_all(mut bytes: &[u8]) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let size = bytes.get(HEAD - 8..HEAD).and_then(|b| Input(b).word());
            let size = size.and_then(|n| usize::try_from(n).ok()?.checked_add(HEAD + SUM));
            let (one, rest) = bytes.split_at_checked(size.unwrap_or(bytes.len())).unwrap_or((bytes, &[]));
            all.push(Self::decode(one)?);
            bytes = rest;
        }
        Ok(all)
    }

    fn read(version: u16, input: &mut Input<'_>) -> Option<Self> {
        Some(Self {
            cluster: input.text()?,
            name: input.text()?,
            node: input.word()?,
            epoch: input.small()?,
            session: input.word()?,
            seq: input.word()?,
            generation: input.word()?,
            saved_at: i64::from_be_bytes(input.word()?.to_be_bytes()),
            removed: if version > WITHOUT_REMOVED { input.words()? } else { Vec::new() },
            state: input.0.to_vec(),
        })
    }
}

fn sum(bytes: &[u8]) -> [u8; SUM] {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish128().as_bytes()
}

/// Bytes that are left.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn word(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    /// As many as are announced. What is announced and not there costs nothing.
    fn words(&mut self) -> Option<Vec<u64>> {
        let count = usize::try_from(self.small()?).ok()?;
        let mut words = Input(self.take(count.checked_mul(8)?)?);
        Some(std::iter::from_fn(|| words.word()).collect())
    }

    fn small(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.small()?).ok()?;
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Snapshot {
        Snapshot {
            cluster: "shop".into(),
            name: "a".into(),
            node: 7,
            epoch: 3,
            session: 9,
            seq: 11,
            generation: 13,
            saved_at: -5,
            removed: vec![8, u64::MAX],
            state: vec![1, 2, 3],
        }
    }

    #[test]
    fn g9_every_flipped_bit_and_every_cut_is_damage() {
        let bytes = some().encode();
        assert_eq!(Snapshot::decode(&bytes).unwrap(), some());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let kind = Snapshot::decode(&bad).unwrap_err().kind();
            // A higher version in these two bytes is a newer file.
            let want = if (64..80).contains(&bit) { kind } else { ErrorKind::Damaged };
            assert_eq!(kind, want, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(Snapshot::decode(&bytes[..len]).unwrap_err().kind(), ErrorKind::Damaged, "{len}");
        }
    }

    #[test]
    fn a_snapshot_of_before_removed_members_were_kept_is_read_and_written() {
        // One of version 1, byte by byte: cluster `c`, name `a`, node 7, epoch 3, session 9, change 11, life 13, at -5.
        let mut old = b"MSTGOSIP\0\x01\0\0\0\0\0\0\0\x39\0\0\0\x01c\0\0\0\x01a".to_vec();
        for (size, n) in [(8, 7_i64), (4, 3), (8, 9), (8, 11), (8, 13), (8, -5)] {
            old.extend_from_slice(&n.to_be_bytes()[8 - size..]);
        }
        old.extend_from_slice(&[1, 2, 3]);
        let sum = super::sum(&old);
        old.extend_from_slice(&sum);
        let new = Snapshot { cluster: "c".into(), removed: Vec::new(), ..some() };
        assert_eq!(Snapshot::decode(&old).unwrap(), new);
        assert_eq!(new.encode(), old, "with nobody removed, an older program can read it");
        // Removed members that are announced and not there.
        let mut bytes = some().encode();
        let at = bytes.len() - SUM - 3 - 16 - 4;
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_be_bytes());
        let end = bytes.len() - SUM;
        let sum = super::sum(&bytes[..end]);
        bytes[end..].copy_from_slice(&sum);
        assert_eq!(Snapshot::decode(&bytes).unwrap_err().kind(), ErrorKind::Damaged);
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let mut bytes = some().encode();
        bytes[9] = 3;
        let error = Snapshot::decode(&bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Newer);
        assert!(error.to_string().contains("version 3"), "{error}");
    }
}
