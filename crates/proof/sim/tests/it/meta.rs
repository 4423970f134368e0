//! PV-1, PV-8, PV-10, failpoints, options and clocks: the simulator itself.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_sim::check::{counter, epochs_grow, mutual_exclusion, recovers_within};
use mainstay_sim::history::{Ended, Event};
use mainstay_sim::sim::{
    Action, FaultKind, Faults, Fired, Point, Report, World, cancel_at_every_poll, seed_lines,
};
use mainstay_sim::verdict::Verdict;
use mainstay_sim::{Sim, buggify, sometimes};
use mainstay_store::lease::{AcquireRequest, Acquired};
use mainstay_store::memory::MemoryLeaseStore;
use mainstay_store::{BoxFuture, LeaseStore};

use crate::{lock, orders, session};

fn traced(seeds: std::ops::Range<u64>) -> Report {
    let sim = Sim::builder("traced")
        .seeds(seeds)
        .nodes(3)
        .faults(Faults::all().healing_after(Duration::from_secs(8)));
    let run = |world: World| async move {
        world.start_all(|node| async move {
            let (store, clock, process, rng) = (node.lease_store(), node.clock(), node.process(), node.rng());
            for i in 0_u64.. {
                let op = format!("{}-{}-{i}", node.name(), node.incarnation());
                let call = process.begin("acquire", "k").via(&node.via());
                match store
                    .acquire(AcquireRequest::exclusive("k", node.name(), &op, Duration::from_secs(1)))
                    .await
                {
                    Ok(Acquired::Granted(g)) => call.with(|o| o.epoch = Some(g[0].token.get())).ok(),
                    Ok(_) => call.fail(),
                    Err(e) => call.error(&e, true),
                }
                node.send((node.index() + 1) % 3, vec![1]);
                tokio::select! {
                    biased;
                    _ = node.recv() => {}
                    () = clock.sleep(Duration::from_millis(rng.below(300))) => {}
                }
            }
        });
        world.finished().await;
    };
    sim.build().unwrap().run(run).check(epochs_grow).traced().judge()
}

