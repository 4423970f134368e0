//! What a simulation breaks, and when: drawn from the seed alone, so that one seed is one execution.
//!
//! Every decision is a hash of seed, kind, place and count, never the next number of a shared stream: a
//! fault that is left out shifts no other one, which is what lets a minimiser work.

use std::collections::BTreeSet;
use std::time::Duration;

use mainstay_clock::{Rng as _, SeededRng};
use mainstay_store::ErrorKind;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// A link holds messages back until the window ends.
    Clog,
    /// A node's boot clock jumps forward, as after a suspend.
    ClockJump,
    /// A node's clock runs at another rate for the whole run.
    ClockRate,
    /// A node's clock has another origin for the whole run.
    ClockSkew,
    /// A node crashes and restarts with what it had synced.
    Crash,
    /// A request is applied twice.
    DuplicateRequest,
    /// A node restarts with nothing. Breaks the promise of a durable cell: never part of [`Faults::all`].
    EmptyRestart,
    /// The store refuses, without effect: READONLY, OOM, LOADING, MOVED, 40001, 503.
    ErrorReply,
    /// A node is cut off from everything.
    Isolate,
    /// The reply comes after the caller gave up.
    LateReply,
    /// The request is applied after the caller gave up.
    LateRequest,
    /// A message arrives twice.
    MessageDuplicated,
    /// A message is lost.
    MessageLost,
    /// A watch does not wake its watcher.
    MissedEvent,
    /// One direction of a link loses everything.
    OneWay,
    /// Both directions of one link lose everything.
    Partition,
    /// A node's tasks do not run; its timers all fire when it goes on.
    Pause,
    /// Applied, but the reply is lost.
    ReplyLost,
    /// The request is lost.
    RequestLost,
    /// Calls in flight on a link are cut at once.
    Reset,
    /// One call takes longer, on the way there or back: ten seconds, or less than its caller waits.
    Slow,
    /// A watch wakes its watcher for nothing.
    SpuriousWake,
    /// A node restarts with an older synced state. Breaks the promise of a durable cell: never part of
    /// [`Faults::all`].
    StaleRestart,
    /// The store is gone for a while and comes back with its state.
    StoreCrash,
    /// The store comes back with nothing. Legal only for stores that say so: never part of [`Faults::all`].
    StoreEmpty,
    /// The store stands still for a while.
    StorePause,
    /// The store comes back with an older state. Legal only for stores that say so: never part of
    /// [`Faults::all`].
    StoreStale,
    /// A node's wall clock jumps, by up to a day either way or to the year 9999.
    WallJump,
}

