//! The HTTP edge: the accept loop, limits, who may do what, problems. What a request means is `api`.

mod accept;
mod auth;
mod gate;
mod guard;
mod patient;
mod prefer;
mod problem;
mod reach;
mod sessions;
mod stamp;
mod tls;
mod tokens;
mod trace;

pub(crate) use accept::{bind, serve};
pub(crate) use auth::{Access, Caller, Clients, Scope};
#[cfg(test)]
pub(crate) use gate::may_wait;
pub(crate) use gate::{Gate, Limits, Pages, Peer};
pub(crate) use prefer::preferred_wait;
pub(crate) use problem::{Fault, Problem};
pub(crate) use reach::is_namespace;
pub(crate) use sessions::{FormToken, Sessions};
pub(crate) use tls::{Tls, TlsFiles};
pub(crate) use tokens::{NewToken, Tokens};
pub(crate) use trace::Trace;
