//! What a session must find again: joined, bounded.

use std::collections::BTreeMap;
use std::fmt;

use mainstay_store::replicated::{Mark, Position};

use crate::error::{Error, ErrorKind, Result};

/// Most positions in one token: one per store and unresolved history. More is a mistake, and would not fit a header.
pub const MAX_POSITIONS: usize = 4;
/// Longest text that is looked at. Anything longer is refused before any work is done for it.
pub const MAX_TEXT: usize = 512;
/// What a session must find again: per store the position it has got to.
///
/// Guarantees: [`merge`](SessionToken::merge) is a join: idempotent, commutative, associative. Positions of two
/// histories of one store are both kept until a router that knows the history resolves them. Not guaranteed: a token
/// is no credential and grants nothing; it only says what not to read from.
///
/// ```
/// use mainstay_consistency::session::SessionToken;
/// use mainstay_store::replicated::{Mark, Position};
///
/// let mark = |n| Mark { system: "db".into(), timeline: "1".into(), position: Position::Counter(n) };
/// let mut token = SessionToken::at(mark(7));
/// token.merge(&SessionToken::at(mark(3)))?;
/// assert_eq!(token.positions(), [mark(7)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionToken {
    pub(crate) floors: Vec<Mark>,
    pub(crate) owed: bool,
}

impl SessionToken {
    /// Nothing to find again.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One position.
    #[must_use]
    pub fn at(mark: Mark) -> Self {
        Self { floors: vec![mark], owed: false }
    }

    /// The positions, in the order of their histories' names.
    #[must_use]
    pub fn positions(&self) -> &[Mark] {
        &self.floors
    }

    /// Whether something came before whose position is not known, or fits into no text: the next read has to go to the primary.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.owed
    }

    /// Joins another token, such as that of a parallel call.
    ///
    /// # Errors
    /// [`ErrorKind::Incomparable`] when more than [`MAX_POSITIONS`] would be left, or one store has positions of two
    /// kinds; this token is then unchanged.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let mut joined = self.floors.clone();
        for mark in &other.floors {
            rise(&mut joined, mark);
        }
        let same = |w: &[Mark]| w[0].system == w[1].system && w[0].timeline == w[1].timeline;
        let mixed = joined.windows(2).any(|w| same(w) && kind(&w[0].position) != kind(&w[1].position));
        if joined.len() > MAX_POSITIONS || mixed {
            let context =
                format!("{} positions; a token holds {MAX_POSITIONS}, one kind per store", joined.len());
            return Err(Error::new(ErrorKind::Incomparable, context));
        }
        self.floors = joined;
        self.owed |= other.owed;
        Ok(())
    }
}

/// Joins `mark` into sorted `floors`: pointwise the maximum within one history, side by side otherwise.
pub(crate) fn rise(floors: &mut Vec<Mark>, mark: &Mark) {
    let order = |m: &Mark| m.system.cmp(&mark.system).then_with(|| m.timeline.cmp(&mark.timeline));
    match floors.binary_search_by(|m| order(m).then_with(|| lane(&m.position).cmp(&lane(&mark.position)))) {
        Err(at) => floors.insert(at, mark.clone()),
        Ok(at) => join(&mut floors[at].position, &mark.position),
    }
}

/// Which positions of one history can be joined: those of one kind; of commits that nobody waited for, those of one
/// life of the server.
fn lane(position: &Position) -> (u8, u64) {
    match position {
        Position::LsnUnsynced { start, .. } => (kind(position), start.saturating_add(1)),
        _ => (kind(position), 0),
    }
}

fn join(have: &mut Position, new: &Position) {
    match (&mut *have, new) {
        (Position::Gtid(have), Position::Gtid(new)) => raise(have, new),
        (Position::MariaGtid(have), Position::MariaGtid(new)) => raise(have, new),
        (Position::Lsn(_) | Position::LsnRead { .. }, Position::Lsn(_) | Position::LsnRead { .. }) => {
            let parts = |p: &Position| match *p {
                Position::LsnRead { lsn, ahead } => (lsn, lsn.saturating_add(ahead)),
                Position::Lsn(lsn) => (lsn, lsn),
                _ => (0, 0),
            };
            let ((a, seen_a), (b, seen_b)) = (parts(have), parts(new));
            *have = read_at(a.max(b), seen_a.max(seen_b) - a.max(b));
        }
        (have, new) if *new > *have => *have = new.clone(),
        _ => {}
    }
}

/// The one way to write a position that nothing is ahead of.
pub(crate) fn read_at(lsn: u64, ahead: u64) -> Position {
    if ahead == 0 { Position::Lsn(lsn) } else { Position::LsnRead { lsn, ahead } }
}

fn raise<K: Ord + Clone>(have: &mut BTreeMap<K, u64>, new: &BTreeMap<K, u64>) {
    for (server, end) in new {
        let held = have.entry(server.clone()).or_insert(0);
        *held = (*held).max(*end);
    }
}

/// Why a text is no token. The request then reads from the primary; never from "any" replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Refusal {
    /// Older than the time to live.
    Expired,
    /// Issued further ahead than clocks differ.
    FromTheFuture,
    /// No encoding of a token.
    Malformed,
    /// The seal is not that of the key: tampered with, or of another store or tenant.
    Seal,
    /// Longer than [`MAX_TEXT`].
    TooLong,
    /// Sealed with a key that is not held (any more).
    UnknownKey,
    /// A version that this release does not know.
    Version,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "the token has expired",
            Self::FromTheFuture => "the token is from the future",
            Self::Malformed => "the text is no token",
            Self::Seal => "the token's seal does not fit",
            Self::TooLong => "the text is too long for a token",
            Self::UnknownKey => "the token's key is not known",
            Self::Version => "the token is of another version",
        })
    }
}

impl std::error::Error for Refusal {}

/// The number of a kind of position on the wire.
pub(crate) fn kind(position: &Position) -> u8 {
    match position {
        Position::Lsn(_) | Position::LsnRead { .. } | Position::LsnUnsynced { .. } => 1,
        Position::Offset(_) => 2,
        Position::Gtid(_) => 3,
        Position::MariaGtid(_) => 4,
        Position::Counter(_) => 5,
        _ => 0,
    }
}
