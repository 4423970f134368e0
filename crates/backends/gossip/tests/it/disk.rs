//! Snapshots: restarts, damage, lost and rolled-back disks, kill -9.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_consistency::crdt::{AwSet, RwSet};
use mainstay_consistency::replicate::Event as StateEvent;
use mainstay_gossip::{
    Config, ErrorKind, Event, FileCell, Gossip, Inbound, Member, Network, Sent, Snapshot, Way,
};
use mainstay_store::memory::MemoryCell;
use mainstay_store::{BoxFuture, DurableCell};

use crate::Test;
use crate::net::{World, address, keys, name, run};

pub(crate) const TESTS: &[Test] = &[
    ("g9_a_restart_goes_on_in_a_new_epoch", g9_a_restart_goes_on_in_a_new_epoch),
    (
        "g9_damaged_newer_and_foreign_snapshots_are_refused_and_kept",
        g9_damaged_newer_and_foreign_snapshots_are_refused_and_kept,
    ),
    ("c3_a_lost_disk_makes_somebody_new", c3_a_lost_disk_makes_somebody_new),
    (
        "c4_a_rolled_back_disk_is_noticed_and_loses_nothing",
        c4_a_rolled_back_disk_is_noticed_and_loses_nothing,
    ),
    (
        "g9_kill_in_the_middle_of_snapshots_loses_nothing_confirmed",
        g9_kill_in_the_middle_of_snapshots_loses_nothing_confirmed,
    ),
    (
        "l14_c14_a_removed_member_is_refused_after_a_restart_too",
        l14_c14_a_removed_member_is_refused_after_a_restart_too,
    ),
    ("one_process_per_file", one_process_per_file),
];

/// The first argument that makes this program a writer of snapshots.
pub(crate) const WRITER: &str = "write-snapshots";
/// One that overwrites its file in place: what the kills must be able to find.
pub(crate) const CARELESS: &str = "write-carelessly";
/// Kills of the writer.
const KILLS: u64 = 25;
/// Kills of the careless one until one must have hit.
const ENOUGH: u64 = 400;
/// Elements that make a snapshot take a moment to write.
const MANY: u64 = 4_000;

async fn node(world: &World, n: usize, cell: &MemoryCell) -> Gossip<AwSet<u64>> {
    let config =
        Config::builder(&name(n), "test").keys(keys()).seeds([address(0), address(1)]).build().unwrap();
    world.start(n, config, Some(Arc::new(cell.clone()))).await
}

async fn both_have(world: &World, nodes: [&Gossip<AwSet<u64>>; 2], value: u64) {
    let has = || nodes.iter().all(|n| n.read(|set| set.contains(&value)));
    world.until(Duration::from_secs(20), has).await.unwrap_or_else(|| panic!("both have {value}"));
}

fn g9_a_restart_goes_on_in_a_new_epoch() {
    run(41, async |world| {
        let cells = [MemoryCell::new(), MemoryCell::new()];
        let two = node(&world, 1, &cells[1]).await;
        let mut last = None;
        for life in 0..5 {
            let one = node(&world, 0, &cells[0]).await;
            let actor = one.actor();
            if let Some(before) = last.replace(actor) {
                assert_eq!(actor.node(), before.node());
                assert!(actor.epoch() > before.epoch());
            }
            // What was there before is there at once, without the other node.
            assert_eq!(one.read(|set| set.elements().count()), life as usize);
            one.change(|set, actor| set.add(actor, life)).unwrap();
            both_have(&world, [&one, &two], life).await;
            one.shutdown().await.unwrap();
            assert_eq!(one.change(|set, actor| set.add(actor, 99)).unwrap_err().kind(), ErrorKind::Closed);
        }
    });
}

fn g9_damaged_newer_and_foreign_snapshots_are_refused_and_kept() {
    run(42, async |world| {
        let cell = MemoryCell::new();
        node(&world, 0, &cell).await.shutdown().await.unwrap();
        let good = cell.load().await.unwrap().unwrap();
        let snapshot = Snapshot::decode(&good).unwrap();
        let mut damaged = good.clone();
        damaged[40] ^= 1;
        let mut newer = good.clone();
        newer[9] = 9;
        let mut foreign = snapshot.clone();
        foreign.cluster = "else".into();
        let mut other_type = snapshot.clone();
        other_type.state = vec![9; 30];
        let cases = [
            (damaged, ErrorKind::Damaged),
            (newer, ErrorKind::Newer),
            (foreign.encode(), ErrorKind::Foreign),
            (other_type.encode(), ErrorKind::Damaged),
        ];
        for (bytes, kind) in cases {
            let cell = MemoryCell::new();
            cell.store_synced(bytes.clone()).await.unwrap();
            let config = Config::builder("n0", "test").keys(keys()).build().unwrap();
            let refused =
                Gossip::<AwSet<u64>>::start(config, world.port(0), Some(Arc::new(cell.clone())), &world.rt)
                    .await;
            assert_eq!(refused.unwrap_err().kind(), kind);
            assert_eq!(cell.load().await.unwrap().unwrap(), bytes, "nothing was overwritten");
        }
    });
}

