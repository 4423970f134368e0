//! The barrier on real transactions.

use mainstay_sqlite::barrier::{Rows, create_tables};
use mainstay_store::FencingToken;
use mainstay_store::barrier::{Entry, Op, Performed, Work, enter, finish, perform};
use rusqlite::Connection;

fn deliver(conn: &Connection, op: &Op) {
    conn.execute_batch("begin immediate").unwrap();
    let mut rows = Rows::new(conn, "saga", "charge");
    if let Entry::Run { .. } = enter(&mut rows, op, FencingToken::new(1)).unwrap() {
        let change = if matches!(op, Op::Action { .. }) { 1 } else { -1 };
        conn.execute("update money set amount = amount + ?1", [change]).unwrap();
        finish(&mut rows, op, 200, b"{}".to_vec()).unwrap();
    }
    conn.execute_batch("commit").unwrap();
}

#[test]
fn sg_f01_every_order_of_two_actions_and_two_undos_nets_zero() {
    let (action, undo) = (Op::Action { generation: 1 }, Op::Undo { generation: 1 });
    for bits in [0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100_u32] {
        let conn = Connection::open_in_memory().unwrap();
        create_tables(&conn).unwrap();
        conn.execute_batch("create table money (amount integer); insert into money values (0)").unwrap();
        (0..4).for_each(|i| deliver(&conn, if bits >> i & 1 == 1 { &undo } else { &action }));
        let net: i64 = conn.query_row("select amount from money", [], |r| r.get(0)).unwrap();
        assert_eq!(net, 0, "{bits:04b}");
    }
}

/// A business no takes back what the work wrote, not the barrier's rows: no later delivery runs it.
#[test]
fn a_business_no_leaves_nothing_and_is_final() {
    let conn = Connection::open_in_memory().unwrap();
    create_tables(&conn).unwrap();
    conn.execute_batch("create table money (amount integer); insert into money values (0)").unwrap();
    let deliver = |op: &Op, yes: bool| {
        conn.execute_batch("begin immediate").unwrap();
        let mut rows = Rows::new(&conn, "saga", "charge");
        let done = perform(&mut rows, op, FencingToken::new(1), |_| {
            conn.execute("update money set amount = amount + 1", []).unwrap();
            let body = b"{}".to_vec();
            Ok::<_, mainstay_store::Error>(match yes {
                true => Work::Done { status: 200, body },
                false => Work::No { status: 409, body },
            })
        });
        let done = done.unwrap();
        conn.execute_batch(if done.commits() { "commit" } else { "rollback" }).unwrap();
        done
    };
    let money = || conn.query_row("select amount from money", [], |r| r.get::<_, i64>(0)).unwrap();
    let (action, undo) = (Op::Action { generation: 1 }, Op::Undo { generation: 1 });
    assert!(matches!(deliver(&action, false), Performed::Ran(reply) if reply.rejected));
    assert_eq!(money(), 0);
    assert!(matches!(deliver(&action, true), Performed::Duplicate(reply) if reply.rejected));
    assert_eq!(deliver(&undo, true), Performed::NullUndo);
    assert_eq!(money(), 0);
    // Another key: an undo that is refused leaves nothing and runs again.
    let (action, undo) = (Op::Action { generation: 2 }, Op::Undo { generation: 2 });
    assert!(matches!(deliver(&action, true), Performed::Ran(_)));
    assert!(matches!(deliver(&undo, false), Performed::Refused(_)));
    assert_eq!(money(), 1);
    assert!(matches!(deliver(&undo, true), Performed::Ran(_)));
}
