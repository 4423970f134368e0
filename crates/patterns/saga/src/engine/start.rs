//! Starting a saga.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use mainstay_store::Outcome;
use mainstay_store::journal::{Create, Created, Hash, MAX_ID_BYTES, Reply, Uid};
use serde_json::Value;

use super::drive::{Drive, advance, write};
use super::registry::Registered;
use super::{Engine, Handle, Inner};
use crate::canonical::canonical;
use crate::definition::{Definition, payload_fault};
use crate::fold::State;
use crate::next::fits;
use crate::wire::{Carried, Fact, Started};
use crate::{Error, ErrorKind};

/// Most attributes of one saga: they are indexes for people, not payload.
const MAX_ATTRS: usize = 16;

/// How a saga is started.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StartOptions {
    /// The user's id, unique per definition; made by the engine when absent.
    pub id: Option<String>,
    /// The definition's version; the newest when absent.
    pub version: Option<u32>,
    /// Attributes for filters.
    pub attrs: BTreeMap<String, String>,
    /// Scope and key of an idempotent request, with the hash of the request. The reply is kept with it.
    pub request: Option<(String, Hash)>,
    /// Trace context (W3C `traceparent`) that is sent on to participants.
    pub trace: Option<String>,
    /// What tracing systems added to it (W3C `tracestate`), sent on too. Only together with `trace`.
    pub trace_state: Option<String>,
}

impl StartOptions {
    /// Options with the user's id.
    #[must_use]
    pub fn id(id: impl Into<String>) -> Self {
        Self { id: Some(id.into()), ..Self::default() }
    }
}

impl Engine {
    /// Starts a saga of the definition called `name`.
    ///
    /// Idempotent by id: the same id with the same input gives the saga that exists, whatever its state.
    ///
    /// # Errors
    /// [`ErrorKind::InputConflict`] when the id or the request key exists with another input, naming both
    /// hashes; [`ErrorKind::NotFound`] for an unknown definition; [`ErrorKind::TooLarge`],
    /// [`ErrorKind::Overloaded`]; [`ErrorKind::Store`], whose outcome may be unknown: repeat with the same id.
    ///
    /// # Cancel safety
    /// A dropped future may have started the saga: repeat with the same id.
    pub async fn start(&self, name: &str, input: Value, options: StartOptions) -> Result<Handle, Error> {
        let inner = &self.0;
        let Some(registered) = inner.registry.find(name, options.version) else {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no definition `{name}`")));
        };
        let (trace, trace_state) = (options.trace.clone(), options.trace_state.clone());
        let started = Started { input, deadline: None, trace, trace_state, again: None };
        self.begin(&registered, started, Vec::new(), options).await
    }

    /// Creates and launches a saga whose log begins with `started` and `carried`.
    pub(super) async fn begin(
        &self,
        registered: &Arc<Registered>,
        started: Started,
        carried: Vec<Carried>,
        options: StartOptions,
    ) -> Result<Handle, Error> {
        let inner = &self.0;
        let name = registered.definition.name();
        let input_hash = check(&started, &carried, &options)?;
        inner.admit()?;
        let uid = inner.new_uid();
        let id = options.id.clone().unwrap_or_else(|| uid.to_string());
        let (create, drive) =
            inner.prepare(registered, (&uid, &id), started, carried, input_hash, &options)?;
        let sent = inner.runtime.clock().now();
        let mut unlaunched = Unlaunched { inner, uid: Some(uid.clone()) };
        let created = match inner.journal.create(create.clone()).await {
            // Repeating is safe: the store answers `Same` or `Created`, never twice.
            Err(e) if e.outcome() == Outcome::Unknown => {
                inner.doubt_claims(sent);
                inner.journal.create(create).await?
            }
            other => other?,
        };
        match created {
            Created::Created { epoch, .. } => {
                unlaunched.uid = None;
                drive.launch(epoch);
                Ok(Handle::new(self, uid, id, true))
            }
            Created::Same { uid: there, .. } => Ok(unlaunched.found(self, there, id)),
            Created::Conflict { stored, given, .. } => Err(Error::new(
                ErrorKind::InputConflict,
                format!("saga `{id}` of `{name}` exists with another input: stored {stored}, given {given}"),
            )),
            Created::Replayed(reply) => {
                let text = String::from_utf8_lossy(&reply.body).into_owned();
                let (there, id) = text.split_once(' ').unwrap_or((&text, &text));
                Ok(unlaunched.found(self, Uid::new(there), id.to_owned()))
            }
            Created::ReplyMismatch => Err(Error::new(
                ErrorKind::InputConflict,
                "the idempotency key was used for another request".to_owned(),
            )),
            Created::LockHeld { lock, by } => {
                Err(Error::new(ErrorKind::Conflict, format!("lock `{lock}` is held by saga {by}")))
            }
        }
    }
}

/// A saga that may exist under a claim of this node, and that nothing drives yet: its creation is under way, its
/// answer was lost, or whoever started it went away. However that ends, the saga is given back and taken up again.
struct Unlaunched<'a> {
    inner: &'a Inner,
    uid: Option<Uid>,
}

