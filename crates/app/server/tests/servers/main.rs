//! Commands under leases of real servers.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod campaign;
#[path = "../it/machine.rs"]
mod machine;
mod node;
mod worker;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_etcd::{EtcdConfig, EtcdLeases};
use mainstay_nats::{NatsConfig, NatsLeases};
use mainstay_postgres::{KeyProfile, Names, PostgresConfig, PostgresLeases, PostgresSessions};
use mainstay_redis::{RedisLeases, RedisQuorum};
use mainstay_sim::servers::{
    self, Cover, EtcdKit, Launch, MariaDbKit, NatsKit, Postgres, PostgresKit, Redis, RedisKit, Server, Trial,
};
use mainstay_sim::verdict::Verdict;
use mainstay_store::LeaseStore;
use mainstay_store::lease::{Fencing, Guarantees};

use campaign::{Outcome, campaign};
use machine::{PATIENCE, finish};
use node::{Restart, refuses, serves};
use worker::Rules;

/// Tests per server.
const TESTS: usize = 3;
/// Redis has the campaign of the holders too.
const REDIS_TESTS: usize = 6;
const PAGE: &str = include_str!("../../../../../docs/lock.md");

fn main() -> ExitCode {
    if let Some(code) = worker::from_arguments() {
        return code;
    }
    // Servers die with the thread that starts them: this one, which ends last.
    servers::run(vec![sqlite(), redis(), postgres(), replicated(), etcd(), nats()])
}

/// How long holders are stopped and killed; `cargo xtask full` asks for ten minutes.
fn length() -> Duration {
    #[allow(clippy::disallowed_methods, reason = "the long campaign is asked for by a variable")]
    let asked = std::env::var("MAINSTAY_HOLD_SECONDS").ok();
    Duration::from_secs(asked.map_or(12, |s| s.parse().unwrap()))
}

/// Nobody works beside the next holder, and no write of an old one is accepted after one of a newer one.
fn holds(url: &dyn Fn(&Path) -> String) {
    // A slow machine goes on until there was something to judge.
    let enough = |all: &Outcome| {
        let Outcome { grants, accepted, stops, kills, .. } = *all;
        grants > 3 && accepted > 20 && stops > 0 && stops + kills > 3
    };
    let outcome = campaign(url, Rules::All, length(), enough);
    println!("{outcome:?}");
    assert!(matches!(outcome.verdict, Verdict::Pass(_)), "{}", outcome.verdict);
    assert!(enough(&outcome), "too little happened: {outcome:?}");
}

/// The same campaign without one rule.
fn goes_red(rules: Rules, why: &str) {
    let file = |dir: &Path| format!("sqlite:{}", dir.join("leases").display());
    let outcome = campaign(&file, rules, 2 * PATIENCE, |_| true);
    let text = outcome.verdict.to_string();
    assert!(matches!(outcome.verdict, Verdict::Fail(_)) && text.contains(why), "{outcome:?}");
}

fn sqlite() -> Cover {
    let file = |dir: &Path| format!("sqlite:{}", dir.join("leases").display());
    let trials = vec![
        Trial::test("f09_f25_m_l1_holders_of_a_file_that_are_stopped_and_killed_never_overlap", move || {
            holds(&file);
            Ok(())
        }),
        Trial::test("f25_without_the_fence_the_same_campaign_goes_red", || {
            goes_red(Rules::Unfenced, "a stale holder acted");
            Ok(())
        }),
        Trial::test("f25_without_the_deadline_the_same_campaign_goes_red", || {
            goes_red(Rules::Unstopped, "is held 2 of 1");
            Ok(())
        }),
    ];
    Cover::new("sqlite", trials.len(), trials)
}

fn start(program: &Path) -> Server {
    Server::start(program, |setup| {
        let (ip, port) = (setup.address.ip().to_string(), setup.address.port().to_string());
        Launch::new().args(["--bind", &ip, "--port", &port, "--save", "", "--daemonize", "no"])
    })
    .unwrap()
}

