//! What an edit says: runs of new things, and what is removed.

use std::collections::BTreeMap;

/// Longest name of a container or key.
pub(super) const MAX_NAME: usize = 256;

/// One letter or element for ever: its author, and the how manieth of that author it is. Letters count as in UTF-16, where
/// some are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) author: u64,
    pub(super) clock: u32,
}

impl Id {
    pub(super) const fn new(author: u64, clock: u32) -> Self {
        Self { author, clock }
    }
}

/// What a container is, as the first letter of its name: two kinds never share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    List,
    Map,
    Text,
}

impl Kind {
    pub(super) const fn letter(self) -> char {
        match self {
            Self::List => 'l',
            Self::Map => 'm',
            Self::Text => 't',
        }
    }
}

/// Where things are: in a text, in a list, or at a key of a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Home {
    pub(super) kind: Kind,
    /// Without the letter of its kind.
    pub(super) name: String,
    /// Just where it is a map.
    pub(super) key: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    /// Written and removed: only the places are left.
    Removed(u32),
    Text(String),
    /// Encoded values.
    Values(Vec<Vec<u8>>),
}

impl Content {
    pub(super) fn len(&self) -> u32 {
        let len = match self {
            Self::Removed(len) => return *len,
            Self::Text(text) => text.encode_utf16().count(),
            Self::Values(values) => values.len(),
        };
        u32::try_from(len).unwrap_or(u32::MAX)
    }

    /// Takes away what is from the place `at` on. A letter that begins before it stays whole.
    fn split_off(&mut self, at: u32) -> Self {
        match self {
            Self::Removed(len) => {
                let rest = len.saturating_sub(at);
                *len -= rest;
                Self::Removed(rest)
            }
            Self::Text(text) => {
                let mut before = 0;
                let cut = text.char_indices().find(|(_, c)| {
                    let here = before >= at;
                    before += u32::from(c.len_utf16() == 2) + 1;
                    here
                });
                let cut = cut.map_or(text.len(), |(index, _)| index);
                Self::Text(text.split_off(cut))
            }
            Self::Values(values) => Self::Values(values.split_off(values.len().min(at as usize))),
        }
    }
}

/// Things that one author put beside each other: each but the first has the one before as its left neighbor, and all
/// have the same right one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Run {
    pub(super) id: Id,
    pub(super) len: u32,
    pub(super) left: Option<Id>,
    pub(super) right: Option<Id>,
    /// Said only where there is no neighbor: else it is that of the neighbor.
    pub(super) home: Option<Home>,
    /// Whether it says that it is at a key.
    pub(super) keyed: bool,
    pub(super) content: Content,
}

impl Run {
    pub(super) fn end(&self) -> u32 {
        self.id.clock + self.len
    }

    /// The part in `from..to`, which must not be empty. What begins in the middle of it has the thing before as its
    /// neighbor. What is cut through a letter keeps its places, not its letters.
    pub(super) fn part(mut self, from: u32, to: u32) -> Self {
        if to < self.end() {
            let _ = self.content.split_off(to - self.id.clock);
            self.len = to - self.id.clock;
        }
        if from > self.id.clock {
            self.content = self.content.split_off(from - self.id.clock);
            self.left = Some(Id::new(self.id.author, from - 1));
            self.home = None;
            self.len -= from - self.id.clock;
            self.id.clock = from;
        }
        if self.content.len() != self.len {
            self.content = Content::Removed(self.len);
        }
        self
    }

    /// Takes in `next` if the two are one run.
    fn extend(&mut self, next: &Self) -> bool {
        let follows = next.id == Id::new(self.id.author, self.end())
            && next.left == Some(Id::new(self.id.author, self.end() - 1))
            && next.right == self.right
            && next.keyed == self.keyed;
        if !follows {
            return false;
        }
        match (&mut self.content, &next.content) {
            (Content::Removed(len), Content::Removed(more)) => *len += more,
            (Content::Text(text), Content::Text(more)) => text.push_str(more),
            (Content::Values(values), Content::Values(more)) if !self.keyed => {
                values.extend_from_slice(more);
            }
            _ => return false,
        }
        self.len += next.len;
        true
    }
}

/// Things of one author that are removed: from `from` to `to`, without that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Removal {
    pub(super) author: u64,
    pub(super) from: u32,
    pub(super) to: u32,
}

/// What several edits or one say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Changes {
    /// By author and clock, none twice.
    pub(super) runs: Vec<Run>,
    pub(super) removed: Vec<Removal>,
}

impl Changes {
    /// The one form of it: in order, and in as few pieces as possible.
    pub(super) fn settle(mut self) -> Self {
        self.runs.sort_by_key(|run| run.id);
        let mut runs: Vec<Run> = Vec::with_capacity(self.runs.len());
        for run in self.runs {
            if !runs.last_mut().is_some_and(|last| last.extend(&run)) {
                runs.push(run);
            }
        }
        self.removed.sort_unstable();
        let mut removed: Vec<Removal> = Vec::with_capacity(self.removed.len());
        for range in self.removed {
            match removed.last_mut() {
                Some(last) if last.author == range.author && range.from <= last.to => {
                    last.to = last.to.max(range.to);
                }
                _ => removed.push(range),
            }
        }
        Self { runs, removed }
    }

    /// Whether it can be what one call wrote: one author, and nothing left out in between.
    pub(super) fn is_one(&self) -> bool {
        self.runs.windows(2).all(|pair| pair[1].id == Id::new(pair[0].id.author, pair[0].end()))
    }

    /// The runs of each author.
    pub(super) fn by_author(&self) -> BTreeMap<u64, &[Run]> {
        self.runs
            .chunk_by(|a, b| a.id.author == b.id.author)
            .filter_map(|runs| Some((runs.first()?.id.author, runs)))
            .collect()
    }
}
