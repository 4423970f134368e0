//! Commands under leases of real servers.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::Arc;

use mainstay_clock::Runtime;
use mainstay_nats::{NatsConfig, NatsLeases};
use mainstay_postgres::{PostgresConfig, PostgresLeases};
use mainstay_redis::{RedisLeases, RedisQuorum};
use mainstay_sim::servers::{self, Cover, Launch, NatsKit, PostgresKit, Server, Trial};
use mainstay_store::LeaseStore;
use mainstay_store::lease::{Fencing, Guarantees};

/// Tests per server.
const TESTS: usize = 2;
const PAGE: &str = include_str!("../../../../../docs/lock.md");

fn main() -> ExitCode {
    // Servers die with the thread that starts them: this one, which ends last.
    servers::run(vec![redis(), postgres(), nats()])
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
        let nodes: Vec<Server> = (0..3).map(|_| start(&program)).collect();
        let urls: Vec<String> = nodes.iter().map(|n| format!("redis://{}/", n.address())).collect();
        // Kept until the process ends.
        let nodes = Arc::new(nodes);
        let (one, all) = (urls[0].clone(), urls.join(","));
        let kept = Arc::clone(&nodes);
        vec![
            Trial::test("a_command_runs_under_a_lock_of_one_redis", move || {
                let _kept = kept;
                excludes(&one);
                Ok(())
            }),
            Trial::test("a_command_runs_under_a_lock_of_a_majority", move || {
                let _kept = nodes;
                excludes(&all);
                let rt = Runtime::system();
                on_a_runtime(async {
                    row("Redis", &RedisLeases::new(&urls[0], &rt).unwrap().guarantees());
                    row("Redis, a majority", &RedisQuorum::builder(&urls).build(&rt).unwrap().guarantees());
                });
                Ok(())
            }),
        ]
    });
    Cover::new("redis-server", TESTS, trials.unwrap_or_default())
}

fn postgres() -> Cover {
    let trials = PostgresKit::new().unwrap().map(|kit| {
        let primary = Arc::new(kit.primary(&[]).unwrap());
        let (url, kept) = (primary.url(), Arc::clone(&primary));
        vec![
            Trial::test("a_command_runs_under_a_lock_of_postgres", move || {
                let _kept = kept;
                excludes(&url);
                Ok(())
            }),
            Trial::test("the_page_says_what_postgres_declares", move || {
                let config = PostgresConfig::builder(&primary.url()).build().unwrap();
                on_a_runtime(async {
                    let leases = PostgresLeases::open(config, &Runtime::system()).await.unwrap();
                    row("PostgreSQL", &leases.guarantees());
                });
                Ok(())
            }),
        ]
    });
    Cover::new("postgres", TESTS, trials.unwrap_or_default())
}

fn nats() -> Cover {
    let trials = NatsKit::new().map(|kit| {
        let server = Arc::new(kit.server("").unwrap());
        let (url, kept) = (server.url(), Arc::clone(&server));
        vec![
            Trial::test("a_command_runs_under_a_lock_of_nats", move || {
                let _kept = kept;
                excludes(&url);
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

fn mainstay(store: &str, verb: &str, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.args([verb, "--store", store]).args(words).env_clear().env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(store: &str, verb: &str, words: &[&str]) -> Output {
    mainstay(store, verb, words).output().unwrap()
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
    let mut holder = mainstay(store, "lock", &["x", "-c", "echo up; exec sleep 1000"]).spawn().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut up).unwrap();
    let broken = run(store, "lease", &["break", "x", "--confirm", "x"]);
    assert!(broken.status.success(), "{}", String::from_utf8_lossy(&broken.stderr));
    assert_eq!(holder.wait().unwrap().code(), Some(75), "the job of a broken lease is ended");
}
