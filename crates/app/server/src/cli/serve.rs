//! `serve`: a node over one data folder.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::num::NonZeroUsize;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use mainstay_clock::Runtime;
use mainstay_saga::Engine;
use mainstay_saga::definition::Definition;
use mainstay_saga::engine::Config as EngineConfig;
use mainstay_saga::participant::Participant;
use mainstay_sqlite::{SqliteLeases, SqliteStore};
use mainstay_store::{ErrorKind, Journal, LeaseStore};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, reload};

use super::notify::Notify;
use super::reload::Reloader;
use super::store::StoreArgs;
use crate::api::{App, EVENT_STALL, Jobs, RunningKeys, router};
use crate::config::Config;
use crate::console::{self, Console};
use crate::error::{Code, Error, Result};
use crate::fleet::{self, Fleet};
use crate::http::{self, Access, Clients, Gate, Limits, Sessions, Tls, TlsFiles, Tokens};
use crate::leases::Desk;
use crate::nearly::Watched;
use crate::participants::Participants;
use crate::redact::Redact;

/// Arguments of `serve`; each is also a configuration key and wins over it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration file.
    #[arg(long, env = "MAINSTAY_CONFIG")]
    config: Option<PathBuf>,
    /// Folder of the database and the tokens.
    #[arg(long)]
    data: Option<String>,
    /// Raise by 1000 after the files of the data folder were restored or lost: fencing tokens of sagas and of leases in it
    /// go on above those of before. Never lower it.
    #[arg(long, value_name = "N")]
    epoch: Option<u16>,
    /// Where locks, elections and members are, as `mainstay lock --store`; without it in leases.sqlite of the data folder.
    #[arg(long, value_name = "URL")]
    leases: Option<String>,
    /// Address of the API and the console; port 0 picks a free one.
    #[arg(long)]
    listen: Option<String>,
    /// Origin that saga steps may call, for example http://127.0.0.1:8080; repeatable.
    #[arg(long, value_name = "ORIGIN")]
    allow_participant: Vec<String>,
    /// Folder of definitions (*.toml, *.json) stored at start.
    #[arg(long)]
    definitions: Option<String>,
    /// Certificate chain (PEM) of the listener; with --tls-key.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<String>,
    /// Private key (PEM) of the certificate.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<String>,
    /// Certificates (PEM) of the authority whose clients may connect; others are turned away in the handshake.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<String>,
    /// A proxy in front ends TLS: allows to listen beyond loopback without it.
    #[arg(long)]
    behind_tls_proxy: bool,
}

impl Args {
    fn flags(&self) -> Vec<(&'static str, &'static str, String)> {
        let mut flags = Vec::new();
        let mut put = |key, flag, value: &Option<String>| {
            flags.extend(value.iter().map(|v| (key, flag, v.clone())));
        };
        put("store.data", "data", &self.data);
        put("store.epoch", "epoch", &self.epoch.map(|n| n.to_string()));
        put("store.leases", "leases", &self.leases);
        put("server.listen", "listen", &self.listen);
        put("saga.definitions", "definitions", &self.definitions);
        put("server.tls_cert", "tls-cert", &self.tls_cert);
        put("server.tls_key", "tls-key", &self.tls_key);
        put("server.tls_client_ca", "tls-client-ca", &self.tls_client_ca);
        if !self.allow_participant.is_empty() {
            flags.push(("participants.allow", "allow-participant", self.allow_participant.join(",")));
        }
        if self.behind_tls_proxy {
            flags.push(("server.behind_tls_proxy", "behind-tls-proxy", "true".to_owned()));
        }
        flags
    }

    /// The configuration of the file, the environment and these flags, as they are now.
    pub(super) fn load(&self) -> Result<Config> {
        Config::load(self.config.as_deref(), std::env::vars(), &self.flags())
    }
}

