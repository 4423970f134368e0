//! The way in: a token once, then a cookie that is not the token.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use maud::html;

use crate::api::query::Query;
use crate::console::{Console, page, see_other};
use crate::error::Code;
use crate::http::{FormToken, Peer, Problem};

/// Longest address to go on to.
const MAX_NEXT: usize = 2_048;

/// An address below the mount, so that a login leads nowhere else.
fn own(next: &str) -> &str {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.~/?&=%,".contains(c);
    let fine = !next.is_empty()
        && next.len() <= MAX_NEXT
        && next.chars().all(legal)
        && next.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !next.contains("//")
        && !next.split(['/', '?']).any(|part| part == "..");
    if fine { next } else { "now" }
}

/// `GET login`.
pub(super) async fn show(
    State(console): State<Arc<Console>>,
    Extension(form): Extension<FormToken>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let mut query = Query::parse(raw.as_deref())?;
    let next = query.take("next").unwrap_or_default();
    query.end()?;
    if !console.access.needed()? {
        return Ok(see_other(own(&next)));
    }
    Ok(asked(&form, &next, None))
}

fn asked(form: &FormToken, next: &str, wrong: Option<&str>) -> Response {
    let body = html! {
        h1 { "Log in" }
        @if let Some(why) = wrong { p.notice.bad role="alert" { (why) } }
        form.stack method="post" action="login" {
            input type="hidden" name="form" value=(form.0);
            input type="hidden" name="next" value=(own(next));
            label for="token" { "Token" }
            input #token type="password" name="token" autocomplete="current-password" required spellcheck="false" autofocus aria-describedby="hint";
            p.dim #hint { "Made with " code { "mainstay token create" } ". This browser gets a session instead; the token is not kept." }
            button.primary type="submit" { "Log in" }
        }
        p.dim { "Came here by a link although you are logged in? " a href=(own(next)) { "Go on" } "." }
    };
    let status = if wrong.is_some() { StatusCode::UNAUTHORIZED } else { StatusCode::OK };
    page::bare(status, "Log in", "", &body)
}

/// `POST login`.
pub(super) async fn submit(
    State(console): State<Arc<Console>>,
    Extension(form): Extension<FormToken>,
    Extension(Peer { ip: from, .. }): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let mut fields = fields(&form, &body)?;
    let (token, next) = (fields.take("token").unwrap_or_default(), fields.take("next").unwrap_or_default());
    fields.end()?;
    let clock = console.app.rt.clock();
    match console.access.login(token.trim(), from, (clock.now(), clock.wall())) {
        Ok(id) => {
            let mut response = see_other(own(&next));
            set_cookie(&mut response, &console.access.sessions.cookie(&headers, &id));
            Ok(response)
        }
        Err(problem) if problem.code() == Code::Unauthenticated => {
            Ok(asked(&form, &next, Some("This token is not valid, or no longer.")))
        }
        Err(problem) => Err(problem),
    }
}

/// `POST logout`.
pub(super) async fn leave(
    State(console): State<Arc<Console>>,
    Extension(form): Extension<FormToken>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    fields(&form, &body)?.end()?;
    let sessions = &console.access.sessions;
    if let Some(id) = sessions.presented(&headers) {
        sessions.close(id);
    }
    let mut response = see_other("login");
    set_cookie(&mut response, &sessions.cookie(&headers, ""));
    Ok(response)
}

/// The fields of a form that is ours.
///
/// # Errors
/// 403 without the token that only our own pages carry, 400 for fields that come twice.
pub(super) fn fields(form: &FormToken, body: &[u8]) -> Result<Query, Problem> {
    let text =
        std::str::from_utf8(body).map_err(|_| Problem::new(Code::BadRequest, "the form is not ASCII"))?;
    let mut fields = Query::parse(Some(text))?;
    if !fields.take("form").is_some_and(|given| form.is(&given)) {
        let why = "the form is not from this console, or older than this login: load the page again";
        return Err(Problem::new(Code::CrossSite, why));
    }
    Ok(fields)
}

fn set_cookie(response: &mut Response, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::own;

    #[test]
    fn a_login_leads_to_our_own_pages_only() {
        for good in ["now", "sagas?status=running%2Cwaiting", "sagas/018f-a/act?do=retry"] {
            assert_eq!(own(good), good);
        }
        let long = "a".repeat(3_000);
        for bad in [
            "",
            "/",
            "//evil.example",
            "https://evil.example",
            "../x",
            "a/../b",
            "javascript:x",
            "\\\\e",
            &long,
        ] {
            assert_eq!(own(bad), "now", "{bad}");
        }
    }
}
