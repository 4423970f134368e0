//! What comes into the tree: licences, banned crates, sources, and the bill of materials of the binary.
//!
//! The rules are those of `deny.toml`, read here so that the check needs nothing but cargo. Advisories are not looked at:
//! they need a database that changes every day; `cargo audit` does that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};
use serde_json::{Value, json};
use toml::Table;

/// The rules of `deny.toml` that are checked here.
#[derive(Debug, Default)]
struct Rules {
    licences: BTreeSet<String>,
    exceptions: BTreeMap<String, BTreeSet<String>>,
    banned: BTreeMap<String, String>,
    registries: BTreeSet<String>,
}

fn texts(value: Option<&toml::Value>) -> BTreeSet<String> {
    let list = value.and_then(toml::Value::as_array).into_iter().flatten();
    list.filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

impl Rules {
    fn read(text: &str) -> anyhow::Result<Self> {
        let file: Table = text.parse().context("deny.toml")?;
        let table = |name: &str| file.get(name).and_then(toml::Value::as_table).context(name.to_owned());
        let (licenses, bans, sources) = (table("licenses")?, table("bans")?, table("sources")?);
        let mut rules = Self {
            licences: texts(licenses.get("allow")),
            registries: texts(sources.get("allow-registry")),
            ..Self::default()
        };
        let tables = |table: &Table, key: &str| -> Vec<Table> {
            let list = table.get(key).and_then(toml::Value::as_array).into_iter().flatten();
            list.filter_map(|v| v.as_table().cloned()).collect()
        };
        let word = |table: &Table, key: &str| table.get(key).and_then(|v| v.as_str()).map(str::to_owned);
        for exception in tables(licenses, "exceptions") {
            let name = word(&exception, "crate").context("an exception names its crate")?;
            rules.exceptions.insert(name, texts(exception.get("allow")));
        }
        for ban in tables(bans, "deny") {
            let name = word(&ban, "crate").context("a ban names its crate")?;
            rules.banned.insert(name, word(&ban, "reason").unwrap_or_default());
        }
        if rules.licences.is_empty() || rules.registries.is_empty() {
            bail!("deny.toml allows no licence or no registry");
        }
        Ok(rules)
    }

    /// What is wrong with a package that is not ours.
    fn judge(&self, name: &str, licence: Option<&str>, source: &str) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(why) = self.banned.get(name) {
            found.push(format!("{name} is banned: {why}"));
        }
        let registry = source.strip_prefix("registry+").unwrap_or(source);
        if !self.registries.contains(registry) {
            found.push(format!("{name} comes from {source}"));
        }
        let none = BTreeSet::new();
        let own = self.exceptions.get(name).unwrap_or(&none);
        match licence {
            None => found.push(format!("{name} names no licence")),
            Some(text) => {
                let allows = |l: &str| self.licences.contains(l) || own.contains(l);
                if !satisfied(text, &allows) {
                    found.push(format!("{name} is under `{text}`"));
                }
            }
        }
        found
    }
}

/// Whether an SPDX expression can be satisfied by licences that are allowed. `/` is an old way to write `OR`.
fn satisfied(expression: &str, allows: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let value = any(&words, &mut at, allows);
    // What cannot be read to its end is allowed by nobody.
    value && at == words.len()
}

fn any(words: &[&str], at: &mut usize, allows: &dyn Fn(&str) -> bool) -> bool {
    let mut value = every(words, at, allows);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        value |= every(words, at, allows);
    }
    value
}

fn every(words: &[&str], at: &mut usize, allows: &dyn Fn(&str) -> bool) -> bool {
    let mut value = one(words, at, allows);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        value &= one(words, at, allows);
    }
    value
}

fn one(words: &[&str], at: &mut usize, allows: &dyn Fn(&str) -> bool) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let value = any(words, at, allows);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return value && closed;
    }
    if words.get(*at) == Some(&"WITH") {
        let Some(exception) = words.get(*at + 1) else { return false };
        *at += 2;
        return allows(&format!("{word} WITH {exception}"));
    }
    allows(word)
}

fn metadata(root: &Path) -> anyhow::Result<Metadata> {
    let mut command = MetadataCommand::new();
    command.current_dir(root).other_options(["--locked".to_owned()]);
    command.exec().context("cargo metadata failed")
}

/// Checks every package of the lock file.
pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    let rules = Rules::read(&std::fs::read_to_string(root.join("deny.toml")).context("deny.toml")?)?;
    let (mut found, mut looked) = (Vec::new(), 0);
    for package in metadata(root)?.packages {
        let Some(source) = &package.source else { continue };
        looked += 1;
        found.extend(rules.judge(&package.name, package.license.as_deref(), &source.repr));
    }
    println!("supply: {looked} packages, {} refused", found.len());
    if !found.is_empty() {
        bail!("deny.toml does not allow:\n{}", found.join("\n"));
    }
    Ok(())
}

