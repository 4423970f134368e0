//! Sessions over a real primary and its replicas, through failovers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mainstay_chaos::proxy::{TcpMode, TcpProxy};
use mainstay_clock::{Clock as _, Runtime, SystemClock};
use mainstay_consistency::session::{
    CallError, Consistency, Router, RouterBuilder, Session, SessionEvent, TokenKeys,
};
use mainstay_redis::{RedisEndpoint, RedisReplicas};
use mainstay_sim::servers::Redis;
use mainstay_store::replicated::Judgment;
use mainstay_store::{Error, ReplicatedStore as _};

use crate::Test;
use crate::replicas::{at, get, kit, proxy, put, replicas, run, set, value};
use crate::world::{ANSWER, PATIENCE, ms, until};

pub(crate) const TESTS: &[Test] = &[
    ("sl1_sl2_a_session_sees_what_it_wrote_and_read", || {
        run(sl1_sl2_a_session_sees_what_it_wrote_and_read());
    }),
    ("sl3_sl4_writes_follow_what_was_written_and_read", || {
        run(sl3_sl4_writes_follow_what_was_written_and_read());
    }),
    ("sl6_p7_s15_a_lost_write_is_said_and_a_kept_one_is_found", || {
        run(sl6_p7_s15_a_lost_write_is_said_and_a_kept_one_is_found());
    }),
    ("p9_an_old_primary_that_comes_back_is_not_believed", || {
        run(p9_an_old_primary_that_comes_back_is_not_believed());
    }),
    ("s14_p22_a_replica_that_hangs_costs_the_longest_wait_and_no_more", || {
        run(s14_a_replica_that_hangs_costs_the_longest_wait_and_no_more());
    }),
    ("p41_a_write_without_an_answer_sends_the_next_read_to_the_primary", || {
        run(p41_a_write_without_an_answer_sends_the_next_read_to_the_primary());
    }),
    ("p33_a_replica_that_was_filled_anew_does_not_answer_by_an_old_sample", || {
        run(p33_a_replica_that_was_filled_anew_does_not_answer_by_an_old_sample());
    }),
    ("a_read_asks_no_question_of_its_own", || run(a_read_asks_no_question_of_its_own())),
    ("p35_a_lone_primary_serves_sessions", || run(p35_a_lone_primary_serves_sessions())),
    ("p24_a_read_inside_a_write_sees_it", || run(p24_a_read_inside_a_write_sees_it())),
    ("tokens_open_for_their_shard_only", || run(tokens_open_for_their_shard_only())),
    ("naive_reads_of_replicas_are_stale", || run(naive_reads_of_replicas_are_stale())),
];

/// Nodes may take their time to answer, and what they said counts until they are asked again.
fn patient() -> RouterBuilder<RedisEndpoint> {
    let setup = Router::builder("orders", Arc::new(SystemClock::new()));
    setup.call_timeout(ANSWER).trust(Duration::from_secs(600))
}

fn router(store: &RedisReplicas, servers: &[&Redis]) -> Router<RedisEndpoint> {
    let setup = patient().max_wait(ms(100));
    let add = |setup: RouterBuilder<_>, (i, server): (usize, &&Redis)| {
        setup.shared(&i.to_string(), at(store, server))
    };
    servers.iter().enumerate().fold(setup, add).build().unwrap()
}

async fn write(session: &mut Session<RedisEndpoint>, key: &str, v: &str) -> Result<(), CallError<Error>> {
    session.write(async |node: &mut RedisEndpoint| node.write::<()>(&set(key, v)).await).await
}

async fn read(session: &mut Session<RedisEndpoint>, key: &str) -> Result<Option<String>, CallError<Error>> {
    let out = session.read(async |node: &mut RedisEndpoint| node.read::<(Option<String>,)>(&get(key)).await);
    Ok(out.await?.0)
}

/// A primary, a replica behind a wire, and one beside it.
async fn three() -> (Redis, TcpProxy, Redis, Redis) {
    let primary = kit().primary(&[]).unwrap();
    let wire = proxy(&primary).await;
    let (far, near) = (primary.replica_through(wire.address(), &[]).unwrap(), primary.replica(&[]).unwrap());
    (primary, wire, far, near)
}

