//! The campaign against sessions over Redis: a primary and two replicas, killed and failed over again and again.
//!
//! `cargo xtask sessions` runs long ones; the variables are those of [`Wanted`].

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
#![allow(clippy::disallowed_methods, reason = "a campaign is told its size by the environment")]

mod rig;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use mainstay_chaos::sessions::{Keep, Plan, Reading, Totals, campaign};
use mainstay_clock::Runtime;
use mainstay_sim::servers::{Cover, RedisKit, Trial, run};
use rig::RedisRig;

/// What one run is asked for. Without words, a short one that a test run can bear.
struct Wanted {
    reads: u64,
    failovers: u64,
    seconds: u64,
    /// Where totals of all runs are kept.
    state: Option<PathBuf>,
}

impl Wanted {
    fn from_environment() -> Self {
        let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
        Self {
            reads: number("MAINSTAY_SESSIONS_READS", 2_000),
            failovers: number("MAINSTAY_SESSIONS_FAILOVERS", 2),
            seconds: number("MAINSTAY_SESSIONS_SECONDS", 60),
            state: std::env::var_os("MAINSTAY_SESSIONS_STATE")
                .map(|folder| PathBuf::from(folder).join("sessions-redis.txt")),
        }
    }
}

/// One primary and two replicas, started by this thread, and a runtime for the rest.
fn on_servers<T>(kit: &RedisKit, work: impl AsyncFnOnce(&mut RedisRig) -> T) -> T {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    rt.block_on(async {
        let mut rig = RedisRig::start(kit).await.unwrap();
        work(&mut rig).await
    })
}

/// The totals of earlier runs, and a plan that adds to them in their file.
fn planned(wanted: &Wanted) -> (Totals, Plan) {
    let before = wanted.state.as_ref().map_or_else(Totals::default, |file| Totals::load(file).unwrap());
    let mut plan = Plan::new(wanted.reads, wanted.failovers, Duration::from_secs(wanted.seconds));
    plan.seed = 1 + before.failovers;
    if let Some(file) = wanted.state.clone() {
        let earlier = before.clone();
        plan.keep = Keep::new(move |totals| {
            let mut all = earlier.clone();
            all.add(totals);
            all.save(&file).unwrap();
        });
    }
    (before, plan)
}

fn guaranteed(kit: &RedisKit) {
    let (mut all, plan) = planned(&Wanted::from_environment());
    let totals = on_servers(kit, async |rig| campaign(rig, &plan, &Runtime::system()).await.unwrap());
    println!("this run:\n{totals}");
    all.add(&totals);
    println!("all runs:\n{all}");
    assert_eq!(totals.violations(), 0, "sessions lied");
    assert_eq!(totals.doomed_told, totals.doomed, "every lossy token is Lost");
    assert_eq!(totals.kept_found + totals.kept_called_lost, totals.kept);
    assert!(totals.reads > 0 && totals.replica_reads > 0 && totals.lossy > 0, "it proves nothing");
}

/// The same with reads that look at nothing: if these passed, the campaign would prove nothing.
fn naive(kit: &RedisKit) {
    let mut plan = Plan::new(2_000, 1, Duration::from_secs(60));
    plan.reading = Reading::Naive;
    let totals = on_servers(kit, async |rig| campaign(rig, &plan, &Runtime::system()).await.unwrap());
    println!("naive reads:\n{totals}");
    assert!(totals.stale > 0 && totals.refuted > 0 && totals.silent > 0, "{totals}");
}

/// A name and what it runs.
type Named = (&'static str, fn(&RedisKit));

fn main() -> ExitCode {
    let names: [Named; 2] = [
        ("no_session_read_is_stale_through_kills_and_failovers", guaranteed),
        ("the_campaign_goes_red_with_naive_reads", naive),
    ];
    let Some(kit) = RedisKit::new().map(Arc::new) else {
        return run(vec![Cover::new("redis", names.len(), Vec::new())]);
    };
    let trials = names.map(|(name, test)| {
        let kit = Arc::clone(&kit);
        Trial::test(name, move || {
            test(&kit);
            Ok(())
        })
    });
    run(vec![Cover::new("redis", names.len(), trials.into())])
}