#[test]
fn pv_1_m_x10_the_same_seed_twice_gives_the_same_trace_also_in_two_processes() {
    const ASK: &str = "MAINSTAY_TRACE_ONLY";
    let here = traced(0..12).trace;
    #[allow(clippy::disallowed_methods, reason = "tells the child of this test from its parent")]
    if std::env::var(ASK).is_ok() {
        println!("trace={here}");
        return;
    }
    assert_eq!(here, traced(0..12).trace);
    assert_ne!(here, traced(1..13).trace, "the trace must depend on the seed");
    let name = "meta::pv_1_m_x10_the_same_seed_twice_gives_the_same_trace_also_in_two_processes";
    let child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(ASK, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(text.contains(&format!("trace={here}")), "{text}");
}

#[test]
fn pv_8_a_livelock_fails_in_liveness_mode_and_passes_in_safety_mode() {
    let safe = lock::campaign("livelock-safety", lock::Bug::GivesUp, 0..25, false);
    assert!(safe.failures.is_empty(), "{safe}");
    let live = lock::campaign("livelock-liveness", lock::Bug::GivesUp, 0..25, true);
    assert!(live.assert_fail() < 25);
    assert!(live.failures[0].verdict.to_string().contains("after the heal"), "{live}");
}

/// Every line of `seeds.txt` gives the verdict that it records.
#[test]
fn pv_10_every_recorded_seed_gives_its_verdict() {
    let lines = seed_lines(include_str!("../../seeds.txt")).unwrap();
    assert!(lines.len() >= 6, "the file is there to be replayed");
    for line in lines {
        let seeds = line.seed..line.seed + 1;
        let report = match line.suite.as_str() {
            "lock" => lock::campaign("lock", lock::Bug::None, seeds, true),
            "lock-off-by-one" => lock::campaign("lock", lock::Bug::ResourceOffByOne, seeds, false),
            "lock-unknown-as-grant" => lock::campaign("lock", lock::Bug::UnknownAsGrant, seeds, false),
            "lock-unannounced-read" => lock::campaign("lock", lock::Bug::ReadsUnannounced, seeds, true),
            "session" => session::campaign("session", session::Bug::None, seeds),
            "session-position-only" => session::campaign("session", session::Bug::PositionOnly, seeds),
            "orders" => orders::campaign("orders", orders::Bug::None, seeds),
            "orders-fresh-keys" => orders::campaign("orders", orders::Bug::FreshKeys, seeds),
            other => panic!("no suite is called `{other}`"),
        };
        // A single seed need not fire every fault: what it did must be right.
        let verdict = if report.failures.is_empty() { "PASS" } else { "FAIL" };
        assert_eq!(verdict, line.verdict, "{} {}: {report}", line.suite, line.seed);
    }
}

#[test]
fn a_failure_is_made_small_and_says_how_to_replay_it() {
    let run = |world: World| async move {
        world.start_all(|node| async move {
            let process = node.process();
            for i in 0..node.world().ops() {
                let pending = process.begin("acquire", "k").via(&node.via());
                let op = format!("{}-{i}", node.name());
                let request = AcquireRequest::exclusive("k", node.name(), &op, Duration::from_millis(50));
                let answer = node.lease_store().acquire(request).await;
                // The planted bug: an acquisition without an answer counts, with a token of its own.
                match answer {
                    Ok(Acquired::Granted(g)) => pending.with(|o| o.epoch = Some(g[0].token.get())).ok(),
                    Ok(_) => pending.fail(),
                    Err(_) => pending.with(|o| o.epoch = Some(0)).ok(),
                }
                node.clock().sleep(Duration::from_millis(100)).await;
            }
        });
        world.finished().await;
    };
    let faults = Faults::all().healing_after(Duration::from_secs(6));
    let sim = Sim::builder("small").seeds(0..50).nodes(3).ops(30).faults(faults).build().unwrap();
    let report = sim.run(run).check(epochs_grow).judge();
    let failure = &report.failures[0];
    println!("{report}");
    assert!(failure.replay.contains("MAINSTAY_SEED=") && failure.replay.contains("cargo xtask sim small"));
    let faults = failure.history.iter().filter(|e| matches!(e, Event::Fault { .. })).count();
    let ops = failure.history.iter().filter(|e| matches!(e, Event::Op(_))).count();
    // Operations are dropped from the end, so how few are left depends on how late the seed shows the bug.
    assert!(faults <= 2 && ops < 3 * 30, "{faults} faults, {ops} operations: {}", failure.replay);
    assert!(matches!(failure.verdict, Verdict::Fail(_)));
}

#[test]
fn options_that_make_no_sense_are_refused_by_name() {
    let field = |b: mainstay_sim::sim::SimBuilder| b.build().unwrap_err().field();
    assert_eq!(field(Sim::builder("Bad Name")), "name");
    assert_eq!(field(Sim::builder("a").nodes(0)), "nodes");
    assert_eq!(field(Sim::builder("a").ops(0)), "ops");
    assert_eq!(field(Sim::builder("a").seeds(5..5)), "seeds");
    assert_eq!(field(Sim::builder("a").faults(Faults::all().rate(1.5))), "faults.rate");
    assert_eq!(field(Sim::builder("a").faults(Faults::all().healing_after(Duration::ZERO))), "faults.heal");
    assert_eq!(field(Sim::builder("a").expects_point("misspelt")), "point");
    let error = Sim::builder("a").nodes(0).build().unwrap_err().to_string();
    assert_eq!(error, "nodes is `0`; allowed: 1 to 1,000");
}

const SKIP: Point = Point::new("skip_reply");
const BLOCK: Point = Point::new("hold_here");

#[test]
fn bf_1_to_bf_7_points_are_scoped_seeded_async_and_inert_without_a_registry() {
    let fired = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&fired);
    let sim = Sim::builder("points")
        .seeds(0..60)
        .nodes(1)
        .faults(Faults::none().healing_after(Duration::from_secs(5)))
        .point(SKIP, Action::DropReply)
        .point(BLOCK, Action::Block)
        .expects_point("skip_reply")
        .sometimes("skipped")
        .build()
        .unwrap();
    let report = sim.run(move |world| {
        let seen = Arc::clone(&seen);
        async move {
            for i in 0..10 {
                if buggify!(world, SKIP) == Fired::DropReply {
                    seen.fetch_add(1, Ordering::Relaxed);
                    sometimes!(world, "skipped");
                }
                // Whoever is held is let go.
                let held = world.clone();
                let waits = async move { buggify!(held, BLOCK) };
                tokio::pin!(waits);
                if futures_util::poll!(waits.as_mut()).is_pending() {
                    world.points().unblock(BLOCK);
                    waits.await;
                }
                let process = world.process();
                process.begin("acquire", "k").with(|o| o.epoch = Some(i + 1)).ok();
            }
        }
    });
    let report = sim_pass(report.check(epochs_grow));
    assert_eq!(report.coverage.sometimes["skipped"], fired.load(Ordering::Relaxed));
    assert!(fired.load(Ordering::Relaxed) > 10);
}