/// Runs `serve` until a signal.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let config = args.load()?;
    let log = log_to_stderr(&config)?;
    let data = PathBuf::from(config.text("store.data"));
    make_private(&data)?;
    let tokens = Arc::new(Tokens::of(&data));
    let tls = tls(&config)?;
    let clients = clients(&config)?;
    if !config.text("server.tls_client_ca").is_empty() {
        tokens.demand();
    }
    check_exposure(&config, (&tokens, &clients), &data, tls.is_some())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::with(Code::Internal, "cannot start the runtime", e))?;
    runtime.block_on(node(args, config, (tokens, clients), tls, log))?;
    // Blocking work that is still running must not hold up the end: everything durable is durable.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// What a node refuses before it listens, opens a store or asks for a name.
pub(super) fn check(config: &Config) -> Result<()> {
    parse_filter(config.text("log.filter"))?;
    let has_tls = tls(config)?.is_some();
    clients(config)?;
    check_listen(config, has_tls)?;
    if !config.text("gossip.bind").is_empty() {
        fleet::keys(config)?;
    }
    let rt = Runtime::system();
    let caller = Participants::open(config, &rt)?.rebuilt(config, &rt)?;
    read_definitions(config.text("saga.definitions"))?.iter().try_for_each(|d| caller.admits(d))
}

/// As far as an address says by itself that others can reach it: the rest needs tokens, and names.
fn check_listen(config: &Config, has_tls: bool) -> Result<()> {
    let listen = config.text("server.listen");
    let port =
        listen.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !port {
        let why = format!("`{listen}` is not an address: HOST:PORT");
        return Err(Error::new(Code::CannotListen, why));
    }
    let exposed = listen.parse::<SocketAddr>().is_ok_and(|at| !at.ip().is_loopback());
    if exposed && !has_tls && !config.flag("server.behind_tls_proxy") { Err(no_tls(listen)) } else { Ok(()) }
}

async fn node(
    args: &Args,
    config: Config,
    (tokens, clients): (Arc<Tokens>, Clients),
    tls: Option<Arc<Tls>>,
    log: LogFilter,
) -> Result<()> {
    let rt = Runtime::system();
    let drain = CancellationToken::new();
    let listener = http::bind(config.text("server.listen")).await?;
    let hangup = watch_signals(&rt, drain.clone())?;
    let store = Arc::new(open_store(&config, &rt)?);
    let journal = Arc::clone(&store) as Arc<dyn Journal>;
    let desk = Arc::new(Desk::new(open_leases(&config, &rt).await?, Arc::clone(&store) as _, rt.clone()));
    let participants = Arc::new(Participants::open(&config, &rt)?);
    let engine = open_engine(&config, Arc::clone(&journal), &participants, &rt).await?;
    let fleet = Fleet::join(&config, &rt).await?;
    let watched = Arc::new(Watched::default());
    let data = PathBuf::from(config.text("store.data"));
    let app = Arc::new(App {
        engine: engine.clone(),
        journal: Arc::clone(&journal),
        participants: Arc::clone(&participants),
        rt: rt.clone(),
        drain: drain.clone(),
        tokens: Arc::clone(&tokens),
        resets: AtomicU64::new(0),
        running: RunningKeys::default(),
        jobs: Jobs::default(),
        redact: Redact::new(config.list("payload.redact"), &[]),
        desk,
        fleet: fleet.clone(),
        store: Some(store),
        watched: Arc::clone(&watched),
        stall: EVENT_STALL,
    });
    let secure = tls.is_some() || config.flag("server.behind_tls_proxy");
    let gate = open_gate(&config, &rt, Access::new(tokens, Sessions::new(secure)?, clients), app)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let api = format!("{scheme}://{}", listener.address);
    announce(&api, fleet.as_deref());
    let longest = config.duration("server.drain");
    let mut reloader = Reloader {
        args: args.clone(),
        config,
        engine: engine.clone(),
        journal,
        participants: Arc::clone(&participants),
        fleet: fleet.clone(),
        log,
        rt: rt.clone(),
    };
    let notify = Notify::from_env(std::env::vars());
    notify.say("READY=1");
    // Side by side: the stop as a whole keeps within the drain time.
    let engine_stop = async {
        drain.cancelled().await;
        notify.say("STOPPING=1");
        engine.shutdown(longest).await;
    };
    let reloads = async {
        while !drain.is_cancelled() {
            tokio::select! {
                biased;
                () = drain.cancelled() => {}
                () = hangup.notified() => reloader.reload().await,
            }
        }
    };
    let beats = async {
        let Some(every) = notify.beat() else { return };
        while !drain.is_cancelled() {
            // A node that drives nothing is better started anew.
            if engine.holds_claims() {
                notify.say("WATCHDOG=1");
            }
            tokio::select! {
                biased;
                () = drain.cancelled() => {}
                () = rt.clock().sleep(every) => {}
            }
        }
    };
    let told = async {
        if let Some(fleet) = &fleet {
            fleet.run(&rt, &drain, &engine, &participants, &api).await;
        }
    };
    let disk = watched.watch(&data, &rt, &drain);
    tokio::join!(http::serve(listener, gate, tls), engine_stop, reloads, beats, told, disk);
    Ok(())
}

