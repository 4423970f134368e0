//! Every id of the must-pass catalogue is the name of a test.

use std::path::Path;

/// The kinds of ids and how many there are of each.
const CATALOGUE: [(&str, u32); 15] = [
    ("t", 24),
    ("bh", 9),
    ("rt", 13),
    ("hg", 6),
    ("rl", 4),
    ("ad", 7),
    ("to", 3),
    ("pl", 4),
    ("fl", 4),
    ("sk", 12),
    ("ms", 3),
    ("m_b", 6),
    ("m_k", 5),
    ("m_t", 6),
    ("if_l", 10),
];

/// The names of all functions of the test targets.
fn functions(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, found);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let names = text.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
        found.extend(names.map(str::to_owned));
    }
}

/// Whether a test carries the id: at its beginning, or as one of several.
fn carries(name: &str, kind: &str, number: u32) -> bool {
    // A bare `t` has two digits, so that `t01` is not found in `m_t1`.
    let spellings = [format!("{kind}{number:02}_"), format!("{kind}{number}_")];
    let spellings = if kind == "t" { &spellings[..1] } else { &spellings[..] };
    spellings.iter().any(|id| name.starts_with(id) || name.contains(&format!("_{id}")))
}

#[test]
fn every_id_of_the_catalogue_is_a_test() {
    let mut names = Vec::new();
    functions(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"), &mut names);
    let ids = CATALOGUE.iter().flat_map(|(kind, count)| (1..=*count).map(move |n| (*kind, n)));
    let missing: Vec<String> = ids
        .filter(|(kind, n)| !names.iter().any(|name| carries(name, kind, *n)))
        .map(|(kind, n)| format!("{kind}{n}"))
        .collect();
    assert!(missing.is_empty(), "ids without a test: {missing:?}");
    assert!(!carries("m_t1_x", "t", 1) && !carries("rt10_x", "rt", 1) && carries("t19_t20_x", "t", 20));
}
