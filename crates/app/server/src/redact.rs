//! What payloads show. `payload.redact` hides values from everybody who looks, by pages, API, events and audit;
//! `console.redact` hides more from people, on pages and in their export. What is stored, and what participants are
//! sent, is as it was.

use serde_json::{Map, Value};

/// What stands where a value is hidden.
pub(crate) const HIDDEN: &str = "[hidden]";

/// Where payloads stand in what we answer.
const PAYLOADS: &[&str] = &["attrs", "input", "output"];

/// The rules.
#[derive(Clone, Debug, Default)]
pub(crate) struct Redact {
    /// Names of values.
    names: Vec<String>,
    /// Parts of names of values.
    parts: Vec<String>,
    /// JSON pointers (RFC 6901) into a payload.
    pointers: Vec<String>,
}

impl Redact {
    /// `rules` are whole names, whatever their case, or pointers, which begin with `/`; `parts` are parts of names.
    pub(crate) fn new(rules: &[String], parts: &[String]) -> Self {
        let lower = |list: &[String]| list.iter().map(|n| n.to_ascii_lowercase()).collect();
        let (pointers, names): (Vec<String>, Vec<String>) =
            rules.iter().cloned().partition(|rule| rule.starts_with('/'));
        Self { names: lower(&names), parts: lower(parts), pointers }
    }

    /// Whether values under this name are hidden.
    pub(crate) fn hides(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        self.names.contains(&name) || self.parts.iter().any(|n| name.contains(n.as_str()))
    }

    /// A payload as it may be seen.
    pub(crate) fn shown(&self, payload: &Value) -> Value {
        let mut shown = self.by_name(payload);
        for pointer in &self.pointers {
            if let Some(value) = shown.pointer_mut(pointer) {
                *value = HIDDEN.into();
            }
        }
        shown
    }

    /// An answer as it may be seen: the payloads in it are.
    pub(crate) fn document(&self, value: Value) -> Value {
        match value {
            Value::Array(items) => items.into_iter().map(|v| self.document(v)).collect(),
            Value::Object(map) => {
                let shown = map.into_iter().map(|(name, v)| {
                    let v = if PAYLOADS.contains(&name.as_str()) { self.shown(&v) } else { self.document(v) };
                    (name, v)
                });
                Value::Object(shown.collect())
            }
            other => other,
        }
    }

    /// A filter of sagas as it may be seen: what `attr.NAME` must be is a value of a payload.
    pub(crate) fn filter(&self, filter: &Map<String, Value>) -> Value {
        let shown = filter.iter().map(|(name, value)| {
            let hidden = name.strip_prefix("attr.").is_some_and(|attr| self.hides(attr));
            (name.clone(), if hidden { HIDDEN.into() } else { value.clone() })
        });
        Value::Object(shown.collect())
    }

    /// Whether a payload that somebody sends has a hidden value that was not replaced.
    pub(crate) fn has_hidden(&self, payload: &Value) -> bool {
        match payload {
            Value::Array(items) => items.iter().any(|v| self.has_hidden(v)),
            Value::Object(map) => map.values().any(|v| self.has_hidden(v)),
            other => other == HIDDEN && !(self.names.is_empty() && self.pointers.is_empty()),
        }
    }

    fn by_name(&self, value: &Value) -> Value {
        match value {
            Value::Array(items) => items.iter().map(|v| self.by_name(v)).collect(),
            Value::Object(map) => {
                let shown = map.iter().map(|(name, v)| {
                    let v = if self.hides(name) { HIDDEN.into() } else { self.by_name(v) };
                    (name.clone(), v)
                });
                Value::Object(shown.collect())
            }
            other => other.clone(),
        }
    }

    /// Puts hidden values back where an edited value still says that they are hidden.
    pub(crate) fn restored(&self, edited: Value, original: &Value) -> Value {
        let mut restored = self.restored_by_name(edited, original);
        for pointer in &self.pointers {
            if let (Some(value), Some(before)) = (restored.pointer_mut(pointer), original.pointer(pointer))
                && value == HIDDEN
            {
                *value = before.clone();
            }
        }
        restored
    }

    fn restored_by_name(&self, edited: Value, original: &Value) -> Value {
        match (edited, original) {
            (Value::Object(map), Value::Object(old)) => {
                let restored = map.into_iter().map(|(name, v)| {
                    let before = old.get(&name).unwrap_or(&Value::Null);
                    let kept = self.hides(&name) && v == HIDDEN;
                    let v = if kept { before.clone() } else { self.restored_by_name(v, before) };
                    (name, v)
                });
                Value::Object(restored.collect())
            }
            (Value::Array(items), Value::Array(old)) => {
                let items = items.into_iter().enumerate();
                items.map(|(i, v)| self.restored_by_name(v, old.get(i).unwrap_or(&Value::Null))).collect()
            }
            (edited, _) => edited,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hidden_values_are_not_shown_and_survive_an_edit() {
        let redact = Redact::new(&[], &["Card".to_owned(), "token".to_owned()]);
        let input = json!({"order": 7, "creditCard": {"n": 1}, "list": [{"api_TOKEN": "x", "y": 1}]});
        let shown = redact.shown(&input);
        let expected = json!({"order": 7, "creditCard": HIDDEN, "list": [{"api_TOKEN": HIDDEN, "y": 1}]});
        assert_eq!(shown, expected);
        assert_eq!(redact.restored(shown.clone(), &input), input);
        let mut edited = shown;
        edited["order"] = 8.into();
        edited["creditCard"] = "new".into();
        let restored = redact.restored(edited, &input);
        let expected = json!({"order": 8, "creditCard": "new", "list": [{"api_TOKEN": "x", "y": 1}]});
        assert_eq!(restored, expected);
        assert_eq!(redact.restored(json!(HIDDEN), &json!("x")), HIDDEN, "only under a hidden name");
    }

    #[test]
    fn sec_23_rules_hide_whole_names_and_pointers_in_payloads_and_nothing_around_them() {
        let redact = Redact::new(&["PIN".to_owned(), "/card/number".to_owned(), "/list/0".to_owned()], &[]);
        let input = json!({"pin": 1, "spin": 2, "card": {"number": 3, "year": 4}, "list": [5, 6], "in": [{"Pin": 7}]});
        let shown = redact.shown(&input);
        let expected = json!({
            "pin": HIDDEN, "spin": 2, "card": {"number": HIDDEN, "year": 4}, "list": [HIDDEN, 6],
            "in": [{"Pin": HIDDEN}],
        });
        assert_eq!(shown, expected);
        assert_eq!(redact.restored(shown.clone(), &input), input);
        assert!(redact.has_hidden(&shown) && !redact.has_hidden(&input));
        let answer =
            json!({"pin": "a field of ours", "steps": [{"output": input.clone()}], "attrs": {"pin": "x"}});
        let expected =
            json!({"pin": "a field of ours", "steps": [{"output": shown}], "attrs": {"pin": HIDDEN}});
        assert_eq!(redact.document(answer), expected);
        let nothing = Redact::default();
        assert_eq!(nothing.document(json!({"input": input.clone()})), json!({"input": input}));
        assert!(!nothing.has_hidden(&json!(HIDDEN)), "an ordinary text where nothing is hidden");
    }
}
