//! Reading ids: documented examples, and garbage.

use mainstay_clock::{Rng as _, SeededRng};
use mainstay_mysql::{MysqlReplicas, gtid};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("mariadb_states_are_read_and_written", mariadb_states_are_read_and_written),
    ("mysql_sets_of_the_manual_are_read", mysql_sets_of_the_manual_are_read),
    ("garbage_is_none_and_never_a_panic", garbage_is_none_and_never_a_panic),
    ("settings_that_cannot_hold_are_refused", settings_that_cannot_hold_are_refused),
];

fn mariadb_states_are_read_and_written() {
    let state = gtid::mariadb("0-1-4006,0-2-4056,1-4294967295-18446744073709551615").unwrap();
    assert_eq!(state.len(), 3);
    assert_eq!(gtid::mariadb_text(&state), "0-1-4006,0-2-4056,1-4294967295-18446744073709551615");
    assert_eq!(gtid::mariadb("0-1-5,0-1-4,0-1-6").unwrap()[&(0, 1)], 6, "the largest of one server");
    for bad in [
        "0",
        "0-1",
        "0-1-2-3",
        "0-1-",
        "-1-2",
        "a-1-2",
        "0-1-2,",
        ",0-1-2",
        "0-4294967296-1",
        "+0-1-2",
        "0-1-18446744073709551616",
        "0--1-2",
        "0-1-2;0-1-3",
        "0 -1-2",
    ] {
        assert_eq!(gtid::mariadb(bad), None, "{bad}");
    }
}

/// MySQL 8.4 reference manual, "GTID Format and Storage" and `GTID_SUBSET`.
fn mysql_sets_of_the_manual_are_read() {
    let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
    let ends = |text: &str| {
        let set = gtid::mysql(text).unwrap();
        (set[uuid].without_gap, set[uuid].last)
    };
    assert_eq!(ends("3E11FA47-71CA-11E1-9E33-C80AA9429562:23"), (0, 23));
    assert_eq!(ends("3E11FA47-71CA-11E1-9E33-C80AA9429562:1-5"), (5, 5));
    assert_eq!(ends("3E11FA47-71CA-11E1-9E33-C80AA9429562:1-3:11:47-49"), (3, 49));
    assert_eq!(ends("3E11FA47-71CA-11E1-9E33-C80AA9429562:1-3:4:5-9"), (9, 9), "neighbours are joined");
    let two = "2174B383-5441-11E8-B90A-C80AA9429562:1-3,\n24DA1670-0C0C-11E8-8442-00059A3C7B00:1-19";
    let set = gtid::mysql(two).unwrap();
    assert_eq!(set["24da1670-0c0c-11e8-8442-00059a3c7b00"].without_gap, 19);
    // Tags, from 8.3 on: each counts for itself.
    let tagged = "3E11FA47-71CA-11E1-9E33-C80AA9429562:1-3:Domain_1:1-7:15-21";
    let set = gtid::mysql(tagged).unwrap();
    assert_eq!(set[uuid].last, 3);
    assert_eq!(set[&format!("{uuid}:domain_1")].without_gap, 7);
    assert!(gtid::mysql("").unwrap().is_empty());
    for bad in ["3E11FA47:1", &format!("{uuid}:0"), &format!("{uuid}:5-3"), uuid, &format!("{uuid}:tag")] {
        assert_eq!(gtid::mysql(bad), None, "{bad}");
    }
    assert_eq!(gtid::mysql(&format!("{uuid}:1-9223372036854775807")), None);
}

fn garbage_is_none_and_never_a_panic() {
    let rng = SeededRng::new(7);
    let alphabet: Vec<char> = "0123456789-,:abcdefABCDEF_ \n\u{e9}\u{1f600}".chars().collect();
    let mut read = 0;
    for _ in 0..200_000 {
        let len = rng.next_u64() % 40;
        let text: String =
            (0..len).map(|_| alphabet[(rng.next_u64() % alphabet.len() as u64) as usize]).collect();
        if let Some(state) = gtid::mariadb(&text) {
            assert_eq!(gtid::mariadb(&gtid::mariadb_text(&state)).unwrap(), state);
            read += 1;
        }
        let _ = gtid::mysql(&text);
    }
    assert!(read > 0);
    let long = "0-1-1,".repeat(20_000);
    assert_eq!(gtid::mariadb(&long), None, "longer than any server writes");
}

fn settings_that_cannot_hold_are_refused() {
    let runtime = mainstay_clock::Runtime::system();
    let field = |b: mainstay_mysql::ReplicasBuilder| b.build(&runtime).unwrap_err().field();
    assert_eq!(field(MysqlReplicas::builder("")), "name");
    assert_eq!(
        field(MysqlReplicas::builder("s").request_timeout(std::time::Duration::ZERO)),
        "request_timeout"
    );
    assert_eq!(field(MysqlReplicas::builder("s").max_idle(5_000)), "max_idle");
    let error =
        MysqlReplicas::builder("s").build(&runtime).unwrap().server("mysql://u:secret@[x/").unwrap_err();
    assert!(!error.to_string().contains("secret"));
}
