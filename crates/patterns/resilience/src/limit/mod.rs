//! Limits: calls per time, calls in flight, and who is refused when not all can be served.
//!
//! | type | bounds | follows |
//! |---|---|---|
//! | [`RateLimiter`], [`KeyedRateLimiter`] | calls per time | a configured rate |
//! | [`AdaptiveLimiter`] | calls in flight | the latency of the service |
//! | [`ClientThrottle`] | what is sent to a service that refuses | the share it accepts |
//! | [`Shedder`] | what a server takes in beyond its limit | priority and the tenants' shares |
//!
//! All four decide locally, without waiting, and refuse with a [`Rejected`](crate::Rejected) that names the
//! limiter. Only [`RateLimiter::acquire`] waits, and only as long as its deadline allows.

mod adaptive;
mod rate;
mod shed;
mod throttle;

pub use adaptive::{AdaptiveBuilder, AdaptiveLimiter, AdaptivePermit, AdaptiveSnapshot, Algorithm};
pub use rate::{KeyedRateLimiter, OverBurst, RateBuilder, RateError, RateLimiter};
pub use shed::{ShedPermit, Shedder, ShedderBuilder};
pub use throttle::{ClientThrottle, ThrottleBuilder, ThrottleTicket};
