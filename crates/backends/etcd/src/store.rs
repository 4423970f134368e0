//! Leases on etcd.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_store::lease::{
    AcquireRequest, Acquired, Fencing, Guarantees, LeaseInfo, LeaseStore, Released, Renewed, Server,
    Transferred, WATCHED,
};
use mainstay_store::{BoxFuture, Error, ErrorKind, FencingToken, Result};

use crate::config::EtcdConfig;
use crate::conn::Conn;
use crate::hub::Hub;
use crate::keys::Scheme;
use crate::ops::Ops;

/// etcd takes 128 operations in one transaction, as shipped; up to four are needed per name, and one more.
const MAX_NAMES: usize = 31;
/// What [`Conn::ready`] demands, as people write it.
const OLDEST: &str = "3.4";

/// A [`LeaseStore`] on etcd 3.4 or later. Clones share it.
///
/// Guarantees: as [`LeaseStore`], with [`Fencing::Strict`]: a token is the revision of the transaction that proved
/// the ownership, and etcd's revisions only grow. Waiters are served in the order of their arrival, across processes
/// and together with `etcdctl lock` and `etcdctl elect` on the same name: each exclusive lease is a key
/// `<name>/<lease>` as etcd's own recipes write it, and so are readers and permits, which those take for holders.
/// Leases end by the monotonic clock of etcd's leader; a new leader lets each last its whole ttl again.
///
/// Not guaranteed: that tokens grow over a restore from a snapshot, whose revisions start where it was taken: raise
/// [`epoch`](crate::Builder::epoch) after one. A process that saw the larger revision refuses everything
/// from then on. etcd counts seconds: a ttl is rounded up, to two at least, so a crashed holder blocks that long and
/// about half a second more.
///
/// A name should not go on with a slash where another one ends (`a` and `a/b`): this store tells them apart, etcd's
/// own clients do not.
///
/// ```no_run
/// use mainstay_clock::Runtime;
/// use mainstay_etcd::{EtcdConfig, EtcdLeases};
/// use mainstay_store::LeaseStore;
/// use mainstay_store::lease::{AcquireRequest, Acquired};
/// use std::time::Duration;
///
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let config = EtcdConfig::builder("etcd://etcd-1,etcd-2,etcd-3").build()?;
/// let store = EtcdLeases::open(config, &Runtime::system()).await?;
/// let request = AcquireRequest::exclusive("billing/nightly", "host-7", "op-1", Duration::from_secs(30));
/// if let Acquired::Granted(grants) = store.acquire(request).await? {
///     println!("every write carries {}", grants[0].token);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct EtcdLeases(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) conn: Arc<Conn>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) scheme: Scheme,
    pub(crate) ops: Ops,
    pub(crate) epoch: u16,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.hub.close();
    }
}

impl fmt::Debug for EtcdLeases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdLeases").field("conn", &self.0.conn).finish_non_exhaustive()
    }
}

/// The key that stands for a held lease, for those who check ownership in transactions of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockKey {
    /// The key; `ETCD_LOCK_KEY` of `etcdctl`.
    pub key: Vec<u8>,
    /// When it was created: compare it in a transaction, as etcd's own `IsOwner` does.
    pub create_revision: i64,
    /// The revision that proved the ownership; `ETCD_LOCK_REV` of `etcdctl`, and the token without its epoch.
    pub revision: i64,
}

impl EtcdLeases {
    /// Connects, and checks that the server will do.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when no member answers or they have no leader, [`ErrorKind::Unsupported`] when the
    /// server is too old or wants a user.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing.
    pub async fn open(config: EtcdConfig, rt: &Runtime) -> Result<Self> {
        let conn = Conn::new(&config, rt).map_err(|e| Error::new(ErrorKind::ApiMisuse, e.to_string()))?;
        let conn = Arc::new(conn);
        conn.ready().await?;
        let hub = Hub::new();
        rt.spawn("etcd-watch", Arc::clone(&hub).run(Arc::clone(&conn)));
        let (scheme, epoch) = (Scheme::new(&config.prefix, config.names), config.epoch);
        Ok(Self(Arc::new(Shared { conn, hub, scheme, ops: Ops::default(), epoch })))
    }

    /// The key of whoever holds `name` under `token`; none when nobody does.
    ///
    /// # Errors
    /// When etcd fails.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn lock_key(&self, name: &str, token: FencingToken) -> Result<Option<LockKey>> {
        let view = self.look(name).await?;
        Ok(self.holder(&view, token).map(|entry| LockKey {
            key: entry.key.clone(),
            create_revision: entry.created,
            revision: entry.proof.unwrap_or_default(),
        }))
    }

    /// The rules that need no keys.
    fn check(&self, request: &AcquireRequest) -> Result<()> {
        request.check()?;
        self.0.scheme.check(&request.names)?;
        let names = request.names.len() + request.require.len();
        if names > MAX_NAMES {
            let text = format!("one transaction of etcd has room for {MAX_NAMES} names, not for {names}");
            return Err(Error::new(ErrorKind::TooLarge, text));
        }
        Ok(())
    }
}

impl LeaseStore for EtcdLeases {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        Box::pin(async move {
            self.check(&request)?;
            let answer = self.ask(&request).await;
            if answer.as_ref().is_err_and(|e| matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Regressed)) {
                self.undo(&request.op_id).await;
            }
            answer
        })
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        let op_id = op_id.to_owned();
        Box::pin(async move { self.extend(&op_id).await })
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        let op_id = op_id.to_owned();
        Box::pin(async move { self.give_back(&op_id).await })
    }

    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        let op_id = op_id.to_owned();
        Box::pin(async move { self.step_out(&op_id).await })
    }

    fn resize(&self, name: &str, limit: u32) -> BoxFuture<'_, Result<()>> {
        let name = name.to_owned();
        Box::pin(async move { self.give_limit(&name, limit).await })
    }

    fn annotate(&self, name: &str, token: FencingToken, value: Vec<u8>) -> BoxFuture<'_, Result<bool>> {
        let name = name.to_owned();
        Box::pin(async move { self.proclaim(&name, token, value).await })
    }

    fn transfer(&self, name: &str, token: FencingToken, to: &str) -> BoxFuture<'_, Result<Transferred>> {
        let (name, to) = (name.to_owned(), to.to_owned());
        Box::pin(async move { self.hand_over(&name, token, &to).await })
    }

    fn break_lease(&self, name: &str) -> BoxFuture<'_, Result<FencingToken>> {
        let name = name.to_owned();
        Box::pin(async move { self.burn(&name).await })
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        let name = name.to_owned();
        Box::pin(async move { self.describe(&name).await })
    }

    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        let prefix = prefix.to_owned();
        Box::pin(async move { self.held_under(&prefix, limit).await })
    }

    fn watch(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        self.0.hub.watch(name, self.0.scheme.locks(name))
    }

    fn servers(&self) -> BoxFuture<'_, Result<Vec<Server>>> {
        Box::pin(async move {
            let version = self.0.conn.version().await?;
            Ok(vec![Server::new("etcd", self.0.conn.endpoint(), version, OLDEST)])
        })
    }

    fn guarantees(&self) -> Guarantees {
        let clock = "monotonic clock of etcd's leader";
        let failover = "a majority keeps leases and tokens; a new leader lets each last its whole ttl again";
        let mut guarantees = Guarantees::new(Fencing::Strict, clock, failover);
        guarantees.fair = true;
        guarantees.min_ttl = Duration::from_secs(2);
        guarantees.recheck = WATCHED;
        guarantees.native = &["annotate", "break_lease", "line", "list", "permit", "shared", "watch"];
        guarantees
    }
}
