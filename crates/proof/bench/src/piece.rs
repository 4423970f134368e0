//! A long suite in pieces: each is measured by itself, when the machine is free, and kept until the report.
//!
//! A kept piece belongs to the programs and options it was measured with. With others it is measured again: a
//! report never mixes two builds.

use std::path::Path;
use std::time::SystemTime;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{Options, machine};

/// What one piece came to: the lines that its program said.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// When it was measured, and under which load.
    pub(crate) when: String,
}

/// Measures the piece `name`, or reads what is kept of it. `None` when others were asked for.
pub(crate) fn measure(
    options: &Options,
    name: &str,
    run: impl FnOnce() -> anyhow::Result<String>,
) -> anyhow::Result<Option<Piece>> {
    let file = options.pieces.as_ref().map(|dir| dir.join(format!("{name}.json")));
    let build = build(options)?;
    if let Some(kept) = file.as_deref().and_then(|f| read(f, &build)) {
        return Ok(Some(kept));
    }
    if !options.only.is_empty() && !options.only.iter().any(|o| o == name) {
        return Ok(None);
    }
    let load = machine::load();
    let text = run().with_context(|| format!("piece {name}"))?;
    let piece = Piece { text, when: format!("{}, load {load}", machine::minute()) };
    if let Some(file) = file {
        std::fs::create_dir_all(file.parent().context("no folder for pieces")?)?;
        let kept = json!({"build": build, "when": piece.when, "text": piece.text});
        std::fs::write(&file, kept.to_string()).with_context(|| file.display().to_string())?;
    }
    Ok(Some(piece))
}

fn read(file: &Path, build: &str) -> Option<Piece> {
    let kept: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let text = |name: &str| kept[name].as_str().map(str::to_owned);
    (text("build")? == build).then_some(Piece { text: text("text")?, when: text("when")? })
}

/// What a figure depends on: the programs, and how long and how often they are measured.
fn build(options: &Options) -> anyhow::Result<String> {
    let own = std::env::current_exe().context("this program has no path")?;
    let stamp = |file: &Path| {
        let found = std::fs::metadata(file).ok()?;
        let age = found.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(format!("{} {}", found.len(), age.as_nanos()))
    };
    let server = options.server.as_deref().and_then(stamp);
    Ok(format!("{:?} {server:?} {} {}", stamp(&own), options.seconds, options.repeat))
}

#[cfg(test)]
mod tests {
    use super::measure;
    use crate::Options;

    fn options(words: &str) -> Options {
        Options::read(words.split_whitespace().map(str::to_owned)).unwrap()
    }

    #[test]
    fn a_piece_is_measured_once_and_again_with_other_options() {
        let dir = tempfile::tempdir().unwrap();
        let pieces = format!("--pieces {}", dir.path().display());
        let said = |o: &Options, text: &str| measure(o, "a", || Ok(text.to_owned())).unwrap().map(|p| p.text);
        assert_eq!(said(&options(&format!("{pieces} --only b")), "0"), None);
        assert_eq!(said(&options(&pieces), "1").as_deref(), Some("1"));
        assert_eq!(said(&options(&pieces), "2").as_deref(), Some("1"), "it is kept");
        assert_eq!(said(&options(&format!("{pieces} --only b")), "2").as_deref(), Some("1"));
        assert_eq!(said(&options(&format!("{pieces} --seconds 9")), "3").as_deref(), Some("3"));
        assert_eq!(said(&options(""), "4").as_deref(), Some("4"), "nothing is kept without a folder");
    }
}
