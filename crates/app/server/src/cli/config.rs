//! `config check`, `config schema` and `config show`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Map, json};

use crate::cli::{Output, print, serve};
use crate::config::{Config, KEYS, schema};
use crate::error::Result;

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// The configuration file.
    #[arg(long, env = "MAINSTAY_CONFIG", global = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check the file, the environment and the files that they name, as a node does at its start; nothing is started,
    /// no store is opened, nobody is asked.
    Check,
    /// Print the JSON Schema of the file, for editors and for checks before a deploy.
    Schema,
    /// Show every key with its value.
    Show {
        /// Also where each value comes from.
        #[arg(long)]
        origin: bool,
        /// How to print.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

/// Runs `config`.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let load = || Config::load(args.config.as_deref(), std::env::vars(), &[]);
    match &args.verb {
        Verb::Check => {
            serve::check(&load()?)?;
            print("the configuration is valid\n")
        }
        Verb::Schema => print(&format!("{:#}\n", schema())),
        Verb::Show { origin, output } => {
            let config = load()?;
            let mut all = Map::new();
            let mut rows = Vec::new();
            for (key, (path, value, from)) in KEYS.iter().zip(config.entries()) {
                let mut row = vec![path.to_owned(), value.to_toml()];
                if *origin {
                    row.push(from.to_string());
                }
                row.push(key.about.to_owned());
                rows.push(row);
                let shown = json!({"value": value.to_toml(), "origin": from.to_string()});
                all.insert(path.to_owned(), shown);
            }
            let head: &[&str] =
                if *origin { &["KEY", "VALUE", "ORIGIN", "ABOUT"] } else { &["KEY", "VALUE", "ABOUT"] };
            output.rows(head, rows, &all.into())
        }
    }
}
