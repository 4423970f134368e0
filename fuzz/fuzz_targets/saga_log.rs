//! The log of a saga: any records are read or refused, and any legal ones fold.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use mainstay_clock::WallTime;
use mainstay_saga::definition::Definition;
use mainstay_saga::fold::State;
use mainstay_saga::wire::{Fact, decode};
use mainstay_store::journal::Record;

const DEFINITION: &str = r#"{"name":"d","version":1,"deadline":"1h","timeout":"5s","steps":[
    {"name":"a","local_undo":true},{"name":"b","local_undo":true,"after":["a"]},{"name":"c","local_undo":true}]}"#;

/// Records: a kind, a length, bytes.
fn records(mut data: &[u8]) -> Vec<Record> {
    let mut found = Vec::new();
    while let [kind, low, high, rest @ ..] = data {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (bytes, after) = rest.split_at(length);
        let seq = found.len() as u64 + 1;
        found.push(Record {
            seq,
            kind: u16::from(*kind),
            at: WallTime::from_unix_millis(0),
            bytes: bytes.to_vec(),
        });
        data = after;
    }
    found
}

fuzz_target!(|data: &[u8]| {
    static KNOWN: OnceLock<Definition> = OnceLock::new();
    let definition = KNOWN.get_or_init(|| Definition::from_json(DEFINITION.as_bytes()).unwrap());
    let facts: Vec<Fact> = records(data).iter().map_while(|r| decode(r).ok()).collect();
    let _ = State::fold(definition, &facts);
});
