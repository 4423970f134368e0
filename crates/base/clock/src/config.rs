//! A setting that was refused.

use std::fmt;

/// A setting that cannot hold, refused where something is built: which field, what it was given, what is allowed. The
/// same type in every crate of this project; where a value is a secret it is not in here.
///
/// ```
/// use mainstay_clock::ConfigError;
///
/// let error = ConfigError::new("ttl", 0, "1 ms to 30 days");
/// assert_eq!((error.field(), error.value(), error.allowed()), ("ttl", "0", "1 ms to 30 days"));
/// assert_eq!(error.to_string(), "ttl is `0`; allowed: 1 ms to 30 days");
/// let line = ConfigError::new("name", "a\nb", "one line").to_string();
/// assert_eq!(line, "name is `a\\nb`; allowed: one line");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    field: &'static str,
    value: String,
    allowed: String,
}

impl ConfigError {
    /// `field` has `value`, but only `allowed` is. Not for secrets: the value is shown.
    #[must_use]
    pub fn new(field: &'static str, value: impl fmt::Display, allowed: impl fmt::Display) -> Self {
        Self { field, value: value.to_string(), allowed: allowed.to_string() }
    }

    /// The name of the setting.
    #[must_use]
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// What it was given.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// What would have been accepted, and where it helps why.
    #[must_use]
    pub fn allowed(&self) -> &str {
        &self.allowed
    }

    /// A stable name, for metrics and logs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "config_refused"
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is `", self.field)?;
        for c in self.value.chars() {
            // A value that somebody typed must not move a cursor, nor end a line of a log.
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        write!(f, "`; allowed: {}", self.allowed)
    }
}

impl std::error::Error for ConfigError {}
