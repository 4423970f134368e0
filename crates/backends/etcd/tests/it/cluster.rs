//! Three members: killed, paused, cut off, and their leader gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_chaos::partition::{self, Cut};
use mainstay_chaos::proxy::{TcpMesh, TcpMode, TcpProxy};
use mainstay_clock::Runtime;
use mainstay_coordination::{Coordinator, ErrorKind as LockError, LossReason};
use mainstay_etcd::fence::EtcdFence;
use mainstay_etcd::{EtcdConfig, EtcdLeases};
use mainstay_sim::servers::EtcdCluster;
use mainstay_sim::verdict::Verdict;
use mainstay_store::lease::{AcquireRequest, Released, Renewed};
use mainstay_store::{ErrorKind, FenceCheck, FencingToken, LeaseStore};

use crate::world::{
    Ctl, SHORT, TTL, Test, World, ask, direct, granted, in_line, node, opened, sleep, take, through, until,
    wait_for, within,
};

pub(crate) const TESTS: &[Test] = &[
    ("f25_a_killed_member_keeps_what_was_granted_and_comes_back", |w| Box::pin(killed(w))),
    ("f25_the_killed_leader_lets_leases_last_and_tokens_grow", |w| Box::pin(leader_killed(w))),
    ("f25_a_paused_member_is_left_for_another", |w| Box::pin(paused(w))),
    ("f25_without_a_majority_nothing_is_granted", |w| Box::pin(minority(w))),
    ("f25_a_client_cut_off_from_one_member_asks_another", |w| Box::pin(cut_off_from_one(w))),
    ("f25_a_holder_cut_off_from_all_stops_before_the_next_starts", |w| Box::pin(cut_off_from_all(w))),
    ("f25_a_holder_paused_beyond_its_ttl_is_refused", |w| Box::pin(holder_paused(w))),
    ("f23_f25_a_leader_that_is_cut_off_grants_nothing_and_its_holder_stops", |w| {
        Box::pin(partitioned(w, Cut::Both))
    }),
    ("f23_f25_a_leader_that_hears_nobody_grants_nothing_and_its_holder_stops", |w| {
        Box::pin(partitioned(w, Cut::Deaf))
    }),
    ("f23_f25_a_leader_that_nobody_hears_grants_nothing_and_its_holder_stops", |w| {
        Box::pin(partitioned(w, Cut::Mute))
    }),
    ("f25_all_members_killed_at_once_keep_what_was_granted", |w| Box::pin(all_killed(w))),
];

fn cluster(world: &World) -> EtcdCluster {
    world.kit.cluster(3).unwrap()
}

/// A third of this is for one member.
const ALL: Duration = Duration::from_secs(9);

async fn store(cluster: &EtcdCluster) -> EtcdLeases {
    opened(EtcdConfig::builder(&cluster.url()).request_timeout(ALL)).await
}

/// A proxy before each member.
async fn proxies(cluster: &EtcdCluster) -> Vec<TcpProxy> {
    let mut proxies = Vec::new();
    for member in &cluster.members {
        let proxy = TcpProxy::bind(Runtime::system(), 1).await.unwrap();
        proxy.set_upstream(Some(member.address()));
        proxies.push(proxy);
    }
    proxies
}

fn long(name: &str, op: &str) -> AcquireRequest {
    AcquireRequest { ttl: Duration::from_secs(60), ..ask(name, op) }
}

/// Renews until it is answered, as a guard does.
async fn renewed(store: &EtcdLeases, op: &str) -> Renewed {
    let last = std::sync::Mutex::new(None);
    until("a renewal is answered", || async {
        match store.renew(op).await {
            Ok(renewed) => {
                *last.lock().unwrap() = Some(renewed);
                true
            }
            Err(e) => {
                assert!(e.is_retryable(), "{e}");
                false
            }
        }
    })
    .await;
    last.into_inner().unwrap().unwrap()
}

/// Tries until it is answered.
async fn taken(store: &EtcdLeases, name: &str, op: &str) -> Option<FencingToken> {
    let last = std::sync::Mutex::new(None);
    until("an acquisition is answered", || async {
        match store.acquire(ask(name, op)).await {
            Ok(answer) => {
                *last.lock().unwrap() = granted(&answer);
                true
            }
            Err(e) => {
                assert!(e.is_retryable(), "{e}");
                false
            }
        }
    })
    .await;
    last.into_inner().unwrap()
}

