//! A test target of the campaign: what is asked for by the environment, and the two runs that every store makes.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
#![allow(clippy::disallowed_methods, reason = "a campaign is told its size by the environment")]

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_sim::servers::{Cover, Trial, run};

use super::{Keep, Plan, Reading, Rig, Totals, campaign};

/// The whole `main` of a test target without a harness: the campaign over one kind of store, and the same with reads
/// that look at nothing, which has to go red. `start` makes the servers of one run; no `kit` means that the store is not
/// installed.
///
/// `MAINSTAY_SESSIONS_READS`, `_FAILOVERS` and `_SECONDS` say how much; the defaults are what a test run can bear.
/// `MAINSTAY_SESSIONS_STATE` is a folder where the totals of all runs are kept.
///
/// # Panics
/// A variable is no number. A trial fails by panicking.
pub fn target<K, R>(
    store: &'static str,
    kit: Option<K>,
    start: impl AsyncFn(&K) -> io::Result<R> + Copy + Send + 'static,
) -> ExitCode
where
    K: Send + Sync + 'static,
    R: Rig + 'static,
{
    const TRIALS: usize = 2;
    let Some(kit) = kit.map(Arc::new) else {
        return run(vec![Cover::new(store, TRIALS, Vec::new())]);
    };
    let again = Arc::clone(&kit);
    let trials = vec![
        Trial::test("no_session_read_is_stale_through_kills_and_failovers", move || {
            guaranteed(store, &*kit, start);
            Ok(())
        }),
        Trial::test("the_campaign_goes_red_with_naive_reads", move || {
            naive(&*again, start);
            Ok(())
        }),
    ];
    run(vec![Cover::new(store, TRIALS, trials)])
}

/// One run on servers of its own, which this thread starts: they die with it.
fn on_servers<K, R: Rig + 'static>(kit: &K, start: impl AsyncFn(&K) -> io::Result<R>, plan: &Plan) -> Totals {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    rt.block_on(async {
        let mut rig = start(kit).await.unwrap();
        campaign(&mut rig, plan, &Runtime::system()).await.unwrap()
    })
}

/// The totals of earlier runs, and a plan that adds to them in their file.
fn planned(store: &str) -> (Totals, Plan) {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let state = std::env::var_os("MAINSTAY_SESSIONS_STATE")
        .map(|folder| PathBuf::from(folder).join(format!("sessions-{store}.txt")));
    let before = state.as_ref().map_or_else(Totals::default, |file| Totals::load(file).unwrap());
    let mut plan = Plan::new(
        number("MAINSTAY_SESSIONS_READS", 2_000),
        number("MAINSTAY_SESSIONS_FAILOVERS", 2),
        Duration::from_secs(number("MAINSTAY_SESSIONS_SECONDS", 60)),
    );
    plan.seed = 1 + before.failovers;
    if let Some(file) = state {
        let earlier = before.clone();
        plan.keep = Keep::new(move |totals| {
            let mut all = earlier.clone();
            all.add(totals);
            all.save(&file).unwrap();
        });
    }
    (before, plan)
}

fn guaranteed<K, R: Rig + 'static>(store: &str, kit: &K, start: impl AsyncFn(&K) -> io::Result<R>) {
    let (mut all, plan) = planned(store);
    let totals = on_servers(kit, start, &plan);
    println!("this run:\n{totals}");
    all.add(&totals);
    println!("all runs:\n{all}");
    assert_eq!(totals.violations(), 0, "sessions lied");
    assert_eq!(totals.doomed_told, totals.doomed, "every lossy token is Lost");
    assert_eq!(totals.kept_found + totals.kept_called_lost, totals.kept);
    assert!(totals.reads > 0 && totals.replica_reads > 0 && totals.lossy > 0, "it proves nothing");
}

/// The same with reads that look at nothing: if these passed, the campaign would prove nothing.
fn naive<K, R: Rig + 'static>(kit: &K, start: impl AsyncFn(&K) -> io::Result<R>) {
    let mut plan = Plan::new(2_000, 1, Duration::from_secs(60));
    plan.reading = Reading::Naive;
    let totals = on_servers(kit, start, &plan);
    println!("naive reads:\n{totals}");
    assert!(totals.stale > 0 && totals.refuted > 0 && totals.silent > 0, "{totals}");
}
