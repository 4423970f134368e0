//! The stream behind the bucket: made when it is not there, refused when it could lose leases.

use std::time::Duration;

use mainstay_clock::Instant;
use mainstay_store::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{Api, MARK_SECONDS};
use crate::config::{Expiry, NatsConfig};
use crate::error::Refusal;

/// The oldest server that has what the layout needs: first sequences and conditional writes per subject that
/// survive a restart.
pub(crate) const OLDEST: (u32, u32) = (2, 10);
/// From here on messages may end by themselves.
pub(crate) const WITH_ENDS: (u32, u32) = (2, 11);
/// Longest wait for the answer to one of several tries.
const TRY: Duration = Duration::from_secs(1);
/// Between two looks at a bucket that is being made.
const LOOK: Duration = Duration::from_millis(50);

/// What matters of a stream.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Info {
    pub(crate) config: Config,
    #[serde(default)]
    pub(crate) cluster: Option<Cluster>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) num_replicas: u32,
    #[serde(default)]
    storage: String,
    #[serde(default)]
    subjects: Vec<String>,
    #[serde(default)]
    max_age: u64,
    #[serde(default)]
    discard: String,
    #[serde(default)]
    max_msgs: i64,
    #[serde(default)]
    max_bytes: i64,
    #[serde(default)]
    pub(crate) allow_msg_ttl: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Cluster {
    #[serde(default)]
    pub(crate) leader: String,
    #[serde(default)]
    pub(crate) replicas: Option<Vec<Peer>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Peer {
    pub(crate) name: String,
}

impl Info {
    /// Copies that are on disk.
    pub(crate) fn is_on_disk(&self) -> bool {
        self.config.storage == "file"
    }
}

/// The two numbers of a version.
pub(crate) fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Refuses a server that is too old.
pub(crate) fn admit(text: &str) -> Result<(u32, u32)> {
    match version(text) {
        Some(version) if version >= OLDEST => Ok(version),
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "nats-server {text} is too old: leases need 2.10 or later, where a stream has a first sequence"
            ),
        )),
    }
}

/// What a new stream is to be.
fn wanted(api: &Api, config: &NatsConfig, replicas: u32, ends: bool) -> Value {
    let micros = u64::try_from(api.clock.wall().unix_millis()).unwrap_or(0).saturating_mul(1_000);
    let mut body = json!({
        "name": &*api.stream,
        "description": "leases of mainstay: one key per name",
        "subjects": [api.all()],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "max_msgs_per_subject": 1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "discard": "new",
        "deny_delete": true,
        "allow_rollup_hdrs": true,
        "allow_direct": false,
        // Tokens are sequences: a stream that is made anew starts above every token of the one before.
        "first_seq": floor(micros),
    });
    if ends && config.expiry != Expiry::Observer {
        body["allow_msg_ttl"] = json!(true);
        body["subject_delete_marker_ttl"] = json!(MARK_SECONDS * 1_000_000_000);
    }
    body
}

/// The first sequence of a stream that is made now: it stays ahead of 62,500 writes a second until 2112.
fn floor(unix_micros: u64) -> u64 {
    unix_micros / 16
}

/// Finds the stream, or makes it.
pub(crate) async fn ensure(api: &Api, config: &NatsConfig, ends: bool, limit: Instant) -> Result<Info> {
    let (mut replicas, chosen) = match config.replicas {
        Some(n) => (n, true),
        None => (3, false),
    };
    loop {
        match ask(api, "INFO", &json!({}), limit).await? {
            Ok(info) => return check(info, config),
            Err(refusal) if refusal.is_no_stream() => {}
            Err(refusal) => return Err(refusal.error()),
        }
        let body = wanted(api, config, replicas, ends);
        match ask(api, "CREATE", &body, limit).await? {
            Ok(info) => return check(info, config),
            Err(refusal) if refusal.is_not_clustered() && !chosen && replicas > 1 => replicas = 1,
            Err(refusal) if refusal.is_for_now() && api.clock.now() < limit => {
                api.clock.sleep(LOOK).await;
            }
            Err(refusal) => return Err(refusal.error()),
        }
    }
}