/// TLS of the configured files; `None` without any.
fn tls(config: &Config) -> Result<Option<Arc<Tls>>> {
    let file = |key| Some(config.text(key)).filter(|path| !path.is_empty()).map(PathBuf::from);
    match (file("server.tls_cert"), file("server.tls_key"), file("server.tls_client_ca")) {
        (None, None, None) => Ok(None),
        (Some(cert), Some(key), client_ca) => {
            Ok(Some(Arc::new(Tls::open(TlsFiles { cert, key, client_ca })?)))
        }
        (None, None, Some(_)) => Err(Error::new(
            Code::TlsFiles,
            "`server.tls_client_ca` needs `server.tls_cert` and `server.tls_key`",
        )),
        _ => Err(Error::new(Code::TlsFiles, "`server.tls_cert` and `server.tls_key` need each other")),
    }
}

/// The clients that need no token, by their certificates.
fn clients(config: &Config) -> Result<Clients> {
    let key = "server.tls_clients";
    let clients = Clients::read(config.list(key));
    let clients = clients.map_err(|why| Error::new(Code::BadValue, format!("{key}: {why}")))?;
    if !clients.is_empty() && config.text("server.tls_client_ca").is_empty() {
        let why = format!("{key}: without `server.tls_client_ca` no client presents a certificate");
        return Err(Error::new(Code::BadValue, why));
    }
    Ok(clients)
}

/// The gate in front of API and console.
fn open_gate(config: &Config, rt: &Runtime, access: Access, app: Arc<App>) -> Result<Arc<Gate>> {
    let drain = app.drain.clone();
    let access = Arc::new(access);
    let console = Arc::new(Console::new(Arc::clone(&app), Arc::clone(&access), config));
    let watched = Arc::clone(&app.watched);
    let routes = router(app).merge(console::mounted(Arc::clone(&console)));
    rt.spawn("console-samples", async move { console.sample().await });
    let gate = Gate::new(limits(config), rt.clone(), drain, access, console::PAGES, (watched, routes));
    Ok(Arc::new(gate))
}