fn sim_pass(campaign: mainstay_sim::sim::Campaign) -> Report {
    let report = campaign.judge();
    report.assert_pass();
    report
}

#[test]
fn a_declared_state_that_is_never_reached_makes_the_campaign_unknown() {
    let sim = Sim::builder("never").seeds(0..3).sometimes("leader changed").build().unwrap();
    let report = sim
        .run(|world| async move { world.process().begin("acquire", "k").with(|o| o.epoch = Some(1)).ok() })
        .check(epochs_grow)
        .judge();
    assert!(matches!(&report.verdict, Verdict::Unknown(why) if why.contains("leader changed")), "{report}");
}

#[test]
fn a_scenario_that_hangs_is_unknown_and_one_that_panics_fails() {
    let sim = |name| {
        let faults = Faults::none().healing_after(Duration::from_secs(1));
        Sim::builder(name).seeds(0..1).faults(faults).limit(Duration::from_secs(60)).build().unwrap()
    };
    let hangs = sim("hangs").run(|_| std::future::pending()).check(mutual_exclusion).judge();
    assert!(matches!(&hangs.verdict, Verdict::Unknown(_)), "{hangs}");
    let panics = sim("panics").run(|_| async { panic!("planted") }).check(mutual_exclusion).judge();
    assert!(panics.verdict.to_string().contains("planted"), "{panics}");
    let task = sim("task").run(|world| async move {
        world.start(0, |_| async { panic!("in a node") });
        world.finished().await;
    });
    let task = task.check(counter).judge();
    assert!(task.verdict.to_string().contains("in a node"), "{task}");
}

/// One seed of many hangs: the others must not vouch for it. A run in which nothing happened is only counted.
#[test]
fn one_run_of_many_that_hangs_leaves_the_campaign_unknown_and_is_named() {
    let campaign = |name, stray: fn(World) -> BoxFuture<'static, ()>| {
        let sim = Sim::builder(name).seeds(0..20).limit(Duration::from_secs(60)).build().unwrap();
        let run = move |world: World| async move {
            if world.seed() == 7 {
                return stray(world).await;
            }
            world.process().begin("acquire", "k").with(|o| o.epoch = Some(1)).ok();
        };
        sim.run(run).check(epochs_grow).judge()
    };
    let hung = campaign("hung", |_| Box::pin(std::future::pending()));
    assert!(matches!(&hung.verdict, Verdict::Unknown(why) if why.contains("seed 7")), "{hung}");
    assert_eq!(hung.unknown, 1);
    assert!(hung.to_string().contains("say nothing: 1; seed 7"), "{hung}");
    let idle = campaign("idle", |_| Box::pin(async {}));
    assert!(matches!(&idle.verdict, Verdict::Pass(_)), "{idle}");
    assert_eq!((idle.unknown, idle.first_unknown.map(|(seed, _)| seed)), (1, Some(7)));
}

#[test]
fn a_crash_drops_tasks_keeps_the_disk_and_leaves_operations_unknown() {
    let sim = Sim::builder("crash").seeds(0..1).nodes(1).build().unwrap();
    let report = sim.run(|world| async move {
        world.start(0, |node| async move {
            let cell = node.cell("n");
            let before = cell.load().await.unwrap().map_or(0, |v| v[0]);
            assert_eq!(u64::from(before), node.incarnation());
            cell.store_synced(vec![before + 1]).await.unwrap();
            let process = node.process();
            let _open = process.begin("acquire", "k");
            std::future::pending::<()>().await;
        });
        for _ in 0..3 {
            world.clock().sleep(Duration::from_secs(1)).await;
            world.crash(0);
            world.clock().sleep(Duration::from_secs(1)).await;
            world.reboot(0);
        }
        world.clock().sleep(Duration::from_secs(1)).await;
        let unknown = world
            .recorder()
            .events()
            .iter()
            .filter(|e| match e {
                Event::Op(op) => op.outcome == Ended::Unknown && op.return_ns.is_none(),
                _ => false,
            })
            .count();
        assert_eq!(unknown, 3);
        world.process().begin("acquire", "k").with(|o| o.epoch = Some(1)).ok();
    });
    sim_pass(report.check(epochs_grow));
}

