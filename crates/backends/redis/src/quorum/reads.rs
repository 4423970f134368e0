//! What a majority knows of a name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use mainstay_store::lease::{AcquireRequest, Acquired, LeaseInfo};
use mainstay_store::{Error, ErrorKind, FencingToken, LeaseStore as _, Outcome, Result};
use redis::Cmd;

use super::RedisQuorum;
use crate::answer::{self, Inspected};
use crate::keys::Keys;
use crate::node::ears::Known;
use crate::node::{Node, Purpose};
use crate::scan;
use crate::store::{annotate_args, break_args, look};

/// How often a break is tried: others may take the name as soon as it is free.
const BREAKS: u32 = 5;
/// The burning lease is given back at once; should that fail, it ends within this time. Long enough that servers are
/// waited for as patiently as for any other question.
const BURN_TTL: Duration = Duration::from_secs(10);

/// Servers that say the same, and one of them.
type Same<'a> = (usize, &'a Inspected);

impl RedisQuorum {
    pub(super) async fn look(&self, name: &str) -> Result<LeaseInfo> {
        let mut pending = self.all(|own, at| {
            let name = name.to_owned();
            async move { look(&own.0.nodes[at], &own.0.options, &name, own.patience(Duration::MAX)).await }
        });
        let (mut heard, mut last) = (Vec::new(), None);
        while let Some((_, answer)) = pending.next().await {
            match answer {
                Ok(inspected) => heard.push(inspected),
                Err(error) => last = Some(error),
            }
            if let Some(info) = self.agreed(name, &heard, pending.is_empty()) {
                self.drain(pending);
                return Ok(info);
            }
        }
        if heard.len() < self.needed() {
            return Err(self.unreachable(heard.len(), last));
        }
        // Everybody was heard and no majority agrees: nobody holds it.
        let most = heard.iter().map(|i| i.info.last_token).max().unwrap_or_default();
        Ok(LeaseInfo::free(name, most))
    }

    /// What a majority says, once it does; when `all` were heard, the most of those that see one holder.
    fn agreed(&self, name: &str, heard: &[Inspected], all: bool) -> Option<LeaseInfo> {
        let mut by_value: BTreeMap<(&[u8], bool), Vec<&Inspected>> = BTreeMap::new();
        for inspected in heard {
            let held = !inspected.info.holders.is_empty();
            by_value.entry((&inspected.value, held)).or_default().push(inspected);
        }
        let (_, same) = by_value.into_iter().find(|(_, same)| same.len() >= self.needed())?;
        if same[0].info.holders.is_empty() {
            let most = heard.iter().map(|i| i.info.last_token).max().unwrap_or_default();
            return Some(LeaseInfo::free(name, most));
        }
        // A majority has the token and the last value attached to it; one that granted too late to count may
        // be ahead or behind.
        let mut counts: BTreeMap<(u64, &Option<Vec<u8>>), Same<'_>> = BTreeMap::new();
        for inspected in same {
            let key = (inspected.counter, &inspected.info.annotation);
            counts.entry(key).or_insert((0, inspected)).0 += 1;
        }
        let (_, (count, most)) = counts.into_iter().max_by_key(|(key, (count, _))| (*count, *key))?;
        (all || count >= self.needed()).then(|| most.info.clone())
    }

    pub(super) async fn write(&self, name: &str, token: FencingToken, value: &[u8]) -> Result<bool> {
        let key = self.0.options.keys(name)?;
        let Some(counter) = answer::counter(self.0.options.epoch, token) else { return Ok(false) };
        let mut pending = self.all(|own, at| {
            let (key, value) = (key.clone(), value.to_vec());
            async move {
                let node = &own.0.nodes[at];
                let fill = |cmd: &mut Cmd| annotate_args(cmd, &key, counter, &value);
                let limit = own.patience(Duration::MAX);
                let reply = node.eval(&node.scripts().annotate, Purpose::Other, limit, fill).await;
                Ok(answer::count(node.name(), reply.map_err(|f| f.error)?.value)? == 1)
            }
        });
        let (mut yes, mut no, mut last) = (0, 0, None);
        while let Some((_, answer)) = pending.next().await {
            match answer {
                Ok(true) => yes += 1,
                Ok(false) => no += 1,
                Err(error) => last = Some(error),
            }
            if yes >= self.needed() || no > self.0.nodes.len() - self.needed() {
                self.drain(pending);
                return Ok(yes >= self.needed());
            }
        }
        Err(self.unreachable(yes + no, last).with_outcome(Outcome::Unknown))
    }

