//! Power cuts under the store as it ships: what was told survives, whatever un-synced writes did.
//!
//! A child of the test works under the recorder and keeps a diary in the watched folder: `ask FACT` before a
//! call, `told FACT` after its answer. The power is then cut at points of the trace; the shipped open path
//! must find every fact that was told there, and nothing that nobody asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Rng as _, Runtime, SeededRng};
use mainstay_sim::power::{Disk, Fault, Image, Loss, Op, OpKind, Recorder, Trace};
use mainstay_sqlite::{Driver, SqliteLeases, SqliteStore, tx};
use mainstay_store::journal::{Append, Appended, AppendedWith, Created, NewRecord, Uid};
use mainstay_store::lease::{AcquireRequest, Acquired};
use mainstay_store::{
    DurableCell as _, ErrorKind, Journal as _, LeaseStore as _, Outcome, PutIf, RecordStore as _,
};

use crate::durability::{create, row};

/// Tells the child which work is its own.
const CHILD: &str = "MAINSTAY_POWER_CHILD";
/// Cuts at every point with every loss; `cargo xtask full` sets it.
const EVERY: &str = "MAINSTAY_FULL";
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// What the child says it asked for and was told.
#[derive(Clone)]
struct Diary(Arc<Mutex<File>>);

impl Diary {
    fn open(root: &Path) -> Self {
        let file = File::options().create(true).append(true).open(root.join("diary")).unwrap();
        Self(Arc::new(Mutex::new(file)))
    }

