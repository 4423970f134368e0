//! The preference `wait` (RFC 7240).

use http::HeaderMap;

/// What a client says after `wait=` in a `Prefer` header, whatever else it prefers; the first one counts.
pub(crate) fn preferred_wait(headers: &HeaderMap) -> Option<String> {
    let lines = headers.get_all("prefer").iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| parts(line, ',')).find_map(|preference| {
        // Parameters follow.
        let (name, value) = parts(preference, ';').first()?.split_once('=')?;
        let value = value.trim();
        let bare = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        name.trim().eq_ignore_ascii_case("wait").then(|| bare.to_owned())
    })
}

/// The parts of a list; a quoted text is one piece.
fn parts(text: &str, mark: char) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(|c: char| {
        let here = !quoted && c == mark;
        quoted ^= c == '"' && !escaped;
        escaped = quoted && c == '\\' && !escaped;
        here
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_found_among_other_preferences() {
        let wait = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("prefer", line.parse().unwrap());
            }
            preferred_wait(&headers)
        };
        for lines in [
            &["wait=30"][..],
            &["wait=30, respond-async"],
            &["respond-async,Wait = \"30\""],
            &["return=minimal; a=\"x, wait=9\"", "wait=30; b=1"],
            &["x=\"\\\", wait=9\", wait=30"],
            &["wait=30, wait=60"],
        ] {
            assert_eq!(wait(lines).as_deref(), Some("30"), "{lines:?}");
        }
        for lines in [&[][..], &["respond-async"], &["wait"], &["x=\"wait=30\""], &["x; wait=30"]] {
            assert_eq!(wait(lines), None, "{lines:?}");
        }
    }
}
