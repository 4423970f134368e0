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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    const CSS: &str = include_str!("assets/console.css");

    /// Relative luminance and contrast of WCAG 2.2.
    fn luminance(hex: &str) -> f64 {
        let channel = |i: usize| {
            let c = f64::from(u8::from_str_radix(&hex[i..i + 2], 16).unwrap()) / 255.0;
            if c <= 0.040_45 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    fn contrast(a: &str, b: &str) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    /// The variables of the n-th `:root` block.
    fn colors(n: usize) -> BTreeMap<&'static str, &'static str> {
        let block = CSS.split(":root {").nth(n).unwrap().split('}').next().unwrap();
        block.split(';').filter_map(|d| d.trim().strip_prefix("--")?.split_once(": ")).collect()
    }

    #[test]
    fn if_c12_every_pair_of_colors_is_readable_in_light_and_dark() {
        assert!((contrast("#000000", "#ffffff") - 21.0).abs() < 0.01);
        for scheme in [1, 2] {
            let colors = colors(scheme);
            let check = |text: &str, surface: &str, least: f64| {
                let ratio = contrast(colors[text], colors[surface]);
                assert!(ratio >= least, "scheme {scheme}: {text} on {surface} has {ratio:.2}, needs {least}");
            };
            for text in ["fg", "dim", "link", "good", "warn", "bad", "run", "back"] {
                for surface in ["bg", "card"] {
                    check(text, surface, 4.5);
                }
            }
            for sign in ["good", "warn", "bad", "run", "back", "off"] {
                check(sign, &format!("{sign}-bg"), 4.5);
            }
            check("act-fg", "act", 4.5);
            check("card", "bad", 4.5);
            for text in ["fg", "dim", "off"] {
                check(text, "off-bg", 4.5);
            }
            // Borders of fields, edges of the graph, the ring around what has the focus.
            for line in ["field", "focus"] {
                for surface in ["bg", "card"] {
                    check(line, surface, 3.0);
                }
            }
        }
    }

    #[test]
    fn if_c12_rules_take_their_colors_from_the_checked_pairs_and_keep_the_focus_visible() {
        let rules = CSS.rsplit_once("* { box-sizing").unwrap().1;
        for color in [": #", " #fff", " #000", "rgb", "hsl", "white", "black"] {
            let found = rules.replace("white-space", "").contains(color);
            assert!(!found, "{color} is a color outside of the pairs");
        }
        assert!(CSS.contains(":focus-visible { outline: 3px solid var(--focus)"));
        let removed = CSS.matches("outline: none").count();
        assert_eq!(removed, 1, "only the target of the skip link, which no key stops at");
        assert!(!CSS.contains("url(") && !CSS.contains("@import"), "nothing is loaded from elsewhere");
    }
}
