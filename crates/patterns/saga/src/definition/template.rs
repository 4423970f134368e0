//! How a step's input is made from the saga's input and earlier outputs.

use std::collections::BTreeSet;

use serde_json::Value;

/// A JSON value in which whole strings may refer to earlier values: `$input`, `$input.a.b`,
/// `$reserve`, `$reserve.id`. `$$x` is the literal `$x`. A missing field becomes `null`.
///
/// ```
/// use mainstay_saga::definition::Template;
/// use serde_json::json;
///
/// let template = Template::new(json!({"order": "$input.id", "hold": "$reserve.hold", "note": "$$5"}));
/// let made = template.render(&json!({"id": 7}), |step| (step == "reserve").then(|| json!({"hold": "h1"})));
/// assert_eq!(made, json!({"order": 7, "hold": "h1", "note": "$5"}));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Value);

impl Template {
    /// Wraps a value.
    #[must_use]
    pub fn new(value: Value) -> Self {
        Self(value)
    }

    /// The saga's input, unchanged.
    #[must_use]
    pub fn input() -> Self {
        Self(Value::String("$input".to_owned()))
    }

    /// The value as written.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// Fills in the references. `output` gives the output of a step.
    #[must_use]
    pub fn render(&self, input: &Value, output: impl Fn(&str) -> Option<Value>) -> Value {
        render(&self.0, input, &output)
    }

    /// The steps it refers to.
    #[must_use]
    pub fn steps(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        collect(&self.0, &mut found);
        found
    }
}

enum Reference<'a> {
    Literal(&'a str),
    Path { root: &'a str, rest: Option<&'a str> },
}

fn parse(text: &str) -> Reference<'_> {
    match text.strip_prefix('$') {
        None => Reference::Literal(text),
        Some(rest) if rest.starts_with('$') => Reference::Literal(rest),
        Some("") => Reference::Literal(text),
        Some(path) => match path.split_once('.') {
            None => Reference::Path { root: path, rest: None },
            Some((root, rest)) => Reference::Path { root, rest: Some(rest) },
        },
    }
}

fn render(value: &Value, input: &Value, output: &dyn Fn(&str) -> Option<Value>) -> Value {
    match value {
        Value::String(text) => match parse(text) {
            Reference::Literal(text) => Value::String(text.to_owned()),
            Reference::Path { root: "input", rest } => walk(input, rest),
            Reference::Path { root, rest } => output(root).map_or(Value::Null, |v| walk(&v, rest)),
        },
        Value::Array(items) => Value::Array(items.iter().map(|v| render(v, input, output)).collect()),
        Value::Object(map) => {
            Value::Object(map.iter().map(|(k, v)| (k.clone(), render(v, input, output))).collect())
        }
        other => other.clone(),
    }
}

fn walk(value: &Value, path: Option<&str>) -> Value {
    let Some(path) = path else { return value.clone() };
    let mut at = value;
    for part in path.split('.') {
        let next = match at {
            Value::Array(items) => part.parse::<usize>().ok().and_then(|i| items.get(i)),
            _ => at.get(part),
        };
        match next {
            Some(v) => at = v,
            None => return Value::Null,
        }
    }
    at.clone()
}

fn collect(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            if let Reference::Path { root, .. } = parse(text)
                && root != "input"
            {
                found.insert(root.to_owned());
            }
        }
        Value::Array(items) => items.iter().for_each(|v| collect(v, found)),
        Value::Object(map) => map.values().for_each(|v| collect(v, found)),
        _ => {}
    }
}
