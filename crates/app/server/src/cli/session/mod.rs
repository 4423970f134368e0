//! `session explain|replicas`: what a token says, and what the nodes have.

mod replicas;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mainstay_clock::{Runtime, WallTime, os_wall_now};
use mainstay_consistency::session::{TokenKeys, Unopened, Verdict, verdict};
use mainstay_store::replicated::Mark;
use serde_json::{Value, json};

use self::replicas::Seen;
use crate::cli::Output;
use crate::error::{Code, Error, Result};

/// What a store is called whose name nobody gave.
const UNNAMED: &str = "the store";

/// Arguments of `session`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Output,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Say what a token says. Without its key nothing of that is proven; with nodes, say what they make of it.
    Explain(ExplainArgs),
    /// List nodes with position, lag, timeline and fork. Exit code 1: a fork, an old primary or another system is
    /// among them.
    Replicas {
        /// One URL per server: postgres://USER@HOST/DATABASE, redis://HOST or mysql://USER@HOST/DATABASE; no address
        /// with several servers behind it.
        #[arg(required = true, value_name = "URL")]
        urls: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
struct ExplainArgs {
    /// The text of the header or the cookie.
    token: String,
    /// A file with the key, as bytes or as hexadecimal digits: also say whether the token opens.
    #[arg(long, value_name = "FILE", requires = "name")]
    key_file: Option<PathBuf>,
    /// The name of the store that the token is sealed for.
    #[arg(long)]
    name: Option<String>,
    /// The tenant that the token is sealed for.
    #[arg(long, default_value = "")]
    tenant: String,
    /// A node to be asked what it makes of the token; several times for several.
    #[arg(long = "at", value_name = "URL")]
    nodes: Vec<String>,
}

/// Runs `session`.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::with(Code::Internal, "cannot start the runtime", e))?;
    let code = runtime.block_on(async {
        match &args.verb {
            Verb::Explain(explain) => explained(args.output, explain).await,
            Verb::Replicas { urls } => listed(args.output, urls).await,
        }
    });
    runtime.shutdown_background();
    code
}

async fn listed(output: Output, urls: &[String]) -> Result<ExitCode> {
    let seen = replicas::ask(urls, UNNAMED, &Runtime::system()).await?;
    let leader = replicas::leader(&seen);
    let (rows, json): (Vec<_>, Vec<Value>) = seen.iter().map(|s| replicas::shown(s, leader)).unzip();
    let printed =
        output.rows(&["NODE", "SYSTEM", "TIMELINE", "POSITION", "LAG", "STATE"], rows, &Value::from(json))?;
    let said = || seen.iter().filter_map(|s| s.said.as_ref().ok());
    if said().next().is_none() {
        return Err(Error::new(Code::Unreachable, "no node could be asked"));
    }
    let wrong = said().any(|o| replicas::state(o, leader).is_wrong());
    Ok(if wrong { ExitCode::FAILURE } else { printed })
}

/// Whether a token opens: `None` when nobody gave a key.
fn seal(args: &ExplainArgs, seen: &Unopened, now: WallTime) -> Result<Option<String>> {
    let (Some(file), Some(name)) = (&args.key_file, &args.name) else { return Ok(None) };
    let keys = TokenKeys::builder(name).tenant(&args.tenant).key(seen.key, secret(file)?).build();
    let keys = keys.map_err(|e| Error::new(Code::BadValue, format!("--key-file: {e}")))?;
    Ok(Some(
        keys.open(&args.token, now).map_or_else(|refusal| refusal.to_string(), |_| "it opens".to_owned()),
    ))
}

fn secret(file: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(file)
        .map_err(|e| Error::with(Code::BadValue, format!("cannot read {}", file.display()), e))?;
    Ok(unhex(bytes.trim_ascii()).unwrap_or(bytes))
}

fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16);
    if digits.is_empty() || !digits.len().is_multiple_of(2) {
        return None;
    }
    let pair = |pair: &[u8]| u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok();
    digits.chunks(2).map(pair).collect()
}

async fn explained(output: Output, args: &ExplainArgs) -> Result<ExitCode> {
    let seen = Unopened::read(&args.token)
        .map_err(|refusal| Error::new(Code::BadValue, format!("TOKEN: {refusal}")))?;
    let now = os_wall_now();
    let seal = seal(args, &seen, now)?;
    let nodes = if args.nodes.is_empty() {
        Vec::new()
    } else {
        let system = args.name.as_deref().unwrap_or(UNNAMED);
        replicas::ask(&args.nodes, system, &Runtime::system()).await?
    };
    let age = now.saturating_duration_since(seen.issued).as_secs();
    let fact = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        fact("key", seen.key.to_string()),
        fact("issued", format!("{}, {} ago", crate::api::instant(seen.issued), span(age))),
        fact("characters", args.token.len().to_string()),
        fact("seal", seal.clone().unwrap_or_else(|| "not checked, so nothing below is proven".to_owned())),
    ];
    if seen.token.is_owed() {
        rows.push(fact("owed", "something without a position: the next read goes to the primary".to_owned()));
    }
    let mut positions = Vec::new();
    for mark in named(seen.token.positions(), args.name.as_deref()) {
        rows.push(fact(
            "position",
            format!("{}, timeline {}, at {}", mark.system, mark.timeline, mark.position),
        ));
        let judged: Vec<(String, String)> =
            nodes.iter().map(|n| (n.node.clone(), judgment(&mark, n))).collect();
        for (node, judgment) in &judged {
            rows.push(fact("", format!("{node}: {judgment}")));
        }
        positions.push(json!({
            "system": mark.system, "timeline": mark.timeline, "position": mark.position.to_string(),
            "nodes": judged.iter().map(|(node, verdict)| json!({"node": node, "verdict": verdict})).collect::<Vec<_>>(),
        }));
    }
    let json = json!({
        "key": seen.key, "issued": crate::api::instant(seen.issued), "age_seconds": age,
        "characters": args.token.len(), "seal": seal, "owed": seen.token.is_owed(), "positions": positions,
    });
    output.rows(&["WHAT", "SAYS"], rows, &json)
}

/// Positions with the name of their system; the store's own is not in the text.
fn named(positions: &[Mark], name: Option<&str>) -> Vec<Mark> {
    let own = name.unwrap_or(UNNAMED);
    let named = |mark: &Mark| {
        let system = if mark.system.is_empty() { own.to_owned() } else { mark.system.clone() };
        Mark { system, ..mark.clone() }
    };
    positions.iter().map(named).collect()
}

fn judgment(mark: &Mark, node: &Seen) -> String {
    match &node.said {
        Err(why) => why.clone(),
        Ok(observed) => match verdict(mark, observed) {
            Verdict::Satisfied => "satisfied".to_owned(),
            Verdict::Behind { by: Some(by) } => format!("behind by {by}"),
            Verdict::Behind { by: None } => {
                "behind: it does not follow that history, or cannot tell".to_owned()
            }
            Verdict::Lost { since: Some(at) } => format!("lost: its history was left at {at}"),
            Verdict::Lost { since: None } => "lost: no history of this node has it".to_owned(),
            Verdict::Foreign => "foreign: another system".to_owned(),
        },
    }
}

fn span(seconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::unhex;

    #[test]
    fn keys_are_bytes_or_digits() {
        assert_eq!(unhex(b"00ff7A"), Some(vec![0, 255, 122]));
        assert_eq!(unhex(b"00f"), None);
        assert_eq!(unhex(b"zz"), None);
    }
}
