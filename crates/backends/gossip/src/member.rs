//! Who belongs to the cluster, who is there, and who this node is.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::Hasher as _;
use std::net::SocketAddr;

use siphasher::sip::SipHasher13;

/// 64 bits of `bytes`: the same on every node and in every version.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0x6d61_696e, 0x7374_6179);
    hasher.write(bytes);
    hasher.finish()
}

/// Whether somebody answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Presence {
    /// It did not answer in time, or it said good-bye.
    Down,
    /// It was never seen.
    Unseen,
    /// It answers.
    Up,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// Its identity: [`Member::id_of`] its name.
    pub id: u64,
    /// Its address, once known.
    pub address: Option<SocketAddr>,
    /// Whether the configuration names it. Configured members, and only they, decide what may be forgotten.
    pub configured: bool,
    /// Whether it is there. Members that are there, and only they, are talked to all the time.
    pub presence: Presence,
}

impl Member {
    /// A member.
    #[must_use]
    pub const fn new(id: u64, address: Option<SocketAddr>, configured: bool, presence: Presence) -> Self {
        Self { id, address, configured, presence }
    }

    /// The identity of a name.
    ///
    /// ```
    /// use mainstay_gossip::Member;
    ///
    /// assert_ne!(Member::id_of("a"), Member::id_of("b"));
    /// assert_ne!(Member::id_of("a"), 0); // nobody
    /// ```
    #[must_use]
    pub fn id_of(name: &str) -> u64 {
        // Zero is whoever is at an address.
        hash(name.as_bytes()).max(1)
    }
}

/// Something changed in the membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A member is there no more.
    Down(u64),
    /// A member that is not configured was forgotten.
    Gone(u64),
    /// A member is there.
    Up(u64),
}

/// Who is in the cluster: the three questions that gossip asks.
pub trait Membership: Send + fmt::Debug {
    /// Everybody who is configured or seen, this node not included.
    fn members(&self) -> Vec<Member>;

    /// What changed since the last call.
    fn changes(&mut self) -> Vec<Change>;

    /// This node.
    fn me(&self) -> Member;
}

/// A fixed list of members with their addresses: enough for about twenty nodes. Nobody finds out whether the others are
/// there; they are talked to as if they were.
///
/// ```
/// use mainstay_gossip::{Member, Membership, StaticList};
///
/// let me = "127.0.0.1:7946".parse()?;
/// let list = StaticList::new("a", me, [("b".to_owned(), "127.0.0.2:7946".parse()?)]);
/// assert_eq!(list.me().id, Member::id_of("a"));
/// assert!(list.members()[0].configured);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Debug)]
pub struct StaticList {
    me: Member,
    others: Vec<Member>,
    fresh: BTreeSet<u64>,
}

impl StaticList {
    /// The node `name` at `address`, and the others.
    #[must_use]
    pub fn new(
        name: &str,
        address: SocketAddr,
        others: impl IntoIterator<Item = (String, SocketAddr)>,
    ) -> Self {
        let me = Member::new(Member::id_of(name), Some(address), true, Presence::Up);
        let other = |(name, at): (String, SocketAddr)| {
            Member::new(Member::id_of(&name), Some(at), true, Presence::Up)
        };
        let others: Vec<Member> = others.into_iter().map(other).filter(|m| m.id != me.id).collect();
        let fresh = others.iter().map(|m| m.id).collect();
        Self { me, others, fresh }
    }
}

impl Membership for StaticList {
    fn members(&self) -> Vec<Member> {
        self.others.clone()
    }

    fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.fresh).into_iter().map(Change::Up).collect()
    }

    fn me(&self) -> Member {
        self.me.clone()
    }
}
