//! One TOML file, `MAINSTAY_*` variables with `__` between the parts, flags: the later wins.
//!
//! An unknown key is refused: a misspelled one would silently keep its default.

mod keys;
mod schema;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use keys::{KEYS, Value, is_reloaded, nearest};
pub(crate) use schema::schema;
use toml::de::{DeTable, DeValue};

use crate::error::{Code, Error, Result};
use crate::files;

/// Variables of other parts of the binary, which are no keys; those too that commands under a lease find.
const NOT_KEYS: &[&str] = &[
    "MAINSTAY_CA",
    "MAINSTAY_CONFIG",
    "MAINSTAY_CRON_SLOT",
    "MAINSTAY_FENCING_TOKEN",
    "MAINSTAY_IDENTITY",
    "MAINSTAY_LEADER_TERM",
    "MAINSTAY_LEASES",
    "MAINSTAY_LEASE_DEADLINE",
    "MAINSTAY_LOCK_NAME",
    "MAINSTAY_NAMESPACE",
    "MAINSTAY_SERVER_URL",
    "MAINSTAY_TOKEN",
    "MAINSTAY_TOKEN_FILE",
];
/// Largest configuration file.
const MAX_FILE: u64 = 1024 * 1024;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    Env(String),
    File(PathBuf, usize),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Env(name) => write!(f, "env {name}"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// The values of all keys, each with its origin.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    values: BTreeMap<&'static str, (Value, Origin)>,
}

impl Config {
    /// Resolves defaults, the file, the environment and flags.
    ///
    /// # Errors
    /// The first unknown key or invalid value, with its place.
    pub(crate) fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        flags: &[(&'static str, &'static str, String)],
    ) -> Result<Self> {
        let text = file.map(read).transpose()?;
        Self::of_text(file.zip(text.as_deref()), env, flags)
    }

    /// As [`Config::load`], with the text of the file.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub(crate) fn of_text(
        file: Option<(&Path, &str)>,
        env: impl IntoIterator<Item = (String, String)>,
        flags: &[(&'static str, &'static str, String)],
    ) -> Result<Self> {
        let mut config = Self { values: BTreeMap::new() };
        for key in KEYS {
            let value = keys::parse(key.kind, key.default).expect("invariant: defaults parse, tested");
            config.values.insert(key.path, (value, Origin::Default));
        }
        if let Some((path, text)) = file {
            let table = DeTable::parse(text).map_err(|e| {
                let line = e.span().map_or(1, |s| line_of(text, s.start));
                Error::new(Code::ConfigUnreadable, format!("{}:{line}: {}", path.display(), e.message()))
            })?;
            config.read_table(path, text, "", table.get_ref())?;
        }
        // Sorted, so that the first complaint is the same in every run.
        let env: BTreeMap<String, String> = env.into_iter().collect();
        for (name, text) in &env {
            if let Some(rest) = name.strip_prefix("MAINSTAY_").filter(|_| !NOT_KEYS.contains(&name.as_str()))
            {
                let path = rest.to_ascii_lowercase().replace("__", ".");
                config.set_text(&path, text, Origin::Env(name.clone()))?;
            }
        }
        for (path, flag, text) in flags {
            config.set_text(path, text, Origin::Flag(flag))?;
        }
        Ok(config)
    }

    fn read_table(&mut self, path: &Path, text: &str, prefix: &str, table: &DeTable<'_>) -> Result<()> {
        for (name, value) in table {
            let full = format!("{prefix}{}", name.get_ref());
            let line = line_of(text, name.span().start);
            match value.get_ref() {
                DeValue::Table(inner) if keys::find(&full).is_none() => {
                    self.read_table(path, text, &format!("{full}."), inner)?;
                }
                other => {
                    let origin = Origin::File(path.to_owned(), line);
                    self.set_text(&full, &scalar(other, &full, &origin)?, origin)?;
                }
            }
        }
        Ok(())
    }

    fn set_text(&mut self, path: &str, text: &str, origin: Origin) -> Result<()> {
        let Some(key) = keys::find(path) else {
            let hint = keys::suggest(path).map(|s| format!("; did you mean `{s}`?")).unwrap_or_default();
            return Err(Error::new(Code::UnknownKey, format!("{origin}: unknown key `{path}`{hint}")));
        };
        let value = keys::parse(key.kind, text)
            .map_err(|why| Error::new(Code::BadValue, format!("{origin}: {path}: {why}")))?;
        self.values.insert(key.path, (value, origin));
        Ok(())
    }

    /// What differs from `self` in `fresh`: key, old and new value.
    pub(crate) fn diff(&self, fresh: &Self) -> Vec<(&'static str, String, String)> {
        let both = self.entries().zip(fresh.entries());
        both.filter(|((_, old, _), (_, new, _))| old != new)
            .map(|((path, old, _), (_, new, _))| (path, old.to_toml(), new.to_toml()))
            .collect()
    }

    /// Every value in the order of the keys.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'static str, &Value, &Origin)> {
        self.values.iter().map(|(path, (value, origin))| (*path, value, origin))
    }

    fn value(&self, path: &str) -> &Value {
        &self.values.get(path).expect("invariant: every key has a value").0
    }

    /// A text.
    pub(crate) fn text(&self, path: &str) -> &str {
        match self.value(path) {
            Value::Text(text) => text,
            other => unreachable_kind(path, other),
        }
    }

    /// A list.
    pub(crate) fn list(&self, path: &str) -> &[String] {
        match self.value(path) {
            Value::List(list) => list,
            other => unreachable_kind(path, other),
        }
    }

    /// A switch.
    pub(crate) fn flag(&self, path: &str) -> bool {
        match self.value(path) {
            Value::Bool(on) => *on,
            other => unreachable_kind(path, other),
        }
    }

    /// A whole number.
    pub(crate) fn count(&self, path: &str) -> usize {
        match self.value(path) {
            Value::Count(n) => usize::try_from(*n).unwrap_or(usize::MAX),
            other => unreachable_kind(path, other),
        }
    }

    /// A duration.
    pub(crate) fn duration(&self, path: &str) -> Duration {
        match self.value(path) {
            Value::Duration(d) => *d,
            other => unreachable_kind(path, other),
        }
    }
}

