//! Policies as a TOML file (feature `serde`): a defaults block, and what each target does differently.
//!
//! Durations are text (`"300ms"`, `"2s"`). A target inherits every key of `defaults`; a slot is switched off by
//! `retry = false`. Unknown keys are refused with the nearest known one. [`Policies::lint`] names the ten
//! mis-compositions; [`Policies::build`] refuses a file that has any.
//!
//! Keys of `[defaults]` and `[targets.NAME]`; what is not set has the default of the builder named:
//!
//! | key | value | builder |
//! |---|---|---|
//! | `deadline`, `attempt_timeout` | duration | [`PolicyBuilder`](crate::policy::PolicyBuilder) |
//! | `idempotent` | `"always"`, `"per_call"` or `"never"` (default) | the same |
//! | `budget` | `"own"` (default), `"none"` or a name of `[budgets]` | the same |
//! | `retry` | `attempts base cap growth jitter max_retry_after min_attempt_time on preset total_time`; the preset is `aws` | [`RetryBuilder`](crate::retry::RetryBuilder) |
//! | `breaker` | `window`, `count` or `consecutive`; `failure_rate jitter min_calls open_cap open_for open_growth permits probe_lease ramp required samples sample_rate slow_after slow_rate` | [`BreakerBuilder`](crate::breaker::BreakerBuilder) |
//! | `bulkhead`, `attempt_bulkhead` | `limit queue wait` | [`BulkheadBuilder`](crate::bulkhead::BulkheadBuilder) |
//! | `hedge` | `percentile` or `after`, or both; `window` | [`HedgeBuilder`](crate::hedge::HedgeBuilder) |
//! | `rate` | `cells per burst` | [`RateBuilder`](crate::limit::RateBuilder) |
//! | `adaptive` | `algorithm initial min max` | [`AdaptiveBuilder`](crate::limit::AdaptiveBuilder) |
//! | `throttle` | `k window trickle` | [`ThrottleBuilder`](crate::limit::ThrottleBuilder) |
//! | `send_rate` | `longest_wait`; an empty table switches it on | [`SendBuilder`](crate::limit::SendBuilder) |
//!
//! Half-open has one rule: `required` successes, the failure share `sample_rate` (0.5 unless set) of `samples` results,
//! or stages of `ramp`.
//!
//! `[budgets.NAME]` has one rule of [`BudgetBuilder`](crate::budget::BudgetBuilder): `ratio`, `floor` and `credit`;
//! `in_flight = { share = 0.2, at_least = 3 }`; `grpc = { max = 10, ratio = 0.1 }`; or `preset` (`aws`, `aws_legacy`,
//! `finagle`). Three keys only
//! inform the linter: `within` (the target around this one), `expected_rate` (calls per second) and `order` (how a
//! hand-made stack is layered, outermost first).
//!
//! ```
//! use mainstay_clock::Runtime;
//! use mainstay_resilience::config::Policies;
//!
//! let policies = Policies::from_toml(r#"
//!     [defaults]
//!     deadline = "2s"
//!     attempt_timeout = "300ms"
//!     idempotent = "per_call"
//!     [defaults.retry]
//!     attempts = 3
//!     [defaults.breaker]
//!     failure_rate = 0.5
//!
//!     [targets.payments.breaker]
//!     open_for = "5s"
//!     [targets.reports]
//!     deadline = "30s"
//!     retry = false
//! "#).unwrap();
//! assert!(policies.lint().is_empty());
//! let built = policies.build(&Runtime::system()).unwrap();
//! assert_eq!(built["payments"].snapshot().max_attempts, 3);
//! assert_eq!(built["reports"].snapshot().max_attempts, 1);
//! ```

mod build;
mod check;
mod keep;
mod read;
mod spec;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use mainstay_clock::Runtime;

use crate::lint::Finding;
use crate::{ConfigError, Listener, Policy};
use build::With;
use spec::{BudgetSpec, Spec};

/// One policy per target.
type Built = BTreeMap<Arc<str>, Policy>;

/// The policies of one file, read and not yet built.
///
/// # Defaults
/// Of each key: what the builder of its pattern has.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    budgets: BTreeMap<String, BudgetSpec>,
    targets: BTreeMap<String, Spec>,
}

