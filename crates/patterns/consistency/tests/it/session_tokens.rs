//! Tokens: joined, sealed, bounded.

use std::time::Duration;

use mainstay_clock::{Rng, SeededRng, WallTime};
use mainstay_consistency::ErrorKind;
use mainstay_consistency::session::{MAX_TEXT, Refusal, SessionToken, TokenKeys};
use mainstay_store::replicated::{Mark, Position};

const NOW: WallTime = WallTime::from_unix_millis(1_767_225_600_000);

pub(crate) fn keys() -> TokenKeys {
    TokenKeys::builder("orders").key(1, [7; 32]).build().unwrap()
}

fn mark(system: &str, timeline: &str, position: Position) -> Mark {
    Mark { system: system.into(), timeline: timeline.into(), position }
}

fn samples() -> Vec<Mark> {
    let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
    vec![
        mark("7231980518912837461", "3", Position::Lsn(0x306E_E2A0)),
        mark("orders", "8d3f0a2b8d3f0a2b8d3f0a2b8d3f0a2b8d3f0a2b", Position::Offset(4_711)),
        mark("orders", "1", Position::Counter(12)),
        mark("orders", "", Position::Gtid([(uuid.to_owned(), 23)].into())),
        mark("7231980518912837461", "3", Position::LsnRead { lsn: 0x306E_E2A0, ahead: 8_192 }),
        mark(
            "7231980518912837461",
            "3",
            Position::LsnUnsynced { lsn: 0x306E_E2A0, start: 1_764_156_000_000_000 },
        ),
        mark("orders", "8d3f0a2b8d3f0a2b8d3f0a2b8d3f0a2b", Position::Offset(4_711_000_000)),
        mark("orders", "", Position::MariaGtid([((0, 1), 4_007), ((7, u32::MAX), u64::MAX)].into())),
        // As the stores write them: the history is named after a server of the position.
        mark("orders", "g3e11fa47", Position::Gtid([(uuid.to_owned(), 4_000_000_000)].into())),
        mark("orders", "s7", Position::MariaGtid([((0, 1), 4_007), ((0, 7), 90_000_000)].into())),
        mark("orders", "s9", Position::MariaGtid([((0, 1), 4_007)].into())),
        mark("orders", "g", Position::Gtid([("g".to_owned(), 1)].into())),
        mark("Two words", "007", Position::Lsn(u64::MAX)),
        mark("", "", Position::Counter(0)),
    ]
}

#[test]
fn sl5_merge_is_a_join() {
    let rng = SeededRng::new(5);
    let token = |rng: &SeededRng| {
        let mut token = SessionToken::new();
        for _ in 0..=rng.below(2) {
            let mark = mark("db", &(1 + rng.below(3)).to_string(), Position::Lsn(rng.below(5)));
            token.merge(&SessionToken::at(mark)).unwrap();
        }
        token
    };
    let join = |a: &SessionToken, b: &SessionToken| {
        let mut out = a.clone();
        out.merge(b).unwrap();
        out
    };
    for _ in 0..2_000 {
        let (a, b, c) = (token(&rng), token(&rng), token(&rng));
        assert_eq!(join(&a, &a), a);
        assert_eq!(join(&a, &b), join(&b, &a));
        assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
    }
}

#[test]
fn tokens_come_back_as_they_were_sealed_and_are_short() {
    for mark in samples() {
        let token = SessionToken::at(mark.clone());
        let text = keys().seal(&token, NOW);
        assert_eq!(keys().open(&text, NOW), Ok(token));
        // A name of 40 digits is longer than a token needs.
        if mark.timeline.len() < 40 {
            assert!(text.len() <= 64, "{} characters for {mark:?}", text.len());
        }
    }
    let mut several = SessionToken::new();
    samples().iter().take(4).for_each(|m| several.merge(&SessionToken::at(m.clone())).unwrap());
    let text = keys().seal(&several, NOW);
    assert!(text.len() <= MAX_TEXT);
    assert_eq!(keys().open(&text, NOW), Ok(several.clone()));
    let more = several.merge(&SessionToken::at(samples()[8].clone())).unwrap_err();
    assert_eq!(more.kind(), ErrorKind::Incomparable);
}

