//! What a request carries beside its path: the query, the body of an action, a definition, a participant's answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mainstay_saga::definition::Definition;

/// What the routes know of errors.
#[allow(dead_code, reason = "a part of the binary")]
#[path = "../../crates/app/server/src/error/mod.rs"]
mod error;

/// Problems without their rendering.
mod http {
    #[derive(Debug)]
    pub(crate) struct Problem;

    impl Problem {
        pub(crate) fn new(code: crate::error::Code, _: impl Into<String>) -> Self {
            assert!(
                code.status().is_some_and(|s| (400..500).contains(&s)),
                "bad input is the client's fault"
            );
            Self
        }
    }
}

#[allow(dead_code, reason = "a part of the binary")]
#[path = "../../crates/app/server/src/api/operation.rs"]
mod operation;
#[allow(dead_code, reason = "a part of the binary")]
#[path = "../../crates/app/server/src/api/query.rs"]
mod query;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(mut query) = query::Query::parse(Some(text))
    {
        let _ = query.limit();
        let _ = query.filter();
        let _ = query.end();
    }
    if let Ok(body) = serde_json::from_slice::<operation::Body>(data)
        && body.check().is_ok()
    {
        let _ = body.operation();
    }
    if let Ok(filter) = serde_json::from_slice(data)
        && let Ok(mut query) = query::Query::of(&filter)
    {
        let _ = query.filter();
    }
    if let Ok(definition) = Definition::from_json(data) {
        let json = serde_json::to_vec(definition.data()).unwrap();
        assert_eq!(Definition::from_json(&json).unwrap().hash(), definition.hash());
    }
});
