//! Texts in which database servers say where they are: GTIDs, LSNs, histories of timelines.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, reason = "a part of the backend")]
#[path = "../../crates/backends/mysql/src/gtid.rs"]
mod gtid;

#[allow(dead_code, reason = "a part of the backend")]
#[path = "../../crates/backends/postgres/src/replicas/lsn.rs"]
mod lsn;

fuzz_target!(|text: &str| {
    if let Some(state) = gtid::mariadb(text) {
        assert_eq!(gtid::mariadb(&gtid::mariadb_text(&state)), Some(state));
    }
    let _ = gtid::mysql(text);
    if let Some(at) = lsn::parse(text) {
        assert_eq!(lsn::parse(&lsn::format(at)), Some(at));
    }
    for timeline in [1, 2, 7, u32::MAX] {
        if let Some(history) = lsn::history(text, timeline) {
            assert!(history.len() <= text.len(), "a switch for every line, at most");
        }
    }
});