/// Writes the bill of materials of the binary to `out`, or to standard output.
pub(crate) fn sbom(root: &Path, out: Option<&str>) -> anyhow::Result<()> {
    let sums = checksums(&std::fs::read_to_string(root.join("Cargo.lock"))?)?;
    let text = format!("{:#}\n", bill(&metadata(root)?, &sums, "mainstay-server")?);
    match out {
        Some(path) => std::fs::write(path, text).with_context(|| path.to_owned()),
        None => {
            print!("{text}");
            Ok(())
        }
    }
}

/// SHA-256 of each package that came from a registry, by name and version.
fn checksums(lock: &str) -> anyhow::Result<BTreeMap<(String, String), String>> {
    let file: Table = lock.parse().context("Cargo.lock")?;
    let packages =
        file.get("package").and_then(toml::Value::as_array).context("Cargo.lock has no packages")?;
    let word = |p: &toml::Value, key: &str| p.get(key)?.as_str().map(str::to_owned);
    let sum = |p: &toml::Value| Some(((word(p, "name")?, word(p, "version")?), word(p, "checksum")?));
    Ok(packages.iter().filter_map(sum).collect())
}

/// Name and version of everything that is built for `name` alone. The metadata knows one set of features for the whole
/// workspace, those of tests among them.
fn built(metadata: &Metadata, name: &str) -> anyhow::Result<BTreeSet<(String, String)>> {
    let mut tree = crate::cargo();
    tree.args(["tree", "--locked", "-p", name, "-e", "normal", "--target", "all", "--prefix", "none"]);
    let output = tree.current_dir(&metadata.workspace_root).output().context("cargo tree")?;
    if !output.status.success() {
        bail!("cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8(output.stdout).context("cargo tree")?;
    let package = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.trim_start_matches('v').to_owned()))
    };
    Ok(text.lines().filter_map(package).collect())
}

/// What the program `name` is linked from: its normal dependencies, and theirs.
fn linked<'a>(
    metadata: &'a Metadata,
    name: &str,
) -> anyhow::Result<BTreeMap<&'a PackageId, Vec<&'a PackageId>>> {
    let resolve = metadata.resolve.as_ref().context("cargo resolved nothing")?;
    let nodes: BTreeMap<&PackageId, _> = resolve.nodes.iter().map(|n| (&n.id, n)).collect();
    let program = metadata.packages.iter().find(|p| *p.name == name).with_context(|| name.to_owned())?;
    let built = built(metadata, name)?;
    let known =
        metadata.packages.iter().filter(|p| built.contains(&(p.name.to_string(), p.version.to_string())));
    let known: BTreeSet<&PackageId> = known.map(|p| &p.id).collect();
    let (mut found, mut open) = (BTreeMap::new(), vec![&program.id]);
    while let Some(id) = open.pop() {
        if found.contains_key(id) {
            continue;
        }
        let normal =
            nodes[id].deps.iter().filter(|d| d.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal));
        let below: Vec<&PackageId> = normal.map(|d| &d.pkg).filter(|id| known.contains(id)).collect();
        open.extend(&below);
        found.insert(id, below);
    }
    Ok(found)
}

/// Name and version of everything that the program `name` may be linked from, on any system.
///
/// # Errors
/// When cargo cannot say.
pub(crate) fn linked_by(root: &Path, name: &str) -> anyhow::Result<BTreeSet<(String, String)>> {
    built(&metadata(root)?, name)
}

