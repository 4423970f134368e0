//! Positions of a real primary and its replicas, judged.

use std::future::Future;
use std::time::Duration;

use mainstay_chaos::proxy::{TcpMode, TcpProxy};
use mainstay_clock::{Clock as _, Runtime, SystemClock};
use mainstay_redis::{RedisEndpoint, RedisReplicas};
use mainstay_sim::servers::{Redis, RedisKit};
use mainstay_store::replicated::{Judgment, Mark, Observed, Position, Role};
use mainstay_store::{ErrorKind, Outcome, ReplicatedStore as _};
use redis::Pipeline;

use crate::Test;
use crate::world::{ANSWER, PATIENCE, in_time, ms, until};

pub(crate) const TESTS: &[Test] = &[
    ("p34_the_position_is_taken_after_exec", || {
        run(p34_the_position_is_taken_after_exec());
    }),
    ("p34_a_position_inside_a_transaction_would_be_too_low", || {
        run(p34_a_position_inside_a_transaction_would_be_too_low());
    }),
    ("p35_without_replicas_only_the_primary_has_it", || {
        run(p35_without_replicas_only_the_primary_has_it());
    }),
    ("sl6_a_primary_whose_backlog_was_freed_has_lost_nothing", || {
        run(sl6_a_primary_whose_backlog_was_freed_has_lost_nothing());
    }),
    ("p35_a_lone_primary_that_restarts_empty_has_lost_it", || {
        run(p35_a_lone_primary_that_restarts_empty_has_lost_it());
    }),
    ("p19_p7_an_offset_alone_would_pass_after_a_failover", || {
        run(p19_p7_an_offset_alone_would_pass_after_a_failover());
    }),
    ("p19_a_replica_that_is_filled_anew_has_nothing", || {
        run(p19_a_replica_that_is_filled_anew_has_nothing());
    }),
    ("p19_two_failovers_are_followed", || run(p19_two_failovers_are_followed())),
    ("p19_a_replica_that_lagged_at_the_switch_calls_nothing_lost", || {
        run(p19_a_replica_that_lagged_at_the_switch_calls_nothing_lost());
    }),
    ("p20_a_key_that_expired_is_not_lost", || run(p20_a_key_that_expired_is_not_lost())),
    ("p33_a_life_ends_when_a_replica_is_filled_anew", || {
        run(p33_a_life_ends_when_a_replica_is_filled_anew());
    }),
    ("p33_a_life_ends_with_the_process", || run(p33_a_life_ends_with_the_process())),
    ("p35_a_primary_that_restarts_empty_wipes_its_replicas", || {
        run(p35_a_primary_that_restarts_empty_wipes_its_replicas());
    }),
    ("a_primary_that_restarts_from_its_file_goes_on", || {
        run(a_primary_that_restarts_from_its_file_goes_on());
    }),
    ("p16_a_position_of_another_shard_is_foreign", || {
        run(p16_a_position_of_another_shard_is_foreign());
    }),
    ("p41_a_lost_reply_leaves_the_position_unknown", || {
        run(p41_a_lost_reply_leaves_the_position_unknown());
    }),
    ("acknowledgements_are_counted_and_prove_nothing", || {
        run(acknowledgements_are_counted_and_prove_nothing());
    }),
    ("waiting_ends_when_the_replica_has_it_or_the_limit_is_over", || {
        run(waiting_ends_when_the_replica_has_it_or_the_limit_is_over());
    }),
    ("settings_that_cannot_hold_are_refused", || run(settings_that_cannot_hold_are_refused())),
];

/// Proxies go on while a test waits for a program.
pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(in_time(test));
}

pub(crate) fn kit() -> RedisKit {
    RedisKit::new().unwrap()
}

pub(crate) fn replicas() -> RedisReplicas {
    RedisReplicas::builder("orders").request_timeout(ANSWER).build(&Runtime::system()).unwrap()
}

pub(crate) fn at(store: &RedisReplicas, server: &Redis) -> RedisEndpoint {
    store.endpoint(&server.url()).unwrap()
}

pub(crate) fn set(key: &str, value: &str) -> Pipeline {
    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg(key).arg(value).ignore();
    pipe
}

pub(crate) fn get(key: &str) -> Pipeline {
    let mut pipe = redis::pipe();
    pipe.cmd("GET").arg(key);
    pipe
}

