//! `serve`: a node over one data folder.

use std::net::ToSocketAddrs as _;
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
use mainstay_saga::http::HttpParticipant;
use mainstay_saga::participant::Participant;
use mainstay_sqlite::{SqliteConfig, SqliteStore};
use mainstay_store::ErrorKind;
use mainstay_store::Journal;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::api::{App, router};
use crate::config::Config;
use crate::console::{self, Console};
use crate::error::{Code, Error, Result};
use crate::http::{self, Access, Gate, Limits, Sessions, Tokens};
use crate::participants;

/// Arguments of `serve`; each is also a configuration key and wins over it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration file.
    #[arg(long, env = "MAINSTAY_CONFIG")]
    config: Option<PathBuf>,
    /// Folder of the database and the tokens.
    #[arg(long)]
    data: Option<String>,
    /// Address of the API and the console; port 0 picks a free one.
    #[arg(long)]
    listen: Option<String>,
    /// Origin that saga steps may call, for example http://127.0.0.1:8080; repeatable.
    #[arg(long, value_name = "ORIGIN")]
    allow_participant: Vec<String>,
    /// Folder of definitions (*.toml, *.json) stored at start.
    #[arg(long)]
    definitions: Option<String>,
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
        put("server.listen", "listen", &self.listen);
        put("saga.definitions", "definitions", &self.definitions);
        if !self.allow_participant.is_empty() {
            flags.push(("participants.allow", "allow-participant", self.allow_participant.join(",")));
        }
        if self.behind_tls_proxy {
            flags.push(("server.behind_tls_proxy", "behind-tls-proxy", "true".to_owned()));
        }
        flags
    }
}

/// Runs `serve` until a signal.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let config = Config::load(args.config.as_deref(), std::env::vars(), &args.flags())?;
    log_to_stderr(&config)?;
    let data = PathBuf::from(config.text("store.data"));
    make_private(&data)?;
    let tokens = Arc::new(Tokens::of(&data));
    check_exposure(&config, &tokens, &data)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::with(Code::Internal, "cannot start the runtime", e))?;
    runtime.block_on(node(&config, tokens))?;
    // Blocking work that is still running must not hold up the end: everything durable is durable.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

async fn node(config: &Config, tokens: Arc<Tokens>) -> Result<()> {
    let rt = Runtime::system();
    let drain = CancellationToken::new();
    let listener = http::bind(config.text("server.listen")).await?;
    watch_signals(&rt, drain.clone())?;
    let journal = open_journal(config, &rt)?;
    let participants = Arc::new(participants::open(config, rt.clock())?);
    let engine = open_engine(config, Arc::clone(&journal), &participants, &rt).await?;
    let app = Arc::new(App {
        engine: engine.clone(),
        journal,
        participants,
        rt: rt.clone(),
        drain: drain.clone(),
        tokens: Arc::clone(&tokens),
        resets: AtomicU64::new(0),
    });
    let access = Arc::new(Access::new(tokens, Sessions::new(config.flag("server.behind_tls_proxy"))?));
    let console = Arc::new(Console::new(Arc::clone(&app), Arc::clone(&access), config));
    let routes = router(app).merge(console::mounted(Arc::clone(&console)));
    let gate = Gate::new(limits(config), rt.clone(), drain.clone(), access, console::PAGES, routes);
    let gate = Arc::new(gate);
    rt.spawn("console-samples", async move { console.sample().await });
    eprintln!("mainstay: listening on http://{}", listener.address);
    eprintln!("mainstay: the console is at http://{}{}", listener.address, console::MOUNT);
    // Side by side: the stop as a whole keeps within the drain time.
    let engine_stop = async {
        drain.cancelled().await;
        engine.shutdown(config.duration("server.drain")).await;
    };
    tokio::join!(http::serve(listener, gate), engine_stop);
    Ok(())
}

