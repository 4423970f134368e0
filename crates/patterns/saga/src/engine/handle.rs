//! A started saga, as its starter sees it.

use std::time::Duration;

use mainstay_store::journal::{SagaStatus, Uid};
use serde_json::Value;

use super::Engine;
use crate::definition::Definition;
use crate::fold::State;
use crate::wire::{Cause, Fact, decode};
use crate::{Error, ErrorKind};

/// How a saga ended, or that it waits for a person.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// Closed by a person with effects remaining: the steps that have one.
    Abandoned {
        /// Steps whose effect remains; none are named when nobody could read the saga.
        remaining: Vec<String>,
    },
    /// Every effect is reversed.
    Compensated {
        /// Why it turned back.
        cause: Option<Cause>,
        /// Failures after the first.
        also_failed: Vec<(String, String)>,
    },
    /// Every step is done; the outputs by step name.
    Completed {
        /// Outputs, in declaration order.
        outputs: Vec<(String, Value)>,
    },
    /// Only a person can move it on: the steps that need one.
    NeedsAttention {
        /// Step names.
        steps: Vec<String>,
    },
}

/// A handle to a saga. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct Handle {
    engine: Engine,
    uid: Uid,
    id: String,
    is_new: bool,
}

impl Handle {
    pub(super) fn new(engine: &Engine, uid: Uid, id: String, is_new: bool) -> Self {
        Self { engine: engine.clone(), uid, id, is_new }
    }

    /// The engine's id.
    #[must_use]
    pub fn uid(&self) -> &Uid {
        &self.uid
    }

    /// The user's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether this start created it.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Waits until the saga ends or needs a person.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it was purged meanwhile, [`ErrorKind::Store`] when the journal fails.
    ///
    /// # Cancel safety
    /// Dropping the future only stops waiting.
    pub async fn outcome(&self) -> Result<Outcome, Error> {
        self.engine.outcome(&self.uid).await
    }
}

impl Engine {
    /// Waits until a saga ends or needs a person.
    ///
    /// # Errors
    /// As [`Handle::outcome`].
    ///
    /// # Cancel safety
    /// Dropping the future only stops waiting.
    pub async fn outcome(&self, uid: &Uid) -> Result<Outcome, Error> {
        /// Bounds a lost hint of the journal.
        const LOOK: Duration = Duration::from_secs(1);
        /// The hint is of any saga: many waiters do not look at theirs at every commit.
        const REST: Duration = Duration::from_millis(20);
        let inner = &self.0;
        loop {
            let watched = inner.active().get(uid).map(|a| a.outcome.subscribe());
            if let Some(mut outcome) = watched {
                // An error means that the saga left memory: the journal knows.
                if let Ok(Some(outcome)) = outcome.wait_for(Option::is_some).await.map(|o| o.clone()) {
                    return Ok(outcome);
                }
            }
            let cursor = inner.journal.last_cursor().await?;
            if let Some(outcome) = self.peek(uid).await? {
                return Ok(outcome);
            }
            tokio::select! {
                biased;
                changed = inner.journal.changed(&cursor) => changed?,
                () = inner.runtime.clock().sleep(LOOK) => {}
            }
            inner.runtime.clock().sleep(REST).await;
        }
    }

    /// The outcome if there is one now.
    async fn peek(&self, uid: &Uid) -> Result<Option<Outcome>, Error> {
        let not_found = || Error::new(ErrorKind::NotFound, format!("there is no saga {uid}"));
        let settled = |status: SagaStatus| status.is_final() || status == SagaStatus::NeedsAttention;
        // The row first: a log may be long.
        let row = self.0.journal.summary(uid).await?.ok_or_else(not_found)?.row;
        if !settled(row.status) {
            return Ok(None);
        }
        let loaded = self.load_or_row(uid).await?.ok_or_else(not_found)?;
        let (summary, status) = (&loaded.summary, loaded.summary.row.status);
        if !settled(status) {
            return Ok(None);
        }
        let definition = self.definition(&summary.definition, Some(summary.version));
        let facts: Result<Vec<Fact>, _> = loaded.records.iter().map(decode).collect();
        let state = definition.as_deref().zip(facts.ok().filter(|facts| !facts.is_empty()));
        let state = state.and_then(|(d, facts)| Some((d, State::fold(d, &facts).ok()?)));
        Ok(Some(match (state, status) {
            (Some((definition, state)), _) => outcome_of(definition, &state, status),
            // Set aside, and given up without anybody having read it: that is all that can be said.
            (None, SagaStatus::Abandoned) => Outcome::Abandoned { remaining: Vec::new() },
            (None, _) => Outcome::NeedsAttention { steps: Vec::new() },
        }))
    }
}

pub(super) fn outcome_of(definition: &Definition, state: &State, status: SagaStatus) -> Outcome {
    let nodes = || definition.steps().iter().zip(&state.nodes);
    match status {
        SagaStatus::Completed => Outcome::Completed {
            outputs: nodes()
                .map(|(s, n)| (s.name.clone(), n.current().output.clone().unwrap_or(Value::Null)))
                .collect(),
        },
        SagaStatus::Compensated => {
            Outcome::Compensated { cause: state.stop.clone(), also_failed: state.also_failed.clone() }
        }
        SagaStatus::Abandoned => Outcome::Abandoned {
            remaining: nodes()
                .filter(|(_, n)| n.remaining() != crate::fold::Effect::None)
                .map(|(s, _)| s.name.clone())
                .collect(),
        },
        _ => Outcome::NeedsAttention {
            steps: nodes().filter(|(_, n)| n.item.is_some()).map(|(s, _)| s.name.clone()).collect(),
        },
    }
}
