//! `replica diff|replay`: what two copies of the replicated document do not agree on, and why. Works on snapshots, without
//! a node, and between running nodes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use mainstay_consistency::Join as _;
use mainstay_consistency::crdt::{Any, AnyKind, Document, DotStore as _};
use mainstay_consistency::version::Dot;
use mainstay_consistency::wire::decode;
use mainstay_gossip::Snapshot;
use serde_json::{Map, Value, json};

use crate::cli::Output;
use crate::cli::client::{AccessArgs, Client};
use crate::cli::output::plain;
use crate::error::{Code, Error, Result};
use crate::fleet::MAX_STATE;

/// Arguments of `replica`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show which keys of two copies differ, by which changes, and why. Exit code 1 when one does.
    Diff {
        /// A running node, as http://127.0.0.1:4600; or a snapshot: gossip.state of a data folder.
        a: String,
        /// Another one.
        b: String,
        #[command(flatten)]
        access: AccessArgs,
    },
    /// Join the snapshots of a file, one after the other, and show the result; in the other order it must be the same.
    Replay {
        /// Snapshots in a row, as `cat` puts them together.
        file: PathBuf,
    },
}

/// Runs `replica`.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.verb {
        Verb::Diff { a, b, access } => diff(&one(a, access)?, &one(b, access)?, args.output),
        Verb::Replay { file } => replay(file, args.output),
    }
}

/// A snapshot with its document.
struct Copy {
    head: Snapshot,
    doc: Document,
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file)
        .map_err(|e| Error::with(Code::GossipState, format!("cannot read {}", file.display()), e))
}

/// The copies in `bytes`, which came from `place`.
fn copies(bytes: &[u8], place: &str) -> Result<Vec<Copy>> {
    let unusable = |e| Error::with(Code::GossipState, format!("cannot use {place}"), e);
    let mut copies = Vec::new();
    for head in Snapshot::decode_all(bytes).map_err(unusable)? {
        let doc = decode(&head.state).map_err(|e| {
            let why = format!("{place} holds no document such as `mainstay serve` keeps");
            Error::with(Code::GossipState, why, e)
        })?;
        copies.push(Copy { head, doc });
    }
    Ok(copies)
}

/// The copy of the node at a URL, or the one in a file.
fn one(place: &str, access: &AccessArgs) -> Result<Copy> {
    let is_node = ["http://", "https://"].iter().any(|scheme| place.starts_with(scheme));
    let bytes = if is_node {
        Client::of(place, access)?.fetch("/v1/nodes/state", MAX_STATE)?
    } else {
        read(Path::new(place))?
    };
    let mut copies = copies(&bytes, place)?;
    match copies.pop() {
        Some(copy) if copies.is_empty() => Ok(copy),
        _ => Err(Error::new(Code::GossipState, format!("{place} is not one snapshot"))),
    }
}

/// Changes that a value rests on.
fn dots(any: Option<&Any>) -> BTreeSet<Dot> {
    let mut all = BTreeSet::new();
    if let Some(any) = any {
        any.any_dot(&mut |dot| {
            all.insert(dot);
            false
        });
    }
    all
}

/// Why `theirs` lacks changes that are visible in `mine`.
fn why(mine: &BTreeSet<Dot>, their_dots: &BTreeSet<Dot>, theirs: &Document, who: &str) -> Vec<String> {
    let lacks = mine.difference(their_dots);
    let (gone, unseen): (Vec<Dot>, Vec<Dot>) =
        lacks.copied().partition(|dot| theirs.context().contains(*dot));
    let list = |dots: Vec<Dot>| dots.iter().map(|d| format!("{d:?}")).collect::<Vec<_>>().join(" ");
    let mut reasons = Vec::new();
    if !unseen.is_empty() {
        reasons.push(format!("{who} has not seen {}", list(unseen)));
    }
    if !gone.is_empty() {
        reasons.push(format!("{who} has seen and replaced or removed {}", list(gone)));
    }
    reasons
}

