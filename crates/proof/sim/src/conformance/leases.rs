//! What every lease store must do: the exclusive mutex, and one section per capability beyond it.

use std::collections::BTreeSet;
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_store::lease::{
    AcquireRequest, Acquired, Grant, Line, MAX_TEXT, MAX_TTL, Released, Renewed, Share, Since, ToldBy,
    Transferred,
};
use mainstay_store::{ErrorKind, FencingToken, LeaseStore};

/// Of what is to end while it is looked at.
const SHORT: Duration = Duration::from_secs(5);
/// Of everything else, so that a machine that stands still ends nothing: the longest that every store takes.
const LONG: Duration = Duration::from_secs(30);
/// Between two moments that a calendar tells apart.
const APART: Duration = Duration::from_millis(20);
/// How often a look that has to be quick is tried before the machine is said to be too slow for it.
const TRIES: u32 = 10;

async fn take(store: &dyn LeaseStore, name: &str, op: &str) -> Option<FencingToken> {
    take_for(store, name, op, LONG).await
}

async fn take_for(store: &dyn LeaseStore, name: &str, op: &str, ttl: Duration) -> Option<FencingToken> {
    match store.acquire(AcquireRequest::exclusive(name, op, op, ttl)).await.unwrap() {
        Acquired::Granted(grants) => Some(grants[0].token),
        Acquired::Held { .. } => None,
        Acquired::Queued { .. } => panic!("a try must not queue"),
    }
}

/// Which sections of the lease contract a store ran, and which it refuses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sections {
    /// Capabilities that were checked.
    pub ran: Vec<&'static str>,
    /// Capabilities that the store does not declare; it was checked that it refuses them by name.
    pub refused: Vec<&'static str>,
}

/// Runs the mutex checks and every section that the store declares in its guarantees, each under names of
/// its own; for what it does not declare, checks that it says `Unsupported` instead of pretending.
///
/// # Panics
/// When a check fails.
pub async fn leases(store: &dyn LeaseStore, clock: &dyn Clock) -> Sections {
    let native: BTreeSet<&str> = store.guarantees().native.iter().copied().collect();
    let mut sections = Sections::default();
    mutex(store, clock).await;
    sections.ran.push("mutex");
    for name in ["annotate", "break_lease", "line", "list", "permit", "shared", "transfer", "watch"] {
        if !native.contains(name) {
            refused(store, name).await;
            sections.refused.push(name);
            continue;
        }
        match name {
            "annotate" => annotations(store).await,
            "break_lease" => breaking(store).await,
            "line" => line(store, clock).await,
            "list" => listing(store).await,
            "permit" => {
                permits(store).await;
                if native.contains("line") {
                    permits_in_line(store).await;
                }
            }
            "shared" => {
                shared(store).await;
                if native.contains("line") && native.contains("watch") {
                    leaving(store).await;
                }
            }
            "transfer" => transfers(store).await,
            _ => watching(store).await,
        }
        sections.ran.push(name);
    }
    let unknown: Vec<&&str> = native.iter().filter(|n| !sections.ran.contains(n)).collect();
    assert!(unknown.is_empty(), "declared, but there is no section for it: {unknown:?}");
    sections
}

/// What a store with one calendar says of since when each holder holds, whatever the share; whose calendar it is. Servers
/// that have one each differ by as much as their clocks do.
///
/// # Panics
/// When it says nothing, or when it moves while somebody holds.
pub async fn since_when(store: &dyn LeaseStore, clock: &dyn Clock) -> ToldBy {
    let native: BTreeSet<&str> = store.guarantees().native.iter().copied().collect();
    let name = "since";
    take(store, name, "since-1").await.unwrap();
    let first = since_of(store, name, "since-1").await;
    // A calendar counts in milliseconds.
    clock.sleep(APART).await;
    assert!(matches!(store.renew("since-1").await.unwrap(), Renewed::Renewed(_)));
    take(store, name, "since-1").await.unwrap();
    assert_eq!(since_of(store, name, "since-1").await, first, "neither a renewal nor a repetition moves it");
    let held = store.acquire(AcquireRequest::exclusive(name, "me", "since-2", LONG)).await.unwrap();
    let Acquired::Held { since, .. } = held else { panic!("{held:?}") };
    assert_eq!(since, Some(first), "whoever is refused is told, too");
    if native.contains("list") {
        let listed = store.list(name, 10).await.unwrap();
        let told: Vec<_> = listed.iter().flat_map(|info| &info.holders).map(|h| h.since).collect();
        assert_eq!(told, [Some(first)]);
    }
    if native.contains("transfer") && native.contains("line") {
        assert!(matches!(
            ask(store, name, "since-3", Share::Exclusive, Line::Join).await,
            Acquired::Queued { .. }
        ));
        let token = store.inspect(name).await.unwrap().holders[0].token;
        assert_eq!(store.transfer(name, token, "since-3").await.unwrap(), Transferred::Moved);
        let moved = since_of(store, name, "since-3").await;
        assert_ne!(moved.at, first.at, "it holds since it was handed over");
        store.release("since-3").await.unwrap();
    } else {
        store.release("since-1").await.unwrap();
    }
    if native.contains("line") {
        since_in_line(store, clock).await;
    }
    if native.contains("shared") {
        since_shared(store, clock).await;
    }
    first.by
}

