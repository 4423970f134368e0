//! What stands behind `?` in the URL of a lease store: settings of the whole store.

use std::time::Duration;

use mainstay_postgres::KeyProfile;
use mainstay_store::address::plain;
use mainstay_store::lease::Names;

use super::duration;
use crate::config::nearest;
use crate::error::{Code, Error, Result};

/// Files of TLS, which the stores read themselves.
pub(super) const TLS: &[&str] = &["ca", "cert", "key"];
/// What PostgreSQL's driver knows of libpq.
pub(super) const LIBPQ: &[&str] = &[
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// What a store of one kind has.
#[derive(Clone, Copy)]
pub(super) struct Known {
    /// Its own.
    pub(super) own: &'static [&'static str],
    /// Those that go on to whoever reads the rest of the URL.
    pub(super) passed: &'static [&'static str],
    /// Those that are known, but not here, and why.
    elsewhere: (&'static [&'static str], &'static str),
}

const fn known(own: &'static [&'static str], passed: &'static [&'static str]) -> Known {
    Known { own, passed, elsewhere: (&[], "") }
}

const ALONE: &str = "is for a majority: several servers with commas between them";
const BEFORE: &str = "stands behind the last server, for all of them";

pub(super) const ETCD: Known = known(&["epoch", "names", "prefix"], TLS);
pub(super) const NATS: Known = known(&["bucket", "epoch", "names"], TLS);
pub(super) const POSTGRES: Known = known(&["epoch", "names", "sessions"], LIBPQ);
pub(super) const REDIS: Known =
    Known { elsewhere: (&["durable", "max_ttl"], ALONE), ..known(&["epoch", "names", "prefix"], TLS) };
pub(super) const SQLITE: Known = known(&["epoch"], &[]);
/// A majority of Redis, behind its last server.
pub(super) const MAJORITY: Known = known(&["durable", "epoch", "max_ttl", "names", "prefix"], TLS);
/// Of a majority, behind one of the servers before the last.
pub(super) const ONE_OF_SEVERAL: Known = Known { elsewhere: (MAJORITY.own, BEFORE), ..known(&[], TLS) };

/// Settings of a store; what was not given is the store's default.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Params {
    pub(super) bucket: Option<String>,
    pub(super) durable: bool,
    pub(super) epoch: u16,
    pub(super) max_ttl: Option<Duration>,
    pub(super) names: Option<Names>,
    pub(super) prefix: Option<String>,
    pub(super) sessions: Option<KeyProfile>,
}

/// Nothing of the URL is repeated: it may hold a password.
fn refused(text: String) -> Error {
    Error::new(Code::BadValue, format!("--store: {text}"))
}

impl Params {
    /// Takes the settings of the store out of its URL: the URL without them, and they.
    ///
    /// # Errors
    /// One that is unknown, with the known one that is likely meant; one given twice; a value that cannot be.
    pub(super) fn split(url: &str, known: Known) -> Result<(String, Self)> {
        let Some((servers, query)) = url.split_once('?') else {
            return Ok((url.to_owned(), Self::default()));
        };
        let (mut params, mut seen, mut rest) = (Self::default(), Vec::new(), Vec::new());
        for part in query.split('&') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if known.passed.contains(&name) {
                rest.push(part);
                continue;
            }
            let Some(name) = known.own.iter().find(|own| **own == name) else {
                return Err(unknown(name, known));
            };
            if seen.contains(name) {
                return Err(refused(format!("`{name}` is given twice")));
            }
            seen.push(*name);
            let allowed = params.set(name, &plain(value));
            allowed.map_err(|allowed| refused(format!("`{name}` is {allowed}")))?;
        }
        let url = if rest.is_empty() { servers.to_owned() } else { format!("{servers}?{}", rest.join("&")) };
        Ok((url, params))
    }

    /// Reads one setting; says what is allowed if this is not.
    fn set(&mut self, name: &str, value: &str) -> std::result::Result<(), &'static str> {
        let text = || if value.is_empty() { Err("a text") } else { Ok(Some(value.to_owned())) };
        match name {
            "bucket" => self.bucket = text()?,
            "durable" => {
                self.durable = match value {
                    "true" => true,
                    "false" => false,
                    _ => return Err("true or false"),
                };
            }
            "epoch" => {
                let epoch = value.parse().ok().filter(|epoch| *epoch < 1 << 15);
                self.epoch = epoch.ok_or("a whole number from 0 to 32,767")?;
            }
            "max_ttl" => {
                self.max_ttl = Some(duration(value).map_err(|_| "a duration such as 30s or 5min")?);
            }
            "names" => {
                self.names = match value {
                    "bare" => Some(Names::Bare),
                    "whole" => Some(Names::Whole),
                    _ => return Err("bare (without the namespace) or whole"),
                };
            }
            "prefix" => self.prefix = text()?,
            _ => self.sessions = Some(profile(value).ok_or(PROFILES)?),
        }
        Ok(())
    }
}

/// What `sessions` may be.
const PROFILES: &str =
    "dlock, medallion, medallion-hashing, node-sha256, sqlx, raw:NUMBER or raw:NUMBER:NUMBER";

