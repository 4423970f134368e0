//! Which part of a lease's name others know it by.

use crate::{Error, ErrorKind, Result};

/// Which part of a lease's name becomes its key.
///
/// A name is a namespace, a slash and the rest. With [`Bare`](Self::Bare) the key is the rest alone, which is what a
/// client of other make locks: theirs and ours then exclude each other. So do all namespaces, on one name.
///
/// ```
/// use mainstay_store::lease::Names;
///
/// assert_eq!(Names::Bare.known("billing/job"), "job");
/// assert_eq!(Names::Whole.known("billing/job"), "billing/job");
/// assert_eq!(Names::Bare.known("billing/invoice/42"), "invoice/42");
/// assert_eq!(Names::Bare.known("job"), "job");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "with the namespace or without")]
pub enum Names {
    /// What stands behind the namespace: the name that others use.
    Bare,
    /// All of it.
    #[default]
    Whole,
}

impl Names {
    /// What `name` is known by.
    #[must_use]
    pub fn known(self, name: &str) -> &str {
        match (self, name.split_once('/')) {
            (Self::Bare, Some((_, bare))) if !bare.is_empty() => bare,
            _ => name,
        }
    }

    /// The name that begins with `prefix` and is known by `known`, if there is one: for a store that lists what it has.
    /// A key says nothing of a namespace, so the one of the prefix is taken; without one only names without a slash are
    /// told.
    ///
    /// ```
    /// use mainstay_store::lease::Names;
    ///
    /// assert_eq!(Names::Bare.listed("billing/in", "invoice/42").as_deref(), Some("billing/invoice/42"));
    /// assert_eq!(Names::Bare.listed("billing/x", "invoice/42"), None);
    /// assert_eq!(Names::Bare.listed("", "invoice/42"), None);
    /// assert_eq!(Names::Whole.listed("billing/", "billing/job").as_deref(), Some("billing/job"));
    /// ```
    #[must_use]
    pub fn listed(self, prefix: &str, known: &str) -> Option<String> {
        match (self, prefix.split_once('/')) {
            (Self::Bare, Some((namespace, rest))) => {
                known.starts_with(rest).then(|| format!("{namespace}/{known}"))
            }
            (Self::Bare, None) if known.contains('/') => None,
            _ => known.starts_with(prefix).then(|| known.to_owned()),
        }
    }

    /// What the names that begin with `prefix` are known by begins so.
    #[must_use]
    pub fn known_prefix(self, prefix: &str) -> &str {
        match (self, prefix.split_once('/')) {
            (Self::Bare, Some((_, rest))) => rest,
            _ => prefix,
        }
    }

    /// Refuses names of one request that are known by the same.
    ///
    /// # Errors
    /// `ApiMisuse`, with one of them.
    pub fn check(self, names: &[String]) -> Result<()> {
        let twice = |at: usize| names[..at].iter().any(|n| self.known(n) == self.known(&names[at]));
        match (1..names.len()).find(|at| self == Self::Bare && twice(*at)) {
            None => Ok(()),
            Some(at) => {
                let text =
                    format!("`{}` is known by what another name of the request is known by", names[at]);
                Err(Error::new(ErrorKind::ApiMisuse, text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Names;

    #[test]
    fn what_is_listed_is_known_by_what_it_was_found_under() {
        for names in [Names::Bare, Names::Whole] {
            for known in ["job", "invoice/42", "election/boss"] {
                for prefix in ["", "billing/", "billing/in", "invoice/", "j"] {
                    let Some(name) = names.listed(prefix, known) else { continue };
                    assert!(name.starts_with(prefix), "{names:?} {prefix} {known}: {name}");
                    assert_eq!(names.known(&name), known, "{names:?} {prefix}: {name}");
                    assert!(known.starts_with(names.known_prefix(prefix)), "{names:?} {prefix} {known}");
                }
            }
        }
        assert_eq!(Names::Bare.known("billing/"), "billing/", "nothing would be left");
    }

    #[test]
    fn two_names_of_one_request_may_not_be_one() {
        let ask = |names: Names, two: [&str; 2]| names.check(&two.map(str::to_owned)).is_ok();
        assert!(!ask(Names::Bare, ["a/job", "b/job"]) && ask(Names::Whole, ["a/job", "b/job"]));
        assert!(ask(Names::Bare, ["a/job", "a/other"]));
    }
}
