//! Deadlines, attempt numbers and keys on the wire.
//!
//! The clocks of two machines cannot be compared, so what travels is the time remaining: in `grpc-timeout` (gRPC
//! over HTTP/2: at most eight digits and a unit) and, for plain HTTP, as milliseconds in
//! [`TIMEOUT_MS`]. Both are rounded down: a deadline never grows on its way.

use std::time::Duration;

use mainstay_clock::{Deadline, Instant};

use crate::Attempt;

/// gRPC's header of the time remaining.
pub const GRPC_TIMEOUT: &str = "grpc-timeout";
/// gRPC's header of the number of attempts before this one.
pub const GRPC_PREVIOUS_ATTEMPTS: &str = "grpc-previous-rpc-attempts";
/// Our header of the time remaining, in milliseconds.
pub const TIMEOUT_MS: &str = "x-timeout-ms";
/// The header of the idempotency key, as in the IETF draft of that name.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The largest number in `grpc-timeout`.
const MAX_VALUE: u128 = 99_999_999;
/// Units from fine to coarse, with their nanoseconds.
const UNITS: [(char, u128); 6] = [
    ('n', 1),
    ('u', 1_000),
    ('m', 1_000_000),
    ('S', 1_000_000_000),
    ('M', 60_000_000_000),
    ('H', 3_600_000_000_000),
];

/// A header that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("header `{header}` cannot be read: `{value}`; expected {expected}")]
pub struct WireError {
    header: &'static str,
    value: String,
    expected: &'static str,
}

impl WireError {
    fn new(header: &'static str, value: &str, expected: &'static str) -> Self {
        // Enough to recognize it; the sender chose its length.
        Self { header, value: value.chars().take(64).collect(), expected }
    }

    /// The name of the header.
    #[must_use]
    pub fn header(&self) -> &'static str {
        self.header
    }
}

/// Writes a `grpc-timeout`: the finest unit in which the number fits, rounded down. Zero becomes the smallest
/// value, since the format has no zero.
///
/// ```
/// use mainstay_resilience::timeout::wire::{read_grpc, write_grpc};
/// use std::time::Duration;
///
/// assert_eq!(write_grpc(Duration::from_millis(50)), "50000000n");
/// assert_eq!(write_grpc(Duration::from_secs(2)), "2000000u");
/// assert_eq!(read_grpc("2S"), Ok(Duration::from_secs(2)));
/// assert!(read_grpc("2s").is_err());
/// ```
#[must_use]
pub fn write_grpc(remaining: Duration) -> String {
    let nanos = remaining.as_nanos().max(1);
    let fits = UNITS.iter().find(|(_, unit)| nanos / unit <= MAX_VALUE);
    match fits {
        Some((name, unit)) => format!("{}{name}", nanos / unit),
        None => format!("{MAX_VALUE}H"),
    }
}

/// Reads a `grpc-timeout`.
///
/// # Errors
/// [`WireError`] unless it is one to eight digits and one of `H M S m u n`.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::timeout::wire::read_grpc;
///
/// assert_eq!(read_grpc("250m"), Ok(Duration::from_millis(250)));
/// for garbage in ["", "m", "250", "-1m", "123456789m", "250 m"] {
///     assert!(read_grpc(garbage).is_err(), "{garbage}");
/// }
/// ```
pub fn read_grpc(value: &str) -> Result<Duration, WireError> {
    let error = || WireError::new(GRPC_TIMEOUT, value, "1 to 8 digits and one of H M S m u n");
    let unit = value.chars().last().ok_or_else(error)?;
    let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(error)?;
    let digits = &value[..value.len() - unit.len_utf8()];
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(error());
    }
    let number: u128 = digits.parse().map_err(|_| error())?;
    let nanos = number * nanos;
    let seconds = u64::try_from(nanos / 1_000_000_000).map_err(|_| error())?;
    let rest = u32::try_from(nanos % 1_000_000_000).map_err(|_| error())?;
    Ok(Duration::new(seconds, rest))
}

/// Writes [`TIMEOUT_MS`], rounded down.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::timeout::wire::{read_ms, write_ms};
///
/// assert_eq!(write_ms(Duration::from_micros(1_999)), "1"); // a deadline never grows on its way
/// assert_eq!(read_ms(" 250 "), Ok(Duration::from_millis(250)));
/// assert_eq!(read_ms("-1").unwrap_err().header(), "x-timeout-ms");
/// ```
#[must_use]
pub fn write_ms(remaining: Duration) -> String {
    remaining.as_millis().to_string()
}

/// Reads [`TIMEOUT_MS`].
///
/// # Errors
/// [`WireError`] unless it is a number of milliseconds.
pub fn read_ms(value: &str) -> Result<Duration, WireError> {
    let error = || WireError::new(TIMEOUT_MS, value, "a number of milliseconds");
    let digits = value.trim();
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(error());
    }
    // More than fits is as good as no bound.
    Ok(Duration::from_millis(digits.parse().unwrap_or(u64::MAX)))
}

/// The deadline that a request brought along, from whichever of the two headers is there; the earlier one if both
/// are. `header` looks one up by its lower-case name.
///
/// # Errors
/// [`WireError`] for a header that cannot be read. Whoever serves decides: ignore it, or refuse the request.
///
/// ```
/// use mainstay_clock::Instant;
/// use mainstay_resilience::timeout::wire;
/// use std::time::Duration;
///
/// let now = Instant::from_nanos(1_000);
/// let deadline = wire::read(|name| (name == "x-timeout-ms").then_some("250"), now).unwrap();
/// assert_eq!(deadline.remaining(now), Some(Duration::from_millis(250)));
/// assert!(!wire::read(|_| None, now).unwrap().is_some());
/// ```
pub fn read<'h>(header: impl Fn(&str) -> Option<&'h str>, now: Instant) -> Result<Deadline, WireError> {
    let mut deadline = Deadline::NONE;
    if let Some(value) = header(GRPC_TIMEOUT) {
        deadline = deadline.child(now, read_grpc(value)?);
    }
    if let Some(value) = header(TIMEOUT_MS) {
        deadline = deadline.child(now, read_ms(value)?);
    }
    Ok(deadline)
}

/// The headers of an attempt: time remaining in both forms, previous attempts if there were any, and the
/// idempotency key, which is the same for every attempt.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::{CallContext, Policy, timeout::wire};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let policy = Policy::builder("shop").attempt_timeout(Duration::from_secs(1)).build().unwrap();
/// let cx = CallContext::new().with_key("order-17");
/// let sent = policy.call(&cx, |attempt| {
///     let headers = wire::headers(&attempt);
///     async move { Ok::<_, std::io::Error>(headers) }
/// });
/// let sent = sent.await.unwrap();
/// let names: Vec<_> = sent.iter().map(|(name, _)| *name).collect();
/// assert_eq!(names, ["grpc-timeout", "x-timeout-ms", "idempotency-key"]);
/// # });
/// ```
#[must_use]
pub fn headers(attempt: &Attempt<'_>) -> Vec<(&'static str, String)> {
    let mut headers = Vec::with_capacity(4);
    if let Some(remaining) = attempt.remaining() {
        headers.push((GRPC_TIMEOUT, write_grpc(remaining)));
        headers.push((TIMEOUT_MS, write_ms(remaining)));
    }
    if attempt.number() > 1 {
        headers.push((GRPC_PREVIOUS_ATTEMPTS, (attempt.number() - 1).to_string()));
    }
    if let Some(key) = attempt.key() {
        headers.push((IDEMPOTENCY_KEY, key.to_owned()));
    }
    headers
}
