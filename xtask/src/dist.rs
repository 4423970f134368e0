//! `cargo xtask dist`: the binary for users, with the list of its dependencies inside and its bill of materials beside it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::tools::Tool;
use crate::{root, run, supply};

/// Builds programs that carry the list of what they were linked from (SEC-28): scanners read it without the sources.
const AUDITABLE: Tool = Tool { name: "cargo-auditable", version: "0.7.7" };

/// `cargo auditable build`.
fn build(root: &Path) -> anyhow::Result<Command> {
    let mut build = Command::new(AUDITABLE.program(root)?);
    build.args(["auditable", "build"]);
    Ok(build)
}

/// Name and version of everything that a program says it was linked from.
fn listed(program: &Path) -> anyhow::Result<BTreeSet<(String, String)>> {
    let info = auditable_info::audit_info_from_file(program, Default::default())
        .with_context(|| format!("{} carries no list of its dependencies", program.display()))?;
    let runtime = info.packages.iter().filter(|p| p.kind == auditable_serde::DependencyKind::Runtime);
    Ok(runtime.map(|p| (p.name.clone(), p.version.to_string())).collect())
}

/// Builds into `target/dist`, and reads the list back before it says so.
pub(crate) fn dist() -> anyhow::Result<()> {
    let root = root();
    run(build(&root)?.current_dir(&root).args(["--release", "--locked", "-p", "mainstay-server"]))?;
    let folder = root.join("target/dist");
    std::fs::create_dir_all(&folder)?;
    let program = folder.join("mainstay");
    std::fs::copy(crate::bench::target().join("release/mainstay"), &program)
        .context("target/release/mainstay")?;
    let bill = folder.join("mainstay.cdx.json");
    supply::sbom(&root, bill.to_str())?;
    let listed = listed(&program)?;
    let known = supply::linked_by(&root, "mainstay-server")?;
    let unknown: Vec<&(String, String)> = listed.difference(&known).collect();
    ensure!(unknown.is_empty(), "linked, and not in the bill of materials: {unknown:?}");
    if !listed.iter().any(|(name, _)| name == "mainstay-server") {
        bail!("the list does not name the program itself");
    }
    println!("{}: {} packages listed inside; {}", program.display(), listed.len(), bill.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{build, listed};

    /// A small program of two crates: what the tool writes is what is read back, and without the tool there is nothing.
    #[test]
    fn sec_28_a_built_program_carries_the_list_of_what_it_was_linked_from() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let package = |name: &str, version: &str| {
            format!("[package]\nname = \"{name}\"\nversion = \"{version}\"\nedition = \"2024\"\n")
        };
        write("inner/Cargo.toml", &package("inner", "2.3.4"));
        write("inner/src/lib.rs", "#[must_use]\npub fn one() -> u8 {\n    1\n}\n");
        let outer = package("outer", "0.1.7");
        write("Cargo.toml", &format!("{outer}[dependencies]\ninner = {{ path = \"inner\" }}\n[workspace]\n"));
        write("src/main.rs", "fn main() {\n    assert_eq!(inner::one(), 1);\n}\n");
        let program = dir.path().join("target/debug/outer");
        let run = |mut command: std::process::Command| {
            let output = command.current_dir(dir.path()).env_remove("CARGO_TARGET_DIR").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let mut plain = crate::cargo();
        plain.args(["build", "--offline"]);
        run(plain);
        assert!(listed(&program).unwrap_err().to_string().contains("no list of its dependencies"));
        let mut build = build(&crate::root()).unwrap();
        build.arg("--offline");
        run(build);
        let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        assert_eq!(listed(&program).unwrap(), [pair("inner", "2.3.4"), pair("outer", "0.1.7")].into());
    }
}
