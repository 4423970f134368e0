//! The public API as text: what a change changes for users is seen in review.
//!
//! The text comes from the source, not from rustdoc's JSON, whose format moves with each compiler while our
//! toolchain floats. The lint `unreachable_pub` makes this exact: what is written `pub` can be reached.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, bail};
use syn::{Attribute, Fields, ImplItem, Item, Visibility};

/// Crates that may show in a public signature, besides std and ours: each is stable or is what the crate
/// is about.
const FOREIGN: [&str; 17] = [
    "async_nats",
    "axum",
    "bytes",
    "futures_util",
    "http",
    "http_body",
    "http_body_util",
    "libtest_mimic",
    "redis",
    "reqwest",
    "rusqlite",
    "secrecy",
    "serde",
    "serde_json",
    "tokio",
    "tower",
    "tower_service",
];

/// Compares the text in `api/` with the source, or writes it anew.
pub(crate) fn run(root: &Path, write: bool) -> anyhow::Result<()> {
    let mut stale = Vec::new();
    for dir in libraries(root)? {
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let text = dump(&dir.join("src"))?;
        let golden = root.join("api").join(format!("{name}.txt"));
        if write {
            std::fs::create_dir_all(root.join("api"))?;
            std::fs::write(&golden, &text)?;
        } else if std::fs::read_to_string(&golden).unwrap_or_default() != text {
            stale.push(golden.display().to_string());
        }
    }
    if !stale.is_empty() {
        bail!(
            "the public API changed: run `cargo xtask api --write` and review the difference of\n{}",
            stale.join("\n")
        );
    }
    Ok(())
}

