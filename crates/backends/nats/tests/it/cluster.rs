//! Three servers that keep one bucket: killed, paused, cut down to a minority.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_chaos::partition::{self, Cut};
use mainstay_chaos::proxy::TcpMesh;
use mainstay_clock::Runtime;
use mainstay_coordination::Coordinator;
use mainstay_nats::NatsLeases;
use mainstay_sim::servers::{Nats, NatsKit};
use mainstay_sim::verdict::Verdict;
use mainstay_store::lease::{Fencing, Released, Renewed};
use mainstay_store::{ErrorKind, FencingToken, LeaseStore};
use serde_json::json;

use crate::Test;
use crate::world::{api, ask, config, coordinator, ms, open, other, pause, run, run_beside, try_take, until};

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

const TTL: Duration = Duration::from_secs(60);

fn cluster(storage: &str) -> Vec<Nats> {
    NatsKit::new().unwrap().cluster(3, storage).unwrap()
}

fn all(nodes: &[Nats]) -> String {
    nodes.iter().map(Nats::url).collect::<Vec<_>>().join(",")
}

/// Which node leads the bucket.
async fn leader(node: &Nats) -> usize {
    let client = other(node).await;
    let info = api(&client, "STREAM.INFO.KV_mainstay_leases", json!({})).await;
    assert_eq!(info["config"]["num_replicas"], json!(3), "{info}");
    let name = info["cluster"]["leader"].as_str().unwrap();
    name.strip_prefix("node-").unwrap().parse().unwrap()
}

/// Takes it as soon as the store can.
async fn taken(store: &NatsLeases, name: &str, op: &str) -> FencingToken {
    let token = std::cell::Cell::new(None);
    until("it is granted", async || {
        let answer = store.acquire(ask(name, op, TTL)).await;
        if let Ok(mainstay_store::lease::Acquired::Granted(grants)) = answer {
            token.set(Some(grants[0].token));
        }
        token.get().is_some()
    })
    .await;
    token.get().unwrap()
}

fn f24() {
    let nodes = cluster("sync_interval: always");
    run(async {
        let shown = open(config(&all(&nodes)).system(&nodes[1].system_url())).await;
        assert_eq!(shown.guarantees().fencing, Fencing::Strict);
        let silent = open(config(&all(&nodes))).await;
        assert_eq!(silent.guarantees().fencing, Fencing::WhileStateSurvives, "nobody was asked");
        let single =
            open(config(&all(&nodes)).system(&nodes[0].system_url()).bucket("one").replicas(1)).await;
        assert_eq!(single.guarantees().fencing, Fencing::WhileStateSurvives, "one copy");
    });
    drop(nodes);
    let lazy = cluster("");
    run(async {
        let store = open(config(&all(&lazy)).system(&lazy[0].system_url())).await;
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
        let store = open(config(&all(&nodes))).await;
        let before = taken(&store, "a", "op").await;
        let at = leader(&nodes[0]).await;
        nodes[at].server_mut().kill().unwrap();
        let rest: Vec<usize> = (0..3).filter(|n| *n != at).collect();
        until(
            "it is renewed by the others",
            async || matches!(store.renew("op").await, Ok(Renewed::Renewed(g)) if g[0].token == before),
        )
        .await;
        let second = open(config(&nodes[rest[0]].url())).await;
        assert!(try_take(&second, "a", "op2", TTL).await.is_none(), "it is still held");
        given_back(&store, "op").await;
        assert!(taken(&second, "a", "op2").await > before);
        // The one that was gone comes back and follows.
        nodes[at].restart().unwrap();
        let third = open(config(&nodes[at].url())).await;
        assert!(try_take(&third, "a", "op3", TTL).await.is_none());
        let burned = third.break_lease("a").await.unwrap();
        assert!(taken(&third, "a", "op3").await > burned);
    });
}

fn paused() {
    let nodes = cluster("");
    run(async {
        let store = open(config(&all(&nodes))).await;
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
        let other = open(config(&nodes[(at + 1) % 3].url())).await;
        let next = taken(&other, "a", "op2").await;
        assert!(next > before);
        // Back, it thinks for a moment that it leads, and what it says then must not be taken for a grant.
        nodes[at].server().resume().unwrap();
        let late = open(config(&nodes[at].url())).await;
        for n in 0..20 {
            let answer = late.acquire(ask("a", &format!("late-{n}"), TTL)).await;
            assert!(!matches!(answer, Ok(mainstay_store::lease::Acquired::Granted(_))), "{answer:?}");
            pause(ms(10)).await;
        }
        assert!(matches!(other.renew("op2").await.unwrap(), Renewed::Renewed(g) if g[0].token == next));
    });
}

fn minority() {
    let mut nodes = cluster("");
    run(async {
        let store = open(config(&nodes[0].url()).request_timeout(ms(500))).await;
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
            let store = open(config(&server.url()).request_timeout(ms(1_500))).await;
            coordinators.push(coordinator(store, &format!("n{n}")));
        }
        let coordinators: [Coordinator; 3] = coordinators.try_into().unwrap();
        let lone = leader(&nodes[0]).await;
        let seen = partition::contend(&rt, &coordinators, &mesh, lone, cut, ms(2_000)).await;
        println!("{cut:?}: {seen:?}");
        assert!(matches!(seen.verdict, Verdict::Pass(_)), "{}", seen.verdict);
    });
}
