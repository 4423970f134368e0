//! Many callers of one server at once: they go together, and each is answered for itself.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures_util::future::{join_all, poll_immediate};
use mainstay_chaos::proxy::TcpMode;
use mainstay_redis::RedisLeases;
use mainstay_sim::servers::Server;
use mainstay_store::lease::{Acquired, Released};
use mainstay_store::{ErrorKind, FencingToken, LeaseStore, Outcome, Result};

use crate::Test;
use crate::single::proxied;
use crate::world::{
    ask, exists, ms, number, other, redis, run, scripts_run, store, store_within, take, text, try_take, until,
};

pub(crate) const TESTS: &[Test] = &[
    ("a_crowd_gets_answers_of_its_own_and_tokens_that_grow", own_answers),
    ("a_crowd_outlives_its_server", killed),
    ("a_crowd_tells_forgotten_scripts_once_for_a_batch", forgotten),
    ("in_a_batch_each_is_answered_as_if_it_were_alone", as_if_alone),
    ("in_a_batch_of_free_names_one_that_cannot_be_counted_spoils_nothing", free_names),
    ("in_a_batch_the_first_of_a_name_wins_and_the_next_is_told_who", contended),
    ("in_a_batch_a_release_frees_once_and_only_its_own", releases),
    ("names_with_a_brace_never_go_with_others", braces),
    ("f04_of_a_batch_without_a_reply_each_may_ask_again", f04),
    ("f19_dropped_at_any_point_a_call_of_a_crowd_leaves_nothing", f19),
    ("f19_dropped_in_the_line_nothing_is_sent", f19_in_the_line),
    ("f19_dropped_on_its_way_the_release_leaves_a_mark", f19_on_its_way),
    ("who_is_not_sent_in_its_time_is_told_that_nothing_happened", in_time),
];

const TTL: Duration = Duration::from_secs(60);
/// Longest wait for an answer that does not come.
const SILENCE: Duration = Duration::from_secs(3);
/// Callers that go alone, and batches on their way: those who come after them wait.
const BEFORE: usize = 7;
/// Callers that are sent to a server that answers nothing: four alone, three batches of 32.
const SENT: usize = 100;

type Call<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

fn acquire<'a>(store: &'a RedisLeases, name: &str, op: &str) -> Call<'a, Acquired> {
    store.acquire(ask(name, op, TTL))
}

/// Lets the tasks of the store do what they can without an answer.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// Connected.
async fn patient(server: &Server) -> RedisLeases {
    let store = store(server);
    store.ready().await.unwrap();
    store
}

/// Calls that are on their way to a server that stands still, so that whoever comes after them waits.
async fn jam(store: &RedisLeases) -> Vec<Call<'_, Acquired>> {
    let mut before = Vec::new();
    for n in 0..BEFORE {
        let mut call = acquire(store, &format!("before{n}"), &format!("before{n}"));
        assert!(poll_immediate(&mut call).await.is_none());
        settle().await;
        before.push(call);
    }
    before
}

/// What these come to when they wait together; the numbers of scripts that it took.
async fn together<'a, T>(
    server: &Server,
    store: &'a RedisLeases,
    calls: Vec<Call<'a, T>>,
) -> (Vec<Result<T>>, u64) {
    let mut other = other(server).await;
    let ran = scripts_run(&mut other).await;
    server.pause().unwrap();
    let before = jam(store).await;
    let mut calls = calls;
    for call in &mut calls {
        assert!(poll_immediate(call).await.is_none());
    }
    server.resume().unwrap();
    let (before, answers) = tokio::join!(join_all(before), join_all(calls));
    assert!(before.into_iter().all(|a| matches!(a, Ok(Acquired::Granted(_)))));
    let ran = scripts_run(&mut other).await - ran;
    for n in 0..BEFORE {
        assert_eq!(store.release(&format!("before{n}")).await.unwrap(), Released::Clean);
    }
    (answers, ran - BEFORE as u64)
}

