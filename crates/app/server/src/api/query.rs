//! Query strings: every parameter known, none twice.

use std::collections::BTreeMap;

use mainstay_clock::WallTime;
use mainstay_store::journal::{Filter, PageCursor, SagaStatus};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::error::Code;
use crate::http::Problem;

/// Rows of a page when nothing is said.
const DEFAULT_LIMIT: usize = 50;
/// Most rows of a page.
const MAX_LIMIT: usize = 500;
/// Most attribute filters: each is a lookup of its own.
const MAX_ATTRS: usize = 8;

/// Parameters that were not asked for yet.
#[derive(Debug)]
pub(crate) struct Query(BTreeMap<String, String>);

fn bad(text: impl Into<String>) -> Problem {
    Problem::new(Code::BadQuery, text)
}

impl Query {
    /// Reads a query string.
    ///
    /// # Errors
    /// 400 for a parameter that comes twice or is not UTF-8.
    pub(crate) fn parse(raw: Option<&str>) -> Result<Self, Problem> {
        let mut map = BTreeMap::new();
        for pair in raw.unwrap_or("").split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name)?;
            if map.insert(name.clone(), decode(value)?).is_some() {
                return Err(bad(format!("`{name}` comes twice")));
            }
        }
        Ok(Self(map))
    }

    /// Every parameter that was not taken, by name.
    pub(crate) fn pairs(self) -> Vec<(String, String)> {
        self.0.into_iter().collect()
    }

    /// The same parameters as a JSON object: texts, numbers, switches, lists of texts.
    ///
    /// # Errors
    /// 400 naming a field that is neither.
    pub(crate) fn of(fields: &serde_json::Map<String, Value>) -> Result<Self, Problem> {
        let text = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
            _ => None,
        };
        let mut map = BTreeMap::new();
        for (name, value) in fields {
            let joined = match value {
                Value::Array(items) => {
                    items.iter().map(text).collect::<Option<Vec<_>>>().map(|all| all.join(","))
                }
                other => text(other),
            };
            let joined = joined.ok_or_else(|| bad(format!("`{name}` is malformed")))?;
            map.insert(name.clone(), joined);
        }
        Ok(Self(map))
    }

    /// Takes a parameter.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// Takes a parameter of a type.
    ///
    /// # Errors
    /// 400 naming it.
    pub(crate) fn take_as<T: std::str::FromStr>(&mut self, name: &str) -> Result<Option<T>, Problem> {
        let Some(text) = self.take(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| bad(format!("`{name}` is malformed")))
    }

    /// Takes `limit`.
    ///
    /// # Errors
    /// 400 unless it is 1 to 500.
    pub(crate) fn limit(&mut self) -> Result<usize, Problem> {
        match self.take_as("limit")? {
            None => Ok(DEFAULT_LIMIT),
            Some(n) if (1..=MAX_LIMIT).contains(&n) => Ok(n),
            Some(_) => Err(bad(format!("`limit` is 1 to {MAX_LIMIT}"))),
        }
    }

    /// Refuses what nobody asked for.
    ///
    /// # Errors
    /// 400 naming the first.
    pub(crate) fn end(self) -> Result<(), Problem> {
        match self.0.keys().next() {
            Some(name) => Err(bad(format!("`{name}` is not a parameter of this route"))),
            None => Ok(()),
        }
    }

    /// Takes the filters of saga lists, and the cursor.
    ///
    /// # Errors
    /// 400 naming the parameter.
    pub(crate) fn filter(&mut self) -> Result<(Filter, Option<PageCursor>), Problem> {
        let mut filter = Filter {
            definition: self.take("definition"),
            step: self.take("step"),
            id: self.take("id"),
            retrying: self.take_as("retrying")?,
            paused: self.take_as("paused")?,
            overdue: self.take_as("overdue")?,
            attention: self.attention()?,
            attempt_gte: self.take_as("attempt_gte")?,
            attempt_lte: self.take_as("attempt_lte")?,
            error_contains: self.take("error~"),
            created_gte: self.time("created_gte")?,
            created_lte: self.time("created_lte")?,
            ..Filter::default()
        };
        let status = self.take("status");
        // As one of several it would narrow the others, where each adds its own.
        if status.as_deref().is_some_and(|s| s.contains(',') && s.split(',').any(|word| word == "retrying")) {
            return Err(bad("`retrying` is no state beside others: leave it alone, or add retrying=true"));
        }
        for word in status.iter().flat_map(|s| s.split(',')) {
            match SagaStatus::parse(word) {
                Some(status) => filter.status.push(status),
                // A flag for the store, a status for people.
                None if word == "retrying" => filter.retrying = Some(true),
                None => {
                    let known = SagaStatus::ALL.map(SagaStatus::as_str).join(", ");
                    return Err(bad(format!("`{word}` is not a status; there are {known} and retrying")));
                }
            }
        }
        let attrs: Vec<String> = self.0.keys().filter(|k| k.starts_with("attr.")).cloned().collect();
        if attrs.len() > MAX_ATTRS {
            return Err(bad(format!("at most {MAX_ATTRS} attributes can be filtered by")));
        }
        for name in attrs {
            let value = self.take(&name).unwrap_or_default();
            filter.attrs.insert(name["attr.".len()..].to_owned(), value);
        }
        Ok((filter, self.take("cursor").map(PageCursor)))
    }

    /// Only what waits for a person can be asked for. What does not has no filter, and `false` must not mean
    /// everything.
    fn attention(&mut self) -> Result<bool, Problem> {
        match self.take_as("attention")? {
            Some(false) => Err(bad("`attention` is true or not given")),
            given => Ok(given.is_some()),
        }
    }

    fn time(&mut self, name: &str) -> Result<Option<WallTime>, Problem> {
        let Some(text) = self.take(name) else { return Ok(None) };
        let at: Result<jiff::Timestamp, _> = text.parse();
        let at = at.map_err(|_| bad(format!("`{name}` is a time such as 2026-11-27T12:00:00Z")))?;
        Ok(Some(at).map(|t| WallTime::from_unix_millis(t.as_millisecond())))
    }
}