fn purl(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

/// A CycloneDX document without times and random numbers: the same lock file gives the same text.
fn bill(metadata: &Metadata, sums: &BTreeMap<(String, String), String>, name: &str) -> anyhow::Result<Value> {
    let linked = linked(metadata, name)?;
    let packages: BTreeMap<&PackageId, &Package> = metadata.packages.iter().map(|p| (&p.id, p)).collect();
    let (mut components, mut dependencies) = (BTreeMap::new(), BTreeMap::new());
    let mut program = Value::Null;
    for (id, below) in &linked {
        let package = packages[*id];
        let reference = purl(package);
        let mut component = json!({
            "type": "library",
            "bom-ref": reference,
            "name": package.name.to_string(),
            "version": package.version.to_string(),
            "purl": reference,
        });
        if let Some(licence) = &package.license {
            component["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
        }
        if let Some(sum) = sums.get(&(package.name.to_string(), package.version.to_string())) {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
        }
        let below: BTreeSet<String> = below.iter().map(|id| purl(packages[*id])).collect();
        dependencies.insert(reference.clone(), json!({ "ref": reference, "dependsOn": below }));
        if *package.name == name {
            component["type"] = json!("application");
            program = component;
        } else {
            components.insert(reference, component);
        }
    }
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": program },
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": dependencies.into_values().collect::<Vec<_>>(),
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::Value;

    use super::{Rules, bill, check, checksums, metadata, satisfied};

    fn allows(licence: &str) -> bool {
        ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].contains(&licence)
    }

    #[test]
    fn sec_27_an_expression_is_satisfied_by_what_is_allowed_and_by_nothing_else() {
        for yes in [
            "MIT",
            "GPL-3.0 OR MIT",
            "MIT/GPL-3.0",
            "MIT AND ISC",
            "(GPL-3.0 OR MIT) AND ISC",
            "GPL-3.0 OR MIT AND ISC",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(satisfied(yes, &allows), "{yes}");
        }
        for no in [
            "",
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "(MIT",
            "MIT)",
            "MIT ISC",
            "OR",
            "Apache-2.0",
            "MIT OR",
            "Apache-2.0 WITH",
            "(GPL-3.0 OR MIT) AND AGPL-3.0",
        ] {
            // `MIT OR` and the like: what cannot be read is refused, or satisfied by its readable half.
            let half = no == "MIT OR";
            assert_eq!(satisfied(no, &allows), half, "{no}");
        }
    }

    #[test]
    fn sec_27_licences_bans_and_sources_are_refused_each_by_name() {
        let rules = Rules::read(include_str!("../../deny.toml")).unwrap();
        let home = "registry+https://github.com/rust-lang/crates.io-index";
        assert!(rules.judge("serde", Some("MIT OR Apache-2.0"), home).is_empty());
        assert!(rules.judge("foca", Some("MPL-2.0"), home).is_empty(), "an exception of its own");
        for (name, licence, source, why) in [
            ("other", Some("MPL-2.0"), home, "MPL-2.0"),
            ("other", Some("GPL-3.0-only"), home, "GPL"),
            ("other", None, home, "no licence"),
            ("openssl-sys", Some("MIT"), home, "banned"),
            ("serde", Some("MIT"), "git+https://example.org/serde#abc", "comes from"),
            ("serde", Some("MIT"), "registry+https://example.org/index", "comes from"),
        ] {
            let found = rules.judge(name, licence, source);
            assert!(found.len() == 1 && found[0].contains(why), "{found:?}");
        }
        assert!(
            Rules::read("[licenses]\n[bans]\n[sources]\n").is_err(),
            "a file that allows nothing is a mistake"
        );
    }

    #[test]
    fn sec_27_the_tree_as_it_is_is_allowed() {
        check(&crate::root()).unwrap();
    }

    #[test]
    fn sec_28_the_bill_of_materials_has_every_linked_package_with_its_sum_and_licence() {
        let lock = std::fs::read_to_string(crate::root().join("Cargo.lock")).unwrap();
        let sums = checksums(&lock).unwrap();
        let found = metadata(&crate::root()).unwrap();
        let bom = bill(&found, &sums, "mainstay-server").unwrap();
        assert_eq!(bom, bill(&found, &sums, "mainstay-server").unwrap());
        let shape: Vec<&String> = bom.as_object().unwrap().keys().collect();
        let keys = ["bomFormat", "components", "dependencies", "metadata", "specVersion", "version"];
        assert_eq!(shape, keys);
        assert_eq!((&bom["bomFormat"], &bom["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
        assert_eq!(bom["metadata"]["component"]["name"], "mainstay-server");
        let components = bom["components"].as_array().unwrap();
        let refs: Vec<&str> = components.iter().map(|c| c["bom-ref"].as_str().unwrap()).collect();
        assert!(refs.is_sorted() && refs.iter().collect::<BTreeSet<_>>().len() == refs.len());
        let named: BTreeMap<&str, &Value> =
            components.iter().map(|c| (c["name"].as_str().unwrap(), c)).collect();
        for linked in ["rusqlite", "libsqlite3-sys", "ring", "tokio", "mainstay-saga"] {
            assert!(named.contains_key(linked), "{linked}");
        }
        for absent in ["insta", "proptest", "libtest-mimic", "xtask"] {
            assert!(!named.contains_key(absent), "{absent} is in no program");
        }
        for (name, component) in &named {
            assert!(!component["licenses"][0]["expression"].as_str().unwrap().is_empty(), "{name}");
            let sum = component["hashes"][0]["content"].as_str().unwrap_or_default();
            assert!(sum.len() == 64 || name.starts_with("mainstay-"), "{name}: {sum}");
        }
        let known: BTreeSet<&str> =
            refs.iter().copied().chain(bom["metadata"]["component"]["purl"].as_str()).collect();
        for edge in bom["dependencies"].as_array().unwrap() {
            let ends = edge["dependsOn"].as_array().unwrap().iter().chain([&edge["ref"]]);
            ends.for_each(|end| assert!(known.contains(end.as_str().unwrap()), "{end}"));
        }
    }
}
