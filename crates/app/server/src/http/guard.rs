//! Against browsers that were tricked: DNS rebinding and cross-site writes.

use std::net::IpAddr;

use http::{HeaderMap, Method, Uri, header};

use crate::error::Code;
use crate::http::Problem;

/// Refuses hosts that are neither loopback nor allowed. Only without authentication: with it, a page on a
/// rebound name has no token.
///
/// # Errors
/// 403 as a problem.
pub(crate) fn host(uri: &Uri, headers: &HeaderMap, allowed: &[String]) -> Result<(), Problem> {
    let named = headers.get(header::HOST).and_then(|v| v.to_str().ok());
    let both = [uri.authority().map(http::uri::Authority::as_str), named];
    let fine = |authority: &str| {
        let name = host_of(authority);
        is_loopback(name) || allowed.iter().any(|a| a.eq_ignore_ascii_case(name))
    };
    if named.is_some() && both.into_iter().flatten().all(fine) {
        return Ok(());
    }
    Err(Problem::new(Code::BadHost, "the Host header names neither loopback nor an allowed host"))
}

fn is_loopback(name: &str) -> bool {
    let literal = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || literal.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The host of `host[:port]`.
fn host_of(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(i) if !authority[i..].contains(']') => &authority[..i],
        _ => authority,
    }
}

/// Refuses a changing request that a browser sends for a page of another origin.
///
/// Holds by itself, without a token in the page: browsers send `Sec-Fetch-Site`, older ones `Origin`; what
/// sends neither is not a browser.
///
/// # Errors
/// 403 as a problem.
pub(crate) fn cross_site(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let text = |name| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
    let fine = match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => {
            let host = text("host").unwrap_or("");
            origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host))
        }
        (None, None) => true,
    };
    if fine { Ok(()) } else { Err(Problem::new(Code::CrossSite, "a page of another site sent this request")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn sec_19_only_loopback_and_allowed_hosts_pass() {
        let allowed = ["node.internal".to_owned()];
        let check = |h: &'static str| host(&Uri::from_static("/"), &headers(&[("host", h)]), &allowed);
        for good in
            ["localhost", "LOCALHOST:80", "127.0.0.1:1", "127.8.8.8", "[::1]:1", "[::1]", "node.internal:9"]
        {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in
            ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::2]:1", "", "10.0.0.1"]
        {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(host(&Uri::from_static("/"), &HeaderMap::new(), &allowed).is_err(), "no Host at all");
        let absolute = Uri::from_static("http://evil.example/v1/sagas");
        assert!(host(&absolute, &headers(&[("host", "localhost")]), &allowed).is_err(), "absolute form");
    }

    #[test]
    fn sec_18_cross_site_writes_are_refused() {
        let post =
            |pairs: &[(&'static str, &'static str)]| cross_site(&Method::POST, &headers(pairs)).is_ok();
        assert!(post(&[]));
        assert!(post(&[("sec-fetch-site", "same-origin"), ("origin", "http://a")]));
        assert!(post(&[("sec-fetch-site", "none")]));
        assert!(post(&[("origin", "http://h:1"), ("host", "h:1")]));
        assert!(!post(&[("sec-fetch-site", "cross-site")]));
        assert!(!post(&[("sec-fetch-site", "same-site"), ("origin", "http://h:1"), ("host", "h:1")]));
        assert!(!post(&[("origin", "http://h:2"), ("host", "h:1")]));
        assert!(!post(&[("origin", "null"), ("host", "h:1")]));
        assert!(cross_site(&Method::GET, &headers(&[("sec-fetch-site", "cross-site")])).is_ok());
    }
}
