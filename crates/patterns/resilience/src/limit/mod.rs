//! Limits: calls per time, calls in flight, and who is refused when not all can be served.
//!
//! | type | bounds | follows |
//! |---|---|---|
//! | [`RateLimiter`], [`KeyedRateLimiter`] | calls per time | a configured rate |
//! | [`AdaptiveLimiter`] | calls in flight | the latency of the service |
//! | [`ClientThrottle`] | what is sent to a service that refuses | the share it accepts |
//! | [`SendRate`] | attempts per time to a service that throttles | what it throttles |
//! | [`Shedder`] | what a server takes in beyond its limit | priority and the tenants' shares |
//!
//! All of them decide locally, without waiting, and refuse with a [`Rejected`](crate::Rejected) that names the
//! limiter. Only [`RateLimiter::acquire`] and [`SendRate`] wait, and only as long as the deadline allows.

mod adaptive;
mod parts;
mod rate;
mod send;
mod shed;
mod throttle;

pub use adaptive::{AdaptiveBuilder, AdaptiveLimiter, AdaptivePermit, AdaptiveSnapshot, Algorithm};
pub use rate::{KeyedRateLimiter, OverBurst, RateBuilder, RateError, RateLimiter};
pub(crate) use send::Token;
pub use send::{SendBuilder, SendRate, SendSnapshot, SendTicket};
pub use shed::{ShedPermit, Shedder, ShedderBuilder};
pub use throttle::{ClientThrottle, ThrottleBuilder, ThrottleTicket};