async fn sl1_sl2_a_session_sees_what_it_wrote_and_read() {
    let (primary, wire, far, near) = three().await;
    let store = replicas();
    let from_replicas = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&from_replicas);
    let router = Router::builder("orders", Arc::new(SystemClock::new()))
        .call_timeout(ANSWER)
        .shared("a", at(&store, &primary))
        .shared("b", at(&store, &far))
        .shared("c", at(&store, &near))
        .poll_every(ms(20))
        .on_event(move |event| {
            if matches!(event, SessionEvent::ToReplica { .. }) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        })
        .build()
        .unwrap();
    let _poller = router.start(&Runtime::system());
    wire.set_mode(TcpMode::Latency { least: ms(5), jitter: ms(20) });
    let mut session = router.session();
    for n in 0..6_000_u32 {
        // How many reads find a replica that has caught up is up to the machine.
        if n >= 300 && from_replicas.load(Ordering::Relaxed) > 100 {
            break;
        }
        let text = n.to_string();
        write(&mut session, "k", &text).await.unwrap();
        for _ in 0..2 {
            assert_eq!(read(&mut session, "k").await.unwrap().as_deref(), Some(text.as_str()));
        }
    }
    assert!(from_replicas.load(Ordering::Relaxed) > 100, "{from_replicas:?}");

    // Another reader, who wrote nothing, never goes back.
    let mut reader = router.session();
    let mut last = 0;
    for n in 10_000..10_200_u32 {
        put(&at(&store, &primary), "k", &n.to_string()).await;
        let seen: u32 = read(&mut reader, "k").await.unwrap().unwrap().parse().unwrap();
        assert!(seen >= last, "{seen} after {last}");
        last = seen;
    }
}

async fn sl3_sl4_writes_follow_what_was_written_and_read() {
    let (mut primary, wire, far, near) = three().await;
    let store = replicas();
    let router = router(&store, &[&primary, &far, &near]);
    router.poll_once().await;
    wire.set_mode(TcpMode::Blackhole);
    let (mut writer, mut reader) = (router.session(), router.session());
    write(&mut writer, "question", "?").await.unwrap();
    near.caught_up(&primary).unwrap();
    router.poll_once().await;
    // Read from the replica that has it; the one that is promoted has not.
    until("the reader saw it", async || {
        reader = router.session();
        read(&mut reader, "question").await.unwrap().as_deref() == Some("?")
    })
    .await;
    primary.kill().unwrap();
    far.promote().unwrap();
    near.follow(far.address()).unwrap();
    near.linked().unwrap();
    router.poll_once().await;
    let again = write(&mut writer, "question", "??").await.unwrap_err();
    assert!(again.is_lost(), "no second write without the first: {again:?}");
    let answer = write(&mut reader, "answer", "!").await.unwrap_err();
    assert!(answer.is_lost(), "no answer without its question: {answer:?}");
    assert_eq!(far.command(&["EXISTS", "answer", "question"]).unwrap(), "0");
    assert!(reader.accept_loss());
    write(&mut reader, "answer", "!").await.unwrap();
    assert_eq!(read(&mut reader, "question").await.unwrap(), None);
}

async fn sl6_p7_s15_a_lost_write_is_said_and_a_kept_one_is_found() {
    for lossy in [false, true] {
        let (mut primary, wire, far, near) = three().await;
        let store = replicas();
        let router = router(&store, &[&primary, &far, &near]);
        router.poll_once().await;
        let mut session = router.session();
        write(&mut session, "k", "1").await.unwrap();
        far.caught_up(&primary).unwrap();
        if lossy {
            wire.set_mode(TcpMode::Blackhole);
        }
        write(&mut session, "k", "2").await.unwrap();
        if !lossy {
            far.caught_up(&primary).unwrap();
        }
        let token = session.token().await.unwrap();
        primary.kill().unwrap();
        far.promote().unwrap();
        near.follow(far.address()).unwrap();
        near.linked().unwrap();
        router.poll_once().await;
        let how = Consistency::AtLeast(token.clone());
        let mut other = router.session().resume(&token).unwrap();
        let by_token = other
            .read_at(&how, async |n: &mut RedisEndpoint| n.read::<(Option<String>,)>(&get("k")).await)
            .await;
        let by_session = read(&mut session, "k").await;
        if lossy {
            assert!(by_session.unwrap_err().is_lost());
            assert!(by_token.unwrap_err().is_lost());
            assert!(session.accept_loss());
            assert_eq!(read(&mut session, "k").await.unwrap().as_deref(), Some("1"));
        } else {
            assert_eq!(by_session.unwrap().as_deref(), Some("2"));
            assert_eq!(by_token.unwrap().0.as_deref(), Some("2"));
        }
    }
}

