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
    /// What tracing systems added, as it came: nothing of ours goes in.
    state: Option<String>,
}

/// Most members of a `tracestate`; more are malformed.
const MAX_MEMBERS: usize = 32;
/// Longest `tracestate` that is sent on: what every hop should pass, in bytes.
const MAX_STATE: usize = 512;
/// A member longer than this goes first when there is too much.
const LONG_MEMBER: usize = 128;

impl Trace {
    /// The trace of a request. A malformed header is ignored and a new trace starts.
    pub(crate) fn of(headers: &HeaderMap, rng: &dyn Rng) -> Self {
        let mut parents = headers.get_all("traceparent").iter();
        let given = parents.next().and_then(|v| v.to_str().ok()).and_then(parse);
        // Two of them are none.
        let given = given.filter(|_| parents.next().is_none());
        // Only what belongs to the trace that goes on is sent on with it.
        let state = given.as_ref().and_then(|_| state(headers));
        let fresh = || (format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64() | 1), 0);
        let (id, flags) = given.unwrap_or_else(fresh);
        Self { id, span: rng.next_u64() | 1, flags, state }
    }

    /// `traceparent` for what is called because of this request.
    pub(crate) fn onward(&self) -> String {
        format!("00-{}-{:016x}-{:02x}", self.id, self.span, self.flags)
    }

    /// `tracestate` for what is called because of this request.
    pub(crate) fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// 32 hex digits.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }
}

/// The `tracestate` of a request, in one header and within its bounds. A malformed one is dropped whole, and the trace
/// goes on without it.
fn state(headers: &HeaderMap) -> Option<String> {
    let mut members: Vec<&str> = Vec::new();
    for header in headers.get_all("tracestate") {
        let found = header.to_str().ok()?.split(',').map(|m| m.trim_matches([' ', '\t']));
        members.extend(found.filter(|m| !m.is_empty()));
    }
    let mut keys: Vec<&str> = members.iter().map(|m| member(m)).collect::<Option<_>>()?;
    keys.sort_unstable();
    if members.is_empty() || members.len() > MAX_MEMBERS || keys.windows(2).any(|w| w[0] == w[1]) {
        return None;
    }
    let size = |members: &[&str]| members.iter().map(|m| m.len() + 1).sum::<usize>() - 1;
    while size(&members) > MAX_STATE {
        let long = members.iter().rposition(|m| m.len() > LONG_MEMBER);
        members.remove(long.unwrap_or(members.len() - 1));
        if members.is_empty() {
            return None;
        }
    }
    Some(members.join(","))
}

/// The key of a well-formed member.
fn member(text: &str) -> Option<&str> {
    let (key, value) = text.split_once('=')?;
    let part = |part: &str, longest: usize| {
        let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/".contains(&b);
        let begins = part.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        begins && part.len() <= longest && part.bytes().all(letters)
    };
    let good_key = match key.split_once('@') {
        Some((tenant, system)) => part(tenant, 241) && part(system, 14),
        None => part(key, 256),
    };
    let printable = |b: u8| (0x20..0x7f).contains(&b) && b != b'=';
    let good_value = !value.is_empty() && value.len() <= 256 && value.bytes().all(printable);
    (good_key && good_value).then_some(key)
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

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn sent_on(parents: &[&str], states: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for (name, values) in [("traceparent", parents), ("tracestate", states)] {
            for value in values {
                headers.append(name, value.parse().unwrap());
            }
        }
        Trace::of(&headers, &mainstay_clock::SeededRng::new(1)).state().map(str::to_owned)
    }

    #[test]
    fn if_h08_what_tracing_systems_added_goes_on_with_its_trace() {
        let on = |states: &[&str]| sent_on(&[PARENT], states);
        assert_eq!(
            on(&["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"]).unwrap(),
            "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
        );
        assert_eq!(on(&["a=1, b=2", "\tc@dd=x y"]).unwrap(), "a=1,b=2,c@dd=x y", "several headers, in order");
        assert_eq!(on(&["a=1,,b=2, "]).unwrap(), "a=1,b=2", "empty members are none");
        assert_eq!(sent_on(&[], &["a=1"]), None, "without its trace it means nothing");
        assert_eq!(sent_on(&["garbage"], &["a=1"]), None);
        assert_eq!(sent_on(&[PARENT, PARENT], &["a=1"]), None);
        for bad in ["", "a", "=1", "a=", "A=1", "a=1=2", "a=1,a=2", "a@=1", "@a=1", "a b=1", "a=1\t2", "-a=1"]
        {
            assert_eq!(on(&[bad]), None, "{bad:?}");
        }
        let members = |n: usize| (0..n).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
        assert_eq!(on(&[&members(32)]).unwrap(), members(32));
        assert_eq!(on(&[&members(33)]), None);
    }

    #[test]
    fn if_h08_what_is_too_long_loses_long_members_first_and_then_the_last() {
        let value = |n: usize| "x".repeat(n);
        let all = format!("a={},b={},c={},d=1", value(90), value(200), value(250));
        assert_eq!(sent_on(&[PARENT], &[&all]).unwrap(), format!("a={},b={},d=1", value(90), value(200)));
        let short: Vec<String> = (0..6).map(|i| format!("{i}={}", value(98))).collect();
        assert_eq!(sent_on(&[PARENT], &[&short.join(",")]).unwrap(), short[..5].join(","));
    }
}
