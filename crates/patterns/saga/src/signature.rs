//! Signatures of requests to participants (features `http` and `tower`), in the form of Standard Webhooks.
//!
//! A request carries `webhook-id` (its idempotency key), `webhook-timestamp` (Unix seconds) and
//! `webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`, once per secret. Two
//! secrets at once let a secret be exchanged without a pause: the caller signs with both, or the participant
//! accepts both.
//!
//! The signature covers id, time and body only. The fencing token and the other headers are unsigned; the id
//! carries saga, step and op for that reason. A repeated request within the tolerance is valid: repeating is
//! what the protocol does, and the barrier is what makes it harmless.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use http::HeaderMap;
use mainstay_clock::WallTime;
use sha2::Sha256;

use crate::{Error, ErrorKind};

/// How old or how far ahead a timestamp may be: the skew of clocks plus the time in queues, as in the standard.
pub const TOLERANCE: Duration = Duration::from_secs(300);
/// Most signatures of a request that are looked at.
const MAX_SIGNATURES: usize = 8;
/// Shortest and longest secret, in bytes, as in the standard.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A shared secret. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Reads `whsec_` and the base64 of 24 to 64 random bytes.
    ///
    /// # Errors
    /// `Config` for anything else; the text is not repeated.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bytes = text.trim().strip_prefix("whsec_").and_then(|b| STANDARD.decode(b).ok());
        bytes.filter(|b| SECRET_BYTES.contains(&b.len())).map(Self).ok_or_else(|| {
            Error::new(ErrorKind::Config, "a signing secret is `whsec_` and the base64 of 24 to 64 bytes")
        })
    }

    fn mac(&self, id: &str, seconds: &str, body: &[u8]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("invariant: HMAC takes keys of any length");
        for part in [id.as_bytes(), b".", seconds.as_bytes(), b".", body] {
            mac.update(part);
        }
        mac
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The value of `webhook-signature`: one signature per secret.
///
/// ```
/// use mainstay_saga::signature::{Secret, sign};
///
/// let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
/// let text = sign(&[secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
/// assert_eq!(text, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
/// ```
#[must_use]
pub fn sign(secrets: &[Secret], id: &str, unix_seconds: i64, body: &[u8]) -> String {
    let seconds = unix_seconds.to_string();
    let mut text = String::new();
    for secret in secrets {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str("v1,");
        STANDARD.encode_string(secret.mac(id, &seconds, body).finalize().into_bytes(), &mut text);
    }
    text
}

/// Why a signature is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// A header is missing or cannot be read.
    #[error("a webhook header is missing or malformed")]
    Malformed,
    /// The timestamp is too far from this clock.
    #[error("the webhook timestamp is outside the tolerance")]
    Time,
    /// No signature fits a secret.
    #[error("no webhook signature fits")]
    Signature,
}

/// Checks the signature of a request: one that fits any of `secrets` is enough. Compares in constant time.
///
/// # Errors
/// Why it is not accepted.
pub fn verify(
    secrets: &[Secret],
    headers: &HeaderMap,
    body: &[u8],
    now: WallTime,
    tolerance: Duration,
) -> Result<(), Refused> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).ok_or(Refused::Malformed);
    let (id, seconds, signatures) =
        (text("webhook-id")?, text("webhook-timestamp")?, text("webhook-signature")?);
    let at: i64 = seconds.parse().map_err(|_| Refused::Malformed)?;
    let apart = (now.unix_millis() / 1_000).abs_diff(at);
    if apart > tolerance.as_secs() {
        return Err(Refused::Time);
    }
    let given = signatures.split(' ').take(MAX_SIGNATURES).filter_map(|s| s.strip_prefix("v1,"));
    for given in given.filter_map(|s| STANDARD.decode(s).ok()) {
        if secrets.iter().any(|secret| secret.mac(id, seconds, body).verify_slice(&given).is_ok()) {
            return Ok(());
        }
    }
    Err(Refused::Signature)
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const AT: i64 = 1_614_265_330;

    fn secret(fill: u8) -> Secret {
        Secret::parse(&format!("whsec_{}", STANDARD.encode([fill; 24]))).unwrap()
    }

    fn headers(signature: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek".parse().unwrap());
        headers.insert("webhook-timestamp", AT.to_string().parse().unwrap());
        headers.insert("webhook-signature", signature.parse().unwrap());
        headers
    }

    #[track_caller]
    fn check(secrets: &[Secret], headers: &HeaderMap, body: &[u8], late: i64, expected: Result<(), Refused>) {
        let now = WallTime::from_unix_millis((AT + late) * 1_000);
        assert_eq!(verify(secrets, headers, body, now, TOLERANCE), expected);
    }

    #[test]
    fn sec_16_the_published_vector_is_accepted_and_nothing_beside_it() {
        let secrets = [Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap()];
        let fine = headers("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        check(&secrets, &fine, BODY, 0, Ok(()));
        check(&secrets, &fine, BODY, 300, Ok(()));
        check(&secrets, &fine, BODY, 301, Err(Refused::Time));
        check(&secrets, &fine, BODY, -301, Err(Refused::Time));
        check(&secrets, &fine, b"{}", 0, Err(Refused::Signature));
        check(&[secret(1)], &fine, BODY, 0, Err(Refused::Signature));
        let mut other_id = fine.clone();
        other_id.insert("webhook-id", "other".parse().unwrap());
        check(&secrets, &other_id, BODY, 0, Err(Refused::Signature));
        for (name, value) in [("webhook-timestamp", "soon"), ("webhook-timestamp", "")] {
            let mut bad = fine.clone();
            bad.insert(name, value.parse().unwrap());
            check(&secrets, &bad, BODY, 0, Err(Refused::Malformed));
        }
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            let mut bad = fine.clone();
            bad.remove(name);
            check(&secrets, &bad, BODY, 0, Err(Refused::Malformed));
        }
        for text in ["", "v1,", "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", "v1,AAAA", "g0hM9"] {
            check(&secrets, &headers(text), BODY, 0, Err(Refused::Signature));
        }
    }

    #[test]
    fn sec_16_a_secret_is_exchanged_without_a_pause() {
        let (old, new) = (secret(1), secret(2));
        let both = headers(&sign(&[old.clone(), new.clone()], "msg_p5jXN8AQM9LWM0D4loKWxJek", AT, BODY));
        check(from_ref(&old), &both, BODY, 0, Ok(()));
        check(from_ref(&new), &both, BODY, 0, Ok(()));
        let one = headers(&sign(from_ref(&old), "msg_p5jXN8AQM9LWM0D4loKWxJek", AT, BODY));
        check(&[new.clone(), old], &one, BODY, 0, Ok(()));
        check(&[new], &one, BODY, 0, Err(Refused::Signature));
    }

    #[test]
    fn a_secret_has_one_form_and_is_not_printed() {
        for bad in ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_***"] {
            assert_eq!(Secret::parse(bad).unwrap_err().kind(), ErrorKind::Config, "{bad}");
        }
        assert!(Secret::parse(&format!("whsec_{}", STANDARD.encode([7; 65]))).is_err());
        assert_eq!(format!("{:?}", secret(1)), "Secret(..)");
    }
}
