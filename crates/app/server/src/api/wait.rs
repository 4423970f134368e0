//! How long a request may be held back: `Prefer: wait=30` (RFC 7240) or `?wait=30s`.

use std::time::Duration;

use axum::response::Response;
use http::{HeaderMap, HeaderValue};

use crate::api::query::Query;
use crate::error::Code;
use crate::http::{Problem, preferred_wait};

/// Longest wait of one request: longer ones ask again.
const MAX: Duration = Duration::from_secs(60);

/// A wish to wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    /// How long, capped.
    pub(super) time: Duration,
    preferred: bool,
}

impl Wait {
    /// Takes it from the query, else from the header.
    ///
    /// # Errors
    /// 400 for what is no duration.
    pub(super) fn asked(query: &mut Query, headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let preferred = preferred_wait(headers).map(|seconds| format!("{seconds}s"));
        let queried = query.take("wait");
        let by_header = queried.is_none() && preferred.is_some();
        let Some(text) = queried.or(preferred) else { return Ok(None) };
        let time = humantime::parse_duration(&text)
            .map_err(|_| Problem::new(Code::BadQuery, "`wait` is a duration such as 30s"))?;
        Ok(Some(Self { time: time.min(MAX), preferred: by_header }))
    }

    /// Says that the preference was heeded.
    pub(super) fn applied(self, response: &mut Response) {
        if self.preferred {
            response.headers_mut().insert("preference-applied", HeaderValue::from_static("wait"));
        }
    }
}