    fn note(&self, line: &str) {
        // One call, so one operation of the trace.
        self.0.lock().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn ask(&self, fact: &str) {
        self.note(&format!("ask {fact}"));
    }

    fn told(&self, fact: &str) {
        self.note(&format!("told {fact}"));
    }
}

/// Of each kind and name the largest number that was asked for, and that was told.
#[derive(Clone, Debug, Default)]
struct Facts(BTreeMap<(String, String), (u64, u64)>);

impl Facts {
    fn hear(&mut self, op: &Op) {
        let OpKind::Write(_, bytes) = &op.kind else { return };
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [word @ ("ask" | "told"), kind, name, number] = words[..] else { continue };
            let entry = self.0.entry((kind.to_owned(), name.to_owned())).or_default();
            let number: u64 = number.parse().unwrap();
            let known = if word == "ask" { &mut entry.0 } else { &mut entry.1 };
            *known = number.max(*known);
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "tells the child of a test from its parent")]
fn set(name: &str) -> bool {
    std::env::var(name).is_ok()
}

/// Runs `work` in a child of this test under the recorder; in the child itself there is nothing to return.
fn recorded<F: Future<Output = ()>>(
    test: &str,
    recorder: &Recorder,
    root: &Path,
    work: impl FnOnce(PathBuf) -> F,
) -> Option<Trace> {
    if set(CHILD) {
        #[allow(clippy::disallowed_methods, reason = "the child hears from its parent where to work")]
        let root = std::env::var("POWER_CUT_ROOT").unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(work(PathBuf::from(root)));
        return None;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([&format!("power::{test}"), "--exact", "--nocapture"]).env(CHILD, "1");
    let output = recorder.watch(&mut child, root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(recorder.trace().unwrap())
}

/// A recorder and the folder that it watches.
struct Bench {
    dir: tempfile::TempDir,
    recorder: Recorder,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        let recorder = Recorder::new(dir.path()).unwrap();
        Self { dir, recorder }
    }

    fn failing(fault: Fault) -> Self {
        let Self { dir, recorder } = Self::new();
        Self { dir, recorder: recorder.with_fault(fault) }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }
}

fn content(tag: &str) -> Vec<u8> {
    let mut reader = blake3::Hasher::new().update(tag.as_bytes()).finalize_xof();
    let mut head = [0; 2];
    reader.fill(&mut head);
    // From one page to three, so that commits have several frames and some of them are torn inside.
    let mut bytes = vec![0; usize::from(u16::from_le_bytes(head)) % 9_000];
    reader.fill(&mut bytes);
    bytes
}

fn open(root: &Path, driver: Driver) -> mainstay_store::Result<SqliteStore> {
    let config = SqliteStore::builder(root.join("node.db")).driver(driver).max_wal_bytes(256 * 1024);
    config.open(&Runtime::system())
}

/// Creates, appends, puts and stores, one after the other, until something is refused.
async fn work(
    store: SqliteStore,
    diary: Diary,
    who: &str,
    seed: u64,
    steps: u32,
) -> mainstay_store::Result<()> {
    let rng = SeededRng::new(seed);
    let cell = store.cell(who);
    let (mut sagas, mut version, mut stored) = (Vec::new(), 0, 0);
    for step in 0..steps {
        match rng.below(6) {
            0 | 1 => {
                let id = format!("{who}-{step}");
                diary.ask(&format!("saga {id} 1"));
                let mut request = create(&id);
                request.records[0].bytes = content(&format!("{id}/1"));
                assert!(matches!(store.create(request).await?, Created::Created { .. }));
                diary.told(&format!("saga {id} 1"));
                sagas.push((id, 1));
            }
            2 | 3 if !sagas.is_empty() => {
                let chosen = rng.below(sagas.len() as u64) as usize;
                let (id, seq) = &mut sagas[chosen];
                let next = *seq + 1;
                diary.ask(&format!("saga {id} {next}"));
                let records = vec![NewRecord { kind: 2, bytes: content(&format!("{id}/{next}")) }];
                let append = Append::new(Uid::new(format!("uid-{id}")), 0, next, records, row());
                assert!(matches!(store.append(append).await?, Appended::Appended { .. }));
                diary.told(&format!("saga {id} {next}"));
                *seq = next;
            }
            4 => {
                diary.ask(&format!("record {who} {}", version + 1));
                let value = content(&format!("{who}={}", version + 1));
                let known = (version > 0).then_some(version);
                assert!(matches!(store.put_if(who, known, value, None).await?, PutIf::Stored(_)));
                version += 1;
                diary.told(&format!("record {who} {version}"));
            }
            _ => {
                diary.ask(&format!("cell {who} {}", stored + 1));
                cell.store_synced(format!("{}", stored + 1).into_bytes()).await?;
                stored += 1;
                diary.told(&format!("cell {who} {stored}"));
            }
        }
    }
    Ok(())
}

/// What a store found after a cut must say, in words when it does not.
async fn compare(root: &Path, facts: &Facts) -> Result<(), String> {
    let store = open(root, Driver::Inline).map_err(|e| format!("it does not open: {e:?}"))?;
    for ((kind, name), (asked, told)) in &facts.0 {
        let found = match kind.as_str() {
            "saga" => {
                let loaded = store.load(&Uid::new(format!("uid-{name}"))).await;
                let records = loaded.map_err(|e| format!("saga {name}: {e:?}"))?.map(|l| l.records);
                for record in records.iter().flatten() {
                    if record.bytes != content(&format!("{name}/{}", record.seq)) {
                        return Err(format!("saga {name}: record {} is another", record.seq));
                    }
                }
                records.map_or(0, |r| r.len() as u64)
            }
            "record" => match store.get(name).await.map_err(|e| format!("record {name}: {e:?}"))? {
                Some(r) if r.value != content(&format!("{name}={}", r.version)) => {
                    return Err(format!("record {name} is another"));
                }
                found => found.map_or(0, |r| r.version),
            },
            "cell" => {
                let found = store.cell(name).load().await.map_err(|e| format!("cell {name}: {e:?}"))?;
                found.map_or(0, |bytes| String::from_utf8(bytes).unwrap().parse().unwrap())
            }
            _ => continue,
        };
        if found < *told {
            return Err(format!("{kind} {name}: {told} was told, {found} is there"));
        }
        if found > *asked {
            return Err(format!("{kind} {name}: {found} is there, {asked} was asked for"));
        }
    }
    // It can be written again, and a reader sees it.
    let again = store.create(create("after")).await.map_err(|e| format!("no new saga: {e:?}"))?;
    let known = store.load(&Uid::new("uid-after")).await.map_err(|e| format!("{e:?}"))?;
    if !matches!(again, Created::Created { .. } | Created::Same { .. }) || known.is_none() {
        return Err("a new saga is not there".to_owned());
    }
    Ok(())
}

/// What a sweep over cuts found.
#[derive(Debug, Default)]
struct Swept {
    images: usize,
    /// Images that differ from what a killed process leaves.
    lossy: usize,
    violations: Vec<String>,
}

/// Cuts the power of `trace` and compares what is found with what was told up to there: after answers (all of
/// a short trace, about 80 of a long one) with everything lost that was not synced, and at `points` drawn points
/// with what chance leaves.
fn sweep<F: Future<Output = Result<(), String>>>(
    start: (Disk, Facts),
    trace: &Trace,
    seed: u64,
    points: u64,
    check: impl Fn(PathBuf, Facts) -> F,
) -> Swept {
    let (mut disk, mut facts) = start;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (rng, every) = (SeededRng::new(seed), set(EVERY));
    let mut swept = Swept::default();
    let answers = trace.ops.iter().filter(|op| answers(op)).count() as u64;
    for (i, op) in trace.ops.iter().enumerate() {
        disk.apply(op);
        facts.hear(op);
        let answered = self::answers(op) && rng.below(answers) < 80;
        let drawn = rng.below(trace.ops.len() as u64) < points;
        let losses: &[Loss] = match (every, answered, drawn) {
            (true, ..) => &[Loss::Everything, Loss::Nothing, Loss::Tail, Loss::Sectors],
            (_, true, true) => &[Loss::Everything, Loss::Sectors],
            (_, true, _) => &[Loss::Everything],
            (_, _, true) => &[Loss::Tail, Loss::Sectors],
            _ => &[],
        };
        for loss in losses {
            let lot = rng.next_u64();
            let (mut image, mut whole) = (disk.cut(*loss, lot), disk.cut(Loss::Nothing, 0));
            for files in [&mut image.files, &mut whole.files] {
                files.remove(Path::new("diary"));
            }
            swept.images += 1;
            swept.lossy += usize::from(image != whole);
            let root = dir.path().join("found");
            std::fs::create_dir(&root).unwrap();
            image.write(&root).unwrap();
            // Shared memory may hold anything: whoever opens first must not believe it.
            std::fs::write(root.join("node.db-shm"), lot.to_le_bytes().repeat(4_096)).unwrap();
            if let Err(what) = runtime.block_on(check(root.clone(), facts.clone())) {
                let at = format!("cut after operation {i} of {}, {loss:?}, seed {lot}", trace.ops.len());
                swept.violations.push(format!("{at}: {what}"));
            }
            std::fs::remove_dir_all(&root).unwrap();
        }
    }
    swept
}

fn answers(op: &Op) -> bool {
    matches!(&op.kind, OpKind::Write(_, bytes) if bytes.starts_with(b"told "))
}

fn fresh(root: &Path) -> (Disk, Facts) {
    (Disk::new(root), Facts::default())
}

async fn found_again(root: PathBuf, facts: Facts) -> Result<(), String> {
    compare(&root, &facts).await
}

/// Work on the inline driver, with a weaker setting when `pragma` is given.
async fn inline_work(root: PathBuf, pragma: Option<&'static str>, steps: u32) {
    let store = open(&root, Driver::Inline).unwrap();
    if let Some(pragma) = pragma {
        // Only work that ends the transaction of the store can reach the setting.
        store.create(create("weaker")).await.unwrap();
        let weaken = tx(move |conn| {
            conn.execute_batch(&format!("commit; pragma synchronous = {pragma}"))?;
            Ok(Vec::new())
        });
        let head = Append::new(Uid::new("uid-weaker"), 0, 2, Vec::new(), row());
        let answer: mainstay_store::Result<AppendedWith> = store.append_with(head, weaken).await;
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::ApiMisuse);
    }
    work(store, Diary::open(&root), "inline", 11, steps).await.unwrap();
}

/// How often the write-ahead log began: a checkpoint lies between two beginnings.
fn starts(trace: &Trace) -> usize {
    of(trace, "-wal").iter().filter(|op| matches!(&op.kind, OpKind::Write(0, b) if b.len() == 32)).count()
}

/// What was done to the files whose paths end so.
fn of<'a>(trace: &'a Trace, end: &str) -> Vec<&'a Op> {
    let mut open = BTreeMap::new();
    let mut found = Vec::new();
    for op in &trace.ops {
        if let OpKind::Create(path) | OpKind::Open(path) = &op.kind {
            open.insert(op.fd, path.to_string_lossy().ends_with(end));
        } else if open.get(&op.fd) == Some(&true) {
            found.push(op);
        }
    }
    found
}