#[test]
fn a_paused_node_runs_nothing_and_all_its_timers_fire_when_it_goes_on() {
    let sim = Sim::builder("paused").seeds(0..1).nodes(1).build().unwrap();
    let report = sim.run(|world| async move {
        let ticks = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&ticks);
        world.start(0, move |node| {
            let counted = Arc::clone(&counted);
            async move {
                loop {
                    node.clock().sleep(Duration::from_secs(1)).await;
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        world.until(Duration::from_millis(2_500)).await;
        world.set_paused(0, true);
        world.until(Duration::from_secs(20)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 2);
        world.set_paused(0, false);
        world.until(Duration::from_millis(20_100)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 3);
        world.process().begin("acquire", "k").with(|o| o.epoch = Some(1)).ok();
    });
    sim_pass(report.check(epochs_grow));
}

/// A store that comes back empty hands out old tokens again: legal for this store, which says so, and seen.
#[test]
fn a_store_that_loses_its_state_is_caught_by_the_epochs() {
    let faults = Faults::only(&[FaultKind::StoreEmpty]).windows(3).healing_after(Duration::from_secs(10));
    let sim = Sim::builder("amnesia").seeds(0..40).nodes(2).faults(faults).build().unwrap();
    let report = sim.run(|world| async move {
        world.start_all(|node| async move {
            let process = node.process();
            for i in 0_u64.. {
                let op = format!("{}-{i}", node.name());
                let pending = process.begin("acquire", "k").via(&node.via());
                let request = AcquireRequest::exclusive("k", node.name(), &op, Duration::from_millis(300));
                match node.lease_store().acquire(request).await {
                    Ok(Acquired::Granted(g)) => pending.with(|o| o.epoch = Some(g[0].token.get())).ok(),
                    Ok(_) => pending.fail(),
                    Err(e) => pending.error(&e, true),
                }
                node.clock().sleep(Duration::from_millis(200)).await;
            }
        });
        world.finished().await;
    });
    let report = report.check(epochs_grow).as_found().judge();
    assert!(report.assert_fail() < 40);
}

#[test]
fn m_l7_an_acquisition_dropped_at_any_poll_leaks_nothing_that_a_release_does_not_find() {
    let sim = Sim::builder("cancel").seeds(0..1).nodes(1).build().unwrap();
    let report = sim.run(|world| async move {
        let (node, store) = (world.node(0), world.leases());
        let leases = node.lease_store();
        let request = AcquireRequest::exclusive("k", "me", "op", Duration::from_secs(5));
        let polls = cancel_at_every_poll(
            || {
                let (leases, request) = (Arc::clone(&leases), request.clone());
                async move { leases.acquire(request).await }
            },
            async || {
                // The request may still be on its way: it arrives, then its op id finds it.
                world.clock().sleep(Duration::from_secs(1)).await;
                store.release("op").await.unwrap();
                assert!(held(&store).await.is_empty());
            },
        )
        .await;
        assert!(polls.to_end >= 2 && polls.dropped >= 2, "{polls:?}");
        world.process().begin("acquire", "k").with(|o| o.epoch = Some(1)).ok();
    });
    sim_pass(report.check(epochs_grow));
}

async fn held(store: &MemoryLeaseStore) -> Vec<String> {
    store.inspect("k").await.unwrap().holders.into_iter().map(|h| h.owner).collect()
}

#[test]
fn a_liveness_bound_is_a_number_in_the_evidence() {
    let report = lock::campaign("bound", lock::Bug::None, 0..5, true);
    let Verdict::Unknown(_) = report.verdict else { panic!("five seeds cannot fire every fault: {report}") };
    let one = lock::campaign("bound", lock::Bug::None, 3..4, true);
    assert!(one.failures.is_empty(), "{one}");
    assert!(matches!(
        mainstay_sim::check::judge(&[], recovers_within("acquire", Duration::from_secs(1))),
        Verdict::Unknown(_)
    ));
}
