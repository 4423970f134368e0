//! The configuration file of a node, policies and definitions in TOML: read, or refused with a place.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mainstay_resilience::config::Policies;
use mainstay_saga::definition::Definition;

#[allow(dead_code, reason = "a part of the binary")]
#[path = "../../crates/app/server/src/config/mod.rs"]
mod config;
#[allow(dead_code, reason = "a part of the binary")]
#[path = "../../crates/app/server/src/error/mod.rs"]
mod error;

fuzz_target!(|text: &str| {
    if let Ok(config) = config::Config::of_text(Some((Path::new("m.toml"), text)), [], &[]) {
        // A dump is what the file would be, but for passwords.
        for (path, value, _) in config.entries() {
            assert!(!path.is_empty() && !value.to_toml().is_empty());
        }
    }
    let _ = Policies::from_toml(text);
    if let Ok(definition) = Definition::from_toml(text) {
        let json = serde_json::to_vec(definition.data()).unwrap();
        assert_eq!(Definition::from_json(&json).unwrap().hash(), definition.hash());
    }
});
