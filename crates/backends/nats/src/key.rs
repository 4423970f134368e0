//! Names as keys of a bucket, and back.

/// The token of a subject that stands for `name`: letters, digits, `-`, `_` and `/` stand for themselves, every
/// other byte is written `=XX`.
pub(crate) fn escape(name: &str) -> String {
    let mut key = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'/') {
            key.push(char::from(byte));
        } else {
            key.push('=');
            for half in [byte >> 4, byte & 15] {
                key.push(char::from(b"0123456789ABCDEF"[usize::from(half)]));
            }
        }
    }
    key
}

/// The name of a key, unless it is none that [`escape`] writes.
pub(crate) fn unescape(key: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'=' {
            let half = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
            bytes.push((half(rest.next()?)? << 4) | half(rest.next()?)?);
        } else {
            bytes.push(byte);
        }
    }
    let name = String::from_utf8(bytes).ok()?;
    (escape(&name) == key).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_keys_and_come_back() {
        for (name, key) in [
            ("billing/nightly-7_x", "billing/nightly-7_x"),
            ("a.b", "a=2Eb"),
            ("a=b", "a=3Db"),
            (" *>", "=20=2A=3E"),
            ("\u{e9}", "=C3=A9"),
        ] {
            assert_eq!(escape(name), key);
            assert_eq!(unescape(key).as_deref(), Some(name));
        }
    }

    #[test]
    fn what_nobody_here_writes_is_no_name() {
        for key in ["a.b", "a=2eb", "a=", "a=4", "=41", "=FF"] {
            assert_eq!(unescape(key), None, "{key}");
        }
    }
}
