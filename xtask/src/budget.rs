//! What the project may cost: dependencies, size, start, memory, pages, and the time of whole runs. Measured, printed,
//! refused when over.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::bench::target;
use crate::{cargo, run, runs};

/// Starts measured; the slowest counts.
const STARTS: usize = 20;
/// Longest wait for a node, and for its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// One line of the table.
pub(crate) struct Line {
    pub(crate) what: String,
    pub(crate) found: f64,
    pub(crate) limit: f64,
    pub(crate) unit: &'static str,
}

/// Measures everything; an error names what is over its limit.
pub(crate) fn budget() -> anyhow::Result<()> {
    // Apart: built together, the node would have what tests of the bench's crates ask for.
    run(cargo().args(["build", "--release", "-p", "mainstay-bench"]))?;
    run(cargo().args(["build", "--release", "-p", "mainstay-server"]))?;
    let binary = target().join("release/mainstay");
    let mut lines = vec![
        line("dependencies of the facade by default", dependencies("mainstay")?.len(), 40.0, "crates"),
        line("dependencies of the server", dependencies("mainstay-server")?.len(), 300.0, "crates"),
        line("release trees with tokio's `test-util`", test_util()?, 0.0, "trees"),
        Line {
            what: "stripped release binary".to_owned(),
            found: std::fs::metadata(&binary)?.len() as f64 / (1024.0 * 1024.0),
            limit: 30.0,
            unit: "MiB",
        },
    ];
    lines.extend(help(&binary)?);
    lines.extend(node(&binary)?);
    lines.extend(runs::runs(&binary, &target().join("release/mainstay-bench"))?);
    let mut over = Vec::new();
    println!("{:<52} {:>10} {:>10}", "", "found", "limit");
    for l in &lines {
        let verdict = if l.found > l.limit { "OVER" } else { "met" };
        println!("{:<52} {:>10.1} {:>10.1} {:<6} {verdict}", l.what, l.found, l.limit, l.unit);
        if l.found > l.limit {
            over.push(l.what.as_str());
        }
    }
    ensure!(over.is_empty(), "over the budget: {}", over.join(", "));
    Ok(())
}

fn line(what: &str, found: usize, limit: f64, unit: &'static str) -> Line {
    Line { what: what.to_owned(), found: found as f64, limit, unit }
}

fn tree(package: &str, edges: &str) -> anyhow::Result<String> {
    let mut command = cargo();
    command.args(["tree", "--locked", "-p", package, "-e", edges, "--prefix", "none"]);
    let output = command.output().context("cargo tree cannot be started")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Foreign crates in the normal tree of a package.
fn dependencies(package: &str) -> anyhow::Result<BTreeSet<String>> {
    let text = tree(package, "normal")?;
    let foreign = text.lines().filter(|l| !l.contains("(/") && !l.is_empty());
    Ok(foreign.map(|l| l.trim_end_matches(" (*)").to_owned()).collect())
}

/// How many of the shipped trees carry tokio's clock for tests.
fn test_util() -> anyhow::Result<usize> {
    let mut found = 0;
    for package in ["mainstay", "mainstay-server"] {
        found += usize::from(tree(package, "normal,features")?.contains("tokio feature \"test-util\""));
    }
    Ok(found)
}

#[allow(clippy::disallowed_methods, reason = "developer commands know no clock of ours")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[allow(clippy::disallowed_methods, reason = "developer commands know no clock of ours")]
fn pause(d: Duration) {
    std::thread::sleep(d);
}

/// Milliseconds.
pub(crate) fn since(began: Instant) -> f64 {
    now().duration_since(began).as_secs_f64() * 1_000.0
}

/// The median time of `--help`, with and without a subcommand.
fn help(binary: &Path) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for words in [&["--help"][..], &["serve", "--help"], &["saga", "run", "--help"]] {
        let mut times = Vec::new();
        for _ in 0..STARTS {
            let began = now();
            let status = Command::new(binary).args(words).env_clear().stdout(Stdio::null()).status()?;
            ensure!(status.success(), "{words:?}: {status}");
            times.push(since(began));
        }
        times.sort_by(f64::total_cmp);
        let what = format!("`mainstay {}`, median", words.join(" "));
        lines.push(Line { what, found: times[STARTS / 2], limit: 10.0, unit: "ms" });
    }
    Ok(lines)
}

/// A node, killed when dropped.
pub(crate) struct Node {
    child: Child,
    address: String,
}

impl Node {
    /// Waits until it can be used.
    pub(crate) fn ready(binary: &Path, data: &Path) -> anyhow::Result<Self> {
        let began = now();
        let node = Self::start(binary, data)?;
        while node.get("/readyz").map(|(status, ..)| status).ok() != Some(200) {
            ensure!(since(began) < PATIENCE.as_millis() as f64, "the node does not become ready");
        }
        Ok(node)
    }

    fn start(binary: &Path, data: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(binary);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("the node cannot be started")?;
        let mut lines = BufReader::new(child.stderr.take().context("no output")?).lines();
        for line in lines.by_ref() {
            if let Some(address) = line?.strip_prefix("mainstay: listening on http://") {
                let address = address.to_owned();
                // Whatever it says later must not fill its pipe.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self { child, address });
            }
        }
        child.wait()?;
        bail!("the node ended before it listened")
    }

