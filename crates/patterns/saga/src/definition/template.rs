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

    /// As [`render`](Self::render); `None` where that would have more than about `most` bytes as a text, which is found out
    /// before it is made. What is nothing but one reference has whatever size that has.
    #[must_use]
    pub fn render_within(
        &self,
        most: usize,
        input: &Value,
        output: impl Fn(&str) -> Option<Value>,
    ) -> Option<Value> {
        let mut left = most;
        let whole = self.0.is_string();
        (whole || spend(&self.0, input, &output, &mut left)).then(|| self.render(input, output))
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

/// Takes the length of the text that `value` is rendered to off what is left, with a few bytes more where texts are
/// escaped; false when there is not so much.
fn spend(value: &Value, input: &Value, output: &dyn Fn(&str) -> Option<Value>, left: &mut usize) -> bool {
    let mut take = |n: usize| left.checked_sub(n).map(|rest| *left = rest).is_some();
    match value {
        Value::String(text) => match parse(text) {
            Reference::Literal(text) => take(text.len() + 3),
            Reference::Path { root: "input", rest } => take(length(find(input, rest)) + 1),
            Reference::Path { root, rest } => {
                let output = output(root);
                take(length(output.as_ref().and_then(|v| find(v, rest))) + 1)
            }
        },
        Value::Array(items) => take(3) && items.iter().all(|v| spend(v, input, output, left)),
        Value::Object(map) => {
            take(3)
                && map.iter().all(|(name, v)| {
                    left.checked_sub(name.len() + 3).map(|rest| *left = rest).is_some()
                        && spend(v, input, output, left)
                })
        }
        other => take(length(Some(other)) + 1),
    }
}

/// The length of a value as a text, without making it.
fn length(value: Option<&Value>) -> usize {
    struct Count(usize);

    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let mut count = Count(0);
    // Counting fails at nothing, and a value is always a text.
    let _ = serde_json::to_writer(&mut count, value.unwrap_or(&Value::Null));
    count.0
}

fn walk(value: &Value, path: Option<&str>) -> Value {
    find(value, path).cloned().unwrap_or(Value::Null)
}

fn find<'v>(value: &'v Value, path: Option<&str>) -> Option<&'v Value> {
    let Some(path) = path else { return Some(value) };
    let mut at = value;
    for part in path.split('.') {
        let next = match at {
            Value::Array(items) => part.parse::<usize>().ok().and_then(|i| items.get(i)),
            _ => at.get(part),
        };
        at = next?;
    }
    Some(at)
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