/// When a kind of fault is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// At each call of a store.
    Call,
    /// At each message between nodes.
    Message,
    /// At each watch.
    Watch,
    /// Planned, with a start and an end.
    Window,
    /// For the whole run.
    Constant,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: [Self; 28] = [
        Self::Clog,
        Self::ClockJump,
        Self::ClockRate,
        Self::ClockSkew,
        Self::Crash,
        Self::DuplicateRequest,
        Self::EmptyRestart,
        Self::ErrorReply,
        Self::Isolate,
        Self::LateReply,
        Self::LateRequest,
        Self::MessageDuplicated,
        Self::MessageLost,
        Self::MissedEvent,
        Self::OneWay,
        Self::Partition,
        Self::Pause,
        Self::ReplyLost,
        Self::RequestLost,
        Self::Reset,
        Self::Slow,
        Self::SpuriousWake,
        Self::StaleRestart,
        Self::StoreCrash,
        Self::StoreEmpty,
        Self::StorePause,
        Self::StoreStale,
        Self::WallJump,
    ];

    /// Its name in histories.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Clog => "clog",
            Self::ClockJump => "clock_jump",
            Self::ClockRate => "clock_rate",
            Self::ClockSkew => "clock_skew",
            Self::Crash => "crash",
            Self::DuplicateRequest => "duplicate_request",
            Self::EmptyRestart => "empty_restart",
            Self::ErrorReply => "error_reply",
            Self::Isolate => "isolate",
            Self::LateReply => "late_reply",
            Self::LateRequest => "late_request",
            Self::MessageDuplicated => "message_duplicated",
            Self::MessageLost => "message_lost",
            Self::MissedEvent => "missed_event",
            Self::OneWay => "one_way",
            Self::Partition => "partition",
            Self::Pause => "pause",
            Self::ReplyLost => "reply_lost",
            Self::RequestLost => "request_lost",
            Self::Reset => "reset",
            Self::Slow => "slow",
            Self::SpuriousWake => "spurious_wake",
            Self::StaleRestart => "stale_restart",
            Self::StoreCrash => "store_crash",
            Self::StoreEmpty => "store_empty",
            Self::StorePause => "store_pause",
            Self::StoreStale => "store_stale",
            Self::WallJump => "wall_jump",
        }
    }

    pub(super) fn class(self) -> Class {
        match self {
            Self::DuplicateRequest
            | Self::ErrorReply
            | Self::LateReply
            | Self::LateRequest
            | Self::ReplyLost
            | Self::RequestLost
            | Self::Slow => Class::Call,
            Self::MessageDuplicated | Self::MessageLost => Class::Message,
            Self::MissedEvent | Self::SpuriousWake => Class::Watch,
            Self::ClockRate | Self::ClockSkew => Class::Constant,
            _ => Class::Window,
        }
    }

    /// Whether no contract of the store crate forbids it.
    fn is_legal(self) -> bool {
        !matches!(self, Self::EmptyRestart | Self::StaleRestart | Self::StoreEmpty | Self::StoreStale)
    }
}

/// Which faults a simulation injects, how often and until when.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `rate` | 5 % of calls | about one per twenty: most runs see several, few see only faults |
/// | windows | up to 6 | enough to combine, few enough that something happens between them |
/// | heal | after 30 s | several times a usual lease |
/// | clock rate | within 1 % | what the drift allowance of a lease covers |
/// | pause | any length | a stopped process does not say for how long |
#[derive(Clone, Debug)]
pub struct Faults {
    pub(super) kinds: BTreeSet<FaultKind>,
    pub(super) rate: f64,
    pub(super) windows: u64,
    pub(super) heal: Duration,
    pub(super) clock_rate: f64,
    pub(super) longest_pause: Option<Duration>,
}

impl Faults {
    /// Nothing is broken.
    #[must_use]
    pub fn none() -> Self {
        Self {
            kinds: BTreeSet::new(),
            rate: 0.05,
            windows: 6,
            heal: Duration::from_secs(30),
            clock_rate: 0.01,
            longest_pause: None,
        }
    }

    /// Every fault that the contracts of the store crate allow.
    #[must_use]
    pub fn all() -> Self {
        let legal = FaultKind::ALL.into_iter().filter(|k| k.is_legal());
        Self { kinds: legal.collect(), ..Self::none() }
    }

    /// These kinds only.
    #[must_use]
    pub fn only(kinds: &[FaultKind]) -> Self {
        Self { kinds: kinds.iter().copied().collect(), ..Self::none() }
    }

    /// The same and `kind`.
    #[must_use]
    pub fn with(mut self, kind: FaultKind) -> Self {
        self.kinds.insert(kind);
        self
    }

    /// The same without `kind`.
    #[must_use]
    pub fn without(mut self, kind: FaultKind) -> Self {
        self.kinds.remove(&kind);
        self
    }

    /// The chance of each fault at each call or message, in a run in which its kind is on.
    #[must_use]
    pub fn rate(mut self, rate: f64) -> Self {
        self.rate = rate;
        self
    }

    /// Most fault windows of one run.
    #[must_use]
    pub fn windows(mut self, most: u64) -> Self {
        self.windows = most;
        self
    }

    /// When the last fault ends.
    #[must_use]
    pub fn healing_after(mut self, d: Duration) -> Self {
        self.heal = d;
        self
    }

