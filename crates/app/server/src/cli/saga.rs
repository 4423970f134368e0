//! `saga`: start, list, show and move sagas of a running node; `saga check` needs none.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use mainstay_saga::definition::{Definition, DefinitionError, Lint};
use serde_json::{Map, Value, json};

use crate::cli::client::{Client, ServerArgs, segment};
use crate::cli::output::{next_look, plain_lines};
use crate::cli::progress::Progress;
use crate::cli::{Output, print};
use crate::error::{Code, Error, Result};
use crate::files;

/// How often something that is watched is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Largest file of an input: no node takes so much.
const MAX_INPUT: u64 = 16 * 1024 * 1024;
/// Largest definition that is read from a file; over the API it is bounded by `server.body_limit`.
const MAX_DEFINITION: u64 = 16 * 1024 * 1024;

/// Arguments of `saga`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    server: ServerArgs,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a saga.
    Run {
        /// Name of the definition.
        definition: String,
        /// Input as JSON, or @FILE.
        #[arg(long, default_value = "{}")]
        input: String,
        /// Your id of the saga, unique per definition; without: one is made.
        #[arg(long)]
        id: Option<String>,
        /// The Idempotency-Key; without: one is made. Repeat it to repeat a lost start.
        #[arg(long)]
        key: Option<String>,
        /// Wait until the saga ends or needs a person, at most this long.
        #[arg(long, value_parser = humantime::parse_duration)]
        wait: Option<std::time::Duration>,
    },
    /// List sagas, newest first.
    Ls {
        /// A filter as in the API, for example status=needs_attention or attempt_gte=3; repeatable.
        #[arg(value_name = "FIELD=VALUE")]
        filters: Vec<String>,
        /// Most rows.
        #[arg(long, default_value_t = 50)]
        limit: u16,
        /// Look again every second and print what changed, until interrupted.
        #[arg(short, long)]
        watch: bool,
    },
    /// Show a saga: its steps, and what a person may do.
    Show {
        /// The saga's uid, or its id if no other saga has it.
        uid: String,
        /// Print it again with every change, until it ends or needs a person.
        #[arg(short, long)]
        watch: bool,
    },
    /// Try a step again, now; or, of a saga that the node set aside, read it anew.
    Retry {
        #[command(flatten)]
        on: OnSaga,
        /// The step; none for a saga that the node set aside as a whole.
        #[arg(long)]
        step: Option<String>,
        /// Another input as JSON, or @FILE.
        #[arg(long, requires = "step")]
        input: Option<String>,
    },
    /// Say what happened to a step whose outcome nobody knows.
    Resolve {
        #[command(flatten)]
        on: OnStep,
        /// What happened.
        #[arg(long = "as", value_enum)]
        outcome: Resolved,
        /// The output of a step that is done, as JSON, or @FILE.
        #[arg(long)]
        output_json: Option<String>,
    },
    /// Leave a step or its undo as it is.
    Skip {
        #[command(flatten)]
        on: OnStep,
    },
    /// Record that you know that a saga is overdue; it goes on as before.
    Acknowledge {
        #[command(flatten)]
        on: OnSaga,
    },
    /// Turn back: undo what was done.
    Cancel {
        #[command(flatten)]
        on: OnSaga,
    },
    /// Turn back as an operator.
    Compensate {
        #[command(flatten)]
        on: OnSaga,
    },
    /// Start nothing new until resumed.
    Pause {
        #[command(flatten)]
        on: OnSaga,
    },
    /// Go on after a pause.
    Resume {
        #[command(flatten)]
        on: OnSaga,
    },
    /// Close a saga with its effects remaining, also one that the node cannot read.
    Abandon {
        #[command(flatten)]
        on: OnSaga,
    },
    /// Start a new saga in the place of a finished one.
    RunAgain {
        #[command(flatten)]
        on: OnSaga,
        /// From this step on; what was done before it is taken over. Without: from the beginning.
        #[arg(long)]
        from: Option<String>,
        /// Another input as JSON, or @FILE; only from the beginning.
        #[arg(long)]
        input: Option<String>,
        /// Your id of the new saga.
        #[arg(long)]
        id: Option<String>,
        /// The Idempotency-Key; without: one is made. Repeat it to repeat a lost start.
        #[arg(long)]
        key: Option<String>,
    },
    /// One action on every saga that matches; prints how many matched and, with --yes, what came of it.
    Bulk {
        /// retry, skip, resolve, cancel, compensate, pause, resume, acknowledge or abandon.
        action: String,
        /// A filter as in the API, for example status=needs_attention; repeatable.
        #[arg(value_name = "FIELD=VALUE", required = true)]
        filters: Vec<String>,
        /// The step, for retry, skip and resolve.
        #[arg(long)]
        step: Option<String>,
        /// What happened, for resolve.
        #[arg(long = "as", value_enum)]
        outcome: Option<Resolved>,
        /// Why; stands in the audit.
        #[arg(long)]
        reason: String,
        /// Do it; without, only the number is printed.
        #[arg(long)]
        yes: bool,
    },
    /// Everything about a saga in one JSON document.
    Export {
        /// The saga's uid, or its id if no other saga has it.
        uid: String,
    },
    /// Check a definition file offline: what refuses it, and what is suspicious about it.
    Check {
        /// The file, TOML or JSON.
        file: PathBuf,
        /// Fail on what is suspicious too.
        #[arg(long)]
        strict: bool,
    },
}