/// Whoever waited holds since its turn came, not since it came.
async fn since_in_line(store: &dyn LeaseStore, clock: &dyn Clock) {
    take(store, "since-line", "since-l1").await.unwrap();
    ask(store, "since-line", "since-l2", Share::Exclusive, Line::Join).await;
    let first = since_of(store, "since-line", "since-l1").await;
    clock.sleep(APART).await;
    store.release("since-l1").await.unwrap();
    let mut turn = ask(store, "since-line", "since-l2", Share::Exclusive, Line::Join).await;
    while granted(&turn).is_none() {
        clock.sleep(APART).await;
        turn = ask(store, "since-line", "since-l2", Share::Exclusive, Line::Join).await;
    }
    assert_ne!(since_of(store, "since-line", "since-l2").await.at, first.at);
    store.release("since-l2").await.unwrap();
}

/// Each reader has its own; a writer who only reads from now on keeps it.
async fn since_shared(store: &dyn LeaseStore, clock: &dyn Clock) {
    let name = "since-shared";
    take(store, name, "since-s1").await.unwrap();
    let mut first = since_of(store, name, "since-s1").await;
    clock.sleep(APART).await;
    match store.downgrade("since-s1").await {
        Ok(done) => assert!(done),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            store.release("since-s1").await.unwrap();
            assert!(granted(&ask(store, name, "since-s1", Share::Shared, Line::Try).await).is_some());
            first = since_of(store, name, "since-s1").await;
            clock.sleep(APART).await;
        }
    }
    assert!(granted(&ask(store, name, "since-s2", Share::Shared, Line::Try).await).is_some());
    assert_eq!(since_of(store, name, "since-s1").await, first, "it held all the time");
    assert_ne!(since_of(store, name, "since-s2").await.at, first.at);
    for op in ["since-s1", "since-s2"] {
        store.release(op).await.unwrap();
    }
}

async fn since_of(store: &dyn LeaseStore, name: &str, owner: &str) -> Since {
    let info = store.inspect(name).await.unwrap();
    let holder = info.holders.iter().find(|h| h.owner == owner);
    holder.and_then(|h| h.since).unwrap_or_else(|| panic!("`{owner}` holds since when? {info:?}"))
}

async fn refused(store: &dyn LeaseStore, what: &str) {
    let mut request = AcquireRequest::exclusive("refused", "me", "refused-op", LONG);
    let kind = match what {
        "annotate" => store.annotate("refused", FencingToken::new(1), Vec::new()).await.map(drop),
        "break_lease" => store.break_lease("refused").await.map(drop),
        "line" => {
            request.line = Line::Join;
            store.acquire(request).await.map(drop)
        }
        "list" => store.list("refused", 1).await.map(drop),
        "permit" => {
            request.share = permits_of(2, 1);
            let resized = store.resize("refused", 2).await.map_err(|e| e.kind());
            assert_eq!(resized, Err(ErrorKind::Unsupported), "permit is not declared");
            store.acquire(request).await.map(drop)
        }
        "shared" => {
            request.share = Share::Shared;
            store.acquire(request).await.map(drop)
        }
        "transfer" => {
            let answer = store.transfer("refused", FencingToken::new(1), "you").await.unwrap();
            assert_eq!(answer, Transferred::Unsupported, "transfer is not declared");
            return;
        }
        _ => store.watch("refused").await,
    };
    assert_eq!(kind.map_err(|e| e.kind()), Err(ErrorKind::Unsupported), "{what} is not declared");
}

