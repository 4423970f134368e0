//! The configuration as a JSON Schema, for editors and for checks before a deploy.

use serde_json::{Value, json};

use super::keys::{KEYS, Key, Kind, parse};

/// The schema of the file: what `config check` takes, in the types that a file should have.
pub(crate) fn schema() -> Value {
    let mut schema = table();
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("The configuration of a mainstay node");
    for key in KEYS {
        let mut at = &mut schema;
        let (tables, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        for part in tables.split('.').filter(|part| !part.is_empty()) {
            at = &mut at["properties"][part];
            if at.is_null() {
                *at = table();
            }
        }
        at["properties"][name] = described(key);
    }
    schema
}

/// Unknown keys are refused.
fn table() -> Value {
    json!({"type": "object", "additionalProperties": false, "properties": {}})
}

fn described(key: &Key) -> Value {
    let mut schema = match key.kind {
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Count(low, high) => json!({"type": "integer", "minimum": low, "maximum": high}),
        // A number with its unit, several times: `1min 30s`.
        Kind::Duration => json!({"type": "string", "pattern": r"^\s*([0-9]+\s*[A-Za-z\u00b5]+\s*)+$"}),
        // Elsewhere the items stand between commas.
        Kind::List => json!({"type": "array", "items": {"type": "string", "pattern": "^[^,]*$"}}),
        Kind::Text => json!({"type": "string"}),
    };
    schema["description"] = json!(key.about);
    schema["default"] = typed(key);
    schema
}

/// The default in its own type.
fn typed(key: &Key) -> Value {
    use super::keys::Value as Of;
    match parse(key.kind, key.default).expect("invariant: defaults parse, tested") {
        Of::Bool(on) => json!(on),
        Of::Count(n) => json!(n),
        Of::Duration(_) | Of::Text(_) => json!(key.default),
        Of::List(items) => json!(items),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use jsonschema::Validator;
    use toml::Table;

    use super::super::Config;
    use super::*;

    fn validator() -> Validator {
        let schema = schema();
        assert!(jsonschema::meta::is_valid(&schema));
        jsonschema::validator_for(&schema).unwrap()
    }

    /// Whether the schema takes a file, which has to be what the node says.
    #[track_caller]
    fn takes(validator: &Validator, text: &str) -> bool {
        let value = serde_json::to_value(toml::from_str::<Table>(text).unwrap()).unwrap();
        let valid = validator.is_valid(&value);
        let loaded = Config::of_text(Some((Path::new("m.toml"), text)), [], &[]);
        assert_eq!(valid, loaded.is_ok(), "{text}: {:?}", validator.iter_errors(&value).next());
        valid
    }

    #[test]
    fn the_documented_configuration_satisfies_the_schema() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../docs/operations.md"));
        let text = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        assert!(text.contains("allow_network"), "{text}");
        assert!(takes(&validator(), text));
    }

    #[test]
    fn every_key_at_its_default_satisfies_the_schema() {
        let config = Config::of_text(None, [], &[]).unwrap();
        let mut text = String::new();
        for (path, value, _) in config.entries() {
            text.push_str(&format!("{path} = {}\n", value.to_toml()));
        }
        assert!(takes(&validator(), &text));
        assert_eq!(text.lines().count(), KEYS.len());
    }

    #[test]
    fn what_the_node_refuses_the_schema_refuses() {
        let validator = validator();
        for bad in [
            "server.lisen = \"127.0.0.1:1\"",
            "srever.listen = \"127.0.0.1:1\"",
            "listen = \"127.0.0.1:1\"",
            "server = 1",
            "server.listen = {}",
            "server.max_in_flight = 0",
            "server.max_in_flight = -1",
            "server.drain = \"soon\"",
            "server.drain = \"10\"",
            "store.epoch = 32768",
            "participants.allow = [1]",
            "participants.allow = [\"a,b\"]",
            "participants.breaker = \"maybe\"",
        ] {
            assert!(!takes(&validator, bad), "{bad}");
        }
        for good in ["server.drain = \"1min 30s\"", "log.json = true", "participants.allow = []"] {
            assert!(takes(&validator, good), "{good}");
        }
    }
}