impl Unlaunched<'_> {
    /// The handle of a saga that exists. When it is this very one, the first answer was lost.
    fn found(&mut self, engine: &Engine, there: Uid, id: String) -> Handle {
        let is_new = self.uid.as_ref() == Some(&there);
        if !is_new {
            self.uid = None;
        }
        Handle::new(engine, there, id, is_new)
    }
}

impl Drop for Unlaunched<'_> {
    fn drop(&mut self) {
        if let Some(uid) = self.uid.take() {
            self.inner.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(uid);
            self.inner.poke.notify_one();
        }
    }
}

impl Inner {
    /// A uid that sorts by time: UUIDv7 (RFC 9562) over our clock and generator.
    pub(super) fn new_uid(&self) -> Uid {
        let random = (self.runtime.rng().next_u64(), self.runtime.rng().next_u64());
        Uid::new(uuid_v7(u64::try_from(self.time.now()).unwrap_or(0), random))
    }

    fn prepare(
        self: &Arc<Self>,
        registered: &Arc<Registered>,
        (uid, id): (&Uid, &str),
        started: Started,
        carried: Vec<Carried>,
        input_hash: Hash,
        options: &StartOptions,
    ) -> Result<(Create, Drive), Error> {
        let definition: &Definition = &registered.definition;
        let now = self.time.now();
        let deadline = definition
            .deadline()
            .map(|d| now.saturating_add(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)));
        let mut state = State::new(definition);
        let mut facts = vec![Fact::Created(Started { deadline, ..started })];
        facts.extend(carried.into_iter().map(Fact::Carried));
        let internal = |e: crate::fold::Illegal| Error::new(ErrorKind::Internal, e.to_string());
        let mut records = Vec::with_capacity(facts.len() + 1);
        for fact in &facts {
            write(definition, &mut state, fact, &mut records).map_err(internal)?;
        }
        if !fits(definition, &state, 0, 0) {
            let text =
                format!("what is carried over has {} bytes; the log has no room for an end", state.bytes);
            return Err(Error::new(ErrorKind::TooLarge, text));
        }
        let plan = advance(definition, &mut state, &mut records, now, self.config.undo_slots.get())
            .map_err(internal)?;
        let create = Create {
            uid: uid.clone(),
            id: id.to_owned(),
            definition: definition.name().to_owned(),
            version: definition.version(),
            definition_hash: definition.hash(),
            input_hash,
            records,
            row: self.time.as_shown(crate::row::row(definition, &state, now, &options.attrs)),
            owner: Some(self.claimant()),
            reply: options.request.clone().map(|(key, request)| Reply {
                key,
                request,
                status: 202,
                body: format!("{uid} {id}").into_bytes(),
            }),
            parent: None,
            locks: Vec::new(),
        };
        let drive = Drive::new(self, uid.clone(), Arc::clone(registered), state, options.attrs.clone(), plan);
        Ok((create, drive))
    }
}

/// Refuses what is too large; the hash of what identifies the start's input.
fn check(started: &Started, carried: &[Carried], options: &StartOptions) -> Result<Hash, Error> {
    let refuse = |kind, text: String| Err(Error::new(kind, text));
    if let Some(why) = payload_fault(&started.input) {
        return refuse(ErrorKind::TooLarge, format!("the input {why}"));
    }
    let text = canonical(&started.input);
    if let Some(id) = options.id.as_ref().filter(|id| id.is_empty() || id.len() > MAX_ID_BYTES) {
        let text = format!("the id has {} bytes; allowed: 1 to {MAX_ID_BYTES}", id.len());
        return refuse(ErrorKind::ApiMisuse, text);
    }
    if options.attrs.len() > MAX_ATTRS
        || options.attrs.iter().any(|(k, v)| k.len() > MAX_ID_BYTES || v.len() > MAX_ID_BYTES)
    {
        let text = format!("at most {MAX_ATTRS} attributes of at most {MAX_ID_BYTES} bytes are allowed");
        return refuse(ErrorKind::TooLarge, text);
    }
    let Some(again) = &started.again else { return Ok(Hash::of(text.as_bytes())) };
    // A run of its own: the saga that it repeats and the steps that it takes over are part of what it is.
    let steps: Vec<&str> = carried.iter().map(|c| c.step.as_str()).collect();
    Ok(Hash::of(format!("{again} {} {text}", steps.join(" ")).as_bytes()))
}

/// The text of a UUIDv7: 48 bits of time, 74 random ones, version and variant between them.
fn uuid_v7(millis: u64, (a, b): (u64, u64)) -> String {
    let head = (millis << 16) | 0x7000 | (a & 0x0fff);
    let tail = (0b10 << 62) | (b >> 2);
    let (time, rest) = (head >> 32, head & 0xffff_ffff);
    format!(
        "{time:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        rest >> 16,
        rest & 0xffff,
        tail >> 48,
        tail & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests {
    use super::uuid_v7;

    /// The example of RFC 9562, A.6.
    #[test]
    fn uids_are_uuids_of_version_7() {
        let random = (0xcc3, 0x18c4_dc0c_0c07_398f << 2);
        assert_eq!(uuid_v7(0x017f_22e2_79b0, random), "017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
        assert_eq!(uuid_v7(0, (0, 0)), "00000000-0000-7000-8000-000000000000");
        assert_eq!(uuid_v7(u64::MAX, (u64::MAX, u64::MAX)), "ffffffff-ffff-7fff-bfff-ffffffffffff");
    }
}