async fn killed(world: World) {
    let mut cluster = cluster(&world);
    // Not the leader: that is another test.
    let victim = (cluster.leader().unwrap() + 1) % 3;
    let mut order: Vec<String> = cluster.members.iter().map(|m| m.address().to_string()).collect();
    order.swap(0, victim);
    let config = EtcdConfig::builder(&format!("etcd://{}", order.join(",")));
    let store = opened(config.request_timeout(ALL)).await;
    let Some(token) = granted(&store.acquire(long("n", "a")).await.unwrap()) else { panic!() };
    cluster.members[victim].kill().unwrap();
    assert!(matches!(renewed(&store, "a").await, Renewed::Renewed(g) if g[0].token == token));
    assert_eq!(taken(&store, "n", "b").await, None);
    cluster.members[victim].restart().unwrap();
    cluster.members[victim].answers().unwrap();
    let there = opened(direct(&cluster.members[victim])).await;
    assert_eq!(there.inspect("n").await.unwrap().holders[0].token, token, "it knows");
    assert_eq!(store.release("a").await.unwrap(), Released::Clean);
    assert!(take(&there, "n", "b").await.unwrap() > token);
}

async fn leader_killed(world: World) {
    let mut cluster = cluster(&world);
    let store = store(&cluster).await;
    let token = granted(&store.acquire(long("n", "a")).await.unwrap()).unwrap();
    let other = self::store(&cluster).await;
    let leader = cluster.leader().unwrap();
    let waiter = wait_for_long(&other);
    let kill = async {
        until("it waits", || async { store.inspect("n").await.unwrap().waiting == 1 }).await;
        cluster.members[leader].kill().unwrap();
        assert!(matches!(renewed(&store, "a").await, Renewed::Renewed(g) if g[0].token == token));
        // Whoever waited through the election still hears of the release.
        until("it is given back", || async { store.release("a").await.is_ok() }).await;
    };
    let (next, ()) = tokio::join!(waiter, kill);
    assert!(next > token, "{next} after {token}");
}

async fn wait_for_long(store: &EtcdLeases) -> FencingToken {
    let token = std::sync::Mutex::new(None);
    until("served", || async {
        let request = AcquireRequest { ttl: Duration::from_secs(60), ..in_line("n", "b") };
        match store.acquire(request).await {
            Ok(answer) => *token.lock().unwrap() = granted(&answer),
            Err(e) => assert!(e.is_retryable(), "{e}"),
        }
        token.lock().unwrap().is_some()
    })
    .await;
    token.into_inner().unwrap().unwrap()
}

async fn paused(world: World) {
    let cluster = cluster(&world);
    let victim = (cluster.leader().unwrap() + 1) % 3;
    let mut order: Vec<String> = cluster.members.iter().map(|m| m.address().to_string()).collect();
    order.swap(0, victim);
    let config = EtcdConfig::builder(&format!("etcd://{}", order.join(",")));
    let store = opened(config.request_timeout(ALL)).await;
    let token = take(&store, "n", "a").await.unwrap();
    cluster.members[victim].pause().unwrap();
    // One request finds out; its slice is a third of the whole time.
    assert!(matches!(renewed(&store, "a").await, Renewed::Renewed(g) if g[0].token == token));
    assert_eq!(store.release("a").await.unwrap(), Released::Clean);
    assert!(take(&store, "n", "b").await.unwrap() > token);
    cluster.members[victim].resume().unwrap();
}

