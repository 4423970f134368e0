//! Every name of the bucket, once.

use std::collections::BTreeSet;

use futures_util::StreamExt as _;
use mainstay_clock::Instant;
use mainstay_store::Result;

use crate::api::{Api, is_control};
use crate::feed::{consume, control, told};
use crate::state::Content;

/// The names that start with `prefix` and say something, sorted.
///
/// # Errors
/// When the server does not tell them all until `limit`.
///
/// # Cancel safety
/// Changes nothing; the consumer goes with its reader.
pub(crate) async fn names(api: &Api, prefix: &str, limit: Instant) -> Result<BTreeSet<String>> {
    let (mut messages, made) = consume(api).await?;
    let mut names = BTreeSet::new();
    let mut pending = made.num_pending;
    while pending > 0 {
        let message = tokio::select! {
            biased;
            message = messages.next() => message,
            () = api.clock.sleep_until(limit) => None,
        };
        let Some(message) = message else { return Err(crate::error::unanswered("the list of names")) };
        if is_control(&message) {
            control(api, &message).await;
            continue;
        }
        let Some((place, version)) = told(api, &message) else { continue };
        pending = place.pending;
        if let Some((name, version)) = version
            && version.content != Content::Free
            && name.starts_with(prefix)
        {
            names.insert(name);
        }
    }
    Ok(names)
}
