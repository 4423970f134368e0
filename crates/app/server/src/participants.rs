//! The caller of participants, as configured; a reload puts another one in its place.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use mainstay_clock::{Clock, Instant};
use mainstay_saga::definition::Definition;
use mainstay_saga::http::{AddressPolicy, HttpParticipant};
use mainstay_saga::participant::{Participant, Reply, Request};
use mainstay_saga::signature::Secret;
use mainstay_store::BoxFuture;

use crate::config::Config;
use crate::error::{Code, Error, Result};

/// Most secrets of one origin: the old and the new one during an exchange, and room for a mistake.
const MAX_SECRETS: usize = 4;
/// Largest secrets file.
const MAX_FILE: u64 = 16 * 1024;

/// The caller in force. A call that is under way ends with the one that it began with.
#[derive(Debug)]
pub(crate) struct Participants {
    current: RwLock<Arc<HttpParticipant>>,
}

impl Participants {
    /// The caller that `config` asks for.
    ///
    /// # Errors
    /// When an origin, a network or a secret cannot be read.
    pub(crate) fn open(config: &Config, clock: &Arc<dyn Clock>) -> Result<Self> {
        Ok(Self::of(build(config, clock)?))
    }

    /// This caller.
    pub(crate) fn of(caller: HttpParticipant) -> Self {
        Self { current: RwLock::new(Arc::new(caller)) }
    }

    fn current(&self) -> Arc<HttpParticipant> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Steps whose addresses may not be called, with the reasons.
    pub(crate) fn violations(&self, definition: &Definition) -> Vec<(String, String)> {
        let found = self.current().policy().violations(definition);
        found.into_iter().map(|(step, why)| (step.to_owned(), why.to_string())).collect()
    }

    /// From the next call on, `caller` makes the calls.
    pub(crate) fn replace(&self, caller: HttpParticipant) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(caller);
    }
}

impl Participant for Participants {
    fn call(&self, request: Request, deadline: Instant) -> BoxFuture<'_, Reply> {
        let current = self.current();
        Box::pin(async move { current.call(request, deadline).await })
    }

    fn check(&self, url: &str) -> std::result::Result<(), String> {
        self.current().check(url)
    }
}

/// Only the allowed origins are called; what their names resolve to is public or in an allowed network.
///
/// # Errors
/// As [`Participants::open`].
pub(crate) fn build(config: &Config, clock: &Arc<dyn Clock>) -> Result<HttpParticipant> {
    let refused = |e| Error::with(Code::BadValue, "participants", e);
    let mut policy = AddressPolicy::only(config.list("participants.allow")).map_err(refused)?;
    for network in config.list("participants.allow_network") {
        policy = policy.allow_network(network).map_err(refused)?;
    }
    let mut builder = HttpParticipant::builder(policy, Arc::clone(clock));
    for entry in config.list("participants.sign") {
        let (origin, file) = entry.split_once('=').ok_or_else(|| {
            Error::new(Code::BadValue, format!("participants.sign: `{entry}` is not ORIGIN=FILE"))
        })?;
        builder = builder.sign(origin, secrets(Path::new(file))?);
    }
    builder.max_reply(config.count("participants.max_reply")).build().map_err(refused)
}

/// The secrets of a file. Their text is never repeated.
fn secrets(file: &Path) -> Result<Vec<Secret>> {
    let place = || format!("participants.sign: {}", file.display());
    let unreadable = |e: std::io::Error| Error::with(Code::BadValue, place(), e);
    if std::fs::metadata(file).map_err(unreadable)?.len() > MAX_FILE {
        return Err(Error::new(Code::BadValue, format!("{}: larger than 16 KiB", place())));
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let found: std::result::Result<Vec<Secret>, _> = lines.map(Secret::parse).collect();
    let found = found.map_err(|e| Error::with(Code::BadValue, place(), e))?;
    if found.is_empty() || found.len() > MAX_SECRETS {
        return Err(Error::new(
            Code::BadValue,
            format!("{}: 1 to {MAX_SECRETS} secrets, one a line", place()),
        ));
    }
    Ok(found)
}