#[test]
fn sg_f12_m_g5_a_power_cut_at_any_point_loses_nothing_that_was_told() {
    let bench = Bench::new();
    let name = "sg_f12_m_g5_a_power_cut_at_any_point_loses_nothing_that_was_told";
    let Some(trace) = recorded(name, &bench.recorder, &bench.root(), |root| inline_work(root, None, 280))
    else {
        return;
    };
    let swept = sweep(fresh(&bench.root()), &trace, 1, 90, found_again);
    println!("{} operations, {} images, {} lossy", trace.ops.len(), swept.images, swept.lossy);
    assert_eq!(swept.violations, Vec::<String>::new());
    assert!(swept.lossy > 40 && swept.images > 200, "{swept:?}");
    assert!(starts(&trace) > 1, "a checkpoint is part of it, and what comes after it");
}

/// The same work, the same cuts, the same comparison: it must see what a weaker setting loses.
#[test]
fn sg_f12_the_same_cuts_find_what_a_weaker_setting_loses() {
    for pragma in ["normal", "off"] {
        let bench = Bench::new();
        let name = "sg_f12_the_same_cuts_find_what_a_weaker_setting_loses";
        // The child hears by the folder's name which one it is.
        let weaker = move |root: PathBuf| async move {
            let off = root.file_name().is_some_and(|n| n == "off");
            inline_work(root, Some(if off { "off" } else { "normal" }), 60).await;
        };
        let root = bench.dir.path().join(pragma);
        std::fs::create_dir(&root).unwrap();
        let Some(trace) = recorded(name, &bench.recorder, &root, weaker) else { return };
        let swept = sweep(fresh(&root), &trace, 2, 0, found_again);
        println!("{pragma}: {} of {} images lose something", swept.violations.len(), swept.images);
        assert!(swept.violations.len() * 2 > swept.images, "{pragma}: {:?}", swept.violations);
        assert!(swept.violations.iter().all(|v| v.contains("was told")), "{pragma}: {:?}", swept.violations);
    }
}

