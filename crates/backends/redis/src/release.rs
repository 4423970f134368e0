//! What a release found that may be the repetition of one whose answer was lost.
//!
//! Nothing is written for that at a release: what it says goes out from what is known of the lease. As long as the
//! server lives that said that it holds, it ends in three ways only: by itself, which takes as long as it was asked for,
//! by force or by a hand-over, which leave a mark, and by its release.

use mainstay_store::{Outcome, Result};
use redis::Value;

use crate::answer;
use crate::error::garbled;
use crate::keys::Keys;
use crate::node::{Failure, Node, Reply};
use crate::ops::{Op, Ops};

/// Whether a release was answered, now or earlier, that everything was held until then. `op` is what was known before
/// this one was sent.
pub(crate) async fn found_all(
    (ops, op_id): (&Ops, &str),
    op: &Op,
    (node, at): (&Node, usize),
    reply: std::result::Result<Reply, Failure>,
) -> Result<bool> {
    let reply = reply.map_err(|failure| {
        if !failure.doubt && !op.was_released(at) {
            ops.not_released(op_id, at);
        }
        failure.error
    })?;
    let freed = answer::count(node.name(), reply.value)?;
    let all = match op.freed(at) {
        Some(all) => all,
        None if freed == 0 && (reply.doubt || op.was_released(at)) => {
            let broken = Box::pin(is_broken(node, &op.keys)).await?;
            let held_in = op.held_in(at, node.clock().now());
            // The life is asked for last: whoever answered all this is the one that lives. An operation that is forgotten
            // by now had a release beside this one, which was answered.
            !broken && held_in.is_some() && held_in == node.life() && ops.get(op_id).is_some()
        }
        None => usize::try_from(freed).is_ok_and(|n| n == op.keys.len()),
    };
    ops.freed(op_id, at, all);
    Ok(all)
}

/// Whether any of these may have been taken away.
async fn is_broken(node: &Node, keys: &[Keys]) -> Result<bool> {
    let mut cmd = redis::cmd("MGET");
    keys.iter().for_each(|key| {
        cmd.arg(key.broken());
    });
    match node.ask(&cmd).await.map_err(|e| e.with_outcome(Outcome::Unknown))? {
        Value::Array(marks) if marks.len() == keys.len() => Ok(marks.iter().any(|mark| *mark != Value::Nil)),
        other => Err(garbled(node.name(), &other)),
    }
}