fn redis() -> Cover {
    let trials = servers::find("redis-server").map(|program: PathBuf| {
        // Three are a quorum, two are for one test each: both keep a lock of a name under the same key.
        let nodes: Vec<Server> = (0..5).map(|_| start(&program)).collect();
        let urls: Vec<String> = nodes.iter().map(|n| format!("redis://{}/", n.address())).collect();
        // Kept until the process ends.
        let nodes = Arc::new(nodes);
        let (url, alive) = (urls[3].clone(), Arc::clone(&nodes));
        let (one, all) = (urls[4].clone(), urls[..3].join(","));
        let kept = Arc::clone(&nodes);
        vec![
            Trial::test(
                "f09_f25_m_l1_holders_of_one_redis_that_are_stopped_and_killed_never_overlap",
                move || {
                    let _alive = alive;
                    holds(&|_| url.clone());
                    Ok(())
                },
            ),
            Trial::test("a_command_runs_under_a_lock_of_one_redis", move || {
                let _kept = kept;
                excludes(&one);
                Ok(())
            }),
            Trial::test("commands_and_other_clients_of_redis_exclude_each_other_on_the_bare_name", || {
                let kit = RedisKit::new().expect("redis-cli comes with redis-server");
                let durable = ["--appendonly", "yes", "--appendfsync", "always"];
                let nodes: Vec<Redis> = (0..3).map(|_| kit.primary(&durable).unwrap()).collect();
                let (one, several) =
                    (nodes[0].url(), nodes.iter().map(Redis::url).collect::<Vec<_>>().join(","));
                meets(&format!("{one}?names=bare"), &nodes[..1], "job");
                meets(&format!("{one}?names=bare&prefix=redlock%3A"), &nodes[..1], "redlock:job");
                meets(&format!("{several}?names=bare&prefix=redlock:&durable=true"), &nodes, "redlock:job");
                Ok(())
            }),
            Trial::test("f42_a_key_without_a_ttl_is_shown_as_one_without_expiry", || {
                let node = RedisKit::new().expect("redis-cli comes with redis-server").primary(&[]).unwrap();
                assert_eq!(node.command(&["SET", "default/by-hand", "redis-py", "NX"]).unwrap(), "OK");
                endless(&node.url());
                Ok(())
            }),
            Trial::test("a_node_serves_the_locks_of_redis_and_of_a_majority", || {
                let kit = RedisKit::new().expect("redis-cli comes with redis-server");
                let nodes: Vec<Redis> = (0..4).map(|_| kit.primary(&[]).unwrap()).collect();
                let urls: Vec<String> = nodes.iter().map(Redis::url).collect();
                serves(&urls[3], Restart::Keeps);
                serves(&urls[..3].join(","), Restart::MayEnd);
                Ok(())
            }),
            Trial::test("a_command_runs_under_a_lock_of_a_majority", move || {
                let _kept = nodes;
                excludes(&all);
                let refused = run(&all, "cron", &["x", "--every", "1s", "--", "true"]);
                let said = String::from_utf8_lossy(&refused.stderr).into_owned();
                assert!(!refused.status.success() && said.contains("MS0002"), "{said}");
                assert!(said.contains("keeps no records") && said.contains("etcd://"), "{said}");
                // What was not started to keep its writes cannot be asked for strict tokens.
                let refused = run(&format!("{all}?durable=true"), "lock", &["x", "--", "true"]);
                let said = String::from_utf8_lossy(&refused.stderr).into_owned();
                assert!(!refused.status.success() && said.contains("not durable"), "{said}");
                let refused = run(&all, "lock", &["--ttl", "31s", "x", "--", "true"]);
                assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
                let longer =
                    run(&format!("{all}?max_ttl=1min"), "lock", &["--ttl", "31s", "x", "--", "true"]);
                assert!(longer.status.success(), "{}", String::from_utf8_lossy(&longer.stderr));
                let rt = Runtime::system();
                on_a_runtime(async {
                    row("Redis", &RedisLeases::new(&urls[0], &rt).unwrap().guarantees());
                    let majority = RedisQuorum::builder(&urls[..3]);
                    row("Redis, a majority", &majority.clone().build(&rt).unwrap().guarantees());
                    let durable = majority.require_durable().build(&rt).unwrap();
                    row("Redis, a durable majority", &durable.guarantees());
                });
                Ok(())
            }),
        ]
    });
    Cover::new("redis-server", REDIS_TESTS, trials.unwrap_or_default())
}

