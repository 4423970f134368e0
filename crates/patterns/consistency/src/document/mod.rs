//! Texts, lists and maps of JSON values that several people edit at once (feature `documents`).
//!
//! Sequences are the work of `yrs`, the Rust port of Yjs; replication is ours. A document is a set of [`Edit`]s under
//! dots, [`Edits`]: an edit is what one call of [`Editor::edit`] made, as the library writes it. So joins, deltas,
//! anti-entropy, snapshots and stability are those of every other type here, and the laws hold whatever the library does.
//! The library makes edits and shows their sum: that is the [`Editor`], which nobody replicates.
//!
//! - **Texts** merge letter by letter; what two people insert at one place stays together per person.
//! - **Lists** merge element by element; an element is a [`Json`] value that changes as a whole.
//! - **Maps** keep one value per key; of concurrent ones the same one wins everywhere, and a value changes as a whole.
//!
//! Each has a name, so a document of people is a few of them: `order/42/notes` as a text, `order/42/lines` as a list.
//! Nothing nests: a container that two replicas create at once is one container, not two of which one is lost.
//!
//! # Guarantees
//! Replicas that have the same edits show the same document and [refuse](Editor::refused) the same edits, in whatever order
//! they came and whoever made them. An edit that cannot be read is refused when it is decoded: memory is bounded by a
//! constant times the input, nesting by [`MAX_DEPTH`](crate::wire::MAX_DEPTH). One that can be read is shown to the library
//! only if it fits into this document: what it builds on is there, in the container that has such content, and where its
//! author can have seen it. It waits for what is missing, and an edit of one call is taken as a whole or not at all. The
//! encoding is canonical, also that of an edit: equal changes have equal bytes.
//!
//! Not guaranteed: anything about *what* is shown among members who forge edits. Who may send edits can remove everything,
//! and can claim places of others' edits before these do, which are refused then. Many that were put at one place at once
//! cost time that grows with the square of their number.
//!
//! # Bounds
//! [`MAX_EDIT`] bytes per edit. An edit costs about 30 bytes beside what was written, and what was removed stays in the edit
//! that wrote it, until [`Editor::compact`] joins them: a document that fits into one edit is one then, and of what was
//! removed only its place is kept. Nothing compacts by itself. An [`Editor`] holds the whole document in memory, and positions
//! in texts cost its length. It reads all edits at the beginning, and again when some were joined.
//!
//! One edit travels in one message: give [`largest_change`](crate::replicate::Builder::largest_change) to anti-entropy.
//!
//! ```
//! use mainstay_consistency::document::{Editor, Edits};
//! use mainstay_consistency::{Actor, ActorId, Join};
//!
//! let (mut ada, mut bob) = (Actor::new(ActorId::new(1, 1, 0)), Actor::new(ActorId::new(2, 1, 0)));
//! let (mut at_ada, mut at_bob) = (Edits::new(), Edits::new());
//! let (mut hers, mut his) = (Editor::new(), Editor::new());
//!
//! let first = hers.edit(&mut at_ada, &mut ada, |draft| draft.insert_text("notes", 0, "milk"))?;
//! at_bob.join(&first)?;
//!
//! // Both go on, apart.
//! let more = hers.edit(&mut at_ada, &mut ada, |draft| draft.insert_text("notes", 4, ", tea"))?;
//! let less = his.edit(&mut at_bob, &mut bob, |draft| draft.remove_text("notes", 0..1))?;
//! at_ada.join(&less)?;
//! at_bob.join(&more)?;
//! hers.follow(&at_ada)?;
//! his.follow(&at_bob)?;
//! assert_eq!(hers.text("notes"), "ilk, tea");
//! assert_eq!(his.text("notes"), hers.text("notes"));
//! # Ok::<(), mainstay_consistency::Error>(())
//! ```
//!
//! Sources: Nicolaescu, Jahns, Derntl, Klamma, "Near Real-Time Peer-to-Peer Shared Editing on Extensible Data Types" (2016)
//! for the algorithm of the library; Almeida, Shoker, Baquero (2018) for the set around it.

mod changes;
mod draft;
mod edit;
mod editor;
mod json;
mod known;
mod order;
mod read;
mod write;

pub use draft::Draft;
pub use edit::{Edit, Edits, MAX_EDIT};
pub use editor::Editor;
pub use json::Json;
