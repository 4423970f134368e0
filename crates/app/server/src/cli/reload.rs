//! `HUP`: takes over what a running node can, all or nothing as far as the journal stands by, with a line in the audit.

use std::collections::BTreeMap;
use std::sync::Arc;

use mainstay_clock::Runtime;
use mainstay_resilience::Policy;
use mainstay_saga::Engine;
use mainstay_saga::definition::Definition;
use mainstay_store::Journal;
use mainstay_store::journal::Audit;

use super::serve::{Args, LogFilter, parse_filter, read_definitions};
use crate::config::{Config, is_reloaded};
use crate::error::{Code, Error, Result};
use crate::fleet::{self, Fleet};
use crate::participants::{Caller, Participants};

/// What a reload changes.
pub(super) struct Reloader {
    pub(super) args: Args,
    pub(super) config: Config,
    pub(super) engine: Engine,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) participants: Arc<Participants>,
    pub(super) fleet: Option<Arc<Fleet>>,
    pub(super) log: LogFilter,
    pub(super) rt: Runtime,
}

/// Why a reload did not come to its end.
struct Halt {
    /// What is in force all the same: addresses and secrets as they are in the files, and this.
    applied: Vec<String>,
    error: Error,
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self { applied: Vec::new(), error }
    }
}

impl Reloader {
    /// Reads the configuration again and puts it in force. Nothing changes when anything in it is wrong.
    pub(super) async fn reload(&mut self) {
        let fresh = self.args.load();
        self.take_over(fresh).await;
    }

    async fn take_over(&mut self, fresh: Result<Config>) {
        let before = self.config.clone();
        match self.apply(fresh).await {
            Ok(changes) => {
                tracing::info!(changes, "configuration reloaded");
                self.audit(changes, "applied".to_owned()).await;
            }
            Err(Halt { applied, error }) => {
                self.config = before;
                let (code, why) = (error.code().name(), error.chain());
                if applied.is_empty() {
                    tracing::error!(code, error = why, "reload refused; nothing changed");
                    self.audit(String::new(), format!("refused: {why}")).await;
                } else {
                    let applied = applied.join("; ");
                    tracing::error!(code, error = why, applied, "reload broke off; the next one repeats it");
                    self.audit(applied, format!("applied in part: {why}")).await;
                }
            }
        }
    }

    /// Everything that can be known to fail comes before the first change, and what only the journal knows before all
    /// others.
    async fn apply(&mut self, fresh: Result<Config>) -> std::result::Result<String, Halt> {
        let fresh = fresh?;
        let diff = self.config.diff(&fresh);
        let mut caller = self.participants.rebuilt(&fresh, &self.rt)?;
        let definitions = read_definitions(fresh.text("saga.definitions"))?;
        for definition in &definitions {
            self.admit(definition, &caller)?;
        }
        let replaces =
            |d: &Definition| definitions.iter().any(|f| (f.name(), f.version()) == (d.name(), d.version()));
        for known in self.engine.definitions().iter().filter(|d| !replaces(d)) {
            caller.knows_policies_of(known)?;
        }
        // From the old place: another one needs a restart.
        let keys = self.fleet.as_ref().map(|_| fleet::keys(&self.config)).transpose()?;
        let filter = parse_filter(fresh.text("log.filter"))?;
        self.participants.hand_on(&mut caller, &self.rt)?;
        // Old and new ones, until no definition names the old ones.
        let fresh_policies = caller.policies();
        let mut policies: BTreeMap<String, Policy> = BTreeMap::new();
        for policy in self.participants.policies().into_iter().chain(fresh_policies.iter().cloned()) {
            policies.insert(policy.name().to_owned(), policy);
        }
        let failed = |e| Error::with(Code::BadValue, "participants.policies", e);
        self.engine.set_policies(policies.into_values()).map_err(failed)?;
        // Definitions may call what only the new one may.
        let old = self.participants.replace(caller);
        let mut lines: Vec<String> = Vec::new();
        for definition in definitions {
            match self.put(definition).await {
                Ok(line) => lines.extend(line),
                Err(error) => {
                    if lines.is_empty() {
                        self.engine.set_policies(old.policies()).map_err(failed)?;
                        self.participants.replace(old);
                    }
                    return Err(Halt { applied: lines, error });
                }
            }
        }
        if diff.iter().any(|(path, _, _)| *path == "log.filter") {
            self.log.set(filter);
        }
        if let (Some(fleet), Some(keys)) = (&self.fleet, keys) {
            fleet.set_keys(keys);
        }
        if let Err(error) = self.engine.set_policies(fresh_policies) {
            // A definition that came meanwhile names one of them.
            lines.push(format!("participants.policies: those of before stay beside the new ones: {error}"));
        }
        // What is stored may have waited for a policy.
        if let Err(error) = self.engine.adopt_stored().await {
            tracing::error!(%error, "stored definitions could not be looked at; the next reload does");
        }
        for (path, old, new) in diff {
            let when = if is_reloaded(path) { "" } else { " (after a restart)" };
            lines.push(format!("{path}: {old} -> {new}{when}"));
        }
        if lines.is_empty() {
            lines
                .push("nothing but what files say: secrets and allowed addresses were read again".to_owned());
        }
        self.config = fresh;
        Ok(lines.join("; "))
    }

