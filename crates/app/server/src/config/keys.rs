//! Every key there is, with its type, its default and one line for people.

use std::borrow::Cow;
use std::time::Duration;

/// The type of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    /// A whole number within bounds, both included.
    Count(u64, u64),
    Duration,
    List,
    Text,
}

/// A typed value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Bool(bool),
    Count(u64),
    Duration(Duration),
    List(Vec<String>),
    Text(String),
}

impl Value {
    /// As it would stand in the file, but for users and passwords in addresses.
    pub(crate) fn to_toml(&self) -> String {
        match self {
            Self::Bool(b) => b.to_string(),
            Self::Count(n) => n.to_string(),
            Self::Duration(d) => format!("\"{}\"", humantime::format_duration(*d)),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(|i| format!("{:?}", without_user(i))).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Text(text) => format!("{:?}", without_user(text)),
        }
    }
}

/// A text that may be an address, without the user and the password in it. Of several with commas between them only what
/// stands behind the last user is shown: a comma may be part of a password.
fn without_user(text: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = text.split_once("://") else { return text.into() };
    let (address, query) = rest.split_once('?').map_or((rest, None), |(a, q)| (a, Some(q)));
    let end = match address.contains(',') {
        true => address.len(),
        false => address.find(['/', '#']).unwrap_or(address.len()),
    };
    let user = address[..end].rfind('@');
    let secret = |pair: &&str| pair.split('=').next().is_some_and(|key| key.eq_ignore_ascii_case("password"));
    if user.is_none() && !query.is_some_and(|q| q.split('&').any(|pair| secret(&pair))) {
        return text.into();
    }
    let shown = user.map_or_else(|| address.to_owned(), |at| format!("***{}", &address[at..]));
    let query = query.map_or_else(String::new, |query| {
        let pairs = query.split('&').map(|pair| if secret(&pair) { "password=***" } else { pair });
        format!("?{}", pairs.collect::<Vec<_>>().join("&"))
    });
    format!("{scheme}://{shown}{query}").into()
}

/// A key.
pub(crate) struct Key {
    pub(crate) path: &'static str,
    pub(crate) kind: Kind,
    /// As in the environment: lists are comma-separated.
    pub(crate) default: &'static str,
    pub(crate) about: &'static str,
}