fn diff(a: &Copy, b: &Copy, output: Output) -> Result<ExitCode> {
    if a.head.cluster != b.head.cluster {
        let why = format!("one is of cluster `{}`, the other of `{}`", a.head.cluster, b.head.cluster);
        return Err(Error::new(Code::GossipState, why));
    }
    let keys: BTreeSet<&String> = a.doc.iter().chain(b.doc.iter()).map(|(key, _)| key).collect();
    let (mut rows, mut found) = (Vec::new(), Vec::new());
    for key in keys {
        let (x, y) = (a.doc.get(key), b.doc.get(key));
        if x == y {
            continue;
        }
        let (dx, dy) = (dots(x), dots(y));
        let mut reasons = why(&dx, &dy, &b.doc, "B");
        reasons.extend(why(&dy, &dx, &a.doc, "A"));
        let (x, y) = (x.map(shown), y.map(shown));
        let cell = |v: &Option<Value>| v.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        rows.push(vec![key.clone(), cell(&x), cell(&y), reasons.join("; ")]);
        found.push(json!({"key": key, "a": x, "b": y, "why": reasons}));
    }
    let same = found.is_empty();
    // Removals mint no change of their own: contexts may differ where no key does.
    let lacks = |mine: &Copy, theirs: &Copy| theirs.doc.context().minus(mine.doc.context()).count();
    let (a_lacks, b_lacks) = (lacks(a, b), lacks(b, a));
    for (which, copy, lacks, other) in [("A", a, a_lacks, "B"), ("B", b, b_lacks, "A")] {
        let (name, epoch) = (plain(&copy.head.name), copy.head.epoch);
        eprintln!("mainstay: {which} is `{name}`, epoch {epoch}: it has not seen {lacks} changes of {other}");
    }
    let contexts = a_lacks == 0 && b_lacks == 0;
    if same {
        let also = if contexts { "" } else { "; one of them has seen more changes that are gone since" };
        eprintln!("mainstay: no key differs{also}");
    }
    let json = json!({
        "same": same, "same_context": contexts, "a": about(a, a_lacks), "b": about(b, b_lacks), "keys": found,
    });
    output.rows(&["KEY", "A", "B", "WHY"], rows, &json)?;
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whose copy it is, and how many changes of the other one it has not seen.
fn about(copy: &Copy, lacks: u64) -> Value {
    json!({"name": copy.head.name, "epoch": copy.head.epoch, "unseen": lacks})
}

/// The join of `copies` in this order.
fn joined<'a>(copies: impl Iterator<Item = &'a Copy>) -> Result<Document> {
    let mut all = Document::new();
    for copy in copies {
        let _ = all.join(&copy.doc).map_err(|e| {
            let why = format!("the snapshot of `{}` does not join what came before", copy.head.name);
            Error::with(Code::GossipState, why, e)
        })?;
    }
    Ok(all)
}

fn replay(file: &Path, output: Output) -> Result<ExitCode> {
    let copies = copies(&read(file)?, &file.display().to_string())?;
    let (forward, backward) = (joined(copies.iter())?, joined(copies.iter().rev())?);
    for copy in &copies {
        let behind = forward.context().minus(copy.doc.context()).count();
        eprintln!(
            "mainstay: {} epoch {}: {} keys, {behind} changes behind the join",
            copy.head.name,
            copy.head.epoch,
            copy.doc.len()
        );
    }
    if forward != backward {
        eprintln!("mainstay: DIVERGED: the same snapshots joined in the other order give another document");
    }
    let rows =
        forward.iter().map(|(key, any)| vec![key.clone(), kind(any).to_owned(), shown(any).to_string()]);
    let keys: Map<String, Value> = forward.iter().map(|(key, any)| (key.clone(), shown(any))).collect();
    let same = forward == backward;
    let json = json!({"snapshots": copies.len(), "converged": same, "keys": keys});
    output.rows(&["KEY", "TYPE", "VALUE"], rows.collect(), &json)?;
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn kind(any: &Any) -> &'static str {
    match any.kind() {
        AnyKind::Counter => "counter",
        AnyKind::Flag => "flag",
        AnyKind::Map => "map",
        AnyKind::Register => "register",
        AnyKind::Set => "set",
        _ => "empty",
    }
}

