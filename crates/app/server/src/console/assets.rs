//! Style and script, compiled in. No library: the script is our own.

use axum::extract::Path;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, StatusCode, header};
use mainstay_store::journal::Hash;

use crate::api::json::bytes;
use crate::error::Code;
use crate::http::Problem;

/// Name, media type, content.
const ALL: [(&str, &str, &str); 3] = [
    ("console.css", "text/css; charset=utf-8", include_str!("assets/console.css")),
    ("console.js", "text/javascript; charset=utf-8", include_str!("assets/console.js")),
    ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
];

/// The address of an asset below the mount; it changes with its content, so it can be kept for ever.
pub(super) fn address(name: &str) -> String {
    let content = ALL.iter().find(|(n, _, _)| *n == name).map_or("", |(_, _, c)| c);
    format!("assets/{name}?v={}", &Hash::of(content.as_bytes()).to_string()[..12])
}

/// `GET assets/{name}`.
pub(super) async fn serve(Path(name): Path<String>) -> Response {
    let Some((_, kind, content)) = ALL.iter().find(|(n, _, _)| *n == name) else {
        return Problem::new(Code::NotFound, "no such asset").into_response();
    };
    let mut response = bytes(StatusCode::OK, kind, *content);
    let keep = HeaderValue::from_static("public, max-age=31536000, immutable");
    response.headers_mut().insert(header::CACHE_CONTROL, keep);
    response
}
