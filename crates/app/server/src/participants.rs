//! The caller of participants, as configured; a reload puts another one in its place.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use mainstay_clock::{Clock, Instant, Runtime};
use mainstay_resilience::breaker::{BreakerSnapshot, State};
use mainstay_resilience::bulkhead::BulkheadSnapshot;
use mainstay_resilience::config::Policies;
use mainstay_resilience::{Breaker, Bulkhead, Policy};
use mainstay_saga::definition::Definition;
use mainstay_saga::http::{AddressPolicy, HttpParticipant, origin};
use mainstay_saga::participant::{Guarded, Participant, Reply, Request};
use mainstay_saga::signature::Secret;
use mainstay_store::BoxFuture;

use crate::config::{Config, nearest};
use crate::durations::{Called, Durations};
use crate::error::{Code, Error, Result};
use crate::files;

/// Most secrets of one origin: the old and the new one during an exchange, and room for a mistake.
const MAX_SECRETS: usize = 4;
/// Largest secrets file.
const MAX_FILE: u64 = 16 * 1024;
/// Largest file of policies.
const MAX_POLICIES: u64 = 1024 * 1024;

/// Calls that wait for a place at a participant, per participant: as many as there are sagas in memory by default.
const QUEUE: u32 = 10_000;
/// Longest wait for a place; the attempt's own time ends it earlier.
const PLACE_WAIT: Duration = Duration::from_secs(30);

/// What guards the calls of one origin.
#[derive(Clone, Debug)]
struct Guard {
    breaker: Option<Breaker>,
    places: Option<Bulkhead>,
}

/// The policies that steps name, and the file that they were built from.
#[derive(Clone, Debug, Default)]
struct Named {
    text: String,
    read: Policies,
    all: BTreeMap<Arc<str>, Policy>,
}

/// A caller of participants with what guards its calls.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    http: Arc<HttpParticipant>,
    guarded: Arc<dyn Participant>,
    /// By origin as it is compared, see [`origin`].
    guards: Arc<BTreeMap<String, Guard>>,
    /// Most calls of one origin at once; 0 where nothing counts them.
    most: u32,
    named: Arc<Named>,
}

impl Caller {
    /// Steps whose addresses may not be called, with the reasons.
    pub(crate) fn violations(&self, definition: &Definition) -> Vec<(String, String)> {
        let found = self.http.policy().violations(definition);
        found.into_iter().map(|(step, why)| (step, why.to_string())).collect()
    }

    /// Refuses a definition that calls what may not be called, or names a policy that is not there.
    ///
    /// # Errors
    /// With the step.
    pub(crate) fn admits(&self, definition: &Definition) -> Result<()> {
        if let Some((step, why)) = self.violations(definition).into_iter().next() {
            let why = format!("`{}`: step `{step}`: {why}", definition.name());
            return Err(Error::new(Code::BadDefinition, why));
        }
        self.knows_policies_of(definition)
    }

    /// The policies that steps name.
    pub(crate) fn policies(&self) -> Vec<Policy> {
        self.named.all.values().cloned().collect()
    }

    /// Refuses a definition whose steps name a policy that is not there.
    ///
    /// # Errors
    /// With the step, and the policy that was most likely meant.
    pub(crate) fn knows_policies_of(&self, definition: &Definition) -> Result<()> {
        for step in definition.steps() {
            let missing = |name: &&str| !self.named.all.contains_key(*name);
            let Some(name) = step.policy.as_deref().filter(missing) else { continue };
            let hint = nearest(self.named.all.keys().map(|k| &**k), name);
            let hint = hint.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            let (step, saga) = (&step.name, definition.name());
            let why = format!("`{saga}`: step `{step}` names the policy `{name}`, which is not there{hint}");
            return Err(Error::new(Code::BadDefinition, why));
        }
        Ok(())
    }
}

/// The caller in force. A call that is under way ends with the one that it began with.
#[derive(Debug)]
pub(crate) struct Participants {
    current: RwLock<Caller>,
    durations: Durations,
    clock: Arc<dyn Clock>,
}