fn postgres() -> Cover {
    let trials = PostgresKit::new().unwrap().map(|kit| {
        let primary = Arc::new(kit.primary(&[]).unwrap());
        let (url, kept, served) = (primary.url(), Arc::clone(&primary), Arc::clone(&primary));
        vec![
            Trial::test("a_command_runs_under_a_lock_of_postgres", move || {
                let _kept = kept;
                excludes(&url);
                Ok(())
            }),
            Trial::test("a_node_serves_the_locks_of_postgres", move || {
                serves(&served.url(), Restart::Keeps);
                refuses(&format!("{}?sessions=sqlx", served.url()), "can annotate");
                Ok(())
            }),
            Trial::test("replicas_of_postgres_are_listed_with_their_forks", move || {
                replicas(&kit);
                Ok(())
            }),
            Trial::test("the_page_says_what_postgres_declares", move || {
                let config = PostgresConfig::builder(&primary.url()).build().unwrap();
                on_a_runtime(async {
                    let leases = PostgresLeases::open(config, &Runtime::system()).await.unwrap();
                    row("PostgreSQL", &leases.guarantees());
                    let config = PostgresConfig::builder(&primary.url()).build().unwrap();
                    let (profile, rt) = (KeyProfile::Sqlx, Runtime::system());
                    let sessions = PostgresSessions::open(config, profile, Names::Whole, &rt).await.unwrap();
                    row("PostgreSQL, session locks", &sessions.guarantees());
                });
                Ok(())
            }),
            Trial::test("commands_and_psql_exclude_each_other_by_session_locks", || {
                sessions(&PostgresKit::new().unwrap().expect("it was there before"));
                Ok(())
            }),
        ]
    });
    Cover::new("postgres", TESTS + 2, trials.unwrap_or_default())
}

fn replicated() -> Cover {
    let kits = RedisKit::new().zip(MariaDbKit::new().unwrap());
    let trials = kits.map(|(redis, mariadb)| {
        vec![
            Trial::test("replicas_of_redis_are_listed_with_their_forks", move || {
                let primary = redis.primary(&[]).unwrap();
                let (near, fork) = (primary.replica(&[]).unwrap(), primary.replica(&[]).unwrap());
                primary.command(&["SET", "k", "v"]).unwrap();
                near.caught_up(&primary).unwrap();
                let (code, said, json) = states(&[primary.url(), near.url()]);
                assert_eq!((code, said), (Some(0), vec!["primary".into(), "replica".into()]), "{json:#}");
                fork.promote().unwrap();
                primary.command(&["SET", "k", "w"]).unwrap();
                let (code, said, json) = states(&[primary.url(), fork.url()]);
                assert_eq!((code, said), (Some(1), vec!["fork".into(), "primary".into()]), "{json:#}");
                Ok(())
            }),
            Trial::test("replicas_of_mariadb_are_listed_with_their_forks", move || {
                let primary = mariadb.primary(1, &[]).unwrap();
                primary.sql("create database before_it").unwrap();
                let replica = primary.replica(2, &[]).unwrap();
                let (code, said, json) = states(&[primary.url(), replica.url()]);
                assert_eq!((code, said), (Some(0), vec!["primary".into(), "replica".into()]), "{json:#}");
                replica.promote().unwrap();
                replica.sql("create database mine").unwrap();
                primary.sql("create database after_it").unwrap();
                let (code, said, json) = states(&[primary.url(), replica.url()]);
                assert_eq!((code, said), (Some(1), vec!["fork".into(), "primary".into()]), "{json:#}");
                Ok(())
            }),
        ]
    });
    Cover::new("redis-server and mariadb-server", 2, trials.unwrap_or_default())
}

/// What `session replicas` says: its exit code, the state of each node, and all of it.
fn states(urls: &[String]) -> (Option<i32>, Vec<String>, serde_json::Value) {
    let state = |node: &serde_json::Value| node["state"].as_str().unwrap_or("-").to_owned();
    let mut all = None;
    // A node that does not answer in the command's own time is asked again.
    until("every node answers", || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.args(["session", "replicas", "-o", "json"]).args(urls).stdin(Stdio::null());
        let output = finish(command, PATIENCE);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let states: Vec<String> = json.as_array().unwrap().iter().map(state).collect();
        let answered = states.iter().all(|s| s != "-");
        all = Some((output.status.code(), states, json));
        answered
    });
    all.unwrap()
}

