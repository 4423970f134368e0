//! Futures dropped at every await point.

use mainstay_store::LeaseStore;
use mainstay_store::lease::{AcquireRequest, Line, Released, Renewed, Share};

use crate::Test;
use crate::world::{ask, dropped_after, ms, nats, pause, run, store, take};

pub(crate) const TESTS: &[Test] = &[
    ("f19_an_acquisition_dropped_at_every_point_leaves_nothing_after_its_release", f19),
    ("f19_whatever_else_is_dropped_at_every_point_can_be_asked_again", others),
];

const TTL: std::time::Duration = std::time::Duration::from_secs(60);
/// More than any future here is polled.
const MOST: usize = 400;

fn requests() -> Vec<AcquireRequest> {
    let share = |name: &str, share| AcquireRequest { share, ..ask(name, name, TTL) };
    let mut two = ask("m1", "two", TTL);
    two.names = vec!["m1".to_owned(), "m2".to_owned()];
    let mut half = ask("l1", "half", TTL);
    half.names = vec!["h1".to_owned(), "held".to_owned()];
    let mut needs = ask("needs", "needs", TTL);
    needs.require = vec![("held".to_owned(), mainstay_store::FencingToken::new(1))];
    vec![
        ask("mutex", "mutex", TTL),
        share("readers", Share::Shared),
        share("permits", Share::Permit { limit: 2, count: 1 }),
        AcquireRequest { line: Line::Join, ..ask("held", "joins", TTL) },
        ask("held", "tries", TTL),
        two,
        half,
        needs,
    ]
}

fn f19() {
    let server = nats();
    run(async {
        let store = store(&server).await;
        let held = take(&store, "held", "holder", TTL).await;
        for mut request in requests() {
            for need in &mut request.require {
                need.1 = held;
            }
            let mut ended = false;
            for polls in 1..MOST {
                let op = format!("{}-{polls}", request.op_id);
                let request = AcquireRequest { op_id: op.clone(), owner: op.clone(), ..request.clone() };
                ended = dropped_after(store.acquire(request.clone()), polls).await;
                store.release(&op).await.unwrap();
                clean(&store, &request.names, &op).await;
                if ended {
                    println!("{}: dropped at {} places", request.op_id, polls - 1);
                    break;
                }
            }
            assert!(ended, "{}: the drops never reached the end", request.op_id);
        }
        // Nothing lands late either.
        pause(ms(300)).await;
        for request in requests() {
            clean(&store, &request.names, "late").await;
        }
    });
}

async fn clean(store: &dyn LeaseStore, names: &[String], op: &str) {
    for name in names {
        let info = store.inspect(name).await.unwrap();
        let left: Vec<_> = info.holders.iter().filter(|h| h.owner != "holder").collect();
        assert!(left.is_empty() && info.waiting == 0, "{op}: {name}: {left:?}, {} wait", info.waiting);
    }
}

fn others() {
    let server = nats();
    run(async {
        let store = store(&server).await;
        for what in 0..8 {
            let mut ended = false;
            for polls in 1..MOST {
                let (name, op) = (format!("n{what}-{polls}"), format!("op{what}-{polls}"));
                let token = take(&store, &name, &op, TTL).await;
                ended = match what {
                    0 => dropped_after(store.renew(&op), polls).await,
                    1 => dropped_after(store.annotate(&name, token, b"v".to_vec()), polls).await,
                    2 => dropped_after(store.inspect(&name), polls).await,
                    3 => dropped_after(store.list(&name, 9), polls).await,
                    4 => dropped_after(store.transfer(&name, token, "nobody"), polls).await,
                    5 => dropped_after(store.leave(&op), polls).await,
                    6 => dropped_after(store.release(&op), polls).await,
                    _ => dropped_after(store.break_lease(&name), polls).await,
                };
                // Until here nothing took the lease away, and it is as it was.
                if what < 6 {
                    assert!(
                        matches!(store.renew(&op).await.unwrap(), Renewed::Renewed(g) if g[0].token == token)
                    );
                    assert_eq!(store.release(&op).await.unwrap(), Released::Clean);
                }
                store.release(&op).await.unwrap();
                store.break_lease(&name).await.unwrap();
                assert!(take(&store, &name, "next", TTL).await > token);
                store.release("next").await.unwrap();
                if ended {
                    break;
                }
            }
            assert!(ended, "{what}: the drops never reached the end");
        }
        // A watch that was dropped is forgotten, one that is kept is told.
        drop(store.watch("w"));
        let hint = store.watch("w");
        take(&store, "w", "op", TTL).await;
        hint.await.unwrap();
    });
}