fn decode(text: &str) -> Result<String, Problem> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| bad("the query is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_and_the_rest_is_refused() {
        let mut q = Query::parse(Some(
            "status=running,waiting&retrying=true&attempt_gte=5&error~=time+out&attr.a=b%2Fc",
        ))
        .unwrap();
        let (filter, cursor) = q.filter().unwrap();
        assert_eq!(filter.status, [SagaStatus::Running, SagaStatus::Waiting]);
        assert_eq!((filter.retrying, filter.attempt_gte), (Some(true), Some(5)));
        assert_eq!(filter.error_contains.as_deref(), Some("time out"));
        assert_eq!(filter.attrs["a"], "b/c");
        assert!(cursor.is_none() && q.end().is_ok());
        let misspelled = Query::parse(Some("status=runing")).unwrap().filter().unwrap_err();
        assert!(misspelled.detail().contains("there are running, waiting"), "{}", misspelled.detail());
        let alone = Query::parse(Some("status=retrying")).unwrap().filter().unwrap().0;
        assert_eq!((alone.retrying, alone.status.len()), (Some(true), 0));
        // It hid every saga that was not retrying, in a list that was to have both.
        let both = Query::parse(Some("status=needs_attention,retrying")).unwrap().filter().unwrap_err();
        assert!(both.detail().contains("add retrying=true"), "{}", both.detail());
        assert!(Query::parse(Some("nope=1")).unwrap().end().is_err());
        assert!(Query::parse(Some("a=1&a=2")).is_err());
        assert!(Query::parse(Some("limit=501")).unwrap().limit().is_err());
        assert!(Query::parse(Some("attempt_gte=-1")).unwrap().filter().is_err());
        assert!(Query::parse(Some("attention=true")).unwrap().filter().unwrap().0.attention);
        assert!(Query::parse(Some("attention=false")).unwrap().filter().is_err());
        assert!(Query::parse(Some("id=%ff")).is_err());
    }
}