    /// Longest pause of a node.
    #[must_use]
    pub fn longest_pause(mut self, d: Duration) -> Self {
        self.longest_pause = Some(d);
        self
    }

    /// How far a node's clock rate may be from 1.
    #[must_use]
    pub fn clock_rate(mut self, off: f64) -> Self {
        self.clock_rate = off;
        self
    }
}

/// A number that `seed`, `kind`, `place` and `n` fix.
pub(super) fn draw(seed: u64, kind: &str, place: &str, n: u64) -> u64 {
    // FNV-1a over the texts, then SplitMix64: cheap, and every input bit reaches every output bit.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in kind.bytes().chain([0xff]).chain(place.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let rng = SeededRng::new(seed ^ hash.rotate_left(17) ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    rng.next_u64();
    rng.next_u64()
}

pub(super) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// The error classes of real stores, with what each says about retrying.
pub(super) const ERROR_CLASSES: [(&str, ErrorKind); 6] = [
    ("READONLY", ErrorKind::Unavailable),
    ("OOM", ErrorKind::Full),
    ("LOADING", ErrorKind::Unavailable),
    ("MOVED", ErrorKind::Unavailable),
    ("40001", ErrorKind::Unavailable),
    ("503", ErrorKind::Unavailable),
];

/// One planned fault.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) id: String,
    pub(super) kind: FaultKind,
    pub(super) target: Target,
    pub(super) start: Duration,
    pub(super) end: Duration,
    /// For what the kind still has to choose.
    pub(super) bits: u64,
}

/// What a window breaks, by index; the store stands behind the nodes.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Link(usize, usize),
    Node(usize),
    Store,
}

/// The fault windows of one run.
pub(super) fn plan(faults: &Faults, seed: u64, nodes: usize, is_off: impl Fn(&str) -> bool) -> Vec<Window> {
    let kinds: Vec<FaultKind> = faults
        .kinds
        .iter()
        .copied()
        .filter(|k| k.class() == Class::Window && is_on(seed, *k) && !is_off(k.name()))
        .collect();
    let mut windows = Vec::new();
    let bits = |what: &str, i: u64| draw(seed, "plan", what, i);
    let pick = |bits: u64, n: usize| usize::try_from(bits % (n.max(1) as u64)).unwrap_or(0);
    if kinds.is_empty() {
        return windows;
    }
    for i in 0..=bits("count", 0) % faults.windows.max(1) {
        let kind = kinds[pick(bits("kind", i), kinds.len())];
        let target = match kind {
            FaultKind::StoreCrash | FaultKind::StoreEmpty | FaultKind::StorePause | FaultKind::StoreStale => {
                Target::Store
            }
            FaultKind::Clog | FaultKind::OneWay | FaultKind::Partition | FaultKind::Reset => {
                let from = pick(bits("from", i), nodes);
                // Index `nodes` is the store: every second link leads to it.
                let to =
                    if bits("to", i).is_multiple_of(2) { nodes } else { pick(bits("to", i) >> 1, nodes) };
                if bits("turn", i).is_multiple_of(2) || from == to {
                    Target::Link(from, if from == to { nodes } else { to })
                } else {
                    Target::Link(to, from)
                }
            }
            _ => Target::Node(pick(bits("node", i), nodes)),
        };
        let start = faults.heal.mul_f64(unit(bits("start", i)));
        let pause = faults.longest_pause.filter(|_| kind == FaultKind::Pause);
        let longest = (faults.heal - start).min(faults.heal / 2).min(pause.unwrap_or(Duration::MAX));
        let end = start + longest.mul_f64(unit(bits("length", i)));
        let id = format!("{}@{i}", kind.name());
        if !is_off(&id) {
            windows.push(Window { id, kind, target, start, end, bits: bits("bits", i) });
        }
    }
    windows
}

/// The first of two draws: whether a kind happens in this run at all.
pub(super) fn is_on(seed: u64, kind: FaultKind) -> bool {
    draw(seed, "on", kind.name(), 0).is_multiple_of(2)
}
