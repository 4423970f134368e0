//! The barrier on real transactions.

use mainstay_sqlite::barrier::{Rows, create_tables};
use mainstay_store::FencingToken;
use mainstay_store::barrier::{Entry, Op, enter, finish};
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