/// Tells the addresses on stderr, whether or not somebody reads it: `eprintln` would panic.
fn announce(api: &str, fleet: Option<&Fleet>) {
    use std::io::Write as _;
    let mut text = String::new();
    if let Some(fleet) = fleet {
        let (name, cluster, at) = (fleet.name(), fleet.cluster(), fleet.address());
        text.push_str(&format!("mainstay: gossip of `{name}` in `{cluster}` is at {at}\n"));
    }
    text.push_str(&format!(
        "mainstay: listening on {api}\nmainstay: the console is at {api}{}\n",
        console::MOUNT
    ));
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// The store of the data folder; one process at a time.
fn open_store(config: &Config, rt: &Runtime) -> Result<SqliteStore> {
    let file = Path::new(config.text("store.data")).join("mainstay.db");
    let store = SqliteStore::builder(&file).epoch(epoch(config));
    store.open(rt).map_err(|e| unusable(&file, e))
}

/// Of the files in the data folder.
fn epoch(config: &Config) -> u16 {
    u16::try_from(config.count("store.epoch")).unwrap_or(u16::MAX)
}

/// What the API and the console ask of a lease store beside locks.
const ASKED: [&str; 3] = ["annotate", "break_lease", "list"];

/// The lease store of the configuration, or the lease file of the data folder; `mainstay lock --store` may share both.
async fn open_leases(config: &Config, rt: &Runtime) -> Result<Arc<dyn LeaseStore>> {
    let url = config.text("store.leases");
    if !url.is_empty() {
        let refused = |e: Error| Error::with(e.code(), "`store.leases` cannot be used", e.chain());
        let leases = StoreArgs::of(url).open(rt).await.map_err(refused)?;
        let native = leases.guarantees().native;
        return match ASKED.iter().find(|what| !native.contains(what)) {
            None => Ok(leases),
            Some(what) => {
                let why = format!("`store.leases`: the API and the console need a store that can {what}");
                Err(Error::new(Code::BadValue, why))
            }
        };
    }
    let file = Path::new(config.text("store.data")).join("leases.sqlite");
    let leases = SqliteLeases::builder(&file).epoch(epoch(config)).open(rt);
    Ok(Arc::new(leases.map_err(|e| unusable(&file, e))?))
}

fn unusable(file: &Path, error: mainstay_store::Error) -> Error {
    let code = match error.kind() {
        ErrorKind::Corrupt => Code::DatabaseCorrupt,
        ErrorKind::NewerVersion => Code::DatabaseNewer,
        ErrorKind::Occupied => Code::InUse,
        _ => Code::DataDir,
    };
    Error::with(code, format!("cannot open {}", file.display()), error)
}

async fn open_engine(
    config: &Config,
    journal: Arc<dyn Journal>,
    participants: &Arc<Participants>,
    rt: &Runtime,
) -> Result<Engine> {
    let mut options = EngineConfig::default();
    options.keep_completed = config.duration("saga.keep_completed");
    options.keep_compensated = config.duration("saga.keep_compensated");
    let most = NonZeroUsize::new(config.count("saga.max_running"));
    options.max_in_flight = most.unwrap_or(NonZeroUsize::MIN);
    let participant = Arc::clone(participants) as Arc<dyn Participant>;
    let builder = Engine::builder(journal, rt.clone()).config(options).participant(participant);
    let mut builder = builder.policies(participants.policies());
    for definition in read_definitions(config.text("saga.definitions"))? {
        participants.admits(&definition)?;
        builder = builder.definition(definition, []);
    }
    builder.open().await.map_err(|e| {
        let code = match e.kind() {
            mainstay_saga::ErrorKind::Config | mainstay_saga::ErrorKind::InputConflict => Code::BadDefinition,
            _ => Code::StoreUnavailable,
        };
        Error::with(code, "the engine cannot start", e)
    })
}

/// The definitions of a folder, in the order of their names; none without a folder.
pub(super) fn read_definitions(folder: &str) -> Result<Vec<Definition>> {
    if folder.is_empty() {
        return Ok(Vec::new());
    }
    let unreadable = |e| Error::with(Code::BadDefinition, format!("cannot read {folder}"), e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        files.push(entry.map_err(unreadable)?.path());
    }
    files.sort();
    let mut definitions: Vec<Definition> = Vec::new();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "toml" || e == "json")) {
        let definition = crate::cli::saga::read_definition(file)?;
        let (name, version) = (definition.name(), definition.version());
        let same = |d: &&Definition| d.name() == name && d.version() == version;
        if definitions.iter().find(same).is_some_and(|other| other.data() != definition.data()) {
            let why = format!(
                "{}: version {version} of `{name}` is in another file too, and differs",
                file.display()
            );
            return Err(Error::new(Code::DefinitionConflict, why));
        }
        definitions.push(definition);
    }
    Ok(definitions)
}

