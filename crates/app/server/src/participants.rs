//! The caller of participants, as configured; a reload puts another one in its place.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use mainstay_clock::{Instant, Runtime};
use mainstay_resilience::breaker::State;
use mainstay_resilience::{Breaker, Bulkhead, Policy};
use mainstay_saga::definition::Definition;
use mainstay_saga::http::{AddressPolicy, HttpParticipant};
use mainstay_saga::participant::{Guarded, Participant, Reply, Request};
use mainstay_saga::signature::Secret;
use mainstay_store::BoxFuture;

use crate::config::Config;
use crate::error::{Code, Error, Result};

/// Most secrets of one origin: the old and the new one during an exchange, and room for a mistake.
const MAX_SECRETS: usize = 4;
/// Largest secrets file.
const MAX_FILE: u64 = 16 * 1024;

/// Calls that wait for a place at a participant, per participant: as many as there are sagas in memory by default.
const QUEUE: u32 = 10_000;
/// Longest wait for a place; the attempt's own time ends it earlier.
const PLACE_WAIT: Duration = Duration::from_secs(30);

/// A caller of participants with what guards its calls.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    http: Arc<HttpParticipant>,
    guarded: Arc<dyn Participant>,
    breakers: Vec<Breaker>,
}

impl Caller {
    /// Steps whose addresses may not be called, with the reasons.
    pub(crate) fn violations(&self, definition: &Definition) -> Vec<(String, String)> {
        let found = self.http.policy().violations(definition);
        found.into_iter().map(|(step, why)| (step, why.to_string())).collect()
    }
}

/// The caller in force. A call that is under way ends with the one that it began with.
#[derive(Debug)]
pub(crate) struct Participants {
    current: RwLock<Caller>,
}

impl Participants {
    /// The caller that `config` asks for.
    ///
    /// # Errors
    /// When an origin, a network or a secret cannot be read.
    pub(crate) fn open(config: &Config, rt: &Runtime) -> Result<Self> {
        Ok(Self { current: RwLock::new(build(config, rt)?) })
    }

    /// This caller, unguarded.
    #[cfg(test)]
    pub(crate) fn of(caller: HttpParticipant) -> Self {
        let http = Arc::new(caller);
        let guarded = Arc::clone(&http) as Arc<dyn Participant>;
        Self { current: RwLock::new(Caller { http, guarded, breakers: Vec::new() }) }
    }

    fn current(&self) -> Caller {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Origins whose breaker refuses calls, or lets only probes pass.
    pub(crate) fn open_breakers(&self) -> BTreeSet<String> {
        let open = |b: &&Breaker| matches!(b.state(), State::ForcedOpen | State::HalfOpen | State::Open);
        self.current().breakers.iter().filter(open).map(|b| b.name().to_owned()).collect()
    }

    /// As [`Caller::violations`].
    pub(crate) fn violations(&self, definition: &Definition) -> Vec<(String, String)> {
        self.current().violations(definition)
    }

    /// From the next call on, `caller` makes the calls.
    pub(crate) fn replace(&self, caller: Caller) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = caller;
    }
}

impl Participant for Participants {
    fn call(&self, request: Request, deadline: Instant) -> BoxFuture<'_, Reply> {
        let current = self.current();
        Box::pin(async move { current.guarded.call(request, deadline).await })
    }

    fn check(&self, url: &str) -> std::result::Result<(), String> {
        self.current().http.check(url)
    }
}

/// Only the allowed origins are called; what their names resolve to is public or in an allowed network.
///
/// # Errors
/// As [`Participants::open`].
pub(crate) fn build(config: &Config, rt: &Runtime) -> Result<Caller> {
    let refused = |e| Error::with(Code::BadValue, "participants", e);
    let mut policy = AddressPolicy::only(config.list("participants.allow")).map_err(refused)?;
    for network in config.list("participants.allow_network") {
        policy = policy.allow_network(network).map_err(refused)?;
    }
    let mut builder = HttpParticipant::builder(policy, Arc::clone(rt.clock()));
    for entry in config.list("participants.sign") {
        let (origin, file) = entry.split_once('=').ok_or_else(|| {
            Error::new(Code::BadValue, format!("participants.sign: `{entry}` is not ORIGIN=FILE"))
        })?;
        builder = builder.sign(origin, secrets(Path::new(file))?);
    }
    let http = Arc::new(builder.max_reply(config.count("participants.max_reply")).build().map_err(refused)?);
    let (guarded, breakers) = guard(config, Arc::clone(&http), rt)?;
    Ok(Caller { http, guarded, breakers })
}

/// A policy per allowed origin, of what is switched on.
fn guard(
    config: &Config,
    http: Arc<HttpParticipant>,
    rt: &Runtime,
) -> Result<(Arc<dyn Participant>, Vec<Breaker>)> {
    let most = u32::try_from(config.count("participants.max_in_flight")).unwrap_or(u32::MAX);
    let breaks = config.flag("participants.breaker");
    if most == 0 && !breaks {
        return Ok((http, Vec::new()));
    }
    let refused = |e| Error::with(Code::BadValue, "participants", e);
    let mut policies: Vec<(String, Policy)> = Vec::new();
    let mut breakers = Vec::new();
    for origin in config.list("participants.allow") {
        let origin = origin.trim_end_matches('/');
        let mut policy = Policy::builder(origin).runtime(rt).without_budget();
        if breaks {
            let breaker = Breaker::builder(origin).runtime(rt).build().map_err(refused)?;
            policy = policy.breaker(&breaker);
            breakers.push(breaker);
        }
        if most > 0 {
            let places = Bulkhead::builder(origin, most).queue(QUEUE, PLACE_WAIT).runtime(rt);
            policy = policy.bulkhead(&places.build().map_err(refused)?);
        }
        policies.push((origin.to_owned(), policy.build().map_err(refused)?));
    }
    let is_of = |url: &str, origin: &str| {
        url.strip_prefix(origin).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']))
    };
    let choose = move |url: &str| policies.iter().find(|(o, _)| is_of(url, o)).map(|(_, p)| p.clone());
    Ok((Arc::new(Guarded::new(http, choose)), breakers))
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
