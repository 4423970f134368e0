//! Leases: ours and the bare client running the same scripts on the same servers, in turns.

mod bare;
mod handover;
mod measure;
mod nats;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mainstay_clock::Runtime;
use mainstay_redis::{RedisLeases, RedisQuorum};
use mainstay_sim::servers::{Launch, Server, find};
use mainstay_store::LeaseStore;

use crate::report::Section;
use crate::{Options, Suite};
use bare::{Bare, BareQuorum};
use measure::{Figures, Locks, Ours, turns};

pub(crate) const SUITE: Suite = Suite {
    name: "coordination",
    about: "Acquire and release of uncontended leases on loopback. The bare client sends the same scripts by digest over \
            one connection of the same driver and reads no answer but the token; over several servers it takes the \
            fastest majority and hears the rest later. Both take turns; medians of the turns. Then hand-overs on etcd between \
            two stores, from the call of release to the grant of the waiter in line.",
    run,
};

/// Hand-overs of a full run.
const HAND_OVERS: usize = 400;
/// Callers of one process at once.
const CALLERS: usize = 64;
const TTL: Duration = Duration::from_secs(10);

fn redis() -> anyhow::Result<Server> {
    let program = find("redis-server").context("redis-server is not installed")?;
    let server = Server::start(&program, |setup| {
        let (ip, port) = (setup.address.ip().to_string(), setup.address.port().to_string());
        Launch::new().args(["--bind", &ip, "--port", &port, "--save", "", "--daemonize", "no"])
    })?;
    Ok(server)
}

fn url(server: &Server) -> String {
    format!("redis://{}/", server.address())
}

fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let servers: Vec<Server> = (0..5).map(|_| redis()).collect::<anyhow::Result<_>>()?;
    let urls: Vec<String> = servers.iter().map(url).collect();
    let each = Duration::from_secs_f64(options.seconds / 5.0);
    let turns_of = options.repeat * 2 + 1;
    let runtime = tokio::runtime::Runtime::new()?;
    let mut rows = Vec::new();
    let mut put = |what: &str, ours: Figures, bare: Figures| {
        for (who, f) in [("ours", ours), ("bare client", bare)] {
            let cells = [format!("{:.1}", f.p50_us), format!("{:.1}", f.p99_us), format!("{:.0}", f.pairs)];
            rows.push([what.to_owned(), who.to_owned()].into_iter().chain(cells).collect::<Vec<_>>());
        }
    };
    let rt = Runtime::system();
    let one = RedisLeases::new(&urls[0], &rt)?;
    let bare = runtime.block_on(Bare::connect(&urls[0]))?;
    let mut single = Vec::new();
    for callers in [1, CALLERS] {
        let ours = Arc::new(Ours(Arc::new(one.clone()) as Arc<dyn LeaseStore>)) as Arc<dyn Locks>;
        let other = Arc::new(bare.clone()) as Arc<dyn Locks>;
        let (ours, other) = runtime.block_on(turns(&ours, &other, callers, each, turns_of))?;
        put(&format!("one server, {callers} callers"), ours, other);
        single.push((ours, other));
    }
    let mut majorities = Vec::new();
    for (count, hung) in [(3, false), (5, false), (3, true)] {
        let store = RedisQuorum::builder(&urls[..count]).trust_restarts().build(&rt)?;
        let ours = Arc::new(Ours(Arc::new(store) as Arc<dyn LeaseStore>)) as Arc<dyn Locks>;
        let other = runtime.block_on(BareQuorum::connect(&urls[..count]))?;
        let other = Arc::new(other) as Arc<dyn Locks>;
        // Connected before one of them hangs.
        runtime.block_on(turns(&ours, &other, 1, Duration::from_millis(50), 1))?;
        if hung {
            servers[2].pause()?;
        }
        let measured = runtime.block_on(turns(&ours, &other, 1, each, turns_of));
        if hung {
            servers[2].resume()?;
        }
        let (ours, other) = measured?;
        let what = format!("{count} servers{}, 1 caller", if hung { ", one hung" } else { "" });
        put(&what, ours, other);
        majorities.push((what, ours, other));
    }
    section.table(&["", "client", "acquire p50, us", "p99, us", "pairs per second"], &rows);
    gates(section, &single, &majorities);
    handover::etcd(each, section)?;
    nats::run(&runtime, HAND_OVERS.min(options.repeat * HAND_OVERS / 2 + 20), section)
}

fn gates(section: &mut Section, single: &[(Figures, Figures)], majorities: &[(String, Figures, Figures)]) {
    let (one, many) = (&single[0], &single[1]);
    let ratio = one.0.p50_us / one.1.p50_us;
    section.gate(
        "acquire p50, one server",
        "<= 1.10 x the bare client",
        format!("{ratio:.2} x"),
        ratio <= 1.1,
    );
    let ratio = one.0.pairs / one.1.pairs;
    section.gate("pairs/s, one server", ">= 0.90 x the bare client", format!("{ratio:.2} x"), ratio >= 0.9);
    let ratio = many.0.pairs / many.1.pairs;
    section.gate("pairs/s, 64 callers", ">= 1.20 x the bare client", format!("{ratio:.2} x"), ratio >= 1.2);
    for (what, ours, bare) in majorities {
        let ratio = ours.p50_us / bare.p50_us;
        section.gate(
            &format!("acquire p50, {what}"),
            "<= 1.10 x the bare majority",
            format!("{ratio:.2} x"),
            ratio <= 1.1,
        );
    }
}
