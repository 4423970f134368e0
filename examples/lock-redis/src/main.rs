//! A fenced lock on a quorum of Redis.
//!
//! Three servers of our own are started, one of them is killed while the lock is held, an operator breaks the
//! lock, and what its former holder writes afterwards is refused where the data lives. `redis-server` must be installed
//! (`apt-get install redis-server`); without it this says so and ends.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mainstay_clock::{Deadline, Runtime};
use mainstay_coordination::Coordinator;
use mainstay_redis::{RedisQuorum, fence};
use mainstay_sim::servers::{Launch, Server, find};
use mainstay_store::lease::Fencing;
use mainstay_store::{FenceCheck, LeaseStore};

/// A private server that has every write on disk before it answers: a quorum of such gives strict tokens.
fn start(program: &std::path::Path) -> anyhow::Result<Server> {
    let server = Server::start(program, |setup| {
        let (ip, port) = (setup.address.ip().to_string(), setup.address.port().to_string());
        let durable = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];
        Launch::new().args(["--bind", &ip, "--port", &port, "--daemonize", "no"]).args(durable)
    })?;
    Ok(server)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Some(program) = find("redis-server") else {
        println!("redis-server is not installed: nothing to show");
        return Ok(());
    };
    let mut servers = [start(&program)?, start(&program)?, start(&program)?];
    let urls: Vec<String> = servers.iter().map(|s| format!("redis://{}/", s.address())).collect();

    let rt = Runtime::system();
    let store = Arc::new(RedisQuorum::builder(&urls).require_durable().build(&rt)?);
    store.ready().await?;
    let locks =
        Coordinator::builder(store.clone(), rt.clone()).namespace("billing").owner("node-7").build()?;
    let nightly = locks.mutex("nightly").ttl(Duration::from_secs(60)).require(Fencing::Strict).build()?;
    let soon = || Deadline::after(rt.clock().now(), Duration::from_secs(60));

    // The data lives on a Redis of its own, or, as here, on one of the three.
    let mut data = redis::Client::open(urls[0].as_str())?.get_multiplexed_async_connection().await?;
    let guard = nightly.acquire(soon()).await?;
    let first = guard.token();
    servers[2].kill()?;
    let written = guard
        .run(async |work| fence::set(&mut data, "{report}:fence", "{report}", b"by 7", work.token()).await)
        .await??;
    assert_eq!(written, FenceCheck::Pass, "one dead server of three changes nothing");
    println!("written under token {first}, with one of three servers dead");

    // An operator breaks the lock: a token is burned, and the resource is told.
    let burned = store.break_lease("billing/nightly").await?;
    let next = nightly.acquire(soon()).await?;
    assert!(first < burned && burned < next.token());
    fence::advance(&mut data, "{report}:fence", burned).await?;

    let late = fence::set(&mut data, "{report}:fence", "{report}", b"late", first).await?;
    assert_eq!(late, FenceCheck::Stale { seen: burned });
    println!("the former holder's late write is refused: the resource has seen {burned}");
    let value: String =
        redis::cmd("GET").arg("{report}").query_async(&mut data).await.context("the report")?;
    assert_eq!(value, "by 7");
    next.release().await?;
    Ok(())
}