#[test]
fn sg_f12_a_disk_that_lies_about_its_syncs_is_found_too() {
    let bench = Bench::new();
    let name = "sg_f12_a_disk_that_lies_about_its_syncs_is_found_too";
    let Some(trace) = recorded(name, &bench.recorder, &bench.root(), |root| inline_work(root, None, 40))
    else {
        return;
    };
    let swept = sweep(fresh(&bench.root()), &trace.without_syncs(), 3, 20, found_again);
    assert!(!swept.violations.is_empty());
}

/// The writer's thread, group commit, the checkpoint thread and a log that starts over.
#[test]
fn sg_f12_m_g5_group_commits_and_checkpoints_beside_them_survive_power_cuts() {
    let bench = Bench::new();
    let name = "sg_f12_m_g5_group_commits_and_checkpoints_beside_them_survive_power_cuts";
    let busy = |root: PathBuf| async move {
        let (store, diary) = (open(&root, Driver::Thread).unwrap(), Diary::open(&root));
        let callers = (0..2).map(|i| {
            let (store, diary) = (store.clone(), diary.clone());
            async move { work(store, diary, &format!("caller{i}"), 20 + i, 600).await.unwrap() }
        });
        futures_util::future::join_all(callers).await;
    };
    let Some(trace) = recorded(name, &bench.recorder, &bench.root(), busy) else { return };
    let told = trace.ops.iter().filter(|op| answers(op)).count();
    let syncs = of(&trace, "-wal").iter().filter(|op| op.kind == OpKind::Sync).count();
    println!("{told} answers, {syncs} syncs of the log, it started {} times", starts(&trace));
    assert!(told == 1_200 && syncs < told, "calls share syncs: {syncs}");
    assert!(starts(&trace) > 1, "the log started over");
    let swept = sweep(fresh(&bench.root()), &trace, 4, 60, found_again);
    assert_eq!(swept.violations, Vec::<String>::new());
    assert!(swept.lossy > 20, "{swept:?}");
}

