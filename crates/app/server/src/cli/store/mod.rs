//! The lease store of a command, by URL.

mod params;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_etcd::{EtcdConfig, EtcdLeases};
use mainstay_nats::{NatsConfig, NatsLeases};
use mainstay_postgres::{PostgresConfig, PostgresLeases, PostgresSessions};
use mainstay_redis::{KeyProfile, RedisLeases, RedisQuorum};
use mainstay_sqlite::SqliteLeases;
use mainstay_store::{ErrorKind, FencingToken, LeaseStore, RecordStore};

use crate::error::{Code, Error, Result};
use params::Params;

/// Which store, which names.
#[derive(Debug, clap::Args)]
pub(crate) struct StoreArgs {
    /// Where the leases are. sqlite:FILE, a file that the processes of one machine share; redis://HOST, or several
    /// with commas between them for a majority of independent servers; postgres://USER@HOST/DATABASE;
    /// etcd://HOST:PORT, the members of a cluster with commas between them, USER:PASSWORD@ before the first;
    /// nats://HOST:PORT, several servers of one cluster with commas between them, each with USER:PASSWORD@ or TOKEN@.
    /// Encrypted: rediss://, etcds:// and tls:// (NATS), and behind them ?ca=FILE, or ?ca=FILE&cert=FILE&key=FILE with a
    /// certificate of one's own; postgres:// with ?sslmode=verify-full, and &sslrootcert=FILE, &sslcert=FILE&sslkey=FILE.
    /// Settings of the store stand there too, behind the last server: names=bare (the key is the name without its
    /// namespace, as clients of other make have it) on all servers; epoch=N on all servers and behind FILE; prefix=TEXT
    /// before every key on Redis and etcd; durable=true and max_ttl=DURATION for a majority of Redis; bucket=NAME on NATS;
    /// sessions=PROFILE for session locks of PostgreSQL.
    /// Default: a file of the user, leases.sqlite in $XDG_STATE_HOME/mainstay or ~/.local/state/mainstay.
    // The help would show the variable, and with it a password.
    #[arg(long, env = "MAINSTAY_LEASES", hide_env_values = true, value_name = "URL")]
    store: Option<String>,
    /// Keeps the names of applications apart.
    #[arg(long, default_value = "default", env = "MAINSTAY_NAMESPACE")]
    pub(super) namespace: String,
}

impl StoreArgs {
    /// The store of a URL.
    pub(super) fn of(url: &str) -> Self {
        Self { store: Some(url.to_owned()), namespace: "default".to_owned() }
    }

    /// Opens the store.
    ///
    /// # Errors
    /// `BadValue` for what is no URL of a store, else what the store says.
    pub(super) async fn open(&self, rt: &Runtime) -> Result<Arc<dyn LeaseStore>> {
        self.open_with_records(rt).await.map(|(leases, _)| leases)
    }

    /// Opens the store, and its records if it keeps any.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) async fn open_with_records(&self, rt: &Runtime) -> Result<Opened> {
        match self.store.as_deref().map(|url| (url, url.split_once(':').map_or("", |(scheme, _)| scheme))) {
            None => file(&users_file()?, 0, rt),
            Some((url, "sqlite")) => {
                let (url, params) = Params::split(url, params::SQLITE)?;
                file(&PathBuf::from(sqlite_file(&url)?), params.epoch, rt)
            }
            Some((url, "redis" | "rediss")) => redis(url, rt).await,
            Some((url, "postgres" | "postgresql")) => postgres(url, rt).await,
            Some((url, "etcd" | "etcds")) => Ok(both(etcd(url, rt).await?)),
            Some((url, "nats" | "tls")) => {
                let (url, params) = Params::split(url, params::NATS)?;
                let mut config = NatsConfig::builder(&url).epoch(params.epoch);
                config = config.names(params.names.unwrap_or_default());
                if let Some(bucket) = &params.bucket {
                    config = config.bucket(bucket);
                }
                let config = config.build().map_err(|e| refused(&e))?;
                let leases = NatsLeases::open(config, rt).await;
                Ok(both(leases.map_err(|e| failed("cannot use NATS".to_owned(), e))?))
            }
            Some(_) => Err(Error::new(
                Code::BadValue,
                "--store is none of sqlite:FILE, redis://HOST, postgres://USER@HOST/DATABASE, \
                 etcd://HOST:PORT, nats://HOST:PORT",
            )),
        }
    }

    /// What a command under a lease finds beside what every store gives: on etcd, what `etcdctl lock` tells its own.
    pub(super) async fn variables(
        &self,
        rt: &Runtime,
        name: &str,
        token: u64,
    ) -> Result<Vec<(&'static str, String)>> {
        let Some(url) =
            self.store.as_deref().filter(|url| url.starts_with("etcd:") || url.starts_with("etcds:"))
        else {
            return Ok(Vec::new());
        };
        let key = etcd(url, rt).await?.lock_key(name, FencingToken::new(token)).await;
        let key = key.map_err(|e| failed("cannot look at the lock in etcd".to_owned(), e))?;
        Ok(key.map_or_else(Vec::new, |key| {
            let text = String::from_utf8_lossy(&key.key).into_owned();
            vec![("ETCD_LOCK_KEY", text), ("ETCD_LOCK_REV", key.revision.to_string())]
        }))
    }
}