#[derive(Debug, clap::Args)]
struct OnSaga {
    /// The saga's uid, or its id if no other saga has it.
    uid: String,
    /// Why, or the evidence; stands in the audit.
    #[arg(long)]
    reason: String,
}

#[derive(Debug, clap::Args)]
struct OnStep {
    #[command(flatten)]
    saga: OnSaga,
    /// The step.
    #[arg(long)]
    step: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Resolved {
    Done,
    NotDone,
    Undone,
}

/// Runs `saga`.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let Verb::Check { file, strict } = &args.verb {
        return check(file, *strict, args.output);
    }
    let client = Client::new(&args.server)?;
    match &args.verb {
        Verb::Run { definition, input, id, key, wait } => {
            let mut body = json!({"definition": definition, "input": json_arg("--input", input)?});
            if let Some(id) = id {
                body["id"] = id.as_str().into();
            }
            start(&client, &body, &key_or_new(key.as_deref()), *wait, args.output)
        }
        Verb::Ls { filters, limit, watch } => list(&client, filters, *limit, *watch, args.output),
        Verb::Show { uid, watch: false } => show(&client, &found(&client, uid)?, args.output),
        Verb::Show { uid, watch: true } => follow(&client, &found(&client, uid)?, args.output),
        Verb::Export { uid } => {
            let path = format!("/v1/sagas/{}/export", segment(&found(&client, uid)?));
            print(&client.call("GET", &path, &[], None)?.text)
        }
        Verb::Retry { on, step, input } => {
            let mut body = json!({"action": "retry"});
            if let Some(step) = step {
                body["step"] = step.as_str().into();
            }
            if let Some(input) = input {
                body["input"] = json_arg("--input", input)?;
            }
            act(&client, on, body, args.output)
        }
        Verb::Resolve { on, outcome, output_json } => {
            let outcome = outcome.to_possible_value().expect("invariant: no value is skipped");
            let mut body = json!({"action": "resolve", "step": on.step, "as": outcome.get_name()});
            if let Some(output) = output_json {
                body["output"] = json_arg("--output-json", output)?;
            }
            act(&client, &on.saga, body, args.output)
        }
        Verb::Skip { on } => act(&client, &on.saga, json!({"action": "skip", "step": on.step}), args.output),
        Verb::Acknowledge { on } => act(&client, on, json!({"action": "acknowledge"}), args.output),
        Verb::Cancel { on } => act(&client, on, json!({"action": "cancel"}), args.output),
        Verb::Compensate { on } => act(&client, on, json!({"action": "compensate"}), args.output),
        Verb::Pause { on } => act(&client, on, json!({"action": "pause"}), args.output),
        Verb::Resume { on } => act(&client, on, json!({"action": "resume"}), args.output),
        Verb::Abandon { on } => act(&client, on, json!({"action": "abandon"}), args.output),
        Verb::RunAgain { on, from, input, id, key } => {
            let mut body = json!({"action": "run_again"});
            for (name, value) in [("from", from), ("id", id)] {
                if let Some(value) = value {
                    body[name] = value.as_str().into();
                }
            }
            if let Some(input) = input {
                body["input"] = json_arg("--input", input)?;
            }
            run_again(&client, on, &key_or_new(key.as_deref()), body, args.output)
        }
        Verb::Bulk { action, filters, step, outcome, reason, yes } => {
            let mut body = json!({"action": action, "reason": reason, "dry_run": !yes});
            if let Some(step) = step {
                body["step"] = step.as_str().into();
            }
            if let Some(outcome) = outcome {
                let outcome = outcome.to_possible_value().expect("invariant: no value is skipped");
                body["as"] = outcome.get_name().into();
            }
            for filter in filters {
                let (name, value) = pair(filter)?;
                body["filter"][name] = value.into();
            }
            bulk(&client, &body, args.output)
        }
        Verb::Check { .. } => Ok(ExitCode::SUCCESS),
    }
}