pub(crate) async fn put(endpoint: &RedisEndpoint, key: &str, value: &str) -> Mark {
    let mut endpoint = endpoint.clone();
    endpoint.write::<()>(&set(key, value)).await.unwrap();
    endpoint.commit_position().await.unwrap()
}

pub(crate) async fn value(endpoint: &RedisEndpoint, key: &str) -> Option<String> {
    endpoint.clone().read::<(Option<String>,)>(&get(key)).await.unwrap().0
}

async fn look(endpoint: &RedisEndpoint) -> Observed {
    endpoint.observe().await.unwrap()
}

async fn judged(endpoint: &RedisEndpoint, mark: &Mark) -> Judgment {
    look(endpoint).await.judge(mark)
}

fn offset(mark: &Mark) -> u64 {
    match mark.position {
        Position::Offset(n) => n,
        ref other => panic!("no offset: {other:?}"),
    }
}

pub(crate) async fn proxy(server: &Redis) -> TcpProxy {
    let proxy = TcpProxy::bind(Runtime::system(), 1).await.unwrap();
    proxy.set_upstream(Some(server.address()));
    proxy
}

async fn p34_the_position_is_taken_after_exec() {
    // Pings of the replication link move it, too: there are none.
    let silent = ["--repl-ping-replica-period", "3600", "--repl-timeout", "3600"];
    let primary = kit().primary(&silent).unwrap();
    let wire = proxy(&primary).await;
    let replica = primary.replica_through(wire.address(), &silent).unwrap();
    let store = replicas();
    let (a, b) = (at(&store, &primary), at(&store, &replica));
    wire.set_mode(TcpMode::Blackhole);
    let mut transaction = redis::pipe();
    transaction.atomic().cmd("SET").arg("k").arg("v").ignore().cmd("INCR").arg("n");
    let mut handle = a.clone();
    let (n,): (u64,) = handle.write(&transaction).await.unwrap();
    assert_eq!(n, 1);
    let mark = handle.commit_position().await.unwrap();
    let after: u64 = primary.replication("master_repl_offset").unwrap().parse().unwrap();
    assert_eq!(offset(&mark), after);
    assert_eq!(judged(&a, &mark).await, Judgment::Satisfied);
    assert_eq!(judged(&b, &mark).await, Judgment::Behind);
    assert_eq!(value(&b, "k").await, None);
    wire.set_mode(TcpMode::Pass);
    assert_eq!(b.wait(&mark, PATIENCE).await.unwrap(), Judgment::Satisfied);
    assert_eq!(value(&b, "k").await.as_deref(), Some("v"));
}