fn limits(config: &Config) -> Limits {
    Limits {
        allowed_hosts: config.list("server.allowed_hosts").to_vec(),
        body: config.count("server.body_limit"),
        body_timeout: config.duration("server.body_timeout"),
        connections: config.count("server.max_connections"),
        connections_per_ip: config.count("server.max_connections_per_ip"),
        drain: config.duration("server.drain"),
        header_timeout: config.duration("server.header_timeout"),
        in_flight: config.count("server.max_in_flight"),
        request_timeout: config.duration("server.request_timeout"),
        write_timeout: config.duration("server.write_timeout"),
    }
}

/// The first signal drains, the second ends the process at once: a crash has the same result. A hangup asks for
/// a reload.
fn watch_signals(rt: &Runtime, drain: CancellationToken) -> Result<Arc<tokio::sync::Notify>> {
    let failed = |e| Error::with(Code::Internal, "cannot listen for signals", e);
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hup = signal(SignalKind::hangup()).map_err(failed)?;
    let hangup = Arc::new(tokio::sync::Notify::new());
    let asked = Arc::clone(&hangup);
    rt.spawn("signals", async move {
        loop {
            let number = tokio::select! {
                biased;
                _ = term.recv() => 15,
                _ = int.recv() => 2,
                _ = hup.recv() => {
                    asked.notify_one();
                    continue;
                }
            };
            if drain.is_cancelled() {
                std::process::exit(128 + number);
            }
            // First: whatever becomes of the words, the stop must not.
            drain.cancel();
            tracing::info!("stopping; a second signal ends at once");
        }
    });
    Ok(hangup)
}

/// A listener that others can reach, by itself or through a proxy, needs somebody it knows, and TLS of its own or in
/// front.
fn check_exposure(
    config: &Config,
    (tokens, clients): (&Tokens, &Clients),
    data: &Path,
    has_tls: bool,
) -> Result<()> {
    let listen = config.text("server.listen");
    let failed = |e| Error::with(Code::CannotListen, format!("`{listen}` is not an address"), e);
    let behind_proxy = config.flag("server.behind_tls_proxy");
    if listen.to_socket_addrs().map_err(failed)?.all(|a| a.ip().is_loopback()) && !behind_proxy {
        tokens.all()?;
        return Ok(());
    }
    if tokens.all()?.is_empty() && clients.is_empty() {
        let make = format!("mainstay token create --data {}", data.display());
        let why = format!("{listen} can be reached by others and there is no token; make one: {make}");
        return Err(Error::new(Code::NoTokens, why));
    }
    if !has_tls && !behind_proxy {
        return Err(no_tls(listen));
    }
    Ok(())
}

fn no_tls(listen: &str) -> Error {
    let why = format!("{listen} can be reached by others without TLS; see --tls-cert and --behind-tls-proxy");
    Error::new(Code::NoTls, why)
}

/// The data folder, for its owner only when it is new.
fn make_private(data: &Path) -> Result<()> {
    let failed = |e| Error::with(Code::DataDir, format!("cannot use {}", data.display()), e);
    if data.is_file() {
        return Err(Error::new(Code::DataDir, format!("{} is a file, not a folder", data.display())));
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(failed)
}

/// Changes what is logged.
pub(super) struct LogFilter(pub(super) Box<dyn Fn(EnvFilter) + Send + Sync>);

impl LogFilter {
    /// Logs by `filter` from now on.
    pub(super) fn set(&self, filter: EnvFilter) {
        (self.0)(filter);
    }
}

/// Reads a filter.
///
/// # Errors
/// When it is none.
pub(super) fn parse_filter(filter: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(filter).map_err(|e| Error::with(Code::BadValue, "log.filter is not a filter", e))
}

fn log_to_stderr(config: &Config) -> Result<LogFilter> {
    let (filter, handle) = reload::Layer::new(parse_filter(config.text("log.filter"))?);
    // A reader of stderr that went away must not take the node with it.
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(filter);
    // Only tests install a second one.
    let _ = if config.flag("log.json") {
        registry.with(lines.json()).try_init()
    } else {
        registry.with(lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))).try_init()
    };
    Ok(LogFilter(Box::new(move |filter| {
        // It fails only when the subscriber is gone, and with it the process.
        let _ = handle.reload(filter);
    })))
}