fn key_or_new(given: Option<&str>) -> String {
    given.map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned)
}

/// `FIELD=VALUE`; `error~=text` keeps its tilde in the name.
fn pair(filter: &str) -> Result<(&str, &str)> {
    filter.split_once('=').ok_or_else(|| Error::new(Code::BadValue, format!("`{filter}` is not FIELD=VALUE")))
}

/// JSON text, or the file after an `@`, of the argument `name`.
fn json_arg(name: &str, given: &str) -> Result<Value> {
    let (place, text) = match given.strip_prefix('@') {
        Some(path) => {
            let failed = |e| Error::with(Code::BadValue, format!("{name}: cannot read {path}"), e);
            (format!("{name}: {path}"), files::text(Path::new(path), MAX_INPUT).map_err(failed)?)
        }
        None => (name.to_owned(), given.to_owned()),
    };
    serde_json::from_str(&text).map_err(|e| Error::with(Code::BadValue, format!("{place} is not JSON"), e))
}

fn start(
    client: &Client,
    body: &Value,
    key: &str,
    wait: Option<std::time::Duration>,
    output: Output,
) -> Result<ExitCode> {
    // Also where it began and the answers to what comes after are lost: nothing was printed yet.
    started(client, body, key, wait, output).map_err(|e| repeatable(e, key))
}