/// Positions of a fleet that had `servers` primaries, the last of them the present one.
fn many_servers(servers: u64) -> [Mark; 2] {
    let uuid = |n: u64| format!("{n:08x}-71ca-11e1-9e33-c80aa9429562");
    let gtids = (1..=servers).map(|n| (uuid(n), 1_000_000 * n)).collect();
    let maria = (1..=servers).map(|n| ((0, n as u32), 1_000_000 * n)).collect();
    let last = format!("{servers:08x}");
    [
        mark("orders", &format!("g{last}"), Position::Gtid(gtids)),
        mark("orders", &format!("s{servers}"), Position::MariaGtid(maria)),
    ]
}

#[test]
fn p18_a_position_that_no_text_holds_is_owed_to_the_primary() {
    for servers in [1, 10, 15, 16, 17, 18, 30, 40, 60, 200] {
        for mark in many_servers(servers) {
            let token = SessionToken::at(mark.clone());
            let text = keys().seal(&token, NOW);
            assert!(text.len() <= MAX_TEXT, "{} characters for {servers} servers", text.len());
            let opened = keys().open(&text, NOW).unwrap();
            if opened == token {
                continue;
            }
            assert!(opened.is_owed(), "{servers} servers: it wants less and says so");
            assert!(servers > 15);
            // What the present writer did is still told when it is lost.
            let [left] = opened.positions() else { panic!("{opened:?}") };
            assert_eq!((&left.system, &left.timeline), (&mark.system, &mark.timeline));
            match &left.position {
                Position::Gtid(set) => assert_eq!(set.values().collect::<Vec<_>>(), [&(1_000_000 * servers)]),
                Position::MariaGtid(set) => {
                    assert_eq!(set.values().collect::<Vec<_>>(), [&(1_000_000 * servers)])
                }
                other => panic!("{other:?}"),
            }
        }
    }
    // Four positions with names that nothing shortens.
    let mut token = SessionToken::new();
    for n in 0..4 {
        let name = format!("{n} {}", "x".repeat(200));
        token.merge(&SessionToken::at(mark("elsewhere", &name, Position::Offset(7)))).unwrap();
    }
    let opened = keys().open(&keys().seal(&token, NOW), NOW).unwrap();
    assert!(opened.is_owed() && opened.positions().is_empty());
}

#[test]
fn p18_no_token_is_sealed_that_does_not_open() {
    let rng = SeededRng::new(19);
    for round in 0..2_000 {
        let mut token = SessionToken::new();
        for _ in 0..rng.below(5) {
            let mark = match rng.below(4) {
                0 => mark(&"s".repeat(rng.below(200) as usize), "1", Position::Lsn(rng.next_u64())),
                1 => mark(
                    "orders",
                    &"\u{e4}".repeat(rng.below(150) as usize),
                    Position::Offset(rng.next_u64()),
                ),
                n => many_servers(1 + rng.below(40))[n as usize - 2].clone(),
            };
            let _ = token.merge(&SessionToken::at(mark));
        }
        let text = keys().seal(&token, NOW);
        assert!(text.len() <= MAX_TEXT, "round {round}: {}", text.len());
        let opened = keys().open(&text, NOW).unwrap();
        assert!(opened == token || opened.is_owed(), "round {round}");
        // It never wants more than what was sealed.
        let mut both = token.clone();
        both.merge(&opened).unwrap();
        assert_eq!(both.positions(), token.positions(), "round {round}");
    }
}

