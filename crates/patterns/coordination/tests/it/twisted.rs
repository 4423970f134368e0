//! A lease store that does one thing wrong.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_store::lease::{AcquireRequest, Acquired, Guarantees, LeaseInfo, Released, Renewed};
use mainstay_store::{BoxFuture, FencingToken, LeaseStore, Result};

/// What it does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Twist {
    /// Whoever annotates need not hold the lease.
    AnybodyAnnotates,
    /// A lease lasts half as long as its holder was told.
    HalfTtl,
    /// A lease that is held is taken away from its holder.
    Steals,
    /// Lists never change after the first look.
    StaleLists,
}

#[derive(Debug)]
pub(crate) struct Twisted {
    inner: Arc<dyn LeaseStore>,
    twist: Twist,
    listed: Mutex<Option<Vec<LeaseInfo>>>,
}

impl Twisted {
    pub(crate) fn new(inner: Arc<dyn LeaseStore>, twist: Twist) -> Self {
        Self { inner, twist, listed: Mutex::default() }
    }
}

impl LeaseStore for Twisted {
    fn acquire(&self, mut request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        Box::pin(async move {
            if self.twist == Twist::HalfTtl {
                request.ttl = (request.ttl / 2).max(Duration::from_millis(1));
            }
            if self.twist == Twist::Steals {
                self.inner.break_lease(&request.names[0]).await?;
            }
            self.inner.acquire(request).await
        })
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        self.inner.renew(op_id)
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        self.inner.release(op_id)
    }

    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        self.inner.leave(op_id)
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        self.inner.inspect(name)
    }

    fn annotate(&self, name: &str, token: FencingToken, value: Vec<u8>) -> BoxFuture<'_, Result<bool>> {
        let name = name.to_owned();
        Box::pin(async move {
            let holder = self.inner.inspect(&name).await?.holders.first().map(|h| h.token);
            let anybody = self.twist == Twist::AnybodyAnnotates;
            self.inner.annotate(&name, holder.filter(|_| anybody).unwrap_or(token), value).await
        })
    }

    fn break_lease(&self, name: &str) -> BoxFuture<'_, Result<FencingToken>> {
        self.inner.break_lease(name)
    }

    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            let now = self.inner.list(&prefix, limit).await?;
            if self.twist != Twist::StaleLists || now.is_empty() {
                return Ok(now);
            }
            Ok(self.listed.lock().unwrap().get_or_insert(now).clone())
        })
    }

    fn watch(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        self.inner.watch(name)
    }

    fn guarantees(&self) -> Guarantees {
        self.inner.guarantees()
    }
}