async fn minority(world: World) {
    let cluster = cluster(&world);
    let store = store(&cluster).await;
    let token = granted(&store.acquire(long("n", "a")).await.unwrap()).unwrap();
    for member in &cluster.members[1..] {
        member.pause().unwrap();
    }
    let config = EtcdConfig::builder(&cluster.members[0].url()).request_timeout(Duration::from_secs(2));
    let refused = EtcdLeases::open(config.build().unwrap(), &Runtime::system()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    let refused = store.acquire(ask("m", "b")).await.unwrap_err();
    assert!(refused.is_retryable(), "{refused}");
    for member in &cluster.members[1..] {
        member.resume().unwrap();
    }
    assert!(matches!(renewed(&store, "a").await, Renewed::Renewed(g) if g[0].token == token));
    // What was in doubt is settled by its release.
    until("it is settled", || async { store.release("b").await.is_ok() }).await;
    assert!(taken(&store, "m", "c").await.is_some());
}

async fn cut_off_from_one(world: World) {
    let cluster = cluster(&world);
    let proxies = proxies(&cluster).await;
    let all: Vec<&TcpProxy> = proxies.iter().collect();
    let store = through(&all, "", ALL).await;
    let direct = self::store(&cluster).await;
    let lock = node(&store, "a").mutex("n").ttl(TTL).build().unwrap();
    let guard = lock.try_acquire().await.unwrap();
    // Each in turn; somebody always answers.
    for proxy in &proxies {
        proxy.set_mode(TcpMode::Blackhole);
        assert!(store.inspect("app/n").await.unwrap().holders.len() == 1);
        proxy.set_mode(TcpMode::Pass);
    }
    proxies[0].set_upstream(None);
    proxies[0].cut();
    sleep(100).await;
    assert!(guard.check().is_ok());
    let token = guard.token();
    assert_eq!(guard.release().await.unwrap(), Released::Clean);
    assert!(take(&direct, "app/n", "b").await.unwrap() > token);
}

async fn cut_off_from_all(world: World) {
    let cluster = cluster(&world);
    let proxies = proxies(&cluster).await;
    let all: Vec<&TcpProxy> = proxies.iter().collect();
    let cut_off = through(&all, "", Duration::from_millis(1_200)).await;
    let other = store(&cluster).await;
    let lock = node(&cut_off, "a").mutex("n").ttl(SHORT).build().unwrap();
    let guard = lock.acquire(within(60)).await.unwrap();
    let running = Arc::new(AtomicBool::new(true));
    let flag = Flag(Arc::clone(&running));
    let work = guard.run(|_| async move {
        let _flag = flag;
        std::future::pending::<()>().await;
    });
    let next = async {
        proxies.iter().for_each(|p| p.set_mode(TcpMode::Blackhole));
        let taken = node(&other, "b").mutex("n").fair().build().unwrap().acquire(within(60)).await.unwrap();
        (taken, running.load(Ordering::SeqCst))
    };
    let (done, (taken, overlapped)) = tokio::join!(work, next);
    assert_eq!(done.unwrap_err().kind(), &LockError::Lost(LossReason::DeadlinePassed));
    assert!(!overlapped, "the work had ended when the lease passed on");
    assert!(taken.token() > guard.token());
}

/// Down when the work is dropped.
struct Flag(Arc<AtomicBool>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

async fn holder_paused(world: World) {
    let cluster = cluster(&world);
    let store = store(&cluster).await;
    let etcd = EtcdFence::new(
        &EtcdConfig::builder(&cluster.url()).request_timeout(ALL).build().unwrap(),
        &Runtime::system(),
    )
    .unwrap();
    // A whole process that stops: etcdctl, which keeps its lease alive as long as it runs.
    let theirs = Ctl::start(
        &cluster.members[0],
        &["lock", "--ttl", "6", "n", "--", "sh", "-c", "echo $ETCD_LOCK_REV; exec sleep 60"],
    );
    theirs.holds().await;
    let old = FencingToken::new(theirs.said().trim().parse().unwrap());
    assert_eq!(etcd.put("fence", "data", b"theirs", old).await.unwrap(), FenceCheck::Pass);
    sleep(6_500).await;
    assert!(take(&store, "n", "early").await.is_none(), "it is kept alive");
    theirs.pause();
    let new = wait_for(&store, in_line("n", "ours")).await;
    assert_eq!(etcd.put("fence", "data", b"ours", new).await.unwrap(), FenceCheck::Pass);
    theirs.resume();
    // It goes on, and its late write is refused.
    assert_eq!(etcd.put("fence", "data", b"late", old).await.unwrap(), FenceCheck::Stale { seen: new });
    assert_eq!(cluster.members[1].ctl(&["get", "--print-value-only", "data"]).unwrap().trim(), "ours");
}

async fn all_killed(world: World) {
    let mut cluster = cluster(&world);
    let store = store(&cluster).await;
    let token = granted(&store.acquire(long("n", "a")).await.unwrap()).unwrap();
    for member in &mut cluster.members {
        member.kill().unwrap();
    }
    let refused = store.renew("a").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    for member in &mut cluster.members {
        member.restart().unwrap();
    }
    assert!(matches!(renewed(&store, "a").await, Renewed::Renewed(g) if g[0].token == token), "as promised");
    assert_eq!(taken(&store, "n", "b").await, None);
    until("it is given back", || async { store.release("a").await.is_ok() }).await;
    let next = taken(&store, "n", "c").await.unwrap();
    assert!(next > token);
}

async fn partitioned(world: World, cut: Cut) {
    let rt = Runtime::system();
    let mesh = TcpMesh::bind(&rt, 3).await.unwrap();
    let cluster = world.kit.cluster_behind(mesh.doors(), |n, at| mesh.set_listener(n, at)).unwrap();
    for (n, member) in cluster.members.iter().enumerate() {
        mesh.set_process(n, member.pid());
    }
    let leader = cluster.leader().unwrap();
    let mut nodes = Vec::new();
    for (n, member) in cluster.members.iter().enumerate() {
        let config = EtcdConfig::builder(&member.url()).request_timeout(Duration::from_millis(1_500));
        nodes.push(node(&opened(config).await, &format!("n{n}")));
    }
    let nodes: [Coordinator; 3] = nodes.try_into().unwrap();
    let seen = partition::contend(&rt, &nodes, &mesh, leader, cut, SHORT).await;
    println!("{cut:?}: {seen:?}");
    assert!(matches!(seen.verdict, Verdict::Pass(_)), "{}", seen.verdict);
}
