//! Three servers that keep one bucket: killed, paused, cut down to a minority.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_chaos::partition::{self, Cut};
use mainstay_chaos::proxy::TcpMesh;
use mainstay_clock::{Runtime, SystemClock};
use mainstay_coordination::Coordinator;
use mainstay_nats::NatsLeases;
use mainstay_sim::servers::{Nats, NatsKit};
use mainstay_sim::verdict::Verdict;
use mainstay_store::lease::{Acquired, Fencing, Released, Renewed};
use mainstay_store::{ErrorKind, FencingToken, LeaseStore};
use serde_json::{Value, json};

use crate::Test;
use crate::world::{ask, config, coordinator, ms, opened, other, pause, run, run_beside, soon, until};

pub(crate) const TESTS: &[Test] = &[
    ("f24_strict_is_declared_only_where_it_was_shown", f24),
    ("a_lease_outlives_the_leader_of_its_bucket", killed),
    ("a_lease_outlives_a_leader_that_is_paused", paused),
    ("a_minority_grants_nothing", minority),
    ("f23_f24_f25_a_leader_that_is_cut_off_grants_nothing_and_its_holder_stops", || {
        partitioned(Cut::Both);
    }),
    ("f23_f24_f25_a_leader_that_hears_nobody_grants_nothing_and_its_holder_stops", || {
        partitioned(Cut::Deaf);
    }),
    ("f23_f24_f25_a_leader_that_nobody_hears_grants_nothing_and_its_holder_stops", || {
        partitioned(Cut::Mute);
    }),
];

/// Longer than elections and restarts on a busy machine.
const TTL: Duration = Duration::from_secs(600);
/// Longest wait for one answer where some do not come.
const LOST: Duration = Duration::from_secs(5);

fn cluster(storage: &str) -> Vec<Nats> {
    NatsKit::new().unwrap().cluster(3, storage).unwrap()
}

fn all(nodes: &[Nats]) -> String {
    nodes.iter().map(Nats::url).collect::<Vec<_>>().join(",")
}

/// Which node leads the bucket.
async fn leader(node: &Nats) -> usize {
    let client = other(node).await;
    let found = std::cell::Cell::new(None);
    // While they elect nobody answers, or nobody is named.
    until("the bucket has a leader", async || {
        let asked = client.request("$JS.API.STREAM.INFO.KV_mainstay_leases", "{}".into()).await;
        let Some(info) = asked.ok().and_then(|m| serde_json::from_slice::<Value>(&m.payload).ok()) else {
            return false;
        };
        let Some(name) = info["cluster"]["leader"].as_str().filter(|name| !name.is_empty()) else {
            return false;
        };
        assert_eq!(info["config"]["num_replicas"], json!(3), "{info}");
        found.set(Some(name.strip_prefix("node-").unwrap().parse().unwrap()));
        true
    })
    .await;
    found.get().unwrap()
}

/// Whether it is granted, as soon as the store can tell.
async fn is_granted(store: &NatsLeases, name: &str, op: &str) -> bool {
    let granted = std::cell::Cell::new(false);
    until("an acquisition is answered", async || match store.acquire(ask(name, op, TTL)).await {
        Ok(answer) => {
            granted.set(matches!(answer, Acquired::Granted(_)));
            true
        }
        Err(error) => {
            assert!(error.is_retryable(), "{error}");
            false
        }
    })
    .await;
    granted.get()
}

/// Takes it as soon as the store can.
async fn taken(store: &NatsLeases, name: &str, op: &str) -> FencingToken {
    let (clock, end) = (SystemClock::new(), soon());
    loop {
        let answer = store.acquire(ask(name, op, TTL)).await;
        if let Ok(Acquired::Granted(grants)) = &answer {
            return grants[0].token;
        }
        assert!(!end.is_over(&clock), "never granted: {answer:?}");
        pause(ms(5)).await;
    }
}

fn f24() {
    let nodes = cluster("sync_interval: always");
    run(async {
        // Servers that are busy may not say in time how they sync.
        until("it is shown", async || {
            let shown = opened(config(&all(&nodes)).system(&nodes[1].system_url())).await;
            shown.guarantees().fencing == Fencing::Strict
        })
        .await;
        let silent = opened(config(&all(&nodes))).await;
        assert_eq!(silent.guarantees().fencing, Fencing::WhileStateSurvives, "nobody was asked");
        let single =
            opened(config(&all(&nodes)).system(&nodes[0].system_url()).bucket("one").replicas(1)).await;
        assert_eq!(single.guarantees().fencing, Fencing::WhileStateSurvives, "one copy");
    });
    drop(nodes);
    let lazy = cluster("");
    run(async {
        let store = opened(config(&all(&lazy)).system(&lazy[0].system_url())).await;
        assert_eq!(store.guarantees().fencing, Fencing::WhileStateSurvives, "they sync after two minutes");
    });
}