async fn etcd(url: &str, rt: &Runtime) -> Result<EtcdLeases> {
    let (url, params) = Params::split(url, params::ETCD)?;
    let mut config = EtcdConfig::builder(&url).epoch(params.epoch);
    config = config.names(params.names.unwrap_or_default());
    if let Some(prefix) = &params.prefix {
        config = config.prefix(prefix);
    }
    let config = config.build().map_err(|e| refused(&e))?;
    EtcdLeases::open(config, rt).await.map_err(|e| failed("cannot use etcd".to_owned(), e))
}

/// Leases, and records where the store keeps any.
pub(super) type Opened = (Arc<dyn LeaseStore>, Option<Arc<dyn RecordStore>>);

fn both<S: LeaseStore + RecordStore + 'static>(store: S) -> Opened {
    let store = Arc::new(store);
    (Arc::clone(&store) as Arc<dyn LeaseStore>, Some(store))
}

fn file(file: &Path, epoch: u16, rt: &Runtime) -> Result<Opened> {
    let leases = SqliteLeases::builder(file).epoch(epoch).open(rt);
    Ok(both(leases.map_err(|e| failed(format!("cannot use the lease file {}", file.display()), e))?))
}

/// Leases in rows, or bound to connections.
async fn postgres(url: &str, rt: &Runtime) -> Result<Opened> {
    let (url, params) = Params::split(url, params::POSTGRES)?;
    let config = PostgresConfig::builder(&url).epoch(params.epoch).build().map_err(|e| refused(&e))?;
    let down = |e| failed("cannot use PostgreSQL".to_owned(), e);
    let Some(profile) = params.sessions else {
        if params.names.is_some() {
            let why = "--store: `names` goes with `sessions`: no other client has leases in these rows";
            return Err(Error::new(Code::BadValue, why));
        }
        return Ok(both(PostgresLeases::open(config, rt).await.map_err(down)?));
    };
    let names = params.names.unwrap_or_default();
    let leases = PostgresSessions::open(config, profile, names, rt).await.map_err(down)?;
    Ok((Arc::new(leases), None))
}

/// One server, or a majority of several.
async fn redis(urls: &str, rt: &Runtime) -> Result<Opened> {
    let scheme = urls.split_once("://").map_or("redis", |(scheme, _)| scheme);
    // The scheme of the first is that of all who name none.
    let whole = |url: &str| if url.contains("://") { url.to_owned() } else { format!("{scheme}://{url}") };
    let mut servers: Vec<String> = urls.split(',').map(whole).collect();
    let known = if servers.len() > 1 { params::MAJORITY } else { params::REDIS };
    let (last, params) = Params::split(&servers.pop().unwrap_or_default(), known)?;
    for server in &servers {
        Params::split(server, params::ONE_OF_SEVERAL)?;
    }
    let profile = params.prefix.map_or(KeyProfile::Verbatim, KeyProfile::Prefixed);
    let (names, epoch) = (params.names.unwrap_or_default(), params.epoch);
    let down = |e| failed("cannot use Redis".to_owned(), e);
    if servers.is_empty() {
        let builder = RedisLeases::builder(&last).profile(profile).names(names).epoch(epoch);
        let leases = builder.build(rt).map_err(|e| refused(&e))?;
        leases.ready().await.map_err(down)?;
        return Ok(both(leases));
    }
    servers.push(last);
    let mut builder = RedisQuorum::builder(servers).profile(profile).names(names).epoch(epoch);
    if params.durable {
        builder = builder.require_durable();
    }
    if let Some(limit) = params.max_ttl {
        builder = builder.max_ttl(limit);
    }
    let leases = builder.build(rt).map_err(|e| refused(&e))?;
    leases.ready().await.map_err(down)?;
    Ok((Arc::new(leases), None))
}

/// A URL may have a password in it: only the error's own words are told.
fn refused(error: &dyn std::error::Error) -> Error {
    Error::new(Code::BadValue, format!("--store: {error}"))
}

