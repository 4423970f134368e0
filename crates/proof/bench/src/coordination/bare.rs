//! The bare client: the driver, the scripts, and nothing else.

use anyhow::bail;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, Value};

use super::TTL;
use super::measure::Locks;

const ACQUIRE: &str = concat!(
    include_str!("../../../../backends/redis/src/lua/line.lua"),
    include_str!("../../../../backends/redis/src/lua/acquire.lua")
);
const RELEASE: &str = include_str!("../../../../backends/redis/src/lua/release.lua");

/// One server.
#[derive(Clone)]
pub(super) struct Bare {
    connection: MultiplexedConnection,
    acquire: String,
    release: String,
    /// How the script counts: by the clock, or as one of a quorum.
    mode: &'static str,
}

impl Bare {
    pub(super) async fn connect(url: &str) -> anyhow::Result<Self> {
        let mut connection = Client::open(url)?.get_multiplexed_async_connection().await?;
        let mut digests = Vec::new();
        for source in [ACQUIRE, RELEASE] {
            let mut load = redis::cmd("SCRIPT");
            digests.push(load.arg("LOAD").arg(source).query_async::<String>(&mut connection).await?);
        }
        let (acquire, release) = (digests[0].clone(), digests[1].clone());
        Ok(Self { connection, acquire, release, mode: "clock" })
    }

    fn taking(&self, name: &str, op: &str) -> Cmd {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(&self.acquire).arg(7).arg(format!("{{{name}}}:t:{op}")).arg(name);
        for side in ["fence", "info", "sharers", "line", "places"] {
            cmd.arg(format!("{{{name}}}:{side}"));
        }
        let ttl = TTL.as_millis() as u64;
        cmd.arg(op).arg(ttl).arg(self.mode).arg(1).arg("\"owner\":\"bench\",\"note\":\"\"}");
        cmd
    }

    fn giving(&self, name: &str, op: &str) -> Cmd {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(&self.release).arg(4).arg(format!("{{{name}}}:t:{op}")).arg(name);
        cmd.arg(format!("{{{name}}}:info")).arg(format!("{{{name}}}:ch")).arg(op).arg(0);
        cmd
    }

    async fn send(&self, cmd: Cmd) -> anyhow::Result<Value> {
        match self.connection.clone().send_packed_command(&cmd).await? {
            Value::ServerError(e) => bail!("{} {}", e.code(), e.details().unwrap_or_default()),
            value => Ok(value),
        }
    }
}

fn is_granted(reply: &Value) -> bool {
    matches!(reply, Value::Array(parts) if parts.first() == Some(&Value::BulkString(b"ok".to_vec())))
}

impl Locks for Bare {
    fn acquire<'a>(&'a self, name: &'a str, op: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            let reply = self.send(self.taking(name, op)).await?;
            if is_granted(&reply) { Ok(()) } else { bail!("not granted: {reply:?}") }
        })
    }

    fn release<'a>(&'a self, name: &'a str, op: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            match self.send(self.giving(name, op)).await? {
                Value::Int(1) => Ok(()),
                other => bail!("not freed: {other:?}"),
            }
        })
    }
}

/// Several servers: everybody is asked at once, the fastest majority is waited for.
pub(super) struct BareQuorum(Vec<Bare>);

impl BareQuorum {
    pub(super) async fn connect(urls: &[String]) -> anyhow::Result<Self> {
        let mut all = Vec::new();
        for url in urls {
            all.push(Bare { mode: "quorum", ..Bare::connect(url).await? });
        }
        Ok(Self(all))
    }

    async fn ask(&self, cmd: impl Fn(&Bare) -> Cmd, yes: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        let mut pending: FuturesUnordered<BoxFuture<'static, anyhow::Result<Value>>> =
            FuturesUnordered::new();
        for server in &self.0 {
            let (own, cmd) = (server.clone(), cmd(server));
            pending.push(Box::pin(async move { own.send(cmd).await }));
        }
        let mut granted = 0;
        while granted < self.0.len() / 2 + 1 {
            let Some(reply) = pending.next().await else { bail!("no majority") };
            granted += usize::from(reply.is_ok_and(|r| yes(&r)));
        }
        if !pending.is_empty() {
            #[allow(clippy::disallowed_methods, reason = "as a client without our runtime does")]
            tokio::task::spawn(async move { while pending.next().await.is_some() {} });
        }
        Ok(())
    }
}

impl Locks for BareQuorum {
    fn acquire<'a>(&'a self, name: &'a str, op: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(self.ask(move |s| s.taking(name, op), is_granted))
    }

    fn release<'a>(&'a self, name: &'a str, op: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(self.ask(move |s| s.giving(name, op), |v| *v == Value::Int(1)))
    }
}