/// A standby that follows, and then one that went its own way.
fn replicas(kit: &PostgresKit) {
    let primary = kit.primary(&[]).unwrap();
    let (standby, fork) = (primary.standby(&[]).unwrap(), primary.standby(&[]).unwrap());
    standby.caught_up(&primary).unwrap();
    let ask = |nodes: &[&Postgres]| states(&nodes.iter().map(|n| n.url()).collect::<Vec<_>>());
    let (code, states, json) = ask(&[&primary, &standby]);
    assert_eq!((code, states), (Some(0), vec!["primary".to_owned(), "replica".to_owned()]), "{json:#}");
    assert!(json[0]["system"] == json[1]["system"] && json[1]["timeline"] == "1", "{json:#}");
    fork.promote().unwrap();
    primary.sql("create table after_it (n int)").unwrap();
    let (code, states, json) = ask(&[&primary, &fork]);
    assert_eq!((code, states), (Some(1), vec!["fork".to_owned(), "primary".to_owned()]), "{json:#}");
    assert_eq!(json[1]["history"][0]["timeline"], "1");
}

fn etcd() -> Cover {
    let trials = EtcdKit::new().map(|kit| {
        let node = Arc::new(kit.single().unwrap());
        let (url, kept, served) = (node.url(), Arc::clone(&node), Arc::clone(&node));
        vec![
            Trial::test("a_command_runs_under_a_lock_of_etcd", move || {
                excludes(&url);
                schedules(&url);
                let said =
                    run(&url, "lock", &["y", "-c", "echo $ETCD_LOCK_KEY $ETCD_LOCK_REV $FENCING_TOKEN"]);
                let text = String::from_utf8_lossy(&said.stdout).into_owned();
                let words: Vec<&str> = text.split_whitespace().collect();
                assert!(words.len() == 3 && words[0].starts_with("default/y/"), "as etcdctl has it: {text}");
                assert_eq!(words[1], words[2], "the token is the revision that proved the ownership");
                // A script of etcdctl and ours exclude each other.
                let inner = format!(
                    "{} lock --store '{url}' -n z -- true; echo ours $?",
                    env!("CARGO_BIN_EXE_mainstay")
                );
                let mut by_hand = kept.etcdctl();
                by_hand.args(["put", "default/by-hand/x", "a person"]).stdin(Stdio::null());
                assert!(finish(by_hand, PATIENCE).status.success());
                endless(&url);
                let mut etcdctl = kept.etcdctl();
                etcdctl.args(["lock", "default/z", "--", "sh", "-c", &inner]).stdin(Stdio::null());
                let theirs = finish(etcdctl, PATIENCE);
                let text = String::from_utf8_lossy(&theirs.stdout).into_owned();
                assert!(text.contains("ours 124"), "{text}");
                let bare = format!("{url}?names=bare");
                let inner = format!(
                    "{} lock --store '{bare}' -n z -- true; echo ours $?",
                    env!("CARGO_BIN_EXE_mainstay")
                );
                let mut etcdctl = kept.etcdctl();
                etcdctl.args(["lock", "z", "--", "sh", "-c", &inner]).stdin(Stdio::null());
                let theirs = finish(etcdctl, PATIENCE);
                let text = String::from_utf8_lossy(&theirs.stdout).into_owned();
                assert!(text.contains("ours 124"), "{text}");
                let said = run(&bare, "lock", &["z", "-c", "echo $ETCD_LOCK_KEY"]);
                let text = String::from_utf8_lossy(&said.stdout).into_owned();
                assert!(text.starts_with("z/"), "as `etcdctl lock z` has it: {text}");
                for (verb, words) in [
                    ("rwlock", &["--read", "r", "--", "true"][..]),
                    ("sem", &["--limit", "2", "s", "--", "true"]),
                    ("elect", &["e", "-c", "test -n \"$ETCD_LOCK_KEY\""]),
                ] {
                    let done = run(&url, verb, words);
                    assert!(done.status.success(), "{verb}: {}", String::from_utf8_lossy(&done.stderr));
                }
                Ok(())
            }),
            Trial::test("a_node_serves_the_locks_of_etcd", move || {
                serves(&served.url(), Restart::Keeps);
                Ok(())
            }),
            Trial::test("the_page_says_what_etcd_declares", move || {
                let config = EtcdConfig::builder(&node.url()).build().unwrap();
                on_a_runtime(async {
                    row("etcd", &EtcdLeases::open(config, &Runtime::system()).await.unwrap().guarantees());
                });
                Ok(())
            }),
        ]
    });
    Cover::new("etcd", TESTS, trials.unwrap_or_default())
}

