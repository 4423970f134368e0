//! What a server says about its replication.

use std::collections::HashMap;

/// Bytes of a replication id that go into a token: 128 of its 160 bits tell histories apart as well.
const ID_DIGITS: usize = 32;
/// Longest answer that is looked at: the real one has some 25 lines, and one per replica.
const MAX_INFO: usize = 256 * 1024;

/// What `INFO replication`, `INFO server` and `INFO persistence` say, as far as positions go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) is_primary: bool,
    /// Connected to its primary; a primary always is.
    pub(crate) linked: bool,
    /// It is being filled anew, or still reads its files: it has nothing that can be told.
    pub(crate) in_flux: bool,
    /// The history that it is on.
    pub(crate) id: String,
    /// The history that it came from, and the last offset of that which it has.
    pub(crate) before: Option<(String, u64)>,
    /// What it has: on a replica what was applied, which is less than what was received.
    pub(crate) offset: u64,
    /// Whether it counts offsets at all: without a backlog they stand still, whatever is written.
    pub(crate) counts: bool,
}

/// Which process a connection leads to, from `INFO server`.
pub(crate) fn run_id(info: &str) -> Option<String> {
    fields(info)?.get("run_id").and_then(|id| short(id))
}

/// Whether `INFO persistence` says that the server still reads its files.
pub(crate) fn is_loading(info: &str) -> bool {
    let fields = fields(info).unwrap_or_default();
    ["loading", "async_loading"].iter().any(|name| fields.get(name).is_some_and(|v| *v != "0"))
}

impl Info {
    /// Reads `INFO replication`; none when it is no such answer.
    pub(crate) fn read(info: &str) -> Option<Self> {
        let fields = fields(info)?;
        let field = |name: &str| fields.get(name).copied();
        let number = |name: &str| field(name)?.parse::<u64>().ok();
        let is_primary = match field("role")? {
            "master" => true,
            "slave" => false,
            _ => return None,
        };
        // The first offset that is not of the history before; -1 when there is none.
        let before = short(field("master_replid2")?).filter(|id| id.bytes().any(|digit| digit != b'0'));
        let last = number("second_repl_offset").and_then(|first| first.checked_sub(1));
        let total = number("master_repl_offset")?;
        Some(Self {
            is_primary,
            linked: is_primary || field("master_link_status") == Some("up"),
            in_flux: field("master_sync_in_progress").is_some_and(|v| v != "0"),
            id: short(field("master_replid")?)?,
            before: before.zip(last),
            offset: if is_primary { total } else { number("slave_repl_offset")? },
            counts: !is_primary || field("repl_backlog_active") == Some("1"),
        })
    }
}

fn fields(info: &str) -> Option<HashMap<&str, &str>> {
    (info.len() <= MAX_INFO)
        .then(|| info.lines().filter_map(|line| line.trim_end().split_once(':')).collect())
}

/// The part of an id that goes into tokens.
fn short(id: &str) -> Option<String> {
    let digits = id.get(..ID_DIGITS)?;
    digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)).then(|| digits.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Info, is_loading, run_id};

    const PRIMARY: &str = "# Replication\r\nrole:master\r\nconnected_slaves:1\r\n\
        slave0:ip=127.0.0.1,port=1,state=online,offset=14,lag=0\r\nmaster_failover_state:no-failover\r\n\
        master_replid:7e93a980d69144ddf37cfa7b5b2db789b1f54f04\r\n\
        master_replid2:0000000000000000000000000000000000000000\r\nmaster_repl_offset:14\r\n\
        second_repl_offset:-1\r\nrepl_backlog_active:1\r\n";
    const REPLICA: &str = "role:slave\r\nmaster_link_status:up\r\nmaster_sync_in_progress:0\r\n\
        slave_read_repl_offset:99\r\nslave_repl_offset:70\r\n\
        master_replid:db3efaff6d4e7c87b5f0d0b3830eeb0b6670eb96\r\n\
        master_replid2:a8783a7f1719d66af9900cc1d905321749c146e6\r\nmaster_repl_offset:98\r\n\
        second_repl_offset:61\r\nrepl_backlog_active:1\r\n";

    #[test]
    fn a_primary_and_a_replica_are_read() {
        let primary = Info::read(PRIMARY).unwrap();
        assert!(primary.is_primary && primary.linked && primary.counts && !primary.in_flux);
        assert_eq!((primary.id.as_str(), primary.offset), ("7e93a980d69144ddf37cfa7b5b2db789", 14));
        assert_eq!(primary.before, None, "zeros are no history");
        let replica = Info::read(REPLICA).unwrap();
        assert!(!replica.is_primary && replica.linked);
        assert_eq!(replica.offset, 70, "applied, neither received nor passed on");
        assert_eq!(replica.before, Some(("a8783a7f1719d66af9900cc1d9053217".to_owned(), 60)));
    }

    #[test]
    fn what_has_nothing_says_so() {
        let lone = PRIMARY.replace("backlog_active:1", "backlog_active:0");
        assert!(!Info::read(&lone).unwrap().counts);
        assert!(Info::read(&REPLICA.replace("in_progress:0", "in_progress:1")).unwrap().in_flux);
        assert!(!Info::read(&REPLICA.replace("status:up", "status:down")).unwrap().linked);
        assert!(is_loading("loading:1\r\n") && is_loading("loading:0\r\nasync_loading:1\r\n"));
        assert!(!is_loading("loading:0\r\nasync_loading:0\r\n"));
        assert_eq!(run_id("run_id:ef88f1bb3ec56bc1067510fe36abccd5843f7864\r\n").unwrap().len(), 32);
    }

    #[test]
    fn garbage_is_no_answer() {
        for (from, to) in [
            ("role:master", "role:sentinel"),
            ("role:master", "roll:master"),
            ("master_replid:7e93", "master_replid:7E93"),
            ("master_replid:7e93a980d69144ddf37cfa7b5b2db789b1f54f04", "master_replid:7e93"),
            ("master_replid:7e93", "master_replid:\u{e9}\u{e9}"),
            ("master_repl_offset:14", "master_repl_offset:-14"),
            ("master_repl_offset:14", "master_repl_offset:99999999999999999999"),
        ] {
            assert_eq!(Info::read(&PRIMARY.replace(from, to)), None, "{to}");
        }
        assert_eq!(Info::read(&REPLICA.replace("slave_repl_offset:70", "")), None);
        assert_eq!(Info::read(&"x".repeat(300_000)), None);
        assert_eq!(Info::read(""), None);
        assert_eq!(run_id("run_id:zz"), None);
    }
}
