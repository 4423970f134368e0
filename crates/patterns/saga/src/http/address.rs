//! Which addresses may be called. Pure: names are resolved elsewhere.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;

use crate::definition::Definition;
use crate::{Error, ErrorKind};

/// Which addresses a node may call.
///
/// Made either from a list of origins ([`AddressPolicy::only`]), which is the whole policy then, or as
/// [`AddressPolicy::public`]. In both, what a *name* resolves to must be a public address or lie in a network
/// named by [`AddressPolicy::allow_network`]; loopback, link-local and metadata addresses are reached only by
/// an origin that names the address itself (`http://127.0.0.1:8080`) or says `localhost`.
///
/// ```
/// use mainstay_saga::http::{AddressPolicy, RefusalKind};
///
/// let policy = AddressPolicy::only(["http://127.0.0.1:8080", "https://pay.example"]).unwrap();
/// assert!(policy.check("http://127.0.0.1:8080/charge").is_ok());
/// assert!(policy.check("https://pay.example/charge").is_ok());
/// let refused = policy.check("http://169.254.169.254/latest/meta-data").unwrap_err();
/// assert_eq!(refused.kind(), RefusalKind::Origin);
/// // A listed name may not lead into this machine.
/// assert!(policy.admits("pay.example", "127.0.0.1".parse().unwrap()).is_err());
/// ```
#[derive(Clone, Debug)]
pub struct AddressPolicy {
    /// `scheme://host:port`; without a list: `https` to public addresses.
    origins: Option<BTreeSet<String>>,
    networks: Vec<Network>,
}

impl AddressPolicy {
    /// Only these origins, each `http://HOST[:PORT]` or `https://HOST[:PORT]`; an empty list allows nothing.
    ///
    /// # Errors
    /// `Config` when one is not an origin.
    pub fn only<T: AsRef<str>>(origins: impl IntoIterator<Item = T>) -> Result<Self, Error> {
        let origins = origins.into_iter().map(|o| parse_origin(o.as_ref())).collect::<Result<_, _>>()?;
        Ok(Self { origins: Some(origins), networks: Vec::new() })
    }

    /// Every public address over `https`.
    #[must_use]
    pub fn public() -> Self {
        Self { origins: None, networks: Vec::new() }
    }

    /// Lets names resolve into this network too, such as `10.0.0.0/8` for participants of one cluster.
    ///
    /// # Errors
    /// `Config` when it is not `ADDRESS/BITS`.
    pub fn allow_network(mut self, cidr: &str) -> Result<Self, Error> {
        let network = Network::parse(cidr);
        self.networks.push(network.ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("`{cidr}` is not a network such as 10.0.0.0/8"))
        })?);
        Ok(self)
    }

    /// Whether `url` may be called, as far as that can be said before a name is resolved.
    ///
    /// # Errors
    /// The reason why not.
    pub fn check(&self, url: &str) -> Result<(), Refusal> {
        self.parse(url).map(drop)
    }

    /// Whether `host` may be dialed at `address`.
    ///
    /// # Errors
    /// The reason why not.
    pub fn admits(&self, host: &str, address: IpAddr) -> Result<(), Refusal> {
        let Some(class) = not_public(address) else { return Ok(()) };
        let local = self.origins.is_some() && host.trim_end_matches('.').eq_ignore_ascii_case("localhost");
        if (local && address.is_loopback()) || self.networks.iter().any(|n| n.contains(address)) {
            return Ok(());
        }
        Err(Refusal::new(RefusalKind::Address, format!("{host} is at {address}, a {class} address")))
    }

    /// Every address of a definition that may not be called, with its step.
    #[must_use]
    pub fn violations(&self, definition: &Definition) -> Vec<(String, Refusal)> {
        let mut found = Vec::new();
        for step in definition.steps() {
            for url in step.addresses() {
                found.extend(self.check(url).err().map(|refusal| (step.name.clone(), refusal)));
            }
        }
        found
    }

    pub(super) fn parse(&self, url: &str) -> Result<Url, Refusal> {
        let refuse = |kind, why: &str| Err(Refusal::new(kind, format!("{}: {why}", shown(url))));
        let Ok(parsed) = Url::parse(url) else { return refuse(RefusalKind::Malformed, "not a URL") };
        if !matches!(parsed.scheme(), "http" | "https") {
            return refuse(RefusalKind::Scheme, "the scheme is neither http nor https");
        }
        let Some(origin) = origin_of(&parsed) else {
            return refuse(RefusalKind::Malformed, "credentials in the URL, or no host");
        };
        match &self.origins {
            Some(origins) if origins.contains(&origin) => Ok(parsed),
            Some(_) => refuse(RefusalKind::Origin, "the origin is not allowed"),
            None if parsed.scheme() != "https" => refuse(RefusalKind::Scheme, "only https is allowed"),
            None => {
                // No resolver is asked for a literal, so it is judged here.
                if let Some(address) = literal(&parsed) {
                    self.admits(&address.to_string(), address)?;
                }
                Ok(parsed)
            }
        }
    }
}