/// Bytes as people wrote them: JSON, text, or their number.
fn text(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).ok().unwrap_or_else(|| match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => Value::from(format!("{} bytes", bytes.len())),
    })
}

/// What a person sees of a value.
fn shown(any: &Any) -> Value {
    if let Some(counter) = any.as_counter() {
        return Value::from(counter.total().to_string());
    }
    if let Some(flag) = any.as_flag() {
        return Value::from(flag.is_on());
    }
    if let Some(register) = any.as_register() {
        let values: Vec<Value> = register.values().map(|v| text(v)).collect();
        // Several are writes that did not know of each other.
        return if let [value] = &values[..] { value.clone() } else { Value::from(values) };
    }
    if let Some(set) = any.as_set() {
        return set.iter().map(|(element, _)| text(element)).collect();
    }
    any.as_map().map_or(Value::Null, |map| map.iter().map(|(key, any)| (key.clone(), shown(any))).collect())
}

#[cfg(test)]
mod tests {
    use mainstay_consistency::wire::encode;
    use mainstay_consistency::{Actor, ActorId};

    use super::*;

    fn copy(name: &str, doc: &Document) -> Vec<u8> {
        let mut head = Snapshot::default();
        (head.cluster, head.name, head.state) = ("c".into(), name.into(), encode(doc));
        head.encode()
    }

    fn set(doc: &mut Document, actor: &mut Actor, key: &str, value: &str) -> Document {
        let bytes = value.as_bytes().to_vec();
        doc.update(actor, key.into(), |any, mint| any.register(mint, |r, mint| r.write_value(mint, bytes)))
            .unwrap()
    }

    #[test]
    fn a_key_that_was_not_seen_and_one_that_was_removed_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (mut at_a, mut at_b) = (Actor::new(ActorId::new(1, 1, 0)), Actor::new(ActorId::new(2, 1, 0)));
        let mut a = Document::new();
        set(&mut a, &mut at_a, "both", "1");
        let mut b = a.clone();
        set(&mut a, &mut at_a, "new", "2");
        b.remove(&mut at_b, &"both".into()).unwrap();
        let reasons = |x: &Document, y: &Document, key: &str| {
            why(&dots(x.get(&key.to_owned())), &dots(y.get(&key.to_owned())), y, "B")
        };
        assert_eq!(reasons(&a, &b, "new"), ["B has not seen 1.1.0:2"]);
        assert_eq!(reasons(&a, &b, "both"), ["B has seen and replaced or removed 1.1.0:1"]);
        let both = copies(&[copy("a", &a), copy("b", &b)].concat(), "here").unwrap();
        assert_eq!(diff(&both[0], &both[0], Output::Json).unwrap(), ExitCode::SUCCESS);
        assert_eq!(diff(&both[0], &both[1], Output::Json).unwrap(), ExitCode::FAILURE);
        let log = dir.path().join("log");
        std::fs::write(&log, [copy("a", &a), copy("b", &b)].concat()).unwrap();
        assert_eq!(replay(&log, Output::Json).unwrap(), ExitCode::SUCCESS);
        let both = joined(both.iter()).unwrap();
        assert!(both.get(&"new".into()).is_some() && both.get(&"both".into()).is_none());
    }

    #[test]
    fn what_does_not_join_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (mut a, mut b) = (Document::new(), Document::new());
        set(&mut a, &mut Actor::new(ActorId::new(1, 1, 0)), "k", "1");
        b.update(&mut Actor::new(ActorId::new(2, 1, 0)), "k".into(), |any, mint| {
            any.counter(mint, |c, mint| c.count(mint, 1, 0))
        })
        .unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, [copy("a", &a), copy("b", &b)].concat()).unwrap();
        let error = replay(&log, Output::Json).unwrap_err();
        assert_eq!(error.code(), Code::GossipState);
        assert!(error.chain().contains("`b` does not join"), "{}", error.chain());
        std::fs::write(&log, b"nonsense").unwrap();
        assert_eq!(replay(&log, Output::Json).unwrap_err().code(), Code::GossipState);
    }
}
