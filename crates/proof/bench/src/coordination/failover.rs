//! A holder is killed: how long until the next one holds.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use mainstay_clock::{Clock as _, Deadline, Instant, SystemClock};
use mainstay_store::lease::{AcquireRequest, Acquired, Renewed};
use tokio::sync::mpsc;

use super::places::{NAMESPACE, Place, SERVER, open};
use super::served::Client;
use crate::child::Program;
use crate::load::Histogram;
use crate::report::Section;

const NAME: &str = "failover";
/// Longer than any ttl here.
const PATIENCE: Duration = Duration::from_secs(30);
/// A renewal of a lease that lives with its connection.
const SIGN_OF_LIFE: Duration = Duration::from_millis(100);

/// What is asked of a store.
struct Case {
    kind: &'static str,
    /// As it is asked for.
    ttl: Duration,
    kills: usize,
    /// Most of p99 after the last renewal.
    most: Duration,
    wanted: &'static str,
}

const fn case(kind: &'static str, ttl: u64, kills: usize, most: u64, wanted: &'static str) -> Case {
    let (ttl, most) = (Duration::from_millis(ttl), Duration::from_millis(most));
    Case { kind, ttl, kills, most, wanted }
}

/// So short and so few that all of it takes two minutes. A bound lease lasts, so only the connection frees it.
const CASES: [Case; 7] = [
    case("redis", 500, 20, 520, "<= ttl + 20 ms"),
    case("sqlite", 500, 20, 520, "<= ttl + 20 ms"),
    case("postgres", 500, 20, 520, "<= ttl + 20 ms"),
    case("advisory", 60_000, 40, 50, "< 50 ms"),
    case(SERVER, 3_600_000, 40, 50, "< 50 ms"),
    case("etcd", 2_000, 8, 2_600, "<= ttl in whole seconds + 600 ms"),
    case("nats", 1_000, 12, 1_300, "<= ttl in whole seconds + 300 ms"),
];

/// The other side: holds a lease, renews it, and says each time when it asked.
pub(crate) fn child(mut words: impl Iterator<Item = String>) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let mut word = |what: &str| words.next().with_context(|| format!("a holder needs {what}"));
    let (kind, url, op) = (word("a store")?, word("an address")?, word("an op id")?);
    let ttl = Duration::from_millis(word("a ttl")?.parse()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if kind == SERVER { hold_bound(&url, &op).await } else { hold(&kind, &url, &op, ttl).await }
    })
}

fn say(at: Instant) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", at.as_nanos())?;
    Ok(out.flush()?)
}

async fn hold(kind: &str, url: &str, op: &str, ttl: Duration) -> anyhow::Result<()> {
    let (clock, store) = (SystemClock::new(), open(kind, url).await?);
    let sent = clock.now();
    let request = AcquireRequest::exclusive(&format!("{NAMESPACE}/{NAME}"), op, op, ttl);
    match store.acquire(request).await? {
        Acquired::Granted(_) => say(sent)?,
        other => bail!("not granted: {other:?}"),
    }
    loop {
        clock.sleep((ttl / 3).min(SIGN_OF_LIFE)).await;
        let sent = clock.now();
        match store.renew(op).await? {
            Renewed::Renewed(_) => say(sent)?,
            ended => bail!("{ended:?} before it was killed"),
        }
    }
}

async fn hold_bound(address: &str, owner: &str) -> anyhow::Result<()> {
    let clock = SystemClock::new();
    let (mut bound, mut other) = (Client::connect(address).await?, Client::connect(address).await?);
    say(bound.bind(NAME, owner).await?)?;
    let token = other.token(NAME).await?;
    loop {
        clock.sleep(SIGN_OF_LIFE).await;
        let sent = clock.now();
        other.renew(NAME, &token).await?;
        say(sent)?;
    }
}

/// The process that is killed; at the latest when this is dropped.
struct Holder {
    child: Child,
    said: mpsc::UnboundedReceiver<Instant>,
}

impl Holder {
    fn start(place: &Place, op: &str, ttl: Duration) -> anyhow::Result<Self> {
        let mut command = Program::own("hold")?.bare();
        command.args([place.kind, place.url.as_str(), op]).arg(ttl.as_millis().to_string());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let (tell, said) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Some(at) = line.parse().ok().map(Instant::from_nanos) else { return };
                if tell.send(at).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, said })
    }

    async fn renews(&mut self) -> anyhow::Result<Instant> {
        self.said.recv().await.context("the holder ended before it was killed")
    }

    /// SIGKILL, and what it said last.
    async fn kill(mut self, mut last: Instant) -> anyhow::Result<Instant> {
        self.child.kill()?;
        self.child.wait()?;
        while let Some(at) = self.said.recv().await {
            last = at;
        }
        Ok(last)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // One that was killed is gone already.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Waits for the lock; when it was held. It is given back after that.
async fn next(place: &Place, ttl: Duration) -> anyhow::Result<Instant> {
    let clock = SystemClock::new();
    if place.kind == SERVER {
        let mut client = Client::connect(&place.url).await?;
        let token = client.acquire(NAME, "next").await?;
        let at = clock.now();
        client.release(NAME, &token).await?;
        return Ok(at);
    }
    let lock = place.lock(NAME, "next", ttl).await?;
    let guard = lock.acquire(Deadline::after(clock.now(), ttl.saturating_add(PATIENCE))).await?;
    let at = clock.now();
    guard.release().await?;
    Ok(at)
}

async fn kills(place: &Place, case: &Case, count: usize) -> anyhow::Result<Histogram> {
    let mut times = Histogram::new();
    for round in 0..count {
        let mut holder = Holder::start(place, &format!("holder-{round:04}"), case.ttl)?;
        holder.renews().await?;
        let killed = async {
            // The next one stands in line by then.
            let mut last = holder.renews().await?;
            for _ in 0..2 {
                last = holder.renews().await?;
            }
            holder.kill(last).await
        };
        let (at, last) = tokio::try_join!(next(place, case.ttl), killed)?;
        ensure!(at >= last, "two held it at once");
        times.add(at.saturating_duration_since(last));
    }
    Ok(times)
}

/// Kills holders everywhere; once each in a smoke run.
pub(super) fn run(
    runtime: &tokio::runtime::Runtime,
    places: &[Place],
    smoke: bool,
    section: &mut Section,
) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut goals = Vec::new();
    for place in places {
        let Some(case) = CASES.iter().find(|c| c.kind == place.kind) else { continue };
        let times = runtime
            .block_on(kills(place, case, if smoke { 1 } else { case.kills }))
            .with_context(|| format!("a killed holder on {}", place.name))?;
        let (p50, p99) = (times.micros(0.5) / 1_000.0, times.micros(0.99) / 1_000.0);
        let ttl = if case.most < case.ttl { "connection".to_owned() } else { format!("{:?}", case.ttl) };
        let figures = [times.count().to_string(), format!("{p50:.1}"), format!("{p99:.1}")];
        rows.push([place.name.to_owned(), ttl].into_iter().chain(figures).collect::<Vec<_>>());
        goals.push((place.name, case, p99));
    }
    section.note(
        "A holder is killed with SIGKILL right after a renewal; from the call of that renewal to the grant of the one \
         who waits.",
    );
    section.table(&["store", "bound to", "kills", "p50, ms", "p99, ms"], &rows);
    for (name, case, p99) in goals {
        let met = p99 <= case.most.as_secs_f64() * 1_000.0;
        section.gate(&format!("killed holder, p99, {name}"), case.wanted, format!("{p99:.0} ms"), met);
    }
    Ok(())
}
