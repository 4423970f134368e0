//! Who looks, from where: what every page needs to know of its request.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::header;
use http::request::Parts;

use crate::console::Console;
use crate::error::Code;
use crate::http::{Caller, FormToken, Problem, Scope};

/// A request for a page.
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) caller: Caller,
    pub(super) form: FormToken,
    /// The address of the API as this browser would write it, without a slash at its end.
    pub(super) origin: String,
}

impl Visit {
    /// Whether the visitor may change sagas. Enforced at the gate; here it only hides what would be refused.
    pub(super) fn operates(&self) -> bool {
        self.caller.scope >= Scope::Operate
    }

    /// Whether the visitor may see audit and configuration.
    pub(super) fn administers(&self) -> bool {
        self.caller.scope >= Scope::Admin
    }
}

impl FromRequestParts<Arc<Console>> for Visit {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, console: &Arc<Console>) -> Result<Self, Problem> {
        let missing = || Problem::new(Code::Internal, "the console is mounted without a gate");
        let caller = parts.extensions.get::<Caller>().cloned().ok_or_else(missing)?;
        let form = parts.extensions.get::<FormToken>().cloned().ok_or_else(missing)?;
        let text = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
        let plain = |text: &str, more: &str| -> String {
            text.chars().filter(|c| c.is_ascii_alphanumeric() || more.contains(*c)).collect()
        };
        let secure = console.access.sessions.is_secure() || text("x-forwarded-proto") == "https";
        let scheme = if secure { "https" } else { "http" };
        let host = plain(text(header::HOST.as_str()), ".:[]-");
        let prefix = plain(text("x-forwarded-prefix"), "/-_.~").trim_end_matches('/').to_owned();
        Ok(Self { caller, form, origin: format!("{scheme}://{host}{prefix}") })
    }
}