/// Opening what a cut left writes too: it is cut again, at every operation.
#[test]
fn m_g5_a_power_cut_during_the_recovery_of_another_loses_nothing() {
    let name = "m_g5_a_power_cut_during_the_recovery_of_another_loses_nothing";
    let first = Bench::new();
    let both = |root: PathBuf| async move {
        let again = root.join("node.db").exists();
        let (who, steps) = if again { ("second", 12) } else { ("first", 90) };
        work(open(&root, Driver::Inline).unwrap(), Diary::open(&root), who, 31, steps).await.unwrap();
    };
    let Some(trace) = recorded(name, &first.recorder, &first.root(), both) else { return };
    for (seed, part) in [(1, 3), (2, 7)] {
        let cut = trace.ops.len() * part / 8;
        let (mut disk, mut facts) = fresh(&first.root());
        for op in &trace.ops[..cut] {
            disk.apply(op);
            facts.hear(op);
        }
        let second = Bench::new();
        let image = disk.cut(Loss::Sectors, seed);
        image.write(&second.root()).unwrap();
        let again = recorded(name, &second.recorder, &second.root(), both).unwrap();
        let start = (Disk::holding(second.root(), &image), facts);
        let swept = sweep(start, &again, seed, 40, found_again);
        println!("cut {cut}: {} operations, {} images", again.ops.len(), swept.images);
        assert_eq!(swept.violations, Vec::<String>::new());
    }
}

/// What the child notes when the store refuses for the first time.
const STOPPED: &[u8] = b"stopped\n";

/// Successful syncs of the file whose sync failed, after that; and of any file after the store was seen to stop.
fn syncs_after_failure(trace: &Trace, path_end: &str) -> (usize, usize) {
    let end = |of: &dyn Fn(&Op) -> bool| trace.ops.iter().find(|op| of(op)).unwrap().end;
    let failed = end(&|op| matches!(op.kind, OpKind::SyncFailed(_)));
    let stopped = end(&|op| matches!(&op.kind, OpKind::Write(_, bytes) if bytes == STOPPED));
    let later =
        |ops: Vec<&Op>, when| ops.into_iter().filter(|op| op.end > when && op.kind == OpKind::Sync).count();
    (later(of(trace, path_end), failed), later(trace.ops.iter().collect(), stopped))
}

/// Works until the store stops; then nothing may be accepted any more.
async fn work_until_it_stops(root: PathBuf, driver: Driver) {
    let (store, diary) = (open(&root, driver).unwrap(), Diary::open(&root));
    let mut stopped = None;
    for part in 0..200_u64 {
        match work(store.clone(), diary.clone(), &format!("part{part}"), part, 6).await {
            Ok(()) => assert!(stopped.is_none(), "the store went on after {stopped:?}"),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Unavailable, "{e:?}");
                if stopped.is_some() {
                    assert_eq!(e.outcome(), Outcome::NotApplied, "{e:?}");
                } else {
                    diary.note("stopped");
                }
                stopped = Some(e);
            }
        }
    }
    assert!(stopped.is_some(), "the failed sync was not told");
}

/// SG-F12: `nth` sync of the files whose paths end so fails; the store must stop, and never ask again.
fn stops_after_a_failed_sync(name: &str, driver: Driver, path_end: &str, nth: u32) {
    let bench =
        Bench::failing(Fault { sync: true, path_end: path_end.to_owned(), nth, errno: EIO, times: 1 });
    let work = |root| work_until_it_stops(root, driver);
    let Some(trace) = recorded(name, &bench.recorder, &bench.root(), work) else { return };
    let (again, others) = syncs_after_failure(&trace, path_end);
    assert_eq!(again, 0, "a sync was tried again");
    // Beside a checkpoint that fails commits go on, into a log that is still whole, until its thread is heard; the
    // sweep below holds them to what they told.
    assert_eq!(others, 0, "syncs after the store had stopped");
    let swept = sweep(fresh(&bench.root()), &trace, 5, 10, found_again);
    assert_eq!(swept.violations, Vec::<String>::new());
}