/// Asks again what nobody answered: while servers elect who leads them, questions get lost.
async fn ask(
    api: &Api,
    verb: &str,
    body: &Value,
    limit: Instant,
) -> Result<std::result::Result<Info, Refusal>> {
    loop {
        let soon = api.clock.now().saturating_add(TRY).min(limit);
        match api.ask::<Info>(&format!("STREAM.{verb}.{}", api.stream), body, soon).await {
            Err(e) if e.kind() == ErrorKind::Unavailable && api.clock.now() < limit => {
                api.clock.sleep(LOOK).await;
            }
            answer => return answer,
        }
    }
}

/// Refuses a stream that ends or drops leases by rules of its own.
fn check(info: Info, config: &NatsConfig) -> Result<Info> {
    let c = &info.config;
    let refuse = |text: String| {
        let text = format!("the bucket `{}` cannot keep leases: {text}", config.bucket);
        Err(Error::new(ErrorKind::Unsupported, text))
    };
    if c.max_age != 0 {
        return refuse("its max_age ends them while their holders live; set it to 0".to_owned());
    }
    if c.discard != "new" && (c.max_msgs > 0 || c.max_bytes > 0) {
        return refuse("it drops the oldest when it is full; set discard to new".to_owned());
    }
    let own = format!("$KV.{}.>", config.bucket);
    if c.subjects != [own.as_str()] {
        return refuse(format!("its subjects are {:?}, not {own} alone", c.subjects));
    }
    if config.expiry == Expiry::Server && !c.allow_msg_ttl {
        return refuse(
            "messages of it do not end by themselves (allow_msg_ttl), but `expiry` is Server".to_owned(),
        );
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f14_versions_before_2_10_are_refused() {
        for (text, ok) in [
            ("2.9.10", false),
            ("2.10.0", true),
            ("2.15.1", true),
            ("3.0.0-beta", true),
            ("2.10-rc", true),
            ("", false),
            ("x", false),
        ] {
            assert_eq!(admit(text).is_ok(), ok, "{text}");
        }
        assert!(admit("2.9.10").unwrap_err().to_string().contains("2.9.10 is too old"));
        assert!(version("2.11.3").unwrap() >= WITH_ENDS);
    }

    #[test]
    fn f26_a_new_stream_starts_above_the_old_ones_tokens() {
        let now = 1_795_680_000_000_000;
        assert_eq!(floor(now), 112_230_000_000_000);
        assert!(floor(now + 1_000_000) - floor(now) == 62_500);
        assert!(floor(now) < 1 << 48);
    }

    #[test]
    fn a_bucket_that_loses_leases_is_refused_with_the_setting() {
        let config = NatsConfig::builder("nats://h").bucket("b").expiry(Expiry::Server).build().unwrap();
        let of = |change: Value| {
            let mut all = json!({"config": {"subjects": ["$KV.b.>"], "discard": "new", "allow_msg_ttl": true, "storage": "file"}});
            for (key, value) in change.as_object().unwrap() {
                all["config"][key] = value.clone();
            }
            check(serde_json::from_value(all).unwrap(), &config)
                .map(|i| i.is_on_disk())
                .map_err(|e| e.to_string())
        };
        assert_eq!(of(json!({})), Ok(true));
        assert!(of(json!({"max_age": 1})).unwrap_err().contains("max_age"));
        assert!(of(json!({"discard": "old", "max_bytes": 9})).unwrap_err().contains("discard"));
        assert!(of(json!({"subjects": ["a"]})).unwrap_err().contains("subjects"));
        assert!(of(json!({"allow_msg_ttl": false})).unwrap_err().contains("allow_msg_ttl"));
    }
}