fn nats() -> Cover {
    let trials = NatsKit::new().map(|kit| {
        let server = Arc::new(kit.server("").unwrap());
        let (url, kept, served) = (server.url(), Arc::clone(&server), Arc::clone(&server));
        vec![
            Trial::test("a_command_runs_under_a_lock_of_nats", move || {
                let _kept = kept;
                excludes(&url);
                schedules(&url);
                // Without their namespaces two applications meet on one name, in a bucket of their own.
                let bare = format!("{url}?names=bare&bucket=shared");
                let inner = format!(
                    "{} lock --store '{bare}' --namespace search -n z -- true; echo second $?",
                    env!("CARGO_BIN_EXE_mainstay")
                );
                let first = run(&bare, "lock", &["--namespace", "billing", "z", "-c", &inner]);
                let text = String::from_utf8_lossy(&first.stdout).into_owned();
                assert!(text.contains("second 124"), "{text}");
                Ok(())
            }),
            Trial::test("a_node_serves_the_locks_of_nats", move || {
                serves(&served.url(), Restart::Keeps);
                Ok(())
            }),
            Trial::test("the_page_says_what_nats_declares", move || {
                let config = NatsConfig::builder(&server.url()).build().unwrap();
                on_a_runtime(async {
                    let leases = NatsLeases::open(config, &Runtime::system()).await.unwrap();
                    row("NATS", &leases.guarantees());
                });
                Ok(())
            }),
        ]
    });
    Cover::new("nats-server", TESTS, trials.unwrap_or_default())
}

fn on_a_runtime(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
}

/// The row of the page is what the store declares.
fn row(name: &str, g: &Guarantees) {
    let fencing = match g.fencing {
        Fencing::Strict => "strict",
        Fencing::WhileStateSurvives => "while state survives",
        Fencing::None => "none",
    };
    let fair = if g.fair { "yes" } else { "no" };
    let row = format!("| {name} | {fencing} | {} | {} | {fair} |\n", g.clock, g.failover);
    assert!(PAGE.contains(&row), "the page does not have: {row}");
}

