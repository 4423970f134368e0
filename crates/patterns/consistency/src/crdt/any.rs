//! Values whose type is known at run time only.

use crate::crdt::causal::{Causal, DotStore, Mint, sealed::Sealed};
use crate::crdt::counter::Tally;
use crate::crdt::dotfun::DotFun;
use crate::crdt::dotmap::{AddWins, DotMap};
use crate::crdt::dotset::DotSet;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::DigestKey;
use crate::version::{Context, Dot};
use crate::wire::{MAX_DEPTH, Reader, Wire, Writer};

/// A map of names to values of several types, as documents of people are.
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, ErrorKind, Join, crdt::{Any, AnyKind, Document}};
///
/// let (mut at_a, mut at_b) = (Actor::new(ActorId::new(1, 1, 0)), Actor::new(ActorId::new(2, 1, 0)));
/// let (mut a, mut b) = (Document::new(), Document::new());
/// a.update(&mut at_a, "likes".into(), |any, mint| any.counter(mint, |c, mint| c.count(mint, 1, 0)))?;
/// b.update(&mut at_b, "likes".into(), |any, mint| any.set(mint, |s, mint| s.insert(mint, b"ada".to_vec())))?;
///
/// // One name, two types: refused by name, and both sides keep what they have.
/// let before = a.clone();
/// assert_eq!(a.join(&b).unwrap_err().kind(), ErrorKind::TypeMismatch);
/// assert_eq!(a, before);
/// assert_eq!(a.get(&"likes".into()).map(Any::kind), Some(AnyKind::Counter));
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
pub type Document = Causal<DotMap<String, Any, AddWins>>;

/// The types a value can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AnyKind {
    /// A [`ResettableCounter`](crate::crdt::ResettableCounter).
    Counter,
    /// Nothing yet.
    Empty,
    /// An [`EwFlag`](crate::crdt::EwFlag).
    Flag,
    /// A map of names to values.
    Map,
    /// An [`MvRegister`](crate::crdt::MvRegister) of bytes.
    Register,
    /// An [`AwSet`](crate::crdt::AwSet) of bytes.
    Set,
}

/// A value of one of several types. Its type is fixed as long as something of it is visible.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Any(Inner);

#[derive(Clone, Debug, Default, PartialEq)]
enum Inner {
    Counter(DotFun<Tally>),
    #[default]
    Empty,
    Flag(DotSet),
    Map(Box<DotMap<String, Any, AddWins>>),
    Register(DotFun<Vec<u8>>),
    Set(Box<DotMap<Vec<u8>, DotSet, AddWins>>),
}

/// Runs `$body` on whatever is inside; `$empty` when nothing is.
macro_rules! inside {
    ($inner:expr, $store:ident => $body:expr, $empty:expr) => {
        match $inner {
            Inner::Counter($store) => $body,
            Inner::Empty => $empty,
            Inner::Flag($store) => $body,
            Inner::Map($store) => $body,
            Inner::Register($store) => $body,
            Inner::Set($store) => $body,
        }
    };
}