const fn key(path: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Key {
    Key { path, kind, default, about }
}

/// Every key, sorted.
pub(crate) const KEYS: &[Key] = &[
    key(
        "console.redact",
        Kind::List,
        "password,passwd,secret,token,authorization,api_key,apikey,private_key,card,cvv,cvc,iban,ssn",
        "parts of names whose values the console hides in payloads",
    ),
    key("gossip.advertise", Kind::Text, "", "HOST:PORT where others reach this node; empty: as bound"),
    key("gossip.bind", Kind::Text, "", "address of gossip, UDP and TCP; empty: this node is on its own"),
    key("gossip.cluster", Kind::Text, "mainstay", "name of the cluster; packets of others are dropped"),
    key(
        "gossip.key_file",
        Kind::Text,
        "",
        "file of the shared keys, `ID:64 hexadecimal digits` a line; the first one seals, all open",
    ),
    key(
        "gossip.members",
        Kind::List,
        "",
        "names of the members that decide what may be forgotten; none: nothing is",
    ),
    key(
        "gossip.name",
        Kind::Text,
        "",
        "name of this node, unique in its cluster; empty: the name of the host",
    ),
    key("gossip.seeds", Kind::List, "", "HOST:PORT of nodes where the cluster is found"),
    key("log.filter", Kind::Text, "info", "what is logged to stderr, in tracing's filter syntax"),
    key("log.json", Kind::Bool, "false", "log lines as JSON"),
    key(
        "participants.allow",
        Kind::List,
        "",
        "origins that saga steps may call; without one no address is called",
    ),
    key(
        "participants.allow_network",
        Kind::List,
        "",
        "networks (10.0.0.0/8) that names of allowed origins may resolve into; public addresses always may",
    ),
    key(
        "participants.breaker",
        Kind::Bool,
        "false",
        "stop calling an origin while most of its calls fail; what is not sent has no effect and is repeated",
    ),
    key(
        "participants.max_in_flight",
        Kind::Count(0, 65_535),
        "0",
        "most calls of one origin at once, others wait; 0: no limit",
    ),
    key(
        "participants.max_reply",
        Kind::Count(1, 524_288),
        "262144",
        "largest reply body of a participant, in bytes",
    ),
    key(
        "participants.policies",
        Kind::Text,
        "",
        "file (TOML) of resilience policies, `[targets.NAME]` each, that steps of definitions name",
    ),
    key(
        "participants.sign",
        Kind::List,
        "",
        "ORIGIN=FILE: requests to ORIGIN are signed with the secrets (whsec_..) of FILE, one a line",
    ),
    key(
        "payload.redact",
        Kind::List,
        "",
        "values that nobody is shown, in pages, API, events and audit: names, or JSON pointers into inputs and outputs",
    ),
    key("saga.definitions", Kind::Text, "", "folder of definitions (*.toml, *.json) stored at start"),
    key("saga.keep_compensated", Kind::Duration, "30d", "how long compensated and abandoned sagas are kept"),
    key("saga.keep_completed", Kind::Duration, "7d", "how long completed sagas are kept"),
    key("saga.max_running", Kind::Count(1, 100_000), "10000", "most sagas in memory at once"),
    key("server.allowed_hosts", Kind::List, "", "host names served without authentication besides loopback"),
    key("server.behind_tls_proxy", Kind::Bool, "false", "a proxy in front ends TLS"),
    key("server.body_limit", Kind::Count(1_024, 16_777_216), "1048576", "largest request body, in bytes"),
    key("server.body_timeout", Kind::Duration, "30s", "time for a request body to arrive"),
    key("server.drain", Kind::Duration, "10s", "longest graceful stop"),
    key(
        "server.header_timeout",
        Kind::Duration,
        "10s",
        "time for request headers, also on an idle connection",
    ),
    key("server.listen", Kind::Text, "127.0.0.1:4600", "address of the API and the console"),
    key("server.max_connections", Kind::Count(1, 1_000_000), "1024", "most open connections"),
    key(
        "server.max_connections_per_ip",
        Kind::Count(1, 1_000_000),
        "256",
        "most open connections of one address, in IPv6 of one /64",
    ),
    key(
        "server.max_in_flight",
        Kind::Count(1, 1_000_000),
        "512",
        "most requests at once, event streams not counted",
    ),
    key(
        "server.request_timeout",
        Kind::Duration,
        "90s",
        "longest request, event streams and waits not counted",
    ),
    key("server.tls_cert", Kind::Text, "", "certificate chain (PEM); read again when it changes"),
    key(
        "server.tls_client_ca",
        Kind::Text,
        "",
        "authority (PEM) whose certificates clients must present; read again when it changes",
    ),
    key(
        "server.tls_clients",
        Kind::List,
        "",
        "certificates that need no token: dns:NAME=SCOPE or uri:NAME=SCOPE, @NAMESPACE+NAMESPACE behind it narrows",
    ),
    key("server.tls_key", Kind::Text, "", "private key (PEM) of the certificate"),
    key(
        "server.write_timeout",
        Kind::Duration,
        "30s",
        "longest time that a client may take to read what is sent to it",
    ),
    key("store.data", Kind::Text, "mainstay-data", "folder of the database and the tokens"),
    key(
        "store.epoch",
        Kind::Count(0, 32_767),
        "0",
        "raise by 1000 after the files of the data folder were restored or lost: fencing tokens go on above those of before",
    ),
    key(
        "store.leases",
        Kind::Text,
        "",
        "where locks, elections and members are, as `mainstay lock --store`; empty: leases.sqlite of the data folder",
    ),
];

/// Keys whose new values a running node takes over.
const RELOADED: &[&str] = &[
    "log.filter",
    "participants.allow",
    "participants.allow_network",
    "participants.breaker",
    "participants.max_in_flight",
    "participants.max_reply",
    "participants.policies",
    "participants.sign",
    "saga.definitions",
];

/// Whether a running node takes over a new value of this key; others need a restart.
pub(crate) fn is_reloaded(path: &str) -> bool {
    RELOADED.contains(&path)
}

/// The key of a path.
pub(crate) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.path == path)
}

