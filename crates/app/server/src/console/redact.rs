//! What payloads show: values under secret-looking names are hidden, here and in the export of the console.

use serde_json::Value;

/// What stands where a value is hidden.
pub(super) const HIDDEN: &str = "[hidden]";

/// The names whose values are hidden.
#[derive(Clone, Debug)]
pub(super) struct Redact(Vec<String>);

impl Redact {
    /// Hides values whose name contains one of `names`, whatever its case.
    pub(super) fn new(names: &[String]) -> Self {
        Self(names.iter().map(|n| n.to_ascii_lowercase()).collect())
    }

    fn hides(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        self.0.iter().any(|n| name.contains(n.as_str()))
    }

    /// A value as people may see it.
    pub(super) fn shown(&self, value: &Value) -> Value {
        match value {
            Value::Array(items) => items.iter().map(|v| self.shown(v)).collect(),
            Value::Object(map) => {
                let shown = map.iter().map(|(name, v)| {
                    let v = if self.hides(name) { HIDDEN.into() } else { self.shown(v) };
                    (name.clone(), v)
                });
                Value::Object(shown.collect())
            }
            other => other.clone(),
        }
    }

    /// Puts hidden values back where an edited value still says that they are hidden.
    pub(super) fn restored(&self, edited: Value, original: &Value) -> Value {
        match (edited, original) {
            (Value::Object(map), Value::Object(old)) => {
                let restored = map.into_iter().map(|(name, v)| {
                    let before = old.get(&name).unwrap_or(&Value::Null);
                    let kept = self.hides(&name) && v == HIDDEN;
                    let v = if kept { before.clone() } else { self.restored(v, before) };
                    (name, v)
                });
                Value::Object(restored.collect())
            }
            (Value::Array(items), Value::Array(old)) => {
                let items = items.into_iter().enumerate();
                items.map(|(i, v)| self.restored(v, old.get(i).unwrap_or(&Value::Null))).collect()
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
        let redact = Redact::new(&["Card".to_owned(), "token".to_owned()]);
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
}
