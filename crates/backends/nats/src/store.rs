//! The store.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use mainstay_clock::Runtime;
use mainstay_store::lease::{
    AcquireRequest, Acquired, Fencing, Guarantees, LeaseInfo, Released, Renewed, Server, Transferred, WATCHED,
};
use mainstay_store::{BoxFuture, FencingToken, LeaseStore, Result};
use tokio::sync::watch;

use crate::api::Api;
use crate::board::Board;
use crate::bucket::{self, WITH_ENDS};
use crate::config::{Expiry, NatsConfig};
use crate::exec::Core;
use crate::ops::Ops;
use crate::{feed, synced};

/// The server is asked for a word that often; two unanswered, and the connection is made again.
const PING: Duration = Duration::from_secs(2);
/// Longest pause between two tries to connect again.
const RECONNECT: Duration = Duration::from_millis(200);
/// Requests of one connection that wait to be written; more wait for a place.
const BUFFER: usize = 1_024;
/// What `bucket::admit` demands, as people write it.
const OLDEST: &str = "2.10";

/// A [`LeaseStore`] on a NATS `JetStream` key-value bucket (server 2.10 or later). Clones share the connection.
///
/// Guarantees: as [`LeaseStore`]. Every decision is one write that is refused if anybody wrote the key meanwhile;
/// what is only answered was read from the leader of the stream. Tokens are sequences of the stream, which starts
/// above those of any stream of that name before it. An acquisition whose answer was lost can be repeated, and a
/// release makes what is still on its way fail. `Strict` is declared only with three copies on servers that were
/// [shown](crate::Builder::system) to sync before they answer.
///
/// Not guaranteed: that a lease or a token survives a crash of machines that sync later (two minutes, as
/// shipped), or the deletion of the bucket; that a lease of a dead holder ends sooner than its ttl after somebody
/// saw it first, where the server does not end it. Only what was acquired through this value or a clone can be
/// renewed and released. Several names are taken one by one and given back if one is held: they are tried, never
/// put in line, and others may see some of them held for a moment. Check tokens at the resource
/// ([`fence`](crate::fence)).
///
/// Keys that another client of the bucket made (`create` of a key-value client) exclude ours and are excluded by
/// them; they are waited for and never overwritten.
///
/// ```no_run
/// use std::time::Duration;
/// use mainstay_clock::Runtime;
/// use mainstay_nats::{NatsConfig, NatsLeases};
/// use mainstay_store::LeaseStore;
/// use mainstay_store::lease::{AcquireRequest, Acquired};
///
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let config = NatsConfig::builder("nats://127.0.0.1:4222").build()?;
/// let store = NatsLeases::open(config, &Runtime::system()).await?;
/// let ask = AcquireRequest::exclusive("billing/nightly", "host-7", "op-1", Duration::from_secs(5));
/// assert!(matches!(store.acquire(ask).await?, Acquired::Granted(_)));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct NatsLeases(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    core: Core,
    /// Dropped, it ends the feed.
    _feed: watch::Sender<()>,
}

impl NatsLeases {
    /// Connects, refuses what must not be used, makes the bucket if it is not there, and starts to listen. A
    /// connection that breaks later is made again.
    ///
    /// # Errors
    /// `Unavailable` when no server can be reached; `Unsupported` when it is too old, has no `JetStream`, does not let
    /// us in, or the bucket is one that could lose leases.
    ///
    /// # Cancel safety
    /// A dropped future may have made the bucket, and leaves nothing else.
    pub async fn open(config: NatsConfig, rt: &Runtime) -> Result<Self> {
        let client = connect(&config).await?;
        let server = bucket::admit(&client.server_info().version)?;
        let mut api = Api {
            client,
            clock: Arc::clone(rt.clock()),
            stream: config.stream().into(),
            bucket: config.bucket.as_str().into(),
            ends: false,
        };
        let can_end = server >= WITH_ENDS;
        let limit = rt.clock().now().saturating_add(config.request_timeout);
        let info = bucket::ensure(&api, &config, can_end, limit).await?;
        api.ends = can_end && info.config.allow_msg_ttl && config.expiry != Expiry::Observer;
        let synced = synced::is_shown(&api, &config, &info).await?;
        let fencing = if synced { Fencing::Strict } else { Fencing::WhileStateSurvives };
        let board = Arc::new(Board::new(Arc::clone(rt.clock())));
        let (feed, stop) = watch::channel(());
        rt.spawn("nats-lease-feed", feed::listen(api.clone(), Arc::clone(&board), stop));
        let clock_name =
            if api.ends { "boot time of observers, and the server" } else { "boot time of observers" };
        let core = Core { api, board, ops: Ops::new(), rt: rt.clone(), config, fencing, clock_name, can_end };
        Ok(Self(Arc::new(Shared { core, _feed: feed })))
    }

