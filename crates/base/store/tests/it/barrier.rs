//! The barrier rule: whatever the order and the duplicates, the net effect is right.

use mainstay_store::FencingToken;
use mainstay_store::barrier::{Entry, MemoryRows, Op, enter, finish, reject};

const ACTION: Op = Op::Action { generation: 1 };
const UNDO: Op = Op::Undo { generation: 1 };

/// Delivers one request; the net change it makes.
fn deliver(rows: &mut MemoryRows, op: &Op, token: u64, say_no: bool) -> i64 {
    match enter(rows, op, FencingToken::new(token)).unwrap() {
        Entry::Run { .. } if say_no && *op == ACTION => {
            reject(rows, op, 409, Vec::new()).unwrap();
            0
        }
        Entry::Run { .. } => {
            finish(rows, op, 200, Vec::new()).unwrap();
            if *op == ACTION { 1 } else { -1 }
        }
        Entry::Duplicate(_) | Entry::Late | Entry::NullUndo | Entry::StaleToken { .. } => 0,
    }
}

#[test]
fn sg_f01_if_k5_undo_and_action_in_every_order_and_number_net_zero() {
    // Every sequence of up to six deliveries that contains an undo.
    for len in 1..=6_u32 {
        for bits in 0..(1_u32 << len) {
            for say_no in [false, true] {
                let ops: Vec<&Op> =
                    (0..len).map(|i| if bits >> i & 1 == 1 { &UNDO } else { &ACTION }).collect();
                let mut rows = MemoryRows::default();
                let net: i64 = ops.iter().map(|op| deliver(&mut rows, op, 1, say_no)).sum();
                let expected = i64::from(!say_no && !ops.contains(&&UNDO));
                assert_eq!(net, expected, "{ops:?} say_no={say_no}");
            }
        }
    }
}

#[test]
fn a_lower_token_after_a_higher_one_has_no_effect() {
    let mut rows = MemoryRows::default();
    assert_eq!(deliver(&mut rows, &UNDO, 5, false), 0);
    let stale = enter(&mut rows, &ACTION, FencingToken::new(4)).unwrap();
    assert_eq!(stale, Entry::StaleToken { seen: FencingToken::new(5) });
}

#[test]
fn ops_survive_their_text() {
    for op in [ACTION, UNDO, Op::Action { generation: 2 }, Op::Undo { generation: 7 }] {
        assert_eq!(Op::parse(&op.text()), Some(op));
    }
    for text in ["", "act", "action~1", "action~x", "undo~"] {
        assert_eq!(Op::parse(text), None, "{text}");
    }
}
