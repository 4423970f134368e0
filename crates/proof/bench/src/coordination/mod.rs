//! Leases: ours, the bare client running the same scripts and rslock on the same servers, in turns; then how leases
//! pass on.

mod bare;
pub(crate) mod failover;
mod handover;
mod measure;
mod places;
mod served;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mainstay_clock::Runtime;
use mainstay_redis::{RedisLeases, RedisQuorum};
use mainstay_sim::servers::{Launch, Server, find};
use mainstay_store::LeaseStore;

use crate::child::Program;
use crate::load::Order;
use crate::report::Section;
use crate::{Options, Suite};
use bare::{Bare, BareQuorum};
use measure::{Figures, Locks, Ours, median, turn};

pub(crate) const SUITE: Suite = Suite {
    name: "coordination",
    about: "Acquire and release of uncontended leases on loopback. The bare client sends the same scripts by digest over \
            one connection of the same driver and reads no answer but the token; over several servers it takes the \
            fastest majority and hears the rest later. rslock has locks without tokens, and runs as a program of its \
            own. All take turns; medians of the turns. Then hand-overs between two processes' stores, from the call of \
            release to the grant of the one who waits, and holders that are killed.",
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

/// Who is measured: ours, the bare client, and rslock where it was built.
struct Field {
    ours: Arc<dyn Locks>,
    bare: Arc<dyn Locks>,
    rslock: Option<(Program, Order)>,
}

impl Field {
    /// Turns of each, and the median of each.
    fn turns(
        &self,
        runtime: &tokio::runtime::Runtime,
        (callers, each, count): (usize, Duration, usize),
    ) -> anyhow::Result<[Option<Figures>; 3]> {
        let (mut of_ours, mut of_bare, mut of_rslock) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..count {
            of_ours.push(runtime.block_on(turn(&self.ours, callers, each, 2 * round))?);
            of_bare.push(runtime.block_on(turn(&self.bare, callers, each, 2 * round + 1))?);
            if let Some((program, order)) = &self.rslock {
                let order = Order { concurrency: callers, seconds: each.as_secs_f64(), ..order.clone() };
                of_rslock.push(Figures::from(&program.run(&order)?));
            }
        }
        Ok([median(&of_ours), median(&of_bare), median(&of_rslock)])
    }
}

/// Figures of ours and of the bare client in one situation.
struct Found {
    what: String,
    ours: Figures,
    bare: Figures,
}

fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    clients(options, &runtime, section)?;
    let dir = tempfile::tempdir()?;
    let places = places::all(dir.path(), options.server.as_deref(), section)?;
    let each = Duration::from_secs_f64(options.seconds / 5.0);
    let rounds = HAND_OVERS.min(options.repeat * HAND_OVERS / 2 + 20);
    let rounds = if options.smoke { 20 } else { rounds };
    handover::run(&runtime, &places, (each, rounds), section)?;
    failover::run(&runtime, &places, options.smoke, section)
}

/// Pairs of acquire and release on one server and on majorities.
fn clients(
    options: &Options,
    runtime: &tokio::runtime::Runtime,
    section: &mut Section,
) -> anyhow::Result<()> {
    let servers: Vec<Server> = (0..5).map(|_| redis()).collect::<anyhow::Result<_>>()?;
    let urls: Vec<String> = servers.iter().map(url).collect();
    let each = Duration::from_secs_f64(options.seconds / 5.0);
    let count = options.repeat * 2 + 1;
    let rt = Runtime::system();
    let rival = Program::rival(options.rivals.as_deref(), "rslock");
    if rival.is_none() {
        section.note("Not measured: rslock, whose program was not built.");
    }
    let rslock = |servers: usize| {
        let order = Order { server: urls[..servers].join(","), ..Order::read(std::iter::empty()).ok()? };
        Some((rival.clone()?, order))
    };
    let mut rows = Vec::new();
    let mut found = Vec::new();
    let mut put = |what: String, figures: [Option<Figures>; 3]| {
        for (who, f) in ["ours", "bare client", "rslock"].iter().zip(figures) {
            let Some(f) = f else { continue };
            let cells = [format!("{:.1}", f.p50_us), format!("{:.1}", f.p99_us), format!("{:.0}", f.pairs)];
            rows.push([what.clone(), (*who).to_owned()].into_iter().chain(cells).collect::<Vec<_>>());
        }
        if let [Some(ours), Some(bare), _] = figures {
            found.push(Found { what, ours, bare });
        }
    };
    let one = Field {
        ours: Arc::new(Ours(Arc::new(RedisLeases::new(&urls[0], &rt)?) as Arc<dyn LeaseStore>)),
        bare: Arc::new(runtime.block_on(Bare::connect(&urls[0]))?),
        rslock: rslock(1),
    };
    for callers in [1, CALLERS] {
        put(format!("one server, {callers} callers"), one.turns(runtime, (callers, each, count))?);
    }
    for (count_of, hung) in [(3, false), (5, false), (3, true)] {
        let store = RedisQuorum::builder(&urls[..count_of]).trust_restarts().build(&rt)?;
        let field = Field {
            ours: Arc::new(Ours(Arc::new(store) as Arc<dyn LeaseStore>)),
            bare: Arc::new(runtime.block_on(BareQuorum::connect(&urls[..count_of]))?),
            // Its program would have to connect to the hung one.
            rslock: rslock(count_of).filter(|_| !hung),
        };
        // Connected before one of them hangs.
        field.turns(runtime, (1, Duration::from_millis(50), 1))?;
        if hung {
            servers[2].pause()?;
        }
        let measured = field.turns(runtime, (1, each, count));
        if hung {
            servers[2].resume()?;
        }
        put(format!("{count_of} servers{}, 1 caller", if hung { ", one hung" } else { "" }), measured?);
    }
    section.table(&["", "client", "acquire p50, us", "p99, us", "pairs per second"], &rows);
    gates(section, &found);
    Ok(())
}

fn gates(section: &mut Section, found: &[Found]) {
    let mut gate = |id: &str, wanted: &str, ratio: f64, met: bool| {
        section.gate(id, wanted, format!("{ratio:.2} x"), met);
    };
    if let [one, many, ..] = found {
        let ratio = one.ours.p50_us / one.bare.p50_us;
        gate("acquire p50, one server", "<= 1.10 x the bare client", ratio, ratio <= 1.1);
        let ratio = one.ours.pairs / one.bare.pairs;
        gate("pairs/s, one server", ">= 0.90 x the bare client", ratio, ratio >= 0.9);
        let ratio = many.ours.pairs / many.bare.pairs;
        gate("pairs/s, 64 callers", ">= 1.20 x the bare client", ratio, ratio >= 1.2);
    }
    for Found { what, ours, bare } in found.iter().skip(2) {
        let ratio = ours.p50_us / bare.p50_us;
        gate(&format!("acquire p50, {what}"), "<= 1.10 x the bare majority", ratio, ratio <= 1.1);
    }
}
