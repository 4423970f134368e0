//! What a request says of its fencing token, and what is answered to it.

use http::header::HeaderMap;
use http::{HeaderValue, StatusCode};
use mainstay_store::{FenceCheck, FencingToken};

/// The header that carries the token.
pub(super) const HEADER: &str = "fencing-token";
/// Digits of the largest token: 63 bits.
const MAX_DIGITS: usize = 19;

/// Why a request is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Missing,
    /// A larger token was seen.
    Stale(FencingToken),
    /// The largest token seen is not known.
    Unknown,
    Unreadable,
}

impl Refusal {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Missing => StatusCode::PRECONDITION_REQUIRED,
            Self::Stale(_) => StatusCode::PRECONDITION_FAILED,
            Self::Unknown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unreadable => StatusCode::BAD_REQUEST,
        }
    }

    /// The largest token seen, for whom it helps.
    pub(super) fn seen(self) -> Option<HeaderValue> {
        let Self::Stale(seen) = self else { return None };
        Some(HeaderValue::from(seen.get()))
    }
}

/// The token of a request: plain digits, quoted or not. They pass what a structured header's integer may have, so it is
/// none.
pub(super) fn token(headers: &HeaderMap) -> Result<FencingToken, Refusal> {
    let mut values = headers.get_all(HEADER).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(if headers.contains_key(HEADER) { Refusal::Unreadable } else { Refusal::Missing });
    };
    let text = value.to_str().map_err(|_| Refusal::Unreadable)?;
    let quoted = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    let digits = quoted.unwrap_or(text);
    if digits.len() > MAX_DIGITS || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Refusal::Unreadable);
    }
    // Zero is the token that no grant carries.
    let number = digits.parse().ok().filter(|n| *n > 0);
    number.map(FencingToken::new).ok_or(Refusal::Unreadable)
}

/// Compares with what the record of the resource holds; whether the record must be written.
pub(super) fn judge(token: FencingToken, record: Option<&[u8]>) -> Result<bool, Refusal> {
    let seen = match record {
        None => FencingToken::ZERO,
        Some(bytes) => {
            let number = std::str::from_utf8(bytes).ok().and_then(|t| t.parse().ok());
            // A record that cannot be read is never taken for none.
            FencingToken::new(number.ok_or(Refusal::Unknown)?)
        }
    };
    match token.check(seen) {
        FenceCheck::Pass => Ok(token > seen),
        FenceCheck::Stale { seen } => Err(Refusal::Stale(seen)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(values: &[&str], expected: Result<u64, Refusal>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, value.parse().unwrap());
        }
        assert_eq!(token(&headers), expected.map(FencingToken::new), "{values:?}");
    }

    #[test]
    fn k09_a_token_is_one_to_nineteen_digits_quoted_or_not() {
        check(&["7"], Ok(7));
        check(&["\"7\""], Ok(7));
        check(&["9223372036854775807"], Ok(i64::MAX as u64));
        check(&["007"], Ok(7));
        check(&[], Err(Refusal::Missing));
        for text in ["", "0", "-1", "+7", "7 ", "0x7", "\"7", "7\"", "\"\"", "7, 8", "12345678901234567890"] {
            check(&[text], Err(Refusal::Unreadable));
        }
        check(&["7", "7"], Err(Refusal::Unreadable));
    }

    #[test]
    fn k09_a_smaller_token_is_refused_and_an_unreadable_record_refuses_all() {
        let seven = FencingToken::new(7);
        assert_eq!(judge(seven, None), Ok(true));
        assert_eq!(judge(seven, Some(b"6")), Ok(true));
        assert_eq!(judge(seven, Some(b"7")), Ok(false), "one holder writes often");
        assert_eq!(judge(seven, Some(b"8")), Err(Refusal::Stale(FencingToken::new(8))));
        for spoiled in [&b""[..], b"x", b"\xff"] {
            assert_eq!(judge(FencingToken::new(u64::MAX), Some(spoiled)), Err(Refusal::Unknown));
        }
    }
}
