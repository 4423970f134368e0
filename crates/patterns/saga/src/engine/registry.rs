//! Definitions known to an engine, and their closures.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use mainstay_store::journal::{Filter, PutDefinition, SagaStatus, StoredDefinition, Summary};

use super::{Inner, policies};
use crate::definition::{Call, Definition, Step, Undo};
use crate::step::LocalStep;
use crate::wire;
use crate::{Error, ErrorKind};

/// A definition that can be driven.
pub(super) struct Registered {
    pub(super) definition: Arc<Definition>,
    pub(super) steps: BTreeMap<String, Arc<dyn LocalStep>>,
}

#[derive(Default)]
pub(super) struct Registry(Mutex<BTreeMap<(String, u32), Arc<Registered>>>);

impl Registry {
    pub(super) fn find(&self, name: &str, version: Option<u32>) -> Option<Arc<Registered>> {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, to) = version.map_or((0, u32::MAX), |v| (v, v));
        map.range((name.to_owned(), from)..=(name.to_owned(), to)).next_back().map(|(_, r)| Arc::clone(r))
    }

    pub(super) fn all(&self) -> Vec<Arc<Definition>> {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.values().map(|r| Arc::clone(&r.definition)).collect()
    }

    fn insert(&self, registered: Registered) {
        let key = (registered.definition.name().to_owned(), registered.definition.version());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::new(registered));
    }
}

/// Whether a step has a closure.
fn is_local(step: &Step) -> bool {
    step.action == Call::Local || step.undo == Undo::Call(Call::Local) || step.local_status
}

/// Whether every step is a remote call.
fn is_remote(definition: &Definition) -> bool {
    !definition.steps().iter().any(is_local)
}

impl Inner {
    /// Takes up a stored definition that needs no closures. One with closures waits until the program
    /// registers it; sagas of it are parked until then.
    pub(super) fn adopt(&self, stored: &StoredDefinition) {
        match Definition::from_json(&stored.bytes) {
            Ok(definition) if is_remote(&definition) && self.participant.is_some() => {
                let known = self.policies.read().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = policies::check(&definition, &known) {
                    tracing::error!(target: "mainstay::saga", version = stored.version, %error,
                        "a stored definition cannot be driven; its sagas are parked");
                    return;
                }
                self.registry.insert(Registered { definition: Arc::new(definition), steps: BTreeMap::new() });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(target: "mainstay::saga", name = stored.name, version = stored.version, %error,
                    "a stored definition cannot be read; its sagas are parked");
            }
        }
    }

    pub(super) async fn register(
        &self,
        definition: Definition,
        steps: BTreeMap<String, Arc<dyn LocalStep>>,
    ) -> Result<(), Error> {
        let config = |text: String| Err(Error::new(ErrorKind::Config, text));
        for step in definition.steps() {
            let local = is_local(step);
            let remote =
                matches!(step.action, Call::Http(_)) || matches!(step.undo, Undo::Call(Call::Http(_)));
            if local && !steps.contains_key(&step.name) {
                return config(format!("step `{}` of `{}` has no closure", step.name, definition.name()));
            }
            match &self.participant {
                None if remote => {
                    let why = "calls an address, but the engine has no participant caller";
                    return config(format!("step `{}` {why}", step.name));
                }
                None => {}
                Some(participant) => {
                    for url in step.addresses() {
                        if let Err(why) = participant.check(url) {
                            return config(format!("step `{}`: {why}", step.name));
                        }
                    }
                }
            }
        }
        policies::check(&definition, &self.policies.read().unwrap_or_else(PoisonError::into_inner))?;
        let bytes = serde_json::to_vec(definition.data())
            .map_err(|e| Error::new(ErrorKind::Internal, format!("a definition cannot be written: {e}")))?;
        let stored = StoredDefinition {
            name: definition.name().to_owned(),
            version: definition.version(),
            hash: definition.hash(),
            bytes,
        };
        if let PutDefinition::Conflict { .. } = self.journal.put_definition(stored).await? {
            return Err(self.changed(&definition).await?);
        }
        let known = self.policies.read().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have changed them while it was stored.
        policies::check(&definition, &known)?;
        self.registry.insert(Registered { definition: Arc::new(definition), steps });
        Ok(())
    }

    /// The error for a version whose graph changed, naming the difference.
    async fn changed(&self, definition: &Definition) -> Result<Error, Error> {
        let all = self.journal.definitions().await?;
        let old = all.iter().find(|d| d.name == definition.name() && d.version == definition.version());
        let diff = match old.and_then(|d| Definition::from_json(&d.bytes).ok()) {
            Some(old) => old.diff(definition).join("; "),
            None => "the stored graph cannot be read".to_owned(),
        };
        let text = format!(
            "version {} of `{}` exists with another graph ({diff}); give it a new version",
            definition.version(),
            definition.name()
        );
        Ok(Error::new(ErrorKind::InputConflict, text))
    }

    /// A definition that another node stored after this one started.
    pub(super) async fn find_stored(&self, name: &str, version: u32) -> Option<Arc<Registered>> {
        match self.journal.definitions().await {
            Ok(all) => self.adopt(all.iter().find(|d| d.name == name && d.version == version)?),
            Err(error) => {
                tracing::warn!(target: "mainstay::saga", name, version, %error, "definitions could not be read");
                return None;
            }
        }
        self.registry.find(name, Some(version))
    }

    /// Makes parked sagas due again, of one definition or of all, whose definition this engine knows now.
    pub(super) async fn wake_parked(&self, name: Option<&str>) -> Result<(), Error> {
        /// Rows looked at per page; parked sagas are few.
        const PAGE: usize = 500;
        let filter = Filter {
            status: vec![SagaStatus::NeedsAttention],
            definition: name.map(str::to_owned),
            error_contains: Some(super::aside::PARKED.to_owned()),
            ..Filter::default()
        };
        let mut after = None;
        loop {
            let page = self.journal.query(&filter, after.as_ref(), PAGE).await?;
            let known = |row: &&Summary| {
                let there = self.registry.find(&row.definition, Some(row.version));
                there.is_some_and(|r| r.definition.hash() == row.definition_hash)
            };
            for row in page.rows.iter().filter(known) {
                let message = format!("wake/{}/{}", row.next_seq, row.epoch);
                self.journal.post(&row.uid, &message, wire::POST_WAKE, Vec::new()).await?;
            }
            after = page.next;
            if after.is_none() {
                self.poke.notify_one();
                return Ok(());
            }
        }
    }
}