/// The known key that `path` most likely means.
pub(crate) fn suggest(path: &str) -> Option<&'static str> {
    nearest(KEYS.iter().map(|k| k.path), path)
}

/// The one of `known` that `text` most likely means.
pub(crate) fn nearest<'k>(known: impl Iterator<Item = &'k str>, text: &str) -> Option<&'k str> {
    /// Below this likeness a suggestion is a guess.
    const LIKE: f64 = 0.8;
    known
        .map(|k| (strsim::jaro_winkler(k, text), k))
        .filter(|(score, _)| *score >= LIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// Reads text (environment, flags, defaults) as the key's type.
pub(crate) fn parse(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Bool => match text {
            "true" | "1" => Ok(Value::Bool(true)),
            "false" | "0" => Ok(Value::Bool(false)),
            _ => Err(format!("`{text}` is not true or false")),
        },
        Kind::Count(low, high) => match text.parse::<u64>() {
            Ok(n) if (low..=high).contains(&n) => Ok(Value::Count(n)),
            _ => Err(format!("`{text}` is not a whole number from {low} to {high}")),
        },
        Kind::Duration => match humantime::parse_duration(text) {
            Ok(d) if !d.is_zero() => Ok(Value::Duration(d)),
            Ok(_) => Err("a duration of zero makes no sense here".to_owned()),
            Err(e) => Err(format!("`{text}` is not a duration such as \"30s\": {e}")),
        },
        Kind::List => Ok(Value::List(
            text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect(),
        )),
        Kind::Text => Ok(Value::Text(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_and_their_defaults_parse() {
        assert!(KEYS.windows(2).all(|w| w[0].path < w[1].path));
        for key in KEYS {
            parse(key.kind, key.default).unwrap_or_else(|e| panic!("{}: {e}", key.path));
            assert!(!key.about.is_empty());
        }
        assert!(RELOADED.iter().all(|path| find(path).is_some()));
    }

    #[test]
    fn sec_23_a_dump_shows_no_password_of_an_address() {
        for (text, shown) in [
            ("https://u:p@ss@h:1/a@b", "https://***@h:1/a@b"),
            ("https://u@h", "https://***@h"),
            ("https://h/a@b", "https://h/a@b"),
            ("/a@b", "/a@b"),
            ("redis://u:p@a,redis://u:p@b?durable=true", "redis://***@b?durable=true"),
            ("redis://u:p,q@a,b/1@c", "redis://***@c"),
            ("postgres://h/db?password=p&user=u", "postgres://h/db?password=***&user=u"),
            ("postgres://u:p@h/db?PASSWORD=p", "postgres://***@h/db?password=***"),
            ("etcd://a,b,c?epoch=1", "etcd://a,b,c?epoch=1"),
        ] {
            assert_eq!(Value::Text(text.to_owned()).to_toml(), format!("{shown:?}"));
            let list = Value::List(vec![text.to_owned()]).to_toml();
            assert_eq!(list, format!("[{shown:?}]"));
        }
    }

    #[test]
    fn a_near_miss_is_suggested_and_a_far_one_is_not() {
        assert_eq!(suggest("server.lisen"), Some("server.listen"));
        assert_eq!(suggest("zzz"), None);
    }
}
