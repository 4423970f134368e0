//! Elections: one leader at a time, each with a term.
//!
//! A term is a held lease of the election's name with the fencing token as its number. Work runs under the
//! [`Term`] as under a [`Guard`]; what a leader writes carries the term's token.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Deadline;
use mainstay_store::FencingToken;
use mainstay_store::lease::{Released, Since, Transferred};

use crate::coordinator::{Core, LOOK, given};
use crate::guard::as_its_guard;
use crate::lock::{self, Lock};
use crate::{ConfigError, Error, ErrorKind, Guard, LossReason};

/// Settings of an election.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `ttl` | 30 s, renewed each 10 s | the textbook's; a leader that dies is replaced within it |
/// | `candidate` | the coordinator's owner | who leads, for people |
#[derive(Debug)]
#[must_use]
pub struct Builder {
    core: Arc<Core>,
    name: String,
    ttl: Duration,
    max_term: Option<Duration>,
    note: String,
}

impl Builder {
    pub(crate) fn new(core: Arc<Core>, name: &str) -> Self {
        Self { core, name: name.to_owned(), ttl: lock::DEFAULT_TTL, max_term: None, note: String::new() }
    }

    /// How long leadership lasts without renewal.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Ends a term after this time though it could be renewed: for a leader whose work may hang.
    pub fn max_term(mut self, limit: Duration) -> Self {
        self.max_term = Some(limit);
        self
    }

    /// A note that others see beside the leader.
    pub fn note(mut self, note: &str) -> Self {
        note.clone_into(&mut self.note);
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// As [`lock::Builder::build`].
    pub fn build(self) -> Result<Election, ConfigError> {
        let name = format!("election/{}", given("name", &self.name)?);
        let mut builder = lock::Builder::new(Arc::clone(&self.core), vec![name], lock::Kind::Exclusive)
            .ttl(self.ttl)
            .note(&self.note);
        if self.core.store.guarantees().native.contains(&"line") {
            builder = builder.fair();
        }
        if let Some(limit) = self.max_term {
            builder = builder.max_hold(limit);
        }
        Ok(Election { lock: builder.build()? })
    }
}

/// An election that can be entered and observed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Election {
    lock: Lock,
}

/// Who led when the store was asked: a hint, never a proof. Only tokens decide.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leader {
    /// The owner that leads.
    pub owner: String,
    /// Its term.
    pub token: FencingToken,
    /// What it [proclaimed](Term::proclaim).
    pub value: Option<Vec<u8>>,
    /// Since when it leads, if anybody wrote that down: for people.
    pub since: Option<Since>,
}

impl Election {
    /// Waits to be elected, or until `limit`.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    ///
    /// # Cancel safety
    /// As [`Lock::acquire`]: dropping the future withdraws the candidate.
    pub async fn campaign(&self, limit: Deadline) -> Result<Term, Error> {
        Ok(Term { guard: self.lock.acquire(limit).await? })
    }

    /// Who leads now, as far as the store knows.
    ///
    /// # Errors
    /// When the store fails.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn leader(&self) -> Result<Option<Leader>, Error> {
        let stats = self.lock.stats().await?;
        let info = stats[0].info();
        Ok(info.holders.first().map(|holder| Leader {
            owner: holder.owner.clone(),
            token: holder.token,
            value: info.annotation.clone(),
            since: holder.since,
        }))
    }

    /// Follows who leads.
    #[must_use]
    pub fn observe(&self) -> Observer {
        Observer { election: self.clone(), known: None }
    }

    /// Waits until the leader or its value differs from `known`, and says what it is then. Changes in
    /// between may be passed over; the last one is not.
    ///
    /// # Errors
    /// When the store fails.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn changed(&self, known: Option<&Leader>) -> Result<Option<Leader>, Error> {
        let core = &self.lock.core;
        let mut vain = 0;
        loop {
            // Armed before the look, so that a change in between is not slept over.
            let hint = core.hint(&self.lock.want().names[0], vain);
            let now = self.leader().await?;
            if now.as_ref() != known {
                return Ok(now);
            }
            let look = core.clock().sleep(LOOK);
            tokio::select! {
                biased;
                () = hint => vain += 1,
                () = look => vain = 0,
            }
        }
    }
}

/// Follows an election; see [`Election::observe`].
#[derive(Debug)]
pub struct Observer {
    election: Election,
    /// What was told last; none before the first.
    known: Option<Option<Leader>>,
}

impl Observer {
    /// Who leads: at once the first time, then whenever leader, term or value are different. Changes in between may
    /// be passed over; the last one is not, and leader, term and value always belong together.
    ///
    /// # Errors
    /// When the store fails; ask again to go on.
    ///
    /// # Cancel safety
    /// Nothing is lost: what a dropped future would have told comes with the next.
    pub async fn next(&mut self) -> Result<Option<Leader>, Error> {
        let now = match &self.known {
            None => self.election.leader().await?,
            Some(known) => self.election.changed(known.as_ref()).await?,
        };
        self.known = Some(now.clone());
        Ok(now)
    }
}

/// One continuous leadership.
#[derive(Debug)]
#[must_use = "a dropped term resigns"]
pub struct Term {
    guard: Guard,
}

as_its_guard!(Term);

impl Term {
    /// Publishes a value beside the leader's name, if the term still lasts.
    ///
    /// # Errors
    /// `Lost` when the store knows a newer term; `Unsupported` on a store without annotations.
    ///
    /// # Cancel safety
    /// A dropped future may have published.
    pub async fn proclaim(&self, value: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.check()?;
        let name = self.guard.name();
        let kept = self.guard.store().annotate(name, self.token(), value.into()).await;
        if kept.map_err(|e| Error::store(name, e))? {
            Ok(())
        } else {
            Err(Error::lost(name, LossReason::TakenOver))
        }
    }

    /// Hands leadership to a candidate that waits in line, and ends this term. The work must have stopped.
    ///
    /// # Errors
    /// With each of them the term comes back. `Contended` when no such candidate waits, and `Unsupported` on a store that
    /// cannot: it goes on; `Lost` when it was over; `ApiMisuse` while it is [shared](Self::share). When the store fails, and
    /// [`outcome`](Error::outcome) does not say that nothing happened, somebody else may lead already: do not begin anew.
    ///
    /// # Cancel safety
    /// A dropped future resigns or has handed over.
    pub async fn transfer(self, to: &str) -> Result<(), (Self, Error)> {
        let name = self.guard.name().to_owned();
        if let Err(refused) = self.check().and_then(|()| self.guard.alone("hand over")) {
            return Err((self, refused));
        }
        match self.guard.store().transfer(&name, self.token(), to).await {
            Ok(Transferred::Moved) => Ok(()),
            Ok(Transferred::NoSuchCandidate) => {
                let why = format!("`{name}`: no candidate `{to}` waits");
                let kind = ErrorKind::Contended { holder: to.to_owned(), remaining: None, since: None };
                Err((self, Error::new(kind, why)))
            }
            Ok(Transferred::Unsupported) => {
                let why = format!("`{name}`: this store cannot hand a lease over");
                Err((self, Error::new(ErrorKind::Unsupported, why)))
            }
            Err(e) => Err((self, Error::store(&name, e))),
        }
    }

    /// Ends the term. The work must have stopped.
    ///
    /// # Errors
    /// When the store fails until the term has ended by itself.
    ///
    /// # Cancel safety
    /// As [`Guard::release`].
    pub async fn resign(self) -> Result<Released, Error> {
        self.guard.release().await
    }
}
