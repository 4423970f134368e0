//! The lease file: several engines, another boot, crowds.

use std::collections::BTreeSet;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use futures_util::FutureExt as _;
use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, Runtime, SeededRng};
use mainstay_sqlite::{Driver, SqliteLeases};
use mainstay_store::LeaseStore;
use mainstay_store::lease::{AcquireRequest, Acquired, Line, Released, Since};

use crate::conformance::Files;

const TTL: Duration = Duration::from_secs(5);

fn ask(name: &str, op: &str) -> AcquireRequest {
    AcquireRequest::exclusive(name, op, op, TTL)
}

fn runtime(clock: &VirtualClock) -> Runtime {
    Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(1)))
}

#[tokio::test(start_paused = true)]
async fn another_boot_gives_a_full_ttl_of_grace_and_larger_tokens() {
    let (files, clock) = (Files::new(), VirtualClock::new());
    let file = files.fresh();
    let open = || SqliteLeases::builder(&file).driver(Driver::Inline).open(&runtime(&clock)).unwrap();
    let store = open();
    let Acquired::Granted(first) = store.acquire(ask("n", "a")).await.unwrap() else { panic!() };
    clock.sleep(TTL - Duration::from_secs(1)).await;
    drop(store);
    let raw = rusqlite::Connection::open(&file).unwrap();
    raw.execute("update meta set boot = 'another boot'", []).unwrap();
    drop(raw);

    let store = open();
    clock.sleep(TTL - Duration::from_secs(1)).await;
    assert!(matches!(store.acquire(ask("n", "b")).await.unwrap(), Acquired::Held { by, .. } if by == "a"));
    clock.sleep(Duration::from_secs(1)).await;
    let Acquired::Granted(second) = store.acquire(ask("n", "b")).await.unwrap() else { panic!() };
    assert_eq!(first[0].token.get() >> 48, 0);
    assert_eq!(second[0].token.get() >> 48, 1, "the epoch grew with the boot");
}