    /// Status and body of a GET.
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<(u16, String, Vec<u8>)> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let host = &self.address;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: {host}\r\naccept: text/html\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context("no head")?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split_whitespace().nth(1).and_then(|s| s.parse().ok()).context("no status")?;
        Ok((status, head, answer.split_off(end + 4)))
    }

    fn resident_mib(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.split_whitespace().next().context("no number")?.parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.child.kill().and_then(|()| self.child.wait()).is_err() {
            eprintln!("the node {} may still run", self.child.id());
        }
    }
}

/// An empty folder to measure in.
pub(crate) fn home() -> anyhow::Result<PathBuf> {
    let home = target().join("budget");
    if home.exists() {
        std::fs::remove_dir_all(&home)?;
    }
    std::fs::create_dir_all(&home)?;
    Ok(home)
}

/// Starts, memory at rest, the empty folder and the console's page.
fn node(binary: &Path) -> anyhow::Result<Vec<Line>> {
    let home = home()?;
    let mut slowest = 0_f64;
    for i in 0..STARTS {
        let began = now();
        let _node = Node::ready(binary, &home.join(i.to_string()))?;
        slowest = slowest.max(since(began));
    }
    let data = home.join("rest");
    let node = Node::start(binary, &data)?;
    pause(Duration::from_secs(3));
    let mut lines = vec![
        Line { what: "start to /readyz, slowest of 20".to_owned(), found: slowest, limit: 100.0, unit: "ms" },
        Line {
            what: "resident at rest, after 3 s".to_owned(),
            found: node.resident_mib()?,
            limit: 25.0,
            unit: "MiB",
        },
        Line {
            what: "empty data folder".to_owned(),
            found: folder(&data)? as f64 / 1024.0,
            limit: 1024.0,
            unit: "KiB",
        },
    ];
    match page(&node)? {
        Some(bytes) => lines.push(Line {
            what: "console page with its files, gzip".to_owned(),
            found: bytes as f64 / 1024.0,
            limit: 60.0,
            unit: "KiB",
        }),
        None => println!("NOT COVERED: this binary has no console"),
    }
    drop(node);
    std::fs::remove_dir_all(&home)?;
    Ok(lines)
}

fn folder(dir: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let path: PathBuf = entry?.path();
        bytes += if path.is_dir() { folder(&path)? } else { std::fs::metadata(&path)?.len() };
    }
    Ok(bytes)
}

/// Compressed bytes of the first console page and everything it loads; `None` without a console.
fn page(node: &Node) -> anyhow::Result<Option<usize>> {
    const PAGE: &str = "/console/now";
    let (status, _, html) = node.get(PAGE)?;
    if status == 404 {
        return Ok(None);
    }
    ensure!(status == 200, "{PAGE} answers {status}");
    let text = String::from_utf8_lossy(&html).into_owned();
    let mut bytes = gzip(&html)?;
    for address in loaded(&text) {
        let path = if address.starts_with('/') { address.clone() } else { format!("/console/{address}") };
        let (status, _, body) = node.get(&path)?;
        ensure!(status == 200, "{path} answers {status}");
        bytes += gzip(&body)?;
    }
    Ok(Some(bytes))
}

/// Style sheets, scripts and pictures of a page.
fn loaded(html: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for tag in html.split('<').filter(|t| ["link ", "script ", "img "].iter().any(|n| t.starts_with(n))) {
        let tag = tag.split('>').next().unwrap_or_default();
        for name in [" href=\"", " src=\""] {
            if let Some((_, rest)) = tag.split_once(name) {
                let address = rest.split('"').next().unwrap_or_default();
                if !address.starts_with("data:") && !address.contains("://") {
                    found.insert(address.to_owned());
                }
            }
        }
    }
    found
}

fn gzip(bytes: &[u8]) -> anyhow::Result<usize> {
    let mut child = Command::new("gzip")
        .args(["-9", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("gzip cannot be started")?;
    let mut input = child.stdin.take().context("gzip takes no input")?;
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes));
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "gzip: {}", output.status);
    writer.join().map_err(|_| anyhow::anyhow!("gzip's input broke"))??;
    Ok(output.stdout.len())
}

#[cfg(test)]
mod tests {
    use super::{gzip, loaded};

    #[test]
    fn what_a_page_loads_is_found_once() {
        let page = "<link rel=\"stylesheet\" href=\"assets/a.css\"><script defer src=\"/x.js\"></script>\
                    <a href=\"elsewhere\">b</a><img src=\"data:abc\"><script src=\"/x.js\"></script>";
        assert_eq!(loaded(page).into_iter().collect::<Vec<_>>(), ["/x.js", "assets/a.css"]);
    }

    #[test]
    fn pages_are_weighed_compressed() {
        let text = "mainstay ".repeat(10_000);
        assert!(gzip(text.as_bytes()).unwrap() < text.len() / 20);
    }
}
