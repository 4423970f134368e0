//! The same flags over real sockets: three nodes on loopback, one of which is stopped and comes back from its disk.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use mainstay::clock::Runtime;
use mainstay::gossip::{Config, FileCell, Gossip, Keys, Sockets};

use crate::Flags;

async fn start(name: &str, seeds: Vec<SocketAddr>, folder: &Path) -> anyhow::Result<Gossip<Flags>> {
    let rt = Runtime::system();
    // From a file that only the service can read: `Keys::parse`.
    let keys = Keys::new(1, *b"thirty-two bytes, only for demos");
    let config = Config::builder(name, "flags").keys(keys).members(["a", "b", "c"]).seeds(seeds).build()?;
    let net = Sockets::bind("127.0.0.1:0".parse()?, None, &rt).await?;
    let cell = FileCell::open(&folder.join(name))?;
    Ok(Gossip::start(config, Arc::new(net), Some(Arc::new(cell)), &rt).await?)
}

fn is_on(flags: &Flags, flag: &str) -> bool {
    flags.get(&flag.to_owned()).is_some_and(|votes| votes.is_on())
}

/// Switches a flag on at one node and off at another, and sees both everywhere.
pub(crate) async fn run() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let a = start("a", vec![], folder.path()).await?;
    let b = start("b", vec![a.address()], folder.path()).await?;
    let c = start("c", vec![a.address()], folder.path()).await?;
    b.change(|f, at| f.update(at, "new-checkout".into(), |flag, mint| flag.turn_on(mint)))?;
    for node in [&a, &b, &c] {
        node.wait_until(|flags| is_on(flags, "new-checkout")).await?;
    }

    // One is away while somebody pulls the emergency stop, and learns of it when it is back.
    c.shutdown().await?;
    drop(c);
    a.change(|f, at| f.update(at, "new-checkout".into(), |flag, mint| flag.turn_off(mint)))?;
    let c = start("c", vec![a.address(), b.address()], folder.path()).await?;
    for node in [&a, &b, &c] {
        node.wait_until(|flags| !is_on(flags, "new-checkout")).await?;
    }
    println!("and over sockets: on at three nodes, off at three nodes, one of which was away");
    Ok(())
}
