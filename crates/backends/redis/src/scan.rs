//! Finding leases by walking the key space.

use std::collections::BTreeSet;

use mainstay_store::Result;

use crate::config::Options;
use crate::error::garbled;
use crate::keys::{INFO, KeyProfile, SHARERS, lock_of_side};
use crate::node::Node;

/// Keys looked at in one step: some hundred microseconds of a server's time.
const STEP: usize = 1_000;

/// The names that start with `prefix` and have somebody of ours as holder or sharer, sorted.
///
/// What is held throughout is found; what comes or goes meanwhile may be.
pub(crate) async fn names(node: &Node, options: &Options, prefix: &str) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for side in [INFO, SHARERS] {
        let known = with_side(node, &options.profile, side).await?;
        found.extend(known.iter().filter_map(|known| options.names.listed(prefix, known)));
    }
    Ok(found)
}

/// What has a key `side` beside it is known by these, sorted.
pub(crate) async fn with_side(node: &Node, profile: &KeyProfile, side: &str) -> Result<BTreeSet<String>> {
    let (mut found, mut cursor) = (BTreeSet::new(), 0_u64);
    loop {
        let mut cmd = redis::cmd("SCAN");
        cmd.arg(cursor).arg("MATCH").arg(format!("*:{side}")).arg("COUNT").arg(STEP);
        let reply = node.ask(&cmd).await?;
        let page: redis::RedisResult<(u64, Vec<Vec<u8>>)> =
            redis::from_redis_value(reply).map_err(Into::into);
        let (next, keys) = page.map_err(|e| garbled(node.name(), &e))?;
        for key in keys.into_iter().filter_map(|k| String::from_utf8(k).ok()) {
            let known = lock_of_side(&key, side).and_then(|lock| profile.name(lock));
            found.extend(known.map(str::to_owned));
        }
        cursor = next;
        if cursor == 0 {
            return Ok(found);
        }
    }
}
