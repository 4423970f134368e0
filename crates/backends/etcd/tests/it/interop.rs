//! `etcdctl lock` and `etcdctl elect` exclude ours and are excluded, on the same name.

use std::time::Duration;

use mainstay_coordination::ErrorKind;
use mainstay_store::lease::{AcquireRequest, Acquired, Names, Released, Share, Transferred};
use mainstay_store::{FencingToken, LeaseStore};

use crate::world::{Ctl, Test, World, ask, granted, in_line, node, open, take, until, wait_for, within};

pub(crate) const TESTS: &[Test] = &[
    ("etcdctl_lock_keeps_ours_out_and_hands_over", |w| Box::pin(their_lock(w))),
    ("ours_keeps_etcdctl_lock_out_and_hands_over", |w| Box::pin(our_lock(w))),
    ("a_lock_without_its_namespace_meets_etcdctl_on_the_bare_name", |w| Box::pin(bare(w))),
    ("one_line_serves_etcdctl_and_ours_in_order", |w| Box::pin(one_line(w))),
    ("etcdctl_elect_and_our_election_exclude_each_other_and_see_each_others_values", |w| {
        Box::pin(elections(w))
    }),
    ("readers_and_permits_keep_etcdctl_out", |w| Box::pin(shares(w))),
    ("f25_etcdctl_paused_beyond_its_ttl_is_outranked", |w| Box::pin(paused(w))),
    ("a_killed_etcdctl_blocks_no_longer_than_its_ttl", |w| Box::pin(killed(w))),
];

async fn their_lock(world: World) {
    let prefix = world.prefix();
    let store = open(world.config(&prefix)).await;
    let mut theirs = Ctl::start(&world.node, &["lock", "--ttl", "60", &format!("{prefix}n")]);
    theirs.holds().await;
    let key = theirs.said().trim().to_owned();
    let Acquired::Held { by, remaining, since } = store.acquire(ask("n", "ours")).await.unwrap() else {
        panic!()
    };
    assert_eq!(since, None, "etcdctl writes nothing of that");
    assert!(key.ends_with(by.strip_prefix("etcd lease ").unwrap()), "{by} {key}");
    assert!(
        remaining.is_some_and(|d| d > Duration::from_secs(30) && d <= Duration::from_secs(60)),
        "{remaining:?}"
    );
    let info = store.inspect("n").await.unwrap();
    assert_eq!((info.holders.len(), info.waiting), (1, 0));
    assert_eq!(store.release("ours").await.unwrap(), Released::AlreadyGone, "it is not ours");
    let waiter = wait_for(&store, in_line("n", "ours"));
    let end = async {
        until("ours is in line", || async { store.inspect("n").await.unwrap().waiting == 1 }).await;
        theirs.end().await;
    };
    let (token, ()) = tokio::join!(waiter, end);
    assert!(token > info.holders[0].token);
}

async fn our_lock(world: World) {
    let prefix = world.prefix();
    let store = open(world.config(&prefix)).await;
    let token = take(&store, "n", "ours").await.unwrap();
    let command = "echo $ETCD_LOCK_KEY $ETCD_LOCK_REV";
    let theirs = Ctl::start(&world.node, &["lock", &format!("{prefix}n"), "--", "sh", "-c", command]);
    until("it waits in our line", || async { store.inspect("n").await.unwrap().waiting == 1 }).await;
    store.renew("ours").await.unwrap();
    assert_eq!(theirs.said(), "");
    assert_eq!(store.release("ours").await.unwrap(), Released::Clean);
    theirs.holds().await;
    let said = theirs.said();
    let revision: u64 = said.trim().rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!(revision > token.get(), "one order of tokens: {revision} after {token}");
    let next = wait_for(&store, in_line("n", "next")).await;
    assert!(next.get() > revision);
}

async fn bare(world: World) {
    let prefix = world.prefix();
    let store = open(world.config(&prefix).names(Names::Bare)).await;
    let lock = node(&store, "ours").mutex("n").fair().build().unwrap();
    let name = format!("{prefix}n");
    let mut theirs = Ctl::start(&world.node, &["lock", &name]);
    theirs.holds().await;
    let refused = lock.try_acquire().await.unwrap_err();
    assert!(
        matches!(refused.kind(), ErrorKind::Contended { holder, .. } if holder.starts_with("etcd lease"))
    );
    let end = async {
        until("ours is in line", || async { store.inspect("app/n").await.unwrap().waiting == 1 }).await;
        theirs.end().await;
    };
    let (guard, ()) = tokio::join!(lock.acquire(within(20)), end);
    let guard = guard.unwrap();
    assert_eq!(store.list("app/", 10).await.unwrap()[0].name, "app/n");
    assert!(store.list("app/x", 10).await.unwrap().is_empty());
    let next = Ctl::start(&world.node, &["lock", &name]);
    until("etcdctl waits", || async { store.inspect("app/n").await.unwrap().waiting == 1 }).await;
    assert_eq!(next.said(), "");
    assert_eq!(guard.release().await.unwrap(), Released::Clean);
    next.holds().await;
    // Of another namespace, and yet the same.
    assert!(take(&store, "other/n", "other").await.is_none());
}