async fn p9_an_old_primary_that_comes_back_is_not_believed() {
    let (mut primary, _wire, far, near) = three().await;
    let store = replicas();
    let router = router(&store, &[&primary, &far, &near]);
    router.poll_once().await;
    let mut session = router.session();
    write(&mut session, "k", "1").await.unwrap();
    far.caught_up(&primary).unwrap();
    near.caught_up(&primary).unwrap();
    primary.kill().unwrap();
    far.promote().unwrap();
    near.follow(far.address()).unwrap();
    near.linked().unwrap();
    router.poll_once().await;
    write(&mut session, "k", "2").await.unwrap();
    // Empty, and sure that it is the primary.
    primary.restart().unwrap();
    until("it answers", async || at(&replicas(), &primary).observe().await.is_ok()).await;
    for _ in 0..4 {
        router.poll_once().await;
        assert_eq!(read(&mut session, "k").await.unwrap().as_deref(), Some("2"));
    }
    write(&mut session, "k", "3").await.unwrap();
    assert_eq!(far.command(&["GET", "k"]).unwrap(), "3");
    // A program that starts now hears of it first, and sees through it all the same.
    let late = self::router(&replicas(), &[&primary, &far, &near]);
    late.poll_once().await;
    let mut session = late.session().resume(&session.token().await.unwrap()).unwrap();
    assert_eq!(read(&mut session, "k").await.unwrap().as_deref(), Some("3"));
}

async fn s14_a_replica_that_hangs_costs_the_longest_wait_and_no_more() {
    let (primary, wire, far, _near) = three().await;
    let store = replicas();
    let router = router(&store, &[&primary, &far]);
    router.poll_once().await;
    wire.set_mode(TcpMode::Blackhole);
    let mut session = router.session();
    write(&mut session, "k", "1").await.unwrap();
    let clock = SystemClock::new();
    let start = clock.now();
    assert_eq!(read(&mut session, "k").await.unwrap().as_deref(), Some("1"));
    let took = clock.now().saturating_duration_since(start);
    // Whoever waited for more would wait for ever: nothing comes through.
    assert!(took >= ms(100), "{took:?}");
    far.pause().unwrap();
    assert_eq!(read(&mut session, "k").await.unwrap().as_deref(), Some("1"));
    far.resume().unwrap();
}

async fn p41_a_write_without_an_answer_sends_the_next_read_to_the_primary() {
    let (primary, _wire, far, _near) = three().await;
    let store = replicas();
    let client = proxy(&primary).await;
    let to_primary = store.endpoint(&format!("redis://{}/", client.address())).unwrap();
    let router = patient().shared("a", to_primary).shared("b", at(&store, &far)).build().unwrap();
    router.poll_once().await;
    let mut session = router.session();
    write(&mut session, "k", "1").await.unwrap();
    router.poll_once().await;
    client.set_mode(TcpMode::RepliesLost);
    let lose = async {
        until("it was done", async || primary.command(&["GET", "k"]).unwrap() == "2").await;
        client.cut();
    };
    let (written, ()) = tokio::join!(write(&mut session, "k", "2"), lose);
    assert!(matches!(written, Err(CallError::Inner(_))));
    // Nobody who could be asked for the position.
    client.set_upstream(None);
    client.set_mode(TcpMode::Pass);
    assert!(session.token().await.unwrap().is_owed());
    client.set_upstream(Some(primary.address()));
    until("the primary can be asked", async || {
        router.poll_once().await;
        router.status()[0].mark.is_some()
    })
    .await;
    assert_eq!(read(&mut session, "k").await.unwrap().as_deref(), Some("2"), "never the 1 of a replica");
    assert!(!session.token().await.unwrap().is_owed());
}

async fn p33_a_replica_that_was_filled_anew_does_not_answer_by_an_old_sample() {
    let (mut primary, wire, far, near) = three().await;
    let store = replicas();
    let router = patient()
        .shared("a", at(&store, &primary))
        .shared("b", at(&store, &far))
        .shared("c", at(&store, &near))
        .build()
        .unwrap();
    let mut session = router.session();
    router.poll_once().await;
    wire.set_mode(TcpMode::Blackhole);
    write(&mut session, "k", "1").await.unwrap();
    near.caught_up(&primary).unwrap();
    router.poll_once().await;
    assert_eq!(read(&mut session, "k").await.unwrap().as_deref(), Some("1"));
    primary.kill().unwrap();
    far.promote().unwrap();
    near.follow(far.address()).unwrap();
    near.linked().unwrap();
    // The sample says that `near` has it, the process and the connection are the same, and it is gone.
    let answer = read(&mut session, "k").await;
    let Err(CallError::Refused(error)) = answer else { panic!("answered {answer:?}") };
    assert!(error.is_retryable() || error.kind() == mainstay_consistency::ErrorKind::WriteLost, "{error:?}");
    router.poll_once().await;
    assert!(read(&mut session, "k").await.unwrap_err().is_lost());
}

