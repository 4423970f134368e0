//! The document that edits add up to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use yrs::updates::decoder::Decode as _;
use yrs::{Any, Array as _, ClientID, Doc, GetString as _, Map as _, OffsetKind, Options, Out, ReadTxn as _};
use yrs::{StateVector, Transact as _, Update};

use crate::crdt::{Changed, DotFun, Join as _};
use crate::document::changes::{Changes, Kind};
use crate::document::draft::named;
use crate::document::known::{Known, Learned};
use crate::document::read::read;
use crate::document::write::write;
use crate::document::{Draft, Edit, Edits, Json, MAX_EDIT};
use crate::error::{Error, ErrorKind, Result};
use crate::version::{Context, Dot};
use crate::wire::decode;
use crate::{Actor, ActorId, hash};

/// From this size on an edit is left as it is when small ones are joined.
const LARGE: usize = MAX_EDIT / 4;
/// No runs and no removals.
const NOTHING: [u8; 2] = [0, 0];

/// A view of [`Edits`], and what makes new ones. It is a cache: everything in it can be had from the edits again.
///
/// It serves one document. Every call that takes the edits looks at what is new in them first.
pub struct Editor {
    doc: Doc,
    known: Known,
    applied: Context,
    /// How many edits that is.
    count: usize,
    /// Whose edits it makes, as long as nobody else made any in that name.
    author: Option<(ActorId, u64)>,
    /// Refused edits that somebody was told of.
    told: BTreeSet<Dot>,
}

impl fmt::Debug for Editor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Editor").field("author", &self.author).finish_non_exhaustive()
    }
}

impl Default for Editor {
    fn default() -> Self {
        Self::new()
    }
}

/// A document without anything, of one who writes as `id`.
fn empty(id: u64) -> Doc {
    Doc::with_options(Options {
        client_id: ClientID::new(id),
        guid: "".into(),
        collection_id: None,
        offset_kind: OffsetKind::Bytes,
        skip_gc: false,
        auto_load: false,
        should_load: false,
        cleanup_formatting: false,
    })
}

/// Shows the library what it can rely on.
fn show(doc: &Doc, bytes: &[u8]) -> Result<()> {
    let refused = |e: &dyn fmt::Display| Error::malformed(format!("the library refuses what fits: {e}"));
    let update = Update::decode_v1(bytes).map_err(|e| refused(&e))?;
    doc.transact_mut().apply_update(update).map_err(|e| refused(&e))
}

impl Editor {
    /// A view of a document without edits.
    #[must_use]
    pub fn new() -> Self {
        Self {
            doc: empty(0),
            known: Known::default(),
            applied: Context::new(),
            count: 0,
            author: None,
            told: BTreeSet::new(),
        }
    }

    /// Takes in what is new in `edits`; whether that was anything.
    ///
    /// # Errors
    /// [`ErrorKind::ForeignContext`] when `edits` lack something that this view has: they are another document, or were
    /// replaced; take a new editor. [`ErrorKind::Malformed`] for edits that are [refused](Self::refused): they are left
    /// out, the others are in, and this is said once.
    pub fn follow(&mut self, edits: &Edits) -> Result<Changed> {
        let changed = self.hear(edits)?;
        self.catch_up()?;
        Ok(changed)
    }

    /// Takes note of what is new in `edits`.
    fn hear(&mut self, edits: &Edits) -> Result<Changed> {
        if *edits.context() == self.applied {
            return Ok(Changed::No);
        }
        if !edits.context().covers(&self.applied) {
            let text = "these edits lack some that this editor has seen; it serves one document";
            return Err(Error::new(ErrorKind::ForeignContext, text));
        }
        let all = edits.store().entries();
        let fresh: Vec<&(Dot, Edit)> = all.iter().filter(|e| !self.applied.contains(e.0)).collect();
        // What was joined into others is theirs to say now, and only theirs.
        let gone = all.len() - fresh.len() != self.count;
        if gone || fresh.iter().any(|(dot, edit)| self.known.learn(*dot, edit) == Learned::Anew) {
            self.begin_again(edits);
        }
        self.count = all.len();
        Ok(self.applied.union(edits.context()))
    }