fn token(answer: Result<Acquired>) -> FencingToken {
    match answer.unwrap() {
        Acquired::Granted(grants) => grants[0].token,
        other => panic!("not granted: {other:?}"),
    }
}

fn own_answers() {
    const ROUNDS: usize = 20;
    let server = redis(&[]);
    run(async {
        let store = patient(&server).await;
        let mut other = other(&server).await;
        let before = scripts_run(&mut other).await;
        let store = &store;
        let callers = (0..64).map(async |n| {
            let (name, mut last) = (format!("n{n}"), FencingToken::ZERO);
            for round in 0..ROUNDS {
                let op = format!("op{n}-{round}");
                let Acquired::Granted(grants) = store.acquire(ask(&name, &op, TTL)).await.unwrap() else {
                    panic!("{name} is free");
                };
                assert_eq!((grants.len(), grants[0].name.as_str()), (1, name.as_str()));
                assert!(grants[0].token > last);
                last = grants[0].token;
                assert_eq!(store.release(&op).await.unwrap(), Released::Clean);
            }
            (name, last)
        });
        for (name, last) in join_all(callers).await {
            let counter = text(&mut other, &["GET", &format!("{{{name}}}:fence")]).await;
            assert_eq!(last.to_string(), counter, "everybody's own");
            assert!(!exists(&mut other, &name).await);
        }
        let ran = scripts_run(&mut other).await - before;
        assert!(ran < 2 * 64 * ROUNDS as u64 / 4, "{ran} scripts: they went together");
    });
}

fn killed() {
    let mut server = redis(&[]);
    run(async {
        let store = &store(&server);
        store.ready().await.unwrap();
        let mut last = vec![FencingToken::ZERO; 64];
        for round in 0..6 {
            let calls = (0..64).map(|n| acquire(store, &format!("n{n}"), &format!("op{n}-{round}")));
            let mut calls: Vec<_> = calls.collect();
            if round % 2 == 1 {
                // Some are on their way, some wait.
                for call in &mut calls {
                    let _ = poll_immediate(call).await;
                }
                server.kill().unwrap();
            }
            for (n, answer) in join_all(calls).await.into_iter().enumerate() {
                match answer {
                    Ok(Acquired::Granted(grants)) => {
                        assert!(grants[0].token > last[n], "round {round}, caller {n}");
                        last[n] = grants[0].token;
                    }
                    Ok(other) => panic!("round {round}: {other:?}"),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                        assert!(round % 2 == 1 && error.outcome() != Outcome::Applied, "{error}");
                    }
                }
            }
            if round % 2 == 1 {
                server.restart().unwrap();
                until("it is reached again", async || store.ready().await.is_ok()).await;
            }
            let releases = (0..64).map(async |n| store.release(&format!("op{n}-{round}")).await.unwrap());
            join_all(releases).await;
        }
        assert!(last.iter().all(|t| *t > FencingToken::ZERO));
    });
}

fn forgotten() {
    let server = redis(&[]);
    run(async {
        let store = &patient(&server).await;
        let mut other = other(&server).await;
        let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut other).await.unwrap();
        let calls = (0..10).map(|n| acquire(store, &format!("n{n}"), &format!("op{n}"))).collect();
        let (answers, ran) = together(&server, store, calls).await;
        assert!(answers.into_iter().map(token).all(|t| t > FencingToken::ZERO));
        // Ten in one batch: its digest is not known, its text is. Those before them were told, each for itself.
        assert!(ran <= 2 + BEFORE as u64, "{ran}");
    });
}

