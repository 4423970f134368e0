//! Reading a server's advice when to come back.

use std::time::{Duration, UNIX_EPOCH};

use mainstay_clock::WallTime;

/// The advice of a `Retry-After` header: a number of seconds, or an HTTP date that becomes a duration here and
/// now, once. A date in the past is zero; garbage and negative numbers are no advice.
///
/// ```
/// use mainstay_clock::WallTime;
/// use mainstay_resilience::retry::retry_after;
/// use std::time::Duration;
///
/// let now = WallTime::from_unix_millis(784_111_777_000); // Sun, 06 Nov 1994 08:49:37 GMT
/// assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
/// assert_eq!(retry_after("Sun, 06 Nov 1994 08:50:37 GMT", now), Some(Duration::from_secs(60)));
/// assert_eq!(retry_after("Sat, 06 Nov 1993 08:50:37 GMT", now), Some(Duration::ZERO));
/// assert_eq!(retry_after("soon", now), None);
/// ```
#[must_use]
pub fn retry_after(value: &str, now: WallTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than a u64 holds are still a number: a huge one, which the retry bounds.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let at = httpdate::parse_http_date(value).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let now = Duration::from_millis(u64::try_from(now.unix_millis()).unwrap_or(0));
    Some(at.saturating_sub(now))
}

/// The advice of gRPC's `grpc-retry-pushback-ms`: wait so long, or do not come back at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pushback {
    /// Do not retry: a negative number, or one that cannot be read.
    Stop,
    /// Wait so long.
    Wait(Duration),
}

/// Reads gRPC's `grpc-retry-pushback-ms`.
///
/// ```
/// use mainstay_resilience::retry::{Pushback, pushback};
/// use std::time::Duration;
///
/// assert_eq!(pushback("250"), Pushback::Wait(Duration::from_millis(250)));
/// assert_eq!(pushback("-1"), Pushback::Stop);
/// ```
#[must_use]
pub fn pushback(value: &str) -> Pushback {
    value.trim().parse().map_or(Pushback::Stop, |ms| Pushback::Wait(Duration::from_millis(ms)))
}
