//! Participants over HTTP (feature `http`).
//!
//! [`HttpParticipant`] makes the calls of an engine: `POST` with the step's input and the protocol's headers
//! (`Idempotency-Key`, `Saga-*`, `Fencing-Token`, signatures), over kept connections, HTTP/1.1. A required
//! [`AddressPolicy`] decides which addresses may be called at all. It is asked three times: when a definition
//! is registered, before every call, and for every address that a name resolves to; what was checked is what
//! is dialed, so a name that changes its address between check and call gains nothing. No proxy of the
//! environment is used, no redirect is followed, and nothing is sent twice behind the engine's back.
//!
//! Replies are bounded in size and time. What is not a complete reply within both is `Unknown`; only what is
//! proven not to have left this node is `NotSent`.

mod address;
mod caller;
mod resolve;

pub use address::{AddressPolicy, Refusal, RefusalKind, origin};
pub use caller::{Builder, HttpParticipant, install_tls};
pub use resolve::{Resolve, SystemResolver};