#[test]
fn m_g5_a_failed_sync_of_the_log_stops_the_writer_and_is_not_tried_again() {
    let name = "m_g5_a_failed_sync_of_the_log_stops_the_writer_and_is_not_tried_again";
    stops_after_a_failed_sync(name, Driver::Thread, "-wal", 60);
}

#[test]
fn m_g5_a_failed_sync_of_the_log_stops_the_inline_writer_too() {
    stops_after_a_failed_sync(
        "m_g5_a_failed_sync_of_the_log_stops_the_inline_writer_too",
        Driver::Inline,
        "-wal",
        60,
    );
}

/// The second: one makes the file.
#[test]
fn m_g5_a_failed_sync_in_a_checkpoint_stops_the_writer_and_is_not_tried_again() {
    let name = "m_g5_a_failed_sync_in_a_checkpoint_stops_the_writer_and_is_not_tried_again";
    stops_after_a_failed_sync(name, Driver::Thread, "node.db", 2);
}

#[test]
fn m_g5_a_failed_sync_in_a_checkpoint_stops_the_inline_writer_too() {
    let name = "m_g5_a_failed_sync_in_a_checkpoint_stops_the_inline_writer_too";
    stops_after_a_failed_sync(name, Driver::Inline, "node.db", 2);
}

/// Every write that fills the disk is refused and told so; those around it stand, also after a power cut.
#[test]
fn m_g5_a_full_disk_is_refused_and_the_store_goes_on_when_there_is_room() {
    let name = "m_g5_a_full_disk_is_refused_and_the_store_goes_on_when_there_is_room";
    let full = Fault { sync: false, path_end: "-wal".to_owned(), nth: 300, errno: ENOSPC, times: 5 };
    let bench = Bench::failing(full);
    let work = |root: PathBuf| async move {
        let (store, diary) = (open(&root, Driver::Thread).unwrap(), Diary::open(&root));
        let mut refused = 0;
        for part in 0..40_u64 {
            if let Err(e) = work(store.clone(), diary.clone(), &format!("part{part}"), part, 6).await {
                assert_eq!((e.kind(), e.outcome()), (ErrorKind::Full, Outcome::NotApplied), "{e:?}");
                refused += 1;
            }
        }
        assert!((1..=5).contains(&refused), "{refused} were refused");
    };
    let Some(trace) = recorded(name, &bench.recorder, &bench.root(), work) else { return };
    assert!(trace.ops.iter().any(|op| op.kind == OpKind::WriteFailed(ENOSPC)));
    let swept = sweep(fresh(&bench.root()), &trace, 6, 20, found_again);
    assert_eq!(swept.violations, Vec::<String>::new());
}

/// A clock that stands still: no token may be larger than the last one only because time went by.
fn frozen() -> Runtime {
    Runtime::on_tokio(Arc::new(VirtualClock::new()), Arc::new(SeededRng::new(1)))
}

fn leases(root: &Path) -> mainstay_store::Result<SqliteLeases> {
    SqliteLeases::builder(root.join("leases.db")).driver(Driver::Inline).open(&frozen())
}

fn exclusive(name: &str, op: &str) -> AcquireRequest {
    AcquireRequest::exclusive(name, op, op, std::time::Duration::from_secs(60))
}

/// Takes, breaks and gives back leases; the last round keeps what it took.
async fn lease_work(root: PathBuf, rounds: u32) -> mainstay_store::Result<()> {
    let (store, diary) = (leases(&root)?, Diary::open(&root));
    for round in 0..rounds {
        for name in ["nightly", "leader"] {
            let op = format!("{name}-{round}");
            let Acquired::Granted(grants) = store.acquire(exclusive(name, &op)).await? else {
                panic!("{op}")
            };
            diary.told(&format!("token all {}", grants[0].token.get()));
            diary.told(&format!("held {name} {round}"));
            if round + 1 == rounds {
                continue;
            }
            diary.ask(&format!("ended {name} {round}"));
            if round % 2 == 0 {
                store.release(&op).await?;
            } else {
                let burned = store.break_lease(name).await?;
                diary.told(&format!("token all {}", burned.get()));
            }
        }
    }
    Ok(())
}