fn libraries(root: &Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for wing in std::fs::read_dir(root.join("crates"))? {
        for krate in std::fs::read_dir(wing?.path())? {
            let dir = krate?.path();
            if dir.join("src/lib.rs").exists() {
                found.push(dir);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The public items below `src`, module by module.
fn dump(src: &Path) -> anyhow::Result<String> {
    let mut files = Vec::new();
    let mut open = vec![src.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut parsed = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file)?;
        let tree = syn::parse_file(&text).with_context(|| file.display().to_string())?;
        parsed.push((file, tree));
    }
    let names: BTreeSet<String> = parsed.iter().flat_map(|(_, tree)| public_names(&tree.items)).collect();
    let mut text = String::new();
    for (file, mut tree) in parsed {
        foreign(&tree.items).with_context(|| file.display().to_string())?;
        let items = keep(std::mem::take(&mut tree.items), &names);
        if !items.is_empty() {
            let name = file.strip_prefix(src).unwrap_or(file).display();
            let body = prettyplease::unparse(&syn::File { shebang: None, attrs: Vec::new(), items });
            text.push_str(&format!("// {name}\n{body}\n"));
        }
    }
    Ok(text)
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn public_names(items: &[Item]) -> Vec<String> {
    let named = |v: &Visibility, n: &syn::Ident| is_public(v).then(|| n.to_string());
    items
        .iter()
        .filter_map(|item| match item {
            Item::Enum(i) => named(&i.vis, &i.ident),
            Item::Struct(i) => named(&i.vis, &i.ident),
            Item::Trait(i) => named(&i.vis, &i.ident),
            Item::Type(i) => named(&i.vis, &i.ident),
            _ => None,
        })
        .collect()
}

/// What a user's code depends on: no documentation, no lints, no bodies.
fn strip(attrs: &mut Vec<Attribute>) {
    attrs.retain(|a| {
        ["cfg", "derive", "must_use", "non_exhaustive", "deprecated"].iter().any(|n| a.path().is_ident(n))
    });
}

fn hidden(attrs: &[Attribute]) -> bool {
    let cfg_test = |a: &Attribute| {
        a.path().is_ident("cfg") && a.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    };
    attrs.iter().any(cfg_test)
}

fn keep(items: Vec<Item>, names: &BTreeSet<String>) -> Vec<Item> {
    items.into_iter().filter_map(|item| keep_item(item, names)).collect()
}

fn keep_item(mut item: Item, names: &BTreeSet<String>) -> Option<Item> {
    let (attrs, public) = match &mut item {
        Item::Const(i) => (&mut i.attrs, is_public(&i.vis)),
        Item::Enum(i) => (&mut i.attrs, is_public(&i.vis)),
        Item::Fn(i) => (&mut i.attrs, is_public(&i.vis)),
        Item::Impl(i) => (&mut i.attrs, true),
        Item::Mod(i) => (&mut i.attrs, is_public(&i.vis)),
        Item::Struct(i) => (&mut i.attrs, is_public(&i.vis)),
        Item::Trait(i) => (&mut i.attrs, is_public(&i.vis)),
        Item::Type(i) => (&mut i.attrs, is_public(&i.vis)),
        Item::Use(i) => (&mut i.attrs, is_public(&i.vis)),
        _ => return None,
    };
    if !public || hidden(attrs) {
        return None;
    }
    strip(attrs);
    match &mut item {
        Item::Const(i) => *i.expr = syn::parse_quote!(..),
        Item::Enum(i) => i.variants.iter_mut().for_each(|v| {
            strip(&mut v.attrs);
            v.fields.iter_mut().for_each(|f| strip(&mut f.attrs));
        }),
        Item::Fn(i) => *i.block = syn::parse_quote!({}),
        Item::Impl(i) => return keep_impl(i, names).then_some(item),
        Item::Mod(i) => {
            if let Some((_, inner)) = &mut i.content {
                *inner = keep(std::mem::take(inner), names);
            }
        }
        Item::Struct(i) => strip_fields(&mut i.fields),
        Item::Trait(i) => i.items.iter_mut().for_each(strip_trait_item),
        _ => {}
    }
    Some(item)
}

/// Private fields do not show, except that there are some: a unit in their place.
fn strip_fields(fields: &mut Fields) {
    fields.iter_mut().for_each(|f| strip(&mut f.attrs));
    match fields {
        Fields::Named(named) => {
            let shown = std::mem::take(&mut named.named).into_iter().filter(|f| is_public(&f.vis));
            named.named = shown.collect();
        }
        Fields::Unnamed(unnamed) => {
            for field in &mut unnamed.unnamed {
                if !is_public(&field.vis) {
                    field.ty = syn::parse_quote!(());
                }
            }
        }
        Fields::Unit => {}
    }
}

fn strip_trait_item(item: &mut syn::TraitItem) {
    match item {
        syn::TraitItem::Fn(f) => {
            strip(&mut f.attrs);
            if f.default.is_some() {
                f.default = Some(syn::parse_quote!({}));
            }
        }
        syn::TraitItem::Const(c) => strip(&mut c.attrs),
        syn::TraitItem::Type(t) => strip(&mut t.attrs),
        _ => {}
    }
}

/// Whether anything of an impl shows to users.
fn keep_impl(i: &mut syn::ItemImpl, names: &BTreeSet<String>) -> bool {
    let of = match &*i.self_ty {
        syn::Type::Path(path) => path.path.segments.last().map(|s| s.ident.to_string()),
        _ => None,
    };
    if of.is_none_or(|name| !names.contains(&name)) {
        return false;
    }
    let of_trait = i.trait_.is_some();
    i.items.retain_mut(|item| match item {
        ImplItem::Fn(f) => {
            strip(&mut f.attrs);
            f.block = syn::parse_quote!({});
            !of_trait && is_public(&f.vis)
        }
        ImplItem::Const(c) => {
            strip(&mut c.attrs);
            !of_trait && is_public(&c.vis)
        }
        ImplItem::Type(_) => true,
        _ => false,
    });
    of_trait || !i.items.is_empty()
}

/// Refuses a public re-export of a crate that is on no list.
fn foreign(items: &[Item]) -> anyhow::Result<()> {
    for item in items {
        let Item::Use(i) = item else { continue };
        if !is_public(&i.vis) {
            continue;
        }
        let syn::UseTree::Path(path) = &i.tree else { continue };
        let first = path.ident.to_string();
        let ours =
            first.starts_with("mainstay") || ["crate", "self", "super", "std"].contains(&first.as_str());
        // A lower-case first segment that is one of our own modules cannot be told apart here; ours are
        // declared in the same file.
        let module = items.iter().any(|m| matches!(m, Item::Mod(m) if m.ident == first));
        if !ours && !module && !FOREIGN.contains(&first.as_str()) {
            bail!(
                "`{first}` is re-exported: foreign crates in the API are named in xtask/src/api.rs, with a reason"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{foreign, keep, public_names};

    fn shown(source: &str) -> String {
        let tree = syn::parse_file(source).unwrap();
        let names: BTreeSet<String> = public_names(&tree.items).into_iter().collect();
        prettyplease::unparse(&syn::File {
            shebang: None,
            attrs: Vec::new(),
            items: keep(tree.items, &names),
        })
    }

    #[test]
    fn what_users_see_stays_and_the_rest_goes() {
        let text = shown(
            "/// Doc.
            #[must_use] #[allow(dead_code)] pub struct A { pub seen: u8, secret: u16 }
            struct B;
            impl A { pub fn f(&self) -> u8 { self.seen } fn g(&self) {} }
            impl B { pub fn h() {} }
            impl Clone for A { fn clone(&self) -> Self { loop {} } }
            #[cfg(test)] pub mod tests {}",
        );
        assert_eq!(
            text,
            "#[must_use]\npub struct A {\n    pub seen: u8,\n}\nimpl A {\n    pub fn f(&self) -> u8 {}\n}\nimpl Clone for A {}\n"
        );
    }

    #[test]
    fn a_changed_signature_changes_the_text() {
        assert_ne!(shown("pub fn f(n: u8) {}"), shown("pub fn f(n: u16) {}"));
        assert_eq!(shown("pub fn f(n: u8) { g() }"), shown("pub fn f(n: u8) { h() }"));
    }

    #[test]
    fn a_foreign_re_export_needs_a_reason() {
        let items = |source: &str| syn::parse_file(source).unwrap().items;
        assert!(foreign(&items("pub use chrono::Utc;")).is_err());
        assert!(foreign(&items("mod a; pub use a::B; pub use mainstay_clock::Clock;")).is_ok());
    }
}