fn as_if_alone() {
    let server = redis(&[]);
    run(async {
        let mut other = other(&server).await;
        let mut said = Vec::new();
        for crowded in [false, true] {
            let _: () = redis::cmd("FLUSHALL").query_async(&mut other).await.unwrap();
            let store = &patient(&server).await;
            for words in [
                &["HSET", "redisson", "a", "1"][..],
                &["SET", "redis-py", "theirs"],
                &["SET", "{corrupt}:fence", "many"],
                &["HSET", "{typed}:fence", "a", "1"],
                &["SET", "{full}:fence", "281474976710655"],
                &["SET", "{ahead}:fence", "281474976710000"],
                &["SET", "{marked}:t:op-marked", "1"],
            ] {
                let _: redis::Value =
                    redis::cmd(words[0]).arg(&words[1..]).query_async(&mut other).await.unwrap();
            }
            let mine = take(store, "mine", "op-mine", TTL).await;
            let names =
                ["redisson", "redis-py", "corrupt", "typed", "full", "ahead", "marked", "mine", "free"];
            let calls: Vec<_> = names.iter().map(|n| acquire(store, n, &format!("op-{n}"))).collect();
            let answers = if crowded {
                let (answers, ran) = together(&server, store, calls).await;
                assert_eq!(ran, 1, "one batch");
                answers
            } else {
                let mut answers = Vec::new();
                for call in calls {
                    answers.push(call.await);
                }
                answers
            };
            let texts = names.iter().zip(answers).map(|(name, answer)| match answer {
                // Tokens of the clock differ between two runs.
                Ok(Acquired::Granted(g)) if *name == "mine" => {
                    format!("mine, the same: {}", g[0].token == mine)
                }
                Ok(Acquired::Granted(g)) if *name == "ahead" => format!("ahead: {}", g[0].token),
                Ok(Acquired::Granted(_)) => format!("{name}: granted"),
                Ok(other) => format!("{name}: {other:?}"),
                Err(e) => format!("{name}: {:?} {:?} {e}", e.kind(), e.outcome()),
            });
            said.push(texts.collect::<Vec<_>>());
            assert_eq!(text(&mut other, &["GET", "{corrupt}:fence"]).await, "many");
            assert!(!exists(&mut other, "corrupt").await && !exists(&mut other, "full").await);
        }
        // The place in the text of a script is the only thing that may differ.
        for (alone, crowded) in said[0].iter().zip(&said[1]) {
            let plain = |s: &str| s.split(" script: ").next().unwrap_or_default().to_owned();
            assert_eq!(plain(alone), plain(crowded));
        }
        assert!(said[1].iter().any(|t| t.contains("redisson: Held") && t.contains("hash")), "{said:?}");
        assert!(said[1].contains(&"mine, the same: true".to_owned()), "{said:?}");
        assert!(said[1].contains(&"ahead: 281474976710001".to_owned()), "{said:?}");
    });
}

/// Where all names are free the callers share their reads, unless a counter is none.
fn free_names() {
    let server = redis(&[]);
    run(async {
        let store = &patient(&server).await;
        let mut other = other(&server).await;
        for words in [
            &["HSET", "{typed}:fence", "a", "1"][..],
            &["SET", "{corrupt}:fence", "many"],
            &["SET", "{full}:fence", "281474976710655"],
        ] {
            let _: redis::Value =
                redis::cmd(words[0]).arg(&words[1..]).query_async(&mut other).await.unwrap();
        }
        let bad =
            [("typed", ErrorKind::Corrupt), ("corrupt", ErrorKind::Corrupt), ("full", ErrorKind::TooLarge)];
        for (round, (name, kind)) in bad.into_iter().enumerate() {
            let free = [format!("free{round}"), format!("more{round}")];
            let calls = vec![
                acquire(store, &free[0], &free[0]),
                acquire(store, name, name),
                acquire(store, &free[1], &free[1]),
            ];
            let (mut answers, ran) = together(&server, store, calls).await;
            assert_eq!(ran, 1, "one batch");
            token(answers.remove(2));
            let error = answers.remove(1).unwrap_err();
            assert_eq!((error.kind(), error.outcome()), (kind, Outcome::NotApplied), "{error}");
            token(answers.remove(0));
            assert!(!exists(&mut other, name).await);
        }
    });
}