/// A lease that was told is held unless its end was asked for, and no token is told twice.
async fn leases_found_again(root: PathBuf, facts: Facts) -> Result<(), String> {
    let store = leases(&root).map_err(|e| format!("it does not open: {e:?}"))?;
    let number = |kind: &str, name: &str| facts.0.get(&(kind.to_owned(), name.to_owned())).copied();
    for name in ["nightly", "leader"] {
        let Some((_, round)) = number("held", name) else { continue };
        let told = number("ended", name).is_none_or(|(ended, _)| ended < round);
        let answer = store
            .acquire(exclusive(name, &format!("rival of {name}")))
            .await
            .map_err(|e| format!("{e:?}"))?;
        match answer {
            Acquired::Granted(_) if told => return Err(format!("{name} {round} was told and is given away")),
            _ => {}
        }
    }
    let fresh = store.break_lease("nightly").await.map_err(|e| format!("{e:?}"))?.get();
    match number("token", "all") {
        Some((_, told)) if fresh <= told => Err(format!("token {told} was told, {fresh} is told now")),
        _ => Ok(()),
    }
}

#[test]
fn sg_f12_m_g5_a_power_cut_at_any_point_tells_no_token_twice_and_frees_no_lease() {
    let bench = Bench::new();
    let name = "sg_f12_m_g5_a_power_cut_at_any_point_tells_no_token_twice_and_frees_no_lease";
    let work = |root| async move { lease_work(root, 100).await.unwrap() };
    let Some(trace) = recorded(name, &bench.recorder, &bench.root(), work) else { return };
    assert!(starts(&trace) > 1, "a checkpoint is part of it, and what comes after it");
    let swept = sweep(fresh(&bench.root()), &trace, 7, 60, leases_found_again);
    println!("{} operations, {} images, {} lossy", trace.ops.len(), swept.images, swept.lossy);
    assert_eq!(swept.violations, Vec::<String>::new());
    let lying = sweep(fresh(&bench.root()), &trace.without_syncs(), 8, 0, leases_found_again);
    assert!(lying.violations.iter().any(|v| v.contains("is told now")), "{:?}", lying.violations);
}

#[test]
fn m_g5_a_failed_sync_stops_the_leases_and_is_not_tried_again() {
    for (folder, path_end, nth) in [("log", "-wal", 50), ("checkpoint", "leases.db", 2)] {
        let fault = Fault { sync: true, path_end: path_end.to_owned(), nth, errno: EIO, times: 1 };
        let bench = Bench::failing(fault);
        let root = bench.dir.path().join(folder);
        std::fs::create_dir(&root).unwrap();
        let name = "m_g5_a_failed_sync_stops_the_leases_and_is_not_tried_again";
        let work = |root: PathBuf| async move {
            let (store, diary) = (leases(&root).unwrap(), Diary::open(&root));
            let mut stopped = false;
            for round in 0..400 {
                match store.break_lease("nightly").await {
                    Ok(_) => assert!(!stopped, "it went on in round {round}"),
                    Err(e) => {
                        let refused =
                            (e.kind(), e.outcome()) == (ErrorKind::Unavailable, Outcome::NotApplied);
                        assert!(refused || !stopped, "{e:?}");
                        if !stopped {
                            diary.note("stopped");
                        }
                        stopped = true;
                    }
                }
            }
            assert!(stopped, "the failed sync was not told");
        };
        let Some(trace) = recorded(name, &bench.recorder, &root, work) else { return };
        assert_eq!(syncs_after_failure(&trace, path_end), (0, 0), "{folder}: a sync was tried again");
    }
}