/// How names become keys of advisory locks.
fn profile(text: &str) -> Option<KeyProfile> {
    Some(match text {
        "dlock" => KeyProfile::Dlock,
        "medallion" => KeyProfile::Medallion { hashing: false },
        "medallion-hashing" => KeyProfile::Medallion { hashing: true },
        "node-sha256" => KeyProfile::NodeSha256,
        "sqlx" => KeyProfile::Sqlx,
        other => {
            let numbers = other.strip_prefix("raw:")?;
            match numbers.split_once(':') {
                Some((a, b)) => KeyProfile::RawPair(a.parse().ok()?, b.parse().ok()?),
                None => KeyProfile::Raw(numbers.parse().ok()?),
            }
        }
    })
}

fn unknown(name: &str, known: Known) -> Error {
    let (names, why) = known.elsewhere;
    if let Some(name) = names.iter().find(|n| **n == name) {
        return refused(format!("`{name}` {why}"));
    }
    let all = known.own.iter().chain(known.passed);
    let hint = nearest(all.copied(), name).map_or(".".to_owned(), |n| format!("; did you mean `{n}`?"));
    let own = if known.own.is_empty() { known.passed } else { known.own };
    refused(format!("a parameter behind ? is unknown here{hint} There are {}", own.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_store_are_taken_out_and_the_rest_goes_on() {
        let (url, params) = Params::split(
            "rediss://me:pw@h:1/?ca=%2Fetc%2Fca&names=bare&prefix=redlock%3A&epoch=7&durable=true&max_ttl=1min",
            MAJORITY,
        )
        .unwrap();
        assert_eq!(url, "rediss://me:pw@h:1/?ca=%2Fetc%2Fca", "as it was");
        let expected = Params {
            durable: true,
            epoch: 7,
            max_ttl: Some(Duration::from_secs(60)),
            names: Some(Names::Bare),
            prefix: Some("redlock:".to_owned()),
            ..Params::default()
        };
        assert_eq!(params, expected);
        let (url, params) =
            Params::split("postgres://a@h/d?sessions=sqlx&sslmode=disable", POSTGRES).unwrap();
        assert_eq!(
            (url.as_str(), params.sessions),
            ("postgres://a@h/d?sslmode=disable", Some(KeyProfile::Sqlx))
        );
        assert_eq!(Params::split("etcd://h", ETCD).unwrap(), ("etcd://h".to_owned(), Params::default()));
        assert_eq!(Params::split("nats://h?bucket=b", NATS).unwrap().1.bucket.as_deref(), Some("b"));
        let (url, params) = Params::split("sqlite:/a/b?epoch=1000", SQLITE).unwrap();
        assert_eq!((url.as_str(), params.epoch), ("sqlite:/a/b", 1_000));
    }

    #[test]
    fn profiles_of_advisory_locks_have_names() {
        for (text, is) in [
            ("raw:-7", KeyProfile::Raw(-7)),
            ("raw:7:-1", KeyProfile::RawPair(7, -1)),
            ("medallion", KeyProfile::Medallion { hashing: false }),
            ("medallion-hashing", KeyProfile::Medallion { hashing: true }),
            ("node-sha256", KeyProfile::NodeSha256),
            ("dlock", KeyProfile::Dlock),
        ] {
            assert_eq!(profile(text), Some(is), "{text}");
        }
        for bad in ["", "raw", "raw:", "raw:x", "raw:1:2:3", "Sqlx"] {
            assert_eq!(profile(bad), None, "{bad}");
        }
    }

    #[test]
    fn sec_23_what_is_unknown_is_refused_with_a_suggestion_and_without_the_url() {
        let said = |query: &str, known: Known| {
            let error = Params::split(&format!("redis://me:CANARY@h?{query}"), known).unwrap_err();
            assert_eq!(error.code(), Code::BadValue);
            let text = error.chain();
            assert!(!text.contains("CANARY"), "{text}");
            text
        };
        assert!(said("name=bare", REDIS).contains("did you mean `names`?"));
        assert!(said("cert=c&perfix=x", REDIS).contains("did you mean `prefix`?"));
        assert!(said("sslmod=disable", POSTGRES).contains("did you mean `sslmode`?"));
        assert!(said("durable=true", REDIS).contains("for a majority"));
        assert!(said("names=bare", ONE_OF_SEVERAL).contains("behind the last server"));
        assert!(said("bucket=b", ETCD).contains("There are epoch, names, prefix"));
        // A password with a question mark in it that was not written as %3F.
        assert!(!said("CANARY@h", REDIS).contains("did you mean"));
        for (query, allowed) in [
            ("names=none", "bare"),
            ("names=bare&names=bare", "twice"),
            ("epoch=32768", "32,767"),
            ("epoch=-1", "32,767"),
            ("durable=yes", "true or false"),
            ("max_ttl=0s", "a duration"),
            ("prefix=", "a text"),
            ("prefix", "a text"),
        ] {
            assert!(said(query, MAJORITY).contains(allowed), "{query}");
        }
        assert!(said("sessions=mine", POSTGRES).contains("sqlx"));
    }
}