impl Participants {
    /// The caller that `config` asks for.
    ///
    /// # Errors
    /// When an origin, a network or a secret cannot be read.
    pub(crate) fn open(config: &Config, rt: &Runtime) -> Result<Self> {
        Ok(Self::with(build(config, rt, None)?, Arc::clone(rt.clock())))
    }

    /// This caller, unguarded.
    #[cfg(test)]
    pub(crate) fn of(caller: HttpParticipant) -> Self {
        let http = Arc::new(caller);
        let guarded = Arc::clone(&http) as Arc<dyn Participant>;
        let clock = Arc::new(mainstay_clock::SystemClock::new());
        Self::with(Caller { http, guarded, guards: Arc::default(), most: 0, named: Arc::default() }, clock)
    }

    fn with(caller: Caller, clock: Arc<dyn Clock>) -> Self {
        Self { current: RwLock::new(caller), durations: Durations::default(), clock }
    }

    fn current(&self) -> Caller {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Origins whose breaker refuses calls, or lets only probes pass.
    pub(crate) fn open_breakers(&self) -> BTreeSet<String> {
        let open = |b: &&Breaker| matches!(b.state(), State::ForcedOpen | State::HalfOpen | State::Open);
        let current = self.current();
        let breakers = current.guards.values().filter_map(|g| g.breaker.as_ref());
        breakers.filter(open).map(|b| b.name().to_owned()).collect()
    }

    /// How long calls took.
    pub(crate) fn durations(&self) -> &Durations {
        &self.durations
    }

    /// The policies in force that steps name.
    pub(crate) fn policies(&self) -> Vec<Policy> {
        self.current().policies()
    }

    /// The breakers in force, of origins and of policies, as they are now.
    pub(crate) fn breakers(&self) -> Vec<BreakerSnapshot> {
        let current = self.current();
        let origins = current.guards.values().filter_map(|g| g.breaker.as_ref().map(Breaker::snapshot));
        let named = current.named.all.values().filter_map(|p| p.snapshot().breaker);
        origins.chain(named).collect()
    }

    /// The places in force, of origins and of policies, as they are now.
    pub(crate) fn places(&self) -> Vec<BulkheadSnapshot> {
        let current = self.current();
        let origins = current.guards.values().filter_map(|g| g.places.as_ref().map(Bulkhead::snapshot));
        let named = current.named.all.values().map(Policy::snapshot);
        let named = named.flat_map(|p| [p.bulkhead, p.attempt_bulkhead]).flatten();
        origins.chain(named).collect()
    }

    /// As [`Caller::admits`].
    ///
    /// # Errors
    /// As [`Caller::admits`].
    pub(crate) fn admits(&self, definition: &Definition) -> Result<()> {
        self.current().admits(definition)
    }

    /// As [`Caller::violations`].
    pub(crate) fn violations(&self, definition: &Definition) -> Vec<(String, String)> {
        self.current().violations(definition)
    }

    /// The caller that `config` asks for. Breakers and places of origins that stay are those in force, with what they
    /// know: an open breaker stays open, and calls under way are counted on. Calls that nothing counted are not. Policies of a
    /// file that says the same stay as well; other ones know nothing until [`hand_on`](Self::hand_on).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn rebuilt(&self, config: &Config, rt: &Runtime) -> Result<Caller> {
        build(config, rt, Some(&self.current()))
    }

    /// Gives the policies of `caller` what those in force know. Parts that go on have the new settings from here on,
    /// so this comes when nothing else of the configuration can be refused.
    ///
    /// # Errors
    /// When the policies cannot be built; nothing changes.
    pub(crate) fn hand_on(&self, caller: &mut Caller, rt: &Runtime) -> Result<()> {
        let (before, new) = (self.current().named, &caller.named);
        if before.all.is_empty() || Arc::ptr_eq(&before, new) {
            return Ok(());
        }
        let all = new.read.rebuild(&before.read, &before.all, rt, None);
        let all = all.map_err(|e| Error::with(Code::BadValue, "participants.policies", e))?;
        caller.named = Arc::new(Named { all, ..Named::clone(new) });
        Ok(())
    }