/// Why an address is not called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RefusalKind {
    /// The address itself is not public and not allowed.
    Address,
    /// Not a URL, or one with credentials.
    Malformed,
    /// The origin is not in the list.
    Origin,
    /// Neither `http` nor `https`, or `http` where only `https` is allowed.
    Scheme,
}

/// An address that is not called, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    kind: RefusalKind,
    text: String,
}

impl Refusal {
    fn new(kind: RefusalKind, text: String) -> Self {
        Self { kind, text }
    }

    /// Why, for callers that branch.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        self.kind
    }

    /// A stable name of the kind.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self.kind {
            RefusalKind::Address => "participant_address",
            RefusalKind::Malformed => "participant_malformed",
            RefusalKind::Origin => "participant_origin",
            RefusalKind::Scheme => "participant_scheme",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refusal {}

/// A network in CIDR form. Version 4 mapped into version 6 counts as version 4.
#[derive(Clone, Copy, Debug)]
struct Network {
    base: IpAddr,
    bits: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (base, bits) = text.split_once('/')?;
        let (base, bits): (IpAddr, u32) = (base.parse().ok()?, bits.parse().ok()?);
        (bits <= if base.is_ipv4() { 32 } else { 128 }).then_some(Self { base, bits })
    }

    fn contains(&self, address: IpAddr) -> bool {
        // The differing bits, at the upper end of 128.
        let differ = match (self.base, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => u128::from(a.to_bits() ^ b.to_bits()) << 96,
            (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits() ^ b.to_bits(),
            _ => return false,
        };
        differ.leading_zeros() >= self.bits
    }
}

/// The origin of an address as an [`AddressPolicy`] compares it, with its port, however it is spelled; none of what is
/// no address, or has credentials in it. What guards the calls of an origin is found by this.
///
/// ```
/// use mainstay_saga::http::origin;
///
/// assert_eq!(origin("HTTPS://Pay.example/charge?x=1").as_deref(), Some("https://pay.example:443"));
/// assert_eq!(origin("https://me@pay.example/"), None);
/// ```
#[must_use]
pub fn origin(url: &str) -> Option<String> {
    Url::parse(url).ok().as_ref().and_then(origin_of)
}

/// `scheme://host:port`, with the port always there; none with credentials in it.
pub(super) fn origin_of(url: &Url) -> Option<String> {
    let plain = url.username().is_empty() && url.password().is_none();
    let (host, port) = (url.host_str()?, url.port_or_known_default()?);
    plain.then(|| format!("{}://{host}:{port}", url.scheme()))
}

pub(super) fn parse_origin(text: &str) -> Result<String, Error> {
    let url = Url::parse(text).ok().filter(|u| {
        matches!(u.scheme(), "http" | "https")
            && u.path() == "/"
            && u.query().is_none()
            && u.fragment().is_none()
    });
    url.as_ref().and_then(origin_of).ok_or_else(|| {
        let text = format!("`{}` is not an origin such as https://pay.example", shown(text));
        Error::new(ErrorKind::Config, text)
    })
}

/// The address in a URL that names one instead of a host.
fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// What may be shown of a URL: its query and what comes before `@` may be secret.
fn shown(url: &str) -> &str {
    if url.contains('@') {
        return "an address with credentials";
    }
    let mut end = url.find(['?', '#']).unwrap_or(url.len()).min(200);
    while !url.is_char_boundary(end) {
        end -= 1;
    }
    &url[..end]
}

/// What kind of address it is, unless it is a public one.
fn not_public(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => not_public_v4(v4),
        IpAddr::V6(v6) => not_public_v6(v6),
    }
}

/// By the IANA registry of special-purpose addresses.
fn not_public_v4(v4: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = v4.octets();
    match (a, b, c) {
        (0, ..) => Some("this-network"),
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => Some("private"),
        (100, 64..=127, _) => Some("carrier-grade NAT"),
        (127, ..) => Some("loopback"),
        // With the metadata service of the clouds, 169.254.169.254.
        (169, 254, _) => Some("link-local"),
        (192, 0, 0 | 2) | (192, 88, 99) | (198, 18 | 19, _) | (198, 51, 100) | (203, 0, 113) => {
            Some("reserved")
        }
        (224..=239, ..) => Some("multicast"),
        (240.., ..) => Some("reserved"),
        _ => None,
    }
}

