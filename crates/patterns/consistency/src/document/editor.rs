//! The document that edits add up to.

use std::collections::BTreeMap;
use std::fmt;

use yrs::updates::decoder::Decode as _;
use yrs::{Any, Array as _, ClientID, Doc, GetString as _, Map as _, OffsetKind, Options, Out, ReadTxn as _};
use yrs::{StateVector, Transact as _, Update, merge_updates_v1};

use crate::crdt::{Changed, DotFun, Join as _};
use crate::document::check::Kind;
use crate::document::draft::named;
use crate::document::{Draft, Edit, Edits, Json, MAX_EDIT};
use crate::error::{Error, ErrorKind, Result};
use crate::version::{Context, Dot};
use crate::wire::decode;
use crate::{Actor, ActorId, hash};

/// From this size on an edit is left as it is when small ones are joined.
const LARGE: usize = MAX_EDIT / 4;

/// A view of [`Edits`], and what makes new ones. It is a cache: everything in it can be had from the edits again.
///
/// It serves one document. Every call that takes the edits looks at what is new in them first.
pub struct Editor {
    doc: Doc,
    /// Whose edits it makes.
    author: Option<ActorId>,
    applied: Context,
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

/// An empty document. Authors are told apart by 53 bits, so theirs are of a hash: an actor of another epoch is another
/// author there too.
fn empty(author: Option<ActorId>) -> Doc {
    let id = author.map_or(0, |author| hash::of_bytes(&author.to_bytes()) >> 11);
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

impl Editor {
    /// A view of a document without edits.
    #[must_use]
    pub fn new() -> Self {
        Self { doc: empty(None), author: None, applied: Context::new() }
    }

    /// Takes in what is new in `edits`; whether that was anything.
    ///
    /// # Errors
    /// [`ErrorKind::ForeignContext`] when `edits` lack something that this view has: they are another document, or were
    /// replaced; take a new editor. [`ErrorKind::Malformed`] for edits that contradict each other: they are left out, the
    /// others are in, and this is said once.
    pub fn follow(&mut self, edits: &Edits) -> Result<Changed> {
        if !edits.context().covers(&self.applied) {
            let text = "these edits lack some that this editor has seen; it serves one document";
            return Err(Error::new(ErrorKind::ForeignContext, text));
        }
        let mut refused = 0;
        {
            let mut txn = self.doc.transact_mut();
            for (dot, edit) in edits.store().entries() {
                if !self.applied.contains(*dot) {
                    let update = Update::decode_v1(edit.as_bytes()).ok();
                    let taken = update.is_some_and(|update| txn.apply_update(update).is_ok());
                    refused += usize::from(!taken);
                }
            }
        }
        let changed = self.applied.union(edits.context());
        if refused > 0 {
            return Err(Error::malformed(format!("{refused} edits contradict others and are left out")));
        }
        Ok(changed)
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
        if self.author != Some(actor.id()) {
            self.author = Some(actor.id());
            self.begin_again();
        }
        let _ = self.follow(edits)?;
        let made = {
            let mut draft = Draft(self.doc.transact_mut());
            f(&mut draft).and_then(|()| {
                draft.0.commit();
                // No blocks and no removals: nothing.
                let bytes = draft.0.encode_update_v1();
                if bytes == [0, 0] { Ok(None) } else { Edit::read_from(&bytes).map(Some) }
            })
        };
        match made {
            Ok(None) => Ok(Edits::new()),
            Ok(Some(edit)) => {
                let delta = edits.mutate(actor, |_, mint| Ok(DotFun::one(mint.dot(), edit)))?;
                let _ = self.applied.union(delta.context());
                Ok(delta)
            }
            Err(error) => {
                // The library takes nothing back.
                self.begin_again();
                Err(error)
            }
        }
    }

    fn begin_again(&mut self) {
        (self.doc, self.applied) = (empty(self.author), Context::new());
    }

    /// Joins edits into fewer; the delta. It changes what is stored, not what is shown. A document that fits becomes one
    /// edit without the text that was removed; of a larger one small edits are put together. Two replicas that do it at
    /// once both keep what they joined until the next time, so leave it to one of them.
    ///
    /// # Errors
    /// As for [`edit`](Self::edit).
    pub fn compact(&mut self, edits: &mut Edits, actor: &mut Actor) -> Result<Edits> {
        let _ = self.follow(edits)?;
        let whole = self.doc.transact().encode_state_as_update_v1(&StateVector::default());
        let all: Vec<(Dot, Edit)> = edits.store().entries().to_vec();
        let mut joined = Edits::new();
        if whole.len() <= MAX_EDIT {
            self.replace(&all, &whole, edits, actor, &mut joined)?;
            return Ok(joined);
        }
        let mut groups = vec![(Vec::new(), 0)];
        for entry in all.into_iter().filter(|e| e.1.as_bytes().len() < LARGE) {
            let size = entry.1.as_bytes().len();
            if groups.last().is_some_and(|group| group.1 + size > MAX_EDIT) {
                groups.push((Vec::new(), 0));
            }
            if let Some(group) = groups.last_mut() {
                group.0.push(entry);
                group.1 += size;
            }
        }
        for (group, _) in groups {
            let bytes = merge_updates_v1(group.iter().map(|(_, edit)| edit.as_bytes()));
            let bytes = bytes.map_err(|e| Error::malformed(format!("edits do not join: {e}")))?;
            self.replace(&group, &bytes, edits, actor, &mut joined)?;
        }
        Ok(joined)
    }

    /// Puts `bytes` in the place of several edits, and joins that change into `joined`.
    fn replace(
        &mut self,
        several: &[(Dot, Edit)],
        bytes: &[u8],
        edits: &mut Edits,
        actor: &mut Actor,
        joined: &mut Edits,
    ) -> Result<()> {
        if several.len() < 2 {
            return Ok(());
        }
        let edit = Edit::read_from(bytes)?;
        let delta = edits.mutate(actor, |_, mint| {
            several.iter().for_each(|(dot, _)| mint.cover_dot(*dot));
            Ok(DotFun::one(mint.dot(), edit))
        })?;
        let _ = self.applied.union(delta.context());
        let _ = joined.join(&delta)?;
        Ok(())
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

/// A value of ours. Something else at its place is the work of a forger and is not shown.
fn json(value: Out) -> Option<Json> {
    match value {
        Out::Any(Any::Buffer(bytes)) => decode(&bytes).ok(),
        _ => None,
    }
}
