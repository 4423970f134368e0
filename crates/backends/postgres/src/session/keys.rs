//! The keys under which others know a name.

use std::fmt;

use blake2::digest::consts::U8;
use blake2::{Blake2b, Digest as _};
use hkdf::Hkdf;
use sha1::Sha1;
use sha2::Sha256;

/// What binds the derivation to sqlx, part of its wire format.
const SQLX: &[u8] = b"SQLx (Rust) Postgres advisory lock";
/// Seven bits each, and a zero behind the last, fit into 64.
const MEDALLION_CHARS: usize = 9;

/// A key of PostgreSQL's advisory locks. The two spaces do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(clippy::exhaustive_enums, reason = "the server has these two spaces")]
pub enum AdvisoryKey {
    /// One number of 64 bits.
    Int8(i64),
    /// Two numbers of 32 bits.
    Pair(i32, i32),
}

/// How a name becomes a key: one profile for each library whose locks ours shall exclude.
///
/// ```
/// use mainstay_postgres::{AdvisoryKey, KeyProfile};
///
/// // As sqlx documents it.
/// let key = KeyProfile::Sqlx.key("my first Postgres advisory lock!").unwrap();
/// assert_eq!(key, AdvisoryKey::Int8(-5560419505042474287));
/// assert!(KeyProfile::Medallion { hashing: false }.key("a long name").is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyProfile {
    /// SQLAlchemy-Dlock on a little-endian machine: BLAKE2b with 8 bytes.
    Dlock,
    /// .NET's DistributedLock: up to 9 ASCII characters as they are, then numbers in hexadecimal digits, else,
    /// where its constructor was told to, a hash.
    Medallion {
        /// Whether longer names are hashed, as its `allowHashing`; otherwise they are refused.
        hashing: bool,
    },
    /// The common form in Node.js: the first 8 bytes of SHA-256 as two numbers, little-endian.
    NodeSha256,
    /// This number, whatever the name: all names of the store exclude each other.
    Raw(i64),
    /// These numbers, whatever the name.
    RawPair(i32, i32),
    /// sqlx's `PgAdvisoryLock::new`: HKDF-SHA256.
    Sqlx,
}

/// A name that a profile cannot make a key of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyError {
    /// The name.
    pub name: String,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is no key without hashing; allowed: up to {MEDALLION_CHARS} ASCII characters, 16 hexadecimal digits, \
             or 8 and 8 with a comma between",
            self.name
        )
    }
}

impl std::error::Error for KeyError {}

impl KeyProfile {
    /// The key of `name`.
    ///
    /// # Errors
    /// A name that DistributedLock refuses too.
    pub fn key(self, name: &str) -> Result<AdvisoryKey, KeyError> {
        let bytes = name.as_bytes();
        Ok(match self {
            Self::Dlock => AdvisoryKey::Int8(little(&Blake2b::<U8>::digest(bytes))),
            Self::Medallion { hashing } => return medallion(name, hashing),
            Self::NodeSha256 => {
                let both = little(&Sha256::digest(bytes));
                #[allow(clippy::cast_possible_truncation, reason = "the halves are what is meant")]
                let pair = AdvisoryKey::Pair(both as i32, (both >> 32) as i32);
                pair
            }
            Self::Raw(n) => AdvisoryKey::Int8(n),
            Self::RawPair(a, b) => AdvisoryKey::Pair(a, b),
            Self::Sqlx => {
                let mut out = [0; 8];
                let expanded = Hkdf::<Sha256>::new(None, bytes).expand(SQLX, &mut out);
                expanded.expect("invariant: 8 bytes are less than 255 digests");
                AdvisoryKey::Int8(i64::from_le_bytes(out))
            }
        })
    }
}

/// The first 8 bytes.
fn little(digest: &[u8]) -> i64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    i64::from_le_bytes(bytes)
}

fn medallion(name: &str, hashing: bool) -> Result<AdvisoryKey, KeyError> {
    if name.is_ascii() && name.len() <= MEDALLION_CHARS {
        // The characters, a zero, and ones up to the end: shorter names are not prefixes of longer ones.
        let text = name.bytes().fold(0_u64, |bits, c| (bits << 7) | u64::from(c)) << 1;
        let padded = (name.len()..MEDALLION_CHARS).fold(text, |bits, _| (bits << 7) | 0x7f);
        return Ok(pair(padded));
    }
    if let Some(n) = hex(name, 16) {
        return Ok(AdvisoryKey::Int8(n.cast_signed()));
    }
    if let Some((first, second)) = name.split_once(',')
        && let (Some(first), Some(second)) = (hex(first, 8), hex(second, 8))
    {
        return Ok(pair((first << 32) | second));
    }
    if hashing {
        return Ok(AdvisoryKey::Int8(little(&Sha1::digest(name.as_bytes()))));
    }
    Err(KeyError { name: name.to_owned() })
}