    /// Whether the engine will take a definition.
    fn admit(&self, definition: &Definition, caller: &Caller) -> Result<()> {
        let (name, version) = (definition.name(), definition.version());
        caller.admits(definition)?;
        match self.engine.definition(name, Some(version)) {
            Some(known) if known.hash() != definition.hash() => {
                let diff = known.diff(definition).join("; ");
                let why = format!("version {version} of `{name}` exists with another graph ({diff})");
                Err(Error::new(Code::DefinitionConflict, why))
            }
            _ => Ok(()),
        }
    }

    /// Stores a definition unless it is in force already; what changed.
    async fn put(&self, definition: Definition) -> Result<Option<String>> {
        let (name, version) = (definition.name().to_owned(), definition.version());
        let known = self.engine.definition(&name, Some(version));
        if known.as_ref().is_some_and(|k| k.data() == definition.data()) {
            return Ok(None);
        }
        let failed = |e| Error::with(Code::StoreUnavailable, format!("definition `{name}`"), e);
        self.engine.put_definition(definition).await.map_err(failed)?;
        let what = if known.is_some() { "tuned" } else { "new" };
        Ok(Some(format!("definition {name} version {version}: {what}")))
    }

    async fn audit(&self, before: String, after: String) {
        let line = Audit {
            who: "signal HUP".to_owned(),
            action: "reload".to_owned(),
            target: "configuration".to_owned(),
            reason: String::new(),
            before,
            after,
            request_id: String::new(),
        };
        if let Err(error) = self.journal.put_audit(line).await {
            tracing::error!(%error, "the reload could not be audited");
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use mainstay_saga::participant::Participant as _;
    use mainstay_store::journal::{Hash, StoredAudit, StoredDefinition};
    use mainstay_store::memory::MemoryJournal;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// Definitions that came over the API waited for their policy until the node was started again: a reload brought
    /// the policy and woke nobody.
    #[tokio::test]
    async fn a_reload_that_brings_a_policy_takes_up_what_waited_for_it() {
        mainstay_saga::http::install_tls();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.toml");
        let policies = dir.path().join("policies.toml");
        std::fs::write(&policies, "[targets.payments.bulkhead]\nlimit = 8\n").unwrap();
        let config = |policies: &str| {
            let text = format!("[participants]\nallow = [\"http://a.test\"]\n{policies}");
            std::fs::write(&file, text).unwrap();
            Config::load(Some(&file), [], &[])
        };
        let rt = Runtime::system();
        let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new(Arc::clone(rt.clock())));
        let text = "name = \"order\"\nversion = 1\ndeadline = \"1h\"\n[[steps]]\nname = \"charge\"\n\
            action = \"http://a.test/s\"\npolicy = \"payments\"\nno_undo = \"it reads\"\n";
        let definition = Definition::from_toml(text).unwrap();
        let bytes = serde_json::to_vec(definition.data()).unwrap();
        let name = "order".to_owned();
        let stored = StoredDefinition { name, version: 1, hash: definition.hash(), bytes };
        journal.put_definition(stored).await.unwrap();
        let before = config("").unwrap();
        let participants = Arc::new(Participants::open(&before, &rt).unwrap());
        let builder = Engine::builder(Arc::clone(&journal), rt.clone());
        let engine = builder.participant(Arc::clone(&participants) as _).open().await.unwrap();
        assert!(engine.definition("order", Some(1)).is_none(), "nothing is called unguarded");
        let mut reloader = Reloader {
            args: Line::parse_from(["serve"]).args,
            config: before,
            engine: engine.clone(),
            journal: Arc::clone(&journal),
            participants,
            fleet: None,
            log: LogFilter(Box::new(|_| ())),
            rt,
        };
        reloader.take_over(config(&format!("policies = \"{}\"\n", policies.display()))).await;
        let line = journal.audit(0, 100).await.unwrap().pop().unwrap().entry;
        assert_eq!(line.after, "applied", "{line:?}");
        assert!(engine.definition("order", Some(1)).is_some());
    }

    /// What only the journal knows may fail after the first change; the audit said "refused", and the log that nothing had
    /// changed.
    #[tokio::test]
    async fn a_reload_that_breaks_off_says_what_is_in_force() {
        mainstay_saga::http::install_tls();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.toml");
        let config = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Config::load(Some(&file), [], &[])
        };
        let fresh = format!(
            "[participants]\nallow = [\"http://a.test\"]\n[saga]\ndefinitions = \"{}\"\n",
            dir.path().join("definitions").display()
        );
        std::fs::create_dir(dir.path().join("definitions")).unwrap();
        let write = |name: &str| {
            let step = "[[steps]]\nname = \"s\"\naction = \"http://a.test/s\"\nno_undo = \"it reads\"\n";
            let text = format!("name = \"{name}\"\nversion = 1\ndeadline = \"1h\"\n{step}");
            std::fs::write(dir.path().join(format!("definitions/{name}.toml")), text).unwrap();
        };
        let rt = Runtime::system();
        let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new(Arc::clone(rt.clock())));
        let before = config("").unwrap();
        let participants = Arc::new(Participants::open(&before, &rt).unwrap());
        let builder = Engine::builder(Arc::clone(&journal), rt.clone());
        let engine = builder.participant(Arc::clone(&participants) as _).open().await.unwrap();
        let mut reloader = Reloader {
            args: Line::parse_from(["serve"]).args,
            config: before,
            engine: engine.clone(),
            journal: Arc::clone(&journal),
            participants: Arc::clone(&participants),
            fleet: None,
            log: LogFilter(Box::new(|_| ())),
            rt,
        };
        let last = async || -> StoredAudit { journal.audit(0, 100).await.unwrap().pop().unwrap() };
        // Another program on this journal has a `b` of its own, which this one does not know.
        let (name, hash) = ("b".to_owned(), Hash::of(b"another"));
        let other = StoredDefinition { name, version: 1, hash, bytes: b"{}".to_vec() };
        journal.put_definition(other).await.unwrap();
        write("b");
        reloader.take_over(config(&fresh)).await;
        let line = last().await.entry;
        assert!(line.after.starts_with("refused: ") && line.before.is_empty(), "{line:?}");
        assert!(participants.check("http://a.test/s").is_err(), "the addresses are those of before");
        write("a");
        reloader.take_over(config(&fresh)).await;
        let line = last().await.entry;
        assert!(line.after.starts_with("applied in part: "), "{line:?}");
        assert_eq!(line.before, "definition a version 1: new");
        assert!(engine.definition("a", Some(1)).is_some() && participants.check("http://a.test/s").is_ok());
        // The next one does the rest.
        std::fs::remove_file(dir.path().join("definitions/b.toml")).unwrap();
        reloader.take_over(config(&fresh)).await;
        let line = last().await.entry;
        assert_eq!(line.after, "applied");
        assert!(line.before.contains("participants.allow"), "{line:?}");
    }
}