/// The files that a killed process leaves, and what it was told.
fn left_by(trace: &Trace, root: &Path) -> (Image, Facts) {
    let (mut disk, mut facts) = fresh(root);
    for op in &trace.ops {
        disk.apply(op);
        facts.hear(op);
    }
    (disk.cut(Loss::Nothing, 0), facts)
}

/// Flips `flips` drawn bits of `file`, one at a time: what is refused, what has no effect, and what gives a wrong
/// answer that nobody notices.
fn flip(
    image: &Image,
    facts: &Facts,
    file: &str,
    range: std::ops::Range<usize>,
    flips: u64,
) -> [Vec<String>; 3] {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (dir, rng) = (tempfile::tempdir().unwrap(), SeededRng::new(9));
    let mut seen = [const { Vec::new() }; 3];
    for _ in 0..flips {
        let mut damaged = image.clone();
        let bytes = damaged.files.get_mut(Path::new(file)).unwrap();
        let at = range.start + rng.below(range.len() as u64) as usize;
        bytes[at] ^= 1 << rng.below(8);
        let root = dir.path().join("found");
        std::fs::create_dir(&root).unwrap();
        damaged.write(&root).unwrap();
        let answer = runtime.block_on(compare(&root, facts));
        let kind = match &answer {
            Ok(()) => 1,
            Err(what) if what.contains("kind: ") => 0,
            Err(_) => 2,
        };
        seen[kind].push(format!("bit of byte {at}: {answer:?}"));
        std::fs::remove_dir_all(&root).unwrap();
    }
    seen
}

/// M-G5: a bit of the log that flips is seen, wherever it is but in the last transaction, which looks torn.
#[test]
fn m_g5_a_flipped_bit_in_the_log_is_refused_and_forgets_nothing_silently() {
    let bench = Bench::new();
    let name = "m_g5_a_flipped_bit_in_the_log_is_refused_and_forgets_nothing_silently";
    let Some(trace) = recorded(name, &bench.recorder, &bench.root(), |root| inline_work(root, None, 40))
    else {
        return;
    };
    // The process was killed before it could move the log into the file.
    let last = trace.ops.iter().rposition(answers).unwrap();
    let (image, facts) = left_by(&Trace { ops: trace.ops[..=last].to_vec() }, &bench.root());
    let before: Vec<&Op> = trace.ops[..=last].iter().filter(|op| answers(op)).collect();
    let second_last = before[before.len() - 2].end;
    // Where the log ended when the answer before the last one was given.
    let mut end = 0;
    for op in of(&trace, "-wal").into_iter().filter(|op| op.end < second_last) {
        if let OpKind::Write(at, bytes) = &op.kind {
            end = end.max(usize::try_from(*at).unwrap() + bytes.len());
        }
    }
    let [refused, harmless, silent] = flip(&image, &facts, "node.db-wal", 0..end, 100);
    println!("{} refused, {} without effect of {end} bytes", refused.len(), harmless.len());
    assert_eq!(silent, Vec::<String>::new());
    assert!(refused.len() > 95, "{harmless:?}");
}

/// M-G5: what a flipped bit of the database does to records is never an answer.
#[test]
fn m_g5_a_flipped_bit_in_the_database_never_gives_another_record() {
    let bench = Bench::new();
    let name = "m_g5_a_flipped_bit_in_the_database_never_gives_another_record";
    let Some(trace) = recorded(name, &bench.recorder, &bench.root(), |root| inline_work(root, None, 40))
    else {
        return;
    };
    let (image, facts) = left_by(&trace, &bench.root());
    // With its log moved into it: a page is read from the log while it is there.
    let dir = tempfile::tempdir().unwrap();
    image.write(dir.path()).unwrap();
    let conn = rusqlite::Connection::open(dir.path().join("node.db")).unwrap();
    conn.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(())).unwrap();
    drop(conn);
    let image = Image::read(dir.path()).unwrap();
    let size = image.files[Path::new("node.db")].len();
    let [refused, harmless, silent] = flip(&image, &facts, "node.db", 0..size, 300);
    println!("{} refused, {} without effect, silent: {silent:#?}", refused.len(), harmless.len());
    assert_eq!(silent, Vec::<String>::new());
    assert!(refused.len() > 70, "{harmless:?}");
}
