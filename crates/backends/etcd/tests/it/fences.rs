//! What refuses a late writer.

use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_etcd::fence::{EtcdFence, padded};
use mainstay_store::lease::{AcquireRequest, Acquired};
use mainstay_store::{ErrorKind, FenceCheck, FencingToken, LeaseStore};

use crate::world::{Test, World, ask, in_line, take, until};

pub(crate) const TESTS: &[Test] = &[
    ("f25_an_older_token_is_refused_in_the_transaction_of_the_write", |w| Box::pin(tokens(w))),
    ("f25_an_owner_writes_only_while_its_key_lives", |w| Box::pin(owners(w))),
    ("f40_a_broken_lease_burns_its_token_and_the_resource_refuses_its_holder", |w| Box::pin(f40(w))),
];

/// It ends while it is waited for, and not before.
fn passing(name: &str, op: &str) -> AcquireRequest {
    AcquireRequest { ttl: Duration::from_secs(10), ..ask(name, op) }
}

fn fence(world: &World) -> EtcdFence {
    EtcdFence::new(&world.config("").build().unwrap(), &Runtime::system()).unwrap()
}

async fn tokens(world: World) {
    let (etcd, prefix) = (fence(&world), world.prefix());
    let (at, key) = (format!("{prefix}fence"), format!("{prefix}data"));
    let read = || world.node.ctl(&["get", "--print-value-only", &key]).unwrap();
    let stale = |seen| FenceCheck::Stale { seen: FencingToken::new(seen) };
    // Token, verdict: across a power of ten, where texts of different lengths would compare wrongly.
    for (token, verdict) in [
        (9, FenceCheck::Pass),
        (9, FenceCheck::Pass),
        (8, stale(9)),
        (10, FenceCheck::Pass),
        (9, stale(10)),
        (99, FenceCheck::Pass),
        (100, FenceCheck::Pass),
        (99, stale(100)),
    ] {
        let before = read();
        let value = format!("by {token}");
        let found = etcd.put(&at, &key, value.as_bytes(), FencingToken::new(token)).await.unwrap();
        assert_eq!(found, verdict, "{token}");
        let expected = if verdict == FenceCheck::Pass { format!("{value}\n") } else { before };
        assert_eq!(read(), expected, "{token}");
    }
    // The new holder announces itself before its first write.
    assert_eq!(etcd.advance(&at, FencingToken::new(200)).await.unwrap(), FenceCheck::Pass);
    assert_eq!(etcd.put(&at, &key, b"late", FencingToken::new(100)).await.unwrap(), stale(200));
    assert_eq!(
        world.node.ctl(&["get", "--print-value-only", &at]).unwrap().trim(),
        padded(FencingToken::new(200))
    );
    world.node.ctl(&["put", &at, "x, and no token"]).unwrap();
    assert_eq!(etcd.advance(&at, FencingToken::new(201)).await.unwrap_err().kind(), ErrorKind::Corrupt);
}

async fn owners(world: World) {
    let (etcd, prefix) = (fence(&world), world.prefix());
    let key = format!("{prefix}data");
    let [here, there] = {
        let config = || world.config(&prefix);
        [crate::world::open(config()).await, crate::world::open(config()).await]
    };
    let Acquired::Granted(grants) = here.acquire(passing("n", "paused")).await.unwrap() else { panic!() };
    let owner = here.lock_key("n", grants[0].token).await.unwrap().unwrap();
    assert!(etcd.put_as_owner(&owner, &key, b"first").await.unwrap());
    // The holder is paused beyond its ttl: nothing renews, and the next in line takes over.
    there.acquire(in_line("n", "next")).await.unwrap();
    until("the next holds", || async {
        matches!(there.acquire(in_line("n", "next")).await.unwrap(), Acquired::Granted(_))
    })
    .await;
    let next = there.inspect("n").await.unwrap().holders[0].token;
    let second = there.lock_key("n", next).await.unwrap().unwrap();
    assert!(etcd.put_as_owner(&second, &key, b"second").await.unwrap());
    assert!(!etcd.put_as_owner(&owner, &key, b"late").await.unwrap(), "the paused one comes back");
    assert_eq!(world.node.ctl(&["get", "--print-value-only", &key]).unwrap().trim(), "second");
    assert!(second.revision > owner.revision && second.revision > second.create_revision);
    assert!(here.lock_key("n", grants[0].token).await.unwrap().is_none());
    // The same, as `etcdctl txn` has it.
    let txn = format!(
        "create(\"{}\") = \"{}\"\n\nput {key} third\n\n\n",
        String::from_utf8_lossy(&second.key),
        second.create_revision
    );
    let mut child = world.node.etcdctl().arg("txn").stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), txn.as_bytes()).unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(world.node.ctl(&["get", "--print-value-only", &key]).unwrap().trim(), "third");
}

async fn f40(world: World) {
    let (etcd, store) = (fence(&world), world.store().await);
    let at = format!("{}fence", world.prefix());
    let token = take(&store, "n", "stuck").await.unwrap();
    assert_eq!(etcd.advance(&at, token).await.unwrap(), FenceCheck::Pass);
    let burned = store.break_lease("n").await.unwrap();
    assert!(burned > token);
    // Until the resource knows, the old holder still writes.
    assert_eq!(etcd.advance(&at, token).await.unwrap(), FenceCheck::Pass);
    assert_eq!(etcd.advance(&at, burned).await.unwrap(), FenceCheck::Pass);
    assert_eq!(etcd.advance(&at, token).await.unwrap(), FenceCheck::Stale { seen: burned });
    let next = take(&store, "n", "next").await.unwrap();
    assert_eq!(etcd.advance(&at, next).await.unwrap(), FenceCheck::Pass);
    assert!(matches!(store.acquire(ask("n", "x")).await.unwrap(), Acquired::Held { .. }));
}