#[test]
fn p17_no_byte_of_a_token_can_be_changed() {
    let text = keys().seal(&SessionToken::at(samples()[0].clone()), NOW);
    for i in 0..text.len() {
        for with in ['A', '_', '7'] {
            let mut forged = text.clone();
            forged.replace_range(i..=i, &with.to_string());
            if forged != text {
                assert!(keys().open(&forged, NOW).is_err(), "character {i}");
            }
        }
        assert!(keys().open(&text[..i], NOW).is_err());
    }
}

#[test]
fn p16_tokens_of_other_stores_tenants_and_keys_do_not_open() {
    let text = keys().seal(&SessionToken::at(samples()[0].clone()), NOW);
    let open = |keys: TokenKeys| keys.open(&text, NOW).unwrap_err();
    assert_eq!(open(TokenKeys::builder("invoices").key(1, [7; 32]).build().unwrap()), Refusal::Seal);
    assert_eq!(
        open(TokenKeys::builder("orders").tenant("a").key(1, [7; 32]).build().unwrap()),
        Refusal::Seal
    );
    assert_eq!(open(TokenKeys::builder("orders").key(1, [8; 32]).build().unwrap()), Refusal::Seal);
    assert_eq!(open(TokenKeys::builder("orders").key(2, [7; 32]).build().unwrap()), Refusal::UnknownKey);
}

#[test]
fn keys_rotate_without_a_gap() {
    let token = SessionToken::at(samples()[0].clone());
    let both = TokenKeys::builder("orders").key(2, [8; 32]).key(1, [7; 32]).build().unwrap();
    let new = TokenKeys::builder("orders").key(2, [8; 32]).build().unwrap();
    assert_eq!(both.open(&keys().seal(&token, NOW), NOW), Ok(token.clone()), "an old token still opens");
    assert_eq!(new.open(&both.seal(&token, NOW), NOW), Ok(token), "the first key seals");
}

#[test]
fn s16_tokens_expire_and_do_not_come_from_the_future() {
    let text = keys().seal(&SessionToken::new(), NOW);
    assert!(keys().open(&text, NOW.saturating_add(Duration::from_secs(3600))).is_ok());
    assert_eq!(keys().open(&text, NOW.saturating_add(Duration::from_secs(3602))), Err(Refusal::Expired));
    let earlier = WallTime::from_unix_millis(NOW.unix_millis() - 120_000);
    assert_eq!(keys().open(&text, earlier), Err(Refusal::FromTheFuture));
}

#[test]
fn p18_garbage_is_refused_by_reason_and_size_comes_first() {
    assert_eq!(keys().open(&"A".repeat(MAX_TEXT + 1), NOW), Err(Refusal::TooLong));
    assert_eq!(keys().open("", NOW), Err(Refusal::Malformed));
    assert_eq!(keys().open("not base64!", NOW), Err(Refusal::Malformed));
    assert_eq!(keys().open(&"A".repeat(64), NOW), Err(Refusal::Version));
    let rng = SeededRng::new(18);
    for _ in 0..5_000 {
        let len = rng.below(120);
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let text: String =
            (0..len).map(|_| char::from(alphabet[usize::try_from(rng.below(64)).unwrap()])).collect();
        assert!(keys().open(&text, NOW).is_err());
    }
}

#[test]
fn keys_that_protect_nothing_are_refused_by_name() {
    let field = |b: mainstay_consistency::session::TokenKeysBuilder| b.build().unwrap_err().field();
    assert_eq!(field(TokenKeys::builder("s")), "key");
    assert_eq!(field(TokenKeys::builder("s").key(1, [7; 31])), "key");
    assert_eq!(field(TokenKeys::builder("s").key(1, [7; 32]).key(1, [8; 32])), "key");
    assert_eq!(field(TokenKeys::builder("s").key(1, [7; 32]).ttl(Duration::ZERO)), "ttl");
    assert!(!format!("{:?}", keys()).contains("7, 7"), "secrets are not printed");
}