fn started(
    client: &Client,
    body: &Value,
    key: &str,
    wait: Option<std::time::Duration>,
    output: Output,
) -> Result<ExitCode> {
    let begun = client.call("POST", "/v1/sagas", &[("idempotency-key", key)], Some(body))?;
    let uid = begun.field("uid")?.to_owned();
    let Some(wait) = wait else { return show(client, &uid, output) };
    let ended = wait_for(client, &uid, wait)?;
    let done = ended["status"] == "completed";
    show(client, &uid, output)?;
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is to be known of a start whose answer says nothing of its outcome: the key that makes a repetition harmless.
fn repeatable(error: Error, key: &str) -> Error {
    match error.code() {
        Code::Unreachable | Code::StoreUnavailable | Code::TimedOut | Code::Internal => {
            let why = format!("{}; with --key {key} it can be said again and begins once", error.chain());
            Error::new(error.code(), why)
        }
        _ => error,
    }
}

/// Waits until a saga ends or needs a person, at most this long, and shows its progress. The saga as it is then.
fn wait_for(client: &Client, uid: &str, most: Duration) -> Result<Value> {
    let mut progress = Progress::new();
    let mut left = most;
    loop {
        let now = LOOK.min(left);
        let path = format!("/v1/sagas/{}?wait={}ms", segment(uid), now.as_millis());
        let saga = client.call("GET", &path, &[], None)?.body;
        progress.show(&saga);
        left = left.saturating_sub(now);
        if is_settled(&saga) || left.is_zero() {
            progress.end();
            return Ok(saga);
        }
    }
}

/// Whether nothing moves without a person.
fn is_settled(saga: &Value) -> bool {
    let status = saga["status"].as_str().unwrap_or_default();
    matches!(status, "completed" | "compensated" | "abandoned" | "needs_attention")
}

/// Prints a saga with every change until it is settled.
fn follow(client: &Client, uid: &str, output: Output) -> Result<ExitCode> {
    let path = format!("/v1/sagas/{}", segment(uid));
    let mut last = client.call("GET", &path, &[], None)?.body;
    show(client, uid, output)?;
    while !is_settled(&last) {
        let path = format!("{path}?wait={}ms", LOOK.as_millis());
        let saga = client.call("GET", &path, &[], None)?.body;
        if saga["next_seq"] != last["next_seq"] {
            next_look()?;
            show(client, uid, output)?;
        }
        last = saga;
    }
    Ok(ExitCode::SUCCESS)
}

fn run_again(client: &Client, on: &OnSaga, key: &str, mut body: Value, output: Output) -> Result<ExitCode> {
    let path = format!("/v1/sagas/{}", segment(&found(client, &on.uid)?));
    let etag = client.call("GET", &path, &[], None)?.etag.unwrap_or_default();
    body["reason"] = on.reason.as_str().into();
    let headers = [("if-match", etag.as_str()), ("idempotency-key", key)];
    let begun = client.call("POST", &format!("{path}/actions"), &headers, Some(&body));
    begun.and_then(|begun| show(client, begun.field("uid")?, output)).map_err(|e| repeatable(e, key))
}

/// Exit code 1 when an item failed.
fn bulk(client: &Client, body: &Value, output: Output) -> Result<ExitCode> {
    let mut job = client.call("POST", "/v1/sagas/actions", &[], Some(body))?.body;
    if job["dry_run"] == true {
        eprintln!("mainstay: nothing was done; --yes does it to as many as match then");
        return output.rows(&["MATCH"], vec![vec![text(&job["total"])]], &job);
    }
    let path = format!("/v1/jobs/{}", segment(job["id"].as_str().unwrap_or_default()));
    while job["status"] != "finished" {
        client.pause(LOOK / 5);
        job = client.call("GET", &path, &[], None)?.body;
    }
    let row = ["total", "done", "failures"].map(|f| text(&job[f])).to_vec();
    output.rows(&["TOTAL", "DONE", "FAILED"], vec![row], &job)?;
    Ok(if job["failures"] == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Lists sagas; with `watch` again and again, until stdout or the process ends.
fn list(client: &Client, filters: &[String], limit: u16, watch: bool, output: Output) -> Result<ExitCode> {
    let mut last = Value::Null;
    loop {
        let seen = list_once(client, filters, limit, &last, output)?;
        if !watch {
            return Ok(ExitCode::SUCCESS);
        }
        last = seen;
        client.pause(LOOK);
    }
}

/// One look; prints unless it is what was seen last.
fn list_once(client: &Client, filters: &[String], limit: u16, last: &Value, output: Output) -> Result<Value> {
    let mut path = format!("/v1/sagas?limit={limit}");
    for filter in filters {
        let (name, value) = pair(filter)?;
        path.push_str(&format!("&{}={}", segment(name), segment(value)));
    }
    let answer = client.call("GET", &path, &[], None)?;
    if &answer.body != last {
        if !last.is_null() {
            next_look()?;
        }
        let rows = answer.items()?.iter().map(row).collect();
        output.rows(
            &["UID", "DEFINITION", "ID", "STATUS", "STEP", "ATTEMPT", "ERROR"],
            rows,
            &answer.body,
        )?;
    }
    Ok(answer.body)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The same for a person: a list without its brackets.
fn cell(value: &Value) -> String {
    value.as_array().map_or_else(|| text(value), |list| list.iter().map(text).collect::<Vec<_>>().join(", "))
}

/// Whether nothing new starts. What has ended is not held up by anybody.
fn is_paused(saga: &Value) -> bool {
    let over = matches!(saga["status"].as_str(), Some("completed" | "compensated" | "abandoned"));
    saga["paused"] == true && !over
}

fn row(saga: &Value) -> Vec<String> {
    let late = if saga["overdue"] == true { ", overdue" } else { "" };
    let paused = if is_paused(saga) { ", paused" } else { "" };
    let fields = ["uid", "definition", "id", "status", "step", "attempt", "error"].iter();
    fields
        .map(|f| if *f == "status" { format!("{}{late}{paused}", text(&saga[*f])) } else { text(&saga[*f]) })
        .collect()
}

fn show(client: &Client, uid: &str, output: Output) -> Result<ExitCode> {
    let saga = client.call("GET", &format!("/v1/sagas/{}", segment(uid)), &[], None)?.body;
    if output == Output::Table {
        print(&headed(&saga))?;
    }
    let none = Map::new();
    let rows = saga["steps"].as_array().into_iter().flatten().map(|step| {
        let fields = step.as_object().unwrap_or(&none);
        ["name", "state", "attempts", "undo_attempts", "last_error", "actions"]
            .iter()
            .map(|f| fields.get(*f).map(cell).unwrap_or_default())
            .collect()
    });
    let head = ["STEP", "STATE", "ATTEMPTS", "UNDO ATTEMPTS", "LAST ERROR", "ACTIONS"];
    output.rows(&head, rows.collect(), &saga)
}

/// Everything before the table of steps. Ids and reasons are texts of others: none of them moves the cursor.
fn headed(saga: &Value) -> String {
    let head = row(saga);
    let text = format!("{} {} {}: {}\n{}", head[0], head[1], head[2], head[3], whole(saga));
    format!("{}\n", plain_lines(&text))
}

/// What is to be said before the steps: of the saga as a whole, and why a step needs a person.
fn whole(saga: &Value) -> String {
    let mut lines = String::new();
    if is_paused(saga) {
        lines.push_str("paused: nothing new starts, a retry neither, until it is resumed\n");
    }
    for step in saga["steps"].as_array().into_iter().flatten() {
        let Some(needs) = step["needs"].as_str() else { continue };
        let about = match needs {
            "contract_broken" => "its participant answered what the contract does not allow",
            "retriable_exhausted" => "it keeps failing behind the pivot, and is still tried",
            "undo_failed" => "its undo was refused or keeps failing",
            "unknown_outcome" => "nobody knows whether it happened",
            _ => "it needs a person",
        };
        lines.push_str(&format!("step {}: {about} ({needs})\n", text(&step["name"])));
        if let Some(runbook) = step["runbook"].as_str() {
            lines.push_str(&format!("runbook: {runbook}\n"));
        }
    }
    if let Some(why) = saga["unreadable"].as_str() {
        lines.push_str(&format!("cannot be read: {why}\n"));
    }
    if let Some(why) = saga["set_aside"].as_str() {
        lines.push_str(&format!("set aside: {why}\n"));
    }
    if saga["overdue"] == true {
        lines.push_str(
            "overdue: its deadline passed when there was no way back, and nobody acknowledged that\n",
        );
    }
    let actions: Vec<&str> =
        saga["actions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !actions.is_empty() {
        lines.push_str(&format!("possible on the saga: {}\n", actions.join(", ")));
    }
    lines
}

/// Reads the saga, then acts on exactly what was read.
fn act(client: &Client, on: &OnSaga, mut body: Value, output: Output) -> Result<ExitCode> {
    let uid = found(client, &on.uid)?;
    let path = format!("/v1/sagas/{}", segment(&uid));
    let seen = client.call("GET", &path, &[], None)?;
    let etag = seen.etag.unwrap_or_default();
    body["reason"] = on.reason.as_str().into();
    client.call("POST", &format!("{path}/actions"), &[("if-match", &etag)], Some(&body))?;
    show(client, &uid, output)
}

/// The uid of the saga that a person means: people know the id that they gave, which may look like a uid as well.
fn found(client: &Client, name: &str) -> Result<String> {
    if uuid::Uuid::parse_str(name).is_ok() {
        match client.call("GET", &format!("/v1/sagas/{}", segment(name)), &[], None) {
            Err(e) if e.code() == Code::NotFound => {}
            other => return other.map(|_| name.to_owned()),
        }
    }
    let path = format!("/v1/sagas?limit=2&id={}", segment(name));
    match client.call("GET", &path, &[], None)?.items()? {
        [] => Err(Error::new(Code::NotFound, format!("no saga has the uid or the id `{name}`"))),
        [one] => Ok(text(&one["uid"])),
        _ => {
            let why = format!(
                "several sagas have the id `{name}`; name one by its uid: mainstay saga ls id={name}"
            );
            Err(Error::new(Code::BadValue, why))
        }
    }
}

/// Reads a definition by its extension. The outer error: the file cannot be read.
fn parse_definition(file: &Path) -> Result<std::result::Result<Definition, DefinitionError>> {
    let unreadable = |e| Error::with(Code::BadDefinition, format!("cannot read {}", file.display()), e);
    let text = files::text(file, MAX_DEFINITION).map_err(unreadable)?;
    Ok(match file.extension().is_some_and(|e| e == "json") {
        true => Definition::from_json(text.as_bytes()),
        false => Definition::from_toml(&text),
    })
}

/// Reads a definition that must be valid.
///
/// # Errors
/// Every problem of the file.
pub(crate) fn read_definition(file: &Path) -> Result<Definition> {
    let refused = |e| Error::with(Code::BadDefinition, file.display().to_string(), e);
    parse_definition(file)?.map_err(refused)
}

fn check(file: &Path, strict: bool, output: Output) -> Result<ExitCode> {
    match parse_definition(file)? {
        Ok(definition) => {
            let (name, version) = (definition.name(), definition.version());
            let row = vec![format!("{name} version {version}"), definition.steps().len().to_string()];
            let lints = definition.lints();
            let warning = |l: &Lint| json!({"code": l.code(), "step": l.step(), "message": l.to_string()});
            let warnings: Vec<Value> = lints.iter().map(warning).collect();
            let json =
                json!({"ok": true, "name": name, "version": version, "problems": [], "warnings": warnings});
            output.rows(&["DEFINITION", "STEPS"], vec![row], &json)?;
            if output == Output::Table && !lints.is_empty() {
                let rows = lints.iter().map(|l| vec![l.to_string()]).collect();
                output.rows(&["WARNING"], rows, &Value::Null)?;
            }
            Ok(if strict && !lints.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Err(error) => {
            let found: Vec<String> = error.problems().iter().map(ToString::to_string).collect();
            let rows = found.iter().map(|p| vec![p.clone()]).collect();
            output.rows(&["PROBLEM"], rows, &json!({"ok": false, "problems": found, "warnings": []}))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_step_says_is_said_of_the_saga() {
        let aside = json!({"status": "needs_attention", "set_aside": "its log is full", "actions": ["cancel", "pause"],
            "steps": [{"needs": null}]});
        assert_eq!(whole(&aside), "set aside: its log is full\npossible on the saga: cancel, pause\n");
        let step = json!({"status": "needs_attention", "error": "b: lost", "steps": [
            {"name": "a", "needs": null, "runbook": "none"},
            {"name": "b", "needs": "unknown_outcome", "runbook": "Ask the bank."}]});
        assert_eq!(
            whole(&step),
            "step b: nobody knows whether it happened (unknown_outcome)\nrunbook: Ask the bank.\n"
        );
        let damaged = json!({"status": "needs_attention", "error": null, "unreadable": "the log is damaged"});
        assert_eq!(whole(&damaged), "cannot be read: the log is damaged\n");
        // A retry of a paused saga makes it "running", and nothing runs.
        let paused = json!({"status": "running", "paused": true});
        assert!(whole(&paused).starts_with("paused: ") && row(&paused)[3] == "running, paused");
        assert_eq!(whole(&json!({"status": "compensated", "paused": true})), "");
        // An id that cleared the screen of whoever looked.
        let hostile = json!({"id": "a\u{1b}[2J", "status": "running", "set_aside": "\u{1b}[1A"});
        assert!(!headed(&hostile).contains('\u{1b}'), "{:?}", headed(&hostile));
        let late = json!({"status": "running", "overdue": true});
        assert!(whole(&late).starts_with("overdue: ") && row(&late)[3] == "running, overdue");
    }
}