/// The journal of the data folder; one process at a time.
fn open_journal(config: &Config, rt: &Runtime) -> Result<Arc<dyn Journal>> {
    let file = Path::new(config.text("store.data")).join("mainstay.db");
    let store = SqliteStore::open(SqliteConfig::new(&file), rt).map_err(|e| {
        let code = match e.kind() {
            ErrorKind::Corrupt => Code::DatabaseCorrupt,
            ErrorKind::NewerVersion => Code::DatabaseNewer,
            ErrorKind::Occupied => Code::InUse,
            _ => Code::DataDir,
        };
        Error::with(code, format!("cannot open {}", file.display()), e)
    })?;
    Ok(Arc::new(store))
}

async fn open_engine(
    config: &Config,
    journal: Arc<dyn Journal>,
    participants: &Arc<HttpParticipant>,
    rt: &Runtime,
) -> Result<Engine> {
    let mut options = EngineConfig::default();
    options.keep_completed = config.duration("saga.keep_completed");
    options.keep_compensated = config.duration("saga.keep_compensated");
    let most = NonZeroUsize::new(config.count("saga.max_running"));
    options.max_in_flight = most.unwrap_or(NonZeroUsize::MIN);
    let participant = Arc::clone(participants) as Arc<dyn Participant>;
    let mut builder = Engine::builder(journal, rt.clone()).config(options).participant(participant);
    for definition in read_definitions(config.text("saga.definitions"))? {
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
fn read_definitions(folder: &str) -> Result<Vec<Definition>> {
    if folder.is_empty() {
        return Ok(Vec::new());
    }
    let unreadable = |e| Error::with(Code::BadDefinition, format!("cannot read {folder}"), e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        files.push(entry.map_err(unreadable)?.path());
    }
    files.sort();
    let wanted = files.iter().filter(|f| f.extension().is_some_and(|e| e == "toml" || e == "json"));
    wanted.map(|f| crate::cli::saga::read_definition(f)).collect()
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
    }
}

/// The first signal drains, the second ends the process at once: a crash has the same result.
fn watch_signals(rt: &Runtime, drain: CancellationToken) -> Result<()> {
    let failed = |e| Error::with(Code::Internal, "cannot listen for signals", e);
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hup = signal(SignalKind::hangup()).map_err(failed)?;
    rt.spawn("signals", async move {
        loop {
            let number = tokio::select! {
                biased;
                _ = term.recv() => 15,
                _ = int.recv() => 2,
                _ = hup.recv() => {
                    // Unhandled it would end the process.
                    tracing::info!("tokens are read again whenever they change; other settings need a restart");
                    continue;
                }
            };
            if drain.is_cancelled() {
                std::process::exit(128 + number);
            }
            tracing::info!("stopping; a second signal ends at once");
            drain.cancel();
        }
    });
    Ok(())
}

/// A listener that others can reach needs tokens, and TLS in front.
fn check_exposure(config: &Config, tokens: &Tokens, data: &Path) -> Result<()> {
    let listen = config.text("server.listen");
    let failed = |e| Error::with(Code::CannotListen, format!("`{listen}` is not an address"), e);
    if listen.to_socket_addrs().map_err(failed)?.all(|a| a.ip().is_loopback()) {
        tokens.all()?;
        return Ok(());
    }
    if tokens.all()?.is_empty() {
        let make = format!("mainstay token create --data {}", data.display());
        let why = format!("{listen} can be reached by others and there is no token; make one: {make}");
        return Err(Error::new(Code::NoTokens, why));
    }
    if !config.flag("server.behind_tls_proxy") {
        let why = format!("{listen} can be reached by others without TLS; see --behind-tls-proxy");
        return Err(Error::new(Code::NoTls, why));
    }
    Ok(())
}

/// The data folder, for its owner only when it is new.
fn make_private(data: &Path) -> Result<()> {
    let failed = |e| Error::with(Code::DataDir, format!("cannot use {}", data.display()), e);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(failed)
}

fn log_to_stderr(config: &Config) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(config.text("log.filter"))
        .map_err(|e| Error::with(Code::BadValue, "log.filter is not a filter", e))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Only tests install a second one.
    let _ = if config.flag("log.json") {
        log.json().try_init()
    } else {
        log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init()
    };
    Ok(())
}
