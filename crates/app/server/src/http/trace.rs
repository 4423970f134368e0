//! W3C trace context: taken from the request when it is well-formed, else a new one.

use http::HeaderMap;
use mainstay_clock::Rng;

/// The trace that a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    id: String,
    /// This hop: the parent of what is called for this request.
    span: u64,
    flags: u8,
}

impl Trace {
    /// The trace of a request. A malformed header is ignored and a new trace starts.
    pub(crate) fn of(headers: &HeaderMap, rng: &dyn Rng) -> Self {
        let given = headers.get("traceparent").and_then(|v| v.to_str().ok()).and_then(parse);
        let fresh = || (format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64() | 1), 0);
        let (id, flags) = given.unwrap_or_else(fresh);
        Self { id, span: rng.next_u64() | 1, flags }
    }

    /// `traceparent` for what is called because of this request.
    pub(crate) fn onward(&self) -> String {
        format!("00-{}-{:016x}-{:02x}", self.id, self.span, self.flags)
    }

    /// 32 hex digits.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }
}

/// The trace id and the flags of `00-<32 hex>-<16 hex>-<2 hex>`.
fn parse(text: &str) -> Option<(String, u8)> {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |s: &str, n: usize| {
        s.len() == n && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let [version, trace, parent, flags, ..] = parts.as_slice() else { return None };
    let well_formed = hex(version, 2) && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
    let legal = *version != "ff" && (*version != "00" || parts.len() == 4);
    let set = trace.bytes().any(|b| b != b'0') && parent.bytes().any(|b| b != b'0');
    let flags = u8::from_str_radix(flags, 16).ok()?;
    (well_formed && legal && set).then(|| ((*trace).to_owned(), flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_traces_are_ignored() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(parse(good), Some(("4bf92f3577b34da6a3ce929d0e0e4736".to_owned(), 1)));
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
