//! The HTTP edge: the accept loop, limits, who may do what, problems. What a request means is `api`.

mod accept;
mod auth;
mod gate;
mod guard;
mod patient;
mod problem;
mod stamp;
mod tls;
mod tokens;
mod trace;

pub(crate) use accept::{bind, serve};
pub(crate) use auth::{Caller, Scope};
pub(crate) use gate::{Gate, Limits};
pub(crate) use problem::{Fault, Problem};
pub(crate) use tls::acceptor as tls_acceptor;
pub(crate) use tokens::{NewToken, Tokens};
pub(crate) use trace::Trace;