/// Waits for a condition, bounded.
fn until(what: &str, mut look: impl FnMut() -> bool) {
    let end = mainstay_clock::os_boot_now().saturating_add(PATIENCE);
    while !look() {
        assert!(mainstay_clock::os_boot_now() < end, "waited too long: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A lease lasts as long as every one of these stores allows, unless the words say how long.
fn mainstay(store: &str, verb: &str, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.args([verb, "--store", store]);
    if verb != "lease" && !words.contains(&"--ttl") {
        command.args(["--ttl", "30s"]);
    }
    command.args(words).env_clear().env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(store: &str, verb: &str, words: &[&str]) -> Output {
    finish(mainstay(store, verb, words), PATIENCE)
}

/// The key of the lock `job` is one that other clients have, on every one of `nodes`.
fn meets(store: &str, nodes: &[Redis], key: &str) {
    let all = |words: &[&str]| nodes.iter().map(|n| n.command(words).unwrap()).collect::<Vec<_>>();
    let same = |word: &str| vec![word.to_owned(); nodes.len()];
    assert_eq!(all(&["SET", key, "theirs", "NX", "PX", "60000"]), same("OK"), "{store}");
    let refused = run(store, "lock", &["-n", "job", "--", "true"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(124) && said.contains("another client"), "{store}: {said}");
    assert_eq!(all(&["DEL", key]), same("1"));
    let holder = Wrapper::holds(store, "job");
    // A majority is enough for us; the rest follows.
    until("it is on every server", || all(&["EXISTS", key]) == same("1"));
    assert_eq!(all(&["SET", key, "theirs", "NX", "PX", "60000"]), same(""), "{store}: ours holds it");
    let broken = run(store, "lease", &["break", "job", "--confirm", "job", "--reason", "tried"]);
    assert!(broken.status.success(), "{}", String::from_utf8_lossy(&broken.stderr));
    assert_eq!(holder.code(), Some(75));
}

/// What `psql` locks keeps a command out, and what a command holds keeps `psql` out.
fn sessions(kit: &PostgresKit) {
    let primary = kit.primary(&[]).unwrap();
    let store = format!("{}?sessions=raw:28319&names=bare", primary.url());
    let psql = |text: &str| primary.sql(text).unwrap().trim().to_owned();
    assert_eq!(psql("select pg_try_advisory_lock(28319)"), "t", "free, and free again when psql ends");
    let holder = Wrapper::holds(&store, "job");
    assert_eq!(psql("select pg_try_advisory_lock(28319)"), "f");
    // Another name with the same key.
    assert_eq!(run(&store, "lock", &["-n", "other", "--", "true"]).status.code(), Some(124));
    drop(holder);
    let next = run(&store, "lock", &["--wait", "60s", "job", "-c", "echo $FENCING_TOKEN"]);
    assert!(next.status.success(), "{}", String::from_utf8_lossy(&next.stderr));
    let refused = run(&store, "cron", &["x", "--every", "1s", "--", "true"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("keeps no records"), "{refused:?}");
    let rows = format!("{}?names=bare", primary.url());
    let refused = run(&rows, "lock", &["x", "--", "true"]);
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
}

/// One at a time, with a token that grows; shown, and taken away by its name.
fn excludes(store: &str) {
    let inner = format!(
        "{} lock --store '{store}' -n x -- true; echo second $?; {} lease --store '{store}' ls",
        env!("CARGO_BIN_EXE_mainstay"),
        env!("CARGO_BIN_EXE_mainstay"),
    );
    let held = run(store, "lock", &["--note", "nightly", "x", "-c", &inner]);
    let text = String::from_utf8_lossy(&held.stdout).into_owned();
    assert!(held.status.success(), "{}", String::from_utf8_lossy(&held.stderr));
    assert!(text.contains("second 124") && text.contains("nightly"), "{text}");
    let token = |output: &Output| -> u64 { String::from_utf8_lossy(&output.stdout).trim().parse().unwrap() };
    let first = run(store, "lock", &["-n", "x", "-c", "echo $FENCING_TOKEN"]);
    let second = run(store, "elect", &["x", "-c", "exit 7"]);
    assert_eq!(second.status.code(), Some(7), "{}", String::from_utf8_lossy(&second.stderr));
    let third = run(store, "lock", &["-n", "x", "-c", "echo $FENCING_TOKEN"]);
    assert!(token(&third) > token(&first), "free again at once, and outranked");
    let holder = Wrapper::holds(store, "x");
    let broken = run(store, "lease", &["break", "x", "--confirm", "x", "--reason", "tried"]);
    assert!(broken.status.success(), "{}", String::from_utf8_lossy(&broken.stderr));
    assert_eq!(holder.code(), Some(75), "the job of a broken lease is ended");
}

/// A wrapper or a scheduler; killed by its id when dropped.
struct Wrapper(Child);

impl Wrapper {
    /// One whose job runs under the lock and does not end.
    fn holds(store: &str, name: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        // It notices at its next renewal, after a third of the time.
        let words = ["--ttl", "30s", name, "-c", "echo up > up; exec sleep 1000"];
        let mut command = mainstay(store, "lock", &words);
        command.current_dir(place.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let holder = Self(command.spawn().unwrap());
        until("the job runs", || place.path().join("up").exists());
        holder
    }

    /// The code with which it ends by itself.
    fn code(mut self) -> Option<i32> {
        let mut ended = None;
        until("the holder ends", || {
            ended = self.0.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap().code()
    }
}

impl Drop for Wrapper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A lease that somebody made without an end: no number stands for that.
fn endless(store: &str) {
    let table = run(store, "lease", &["inspect", "by-hand"]);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(text.contains("by-hand") && text.contains("no expiry"), "{text}");
    assert!(!text.contains("18446744073709551615"), "{text}");
    let shown = run(store, "lease", &["inspect", "by-hand", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let holder = shown["holders"][0].as_object().unwrap();
    assert!(holder.contains_key("left_ms") && holder["left_ms"].is_null(), "{shown}");
}

/// Of two schedulers one runs each slot.
fn schedules(store: &str) {
    let place = tempfile::tempdir().unwrap();
    let line = "echo $MAINSTAY_CRON_SLOT $MAINSTAY_FENCING_TOKEN >> log";
    let words = ["report", "--every", "1s", "--ttl", "30s", "--grace", "1s", "-c", line];
    let start = || {
        let mut command = mainstay(store, "cron", &words);
        command.current_dir(place.path()).stdout(Stdio::null()).stderr(Stdio::null());
        Wrapper(command.spawn().unwrap())
    };
    let both = [start(), start()];
    let lines = || std::fs::read_to_string(place.path().join("log")).unwrap_or_default();
    until("three slots are run", || lines().lines().count() >= 3);
    drop(both);
    let text = lines();
    let ran: Vec<(&str, u64)> =
        text.lines().filter_map(|l| l.split_once(' ')).map(|(slot, t)| (slot, t.parse().unwrap())).collect();
    assert!(ran.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1), "a slot was run twice: {text}");
}
