//! Acquisitions as the tables name them.

use sha2::{Digest as _, Sha256};

/// Sixteen bytes that stand for an operation: what its 32 hexadecimal digits say, or a digest of any other text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Op(pub(crate) [u8; 16]);

impl Op {
    pub(crate) fn of(op_id: &str) -> Self {
        if let Some(bytes) = unhex(op_id) {
            return Self(bytes);
        }
        let digest = Sha256::digest(op_id.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        Self(bytes)
    }

    /// From a column.
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its 32 digits.
    pub(crate) fn text(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let digits = text.as_bytes();
    if digits.len() != 32 {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::Op;

    #[test]
    fn digits_stand_for_themselves_and_other_texts_for_a_digest() {
        let digits = "000102030405060708090a0b0c0d0eff";
        assert_eq!(Op::of(digits).0[15], 0xff);
        assert_eq!(Op::of(digits).text(), digits);
        assert_ne!(Op::of("op1"), Op::of("op2"));
        assert_eq!(Op::of(&Op::of("op1").text()), Op::of("op1"), "its text names it again");
        assert_ne!(Op::of(&digits.to_uppercase()), Op::of(digits), "upper case is another text");
    }
}
