//! Members of a group under random schedules of faults: who was there, and what others saw of it.
//!
//! `cargo xtask sim membership --seed N` replays a seed that was printed, `--seeds N` runs more. Three processes join
//! under four names, change what they say, leave, go without a word, crash, stand still and are cut off; each watches the
//! group and asks now and then. At the end nobody comes or goes, and every watcher must have the picture of the store.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use mainstay_sim::Sim;
use mainstay_sim::check::{converges, epochs_grow, mutual_exclusion};
use mainstay_sim::history::Event;
use mainstay_sim::sim::{FaultKind, Faults, Report, World};
use mainstay_store::LeaseStore;

use crate::member::{Bug, GROUP, Picture, Shared, Worker, drawn};
use crate::presence::{SETTLED, presence};
use crate::seeds::{WITHIN, found};
use crate::twisted::{Twist, Twisted};

/// When the last fault ends.
const HEALED: Duration = Duration::from_secs(10);
/// After everything has settled members come and go, and some crash, for so long.
const CALM: Duration = Duration::from_secs(10);
/// Then nobody comes or goes: who still waits for a name gives up within four seconds, and a picture is whole again
/// within a ttl and a second.
const QUIET: Duration = Duration::from_secs(8);

/// Reached in every campaign, or it proves nothing.
const REACHED: [&str; 7] = ["a goodbye", "a lost member", "expired", "gone", "joined", "left", "updated"];

async fn scenario(world: World, bug: Bug, twist: Option<Twist>) {
    let shared: Arc<Shared> = Arc::default();
    let inner: Arc<dyn LeaseStore> = Arc::new(world.leases());
    let twisted: Option<Arc<dyn LeaseStore>> =
        twist.map(|twist| Arc::new(Twisted::new(inner, twist)) as Arc<dyn LeaseStore>);
    let ours = Arc::clone(&shared);
    world.start_all(move |node| {
        let store = twisted.as_ref().map_or_else(|| node.lease_store(), |s| node.through(Arc::clone(s)));
        Worker::new(node, store, bug, Arc::clone(&ours)).run()
    });
    crashes(&world).await;
    world.until(HEALED + SETTLED + CALM).await;
    *shared.quiet.lock().unwrap() = true;
    world.finished().await;
    pictures(&world, &shared).await;
}

/// Processes that die when nothing else is wrong.
async fn crashes(world: &World) {
    let rng = world.rng("crashes");
    world.until(HEALED + SETTLED).await;
    for _ in 0..2 {
        let millis = |least: u64, more: u64| Duration::from_millis(least + rng.below(more));
        let i = usize::try_from(rng.below(world.nodes() as u64)).unwrap();
        world.until(world.elapsed() + millis(500, 2_500)).await;
        world.crash(i);
        world.until(world.elapsed() + millis(100, 1_500)).await;
        world.reboot(i);
    }
}

/// The picture of the store and of every watcher.
async fn pictures(world: &World, shared: &Shared) {
    let prefix = format!("sim/member/{GROUP}/");
    let found = world.leases().list(&prefix, 100).await.unwrap();
    let entry = |info: mainstay_store::lease::LeaseInfo| {
        let name = info.name.strip_prefix(&prefix)?.to_owned();
        let incarnation = info.holders.first()?.token.get();
        Some((name, (incarnation, String::from_utf8(info.annotation?).ok()?)))
    };
    let truth: Picture = found.into_iter().filter_map(entry).collect();
    let tell = |replica: &str, picture: &Picture| {
        let digest = drawn(picture).as_str().into();
        let (replica, delivered) = (replica.into(), "all".into());
        world.recorder().push(Event::Digest { replica, delivered, digest, rounds: 0 });
    };
    tell("store", &truth);
    let pictures = shared.pictures.lock().unwrap();
    for i in 0..world.nodes() {
        match pictures.get(world.node(i).name()) {
            Some(picture) => tell(world.node(i).name(), picture),
            None => world.fail(format!("the watcher of n{i} was told nothing")),
        }
    }
}

fn campaign(name: &str, bug: Bug, twist: Option<Twist>, seeds: Range<u64>) -> Report {
    let faults = Faults::all()
        .without(FaultKind::MessageLost)
        .without(FaultKind::MessageDuplicated)
        .healing_after(HEALED);
    let mut builder =
        Sim::builder(name).seeds(seeds).nodes(3).faults(faults).liveness(SETTLED + CALM + QUIET);
    if (bug, twist) == (Bug::None, None) {
        builder = REACHED.into_iter().fold(builder, mainstay_sim::sim::SimBuilder::sometimes);
    }
    builder
        .build()
        .unwrap()
        .run(move |world| scenario(world, bug, twist))
        .check(mutual_exclusion)
        .check(epochs_grow)
        .check(presence)
        .check(|| converges(0))
        .judge()
}

/// The campaign behind a recorded seed, if it is one of these.
pub(crate) fn replayed(name: &str, seeds: Range<u64>) -> Option<Report> {
    let (bug, twist) = match name {
        "membership" => (Bug::None, None),
        "membership-anybody" => (Bug::None, Some(Twist::AnybodyAnnotates)),
        "membership-half-ttl" => (Bug::None, Some(Twist::HalfTtl)),
        "membership-outlives" => (Bug::Outlives, None),
        "membership-overhears" => (Bug::Overhears, None),
        "membership-silent" => (Bug::Silent, None),
        "membership-stale" => (Bug::None, Some(Twist::StaleLists)),
        "membership-steals" => (Bug::None, Some(Twist::Steals)),
        _ => return None,
    };
    Some(campaign(name, bug, twist, seeds))
}

/// How many seeds of a batch; a search asks for more by its own switches.
const BATCH: u64 = 300;

#[test]
fn f17_f22_who_renews_is_there_who_ended_is_gone_and_all_watchers_agree() {
    campaign("membership", Bug::None, None, 0..BATCH).assert_pass();
}

#[test]
fn f17_f22_whatever_a_member_a_watcher_or_a_store_does_wrong_is_found() {
    let none = Bug::None;
    let anybody = campaign("membership-anybody", none, Some(Twist::AnybodyAnnotates), WITHIN);
    found(&anybody, "was said by");
    let half = campaign("membership-half-ttl", none, Some(Twist::HalfTtl), WITHIN);
    found(&half, "was reported gone, and it lives");
    found(&campaign("membership-outlives", Bug::Outlives, None, WITHIN), "ended");
    found(&campaign("membership-overhears", Bug::Overhears, None, WITHIN), "has another state");
    found(&campaign("membership-silent", Bug::Silent, None, WITHIN), "and was reported as");
    found(&campaign("membership-stale", none, Some(Twist::StaleLists), WITHIN), "came after a newer one");
    found(&campaign("membership-steals", none, Some(Twist::Steals), WITHIN), "is held 2 of 1");
}

#[test]
fn one_seed_of_a_group_is_one_execution() {
    let traced = |seeds: Range<u64>| {
        let length = SETTLED + CALM + QUIET;
        let faults = Faults::all().healing_after(HEALED);
        let sim = Sim::builder("membership-traced").seeds(seeds).nodes(3).faults(faults).liveness(length);
        let sim = sim.build().unwrap().run(|world| scenario(world, Bug::None, None));
        sim.check(presence).traced().judge().trace
    };
    assert_eq!(traced(0..10), traced(0..10));
    assert_ne!(traced(0..10), traced(1..11));
}