async fn one_line(world: World) {
    let prefix = world.prefix();
    let store = open(world.config(&prefix)).await;
    take(&store, "n", "holder").await.unwrap();
    let name = format!("{prefix}n");
    let mut first = Ctl::start(&world.node, &["lock", &name]);
    until("etcdctl is in line", || async { store.inspect("n").await.unwrap().waiting == 1 }).await;
    assert!(matches!(
        store.acquire(in_line("n", "second")).await.unwrap(),
        Acquired::Queued { position: Some(1), .. }
    ));
    let third = Ctl::start(&world.node, &["lock", &name]);
    until("another one is", || async { store.inspect("n").await.unwrap().waiting == 3 }).await;
    store.release("holder").await.unwrap();
    first.holds().await;
    assert!(matches!(store.acquire(in_line("n", "second")).await.unwrap(), Acquired::Queued { .. }));
    assert!(take(&store, "n", "bystander").await.is_none(), "nobody is overtaken");
    first.end().await;
    wait_for(&store, in_line("n", "second")).await;
    assert_eq!(third.said(), "");
    store.release("second").await.unwrap();
    third.holds().await;
}

async fn elections(world: World) {
    let prefix = world.prefix();
    let store = open(world.config(&prefix)).await;
    let name = format!("{prefix}app/election/boss");
    let mut theirs = Ctl::start(&world.node, &["elect", &name, "their-node"]);
    theirs.holds().await;
    let ours = node(&store, "our-node").election("boss").build().unwrap();
    let leader = ours.leader().await.unwrap().unwrap();
    assert_eq!((leader.owner.as_str(), leader.value.as_deref()), ("their-node", Some(&b"their-node"[..])));
    let campaign = ours.campaign(within(60));
    let end = async {
        until("ours is a candidate", || async {
            store.inspect("app/election/boss").await.unwrap().waiting == 1
        })
        .await;
        theirs.end().await;
    };
    let (term, ()) = tokio::join!(campaign, end);
    let term = term.unwrap();
    assert!(term.token() > leader.token);
    term.proclaim("our value").await.unwrap();
    let seen = Ctl::start(&world.node, &["elect", "-l", &name]);
    until("etcdctl sees what we proclaim", || async { seen.said().contains("our value") }).await;
    let next = Ctl::start(&world.node, &["elect", &name, "next-node"]);
    until("etcdctl is a candidate", || async {
        store.inspect("app/election/boss").await.unwrap().waiting == 1
    })
    .await;
    assert_eq!(next.said(), "");
    // It is the next in line, so it can be moved up: its key comes first then, and it sees that.
    let moved = store.transfer("app/election/boss", term.token(), "etcd lease").await.unwrap();
    assert_eq!(moved, Transferred::Unsupported);
    let moved = store.transfer("app/election/boss", term.token(), "next-node").await.unwrap();
    assert_eq!(moved, Transferred::Moved);
    until("it leads", || async { next.said().contains("next-node") }).await;
    assert_eq!(term.lost().await, mainstay_coordination::LossReason::TakenOver);
}

async fn shares(world: World) {
    let prefix = world.prefix();
    let store = open(world.config(&prefix)).await;
    let reader = |op: &str| AcquireRequest { share: Share::Shared, ..ask("n", op) };
    for op in ["r1", "r2"] {
        assert!(granted(&store.acquire(reader(op)).await.unwrap()).is_some());
    }
    let theirs = Ctl::start(&world.node, &["lock", &format!("{prefix}n")]);
    until("it waits", || async { store.inspect("n").await.unwrap().waiting == 1 }).await;
    assert!(
        granted(&store.acquire(reader("r3")).await.unwrap()).is_none(),
        "a waiting writer stops new readers"
    );
    store.release("r2").await.unwrap();
    store.renew("r1").await.unwrap();
    assert_eq!(theirs.said(), "");
    store.release("r1").await.unwrap();
    theirs.holds().await;
    let permit = AcquireRequest { share: Share::Permit { limit: 2, count: 1 }, ..ask("n", "p") };
    assert!(granted(&store.acquire(permit).await.unwrap()).is_none());
}

async fn paused(world: World) {
    let prefix = world.prefix();
    let store = open(world.config(&prefix)).await;
    let command = "echo $ETCD_LOCK_REV; exec sleep 60";
    let theirs =
        Ctl::start(&world.node, &["lock", "--ttl", "2", &format!("{prefix}n"), "--", "sh", "-c", command]);
    theirs.holds().await;
    let old = FencingToken::new(theirs.said().trim().parse().unwrap());
    theirs.pause();
    let new = wait_for(&store, in_line("n", "ours")).await;
    theirs.resume();
    assert_eq!(old.check(new), mainstay_store::FenceCheck::Stale { seen: new }, "its token is refused");
    assert!(take(&store, "n", "other").await.is_none());
}

async fn killed(world: World) {
    let prefix = world.prefix();
    let store = open(world.config(&prefix)).await;
    let theirs = Ctl::start(&world.node, &["lock", "--ttl", "10", &format!("{prefix}n")]);
    theirs.holds().await;
    drop(theirs);
    assert!(take(&store, "n", "early").await.is_none());
    wait_for(&store, in_line("n", "ours")).await;
}