/// A cluster that has just lost a member may not answer in time: only a repetition may find it gone already.
async fn given_back(store: &NatsLeases, op: &str) {
    let tried = AtomicBool::new(false);
    until("it is given back", async || match store.release(op).await {
        Ok(released) => {
            assert!(released == Released::Clean || tried.load(Ordering::Relaxed), "{released:?} at once");
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
            tried.store(true, Ordering::Relaxed);
            false
        }
    })
    .await;
}

fn killed() {
    let mut nodes = cluster("");
    run(async {
        let store = opened(config(&all(&nodes)).request_timeout(LOST)).await;
        let before = taken(&store, "a", "op").await;
        let at = leader(&nodes[0]).await;
        nodes[at].server_mut().kill().unwrap();
        let rest: Vec<usize> = (0..3).filter(|n| *n != at).collect();
        until(
            "it is renewed by the others",
            async || matches!(store.renew("op").await, Ok(Renewed::Renewed(g)) if g[0].token == before),
        )
        .await;
        let second = opened(config(&nodes[rest[0]].url()).request_timeout(LOST)).await;
        assert!(!is_granted(&second, "a", "op2").await, "it is still held");
        given_back(&store, "op").await;
        assert!(taken(&second, "a", "op2").await > before);
        // The one that was gone comes back and follows.
        nodes[at].restart().unwrap();
        let third = opened(config(&nodes[at].url()).request_timeout(LOST)).await;
        assert!(!is_granted(&third, "a", "op3").await);
        let burned = std::cell::Cell::new(FencingToken::ZERO);
        until("it is broken", async || third.break_lease("a").await.map(|token| burned.set(token)).is_ok())
            .await;
        let burned = burned.get();
        assert!(taken(&third, "a", "op3").await > burned);
    });
}

fn paused() {
    let nodes = cluster("");
    run(async {
        let store = opened(config(&all(&nodes)).request_timeout(LOST)).await;
        let before = taken(&store, "a", "op").await;
        let at = leader(&nodes[0]).await;
        // It stops where it stands: connections stay open and nothing answers, as behind a cut cable.
        nodes[at].server().pause().unwrap();
        until(
            "it is renewed by the others",
            async || matches!(store.renew("op").await, Ok(Renewed::Renewed(g)) if g[0].token == before),
        )
        .await;
        given_back(&store, "op").await;
        let other = opened(config(&nodes[(at + 1) % 3].url()).request_timeout(LOST)).await;
        let next = taken(&other, "a", "op2").await;
        assert!(next > before);
        // Back, it thinks for a moment that it leads, and what it says then must not be taken for a grant.
        nodes[at].server().resume().unwrap();
        let late = opened(config(&nodes[at].url()).request_timeout(LOST)).await;
        for n in 0..20 {
            let answer = late.acquire(ask("a", &format!("late-{n}"), TTL)).await;
            assert!(!matches!(answer, Ok(Acquired::Granted(_))), "{answer:?}");
            pause(ms(10)).await;
        }
        until(
            "it is renewed",
            async || matches!(other.renew("op2").await, Ok(Renewed::Renewed(g)) if g[0].token == next),
        )
        .await;
    });
}

fn minority() {
    let mut nodes = cluster("");
    run(async {
        let store = opened(config(&nodes[0].url()).request_timeout(LOST)).await;
        let before = taken(&store, "a", "op").await;
        for node in &mut nodes[1..] {
            node.server_mut().kill().unwrap();
        }
        let error = store.acquire(ask("b", "op-b", TTL)).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert!(store.renew("op").await.is_err());
        for node in &mut nodes[1..] {
            node.server_mut().restart().unwrap();
        }
        for node in &nodes {
            node.answers().unwrap();
        }
        // What nobody heard an answer to may have landed; given back, it is gone.
        until("it is given back", async || store.release("op-b").await.is_ok()).await;
        assert!(taken(&store, "b", "op-c").await > before);
        until(
            "the lease is still there",
            async || matches!(store.renew("op").await, Ok(Renewed::Renewed(g)) if g[0].token == before),
        )
        .await;
    });
}

fn partitioned(cut: Cut) {
    run_beside(async {
        let rt = Runtime::system();
        let mesh = TcpMesh::bind(&rt, 3).await.unwrap();
        let kit = NatsKit::new().unwrap();
        let nodes = kit.cluster_behind(mesh.doors(), |n, at| mesh.set_listener(n, at)).unwrap();
        for (n, server) in nodes.iter().enumerate() {
            mesh.set_process(n, server.server().pid());
        }
        let mut coordinators = Vec::new();
        for (n, server) in nodes.iter().enumerate() {
            let store = opened(config(&server.url()).request_timeout(ms(1_500))).await;
            coordinators.push(coordinator(store, &format!("n{n}")));
        }
        let coordinators: [Coordinator; 3] = coordinators.try_into().unwrap();
        let lone = leader(&nodes[0]).await;
        let seen = partition::contend(&rt, &coordinators, &mesh, lone, cut, ms(2_000)).await;
        println!("{cut:?}: {seen:?}");
        assert!(matches!(seen.verdict, Verdict::Pass(_)), "{}", seen.verdict);
    });
}
