//! `doctor`: is this machine fit, or with `--live`: is the node up.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_store::lease::Server;
use serde_json::json;

use crate::cli::Output;
use crate::cli::client::{Client, ServerArgs};
use crate::cli::store::StoreArgs;
use crate::error::{Code, Error, Result};

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ask a running node whether it is ready, for health checks.
    #[arg(long)]
    live: bool,
    /// The data folder to check. It is not made.
    #[arg(long, default_value = "mainstay-data", env = "MAINSTAY_STORE__DATA")]
    data: PathBuf,
    /// The address that a node would listen on.
    #[arg(long, default_value = "127.0.0.1:4600", env = "MAINSTAY_SERVER__LISTEN")]
    listen: String,
    /// A store of leases to open and to ask, as for `mainstay lock`; its servers are named with their versions.
    /// Repeatable.
    // The help would show the variable, and with it a password.
    #[arg(long, env = "MAINSTAY_LEASES", hide_env_values = true, value_name = "URL")]
    store: Vec<String>,
    /// The store of leases of a node, as `store.leases` of its configuration.
    #[arg(long, env = "MAINSTAY_STORE__LEASES", hide_env_values = true, value_name = "URL")]
    leases: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    server: ServerArgs,
}

/// A finding: what was looked at, whether it is fine, what was seen.
type Finding = (&'static str, bool, String);

/// Syncs that are timed.
const SYNCS: u32 = 16;
/// No disk has written 4 KiB and its own metadata in less.
const FASTEST_DISK: Duration = Duration::from_micros(20);

/// Runs `doctor`. Exit code 1 when something is not fine.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let findings = if args.live { live(&args.server)? } else { machine(args)? };
    let word = |fine: bool| if fine { "ok" } else { "FAIL" }.to_owned();
    let rows = findings.iter().map(|(what, fine, seen)| vec![(*what).to_owned(), word(*fine), seen.clone()]);
    let json = findings.iter().map(|(what, fine, seen)| json!({"check": what, "ok": fine, "seen": seen}));
    args.output.rows(&["CHECK", "", "SEEN"], rows.collect(), &json.collect())?;
    Ok(if findings.iter().all(|f| f.1) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn live(server: &ServerArgs) -> Result<Vec<Finding>> {
    let client = Client::new(server)?;
    let answer = client.send("GET", "/readyz", &[], None)?;
    // Whatever else is at the address may answer everything with 200.
    let stranger = answer.status == 200 && answer.text.trim() != "ready";
    let seen = format!("status {}{}", answer.status, if stranger { ", but not from a node" } else { "" });
    let mut findings = vec![("node is ready", answer.status == 200 && !stranger, seen)];
    let nodes = client.send("GET", "/v1/nodes", &[], None)?;
    // Without a token nobody is told, and without gossip there is nothing to tell.
    if nodes.status == 200 && nodes.body["gossip"] == true {
        let none = Vec::new();
        let list = nodes.body["nodes"].as_array().unwrap_or(&none);
        let there = list.iter().filter(|n| n["state"] == "here" || n["state"] == "up").count();
        // For information: another node's absence makes this one no less healthy.
        findings.push(("the fleet is seen", true, format!("{there} of {} nodes are there", list.len())));
    }
    Ok(findings)
}

fn machine(args: &Args) -> Result<Vec<Finding>> {
    let place = standing(&args.data);
    let mut findings = vec![clock(), port(args), folder(&args.data, &place), sync(&place), sqlite()];
    for url in &args.store {
        findings.extend(store("the lease store can be used", url)?);
    }
    // An empty key means the file of the data folder.
    if let Some(url) = args.leases.as_deref().filter(|url| !url.is_empty()) {
        findings.extend(store("the node's lease store can be used", url)?);
    }
    Ok(findings)
}

fn clock() -> Finding {
    /// 2025-01-01: a clock before it was never set.
    const EPOCH: i64 = 1_735_689_600_000;
    let now = mainstay_clock::os_wall_now();
    ("the clock is set", now.unix_millis() > EPOCH, crate::api::instant(now))
}

/// Whether a node could listen, or one does already.
fn port(args: &Args) -> Finding {
    let (what, at) = ("the port is free", &args.listen);
    match std::net::TcpListener::bind(at) {
        Ok(_) => (what, true, at.clone()),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => match node_at(args) {
            Some(version) => (what, true, format!("a node of mainstay {version} listens on {at}")),
            None => (what, false, format!("another program listens on {at}")),
        },
        Err(e) => (what, false, format!("{at}: {e}")),
    }
}

/// The version of the node that listens there, if it is one.
fn node_at(args: &Args) -> Option<String> {
    let answers = ["http", "https"].map(|scheme| {
        let client = Client::new(&args.server).ok()?.towards(format!("{scheme}://{}", args.listen));
        let body = client.within(Duration::from_secs(2)).send("GET", "/version", &[], None).ok()?.body;
        (body["name"] == "mainstay").then(|| body["version"].as_str().unwrap_or_default().to_owned())
    });
    answers.into_iter().flatten().next()
}

/// The folder if it is there, else the nearest one above it, where it would be made.
fn standing(data: &Path) -> PathBuf {
    let whole = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
    whole.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/")).to_owned()
}

/// A file of our own that goes with this value.
struct Probe(PathBuf, std::fs::File);

impl Probe {
    fn new(folder: &Path) -> std::io::Result<Self> {
        // In a container each process may have the number of the one before, whose file a kill left behind.
        let (id, at) = (std::process::id(), mainstay_clock::os_wall_now().unix_millis());
        let path = folder.join(format!(".mainstay-doctor-{id}-{at}"));
        let file = std::fs::File::create_new(&path)?;
        Ok(Self(path, file))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn folder(data: &Path, place: &Path) -> Finding {
    let what = "the data folder can be used";
    match Probe::new(place) {
        Ok(_) if data.exists() => (what, true, data.display().to_string()),
        Ok(_) => (what, true, format!("{} is not there yet and can be made", data.display())),
        Err(e) => (what, false, format!("{}: {e}", place.display())),
    }
}

/// Times real syncs. What does not sync is told by its speed; only a power cut can prove that a disk does.
fn sync(place: &Path) -> Finding {
    let what = "fsync reaches a disk";
    let timed = || -> std::io::Result<Duration> {
        let mut probe = Probe::new(place)?;
        let start = mainstay_clock::os_boot_now();
        for _ in 0..SYNCS {
            probe.1.write_all(&[0; 4_096])?;
            probe.1.sync_data()?;
        }
        Ok(mainstay_clock::os_boot_now().saturating_duration_since(start) / SYNCS)
    };
    match timed() {
        Ok(each) => {
            let (fine, seen) = judged(each, is_memory(place));
            (what, fine, format!("{}: {seen}", place.display()))
        }
        Err(e) => (what, false, format!("{}: {e}", place.display())),
    }
}

/// What syncs of so much time each say.
fn judged(each: Duration, memory: bool) -> (bool, String) {
    match memory {
        true => (false, "a file system in memory: nothing in it outlives the machine".to_owned()),
        false if each < FASTEST_DISK => {
            (false, format!("{each:?} each is too fast for a disk: it does not sync, or it is memory"))
        }
        false => (true, format!("{each:?} each")),
    }
}

/// Whether the file system says itself that it is no disk.
fn is_memory(place: &Path) -> bool {
    /// Of tmpfs and ramfs, statfs(2).
    const MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
    let kind = rustix::fs::statfs(place).ok().and_then(|s| u64::try_from(s.f_type).ok());
    kind.is_some_and(|kind| MEMORY.contains(&kind))
}

/// The library is compiled in, and a store made by a newer one refuses to open.
fn sqlite() -> Finding {
    ("SQLite", true, format!("{}, compiled in", rusqlite::version()))
}

/// Opening a store checks that its server is reachable and not too old.
fn store(what: &'static str, url: &str) -> Result<Vec<Finding>> {
    if let Some(file) = url.strip_prefix("sqlite:").map(|f| f.strip_prefix("//").unwrap_or(f))
        && !Path::new(file).exists()
    {
        let place = standing(Path::new(file));
        let made = Probe::new(&place).map(|_| ());
        let seen = made.as_ref().map_or_else(
            |e| format!("{}: {e}", place.display()),
            |()| format!("{file} is not there yet and can be made"),
        );
        return Ok(vec![(what, made.is_ok(), seen)]);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::with(Code::Internal, "cannot start the runtime", e))?;
    let finding = runtime.block_on(async {
        let start = mainstay_clock::os_boot_now();
        let store = match StoreArgs::of(url).open(&Runtime::system()).await {
            Ok(store) => store,
            // A mistake in the URL is the caller's.
            Err(error) if error.code() == Code::BadValue => return Err(error),
            Err(error) => return Ok(vec![(what, false, error.chain())]),
        };
        let asked = store.inspect("mainstay-doctor").await;
        let took = mainstay_clock::os_boot_now().saturating_duration_since(start);
        let mut findings = vec![match asked {
            Ok(_) => (what, true, format!("opened and asked in {took:?}")),
            Err(error) => (what, false, error.to_string()),
        }];
        findings.extend(match store.servers().await {
            Ok(servers) => servers.iter().map(version).collect(),
            Err(error) => vec![("its servers tell their versions", false, error.to_string())],
        });
        Ok(findings)
    });
    runtime.shutdown_background();
    finding
}

/// Which version a server has, and whether that is one we know to work.
fn version(server: &Server) -> Finding {
    let at = if server.address.is_empty() { String::new() } else { format!(" at {}", server.address) };
    let (version, oldest) = (&server.version, server.oldest);
    let seen = match server.is_recent() {
        true => format!("{version}{at}; {oldest} or later is tested"),
        false if version.is_empty() => format!("does not answer{at}"),
        false => format!("{version}{at} is older than {oldest}, the oldest version that is tested"),
    };
    (server.product, server.is_recent(), seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(micros: u64, memory: bool, fine: bool, said: &str) {
        let (is, seen) = judged(Duration::from_micros(micros), memory);
        assert!(is == fine && seen.contains(said), "{is} {seen}");
    }

    #[test]
    fn a_disk_that_syncs_in_no_time_does_not() {
        check(900, false, true, "900");
        check(20, false, true, "each");
        check(19, false, false, "too fast for a disk");
        check(0, false, false, "too fast for a disk");
        check(900, true, false, "in memory");
    }

    #[test]
    fn a_server_is_named_with_its_version_and_one_that_is_too_old_is_said() {
        let server = |text: &str| version(&Server::new("Redis", "h:1", text, "6.0"));
        assert_eq!(server("7.0.15"), ("Redis", true, "7.0.15 at h:1; 6.0 or later is tested".to_owned()));
        let old = "5.0.14 at h:1 is older than 6.0, the oldest version that is tested";
        assert_eq!(server("5.0.14"), ("Redis", false, old.to_owned()));
        assert_eq!(server(""), ("Redis", false, "does not answer at h:1".to_owned()));
    }

    #[test]
    fn what_is_not_there_stands_in_the_nearest_folder_that_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(standing(&dir.path().join("a/b/c")), dir.path());
        assert_eq!(standing(dir.path()), dir.path());
        assert!(standing(Path::new("nobody-made-this")).is_absolute());
    }
}