async fn a_read_asks_no_question_of_its_own() {
    let (primary, _wire, far, _near) = three().await;
    let store = replicas();
    let router = router(&store, &[&primary, &far]);
    let mut session = router.session();
    router.poll_once().await;
    write(&mut session, "k", "1").await.unwrap();
    far.caught_up(&primary).unwrap();
    router.poll_once().await;
    far.command(&["CONFIG", "RESETSTAT"]).unwrap();
    const READS: u64 = 50;
    for _ in 0..READS {
        assert_eq!(read(&mut session, "k").await.unwrap().as_deref(), Some("1"));
    }
    let stats = far.command(&["INFO", "commandstats"]).unwrap();
    let calls = |name: &str| -> u64 {
        let line = stats.lines().find_map(|l| l.strip_prefix(&format!("cmdstat_{name}:calls=")));
        line.and_then(|l| l.split(',').next()?.parse().ok()).unwrap_or(0)
    };
    assert_eq!(calls("get"), READS);
    assert_eq!(calls("info"), 2 * READS, "before and behind each read, in its own round trip");
}

async fn p35_a_lone_primary_serves_sessions() {
    let primary = kit().primary(&[]).unwrap();
    let store = replicas();
    let router = router(&store, &[&primary]);
    router.poll_once().await;
    let mut session = router.session();
    write(&mut session, "k", "1").await.unwrap();
    assert_eq!(read(&mut session, "k").await.unwrap().as_deref(), Some("1"));
    // A replica comes, and the primary goes on under another history: still nothing is lost.
    let replica = primary.replica(&[]).unwrap();
    let both = self::router(&replicas(), &[&primary, &replica]);
    both.poll_once().await;
    let mut other = both.session().resume(&session.token().await.unwrap()).unwrap();
    assert_eq!(read(&mut other, "k").await.unwrap().as_deref(), Some("1"));
    write(&mut other, "k", "2").await.unwrap();
    router.poll_once().await;
    assert_eq!(read(&mut session, "k").await.unwrap().as_deref(), Some("2"));
}

async fn p24_a_read_inside_a_write_sees_it() {
    let (primary, wire, far, _near) = three().await;
    let router = router(&replicas(), &[&primary, &far]);
    router.poll_once().await;
    wire.set_mode(TcpMode::Blackhole);
    let mut session = router.session();
    let seen = session
        .write(async |node: &mut RedisEndpoint| {
            node.write::<()>(&set("k", "1")).await?;
            let (seen,): (Option<String>,) = node.read(&get("k")).await?;
            node.write::<()>(&set("l", "2")).await.map(|()| seen)
        })
        .await
        .unwrap();
    assert_eq!(seen.as_deref(), Some("1"));
    assert_eq!(read(&mut session, "l").await.unwrap().as_deref(), Some("2"), "the position is of the last");
}

async fn tokens_open_for_their_shard_only() {
    let (primary, _wire, far, _near) = three().await;
    let store = RedisReplicas::builder("orders").shard("7").request_timeout(ANSWER);
    let store = store.build(&Runtime::system()).unwrap();
    let router = router(&store, &[&primary, &far]);
    router.poll_once().await;
    let mut session = router.session();
    write(&mut session, "k", "1").await.unwrap();
    let now = SystemClock::new().wall();
    let keys = |name: &str| TokenKeys::builder(name).key(1, [7; 32]).build().unwrap();
    let text = keys(store.system()).seal(&session.token().await.unwrap(), now);
    assert!(text.len() <= 64, "{} characters", text.len());
    let token = keys("orders/7").open(&text, now).unwrap();
    assert_eq!(token, session.token().await.unwrap());
    assert!(keys("orders/8").open(&text, now).is_err());
}

/// What the other tests are good for: the same reads without a judgment.
async fn naive_reads_of_replicas_are_stale() {
    let (primary, wire, far, _near) = three().await;
    let store = replicas();
    let (a, b) = (at(&store, &primary), at(&store, &far));
    for n in 0..20 {
        // What is on its way stays there until it was read without it.
        wire.set_mode(TcpMode::Blackhole);
        let mark = put(&a, "k", &n.to_string()).await;
        assert_eq!(b.observe().await.unwrap().judge(&mark), Judgment::Behind);
        assert_ne!(value(&b, "k").await, Some(n.to_string()), "stale, and nothing says so");
        wire.set_mode(TcpMode::Pass);
        assert_eq!(b.wait(&mark, PATIENCE).await.unwrap(), Judgment::Satisfied);
        assert_eq!(value(&b, "k").await, Some(n.to_string()));
    }
}