fn contended() {
    let server = redis(&[]);
    run(async {
        let store = &patient(&server).await;
        let calls = vec![
            acquire(store, "a", "one"),
            acquire(store, "a", "two"),
            acquire(store, "b", "three"),
            acquire(store, "a", "one"),
        ];
        let (mut answers, ran) = together(&server, store, calls).await;
        assert_eq!(ran, 1, "one batch");
        let again = token(answers.remove(3));
        token(answers.remove(2));
        match answers.remove(1).unwrap() {
            Acquired::Held { by, remaining, .. } => {
                assert_eq!(by, "one");
                assert!(remaining.is_some_and(|left| left > ms(30_000) && left <= TTL), "{remaining:?}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(token(answers.remove(0)), again, "asked twice, granted once");
    });
}

fn releases() {
    let server = redis(&[]);
    run(async {
        let store = &patient(&server).await;
        for n in 0..3 {
            take(store, &format!("n{n}"), &format!("op{n}"), TTL).await;
        }
        let mut other = other(&server).await;
        let _: () = redis::cmd("SET").arg("n1").arg("theirs").query_async(&mut other).await.unwrap();
        let calls = ["op0", "op1", "op0", "op2"].map(|op| store.release(op)).into_iter().collect();
        let (answers, ran) = together(&server, store, calls).await;
        assert_eq!(ran, 1, "one batch");
        let answers: Vec<Released> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, [Released::Clean, Released::AlreadyGone, Released::AlreadyGone, Released::Clean]);
        assert_eq!(text(&mut other, &["GET", "n1"]).await, "theirs");
        assert!(!exists(&mut other, "n0").await && !exists(&mut other, "{n0}:info").await);
    });
}

fn braces() {
    let server = redis(&[]);
    run(async {
        let store = &patient(&server).await;
        // The second name is what is known of the holder of the first, the third has the side keys of the first.
        let calls = ["a", "{a}:info", "{a}"].map(|name| acquire(store, name, name)).into_iter().collect();
        let (answers, ran) = together(&server, store, calls).await;
        assert_eq!(ran, 3, "each for itself");
        let tokens: Vec<FencingToken> = answers.into_iter().map(token).collect();
        assert!(tokens[0] > tokens[2], "one counter, and `a` came last: {tokens:?}");
    });
}

fn f04() {
    let server = redis(&[]);
    run(async {
        let (proxy, store) = proxied(&server, SILENCE).await;
        let mut other = other(&server).await;
        proxy.set_mode(TcpMode::RepliesLost);
        let calls = || (0..20).map(|n| acquire(&store, &format!("n{n}"), &format!("op{n}")));
        let mut sent = 0;
        for answer in join_all(calls()).await {
            let error = answer.unwrap_err();
            assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
            sent += usize::from(error.outcome() == Outcome::Unknown);
        }
        assert!(sent > BEFORE, "a batch of several was sent: {sent}");
        let mut counters = Vec::new();
        for n in 0..20 {
            counters.push(text(&mut other, &["GET", &format!("{{n{n}}}:fence")]).await);
        }
        assert_eq!(counters.iter().filter(|c| !c.is_empty()).count(), sent, "granted, and nobody heard");
        proxy.set_mode(TcpMode::Pass);
        proxy.cut();
        for (answer, counter) in join_all(calls()).await.into_iter().zip(counters) {
            let token = token(answer).to_string();
            assert!(counter.is_empty() || token == counter, "{token} after {counter}");
        }
    });
}

fn f19() {
    let server = redis(&[]);
    run(async {
        let store = &patient(&server).await;
        for polls in 0..12 {
            let ops: Vec<_> = (0..9).map(|n| (format!("n{n}"), format!("op{n}-{polls}"))).collect();
            let mut calls: Vec<_> = ops.iter().map(|(name, op)| acquire(store, name, op)).collect();
            for _ in 0..polls {
                let mut waiting = Vec::new();
                for mut call in calls {
                    if poll_immediate(&mut call).await.is_none() {
                        waiting.push(call);
                    }
                }
                calls = waiting;
                tokio::task::yield_now().await;
            }
            drop(calls);
            for (name, op) in &ops {
                store.release(op).await.unwrap();
                let next = format!("next-{op}");
                assert!(try_take(store, name, &next, TTL).await.is_some(), "{name} after {polls} polls");
                assert_eq!(store.release(&next).await.unwrap(), Released::Clean);
            }
        }
        let left = text(&mut other(&server).await, &["RANDOMKEY"]).await;
        assert!(left.ends_with(":fence") || left.contains(":t:"), "{left}");
    });
}

fn f19_in_the_line() {
    let server = redis(&[]);
    run(async {
        let store = &patient(&server).await;
        let mut other = other(&server).await;
        take(store, "held", "op-held", TTL).await;
        let ran = scripts_run(&mut other).await;
        server.pause().unwrap();
        let before = jam(store).await;
        let mut calls: Vec<_> =
            ["a", "b", "c"].iter().map(|name| acquire(store, name, &format!("op-{name}"))).collect();
        for call in &mut calls {
            assert!(poll_immediate(call).await.is_none());
        }
        drop(calls.remove(1));
        let mut release = store.release("op-held");
        assert!(poll_immediate(&mut release).await.is_none());
        drop(release);
        server.resume().unwrap();
        tokio::join!(join_all(before), join_all(calls));
        assert!(exists(&mut other, "a").await && exists(&mut other, "c").await);
        assert!(!exists(&mut other, "b").await && !exists(&mut other, "{b}:fence").await, "nothing was sent");
        assert_eq!(scripts_run(&mut other).await - ran, BEFORE as u64 + 1);
        assert_eq!(store.release("op-b").await.unwrap(), Released::AlreadyGone);
        let ran_now = scripts_run(&mut other).await - ran;
        assert_eq!(ran_now, BEFORE as u64 + 1, "and there is nothing to give back");
        assert!(exists(&mut other, "held").await);
        assert_eq!(store.release("op-held").await.unwrap(), Released::Clean);
    });
}

fn f19_on_its_way() {
    let server = redis(&[]);
    run(async {
        let store = &patient(&server).await;
        let mut other = other(&server).await;
        server.pause().unwrap();
        let mut before = jam(store).await;
        // The last of them is a batch of its own.
        drop(before.pop());
        server.resume().unwrap();
        join_all(before).await;
        let (name, mark) = ("before6", "{before6}:t:before6");
        until("it landed", async || exists(&mut other.clone(), name).await).await;
        assert_eq!(store.release(name).await.unwrap(), Released::Clean);
        assert!(!exists(&mut other, name).await);
        assert!(number(&mut other, &["PTTL", mark]).await > 30_000, "whatever still comes is refused");
    });
}

fn in_time() {
    let server = redis(&[]);
    run(async {
        let store = store_within(&server, SILENCE);
        until("it is connected", async || store.ready().await.is_ok()).await;
        server.pause().unwrap();
        // Four go alone and three batches are full before those who are left have had their time.
        let calls = (0..SENT + 10).map(|n| acquire(&store, &format!("n{n}"), &format!("op{n}")));
        for (n, answer) in join_all(calls).await.into_iter().enumerate() {
            let error = answer.unwrap_err();
            let expected = if n < SENT { Outcome::Unknown } else { Outcome::NotApplied };
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, expected), "{n}: {error}");
        }
        server.resume().unwrap();
        let mut other = other(&server).await;
        until("the others landed", async || exists(&mut other.clone(), "n99").await).await;
        assert_eq!(store.release("op100").await.unwrap(), Released::AlreadyGone);
        assert!(!exists(&mut other, "n100").await, "nothing of those who waited was sent");
        take(&store, "n100", "next", TTL).await;
    });
}