    /// From the next call on, `caller` makes the calls; the one that made them before.
    pub(crate) fn replace(&self, caller: Caller) -> Caller {
        for places in caller.guards.values().filter_map(|g| g.places.as_ref()) {
            if let Err(error) = places.resize(caller.most) {
                tracing::error!(origin = places.name(), %error, "the limit of calls at once stays");
            }
        }
        std::mem::replace(&mut *self.current.write().unwrap_or_else(PoisonError::into_inner), caller)
    }
}

impl Participant for Participants {
    fn call(&self, request: Request, deadline: Instant) -> BoxFuture<'_, Reply> {
        let current = self.current();
        Box::pin(async move {
            let (called, begun) = (Called::of(&request), self.clock.now());
            let reply = current.guarded.call(request, deadline).await;
            if let Some(called) = called {
                self.durations.add(&called, self.clock.now().saturating_duration_since(begun));
            }
            reply
        })
    }

    fn check(&self, url: &str) -> std::result::Result<(), String> {
        self.current().http.check(url)
    }
}

/// Only the allowed origins are called; what their names resolve to is public or in an allowed network.
///
/// # Errors
/// As [`Participants::open`].
fn build(config: &Config, rt: &Runtime, before: Option<&Caller>) -> Result<Caller> {
    let refused = |e| Error::with(Code::BadValue, "participants", e);
    let mut policy = AddressPolicy::only(config.list("participants.allow")).map_err(refused)?;
    for network in config.list("participants.allow_network") {
        policy = policy.allow_network(network).map_err(refused)?;
    }
    let mut builder = HttpParticipant::builder(policy, Arc::clone(rt.clock()));
    for entry in config.list("participants.sign") {
        let (origin, file) = entry.split_once('=').ok_or_else(|| {
            // Not shown: it may be a secret that somebody put here instead of its file.
            Error::new(Code::BadValue, "participants.sign: an entry is not ORIGIN=FILE")
        })?;
        builder = builder.sign(origin, secrets(Path::new(file))?);
    }
    let http = Arc::new(builder.max_reply(config.count("participants.max_reply")).build().map_err(refused)?);
    let most = u32::try_from(config.count("participants.max_in_flight")).unwrap_or(u32::MAX);
    let none = BTreeMap::new();
    let guards = guards(config, most, rt, before.map_or(&none, |b| &*b.guards))?;
    let guarded = guarded(&http, &guards, rt)?;
    let named = named(config.text("participants.policies"), rt, before.map(|b| &b.named))?;
    Ok(Caller { http, guarded, guards: Arc::new(guards), most, named })
}

/// The policies of a file. Those that were built from the same text go on, with what they know; what other ones know
/// is handed to them when they take their places, see [`Participants::hand_on`].
fn named(file: &str, rt: &Runtime, before: Option<&Arc<Named>>) -> Result<Arc<Named>> {
    if file.is_empty() {
        return Ok(Arc::default());
    }
    let place = || format!("participants.policies: {file}");
    let unreadable = |e| Error::with(Code::BadValue, place(), e);
    let text = files::text(Path::new(file), MAX_POLICIES).map_err(unreadable)?;
    if let Some(before) = before.filter(|b| b.text == text) {
        return Ok(Arc::clone(before));
    }
    let refused = |e| Error::with(Code::BadValue, place(), e);
    let read = Policies::from_toml(&text).map_err(refused)?;
    let all = read.build(rt).map_err(refused)?;
    for (name, policy) in &all {
        let snapshot = policy.snapshot();
        if snapshot.max_attempts > 1 || snapshot.hedged {
            let why = "a saga repeats its steps itself: no retry and no hedge here";
            return Err(Error::new(Code::BadValue, format!("{}: `{name}`: {why}", place())));
        }
    }
    Ok(Arc::new(Named { text, read, all }))
}