#[tokio::test(start_paused = true)]
async fn f11_a_wall_clock_that_jumps_frees_nothing_and_tokens_still_grow() {
    let (files, clock) = (Files::new(), VirtualClock::new());
    let store = SqliteLeases::builder(files.fresh()).driver(Driver::Inline).open(&runtime(&clock)).unwrap();
    let Acquired::Granted(first) = store.acquire(ask("n", "a")).await.unwrap() else { panic!() };
    for hours in [1, -3] {
        clock.jump_wall(hours * 3_600_000);
        assert!(matches!(store.acquire(ask("n", "b")).await.unwrap(), Acquired::Held { .. }));
    }
    store.release("a").await.unwrap();
    let Acquired::Granted(second) = store.acquire(ask("n", "b")).await.unwrap() else { panic!() };
    assert!(second[0].token > first[0].token);
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_program_wrote_has_no_since_and_is_not_given_one() {
    let (files, clock) = (Files::new(), VirtualClock::new());
    let file = files.fresh();
    let open = || SqliteLeases::builder(&file).driver(Driver::Inline).open(&runtime(&clock)).unwrap();
    drop(open());
    let raw = rusqlite::Connection::open(&file).unwrap();
    // As its table was.
    raw.execute_batch("alter table op drop column since").unwrap();
    let store = open();
    let since = async |name: &str| store.inspect(name).await.unwrap().holders[0].since;
    store.acquire(ask("n", "a")).await.unwrap();
    assert_eq!(since("n").await, Some(Since::store(clock.wall())), "the column is made");
    raw.execute(
        "insert or replace into op (op_id, owner, share, permits, ttl, until, note, number)
         select op_id, owner, share, permits, ttl, until, note, number from op",
        [],
    )
    .unwrap();
    assert_eq!(since("n").await, None, "it knew nothing of that");
    store.renew("a").await.unwrap();
    assert_eq!(since("n").await, None);
}

#[tokio::test(start_paused = true)]
async fn what_ended_under_names_nobody_asks_for_is_forgotten() {
    let (files, clock) = (Files::new(), VirtualClock::new());
    let file = files.fresh();
    let store = SqliteLeases::builder(&file).driver(Driver::Inline).open(&runtime(&clock)).unwrap();
    for n in 0..200 {
        store.acquire(ask(&format!("once/{n}"), &format!("op-{n}"))).await.unwrap();
    }
    clock.sleep(TTL).await;
    for n in 0..10 {
        store.acquire(ask("again", &format!("later-{n}"))).await.unwrap();
    }
    let raw = rusqlite::Connection::open(&file).unwrap();
    let rows: i64 = raw
        .query_row("select (select count(*) from op) + (select count(*) from op_name)", [], |r| r.get(0))
        .unwrap();
    assert_eq!(rows, 2, "the one held lease and its name");
}

#[tokio::test(start_paused = true)]
async fn the_values_of_the_dead_end_with_their_leases() {
    let (files, clock) = (Files::new(), VirtualClock::new());
    let file = files.fresh();
    let store = SqliteLeases::builder(&file).driver(Driver::Inline).open(&runtime(&clock)).unwrap();
    let lead = async |name: String, op: String, ttl: Duration| {
        let request = AcquireRequest { ttl, ..ask(&name, &op) };
        let Acquired::Granted(held) = store.acquire(request).await.unwrap() else { panic!("`{name}`") };
        assert!(store.annotate(&name, held[0].token, op.into_bytes()).await.unwrap());
    };
    for n in 0..100 {
        lead(format!("member/{n}"), format!("op-{n}"), TTL).await;
    }
    let both = AcquireRequest { names: vec!["m/1".to_owned(), "m/2".to_owned()], ..ask("m/1", "both") };
    let Acquired::Granted(held) = store.acquire(both).await.unwrap() else { panic!("they are free") };
    assert!(store.annotate("m/2", held[1].token, b"both".to_vec()).await.unwrap());
    lead("alive".to_owned(), "alive".to_owned(), TTL * 3).await;
    lead("led".to_owned(), "first".to_owned(), TTL).await;
    let join = |op: &str| AcquireRequest { line: Line::Join, ttl: TTL * 3, ..ask("led", op) };
    for waiter in ["second", "third"] {
        assert!(matches!(store.acquire(join(waiter)).await.unwrap(), Acquired::Queued { .. }));
    }
    clock.sleep(TTL).await;
    // One that asks for a part of what ended finds it; transactions of other names sweep the rest.
    store.acquire(ask("m/1", "after")).await.unwrap();
    for n in 0..3 {
        store.acquire(ask("again", &format!("later-{n}"))).await.unwrap();
    }
    let raw = rusqlite::Connection::open(&file).unwrap();
    let mut rows = raw.prepare("select name from annotation order by name").unwrap();
    let left: Vec<String> = rows.query_map([], |r| r.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(left, ["alive"]);
    assert_eq!(store.inspect("alive").await.unwrap().annotation.as_deref(), Some(&b"alive"[..]));
    assert!(matches!(store.acquire(join("second")).await.unwrap(), Acquired::Granted(_)));
    assert_eq!(store.inspect("led").await.unwrap().annotation, None, "that of the one before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_on_one_file_exclude_each_other_and_serve_in_order() {
    let files = Files::new();
    let file = files.fresh();
    let open = || SqliteLeases::builder(&file).open(&Runtime::system()).unwrap();
    let (here, there) = (open(), open());
    let Acquired::Granted(first) = here.acquire(ask("n", "a")).await.unwrap() else { panic!() };
    let join = |op: &str| AcquireRequest { line: Line::Join, ..ask("n", op) };
    assert!(matches!(there.acquire(join("b")).await.unwrap(), Acquired::Queued { position: Some(0), .. }));
    assert!(matches!(here.acquire(join("c")).await.unwrap(), Acquired::Queued { position: Some(1), .. }));
    // Woken by the other engine's release, not by a timer of the caller.
    let hint = there.watch("n");
    assert_eq!(here.release("a").await.unwrap(), Released::Clean);
    hint.await.unwrap();
    assert!(matches!(here.acquire(join("c")).await.unwrap(), Acquired::Queued { position: Some(1), .. }));
    let Acquired::Granted(second) = there.acquire(join("b")).await.unwrap() else { panic!("b came first") };
    assert!(second[0].token > first[0].token);
}

/// As commands do that a timer starts at one second.
#[test]
fn those_who_make_a_lease_file_together_all_open_it() {
    let files = Files::new();
    for _ in 0..30 {
        let (file, together) = (files.fresh(), Barrier::new(4));
        let opened = || {
            together.wait();
            SqliteLeases::builder(&file).open(&Runtime::system()).err()
        };
        let refused: Vec<_> = std::thread::scope(|s| {
            let all = [(); 4].map(|()| s.spawn(opened));
            all.into_iter().filter_map(|one| one.join().unwrap()).collect()
        });
        assert!(refused.is_empty(), "{refused:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_wakes_who_watches_that_name_and_nobody_else() {
    let (files, clock) = (Files::new(), VirtualClock::new());
    let file = files.fresh();
    let open = |seed| {
        let rt = Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(seed)));
        SqliteLeases::builder(&file).driver(Driver::Inline).open(&rt).unwrap()
    };
    let (here, there) = (open(1), open(2));
    for name in ["a", "b"] {
        here.acquire(ask(name, name)).await.unwrap();
    }
    // What was before is told once to whoever begins to watch.
    there.watch("a").await.unwrap();
    let mut other = settled(there.watch("b"), &clock).await;
    for store in [&here, &there] {
        let watched = there.watch("a");
        // A renewal is no news.
        here.renew("b").await.unwrap();
        store.acquire(ask("c", "c")).await.unwrap();
        store.break_lease("a").await.unwrap();
        store.acquire(ask("a", "a")).await.unwrap();
        watched.await.unwrap();
        assert!((&mut other).now_or_never().is_none(), "`b` did not change");
    }
    here.release("b").await.unwrap();
    other.await.unwrap();
}

/// A watch that was polled until everything older was told.
async fn settled<'a>(
    watch: mainstay_store::BoxFuture<'a, mainstay_store::Result<()>>,
    clock: &VirtualClock,
) -> mainstay_store::BoxFuture<'a, mainstay_store::Result<()>> {
    let mut watch = watch;
    assert!((&mut watch).now_or_never().is_none());
    clock.sleep(Duration::from_secs(1)).await;
    assert!((&mut watch).now_or_never().is_none(), "nothing changed meanwhile");
    watch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_callers_of_two_engines_see_no_busy_and_never_two_holders() {
    let files = Files::new();
    let file = files.fresh();
    let engines: Vec<SqliteLeases> =
        (0..2).map(|_| SqliteLeases::builder(&file).open(&Runtime::system()).unwrap()).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..64 {
        let store = engines[n % 2].clone();
        // Each tries until it has had it once: those who had it leave, so everybody's turn comes.
        tasks.spawn(async move {
            for round in 0.. {
                let op = format!("{n}-{round}");
                // No machine stands still for so long.
                let long = AcquireRequest { ttl: Duration::from_secs(600), ..ask("n", &op) };
                if let Acquired::Granted(g) = store.acquire(long).await.unwrap() {
                    let released = store.release(&op).await.unwrap();
                    assert_eq!(released, Released::Clean, "nobody took it meanwhile");
                    return g[0].token.get();
                }
            }
            unreachable!("it tries for ever")
        });
    }
    let mut tokens = BTreeSet::new();
    while let Some(done) = tasks.join_next().await {
        assert!(tokens.insert(done.unwrap()), "a token was given twice");
    }
    assert_eq!(tokens.len(), 64);
}