#[allow(clippy::cast_possible_truncation, reason = "the halves are what is meant")]
fn pair(bits: u64) -> AdvisoryKey {
    AdvisoryKey::Pair((bits >> 32) as i32, bits as i32)
}

fn hex(text: &str, digits: usize) -> Option<u64> {
    let all = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    all.then(|| u64::from_str_radix(text, 16).ok())?
}

impl AdvisoryKey {
    /// Its arguments in a call.
    pub(super) fn arguments(self) -> String {
        match self {
            // Quoted: the sign belongs to the number.
            Self::Int8(n) => format!("'{n}'::int8"),
            Self::Pair(a, b) => format!("'{a}'::int4, '{b}'::int4"),
        }
    }

    /// How the server's view of locks names it.
    pub(super) fn text(self) -> String {
        #[allow(clippy::cast_possible_truncation, reason = "the halves are what is meant")]
        let (class, object, space) = match self {
            Self::Int8(n) => ((n >> 32) as u32, n as u32, 1),
            Self::Pair(a, b) => (a.cast_unsigned(), b.cast_unsigned(), 2),
        };
        format!("{class}:{object}:{space}")
    }
}

#[cfg(test)]
mod tests {
    use super::{AdvisoryKey, KeyProfile};

    #[track_caller]
    fn check(profile: KeyProfile, name: &str, key: AdvisoryKey) {
        assert_eq!(profile.key(name), Ok(key), "{profile:?} {name}");
    }

    #[test]
    fn keys_are_those_that_the_libraries_publish() {
        // The documentation of sqlx's `PgAdvisoryLock::new`.
        check(
            KeyProfile::Sqlx,
            "my first Postgres advisory lock!",
            AdvisoryKey::Int8(-5_560_419_505_042_474_287),
        );
        // The tests of DistributedLock.
        let hashing = KeyProfile::Medallion { hashing: true };
        check(hashing, &"\u{6f22}".repeat(18), AdvisoryKey::Int8(-5_707_277_204_051_710_361));
        for profile in [hashing, KeyProfile::Medallion { hashing: false }] {
            check(profile, &"0".repeat(16), AdvisoryKey::Int8(0));
            check(profile, "0000000000000001", AdvisoryKey::Int8(1));
            check(profile, "00000003,ffffffff", AdvisoryKey::Pair(3, -1));
            check(profile, "00000000,00000000", AdvisoryKey::Pair(0, 0));
            check(profile, &"\0".repeat(9), AdvisoryKey::Pair(0, 0));
        }
    }

    #[test]
    fn keys_are_those_that_other_languages_compute() {
        // Python's hashlib, as SQLAlchemy-Dlock calls it, and SHA-256 cut into two.
        check(KeyProfile::Dlock, "jobs", AdvisoryKey::Int8(-3_238_473_902_414_046_981));
        check(KeyProfile::Dlock, "invoice/42", AdvisoryKey::Int8(-3_525_452_922_641_788_291));
        check(KeyProfile::NodeSha256, "jobs", AdvisoryKey::Pair(-887_645_603, 980_662_640));
        check(KeyProfile::NodeSha256, "invoice/42", AdvisoryKey::Pair(-1_889_392_806, 1_240_599_935));
        check(
            KeyProfile::Medallion { hashing: false },
            "ASCII",
            AdvisoryKey::Pair(-2_092_032_871, 805_306_367),
        );
    }

    #[test]
    fn every_short_name_has_a_key_of_its_own() {
        let profile = KeyProfile::Medallion { hashing: false };
        let mut seen = std::collections::BTreeSet::new();
        for c in 1..128_u8 {
            for length in 1..=9 {
                let name = String::from_utf8(vec![c; length]).unwrap();
                assert!(seen.insert(profile.key(&name).unwrap()), "{name:?}");
            }
        }
        assert!(seen.insert(profile.key("").unwrap()));
        assert!(profile.key("0123456789").is_err(), "ten characters are too many");
        assert!(profile.key("\u{6f22}").is_err());
    }

    #[test]
    fn keys_are_told_as_the_server_tells_them() {
        assert_eq!(AdvisoryKey::Int8(-1).text(), "4294967295:4294967295:1");
        assert_eq!(AdvisoryKey::Int8(28_319).text(), "0:28319:1");
        assert_eq!(AdvisoryKey::Pair(3, -1).text(), "3:4294967295:2");
        assert_eq!(AdvisoryKey::Pair(3, -1).arguments(), "'3'::int4, '-1'::int4");
        assert_eq!(AdvisoryKey::Int8(i64::MIN).arguments(), "'-9223372036854775808'::int8");
    }
}
