//! What a machine can check of the house style.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use syn::spanned::Spanned as _;
use syn::visit::Visit;

/// Longest file, without tests.
const MAX_FILE: usize = 800;
/// Longest function.
const MAX_FUNCTION: usize = 100;
/// Lines of documentation per line of code, without tests: what a pattern needs at least to be used without reading it.
const DOC_RATIO: f64 = 0.4;
/// Crates that have reached [`DOC_RATIO`] and stay there.
const DOCUMENTED: [&str; 1] = ["crates/patterns/resilience"];

pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let mut found = Vec::new();
    let mut lines = DOCUMENTED.map(|of| (of, (0, 0)));
    for file in sources(root)? {
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        found.extend(look(&name, &text).into_iter().map(|what| format!("{name}: {what}")));
        for (of, sum) in &mut lines {
            if name.starts_with(&format!("{of}/src/")) {
                let more = documented(&text);
                *sum = (sum.0 + more.0, sum.1 + more.1);
            }
        }
    }
    found.extend(lines.into_iter().filter_map(|(of, (docs, code))| thin(of, docs, code)));
    found.extend(forgotten(root)?);
    if !found.is_empty() {
        bail!("style:\n{}", found.join("\n"));
    }
    Ok(())
}

/// Every Rust file of ours.
pub(crate) fn sources(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = ["crates", "examples", "xtask"].iter().map(|d| root.join(d)).collect();
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() && path.file_name().is_some_and(|n| n != "target") {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Whether code there must decide without waiting, reading clocks or drawing numbers.
fn is_pure(name: &str) -> bool {
    ["/state.rs", "/fold.rs", "/next.rs"].iter().any(|end| name.ends_with(end)) || name.contains("/fold/")
}

fn look(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let is_test = name.contains("/tests/");
    let lines = text.lines().count();
    if !is_test && lines > MAX_FILE {
        found.push(format!("{lines} lines; at most {MAX_FILE}"));
    }
    if !text.is_ascii() {
        found.push("is not ASCII".to_owned());
    }
    // Spelled apart, so that this file does not find itself.
    let banned = [
        (concat!("#[", "ignore"), "an ignored test"),
        (concat!("```", "ignore"), "an ignored snippet"),
        (concat!("to", "do!("), "unfinished code"),
    ];
    found.extend(banned.iter().filter(|(t, _)| text.contains(t)).map(|(_, what)| (*what).to_owned()));
    if is_pure(name) && ["async ", ".await"].iter().any(|t| code(text).contains(t)) {
        found.push("decides, so it must not be async".to_owned());
    }
    for (i, _) in text.match_indices(concat!("select", "! {")) {
        if !text[i..].chars().skip(9).collect::<String>().trim_start().starts_with("biased;") {
            found.push("a select without `biased`".to_owned());
        }
    }
    match syn::parse_file(text) {
        Ok(file) => {
            let mut functions = Functions::default();
            functions.visit_file(&file);
            if !is_test {
                found.extend(functions.0);
            }
        }
        Err(error) => found.push(format!("cannot be parsed: {error}")),
    }
    found
}

/// Lines of documentation and of code before the tests of a file.
fn documented(text: &str) -> (usize, usize) {
    let lines = || {
        let tests = |l: &&str| l.starts_with("#[cfg(test)]") || l.starts_with("#[cfg(all(test");
        text.lines().take_while(move |l| !tests(l)).map(str::trim)
    };
    let is_doc = |l: &&str| l.starts_with("///") || l.starts_with("//!");
    (lines().filter(is_doc).count(), lines().filter(|l| !l.is_empty() && !l.starts_with("//")).count())
}

/// What is wrong with a crate that says too little about itself.
fn thin(name: &str, docs: usize, code: usize) -> Option<String> {
    let ratio = docs as f64 / code.max(1) as f64;
    (ratio < DOC_RATIO).then(|| {
        format!("{name}: {docs} lines of documentation for {code} of code; at least {DOC_RATIO} per line")
    })
}

/// The text without comments.
fn code(text: &str) -> String {
    text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[derive(Default)]
struct Functions(Vec<String>);

impl Functions {
    fn measure(&mut self, name: &syn::Ident, span: proc_macro2::Span) {
        let lines = span.end().line - span.start().line + 1;
        if lines > MAX_FUNCTION {
            self.0.push(format!("function `{name}` has {lines} lines; at most {MAX_FUNCTION}"));
        }
    }
}

impl<'a> Visit<'a> for Functions {
    fn visit_item_fn(&mut self, f: &'a syn::ItemFn) {
        self.measure(&f.sig.ident, f.block.span());
        syn::visit::visit_item_fn(self, f);
    }

    fn visit_impl_item_fn(&mut self, f: &'a syn::ImplItemFn) {
        self.measure(&f.sig.ident, f.block.span());
        syn::visit::visit_impl_item_fn(self, f);
    }
}

/// Files in a `tests/it` folder that no target builds.
fn forgotten(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for main in sources(root)?.into_iter().filter(|f| f.ends_with("tests/it/main.rs")) {
        let text = std::fs::read_to_string(&main)?;
        let modules: BTreeSet<&str> =
            text.lines().filter_map(|l| l.trim().strip_prefix("mod ")?.strip_suffix(';')).collect();
        let dir = main.parent().context("a file has a folder")?;
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
            if stem != "main" && !modules.contains(stem.as_str()) {
                found.push(format!("{} is no module of its test target", path.display()));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::look;

    #[test]
    fn the_tree_keeps_the_style() {
        super::run(&crate::root()).unwrap();
    }

    #[test]
    fn planted_violations_are_found() {
        let long = format!("fn f() {{\n{}}}\n", "    let _x = 1;\n".repeat(101));
        let cases = [
            ("src/a.rs", long.as_str(), "function `f`"),
            ("src/state.rs", "async fn f() {}\n", "must not be async"),
            ("src/a.rs", concat!("#[", "ignore]\nfn f() {}\n"), "ignored test"),
            ("src/a.rs", "// \u{e9}\n", "ASCII"),
            ("src/a.rs", concat!("fn f() { tokio::select", "! { () = x() => {} } }\n"), "biased"),
        ];
        for (name, text, what) in cases {
            let found = look(name, text).join("; ");
            assert!(found.contains(what), "{what}: {found}");
        }
        assert!(look("src/a.rs", &"\n".repeat(801)).join("").contains("801 lines"));
    }

    #[test]
    fn documentation_is_measured_without_tests() {
        let text =
            "//! One.\n\n/// Two.\nfn f() {\n    // why\n}\n#[cfg(test)]\nmod tests {\n    fn g() {}\n}\n";
        assert_eq!(super::documented(text), (2, 2));
        assert_eq!(super::thin("crates/a", 2, 5), None);
        assert!(
            super::thin("crates/a", 1, 3).is_some_and(|what| what.contains("1 lines of documentation for 3"))
        );
    }
}