fn c3_a_lost_disk_makes_somebody_new() {
    run(43, async |world| {
        let two = node(&world, 1, &MemoryCell::new()).await;
        let one = node(&world, 0, &MemoryCell::new()).await;
        let before = one.actor();
        for value in 0..5 {
            one.change(|set, actor| set.add(actor, value)).unwrap();
        }
        both_have(&world, [&one, &two], 4).await;
        one.shutdown().await.unwrap();
        let one = node(&world, 0, &MemoryCell::new()).await;
        assert_ne!(one.actor().node(), before.node());
        // The first change of the new life is not taken for an old one, and the old ones come back.
        one.change(|set, actor| set.add(actor, 100)).unwrap();
        both_have(&world, [&one, &two], 100).await;
        both_have(&world, [&one, &two], 0).await;
    });
}

fn c4_a_rolled_back_disk_is_noticed_and_loses_nothing() {
    run(44, async |world| {
        let cell = MemoryCell::new();
        let two = node(&world, 1, &MemoryCell::new()).await;
        node(&world, 0, &cell).await.shutdown().await.unwrap();
        let backup = cell.load().await.unwrap().unwrap();
        for life in 0..3 {
            let one = node(&world, 0, &cell).await;
            one.change(|set, actor| set.add(actor, life)).unwrap();
            both_have(&world, [&one, &two], life).await;
            one.shutdown().await.unwrap();
        }
        cell.store_synced(backup).await.unwrap();
        let one = node(&world, 0, &cell).await;
        let restored = one.actor();
        one.change(|set, actor| set.add(actor, 50)).unwrap();
        both_have(&world, [&one, &two], 2).await;
        both_have(&world, [&one, &two], 50).await;
        assert!(one.take_events().iter().any(|e| matches!(e, Event::Doubled { epoch: 4 })));
        assert!(one.actor().epoch() > 4 && restored.epoch() == 2);
        one.change(|set, actor| set.add(actor, 51)).unwrap();
        both_have(&world, [&one, &two], 51).await;
    });
}

fn l14_c14_a_removed_member_is_refused_after_a_restart_too() {
    run(46, async |world| {
        let cells = [MemoryCell::new(), MemoryCell::new()];
        let start = async |n: usize, members: &[&str]| {
            let seeds = [address(0), address(1)];
            let config =
                Config::builder(&name(n), "test").keys(keys()).seeds(seeds).members(members.to_vec());
            world.start::<RwSet<u64>>(n, config.build().unwrap(), Some(Arc::new(cells[n].clone()))).await
        };
        let has = |node: &Gossip<RwSet<u64>>, value| node.read(|set| set.contains(&value));
        let (one, two) = (start(0, &["n0", "n1"]).await, start(1, &["n0", "n1"]).await);
        one.change(|set, actor| set.add(actor, 7)).unwrap();
        world.until(Duration::from_secs(20), || has(&two, 7)).await.expect("both have it");
        one.shutdown().await.unwrap();
        two.shutdown().await.unwrap();
        // The second one adds again, and one thing more, and nobody hears of it.
        let two = start(1, &["n0", "n1"]).await;
        for value in [7, 66] {
            two.change(|set, actor| set.add(actor, value)).unwrap();
        }
        two.shutdown().await.unwrap();
        // The first one removes the element, the member, and the tombstone that would have beaten the addition.
        let one = start(0, &["n0", "n1"]).await;
        one.change(|set, actor| set.remove(actor, 7)).unwrap();
        one.remove_member("n1");
        let forgotten = || one.read(|set| set.tombstones()) == 0;
        world.until(Duration::from_secs(20), forgotten).await.expect("it is the only member");
        one.shutdown().await.unwrap();
        // Twice: what was read from a snapshot is in the next one, too.
        start(0, &["n0"]).await.shutdown().await.unwrap();
        let one = start(0, &["n0"]).await;
        let two = start(1, &["n0", "n1"]).await;
        let peer = Member::id_of(&name(1));
        let mut events = Vec::new();
        let refused = || {
            events.extend(one.take_events());
            events.contains(&Event::State(StateEvent::Returned { peer }))
        };
        let told = world.until(Duration::from_secs(20), refused).await;
        assert!(!has(&one, 7) && !has(&one, 66), "a removed member brought back what was forgotten");
        told.expect("it is refused by name");
        assert!(has(&two, 66), "it had something to bring");
        // Configured again, it is a member again.
        one.shutdown().await.unwrap();
        let one = start(0, &["n0", "n1"]).await;
        world.until(Duration::from_secs(20), || has(&one, 66)).await.expect("it is heard");
    });
}