fn request(name: &str, op: &str, share: Share, line: Line) -> AcquireRequest {
    AcquireRequest { share, line, ..AcquireRequest::exclusive(name, op, op, LONG) }
}

async fn ask(store: &dyn LeaseStore, name: &str, op: &str, share: Share, line: Line) -> Acquired {
    store.acquire(request(name, op, share, line)).await.unwrap()
}

fn granted(acquired: &Acquired) -> Option<&Grant> {
    match acquired {
        Acquired::Granted(grants) => grants.first(),
        _ => None,
    }
}

async fn annotations(store: &dyn LeaseStore) {
    let token = take(store, "s-note", "s-note-1").await.unwrap();
    assert!(store.annotate("s-note", token, b"v".to_vec()).await.unwrap());
    assert_eq!(store.inspect("s-note").await.unwrap().annotation.as_deref(), Some(&b"v"[..]));
    assert!(!store.annotate("s-note", token.next(), b"w".to_vec()).await.unwrap(), "only its holder");
    store.release("s-note-1").await.unwrap();
    assert!(!store.annotate("s-note", token, b"w".to_vec()).await.unwrap(), "only while it is held");
    assert_eq!(store.inspect("s-note").await.unwrap().annotation, None);
}

async fn breaking(store: &dyn LeaseStore) {
    let burned_free = store.break_lease("s-break").await.unwrap();
    let token = take(store, "s-break", "s-break-1").await.unwrap();
    assert!(token > burned_free, "a token burned on a free name counts too");
    let burned = store.break_lease("s-break").await.unwrap();
    assert!(burned > token);
    assert_eq!(store.release("s-break-1").await.unwrap(), Released::AlreadyGone);
    assert!(take(store, "s-break", "s-break-2").await.unwrap() > burned);
    store.release("s-break-2").await.unwrap();
}

async fn listing(store: &dyn LeaseStore) {
    for name in ["s-list/1", "s-list/2", "s-list/3"] {
        take(store, name, name).await.unwrap();
    }
    let names = async |limit| -> Vec<String> {
        store.list("s-list/", limit).await.unwrap().into_iter().map(|l| l.name).collect()
    };
    assert_eq!(names(2).await, ["s-list/1", "s-list/2"]);
    store.release("s-list/2").await.unwrap();
    assert_eq!(names(9).await, ["s-list/1", "s-list/3"], "only what is held");
    for name in ["s-list/1", "s-list/3"] {
        store.release(name).await.unwrap();
    }
}

async fn shared(store: &dyn LeaseStore) {
    let name = "s-shared";
    let first = ask(store, name, "r1", Share::Shared, Line::Try).await;
    let second = ask(store, name, "r2", Share::Shared, Line::Try).await;
    assert!(granted(&second).unwrap().token > granted(&first).unwrap().token);
    assert_eq!(store.inspect(name).await.unwrap().holders.len(), 2);
    assert!(take(store, name, "w").await.is_none(), "a writer excludes readers");
    store.release("r1").await.unwrap();
    assert!(take(store, name, "w").await.is_none());
    store.release("r2").await.unwrap();
    assert!(take(store, name, "w").await.is_some());
    assert!(granted(&ask(store, name, "r3", Share::Shared, Line::Try).await).is_none());
    downgrading(store, name).await;
    store.release("w").await.unwrap();
}