/// The text of a configuration file.
fn read(path: &Path) -> Result<String> {
    let unreadable =
        |e: std::io::Error| Error::with(Code::ConfigUnreadable, format!("cannot read {}", path.display()), e);
    files::text(path, MAX_FILE).map_err(unreadable)
}

/// Asking for a key by another type than its own is a bug that every test run meets at once.
fn unreachable_kind(path: &str, value: &Value) -> ! {
    unreachable!("invariant: {path} is asked for by its type, not {value:?}")
}

/// A value of the file as text of its own type; tables and mixed arrays are refused.
fn scalar(value: &DeValue<'_>, path: &str, origin: &Origin) -> Result<String> {
    let wrong = || Error::new(Code::BadValue, format!("{origin}: {path}: not a value of this key's type"));
    match value {
        DeValue::Boolean(b) => Ok(b.to_string()),
        DeValue::Integer(n) => Ok(n.as_str().replace('_', "")),
        DeValue::String(s) => Ok(s.to_string()),
        DeValue::Array(items) => {
            let mut parts = Vec::new();
            for item in items {
                match item.get_ref() {
                    DeValue::String(s) if !s.contains(',') => parts.push(s.to_string()),
                    _ => return Err(wrong()),
                }
            }
            Ok(parts.join(","))
        }
        _ => Err(wrong()),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn flags_beat_the_environment_which_beats_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.toml");
        std::fs::write(&file, "[server]\nlisten = \"127.0.0.1:1\"\ndrain = \"3s\"\nmax_in_flight = 1_000\n")
            .unwrap();
        let vars = env(&[("MAINSTAY_SERVER__LISTEN", "127.0.0.1:2"), ("HOME", "/root")]);
        let config = Config::load(Some(&file), vars.clone(), &[]).unwrap();
        assert_eq!(config.text("server.listen"), "127.0.0.1:2");
        assert_eq!(config.duration("server.drain"), Duration::from_secs(3));
        assert_eq!(config.count("server.max_in_flight"), 1_000);
        let flags = [("server.listen", "listen", "127.0.0.1:3".to_owned())];
        let config = Config::load(Some(&file), vars, &flags).unwrap();
        let origins: Vec<String> = config
            .entries()
            .filter(|(p, _, _)| ["server.drain", "server.listen", "log.json"].contains(p))
            .map(|(p, v, o)| {
                format!(
                    "{p}={} {}",
                    v.to_toml(),
                    o.to_string().replace(&file.display().to_string(), "m.toml")
                )
            })
            .collect();
        assert_eq!(
            origins,
            [
                "log.json=false default",
                "server.drain=\"3s\" m.toml:3",
                "server.listen=\"127.0.0.1:3\" flag --listen"
            ]
        );
    }

    #[test]
    fn unknown_keys_are_refused_with_a_suggestion() {
        let vars = env(&[("MAINSTAY_SERVER__LISEN", "x")]);
        let error = Config::load(None, vars, &[]).unwrap_err();
        assert_eq!(error.code(), Code::UnknownKey);
        assert!(error.chain().contains("did you mean `server.listen`?"), "{error}");
    }

    /// `mainstay elect node -- mainstay serve`: what the wrapper tells its command was refused as unknown keys.
    #[test]
    fn a_node_reads_its_configuration_under_a_lease_of_the_command_line() {
        let told = [
            "MAINSTAY_CRON_SLOT",
            "MAINSTAY_FENCING_TOKEN",
            "MAINSTAY_LEADER_TERM",
            "MAINSTAY_LEASE_DEADLINE",
            "MAINSTAY_LOCK_NAME",
        ];
        let config = Config::load(None, env(&told.map(|name| (name, "7"))), &[]).unwrap();
        assert!(config.entries().all(|(_, _, origin)| *origin == Origin::Default));
    }

    #[test]
    fn a_wrong_type_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.toml");
        std::fs::write(&file, "\n[server]\ndrain = 3\n").unwrap();
        let error = Config::load(Some(&file), env(&[]), &[]).unwrap_err();
        assert_eq!(error.code(), Code::BadValue);
        assert!(error.chain().contains("m.toml:3"), "{error}");
    }
}