/// Why the question stands behind the transaction: what the server says inside is true of a replica without the write.
async fn p34_a_position_inside_a_transaction_would_be_too_low() {
    let primary = kit().primary(&[]).unwrap();
    let _replica = primary.replica(&[]).unwrap();
    let mut connection =
        redis::Client::open(primary.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let mut pipe = redis::pipe();
    pipe.cmd("MULTI").cmd("SET").arg("k").arg("x".repeat(1_000)).cmd("INFO").arg("replication").cmd("EXEC");
    pipe.cmd("INFO").arg("replication");
    let (_, _, _, inside, behind): (String, String, String, (String, String), String) =
        pipe.query_async(&mut connection).await.unwrap();
    let of = |info: &str| -> u64 {
        info.lines().find_map(|l| l.strip_prefix("master_repl_offset:")).unwrap().parse().unwrap()
    };
    assert!(of(&inside.1) + 1_000 < of(&behind), "{} and {}", of(&inside.1), of(&behind));
}

async fn p35_without_replicas_only_the_primary_has_it() {
    let primary = kit().primary(&[]).unwrap();
    let store = replicas();
    let a = at(&store, &primary);
    let (first, second) = (put(&a, "k", "1").await, put(&a, "k", "2").await);
    assert_eq!(first, second, "offsets stand still");
    assert_eq!(primary.replication("master_repl_offset").unwrap(), "0");
    assert_eq!(judged(&a, &first).await, Judgment::Satisfied);

    // The first replica makes the primary begin another history: nothing was lost by that.
    let replica = primary.replica(&[]).unwrap();
    let b = at(&store, &replica);
    assert_eq!(judged(&b, &first).await, Judgment::Behind, "nobody told of that history yet");
    assert_eq!(judged(&a, &first).await, Judgment::Satisfied);
    assert_eq!(judged(&b, &first).await, Judgment::Satisfied);
    assert_eq!(value(&b, "k").await.as_deref(), Some("2"));

    // Another process, which has never seen the primary alone.
    let other = replicas();
    assert_eq!(judged(&at(&other, &replica), &first).await, Judgment::Behind);
    assert_eq!(judged(&at(&other, &primary), &first).await, Judgment::Satisfied);
    let third = put(&a, "k", "3").await;
    assert_ne!(third.timeline, first.timeline);
    assert!(offset(&third) > 0);
}

async fn sl6_a_primary_whose_backlog_was_freed_has_lost_nothing() {
    let primary = kit().primary(&["--repl-backlog-ttl", "1"]).unwrap();
    let store = replicas();
    let a = at(&store, &primary);
    let lone = put(&a, "k", "0").await;
    let mut marks = vec![lone];
    // Twice: a chain of histories passes through the lone process again.
    for round in ["1", "2"] {
        let mut replica = primary.replica(&[]).unwrap();
        replica.caught_up(&primary).unwrap();
        let counted = put(&a, "k", round).await;
        assert!(offset(&counted) > 0 && counted.timeline != marks[0].timeline);
        marks.push(counted);
        replica.kill().unwrap();
        let freed = async || primary.replication("repl_backlog_active").unwrap() == "0";
        until("the backlog is freed", freed).await;
        let alone = put(&a, "k", round).await;
        assert_eq!(alone.timeline, marks[0].timeline, "the process is all that can be named");
        marks.push(alone);
        for mark in &marks {
            assert_eq!(judged(&a, mark).await, Judgment::Satisfied, "alone, {mark:?} of {marks:?}");
        }
    }
    // A replica has it as soon as somebody asked the primary.
    let replica = primary.replica(&[]).unwrap();
    replica.caught_up(&primary).unwrap();
    let b = at(&store, &replica);
    marks.push(put(&a, "k", "3").await);
    replica.caught_up(&primary).unwrap();
    for mark in &marks {
        assert_eq!(judged(&a, mark).await, Judgment::Satisfied, "{mark:?} of {marks:?}");
        assert_eq!(judged(&b, mark).await, Judgment::Satisfied, "{mark:?} of {marks:?}");
    }
}

async fn p35_a_lone_primary_that_restarts_empty_has_lost_it() {
    let mut primary = kit().primary(&[]).unwrap();
    let store = replicas();
    let a = at(&store, &primary);
    let mark = put(&a, "k", "1").await;
    primary.kill().unwrap();
    primary.restart().unwrap();
    until("it answers again", async || a.observe().await.is_ok()).await;
    assert_eq!(judged(&a, &mark).await, Judgment::Lost);
    assert_eq!(value(&a, "k").await, None);
}

/// A primary with a replica that has all, and one behind a wire that was cut before the last write.
async fn lossy() -> (Redis, Redis, RedisReplicas, Mark, Mark) {
    let mut primary = kit().primary(&[]).unwrap();
    let wire = proxy(&primary).await;
    let replica = primary.replica_through(wire.address(), &[]).unwrap();
    let store = replicas();
    let a = at(&store, &primary);
    let kept = put(&a, "kept", "v").await;
    replica.caught_up(&primary).unwrap();
    wire.set_mode(TcpMode::Blackhole);
    let lost = put(&a, "lost", "v").await;
    primary.kill().unwrap();
    replica.promote().unwrap();
    (primary, replica, store, kept, lost)
}

async fn p19_p7_an_offset_alone_would_pass_after_a_failover() {
    let (_old, new, store, kept, lost) = lossy().await;
    let b = at(&store, &new);
    for n in 0..20 {
        put(&b, &n.to_string(), "more").await;
    }
    let observed = look(&b).await;
    assert_eq!(observed.role, Role::Primary);
    assert!(offset(&observed.mark) > offset(&lost), "by its offset it is there");
    assert_eq!(observed.judge(&lost), Judgment::Lost);
    assert_eq!(observed.judge(&kept), Judgment::Satisfied);
    assert_eq!(value(&b, "lost").await, None);
    assert_eq!(value(&b, "kept").await.as_deref(), Some("v"));
    // A replica of the new history says the same once the primary was heard, and never Satisfied before.
    let second = new.replica(&[]).unwrap();
    second.caught_up(&new).unwrap();
    assert_eq!(judged(&at(&store, &second), &lost).await, Judgment::Lost);
    assert_eq!(judged(&at(&replicas(), &second), &lost).await, Judgment::Behind);
}

async fn p19_a_replica_that_is_filled_anew_has_nothing() {
    let primary = kit().primary(&["--rdbcompression", "no"]).unwrap();
    let replica = primary.replica(&[]).unwrap();
    let store = replicas();
    let (a, b) = (at(&store, &primary), at(&store, &replica));
    let mark = put(&a, "k", &"x".repeat(4_000_000)).await;
    assert_eq!(b.wait(&mark, PATIENCE).await.unwrap(), Judgment::Satisfied);
    // Another primary, behind a thin wire: filling takes a while, and until it ends nothing can be told.
    let other = kit().primary(&["--rdbcompression", "no"]).unwrap();
    let big = put(&at(&replicas(), &other), "big", &"x".repeat(4_000_000)).await;
    assert_eq!(offset(&big), 0);
    let wire = proxy(&other).await;
    wire.set_mode(TcpMode::Rate(200_000));
    replica.follow(wire.address()).unwrap();
    let filling = async || replica.replication("master_sync_in_progress").unwrap() == "1";
    until("it is being filled", filling).await;
    wire.set_mode(TcpMode::Blackhole);
    assert!(filling().await, "and is for as long as nothing moves");
    let observed = look(&b).await;
    assert_eq!(observed.judge(&mark), Judgment::Behind, "{observed:?}");
    assert_eq!(observed.mark.timeline, "");
    let read = b.clone().read::<(Option<String>,)>(&get("k")).await.unwrap_err();
    assert_eq!((read.kind(), read.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
    wire.set_mode(TcpMode::Pass);
    replica.linked().unwrap();
    assert_eq!(judged(&b, &mark).await, Judgment::Behind, "it is on another history now");
    assert_eq!(value(&b, "k").await, None);
}

async fn p19_two_failovers_are_followed() {
    let mut one = kit().primary(&[]).unwrap();
    let (mut two, three) = (one.replica(&[]).unwrap(), one.replica(&[]).unwrap());
    let store = replicas();
    let mark = put(&at(&store, &one), "k", "v").await;
    two.caught_up(&one).unwrap();
    three.caught_up(&one).unwrap();
    one.kill().unwrap();
    two.promote().unwrap();
    three.follow(two.address()).unwrap();
    three.linked().unwrap();
    let between = put(&at(&store, &two), "l", "v").await;
    three.caught_up(&two).unwrap();
    assert_eq!(judged(&at(&store, &two), &mark).await, Judgment::Satisfied);
    two.kill().unwrap();
    three.promote().unwrap();
    let c = at(&store, &three);
    put(&c, "m", "v").await;
    let observed = look(&c).await;
    assert!(observed.history.len() >= 2, "{observed:?}");
    assert_eq!(observed.judge(&mark), Judgment::Satisfied, "the server itself remembers one failover only");
    assert_eq!(observed.judge(&between), Judgment::Satisfied);
    // Who was not there cannot know, and says so: not provably present.
    assert_eq!(judged(&at(&replicas(), &three), &mark).await, Judgment::Lost);
}

async fn p19_a_replica_that_lagged_at_the_switch_calls_nothing_lost() {
    let mut one = kit().primary(&[]).unwrap();
    let wire = proxy(&one).await;
    let (two, three) = (one.replica(&[]).unwrap(), one.replica_through(wire.address(), &[]).unwrap());
    let store = replicas();
    wire.set_mode(TcpMode::Blackhole);
    let mark = put(&at(&store, &one), "k", "v").await;
    two.caught_up(&one).unwrap();
    one.kill().unwrap();
    two.promote().unwrap();
    wire.cut(); // With what was under way.
    // It had less than the new primary when it went on under the new history, and calls that its end.
    three.follow(two.address()).unwrap();
    three.linked().unwrap();
    three.caught_up(&two).unwrap();
    let second: u64 = three.replication("second_repl_offset").unwrap().parse().unwrap();
    assert!(second <= offset(&mark), "{second} and {mark:?}");
    let alone = replicas();
    assert_eq!(judged(&at(&alone, &three), &mark).await, Judgment::Behind, "nothing is proven");
    assert_eq!(judged(&at(&alone, &two), &mark).await, Judgment::Satisfied);
    assert_eq!(judged(&at(&alone, &three), &mark).await, Judgment::Satisfied);
}

async fn p20_a_key_that_expired_is_not_lost() {
    let primary = kit().primary(&[]).unwrap();
    let replica = primary.replica(&[]).unwrap();
    let store = replicas();
    let (mut a, b) = (at(&store, &primary), at(&store, &replica));
    let mut pipe = redis::pipe();
    pipe.cmd("SET").arg("k").arg("v").arg("PX").arg(40).ignore();
    a.write::<()>(&pipe).await.unwrap();
    let mark = a.commit_position().await.unwrap();
    assert_eq!(b.wait(&mark, PATIENCE).await.unwrap(), Judgment::Satisfied);
    until("it has expired on the replica", async || value(&b, "k").await.is_none()).await;
    assert_eq!(judged(&b, &mark).await, Judgment::Satisfied);
    assert_eq!(judged(&a, &mark).await, Judgment::Satisfied);
}

async fn p33_a_life_ends_when_a_replica_is_filled_anew() {
    let mut one = kit().primary(&[]).unwrap();
    let wire = proxy(&one).await;
    let (two, three) = (one.replica_through(wire.address(), &[]).unwrap(), one.replica(&[]).unwrap());
    let store = replicas();
    let (a, c) = (at(&store, &one), at(&store, &three));
    wire.set_mode(TcpMode::Blackhole);
    let lost = put(&a, "lost", "v").await;
    assert_eq!(c.wait(&lost, PATIENCE).await.unwrap(), Judgment::Satisfied);
    assert_eq!(value(&c, "lost").await.as_deref(), Some("v"));
    let before = c.incarnation().unwrap();
    assert_eq!(look(&c).await.incarnation, before);
    one.kill().unwrap();
    two.promote().unwrap();
    let mut handle = c.clone();
    three.follow(two.address()).unwrap();
    three.linked().unwrap();
    // The connection is the same, the data is not.
    let got: (Option<String>,) = handle.read(&get("lost")).await.unwrap();
    assert_eq!(got.0, None);
    assert_ne!(handle.incarnation(), Some(before));
    assert_ne!(look(&c).await.incarnation, before);
    assert_eq!(judged(&at(&store, &two), &lost).await, Judgment::Lost);
}

async fn p33_a_life_ends_with_the_process() {
    let mut primary = kit().primary(&["--appendonly", "yes", "--appendfsync", "always"]).unwrap();
    let store = replicas();
    let a = at(&store, &primary);
    put(&a, "k", "v").await;
    let before = a.incarnation().unwrap();
    primary.kill().unwrap();
    primary.restart().unwrap();
    until("it answers again", async || a.observe().await.is_ok()).await;
    assert_ne!(a.incarnation(), Some(before));
    assert_eq!(value(&a, "k").await.as_deref(), Some("v"));
}

async fn p35_a_primary_that_restarts_empty_wipes_its_replicas() {
    let mut primary = kit().primary(&[]).unwrap();
    let replica = primary.replica(&[]).unwrap();
    let store = replicas();
    let (a, b) = (at(&store, &primary), at(&store, &replica));
    let mark = put(&a, "k", "v").await;
    assert_eq!(b.wait(&mark, PATIENCE).await.unwrap(), Judgment::Satisfied);
    primary.kill().unwrap();
    primary.restart().unwrap();
    until("the replica was wiped", async || {
        replica.linked().unwrap();
        value(&b, "k").await.is_none()
    })
    .await;
    until("the primary answers", async || a.observe().await.is_ok()).await;
    assert_eq!(judged(&a, &mark).await, Judgment::Lost);
    assert_eq!(judged(&b, &mark).await, Judgment::Behind);
}

/// A file of data has the history and the offset in it. What came after the file was written is lost.
async fn a_primary_that_restarts_from_its_file_goes_on() {
    let mut primary = kit().primary(&["--dbfilename", "dump.rdb"]).unwrap();
    let _replica = primary.replica(&[]).unwrap();
    let store = replicas();
    let a = at(&store, &primary);
    let kept = put(&a, "kept", "v").await;
    // One write of the file at a time: that for the replica may still be under way.
    until("the file is written", async || primary.command(&["SAVE"]).is_ok()).await;
    let lost = put(&a, "lost", "v").await;
    primary.kill().unwrap();
    primary.restart().unwrap();
    until("it answers again", async || a.observe().await.is_ok()).await;
    assert_eq!(value(&a, "kept").await.as_deref(), Some("v"));
    assert_eq!(value(&a, "lost").await, None);
    assert_eq!(judged(&a, &kept).await, Judgment::Satisfied);
    assert_eq!(judged(&a, &lost).await, Judgment::Lost);
}

async fn p16_a_position_of_another_shard_is_foreign() {
    let primary = kit().primary(&[]).unwrap();
    let shard = |n: &str| RedisReplicas::builder("orders").shard(n).build(&Runtime::system()).unwrap();
    let (one, two) = (at(&shard("1"), &primary), at(&shard("2"), &primary));
    let mark = put(&one, "k", "v").await;
    assert_eq!(mark.system, "orders/1");
    assert_eq!(judged(&one, &mark).await, Judgment::Satisfied);
    assert_eq!(judged(&two, &mark).await, Judgment::Foreign);
}

async fn p41_a_lost_reply_leaves_the_position_unknown() {
    let primary = kit().primary(&[]).unwrap();
    let wire = proxy(&primary).await;
    let store = replicas();
    let mut a = store.endpoint(&format!("redis://{}/", wire.address())).unwrap();
    put(&a, "k", "1").await;
    wire.set_mode(TcpMode::RepliesLost);
    let lose = async {
        until("it was done", async || primary.command(&["GET", "k"]).unwrap() == "2").await;
        wire.cut();
        wire.set_mode(TcpMode::Pass);
    };
    let second = set("k", "2");
    let (written, ()) = tokio::join!(a.write::<()>(&second), lose);
    let error = written.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
    assert!(a.commit_position().await.is_err(), "never a position for a write that may not be in it");
    assert_eq!(primary.command(&["GET", "k"]).unwrap(), "2");
}

async fn acknowledgements_are_counted_and_prove_nothing() {
    let mut primary = kit().primary(&[]).unwrap();
    let wire = proxy(&primary).await;
    let (near, far) = (primary.replica(&[]).unwrap(), primary.replica_through(wire.address(), &[]).unwrap());
    let patient = RedisReplicas::builder("orders").request_timeout(ms(60_000)).acknowledge(1, ms(30_000));
    let store = patient.build(&Runtime::system()).unwrap();
    wire.set_mode(TcpMode::Blackhole);
    let mut a = at(&store, &primary);
    a.write::<()>(&set("k", "v")).await.unwrap();
    assert_eq!(a.acknowledged(), Some(1), "the near one");
    let mark = a.commit_position().await.unwrap();
    assert_eq!(judged(&at(&store, &near), &mark).await, Judgment::Satisfied);
    primary.kill().unwrap();
    far.promote().unwrap();
    assert_eq!(judged(&at(&store, &far), &mark).await, Judgment::Lost, "acknowledged, and gone");
}

async fn waiting_ends_when_the_replica_has_it_or_the_limit_is_over() {
    let primary = kit().primary(&[]).unwrap();
    let wire = proxy(&primary).await;
    let replica = primary.replica_through(wire.address(), &[]).unwrap();
    let store = replicas();
    let (a, b) = (at(&store, &primary), at(&store, &replica));
    wire.set_mode(TcpMode::Blackhole);
    let mark = put(&a, "k", "v").await;
    let (clock, limit) = (SystemClock::new(), ms(60));
    let start = clock.now();
    assert_eq!(b.wait(&mark, limit).await.unwrap(), Judgment::Behind);
    assert!(clock.now().saturating_duration_since(start) >= limit);
    wire.set_mode(TcpMode::Pass);
    assert_eq!(b.wait(&mark, PATIENCE).await.unwrap(), Judgment::Satisfied);
    let elsewhere = Mark { system: "other".into(), ..mark };
    assert_eq!(b.wait(&elsewhere, PATIENCE).await.unwrap(), Judgment::Foreign);
}

async fn settings_that_cannot_hold_are_refused() {
    let field = |b: mainstay_redis::ReplicasBuilder| b.build(&Runtime::system()).unwrap_err().field();
    assert_eq!(field(RedisReplicas::builder("")), "name");
    assert_eq!(field(RedisReplicas::builder("s").shard("")), "shard");
    assert_eq!(field(RedisReplicas::builder("s").request_timeout(Duration::ZERO)), "request_timeout");
    assert_eq!(field(RedisReplicas::builder("s").acknowledge(0, ms(10))), "acknowledge");
    assert_eq!(field(RedisReplicas::builder("s").acknowledge(1, ms(400))), "acknowledge");
    let error = replicas().endpoint("http://secret@x/").unwrap_err();
    assert_eq!(error.field(), "url");
    assert!(!error.to_string().contains("secret"));
}
