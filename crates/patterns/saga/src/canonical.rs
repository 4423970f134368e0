//! JSON as a text that is the same wherever it is made: what hashes are made of.

use std::fmt::Write as _;

use serde_json::Value;

/// Keys sorted, no spaces, shortest numbers. Not left to the text of a [`Value`]: the order of its objects is a feature of
/// `serde_json` that any other crate of a program may turn on, and then a saga in flight would not know its definition.
pub(crate) fn canonical(value: &Value) -> String {
    let mut text = String::new();
    add(value, &mut text);
    text
}

fn add(value: &Value, text: &mut String) {
    match value {
        Value::Array(items) => {
            text.push('[');
            for (i, item) in items.iter().enumerate() {
                text.push_str(if i > 0 { "," } else { "" });
                add(item, text);
            }
            text.push(']');
        }
        Value::Object(map) => {
            let mut pairs: Vec<(&String, &Value)> = map.iter().collect();
            pairs.sort_unstable_by_key(|(name, _)| *name);
            text.push('{');
            for (i, (name, value)) in pairs.into_iter().enumerate() {
                text.push_str(if i > 0 { "," } else { "" });
                // A text is quoted as a value is.
                let _ = write!(text, "{}:", Value::from(name.as_str()));
                add(value, text);
            }
            text.push('}');
        }
        plain => {
            // A text takes everything.
            let _ = write!(text, "{plain}");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_text_is_the_same_whatever_the_order_of_keys_and_that_of_before() {
        let value =
            json!({"z": [1, 2.5, {"b": null, "a\"\n": "x\u{1}"}], "a": {"d": true, "c": -0.0}, "": {}});
        let expected = r#"{"":{},"a":{"c":-0.0,"d":true},"z":[1,2.5,{"a\"\n":"x\u0001","b":null}]}"#;
        assert_eq!(canonical(&value), expected);
        for plain in [json!(null), json!([]), json!("\\"), json!(u64::MAX), json!(1e300)] {
            assert_eq!(canonical(&plain), plain.to_string());
        }
    }
}
