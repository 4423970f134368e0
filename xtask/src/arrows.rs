//! Who may depend on whom: the arrows of the architecture, over `cargo metadata`.

use std::path::Path;

use anyhow::{Context as _, bail};
use cargo_metadata::{DependencyKind, MetadataCommand};

/// A package's place in the house: the folder above it.
fn wing(manifest: &str) -> &str {
    ["base", "patterns", "backends", "proof", "app"]
        .into_iter()
        .find(|w| manifest.contains(&format!("/crates/{w}/")))
        .unwrap_or("free")
}

/// Whether `from` may depend on `to`.
fn allowed(from: (&str, &str), to: (&str, &str)) -> bool {
    let (name, wing) = from;
    match wing {
        // xtask, examples.
        "free" => true,
        "base" => name == "mainstay-store" && to.0 == "mainstay-clock",
        "patterns" => to.1 == "base" || (name == "mainstay-saga" && to.0 == "mainstay-resilience"),
        "backends" => to.1 == "base" || (name == "mainstay-gossip" && to.0 == "mainstay-consistency"),
        "proof" if name == "mainstay-bench" => true,
        "proof" if name == "mainstay-chaos" => matches!(to.1, "base" | "patterns") || to.0 == "mainstay-sim",
        "proof" => to.1 == "base",
        "app" if name == "mainstay" => matches!(to.1, "base" | "patterns" | "backends"),
        _ => wing == "app",
    }
}

/// Every forbidden arrow, one line each.
fn violations(root: &Path) -> anyhow::Result<Vec<String>> {
    let metadata =
        MetadataCommand::new().current_dir(root).no_deps().exec().context("cargo metadata failed")?;
    let ours: Vec<(String, String)> = metadata
        .packages
        .iter()
        .map(|p| (p.name.to_string(), wing(p.manifest_path.as_str()).to_owned()))
        .collect();
    let mut found = Vec::new();
    for package in &metadata.packages {
        let from = (package.name.as_str(), wing(package.manifest_path.as_str()));
        for dependency in package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal) {
            let Some(to) = ours.iter().find(|(name, _)| *name == dependency.name) else { continue };
            if !allowed(from, (&to.0, &to.1)) {
                found.push(format!("{} ({}) must not depend on {} ({})", from.0, from.1, to.0, to.1));
            }
        }
    }
    Ok(found)
}

pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let found = violations(root)?;
    if !found.is_empty() {
        bail!("forbidden dependencies:\n{}", found.join("\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{allowed, violations};

    #[test]
    fn the_workspace_keeps_the_arrows() {
        assert_eq!(violations(&crate::root()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn forbidden_arrows_are_found() {
        let saga = ("mainstay-saga", "patterns");
        assert!(allowed(saga, ("mainstay-store", "base")));
        assert!(allowed(saga, ("mainstay-resilience", "patterns")));
        assert!(!allowed(saga, ("mainstay-sqlite", "backends")));
        assert!(!allowed(("mainstay-sqlite", "backends"), saga));
        assert!(!allowed(("mainstay-clock", "base"), ("mainstay-store", "base")));
        assert!(!allowed(("mainstay-sim", "proof"), saga));
        assert!(!allowed(("mainstay-lock", "patterns"), saga));
    }
}
