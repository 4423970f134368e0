//! Session tokens as clients send them: read or refused, and never opened without the key.
#![no_main]

use std::sync::OnceLock;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use mainstay_clock::WallTime;
use mainstay_consistency::session::{TokenKeys, Unopened};

fn one(text: &str) {
    static KEYS: OnceLock<TokenKeys> = OnceLock::new();
    let keys = KEYS.get_or_init(|| TokenKeys::builder("s").key(1, [7; 32]).build().unwrap());
    let now = WallTime::from_unix_millis(1_700_000_000_000);
    let opened = keys.open(text, now);
    if let Ok(unopened) = Unopened::read(text) {
        // What can be read can be sealed, and comes back the same.
        let sealed = keys.seal(&unopened.token, now);
        assert_eq!(keys.open(&sealed, now).unwrap(), unopened.token);
    } else {
        assert!(opened.is_err());
    }
}

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        one(text);
    }
    // What a text is behind its base64.
    one(&URL_SAFE_NO_PAD.encode(data));
});
