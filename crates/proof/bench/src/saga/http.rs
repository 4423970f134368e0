//! SG-T4: the real binary over HTTP, with participants in memory, in the same run.
//!
//! Client and participants speak HTTP by hand: what they cost is not what is measured.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use mainstay_clock::Runtime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{fresh, order, rate};
use crate::Options;
use crate::child::{self, Program};
use crate::load::{self, Figures, Order};
use crate::piece;
use crate::report::Section;

/// One message: its head and its body.
pub(crate) struct Message {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

/// Reads messages with a `content-length`.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(4_096) })
    }

    /// The next message; `None` at the end of the connection.
    pub(crate) async fn read(&mut self) -> std::io::Result<Option<Message>> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        let length = head
            .lines()
            .filter_map(|l| l.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, n)| n.trim().parse().ok())
            .unwrap_or(0);
        while self.buffer.len() < end + length {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
        let body = self.buffer[end..end + length].to_vec();
        self.buffer.drain(..end + length);
        Ok(Some(Message { head, body }))
    }
}

/// Answers every step with an output; `ship` says no when `fails`.
async fn participant(listener: TcpListener, rt: Runtime, fails: bool) {
    while let Ok((stream, _)) = listener.accept().await {
        rt.spawn("participant", async move {
            let Ok(mut wire) = Wire::new(stream) else { return };
            while let Ok(Some(request)) = wire.read().await {
                let no = fails && request.head.starts_with("POST /ship ");
                let answer = if no {
                    "HTTP/1.1 409 Conflict\r\ncontent-type: application/problem+json\r\ncontent-length: 18\r\n\r\n{\"effect\": \"none\"}"
                } else {
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 7\r\n\r\n{\"n\":1}"
                };
                if wire.stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// A node under load; killed when dropped.
pub(crate) struct Node {
    child: Child,
    pub(crate) address: String,
}

impl Node {
    fn start(program: &Path, dir: &Path, origin: &str) -> anyhow::Result<Self> {
        let definitions = dir.join("definitions");
        std::fs::create_dir_all(&definitions)?;
        let mut text = "name = \"order\"\nversion = 1\ndeadline = \"600s\"\n".to_owned();
        for (name, after) in [("reserve", ""), ("charge", "\"reserve\""), ("ship", "\"charge\"")] {
            text.push_str(&format!(
                "[[steps]]\nname = \"{name}\"\nafter = [{after}]\naction = \"{origin}/{name}\"\nundo = \"{origin}/{name}/undo\"\n"
            ));
        }
        std::fs::write(definitions.join("order.toml"), text)?;
        Self::serve(program, dir, |command| {
            command.args(["--allow-participant", origin]).arg("--definitions").arg(&definitions);
        })
    }

    /// With the arguments that `more` adds.
    pub(crate) fn serve(program: &Path, dir: &Path, more: impl FnOnce(&mut Command)) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(dir.join("data"));
        more(&mut command);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("{} cannot be started", program.display()))?;
        let mut lines = BufReader::new(child.stderr.take().context("no output")?).lines();
        let mut said = String::new();
        for line in lines.by_ref() {
            let line = line?;
            if let Some(address) = line.strip_prefix("mainstay: listening on http://") {
                let address = address.to_owned();
                // Whatever it says later must not fill its pipe.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self { child, address });
            }
            said.push_str(&line);
        }
        // It ended by itself.
        child.wait()?;
        bail!("the node ended before it listened: {said}")
    }

    /// Resident memory, at most.
    fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let peak =
            status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        peak.unwrap_or(0)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.child.kill().and_then(|()| self.child.wait()).is_err() {
            eprintln!("the node {} may still run", self.child.id());
        }
    }
}

/// Starts one saga and waits for its end.
async fn saga(wire: &mut Wire, address: &str, n: u64, wanted: &str) -> std::io::Result<bool> {
    let body = format!("{{\"definition\":\"order\",\"id\":\"{n}\",\"input\":{{\"n\":{n}}}}}");
    let start = format!(
        "POST /v1/sagas HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nidempotency-key: \"{n}\"\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    wire.stream.write_all(start.as_bytes()).await?;
    let Some(accepted) = wire.read().await? else { return Ok(false) };
    if !accepted.head.starts_with("HTTP/1.1 202") {
        return Ok(false);
    }
    let reply: serde_json::Value = serde_json::from_slice(&accepted.body)?;
    let place = reply["location"].as_str().unwrap_or_default();
    let wait = format!("GET {place}?wait=30s HTTP/1.1\r\nhost: {address}\r\n\r\n");
    wire.stream.write_all(wait.as_bytes()).await?;
    let Some(ended) = wire.read().await? else { return Ok(false) };
    let saga: serde_json::Value = serde_json::from_slice(&ended.body)?;
    Ok(saga["status"] == wanted)
}

/// The load, with its participants and its node. The figures of memory are the node's.
pub(crate) fn child(order: &Order) -> anyhow::Result<Figures> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let origin = format!("http://{}", listener.local_addr()?);
        let rt = Runtime::system();
        rt.spawn("participants", participant(listener, rt.clone(), order.fails()));
        let program = PathBuf::from(&order.server);
        let node = Node::start(&program, Path::new(&order.dir), &origin)?;
        let wanted = if order.fails() { "compensated" } else { "completed" };
        let address: Arc<str> = node.address.as_str().into();
        let idle: Arc<Mutex<Vec<Wire>>> = Arc::default();
        let figures = load::closed_loop(order, move |n| {
            let (address, idle) = (Arc::clone(&address), Arc::clone(&idle));
            async move {
                let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let wire = match kept {
                    Some(wire) => Ok(wire),
                    None => TcpStream::connect(&*address).await.and_then(Wire::new),
                };
                let Ok(mut wire) = wire else { return false };
                let fine = saga(&mut wire, &address, n, wanted).await.unwrap_or(false);
                if fine {
                    idle.lock().unwrap_or_else(PoisonError::into_inner).push(wire);
                }
                fine
            }
        });
        let mut figures = figures.await;
        (figures.rss_kib, figures.peak_kib) = (node.peak_kib(), node.peak_kib());
        Ok(figures)
    })
}

/// One point: the best of the rounds, as its program said it.
fn point(options: &Options, workload: &str, concurrency: usize, on: &Path) -> anyhow::Result<String> {
    let server = options.server.as_ref().context("no server was built")?;
    let mut best: Option<(f64, String)> = None;
    for _ in 0..options.repeat {
        let dir = fresh(on)?;
        let order = Order {
            server: server.display().to_string(),
            ..order(workload, concurrency, options.seconds, dir.path())
        };
        let line = super::block::quiet(options, &Program::own("http")?, &order)?;
        let found = rate(&child::read(&line)?);
        if best.as_ref().is_none_or(|(b, _)| *b < found) {
            best = Some((found, line));
        }
    }
    best.map(|(_, line)| line).context("no round")
}

pub(super) fn run(options: &Options, section: &mut Section, times: &mut Vec<String>) -> anyhow::Result<()> {
    if options.server.is_none() {
        section.note("Not measured: the server over HTTP, which was not built.");
        return Ok(());
    }
    let home = std::env::current_dir().context("no working folder")?.join("target");
    let on = if options.smoke { PathBuf::from("/dev/shm") } else { home };
    let (mut rows, mut ok) = (Vec::new(), Vec::new());
    for (workload, concurrency) in [("ok", 1), ("ok", 32), ("ok", 64), ("undo", 64)] {
        let name = format!("http-{workload}-{concurrency}");
        let run = || point(options, workload, concurrency, &on);
        let Some(piece) = piece::measure(options, &name, run)? else { continue };
        times.push(piece.when);
        let found = child::read(&piece.text)?;
        rows.push(vec![
            workload.to_owned(),
            concurrency.to_string(),
            format!("{:.0}", rate(&found)),
            format!("{:.2}", found.p50 / 1e3),
            format!("{:.2}", found.p99 / 1e3),
            found.failed.to_string(),
            (found.peak_kib / 1024).to_string(),
        ]);
        if workload == "ok" {
            ok.push((concurrency, found));
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    section.note(
        "### The server, with HTTP participants\n\n`mainstay serve` on disk; the client starts a saga and waits for its end (two \
         requests), the three participants answer from memory. Client, participants and node share the cores.",
    );
    section.table(&["workload", "c", "sagas/s", "p50", "p99", "failed", "RSS MiB of the node"], &rows);
    let of = |c: usize| ok.iter().find(|(at, _)| *at == c).map(|(_, f)| f);
    if let (Some(one), Some(many)) = (of(1), of(64)) {
        let text = format!("{:.0}/s at c=64, p50 {:.2} ms at c=1", rate(many), one.p50 / 1e3);
        let met = rate(many) >= 2_000.0 && one.p50 <= 3_000.0;
        section.gate("SG-T4", "over HTTP: >= 2,000/s at c=64, p50 <= 3 ms at c=1", text, met);
    }
    Ok(())
}