/// What is switched on, for each allowed origin; what was there `before` goes on.
fn guards(
    config: &Config,
    most: u32,
    rt: &Runtime,
    before: &BTreeMap<String, Guard>,
) -> Result<BTreeMap<String, Guard>> {
    let refused = |e| Error::with(Code::BadValue, "participants", e);
    let breaks = config.flag("participants.breaker");
    let mut guards = BTreeMap::new();
    if most == 0 && !breaks {
        return Ok(guards);
    }
    for name in config.list("participants.allow") {
        let name = name.trim_end_matches('/');
        // The policy was made of the same list: each is one.
        let Some(key) = origin(name).filter(|key| !guards.contains_key(key)) else { continue };
        let there = before.get(&key);
        let mut guard = Guard { breaker: None, places: None };
        if breaks {
            let fresh = Breaker::builder(name).runtime(rt).build().map_err(refused)?;
            guard.breaker = Some(there.and_then(|g| g.breaker.clone()).unwrap_or(fresh));
        }
        if most > 0 {
            // Built also where one is there: this judges the new limit before anything changes.
            let fresh = Bulkhead::builder(name, most).queue(QUEUE, PLACE_WAIT).runtime(rt);
            let fresh = fresh.build().map_err(refused)?;
            guard.places = Some(there.and_then(|g| g.places.clone()).unwrap_or(fresh));
        }
        guards.insert(key, guard);
    }
    Ok(guards)
}

/// A policy per guarded origin.
fn guarded(
    http: &Arc<HttpParticipant>,
    guards: &BTreeMap<String, Guard>,
    rt: &Runtime,
) -> Result<Arc<dyn Participant>> {
    let http = Arc::clone(http);
    if guards.is_empty() {
        return Ok(http);
    }
    let mut policies: BTreeMap<String, Policy> = BTreeMap::new();
    for (key, guard) in guards {
        let mut policy = Policy::builder(key.as_str()).runtime(rt).without_budget();
        if let Some(breaker) = &guard.breaker {
            policy = policy.breaker(breaker);
        }
        if let Some(places) = &guard.places {
            policy = policy.bulkhead(places);
        }
        let built = policy.build().map_err(|e| Error::with(Code::BadValue, "participants", e))?;
        policies.insert(key.clone(), built);
    }
    // As the policy of addresses compares them: however an address is spelled, it is guarded.
    let choose = move |url: &str| policies.get(&origin(url)?).cloned();
    Ok(Arc::new(Guarded::new(http, choose)))
}

