//! `token create|ls|revoke`: works on the data folder, a running server sees it at once.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use secrecy::ExposeSecret as _;
use serde_json::json;

use crate::cli::{Output, print};
use crate::error::{Code, Error, Result};
use crate::http::{NewToken, Scope, Tokens};

/// Arguments of `token`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// The data folder.
    #[arg(long, global = true, default_value = "mainstay-data", env = "MAINSTAY_STORE__DATA")]
    data: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a token and print it once; only its hash is stored.
    Create {
        /// Its name in the audit log.
        #[arg(long, default_value = "operator")]
        name: String,
        /// What it may do: read, operate or admin.
        #[arg(long, visible_alias = "verb", default_value = "operate", value_parser = scope)]
        scope: Scope,
        /// What it may reach: definitions, locks, elections and groups of this name, and those that begin with it
        /// and `.`, `/` or `:`; repeatable. Without: everything.
        #[arg(long, value_name = "NAME")]
        namespace: Vec<String>,
        /// How long it is valid, for example 90d; without: until revoked.
        #[arg(long, value_parser = humantime::parse_duration)]
        expires: Option<std::time::Duration>,
    },
    /// List tokens without their secrets.
    Ls {
        /// How to print.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Remove a token.
    Revoke {
        /// Its name.
        name: String,
    },
}

fn scope(text: &str) -> std::result::Result<Scope, String> {
    Scope::parse(text).ok_or_else(|| "read, operate or admin".to_owned())
}

/// Runs `token`.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let tokens = Tokens::of(&args.data);
    if !matches!(args.verb, Verb::Create { .. }) && !args.data.is_dir() {
        // A folder that was mistyped has no tokens, which would be believed of the one that was meant.
        return Err(Error::new(Code::DataDir, format!("there is no folder {}", args.data.display())));
    }
    match &args.verb {
        Verb::Create { name, scope, namespace, expires } => {
            let expires = expires.map(|d| mainstay_clock::os_wall_now().saturating_add(d));
            let (name, namespaces) = (name.clone(), namespace.clone());
            let secret = tokens.create(&NewToken { name, scope: *scope, expires, namespaces })?;
            print(&format!("{}\n", secret.expose_secret()))
        }
        Verb::Ls { output } => {
            let all = tokens.all()?;
            let expires = |t: Option<mainstay_clock::WallTime>| {
                t.map_or_else(|| "never".to_owned(), crate::api::instant)
            };
            let rows = all.iter().map(|t| {
                let reach =
                    if t.namespaces.is_empty() { "everything".to_owned() } else { t.namespaces.join(", ") };
                vec![t.name.clone(), t.scope.as_str().to_owned(), reach, expires(t.expires)]
            });
            let json = all.iter().map(|t| {
                json!({
                    "name": t.name, "scope": t.scope.as_str(), "namespaces": t.namespaces,
                    "expires": t.expires.map(crate::api::instant),
                })
            });
            output.rows(&["NAME", "SCOPE", "NAMESPACES", "EXPIRES"], rows.collect(), &json.collect())
        }
        Verb::Revoke { name } => {
            if tokens.revoke(name)? {
                return Ok(ExitCode::SUCCESS);
            }
            Err(Error::new(Code::BadValue, format!("no token is named `{name}`")))
        }
    }
}
