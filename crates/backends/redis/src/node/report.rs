//! What a server says about itself.

use std::collections::HashMap;
use std::time::Duration;

use mainstay_store::{Error, ErrorKind, Result};

/// The oldest major version whose scripts, `KEEPTTL` and RESP3 are those that are used here.
const MIN_MAJOR: u32 = 6;
/// The same, as people write it.
pub(crate) const OLDEST: &str = "6.0";

/// The parts of `INFO` that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// A new one each start.
    pub(crate) run_id: String,
    /// Its version; of a relative of Redis the one that it stands in for.
    pub(crate) version: String,
    pub(crate) uptime: Duration,
    /// Every write is on disk before it is answered.
    pub(crate) durable: bool,
    /// Keys may vanish before their time when memory gets short.
    pub(crate) evicts: bool,
}

impl Report {
    /// Reads `INFO` and `CONFIG GET appendfsync` (empty where that is not allowed).
    ///
    /// # Errors
    /// A server that must not be used: a replica, a cluster node, a sentinel, one that is too old.
    pub(crate) fn read(node: &str, info: &str, appendfsync: &str) -> Result<Self> {
        let fields: HashMap<&str, &str> = info.lines().filter_map(|l| l.trim_end().split_once(':')).collect();
        let field = |name: &str| fields.get(name).copied().unwrap_or_default();
        let refuse = |text: String| Err(Error::new(ErrorKind::Unsupported, format!("redis {node} {text}")));
        let major = field("redis_version").split('.').next().and_then(|v| v.parse().ok()).unwrap_or(0);
        if major < MIN_MAJOR {
            return refuse(format!("has version `{}`; {MIN_MAJOR}.0 is needed", field("redis_version")));
        }
        if field("redis_mode") != "standalone" {
            return refuse(format!(
                "runs as `{}`; only a server of its own is supported",
                field("redis_mode")
            ));
        }
        if field("role") != "master" {
            // It may become one, so this one is worth another try.
            let text = format!("redis {node} is a {}, which grants nothing", field("role"));
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        Ok(Self {
            run_id: field("run_id").to_owned(),
            version: field("redis_version").to_owned(),
            uptime: Duration::from_secs(field("uptime_in_seconds").parse().unwrap_or(0)),
            durable: field("aof_enabled") == "1" && appendfsync == "always",
            evicts: field("maxmemory") != "0" && field("maxmemory_policy") != "noeviction",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Report;
    use mainstay_store::ErrorKind;
    use std::time::Duration;

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrun_id:ab\r\n\
        uptime_in_seconds:9\r\n# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n\
        # Persistence\r\naof_enabled:1\r\n# Replication\r\nrole:master\r\n";

    #[test]
    fn what_a_server_says_is_read_and_what_cannot_hold_is_refused() {
        let report = Report::read("n", INFO, "always").unwrap();
        let nine = Duration::from_secs(9);
        let (run_id, version) = ("ab".to_owned(), "7.0.15".to_owned());
        let expected = Report { run_id, version, uptime: nine, durable: true, evicts: false };
        assert_eq!(report, expected);
        assert!(!Report::read("n", INFO, "everysec").unwrap().durable);
        assert!(Report::read("n", &INFO.replace("maxmemory:0", "maxmemory:9"), "").unwrap().evicts);
        for (from, to, kind) in [
            ("role:master", "role:slave", ErrorKind::Unavailable),
            ("mode:standalone", "mode:cluster", ErrorKind::Unsupported),
            ("version:7.0.15", "version:5.0.14", ErrorKind::Unsupported),
        ] {
            assert_eq!(Report::read("n", &INFO.replace(from, to), "").unwrap_err().kind(), kind, "{to}");
        }
    }
}
