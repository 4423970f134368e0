//! What the repository itself promises: safe code, dependencies that are what they were, a threat model.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").canonicalize().unwrap()
}

/// Every file of the repository but those of builds and of version control.
fn files() -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![root()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            match path.is_dir() {
                true if name == "target" || name.starts_with('.') => {}
                true => open.push(path),
                false => found.push(path),
            }
        }
    }
    found
}

fn read(path: &Path) -> toml::Table {
    std::fs::read_to_string(path).unwrap().parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn sec_26_no_crate_of_ours_has_unsafe_code() {
    let workspace = read(&root().join("Cargo.toml"));
    assert_eq!(workspace["workspace"]["lints"]["rust"]["unsafe_code"].as_str(), Some("forbid"));
    let mut crates = 0;
    for manifest in files().iter().filter(|p| p.ends_with("Cargo.toml")) {
        let manifest_text = read(manifest);
        if manifest_text.contains_key("package") {
            let lints = manifest_text.get("lints").unwrap_or_else(|| panic!("{}", manifest.display()));
            let inherits = lints.get("workspace").and_then(toml::Value::as_bool) == Some(true);
            let forbids = lints.get("rust").and_then(|r| r.get("unsafe_code")?.as_str()) == Some("forbid");
            assert!(inherits || forbids, "{}", manifest.display());
            crates += 1;
        }
    }
    assert!(crates > 20, "{crates} crates were looked at");
    // The one piece in another language is loaded into children of tests, and part of no program.
    let foreign = ["c", "cc", "cpp", "h", "s", "asm"];
    let native = |p: &&PathBuf| p.extension().is_some_and(|e| foreign.iter().any(|f| e == *f));
    let natives: Vec<PathBuf> = files().iter().filter(native).cloned().collect();
    assert_eq!(natives, [root().join("crates/proof/sim/src/power/shim.c")]);
}

#[test]
fn sec_27_every_dependency_is_pinned_with_its_checksum_and_comes_from_one_registry() {
    let lock = read(&root().join("Cargo.lock"));
    let packages = lock["package"].as_array().unwrap();
    let (mut foreign, mut registries) = (0, std::collections::BTreeSet::new());
    for package in packages.iter().filter_map(toml::Value::as_table) {
        // Ours have no source.
        let Some(source) = package.get("source").and_then(toml::Value::as_str) else { continue };
        let sum = package.get("checksum").and_then(toml::Value::as_str).unwrap_or_default();
        assert!(source.starts_with("registry+https://"), "{package:?}");
        registries.insert(source);
        assert_eq!(sum.len(), 64, "{package:?}");
        foreign += 1;
    }
    assert!(foreign > 200, "{foreign} dependencies were looked at");
    assert_eq!(registries.len(), 1, "{registries:?}");
}

#[test]
fn sec_29_the_threat_model_names_every_boundary_and_what_is_not_covered() {
    let text = std::fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let rows: Vec<Vec<&str>> =
        text.lines().filter(|l| l.starts_with("| ")).map(|l| l.split('|').map(str::trim).collect()).collect();
    let boundaries = ["client to API", "browser", "network", "participants", "operators", "files", "tokens"];
    for boundary in boundaries {
        let row = rows.iter().find(|r| r[1].contains(boundary)).unwrap_or_else(|| panic!("{boundary}"));
        assert!(row.len() == 5 && !row[2].is_empty() && !row[3].is_empty(), "{row:?}");
    }
    assert!(text.contains("Not covered yet:"), "what is open is said");
}

/// Whoever says that something happens exactly once has not said who makes it so; and what is not synced is not kept.
#[test]
fn if_x09_no_text_for_users_claims_exactly_once_and_what_is_synced_is_said() {
    let is_text = |p: &&PathBuf| {
        let name = p.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let words = name.ends_with(".md") || name.starts_with("crates/app/server/tests/golden/");
        words || name.starts_with("crates/app/server/src/console/")
    };
    let mut texts = 0;
    for path in files().iter().filter(is_text) {
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        let text = text.to_lowercase().replace(['-', '\n'], " ");
        texts += 1;
        for (at, _) in text.match_indices("exactly once") {
            let before = &text[..at];
            let denied = ["does not say \"", "never \"", "not say \"", "never say \""];
            assert!(denied.iter().any(|no| before.ends_with(no)), "{}", path.display());
        }
    }
    assert!(texts > 60, "{texts} texts were looked at");
    let page = |name: &str| std::fs::read_to_string(root().join(name)).unwrap().replace('\n', " ");
    for (name, said) in [
        ("README.md", "it is called at least once, always with the same idempotency key"),
        (
            "docs/saga.md",
            "A start is answered, a participant is called and an outcome is told after that commit",
        ),
        ("docs/operations.md", "The folder belongs on a local disk that honors syncs"),
        ("docs/operations.md", "A restored database knows nothing of what came after the backup"),
    ] {
        assert!(page(name).contains(said), "{name} says no more: {said}");
    }
}