/// The code of a store's error.
pub(super) fn failed(what: String, error: mainstay_store::Error) -> Error {
    Error::with(store_code(error.kind()), what, error)
}

/// The code of what a store says.
pub(super) fn store_code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::ApiMisuse => Code::BadValue,
        ErrorKind::Corrupt => Code::DatabaseCorrupt,
        ErrorKind::Internal => Code::Internal,
        ErrorKind::NewerVersion => Code::DatabaseNewer,
        _ => Code::LeaseStore,
    }
}

fn sqlite_file(url: &str) -> Result<&str> {
    match url.split_once(':') {
        Some(("sqlite", file)) if !file.trim_start_matches('/').is_empty() => {
            Ok(file.strip_prefix("//").unwrap_or(file))
        }
        _ => {
            let why =
                format!("--store `{url}`: expected sqlite:FILE, for example sqlite:/var/lib/app/leases");
            Err(Error::new(Code::BadValue, why))
        }
    }
}

fn users_file() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v: &OsString| !v.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
    let folder = state.map(|s| s.join("mainstay")).ok_or_else(|| {
        Error::new(Code::BadValue, "neither --store nor XDG_STATE_HOME nor HOME says where the leases are")
    })?;
    std::fs::create_dir_all(&folder)
        .map_err(|e| Error::with(Code::LeaseStore, format!("cannot make {}", folder.display()), e))?;
    Ok(folder.join("leases.sqlite"))
}

/// A duration that is not zero.
pub(super) fn duration(text: &str) -> std::result::Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(d) if d.is_zero() => Err("expected more than 0".to_owned()),
        Ok(d) => Ok(d),
        Err(e) => Err(format!("{e}; expected a duration such as 15s or 500ms")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_23_addresses_of_stores_never_show_their_passwords() {
        let (rt, canary) = (Runtime::system(), "CANARY-91aa");
        let mut seen = String::new();
        for rest in ["h:1/0", "h:1/\u{1}", "h:999999", "", "h:x/y?z"] {
            let url = |scheme: &str| format!("{scheme}://user:{canary}@{rest}");
            let (redis, nats, etcd, postgres) = (url("redis"), url("nats"), url("etcd"), url("postgres"));
            seen += &format!("{:?} {:?}", RedisLeases::builder(&redis), RedisLeases::new(&redis, &rt));
            let quorum = RedisQuorum::builder([&redis, &redis, &redis]);
            seen += &format!("{quorum:?} {:?}", quorum.clone().build(&rt));
            seen += &format!("{:?} {:?}", NatsConfig::builder(&nats), NatsConfig::builder(&nats).build());
            seen += &format!("{:?}", NatsConfig::builder("nats://h").system(&nats));
            seen += &format!("{:?} {:?}", EtcdConfig::builder(&etcd), EtcdConfig::builder(&etcd).build());
            seen += &format!(
                "{:?} {:?}",
                PostgresConfig::builder(&postgres),
                PostgresConfig::builder(&postgres).build()
            );
            let replicas = mainstay_mysql::MysqlReplicas::builder("s").build(&rt).unwrap();
            seen += &format!("{:?}", replicas.server(&url("mysql")));
            let mut errors: Vec<String> = Vec::new();
            errors.extend(RedisLeases::new(&redis, &rt).err().map(|e| e.to_string()));
            errors.extend(NatsConfig::builder(&nats).build().err().map(|e| e.to_string()));
            errors.extend(EtcdConfig::builder(&etcd).build().err().map(|e| e.to_string()));
            errors.extend(PostgresConfig::builder(&postgres).build().err().map(|e| e.to_string()));
            errors.extend(replicas.server(&url("mysql")).err().map(|e| e.to_string()));
            assert!(!errors.is_empty(), "etcd takes no user at all");
            seen += &errors.concat();
        }
        let at = seen.find(canary).map(|at| &seen[at.saturating_sub(200)..at]);
        assert_eq!(at, None);
    }

    #[test]
    fn urls_of_stores() {
        assert_eq!(sqlite_file("sqlite:leases").unwrap(), "leases");
        assert_eq!(sqlite_file("sqlite:/a/b").unwrap(), "/a/b");
        assert_eq!(sqlite_file("sqlite:///a/b").unwrap(), "/a/b");
        for bad in ["", "leases", "sqlite:", "sqlite://", "mysql://x/y"] {
            assert_eq!(sqlite_file(bad).unwrap_err().code(), Code::BadValue, "{bad}");
        }
        assert!(duration("0s").is_err() && duration("5").is_err());
        assert_eq!(duration("1s 500ms").unwrap(), Duration::from_millis(1_500));
    }
}