/// Only global unicast (2000::/3) is public, without the parts that carry other addresses.
fn not_public_v6(v6: Ipv6Addr) -> Option<&'static str> {
    if v6.to_ipv4_mapped().is_some() {
        return Some("version-4-mapped");
    }
    let [a, b, ..] = v6.segments();
    match (a, b) {
        (0, _) if v6.is_loopback() => Some("loopback"),
        (0, _) if v6.is_unspecified() => Some("this-network"),
        (0x64, 0xff9b) => Some("NAT64"),
        (0xfc00..=0xfdff, _) => Some("unique-local"),
        (0xfe80..=0xfebf, _) => Some("link-local"),
        (0xff00.., _) => Some("multicast"),
        (0x2001, 0..=0x1ff) => Some("protocol"),
        (0x2001, 0xdb8) | (0x3fff, 0..=0xfff) => Some("documentation"),
        (0x2002, _) => Some("6to4"),
        (0x2000..=0x3fff, _) => None,
        _ => Some("reserved"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(address: &str, public: bool) {
        let policy = AddressPolicy::public();
        let ip: IpAddr = address.parse().unwrap();
        assert_eq!(policy.admits("name.example", ip).is_ok(), public, "{address}");
        let url = if ip.is_ipv6() { format!("https://[{address}]/") } else { format!("https://{address}/") };
        assert_eq!(policy.check(&url).is_ok(), public, "{url}");
    }

    #[test]
    fn sec_14_literals_and_answers_of_every_special_range_are_refused() {
        for bad in [
            "0.0.0.0",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:8.8.8.8",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            check(bad, false);
        }
        for good in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "126.0.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.167.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450:4001::1",
            "3ffe::1",
        ] {
            check(good, true);
        }
    }

    #[test]
    fn sec_14_other_spellings_of_an_address_are_the_same_address() {
        let policy = AddressPolicy::public();
        for url in [
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0177.0.0.1/",
            "https://127.1/",
            "https://127.0.0.1./",
        ] {
            assert_eq!(policy.check(url).unwrap_err().kind(), RefusalKind::Address, "{url}");
        }
    }

    #[test]
    fn if_a09_sec_13_only_allowed_origins_pass() {
        let policy = AddressPolicy::only(["http://127.0.0.1:8080", "https://pay.example"]).unwrap();
        for good in ["http://127.0.0.1:8080/x", "https://pay.example:443/y", "https://PAY.example/y"] {
            assert_eq!(policy.check(good), Ok(()), "{good}");
        }
        for (bad, kind) in [
            ("http://127.0.0.1:8081/x", RefusalKind::Origin),
            ("https://127.0.0.1:8080/x", RefusalKind::Origin),
            ("http://[::ffff:127.0.0.1]:8080/x", RefusalKind::Origin),
            ("http://169.254.169.254/latest/meta-data", RefusalKind::Origin),
            ("https://pay.example.evil.example/", RefusalKind::Origin),
            ("https://pay.example@evil.example/", RefusalKind::Malformed),
            ("https://user@pay.example/", RefusalKind::Malformed),
            ("file:///etc/passwd", RefusalKind::Scheme),
            ("gopher://pay.example/", RefusalKind::Scheme),
            ("http://pay.example/", RefusalKind::Origin),
            ("pay", RefusalKind::Malformed),
        ] {
            assert_eq!(policy.check(bad).unwrap_err().kind(), kind, "{bad}");
        }
        let none: [&str; 0] = [];
        assert!(AddressPolicy::only(none).unwrap().check("https://example.com/").is_err());
        for bad in ["127.0.0.1:1", "http://h/path", "ftp://h", "http://u:p@h", "http://h?q", "http://h#f", ""]
        {
            assert_eq!(AddressPolicy::only([bad]).unwrap_err().kind(), ErrorKind::Config, "{bad}");
        }
    }

    #[test]
    fn sec_13_without_a_list_only_https_passes() {
        let policy = AddressPolicy::public();
        assert_eq!(policy.check("https://pay.example/x"), Ok(()));
        assert_eq!(policy.check("http://pay.example/x").unwrap_err().kind(), RefusalKind::Scheme);
    }

    #[test]
    fn sec_13_loopback_needs_an_origin_that_says_so() {
        let policy = AddressPolicy::only(["http://localhost:80", "https://pay.example"]).unwrap();
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        assert!(policy.admits("localhost", loopback).is_ok());
        assert!(policy.admits("pay.example", loopback).is_err());
        assert!(policy.admits("localhost", "10.0.0.1".parse().unwrap()).is_err());
        assert!(AddressPolicy::public().admits("localhost", loopback).is_err());
    }

    #[test]
    fn sec_13_a_network_is_reached_only_when_named() {
        let policy = AddressPolicy::only(["http://pay.internal"]).unwrap();
        let inside: IpAddr = "10.1.2.3".parse().unwrap();
        let refused = policy.admits("pay.internal", inside).unwrap_err();
        assert_eq!(refused.to_string(), "pay.internal is at 10.1.2.3, a private address");
        assert_eq!(refused.code(), "participant_address");
        let open = policy.allow_network("10.1.0.0/16").unwrap().allow_network("fd00::/8").unwrap();
        for (address, fine) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("10.2.0.1", false),
            ("fd12::1", true),
            ("fc00::1", false),
        ] {
            assert_eq!(open.admits("pay.internal", address.parse().unwrap()).is_ok(), fine, "{address}");
        }
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "::/129", "10.0.0.0/-1"] {
            assert!(open.clone().allow_network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_secret_of_a_url_is_shown() {
        let policy = AddressPolicy::public();
        for url in ["http://h/?key=secret", "https://user:secret@h/", "secret@"] {
            assert!(!policy.check(url).unwrap_err().to_string().contains("secret"), "{url}");
        }
    }
}