    /// Frees the name everywhere, then takes and gives back a lease of its own: its token comes in the one
    /// order of all tokens, and is burned.
    pub(super) async fn burn(&self, name: &str) -> Result<FencingToken> {
        let key = self.0.options.keys(name)?;
        for _ in 0..BREAKS {
            self.free(&key).await?;
            let rng = self.0.rt.rng();
            let op = format!("break-{:016x}{:016x}", rng.next_u64(), rng.next_u64());
            let request =
                AcquireRequest::exclusive(name, "broken by force", &op, BURN_TTL.min(self.0.max_ttl));
            if let Acquired::Granted(grants) = self.acquire(request).await? {
                // Should this fail, it ends by itself.
                let _ = self.release(&op).await;
                return Ok(grants.first().map_or(FencingToken::ZERO, |g| g.token));
            }
        }
        let text =
            format!("`{name}` was freed, and taken by somebody else each time before a token was burned");
        Err(Error::new(ErrorKind::Unavailable, text).with_outcome(Outcome::Applied))
    }

    async fn free(&self, key: &Keys) -> Result<()> {
        let mut pending = self.all(|own, at| {
            let key = key.clone();
            async move {
                let node = &own.0.nodes[at];
                let fill = |cmd: &mut Cmd| break_args(cmd, &key, "only");
                let limit = own.patience(Duration::MAX);
                let reply = node.eval(&node.scripts().break_lease, Purpose::Other, limit, fill).await;
                answer::asked(node.name(), std::slice::from_ref(&key), reply.map_err(|f| f.error)?.value)
            }
        });
        let (mut heard, mut last) = (0, None);
        while let Some((_, answer)) = pending.next().await {
            match answer {
                Ok(answer::Asked::Held { by, .. }) => {
                    let text = format!("`{}` is held by {by}, which only its own client can end", key.name);
                    return Err(Error::new(ErrorKind::Unsupported, text));
                }
                Ok(_) => heard += 1,
                Err(error) => last = Some(error),
            }
        }
        if heard < self.needed() {
            return Err(self.unreachable(heard, last).with_outcome(Outcome::Unknown));
        }
        Ok(())
    }

    pub(super) async fn find(&self, prefix: &str, limit: usize) -> Result<Vec<LeaseInfo>> {
        let nodes = &self.0.nodes;
        let answers = join_all(nodes.iter().map(|n| scan::names(n, &self.0.options, prefix))).await;
        let (mut names, mut heard, mut last) = (BTreeSet::new(), 0, None);
        for answer in answers {
            match answer {
                Ok(found) => {
                    heard += 1;
                    names.extend(found);
                }
                Err(error) => last = Some(error),
            }
        }
        if heard < self.needed() {
            return Err(self.unreachable(heard, last));
        }
        let mut found = Vec::new();
        for name in names {
            if found.len() >= limit {
                break;
            }
            let info = self.look(&name).await?;
            if !info.holders.is_empty() {
                found.push(info);
            }
        }
        Ok(found)
    }

    /// Resolves when a majority of servers saw a change since `known`, which is of each server.
    pub(super) async fn changed(&self, keys: &Keys, known: Vec<Known>) -> Result<()> {
        let one = |(node, known): (&Node, Known)| {
            let (node, keys) = (node.clone(), keys.clone());
            async move { node.ears().changed(&keys, known).await }
        };
        let mut pending: FuturesUnordered<_> = self.0.nodes.iter().zip(known).map(one).collect();
        let (mut changed, mut last) = (0, None);
        while let Some(answer) = pending.next().await {
            match answer {
                Ok(()) => changed += 1,
                Err(error) => last = Some(error),
            }
            if changed >= self.needed() {
                return Ok(());
            }
        }
        Err(self.unreachable(changed, last))
    }
}