/// A reader and a mutator per type.
macro_rules! typed {
    ($read:ident, $change:ident, $variant:ident, $store:ty, $what:literal, $wrap:expr) => {
        #[doc = concat!("The ", $what, ", if it is one.")]
        #[must_use]
        pub fn $read(&self) -> Option<&$store> {
            if let Inner::$variant(store) = &self.0 { Some(store) } else { None }
        }

        #[doc = concat!("Changes the ", $what, "; an empty value becomes one.")]
        ///
        /// # Errors
        /// [`ErrorKind::TypeMismatch`] when it is something else, and what `f` answers.
        pub fn $change(
            &self,
            mint: &mut Mint<'_>,
            f: impl FnOnce(&$store, &mut Mint<'_>) -> Result<$store>,
        ) -> Result<Self> {
            let delta = match &self.0 {
                Inner::$variant(store) => f(store, mint)?,
                Inner::Empty => f(&<$store>::default(), mint)?,
                _ => return Err(mismatch(self.kind(), AnyKind::$variant)),
            };
            if delta.is_bottom() {
                return Ok(Self::default());
            }
            let delta = Self(Inner::$variant($wrap(delta)));
            if delta.depth() >= MAX_DEPTH {
                return Err(Error::new(ErrorKind::TooDeep, format!("nested deeper than {MAX_DEPTH}")));
            }
            Ok(delta)
        }
    };
}

fn mismatch(is: AnyKind, wanted: AnyKind) -> Error {
    Error::new(
        ErrorKind::TypeMismatch,
        format!("{is:?} and {wanted:?} meet under one key; remove one of them"),
    )
}

impl Any {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> AnyKind {
        match &self.0 {
            Inner::Counter(_) => AnyKind::Counter,
            Inner::Empty => AnyKind::Empty,
            Inner::Flag(_) => AnyKind::Flag,
            Inner::Map(_) => AnyKind::Map,
            Inner::Register(_) => AnyKind::Register,
            Inner::Set(_) => AnyKind::Set,
        }
    }

    typed!(as_counter, counter, Counter, DotFun<Tally>, "counter", std::convert::identity);
    typed!(as_flag, flag, Flag, DotSet, "flag", std::convert::identity);
    typed!(as_map, map, Map, DotMap<String, Any, AddWins>, "map", Box::new);
    typed!(as_register, register, Register, DotFun<Vec<u8>>, "register", std::convert::identity);
    typed!(as_set, set, Set, DotMap<Vec<u8>, DotSet, AddWins>, "set", Box::new);

    /// Levels of maps and sets.
    fn depth(&self) -> u8 {
        match &self.0 {
            Inner::Map(map) => 1 + map.iter().map(|e| e.1.depth()).max().unwrap_or(0),
            Inner::Set(_) => 1,
            _ => 0,
        }
    }

    /// Nothing, of the same type.
    fn empty_like(&self) -> Self {
        Self(match &self.0 {
            Inner::Counter(_) => Inner::Counter(DotFun::default()),
            Inner::Empty => Inner::Empty,
            Inner::Flag(_) => Inner::Flag(DotSet::default()),
            Inner::Map(_) => Inner::Map(Box::default()),
            Inner::Register(_) => Inner::Register(DotFun::default()),
            Inner::Set(_) => Inner::Set(Box::default()),
        })
    }

    fn absorb_same(&mut self, mine: &Context, other: &Self, theirs: &Context, moved: &mut Vec<(Dot, bool)>) {
        match (&mut self.0, &other.0) {
            (Inner::Counter(a), Inner::Counter(b)) => a.absorb(mine, b, theirs, moved),
            (Inner::Flag(a), Inner::Flag(b)) => a.absorb(mine, b, theirs, moved),
            (Inner::Map(a), Inner::Map(b)) => a.absorb(mine, b, theirs, moved),
            (Inner::Register(a), Inner::Register(b)) => a.absorb(mine, b, theirs, moved),
            (Inner::Set(a), Inner::Set(b)) => a.absorb(mine, b, theirs, moved),
            _ => {}
        }
        if inside!(&self.0, store => store.is_bottom(), false) {
            self.0 = Inner::Empty;
        }
    }
}

impl Sealed for Any {}

impl DotStore for Any {
    const CHECKED: bool = true;

    fn is_bottom(&self) -> bool {
        inside!(&self.0, store => store.is_bottom(), true)
    }

    fn any_dot(&self, f: &mut dyn FnMut(Dot) -> bool) -> bool {
        inside!(&self.0, store => store.any_dot(f), false)
    }

    fn absorb(&mut self, mine: &Context, other: &Self, theirs: &Context, moved: &mut Vec<(Dot, bool)>) {
        if self.kind() == other.kind() {
            return self.absorb_same(mine, other, theirs, moved);
        }
        // What goes, goes first; if nothing is left, the other one's type is taken.
        let nothing = self.empty_like();
        self.absorb_same(mine, &nothing, theirs, moved);
        if self.is_bottom() {
            *self = other.empty_like();
            self.absorb_same(mine, other, theirs, moved);
        }
    }

    fn compatible(&self, mine: &Context, other: &Self, theirs: &Context) -> Result<()> {
        if let (Inner::Map(a), Inner::Map(b)) = (&self.0, &other.0) {
            return a.compatible(mine, b, theirs);
        }
        if self.kind() != other.kind()
            && self.any_dot(&mut |dot| !theirs.contains(dot))
            && other.any_dot(&mut |dot| !mine.contains(dot))
        {
            return Err(mismatch(self.kind(), other.kind()));
        }
        Ok(())
    }

    fn keep(&self, f: &dyn Fn(Dot) -> bool) -> Self {
        let kept = Self(match &self.0 {
            Inner::Counter(store) => Inner::Counter(store.keep(f)),
            Inner::Empty => Inner::Empty,
            Inner::Flag(store) => Inner::Flag(store.keep(f)),
            Inner::Map(store) => Inner::Map(Box::new(store.keep(f))),
            Inner::Register(store) => Inner::Register(store.keep(f)),
            Inner::Set(store) => Inner::Set(Box::new(store.keep(f))),
        });
        if kept.is_bottom() { Self::default() } else { kept }
    }

    fn fingerprint(&self, dot: Dot, key: &DigestKey) -> Option<u128> {
        let inner = inside!(&self.0, store => store.fingerprint(dot, key), None)?;
        Some(inner.wrapping_add(u128::from(self.tag())))
    }
}

impl Any {
    fn tag(&self) -> u8 {
        match &self.0 {
            Inner::Empty => 0,
            Inner::Counter(_) => 1,
            Inner::Flag(_) => 2,
            Inner::Map(_) => 3,
            Inner::Register(_) => 4,
            Inner::Set(_) => 5,
        }
    }
}

impl Wire for Any {
    fn write(&self, out: &mut Writer) {
        out.byte(self.tag());
        inside!(&self.0, store => store.write(out), ());
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let inner = match input.byte()? {
            0 => Inner::Empty,
            1 => Inner::Counter(DotFun::read(input)?),
            2 => Inner::Flag(DotSet::read(input)?),
            3 => Inner::Map(Box::new(DotMap::read(input)?)),
            4 => Inner::Register(DotFun::read(input)?),
            5 => Inner::Set(Box::new(DotMap::read(input)?)),
            tag => return Err(Error::malformed(format!("{tag} is no type"))),
        };
        let any = Self(inner);
        // Emptiness has one form only.
        if any.kind() != AnyKind::Empty && any.is_bottom() {
            return Err(Error::malformed("an empty value with a type"));
        }
        Ok(any)
    }
}