/// The secrets of a file. Their text is never repeated.
fn secrets(file: &Path) -> Result<Vec<Secret>> {
    let place = || format!("participants.sign: {}", file.display());
    let text = files::text(file, MAX_FILE).map_err(|e| Error::with(Code::BadValue, place(), e))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config(allow: &[&str], most: u32) -> Config {
        let list = allow.iter().map(|o| format!("\"{o}\"")).collect::<Vec<_>>().join(", ");
        let text = format!("[participants]\nallow = [{list}]\nbreaker = true\nmax_in_flight = {most}\n");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path()), [], &[]).unwrap()
    }

    fn guard(participants: &Participants, origin: &str) -> Guard {
        participants.current().guards[&super::origin(origin).unwrap()].clone()
    }

    /// A definition may spell an origin otherwise than the list does: its calls passed every guard by.
    #[tokio::test]
    async fn however_an_address_is_spelled_its_calls_are_guarded() {
        mainstay_saga::http::install_tls();
        let rt = Runtime::system();
        let allow = ["http://A.test:80", "https://b.test/", "http://a.test"];
        let all = Participants::open(&config(&allow, 2), &rt).unwrap();
        let names: Vec<String> = all.breakers().into_iter().map(|b| b.name.to_string()).collect();
        assert_eq!(names, ["http://A.test:80", "https://b.test"], "two spellings are one origin");
        for origin in ["http://a.test", "https://b.test"] {
            guard(&all, origin).breaker.unwrap().force_open("the test", None);
        }
        let deadline = rt.clock().now().saturating_add(Duration::from_secs(60));
        for url in [
            "http://a.test/x",
            "HTTP://a.TEST:80/x",
            "http://A.test?x",
            "https://b.test:443/x",
            "https://B.test/#x",
        ] {
            let request = Request {
                url: url.to_owned(),
                body: Vec::new(),
                idempotency_key: "k".to_owned(),
                saga: "s".to_owned(),
                definition: "order".to_owned(),
                step: "charge".to_owned(),
                op: mainstay_store::barrier::Op::Action { generation: 1 },
                attempt: 1,
                fencing_token: mainstay_store::FencingToken::new(1),
                deadline_wall: None,
                traceparent: None,
                tracestate: None,
                kind: mainstay_saga::participant::Kind::Act,
            };
            let reply = all.call(request, deadline).await;
            assert!(
                matches!(&reply, Reply::Withheld { reason, .. } if reason.contains("open")),
                "{url}: {reply:?}"
            );
        }
    }

    /// Another comment in the file closed every open breaker of its policies, and forgot every call under way.
    #[test]
    fn a_reload_keeps_what_policies_of_a_file_know() {
        mainstay_saga::http::install_tls();
        let dir = tempfile::tempdir().unwrap();
        let (file, policies) = (dir.path().join("m.toml"), dir.path().join("policies.toml"));
        let text = format!("[participants]\nallow = []\npolicies = \"{}\"\n", policies.display());
        std::fs::write(&file, text).unwrap();
        let load = |limit: u32, more: &str| {
            let payments = "[targets.payments]\nattempt_timeout = \"1s\"\nbreaker = {}\n";
            let text = format!("{payments}bulkhead = {{ limit = {limit} }}\n{more}");
            std::fs::write(&policies, text).unwrap();
            Config::load(Some(&file), [], &[]).unwrap()
        };
        let rt = Runtime::system();
        let all = Participants::open(&load(1, ""), &rt).unwrap();
        let payments = || all.policies().into_iter().find(|p| p.name() == "payments").unwrap();
        payments().breaker().unwrap().force_open("the test", None);
        let held = payments().bulkhead().unwrap().try_acquire_owned().unwrap();
        let mut caller = all.rebuilt(&load(2, "[targets.stock.bulkhead]\nlimit = 3\n"), &rt).unwrap();
        assert_eq!(payments().bulkhead().unwrap().snapshot().limit, 1, "nothing changes before");
        all.hand_on(&mut caller, &rt).unwrap();
        all.replace(caller);
        assert_eq!(payments().breaker().unwrap().state(), State::ForcedOpen);
        let places = payments().bulkhead().unwrap().snapshot();
        assert_eq!((places.in_flight, places.limit), (1, 2));
        assert_eq!(all.policies().len(), 2);
        drop(held);
    }

    #[test]
    fn a_reload_keeps_what_breakers_and_places_know() {
        mainstay_saga::http::install_tls();
        let (a, b, c) = ("http://a.test", "http://b.test", "http://c.test");
        let rt = Runtime::system();
        let all = Participants::open(&config(&[a, b], 2), &rt).unwrap();
        let before = guard(&all, a);
        before.breaker.as_ref().unwrap().force_open("the test", None);
        let places = before.places.unwrap();
        let held = [places.try_acquire_owned().unwrap(), places.try_acquire_owned().unwrap()];

        // Nothing changes before the replacement: it may still be refused.
        let caller = all.rebuilt(&config(&[a, c], 3), &rt).unwrap();
        assert_eq!(places.snapshot().limit, 2);
        all.replace(caller);
        assert_eq!(all.open_breakers(), BTreeSet::from([a.to_owned()]), "it stays open");
        let now = guard(&all, a).places.unwrap();
        let third = now.try_acquire_owned().unwrap();
        assert!(now.try_acquire_owned().is_err(), "calls from before the reload are counted");
        assert_eq!((now.snapshot().in_flight, now.snapshot().limit), (3, 3));

        all.replace(all.rebuilt(&config(&[a, c], 1), &rt).unwrap());
        let now = guard(&all, a).places.unwrap();
        drop((held, now.try_acquire_owned().unwrap_err()));
        assert!(now.try_acquire_owned().is_err(), "there is room for one, and one is left");
        drop(third);
        assert!(now.try_acquire_owned().is_ok());

        // What went is forgotten, and what is switched off and on begins anew.
        let kept: Vec<String> = all.breakers().into_iter().map(|b| b.name.to_string()).collect();
        assert_eq!(kept, [a, c]);
        all.replace(all.rebuilt(&config(&[c], 1), &rt).unwrap());
        all.replace(all.rebuilt(&config(&[a, c], 1), &rt).unwrap());
        assert!(all.open_breakers().is_empty());
    }
}
