//! `HUP`: takes over what a running node can, all or nothing, with a line in the audit.

use std::collections::BTreeMap;
use std::sync::Arc;

use mainstay_clock::Runtime;
use mainstay_resilience::Policy;
use mainstay_saga::Engine;
use mainstay_saga::definition::Definition;
use mainstay_store::Journal;
use mainstay_store::journal::Audit;

use super::serve::{Args, LogFilter, read_definitions};
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

impl Reloader {
    /// Reads the configuration again and puts it in force. Nothing changes when anything in it is wrong.
    pub(super) async fn reload(&mut self) {
        let before = self.config.clone();
        match self.apply().await {
            Ok(changes) => {
                tracing::info!(changes, "configuration reloaded");
                self.audit(changes, "applied".to_owned()).await;
            }
            Err(error) => {
                self.config = before;
                tracing::error!(
                    code = error.code().name(),
                    error = error.chain(),
                    "reload refused; nothing changed"
                );
                self.audit(String::new(), format!("refused: {}", error.chain())).await;
            }
        }
    }

    /// Everything that can fail comes before the first change.
    async fn apply(&mut self) -> Result<String> {
        let fresh = self.args.load()?;
        let diff = self.config.diff(&fresh);
        let caller = self.participants.rebuilt(&fresh, &self.rt)?;
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
        let changed = |key: &str| diff.iter().any(|(path, _, _)| *path == key);
        if changed("log.filter") {
            self.log.set(fresh.text("log.filter"))?;
        }
        // Old and new ones, until no definition names the old ones.
        let fresh_policies = caller.policies();
        let mut policies: BTreeMap<String, Policy> = BTreeMap::new();
        for policy in self.participants.policies().into_iter().chain(fresh_policies.iter().cloned()) {
            policies.insert(policy.name().to_owned(), policy);
        }
        let failed = |e| Error::with(Code::BadValue, "participants.policies", e);
        self.engine.set_policies(policies.into_values()).map_err(failed)?;
        self.participants.replace(caller);
        if let (Some(fleet), Some(keys)) = (&self.fleet, keys) {
            fleet.set_keys(keys);
        }
        let mut lines: Vec<String> = Vec::new();
        for definition in definitions {
            lines.extend(self.put(definition).await?);
        }
        self.engine.set_policies(fresh_policies).map_err(failed)?;
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
        if let Some((step, why)) = caller.violations(definition).into_iter().next() {
            return Err(Error::new(Code::BadDefinition, format!("`{name}`: step `{step}`: {why}")));
        }
        caller.knows_policies_of(definition)?;
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
