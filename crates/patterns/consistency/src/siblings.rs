//! Values that conflict are kept beside each other until somebody who saw them replaces them.
//!
//! Source: Preguica, Baquero, Almeida, Fonte, Goncalves, "Dotted Version Vectors: Logical Clocks for Optimistic
//! Replication" (2010). Unlike with plain version vectors, k clients that interleave leave at most k values.

use crate::Actor;
use crate::crdt::{Changed, DeltaState, Join, MvRegister, Value};
use crate::error::{ConfigError, Error, ErrorKind, Result};
use crate::hash::DigestKey;
use crate::version::Context;
use crate::wire::{decode, encode};

/// From so many siblings on an application probably forgets to merge.
pub const WARN_SIBLINGS: usize = 25;
/// More siblings than this no put of a client leaves behind.
pub const MAX_SIBLINGS: usize = 100;

/// The values under one key, with the context of every write they come from.
///
/// Guarantees: the values are exactly the writes that no later put covered. A put that would leave more than the limit
/// is refused; a merge with another replica never is, or the replicas would differ for ever.
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, siblings::Siblings};
/// use mainstay_consistency::replicate::DigestKey;
///
/// let mut actor = Actor::new(ActorId::new(1, 1, 0));
/// let mut cart = Siblings::<String>::new(DigestKey::new([1; 16]), b"cart:7");
/// let empty = cart.get();
/// cart.put(&mut actor, &empty.token, "milk".into())?;
/// cart.put(&mut actor, &empty.token, "bread".into())?; // did not see milk
/// let both = cart.get();
/// assert_eq!(both.values, ["milk", "bread"]);
/// cart.put(&mut actor, &both.token, both.values.join("+"))?;
/// assert_eq!(cart.get().values, ["milk+bread"]);
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Siblings<V> {
    values: MvRegister<V>,
    /// Ties tokens to this key of this cluster.
    scope: (DigestKey, Vec<u8>),
    warn: usize,
    max: usize,
}

/// What a reader sees, and the token that a later put proves it with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Read<V> {
    /// The concurrent values, in the order of their dots.
    pub values: Vec<V>,
    /// What was seen, as opaque bytes, bound to the key and the cluster.
    pub token: Vec<u8>,
}

/// What a put left behind.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Put<V> {
    /// The delta for the other replicas.
    pub delta: MvRegister<V>,
    /// How many values there are now, if that is suspicious.
    pub many: Option<usize>,
}

/// Bytes of a token's seal.
const SEAL: usize = 8;

impl<V: Value> Siblings<V> {
    /// No value under `name`. `key` is the cluster's secret: tokens of other clusters or keys are refused.
    #[must_use]
    pub fn new(key: DigestKey, name: &[u8]) -> Self {
        Self {
            values: MvRegister::new(),
            scope: (key, name.to_vec()),
            warn: WARN_SIBLINGS,
            max: MAX_SIBLINGS,
        }
    }

    /// The same with other limits.
    ///
    /// # Errors
    /// Unless `1 <= warn <= max`.
    pub fn limits(mut self, warn: usize, max: usize) -> std::result::Result<Self, ConfigError> {
        if warn == 0 || warn > max {
            return Err(ConfigError::new("warn", warn, format!("1 to max ({max})")));
        }
        (self.warn, self.max) = (warn, max);
        Ok(self)
    }

    fn seal(&self, context: &[u8]) -> [u8; SEAL] {
        let mut all = (self.scope.1.len() as u64).to_be_bytes().to_vec();
        all.extend_from_slice(&self.scope.1);
        all.extend_from_slice(context);
        self.scope.0.hash64(&all).to_be_bytes()
    }

    /// The values and the token to replace them with.
    #[must_use]
    pub fn get(&self) -> Read<V> {
        let mut token = encode(self.values.context());
        token.extend_from_slice(&self.seal(&token));
        Read { values: self.values.values().cloned().collect(), token }
    }

    fn open(&self, token: &[u8]) -> Result<Context> {
        if token.is_empty() {
            return Ok(Context::new());
        }
        let split = token.len().checked_sub(SEAL).ok_or_else(|| Error::malformed("no token"))?;
        let (context, seal) = token.split_at(split);
        if self.seal(context) != *seal {
            let text = "a token of another key or cluster; read this key and put again";
            return Err(Error::new(ErrorKind::ForeignContext, text));
        }
        decode(context)
    }

    /// Replaces the values that the token's reader saw by `value`, also those that it saw at another replica and that have
    /// not arrived here yet. An empty token saw nothing: one more value.
    ///
    /// # Errors
    /// [`ErrorKind::TooManySiblings`], [`ErrorKind::ForeignContext`], [`ErrorKind::Malformed`], and those of
    /// [`Causal::mutate`](crate::crdt::Causal::mutate); nothing was changed.
    pub fn put(&mut self, actor: &mut Actor, token: &[u8], value: V) -> Result<Put<V>> {
        let seen = self.open(token)?;
        let stays = self.values.store().entries().iter().filter(|e| !seen.contains(e.0)).count();
        let count = stays + 1;
        if count > self.max {
            let text = format!(
                "{count} siblings; read them, merge them and put the result with the token of that read"
            );
            return Err(Error::new(ErrorKind::TooManySiblings { count }, text));
        }
        // What was read elsewhere is replaced here before it comes. Of this actor there can be nothing but what it made.
        let elsewhere = seen.minus(self.values.context());
        actor.check_seen(&elsewhere)?;
        let delta = self.values.mutate(actor, |register, mint| {
            mint.cover_seen(elsewhere);
            for (dot, _) in register.entries().iter().filter(|e| seen.contains(e.0)) {
                mint.cover_dot(*dot);
            }
            Ok(crate::crdt::DotFun::one(mint.dot(), value))
        })?;
        Ok(Put { delta, many: (count >= self.warn).then_some(count) })
    }

    /// The one value that `merge` makes of all, if there is any. The merge function must be commutative, associative
    /// and idempotent, or replicas read different values; the harness of feature `laws` checks it.
    #[must_use]
    pub fn resolved(&self, merge: impl Fn(V, &V) -> V) -> Option<V> {
        let mut values = self.values.values();
        let first = values.next()?.clone();
        Some(values.fold(first, merge))
    }

    /// Joins another replica's state or a delta. Whether it changed, and how many values there are if that is
    /// suspicious.
    ///
    /// # Errors
    /// None so far; the signature is that of every join.
    pub fn join(&mut self, other: &MvRegister<V>) -> Result<(Changed, Option<usize>)> {
        let changed = self.values.join(other)?;
        let count = self.values.store().entries().len();
        Ok((changed, (count >= self.warn).then_some(count)))
    }

    /// The replicated state.
    #[must_use]
    pub fn state(&self) -> &MvRegister<V> {
        &self.values
    }

    /// What somebody with the context `seen` misses.
    #[must_use]
    pub fn delta_since(&self, seen: &Context) -> MvRegister<V> {
        self.values.delta_since(seen)
    }
}