    /// Shows what is due.
    fn catch_up(&mut self) -> Result<()> {
        self.known.settle();
        let taken = self.known.taken();
        if taken != Changes::default() {
            show(&self.doc, &write(&taken))?;
        }
        let refused = self.known.refused();
        let new = refused.difference(&self.told).count();
        self.told = refused;
        if new > 0 {
            let text =
                format!("{new} edits contradict others or do not fit into the document; they are left out");
            return Err(Error::malformed(text));
        }
        Ok(())
    }

    /// The edits that are not shown because they claim what another edit wrote, or put something where it cannot be. With
    /// the same edits everybody refuses the same ones.
    pub fn refused(&self) -> impl Iterator<Item = Dot> {
        self.known.refused().into_iter()
    }

    /// The edits of which something is not shown yet, because they build on others that are missing.
    pub fn waiting(&self) -> impl Iterator<Item = Dot> {
        self.known.waiting().into_iter()
    }

    fn begin_again(&mut self, edits: &Edits) {
        (self.doc, self.known, self.author) = (empty(0), Known::default(), None);
        for (dot, edit) in edits.store().entries() {
            let _ = self.known.learn(*dot, edit);
        }
    }

    /// Writes as `actor` from now on. A name in the library is used for what this editor makes in a row: edits that are
    /// missing for a while, because what joined them is on its way, cannot be taken for others then.
    fn write_as(&mut self, actor: &Actor) -> Result<()> {
        let now = (actor.id(), actor.minted());
        if self.author == Some(now) {
            return Ok(());
        }
        let id = (0_u64..).find_map(|n| {
            let name = [&now.0.to_bytes()[..], &now.1.to_be_bytes(), &n.to_be_bytes()].concat();
            let id = hash::of_bytes(&name) >> 11;
            (self.known.claimed(id) == 0).then_some(id)
        });
        let id = id.unwrap_or_default();
        let whole = self.doc.transact().encode_state_as_update_v1(&StateVector::default());
        self.doc = empty(id);
        self.author = Some(now);
        if whole == NOTHING { Ok(()) } else { show(&self.doc, &whole) }
    }