/// Lets others of the same task go on.
async fn others() {
    let mut let_go = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut let_go, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

/// Of a store that keeps a line and tells: a writer that gives up waiting lets in the reader behind it, which hears of it.
async fn leaving(store: &dyn LeaseStore) {
    let name = "s-leave";
    assert!(granted(&ask(store, name, "l1", Share::Shared, Line::Try).await).is_some());
    assert!(granted(&ask(store, name, "l-w", Share::Exclusive, Line::Join).await).is_none());
    let waits = async {
        loop {
            let hint = store.watch(name);
            if granted(&ask(store, name, "l2", Share::Shared, Line::Join).await).is_some() {
                return;
            }
            hint.await.unwrap();
        }
    };
    let looks = async |n: u32| {
        for _ in 0..n {
            store.inspect(name).await.unwrap();
            others().await;
        }
    };
    let leaves = async {
        // What the waiter hears of its own coming is over.
        looks(100).await;
        store.leave("l-w").await.unwrap();
        looks(20_000).await;
    };
    tokio::select! {
        biased;
        () = waits => {}
        () = leaves => panic!("who stands behind one that left was not told"),
    }
    for op in ["l1", "l2"] {
        assert_eq!(store.release(op).await.unwrap(), Released::Clean);
    }
}

/// Of a store that can; `w` holds `name` alone.
async fn downgrading(store: &dyn LeaseStore, name: &str) {
    let token = store.inspect(name).await.unwrap().holders[0].token;
    match store.downgrade("w").await {
        Err(e) => return assert_eq!(e.kind(), ErrorKind::Unsupported),
        Ok(done) => assert!(done, "a writer becomes a reader"),
    }
    assert!(store.downgrade("w").await.unwrap(), "repeated after a lost answer");
    assert!(!store.downgrade("nobody").await.unwrap());
    assert_eq!(store.inspect(name).await.unwrap().holders[0].token, token, "its token stays");
    let reader = ask(store, name, "r4", Share::Shared, Line::Try).await;
    assert!(granted(&reader).is_some_and(|g| g.token > token), "other readers come in");
    assert!(take(store, name, "w2").await.is_none(), "no writer does");
    assert!(matches!(store.renew("w").await.unwrap(), Renewed::Renewed(g) if g[0].token == token));
    assert_eq!(store.release("r4").await.unwrap(), Released::Clean);
    assert!(take(store, name, "w2").await.is_none(), "it still reads");
}

fn permits_of(limit: u32, count: u32) -> Share {
    Share::Permit { limit, count }
}

async fn permits(store: &dyn LeaseStore) {
    for share in [permits_of(0, 1), permits_of(2, 0), permits_of(2, 3), permits_of(u32::MAX, 1)] {
        let none = store.acquire(request("s-permit", "none", share, Line::Try)).await;
        assert_eq!(none.map_err(|e| e.kind()), Err(ErrorKind::ApiMisuse), "{share:?}");
    }
    let (name, two) = ("s-permit", permits_of(2, 1));
    for op in ["p1", "p2"] {
        assert!(granted(&ask(store, name, op, two, Line::Try).await).is_some(), "{op}");
    }
    assert!(granted(&ask(store, name, "p3", two, Line::Try).await).is_none());
    assert!(granted(&ask(store, name, "p1", two, Line::Try).await).is_some(), "its own permit, again");
    store.release("p1").await.unwrap();
    mismatched(store, name, "px", permits_of(3, 1)).await;
    assert!(granted(&ask(store, name, "p3", two, Line::Try).await).is_some());
    for op in ["p2", "p3"] {
        assert_eq!(store.release(op).await.unwrap(), Released::Clean);
    }
    let three = ask(store, name, "p4", permits_of(3, 1), Line::Try).await;
    assert!(granted(&three).is_some(), "nobody is there: whoever comes first has the right size");
    store.release("p4").await.unwrap();
    many_permits(store).await;
    resizing(store).await;
}

/// Another size than that of whoever is there is refused by name, and leaves nothing.
async fn mismatched(store: &dyn LeaseStore, name: &str, op: &str, share: Share) {
    let before = store.inspect(name).await.unwrap().holders.len();
    let refused = store.acquire(request(name, op, share, Line::Try)).await;
    assert_eq!(refused.map_err(|e| e.kind()), Err(ErrorKind::ConfigMismatch), "{share:?}");
    assert_eq!(store.inspect(name).await.unwrap().holders.len(), before);
    assert_eq!(store.release(op).await.unwrap(), Released::AlreadyGone);
}

async fn many_permits(store: &dyn LeaseStore) {
    let name = "s-many";
    let four = ask(store, name, "m4", permits_of(5, 4), Line::Try).await;
    let token = granted(&four).unwrap().token;
    assert_eq!(store.inspect(name).await.unwrap().holders.len(), 1, "one lease, whatever it counts");
    assert!(granted(&ask(store, name, "m2", permits_of(5, 2), Line::Try).await).is_none(), "all or none");
    assert!(granted(&ask(store, name, "m1", permits_of(5, 1), Line::Try).await).is_some());
    assert!(granted(&ask(store, name, "m0", permits_of(5, 1), Line::Try).await).is_none());
    assert!(matches!(store.renew("m4").await.unwrap(), Renewed::Renewed(g) if g[0].token == token));
    assert_eq!(store.release("m4").await.unwrap(), Released::Clean, "all four come back");
    assert!(granted(&ask(store, name, "m5", permits_of(5, 5), Line::Try).await).is_none());
    assert_eq!(store.release("m1").await.unwrap(), Released::Clean);
    assert!(
        granted(&ask(store, name, "m5", permits_of(5, 5), Line::Try).await).is_some_and(|g| g.token > token)
    );
    assert_eq!(store.release("m5").await.unwrap(), Released::Clean);
}

async fn resizing(store: &dyn LeaseStore) {
    let name = "s-resize";
    store.resize(name, 9).await.unwrap();
    assert_eq!(store.resize(name, 0).await.map_err(|e| e.kind()), Err(ErrorKind::ApiMisuse));
    assert!(granted(&ask(store, name, "z2", permits_of(3, 2), Line::Try).await).is_some());
    store.resize(name, 1).await.unwrap();
    store.resize(name, 1).await.unwrap();
    let kept = store.renew("z2").await.unwrap();
    assert!(matches!(kept, Renewed::Renewed(_)), "shrinking takes nothing away: {kept:?}");
    mismatched(store, name, "zx", permits_of(3, 1)).await;
    assert!(granted(&ask(store, name, "z1", permits_of(1, 1), Line::Try).await).is_none());
    store.resize(name, 4).await.unwrap();
    assert!(granted(&ask(store, name, "z1", permits_of(4, 2), Line::Try).await).is_some());
    assert!(granted(&ask(store, name, "z0", permits_of(4, 1), Line::Try).await).is_none());
    for op in ["z1", "z2"] {
        assert_eq!(store.release(op).await.unwrap(), Released::Clean);
    }
    take(store, name, "alone").await.unwrap();
    assert_eq!(store.resize(name, 2).await.map_err(|e| e.kind()), Err(ErrorKind::ConfigMismatch), "a mutex");
    store.release("alone").await.unwrap();
}

/// Of a store that keeps a line.
async fn permits_in_line(store: &dyn LeaseStore) {
    let name = "s-permit-line";
    assert!(granted(&ask(store, name, "h", permits_of(3, 1), Line::Join).await).is_some());
    assert!(granted(&ask(store, name, "big", permits_of(3, 3), Line::Join).await).is_none());
    let small = ask(store, name, "small", permits_of(3, 1), Line::Try).await;
    assert!(granted(&small).is_none(), "whoever wants few does not overtake");
    store.release("h").await.unwrap();
    assert!(granted(&ask(store, name, "big", permits_of(3, 3), Line::Join).await).is_some());
    assert!(granted(&ask(store, name, "next", permits_of(3, 2), Line::Join).await).is_none());
    store.resize(name, 5).await.unwrap();
    let next = ask(store, name, "next", permits_of(3, 2), Line::Join).await;
    assert!(granted(&next).is_some(), "a place in line has the new size: {next:?}");
    for op in ["big", "next"] {
        assert_eq!(store.release(op).await.unwrap(), Released::Clean);
    }
}

async fn line(store: &dyn LeaseStore, clock: &dyn Clock) {
    let name = "s-line";
    take(store, name, "holder").await.unwrap();
    for (i, op) in ["w1", "w2", "w3"].into_iter().enumerate() {
        let acquired = ask(store, name, op, Share::Exclusive, Line::Join).await;
        let Acquired::Queued { position, remaining } = acquired else {
            panic!("{op} must stand in line: {acquired:?}")
        };
        assert!(position.is_none_or(|p| p as usize == i), "{op} has {i} before it, not {position:?}");
        assert!(remaining.is_none_or(|left| left <= LONG), "its turn comes within a ttl: {remaining:?}");
    }
    assert_eq!(store.inspect(name).await.unwrap().waiting, 3);
    store.leave("w2").await.unwrap();
    store.leave("w2").await.unwrap();
    store.release("holder").await.unwrap();
    // The line is served in order: neither the next in line nor a bystander may overtake.
    assert!(granted(&ask(store, name, "w3", Share::Exclusive, Line::Join).await).is_none());
    assert!(take(store, name, "bystander").await.is_none());
    let first = ask(store, name, "w1", Share::Exclusive, Line::Join).await;
    let first = granted(&first).unwrap().token;
    store.release("w1").await.unwrap();
    let second = ask(store, name, "w3", Share::Exclusive, Line::Join).await;
    assert!(granted(&second).unwrap().token > first);
    // A place that nobody asks for any more ends with its ttl, so a dead waiter blocks nobody for ever.
    let dead = AcquireRequest { ttl: SHORT, ..request(name, "dead", Share::Exclusive, Line::Join) };
    assert!(granted(&store.acquire(dead).await.unwrap()).is_none());
    store.release("w3").await.unwrap();
    clock.sleep(SHORT + Duration::from_millis(1)).await;
    assert!(take(store, name, "later").await.is_some());
    store.release("later").await.unwrap();
    // A release of a place in line leaves it: nothing was held.
    take(store, name, "holder").await.unwrap();
    assert!(granted(&ask(store, name, "w4", Share::Exclusive, Line::Join).await).is_none());
    assert_eq!(store.release("w4").await.unwrap(), Released::AlreadyGone);
    assert_eq!(store.inspect(name).await.unwrap().waiting, 0);
    store.release("holder").await.unwrap();
}

async fn transfers(store: &dyn LeaseStore) {
    let name = "s-transfer";
    let token = take(store, name, "t1").await.unwrap();
    assert_eq!(store.transfer(name, token, "t2").await.unwrap(), Transferred::NoSuchCandidate);
    assert!(granted(&ask(store, name, "t2", Share::Exclusive, Line::Join).await).is_none());
    assert!(granted(&ask(store, name, "t3", Share::Exclusive, Line::Join).await).is_none());
    let stale = FencingToken::new(token.get() - 1);
    assert_eq!(store.transfer(name, stale, "t3").await.unwrap(), Transferred::NoSuchCandidate);
    assert_eq!(store.transfer(name, token, "t3").await.unwrap(), Transferred::Moved);
    assert_eq!(store.renew("t1").await.unwrap(), Renewed::Lost);
    let moved = ask(store, name, "t3", Share::Exclusive, Line::Join).await;
    assert!(granted(&moved).unwrap().token > token);
    store.leave("t2").await.unwrap();
    store.release("t3").await.unwrap();
}

async fn watching(store: &dyn LeaseStore) {
    take(store, "s-watch", "v1").await.unwrap();
    let (watched, released) = tokio::join!(store.watch("s-watch"), store.release("v1"));
    watched.unwrap();
    assert_eq!(released.unwrap(), Released::Clean);
}

/// Runs every check of the mutex part of the lease contract on a fresh store.
///
/// # Panics
/// When a check fails.
pub async fn mutex(store: &dyn LeaseStore, clock: &dyn Clock) -> usize {
    exclusive_and_idempotent(store).await;
    tokens_only_grow(store, clock).await;
    all_names_or_none(store).await;
    misuse_is_refused(store).await;
    4
}

async fn exclusive_and_idempotent(store: &dyn LeaseStore) {
    let token = take(store, "a", "op1").await.unwrap();
    assert_eq!(take(store, "a", "op1").await, Some(token), "a repeated request keeps its token");
    let held = store.acquire(AcquireRequest::exclusive("a", "me", "op2", LONG)).await.unwrap();
    let Acquired::Held { by, remaining, .. } = held else { panic!("{held:?}") };
    assert_eq!(by, "op1");
    assert!(remaining.is_none_or(|r| r <= LONG));
    assert_eq!(store.release("op2").await.unwrap(), Released::AlreadyGone, "others release nothing");
    assert_eq!(store.inspect("a").await.unwrap().holders.len(), 1);
    assert_eq!(store.release("op1").await.unwrap(), Released::Clean);
    assert_eq!(store.release("op1").await.unwrap(), Released::AlreadyGone);
    assert!(store.inspect("a").await.unwrap().holders.is_empty());
}

async fn tokens_only_grow(store: &dyn LeaseStore, clock: &dyn Clock) {
    let mut first = None;
    for n in 0..TRIES {
        let (name, op) = (format!("b{n}"), format!("b{n}-op1"));
        if let Some(token) = lives_on(store, clock, &name, &op).await {
            first = Some((name, op, token));
            break;
        }
    }
    let (name, op, first) = first.expect("the machine is too slow to look at a renewed lease before it ends");
    clock.sleep(SHORT).await;
    assert_eq!(store.renew(&op).await.unwrap(), Renewed::Lost);
    let second = take(store, &name, "b-op2").await.unwrap();
    assert!(second > first, "{second} > {first}");
    assert_eq!(store.release(&op).await.unwrap(), Released::AlreadyGone, "someone else's lease survives");
    let burned = store.break_lease(&name).await.unwrap();
    assert!(burned > second);
    // Not every store remembers how it ended.
    assert!(matches!(store.renew("b-op2").await.unwrap(), Renewed::Broken | Renewed::Closed | Renewed::Lost));
    assert!(take(store, &name, "b-op3").await.unwrap() > burned);
}

/// Renews a lease, and looks whether it is there when only the renewal can be why. Its token; none when the machine
/// stood still for so long meanwhile that nothing can be told.
async fn lives_on(store: &dyn LeaseStore, clock: &dyn Clock, name: &str, op: &str) -> Option<FencingToken> {
    let asked = clock.now();
    let first = take_for(store, name, op, SHORT).await.unwrap();
    clock.sleep(SHORT / 2).await;
    let renewing = clock.now();
    let renewed = store.renew(op).await.unwrap();
    if clock.now().saturating_duration_since(asked) >= SHORT {
        return None;
    }
    assert!(matches!(renewed, Renewed::Renewed(g) if g[0].token == first), "it has not ended");
    clock.sleep(SHORT / 2 + SHORT / 4).await;
    let other = take(store, name, &format!("{op}-other")).await;
    if clock.now().saturating_duration_since(renewing) >= SHORT {
        return None;
    }
    assert_eq!(other, None, "a renewed lease lives on");
    Some(first)
}

async fn all_names_or_none(store: &dyn LeaseStore) {
    take(store, "n2", "other").await.unwrap();
    let mut both = AcquireRequest::exclusive("n1", "me", "op", LONG);
    both.names = vec!["n1".to_owned(), "n2".to_owned()];
    assert!(matches!(store.acquire(both.clone()).await.unwrap(), Acquired::Held { .. }));
    assert!(store.inspect("n1").await.unwrap().holders.is_empty(), "none is taken");
    store.release("other").await.unwrap();
    assert!(matches!(store.acquire(both.clone()).await.unwrap(), Acquired::Granted(g) if g.len() == 2));
    let mut needs = AcquireRequest::exclusive("n3", "me", "op4", LONG);
    needs.require = vec![("n1".to_owned(), FencingToken::new(u64::MAX >> 1))];
    assert!(matches!(store.acquire(needs).await.unwrap(), Acquired::Held { .. }));
    let listed: Vec<String> = store.list("n", 10).await.unwrap().into_iter().map(|l| l.name).collect();
    assert_eq!(listed, ["n1", "n2"]);
}

async fn misuse_is_refused(store: &dyn LeaseStore) {
    // An op id of its own: one that holds something else is refused for that alone.
    let whole = || AcquireRequest::exclusive("z", "me", "misuse", LONG);
    let long = || "x".repeat(MAX_TEXT + 1);
    let named = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    let refused = [
        ("no name", AcquireRequest { names: Vec::new(), ..whole() }),
        ("not sorted", AcquireRequest { names: named(&["z", "a"]), ..whole() }),
        ("twice", AcquireRequest { names: named(&["z", "z"]), ..whole() }),
        ("an empty name", AcquireRequest { names: named(&[""]), ..whole() }),
        ("a long name", AcquireRequest { names: vec![long()], ..whole() }),
        ("no owner", AcquireRequest { owner: String::new(), ..whole() }),
        ("a long owner", AcquireRequest { owner: long(), ..whole() }),
        ("no op id", AcquireRequest { op_id: String::new(), ..whole() }),
        ("a long op id", AcquireRequest { op_id: long(), ..whole() }),
        ("no time", AcquireRequest { ttl: Duration::ZERO, ..whole() }),
        ("more than 30 days", AcquireRequest { ttl: MAX_TTL + Duration::from_nanos(1), ..whole() }),
    ];
    for (what, request) in refused {
        let kind = store.acquire(request).await.map_err(|e| e.kind());
        assert_eq!(kind, Err(ErrorKind::ApiMisuse), "{what}");
    }
    assert!(store.inspect("z").await.unwrap().holders.is_empty(), "nothing is half applied");
}