/// Why a file was refused.
///
/// ```
/// use mainstay_resilience::config::Policies;
///
/// let said = |text: &str| Policies::from_toml(text).unwrap_err().to_string();
/// assert_eq!(said("[target.shop]"), "unknown key `target`; did you mean `targets`?");
/// assert!(said("[targets.shop]\nattempt_timeout = 300").contains("targets.shop.attempt_timeout"));
/// assert!(said("[targets").starts_with("not TOML"));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum FileError {
    /// A setting was refused when its policy was built.
    Config {
        /// The target or budget.
        target: String,
        /// The refused setting.
        error: ConfigError,
    },
    /// The file composes policies wrongly.
    Lint(Vec<Finding>),
    /// Not TOML.
    Syntax(String),
    /// A key that nobody reads.
    UnknownKey {
        /// Where, as `targets.payments.breaker.open_four`.
        path: String,
        /// The nearest known key.
        suggestion: Option<&'static str>,
    },
    /// A value of the wrong type or out of range.
    Value {
        /// Where.
        path: String,
        /// What stands there.
        given: String,
        /// What is allowed.
        allowed: String,
    },
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config { target, error } => write!(f, "target `{target}`: {error}"),
            Self::Lint(found) => {
                f.write_str("policies are composed wrongly:")?;
                found.iter().try_for_each(|finding| write!(f, "\n  {finding}"))
            }
            Self::Syntax(what) => write!(f, "not TOML: {what}"),
            Self::UnknownKey { path, suggestion: Some(known) } => {
                write!(f, "unknown key `{path}`; did you mean `{known}`?")
            }
            Self::UnknownKey { path, suggestion: None } => write!(f, "unknown key `{path}`"),
            Self::Value { path, given, allowed } => {
                write!(f, "`{path}` = {given} is refused; allowed: {allowed}")
            }
        }
    }
}

impl std::error::Error for FileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl Policies {
    /// Reads a file. Does not look at how the settings fit together: see [`lint`](Policies::lint). Nothing is built, so a
    /// running service may read a new file and keep its policies when this one is refused.
    ///
    /// ```
    /// use mainstay_resilience::config::{FileError, Policies};
    ///
    /// let refused = Policies::from_toml("[targets.shop.retry]\nattempt = 3\n").unwrap_err();
    /// assert_eq!(refused.to_string(), "unknown key `targets.shop.retry.attempt`; did you mean `attempts`?");
    /// let refused = Policies::from_toml("[targets.shop]\ndeadline = \"2 parsecs\"\n").unwrap_err();
    /// assert!(matches!(refused, FileError::Value { path, .. } if path == "targets.shop.deadline"));
    /// ```
    ///
    /// # Errors
    /// [`FileError`]: not TOML, an unknown key with a suggestion, or a value of the wrong type.
    pub fn from_toml(text: &str) -> Result<Self, FileError> {
        read::file(text)
    }

