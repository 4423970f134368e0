//! The ten known ways to compose policies wrongly, by number.
//!
//! A [`Policy`](crate::Policy) cannot be put together in a wrong order; files, hand-made tower stacks and
//! pairs of policies can. [`stack`] looks at an order, `Policies::lint` (feature `serde`) at a whole file.
//!
//! Each rule has been an outage somewhere: a breaker that never opened because it saw one result per call, retries of a
//! breaker's own refusals, a total deadline that every attempt got anew. The numbers are stable; quote them.

use std::fmt;

/// A mis-composition.
///
/// ```
/// use mainstay_resilience::lint::Rule;
///
/// assert_eq!((Rule::ALL.len(), Rule::M10.to_string().as_str()), (10, "M10"));
/// assert_eq!(Rule::M2.remedy(), "put the deadline outside the retry: deadline > retry");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// The breaker stands outside the retry: it sees one result per call instead of one per attempt.
    M1,
    /// The total deadline stands inside the retry: every attempt gets all of it.
    M2,
    /// No attempt timeout, or one outside the breaker: hung calls are invisible to it.
    M3,
    /// The attempt timeout is not shorter than the deadline: there is no second attempt.
    M4,
    /// Local refusals are retried: the own breaker or limit is hammered.
    M5,
    /// Nested retries without one common budget: attempts multiply.
    M6,
    /// A retry or hedge of an operation that is not declared idempotent.
    M7,
    /// A probe's lease ends before its attempt does: its result is void.
    M8,
    /// Numbers that contradict each other: `min_calls` that the window cannot reach, a base above its cap or
    /// the deadline.
    M9,
    /// The fallback stands inside the retry or the breaker: failures look like successes to them.
    M10,
}

impl Rule {
    /// All rules in their order.
    pub const ALL: [Self; 10] =
        [Self::M1, Self::M2, Self::M3, Self::M4, Self::M5, Self::M6, Self::M7, Self::M8, Self::M9, Self::M10];

    /// What to do instead.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::M1 => "put the breaker inside the retry: retry > breaker",
            Self::M2 => "put the deadline outside the retry: deadline > retry",
            Self::M3 => "set attempt_timeout, inside the breaker: breaker > attempt_timeout",
            Self::M4 => "make attempt_timeout at most deadline / attempts",
            Self::M5 => "retry only what the dependency did: failure, throttled, timeout",
            Self::M6 => "let both layers spend one named budget, or retry at one layer only",
            Self::M7 => "declare idempotent = \"always\" or \"per_call\", or remove retry and hedge",
            Self::M8 => "make probe_lease at least attempt_timeout",
            Self::M9 => "make the numbers agree",
            Self::M10 => "put the fallback outermost: fallback > everything",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One mis-composition that was found.
///
/// ```
/// use mainstay_resilience::lint::{Layer, Rule, stack};
///
/// let order = [Layer::Breaker, Layer::Retry, Layer::AttemptTimeout];
/// let found = stack(&order);
/// assert!(found.iter().any(|finding| finding.rule() == Rule::M1)); // the breaker sees one result per call
/// assert!(found[0].to_string().contains(found[0].rule().remedy())); // what is wrong, and what to do
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    rule: Rule,
    target: String,
    what: String,
}

impl Finding {
    pub(crate) fn new(rule: Rule, target: &str, what: impl Into<String>) -> Self {
        Self { rule, target: target.to_owned(), what: what.into() }
    }

    /// Which rule.
    #[must_use]
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// Which target of the file; empty for a stack.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// What is wrong here.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, target, what } = self;
        write!(f, "{rule} {target}: {what}; {}", rule.remedy())
    }
}

/// A layer of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Layer {
    /// The bulkhead of attempts: a pool of connections.
    AttemptBulkhead,
    /// The bound of one attempt.
    AttemptTimeout,
    /// The breaker.
    Breaker,
    /// The bulkhead and its queue.
    Bulkhead,
    /// The bound of the whole call.
    Deadline,
    /// The second-best answer.
    Fallback,
    /// The second attempt beside a slow one.
    Hedge,
    /// Rate limit, adaptive limit or throttle.
    Limit,
    /// The retry.
    Retry,
    /// The send rate.
    SendRate,
}

impl Layer {
    /// All layers in the one right order, outside in.
    pub const ORDER: [Self; 10] = [
        Self::Fallback,
        Self::Deadline,
        Self::Limit,
        Self::Bulkhead,
        Self::Retry,
        Self::Hedge,
        Self::SendRate,
        Self::AttemptBulkhead,
        Self::Breaker,
        Self::AttemptTimeout,
    ];

    /// Its name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AttemptBulkhead => "attempt_bulkhead",
            Self::AttemptTimeout => "attempt_timeout",
            Self::Breaker => "breaker",
            Self::Bulkhead => "bulkhead",
            Self::Deadline => "deadline",
            Self::Fallback => "fallback",
            Self::Hedge => "hedge",
            Self::Limit => "limit",
            Self::Retry => "retry",
            Self::SendRate => "send_rate",
        }
    }
}

/// Looks at a stack of layers, outermost first: of `tower`, of another library, or planned on paper.
///
/// ```
/// use mainstay_resilience::lint::{Layer, Rule, stack};
///
/// let found = stack(&[Layer::Breaker, Layer::Retry, Layer::AttemptTimeout]);
/// assert_eq!(found[0].rule(), Rule::M1);
/// assert!(stack(&Layer::ORDER).is_empty());
/// ```
#[must_use]
pub fn stack(layers: &[Layer]) -> Vec<Finding> {
    order("", layers)
}

pub(crate) fn order(target: &str, layers: &[Layer]) -> Vec<Finding> {
    let at = |layer| layers.iter().position(|l| *l == layer);
    let outside = |a, b| matches!((at(a), at(b)), (Some(a), Some(b)) if a < b);
    let mut found = Vec::new();
    let mut find = |wrong: bool, rule, what| {
        if wrong {
            found.push(Finding::new(rule, target, what));
        }
    };
    find(outside(Layer::Breaker, Layer::Retry), Rule::M1, "the breaker is outside the retry");
    find(outside(Layer::Retry, Layer::Deadline), Rule::M2, "the deadline is inside the retry");
    let hidden = outside(Layer::AttemptTimeout, Layer::Breaker);
    find(hidden, Rule::M3, "the attempt timeout is outside the breaker");
    let absent = at(Layer::Breaker).is_some() && at(Layer::AttemptTimeout).is_none();
    find(absent, Rule::M3, "there is a breaker and no attempt timeout");
    find(outside(Layer::Retry, Layer::Fallback), Rule::M10, "the fallback is inside the retry");
    find(outside(Layer::Breaker, Layer::Fallback), Rule::M10, "the fallback is inside the breaker");
    found
}