    pub(crate) fn core(&self) -> &Core {
        &self.0.core
    }
}

async fn connect(config: &NatsConfig) -> Result<Client> {
    let options = ConnectOptions::new()
        .name("mainstay-leases")
        .connection_timeout(config.request_timeout)
        .ping_interval(PING)
        .client_capacity(BUFFER)
        .reconnect_delay_callback(|tries| match tries {
            0 | 1 => Duration::ZERO,
            n => RECONNECT.min(Duration::from_millis(20) * u32::try_from(n).unwrap_or(u32::MAX)),
        });
    crate::connect::connect(options, &config.servers, &config.tls).await
}

impl LeaseStore for NatsLeases {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        Box::pin(self.core().acquire(request))
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        let op = op_id.to_owned();
        Box::pin(async move { self.core().renew(&op).await })
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        let op = op_id.to_owned();
        Box::pin(async move { self.core().release(&op).await })
    }

    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        let op = op_id.to_owned();
        Box::pin(async move { self.core().leave(&op).await })
    }

    fn resize(&self, name: &str, limit: u32) -> BoxFuture<'_, Result<()>> {
        let name = name.to_owned();
        Box::pin(async move { self.core().resize(&name, limit).await })
    }

    fn annotate(&self, name: &str, token: FencingToken, value: Vec<u8>) -> BoxFuture<'_, Result<bool>> {
        let name = name.to_owned();
        Box::pin(async move { self.core().annotate(&name, token, &value).await })
    }

    fn transfer(&self, name: &str, token: FencingToken, to: &str) -> BoxFuture<'_, Result<Transferred>> {
        let (name, to) = (name.to_owned(), to.to_owned());
        Box::pin(async move { self.core().transfer(&name, token, &to).await })
    }

    fn break_lease(&self, name: &str) -> BoxFuture<'_, Result<FencingToken>> {
        let name = name.to_owned();
        Box::pin(async move { self.core().break_lease(&name).await })
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        let name = name.to_owned();
        Box::pin(async move { self.core().inspect(&name).await })
    }

    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        let prefix = prefix.to_owned();
        Box::pin(async move { self.core().list(&prefix, limit).await })
    }

    fn watch(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        self.core().board.watchers.watch(self.core().known(name))
    }

    fn servers(&self) -> BoxFuture<'_, Result<Vec<Server>>> {
        // As it was told when the connection was made, or made again.
        let told = self.core().api.client.server_info();
        let server = Server::new("NATS", format!("{}:{}", told.host, told.port), told.version, OLDEST);
        Box::pin(async { Ok(vec![server]) })
    }

    fn guarantees(&self) -> Guarantees {
        let failover = match self.core().fencing {
            Fencing::Strict => "a majority keeps leases and tokens",
            _ => "a crash of machines before they sync may lose leases and tokens",
        };
        let mut guarantees = Guarantees::new(self.core().fencing, self.core().clock_name, failover);
        guarantees.fair = true;
        guarantees.min_ttl = Duration::from_secs(1);
        guarantees.recheck = WATCHED;
        guarantees.native =
            &["annotate", "break_lease", "line", "list", "permit", "shared", "transfer", "watch"];
        guarantees
    }
}