    /// The names of the targets, in order.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        self.targets.keys().map(String::as_str)
    }

    /// The mis-compositions of the file, by target and rule; empty when [`build`](Policies::build) would not refuse it for
    /// one.
    ///
    /// ```
    /// use mainstay_resilience::config::Policies;
    /// use mainstay_resilience::lint::Rule;
    ///
    /// let policies = Policies::from_toml("[targets.shop]\nretry = {}\n").unwrap();
    /// let found = policies.lint();
    /// assert_eq!((found.len(), found[0].rule(), found[0].target()), (1, Rule::M7, "shop"));
    /// ```
    #[must_use]
    pub fn lint(&self) -> Vec<Finding> {
        check::all(self)
    }

    /// Builds one policy per target. All or nothing. Policies of two calls share nothing, not even a named budget: keep
    /// what you built, and [`rebuild`](Self::rebuild) when the file changes. Each part is reached through its policy, as
    /// [`Policy::breaker`].
    ///
    /// # Errors
    /// [`FileError::Lint`] if anything is found, [`FileError::Config`] for a refused setting.
    ///
    /// ```
    /// use mainstay_clock::Runtime;
    /// use mainstay_resilience::config::Policies;
    ///
    /// let file = "
    ///     [defaults]
    ///     deadline = \"2s\"
    ///     [targets.search]
    ///     [targets.report]
    ///     deadline = \"30s\"
    /// ";
    /// let policies = Policies::from_toml(file).unwrap().build(&Runtime::system()).unwrap();
    /// let deadline = |target: &str| policies[target].snapshot().deadline.unwrap().as_secs();
    /// assert_eq!((deadline("search"), deadline("report")), (2, 30));
    /// ```
    pub fn build(&self, runtime: &Runtime) -> Result<BTreeMap<Arc<str>, Policy>, FileError> {
        self.sound()?;
        build::all(self, &With { runtime, listener: None })
    }

    /// As [`build`](Self::build); `listener` hears every policy and every part of it that tells anything, by the name of the
    /// target.
    ///
    /// # Errors
    /// As for [`build`](Self::build).
    ///
    /// ```
    /// use std::sync::{Arc, Mutex};
    /// use mainstay_clock::Runtime;
    /// use mainstay_resilience::config::Policies;
    /// use mainstay_resilience::{Event, Listener, Source};
    ///
    /// #[derive(Debug, Default)]
    /// struct Log(Mutex<Vec<String>>);
    ///
    /// impl Listener for Log {
    ///     fn event(&self, source: &Source, event: &Event<'_>) {
    ///         if let Event::Transition(t) = event {
    ///             self.0.lock().unwrap().push(format!("{} is {}", source.name(), t.to()));
    ///         }
    ///     }
    /// }
    ///
    /// let log = Arc::new(Log::default());
    /// let file = Policies::from_toml("[targets.shop]\nattempt_timeout = \"1s\"\nbreaker = {}\n").unwrap();
    /// let built = file.build_with(&Runtime::system(), log.clone()).unwrap();
    /// built["shop"].breaker().unwrap().force_open("stocktaking", None);
    /// assert_eq!(*log.0.lock().unwrap(), ["shop is forced_open"]);
    /// ```
    pub fn build_with(
        &self,
        runtime: &Runtime,
        listener: Arc<dyn Listener>,
    ) -> Result<BTreeMap<Arc<str>, Policy>, FileError> {
        self.sound()?;
        build::all(self, &With { runtime, listener: Some(&listener) })
    }

    /// Builds the policies of a file that has changed, and keeps what those know that were `built` from the file
    /// `before`. All or nothing: when anything is refused, nothing that runs has changed.
    ///
    /// | of a target of the same name | is kept |
    /// |---|---|
    /// | nothing changed | the policy itself |
    /// | breaker | window, state and timers, with the new settings; another kind of window begins anew |
    /// | bulkheads | permits and lines, with the new sizes; with another wait limit, or a line where there was none, they begin anew |
    /// | limits, send rate, hedge, budget | everything, if its own settings are the same; else it begins anew |
    /// | what the policy counts itself | nothing, once anything of the target changed |
    ///
    /// The old policies go on working and share the parts that were kept, so calls under way end where they began. Parts
    /// that are kept keep their listener; new ones get `listener`.
    ///
    /// # Errors
    /// As for [`build`](Self::build).
    ///
    /// ```
    /// use mainstay_clock::Runtime;
    /// use mainstay_resilience::breaker::State;
    /// use mainstay_resilience::config::Policies;
    ///
    /// let file = |deadline: &str, permits: u32| {
    ///     Policies::from_toml(&format!(
    ///         "
    ///         [targets.shop]
    ///         deadline = \"{deadline}\"
    ///         attempt_timeout = \"300ms\"
    ///         breaker = {{ consecutive = 1, permits = {permits} }}
    ///         "
    ///     ))
    ///     .unwrap()
    /// };
    /// let runtime = Runtime::system();
    /// let (old, new) = (file("2s", 3), file("5s", 1));
    /// let before = old.build(&runtime).unwrap();
    /// before["shop"].breaker().unwrap().admit().unwrap().failure();
    /// let after = new.rebuild(&old, &before, &runtime, None).unwrap();
    /// let breaker = after["shop"].breaker().unwrap();
    /// assert_eq!((breaker.state(), breaker.config().permits()), (State::Open, 1));
    /// assert_eq!(after["shop"].snapshot().deadline.unwrap().as_secs(), 5);
    /// ```
    pub fn rebuild(
        &self,
        before: &Self,
        built: &BTreeMap<Arc<str>, Policy>,
        runtime: &Runtime,
        listener: Option<&Arc<dyn Listener>>,
    ) -> Result<BTreeMap<Arc<str>, Policy>, FileError> {
        self.sound()?;
        keep::rebuild(self, before, built, &With { runtime, listener })
    }

    /// Refuses a file that composes policies wrongly.
    fn sound(&self) -> Result<(), FileError> {
        let found = self.lint();
        if found.is_empty() { Ok(()) } else { Err(FileError::Lint(found)) }
    }
}