fn one_process_per_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let first = FileCell::open(&path).unwrap();
    let refused = FileCell::open(&path).unwrap_err();
    assert_eq!(refused.kind(), mainstay_store::ErrorKind::Occupied);
    drop(first);
    FileCell::open(&path).unwrap();
}

/// A network without anybody.
#[derive(Debug)]
struct Nobody;

impl Network for Nobody {
    fn address(&self) -> SocketAddr {
        address(0)
    }

    fn send(&self, _to: SocketAddr, _way: Way, _bytes: Vec<u8>) -> Sent {
        Sent::OnItsWay
    }

    fn is_full(&self, _to: SocketAddr) -> bool {
        false
    }

    fn receive(&self) -> BoxFuture<'_, Inbound> {
        Box::pin(std::future::pending())
    }

    fn refuse(&self, _from: SocketAddr) {}
}

/// Adds numbers and says which ones are durable, until it is killed.
pub(crate) fn write_snapshots(path: &str) -> ExitCode {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let cell = Arc::new(FileCell::open(Path::new(path)).unwrap());
        let config = Config::builder("a", "disk").keys(keys()).build().unwrap();
        let node = Gossip::<AwSet<u64>>::start(config, Arc::new(Nobody), Some(cell), &Runtime::system())
            .await
            .unwrap();
        let first = node.read(|set| set.elements().copied().max()).map_or(0, |n| n + 1);
        for value in first..MANY {
            node.change(|set, actor| set.add(actor, value)).unwrap();
        }
        let first = first.max(MANY);
        for value in first.. {
            node.change(|set, actor| set.add(actor, value)).unwrap();
            node.flush().await.unwrap();
            println!("{value}");
        }
    });
    ExitCode::SUCCESS
}

/// Writes snapshots over each other in place.
pub(crate) fn write_carelessly(path: &str) -> ExitCode {
    use std::io::Write as _;
    let mut snapshot = Snapshot::default();
    snapshot.state = vec![7; 200_000];
    for value in 0_u64.. {
        let mut file = std::fs::File::create(path).unwrap();
        for part in snapshot.encode().chunks(20_000) {
            file.write_all(part).unwrap();
        }
        println!("{value}");
    }
    ExitCode::SUCCESS
}

/// Starts a writer, kills it after some lines and a part of what comes then; the last line that it wrote.
fn kill_one(mode: &str, path: &Path, kill: u64) -> Option<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([mode, path.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut last = None;
    for _ in 0..=kill % 7 {
        last = Some(lines.next().expect("it starts").unwrap().parse::<u64>().unwrap());
    }
    for _ in 0..kill * 997 % 40_000 {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Lines that were written before the kill count too.
    for line in lines.map_while(Result::ok) {
        last = line.parse().ok().max(last);
    }
    last
}

fn g9_kill_in_the_middle_of_snapshots_loses_nothing_confirmed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let mut epoch = 0;
    for kill in 0..KILLS {
        let confirmed = kill_one(WRITER, &path, kill).unwrap();
        let snapshot = Snapshot::decode(&std::fs::read(&path).unwrap()).expect("the file is whole");
        let set: AwSet<u64> = mainstay_consistency::wire::decode(&snapshot.state).unwrap();
        assert!((0..=confirmed).all(|n| set.contains(&n)), "kill {kill}: {confirmed} was confirmed");
        assert!(snapshot.epoch > epoch, "kill {kill}: epoch {}", snapshot.epoch);
        epoch = snapshot.epoch;
    }
    // The same kills find a writer that is not as careful.
    let path = folder.path().join("careless");
    let damaged = (0..ENOUGH).find(|kill| {
        kill_one(CARELESS, &path, *kill);
        Snapshot::decode(&std::fs::read(&path).unwrap()).is_err()
    });
    println!("a careless writer is caught by kill {damaged:?}");
    assert!(damaged.is_some(), "the kills hit nothing");
}