    /// Makes an edit; the delta. Nothing was changed if `f` changed nothing, or failed.
    ///
    /// # Errors
    /// What `f` answers; [`ErrorKind::TooLarge`] above [`MAX_EDIT`]; as for [`follow`](Self::follow), and as for
    /// [`Causal::mutate`](crate::crdt::Causal::mutate).
    pub fn edit(
        &mut self,
        edits: &mut Edits,
        actor: &mut Actor,
        f: impl FnOnce(&mut Draft<'_>) -> Result<()>,
    ) -> Result<Edits> {
        actor.check(edits.context())?;
        // In this order, for what is shown only now needs not be shown twice.
        let _ = self.hear(edits)?;
        self.write_as(actor)?;
        self.catch_up()?;
        match self.draft(edits, actor, f) {
            Ok(Some(delta)) => {
                self.author = Some((actor.id(), actor.minted()));
                self.count += 1;
                let _ = self.applied.union(delta.context());
                Ok(delta)
            }
            Ok(None) => Ok(Edits::new()),
            Err(error) => {
                // The library takes nothing back.
                self.begin_again(edits);
                self.catch_up()?;
                Err(error)
            }
        }
    }

    fn draft(
        &mut self,
        edits: &mut Edits,
        actor: &mut Actor,
        f: impl FnOnce(&mut Draft<'_>) -> Result<()>,
    ) -> Result<Option<Edits>> {
        let mut draft = Draft(self.doc.transact_mut());
        f(&mut draft)?;
        draft.0.commit();
        let changes = read(&draft.0.encode_update_v1())?;
        drop(draft);
        if changes == Changes::default() {
            return Ok(None);
        }
        let edit = Edit::one(&changes)?;
        let known = &mut self.known;
        let delta = edits.mutate(actor, |_, mint| {
            let dot = mint.dot();
            let learned = known.learn(dot, &edit);
            known.settle();
            if learned == Learned::Anew || known.refused().contains(&dot) || known.waiting().contains(&dot) {
                return Err(Error::malformed(
                    "the library made an edit that does not fit into its own document",
                ));
            }
            Ok(DotFun::one(dot, edit))
        })?;
        // The library has it already, but not what may have waited for it.
        let taken = self.known.taken();
        if taken != changes {
            show(&self.doc, &write(&taken))?;
        }
        Ok(Some(delta))
    }

    /// Joins edits into fewer; the delta. It changes what is stored, not what is shown. A document that fits becomes one
    /// edit without the text that was removed; of a larger one small edits are put together. Refused edits go, and what
    /// waits stays; it is shown if it waited for a refused edit and now fits. Two replicas that do it at once both keep what
    /// they joined until the next time, so leave it to one of them.
    ///
    /// # Errors
    /// As for [`edit`](Self::edit).
    pub fn compact(&mut self, edits: &mut Edits, actor: &mut Actor) -> Result<Edits> {
        let _ = self.follow(edits)?;
        let waiting = self.known.waiting();
        let all: Vec<(Dot, Edit)> =
            edits.store().entries().iter().filter(|e| !waiting.contains(&e.0)).cloned().collect();
        let whole = read(&self.doc.transact().encode_state_as_update_v1(&StateVector::default()))?;
        let mut joined = Edits::new();
        if let Ok(whole) = Edit::joined(&whole) {
            let gone: Vec<Dot> = all.iter().map(|e| e.0).collect();
            if replace(&gone, whole, edits, actor, &mut joined)? {
                return Ok(joined);
            }
        }
        let mut groups = vec![(Vec::new(), Changes::default(), 0)];
        for (dot, edit) in all.iter().filter(|e| e.1.as_bytes().len() < LARGE) {
            let size = edit.as_bytes().len();
            if groups.last().is_some_and(|group| group.2 + size > MAX_EDIT) {
                groups.push((Vec::new(), Changes::default(), 0));
            }
            if let Some((dots, changes, sum)) = groups.last_mut() {
                dots.push(*dot);
                if !(edit.is_one() && self.known.is_out(*dot)) {
                    let own = self.known.own(*dot, edit);
                    changes.runs.extend(own.runs);
                    changes.removed.extend(own.removed);
                }
                *sum += size;
            }
        }
        for (dots, changes, _) in groups {
            let _ = replace(&dots, Edit::joined(&changes.settle())?, edits, actor, &mut joined)?;
        }
        Ok(joined)
    }

    /// The text `name`; empty when there is none.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        let txn = self.doc.transact();
        let text = named(Kind::Text, name).ok().and_then(|name| txn.get_text(name));
        text.map(|text| text.get_string(&txn)).unwrap_or_default()
    }

    /// The elements of the list `name`.
    #[must_use]
    pub fn list(&self, name: &str) -> Vec<Json> {
        let txn = self.doc.transact();
        let list = named(Kind::List, name).ok().and_then(|name| txn.get_array(name));
        list.map(|list| list.iter(&txn).filter_map(json).collect()).unwrap_or_default()
    }

    /// The keys and values of the map `name`.
    #[must_use]
    pub fn map(&self, name: &str) -> BTreeMap<String, Json> {
        let txn = self.doc.transact();
        let map = named(Kind::Map, name).ok().and_then(|name| txn.get_map(name));
        let entries = map.map(|map| {
            map.iter(&txn).filter_map(|(key, value)| Some((key.to_owned(), json(value)?))).collect()
        });
        entries.unwrap_or_default()
    }
}

/// Puts one edit in the place of several, and joins that change into `joined`. False: it would be larger than the actor
/// may say at once, and they stay as they are.
fn replace(
    several: &[Dot],
    edit: Edit,
    edits: &mut Edits,
    actor: &mut Actor,
    joined: &mut Edits,
) -> Result<bool> {
    if several.len() < 2 {
        return Ok(true);
    }
    let made = edits.mutate(actor, |_, mint| {
        several.iter().for_each(|dot| mint.cover_dot(*dot));
        Ok(DotFun::one(mint.dot(), edit))
    });
    match made {
        Ok(delta) => {
            let _ = joined.join(&delta)?;
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::TooLarge => Ok(false),
        Err(error) => Err(error),
    }
}

/// A value of ours; the library is shown nothing else.
fn json(value: Out) -> Option<Json> {
    match value {
        Out::Any(Any::Buffer(bytes)) => decode(&bytes).ok(),
        _ => None,
    }
}
