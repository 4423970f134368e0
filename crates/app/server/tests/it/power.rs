//! Power cuts under the real node: the power fails at drawn moments of its life, and it starts on what is left.

use mainstay_clock::{Rng, SeededRng, os_boot_now};
use mainstay_sim::power::{Disk, Loss, Recorder};

use crate::crash::{drained, start};
use crate::end_to_end::{node, order};
use crate::harness::{Node, eventually, mainstay};
use crate::ledger::Ledger;

/// Sagas of the life that is cut.
const SAGAS: u64 = 40;
/// Cuts, each followed by a start of the node.
const CUTS: u64 = 12;

#[test]
fn sg_f12_m_g1_m_g5_a_power_cut_under_the_real_node_loses_no_accepted_saga() {
    let seed = os_boot_now().as_nanos();
    eprintln!("seed {seed}");
    let rng = SeededRng::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let (data, definitions) = (dir.path().join("data"), dir.path().join("definitions"));
    std::fs::create_dir(&data).unwrap();
    std::fs::create_dir(&definitions).unwrap();
    let ledger = Ledger::start();
    let definition = order(&ledger.origin);
    std::fs::write(definitions.join("it.toml"), &definition).unwrap();
    let recorder = Recorder::new(dir.path()).unwrap();
    let mut serve = mainstay(&["serve", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    serve.args(["--allow-participant", &ledger.origin, "--definitions", definitions.to_str().unwrap()]);
    recorder.watch(&mut serve, &data);
    let first = Node::spawn(serve);

    // What was answered, and how long the trace was then: from there on the node is held to it.
    let answered: Vec<(u64, String, u64)> = std::thread::scope(|scope| {
        let (first, recorder) = (&first, &recorder);
        let callers = (0..4).map(|caller| {
            scope.spawn(move || {
                let own = (0..SAGAS).filter(|n| n % 4 == caller);
                let told = own.map(|n| {
                    let reply = eventually("a start is answered", || start(&first.address, n));
                    (n, reply, recorder.position())
                });
                told.collect::<Vec<_>>()
            })
        });
        let callers: Vec<_> = callers.collect();
        callers.into_iter().flat_map(|c| c.join().unwrap()).collect()
    });
    assert_eq!(answered.len() as u64, SAGAS);
    drained(&first);
    first.kill();

    let trace = recorder.trace().unwrap();
    let mut lossy = 0;
    for cut in 0..CUTS {
        let loss = [Loss::Everything, Loss::Sectors, Loss::Tail][cut as usize % 3];
        let (upto, lot) = (rng.below(trace.ops.len() as u64) as usize, rng.next_u64());
        let mut disk = Disk::new(&data);
        trace.ops[..=upto].iter().for_each(|op| disk.apply(op));
        let image = disk.cut(loss, lot);
        lossy += usize::from(image != disk.cut(Loss::Nothing, 0));
        let later = tempfile::tempdir().unwrap();
        image.write(&later.path().join("data")).unwrap();
        let what = format!("cut after operation {upto} of {}, {loss:?}, seed {lot}", trace.ops.len());

        let second = node(later.path(), &ledger.origin, &definition);
        eventually("the node is ready", || (second.get("/readyz").status == 200).then_some(()));
        for (number, reply, _) in answered.iter().filter(|a| a.2 <= trace.ops[upto].end) {
            let again = eventually("a repeated start is answered", || start(&second.address, *number));
            assert_eq!(&again, reply, "{what}: saga {number} was accepted");
        }
        drained(&second);
        let stuck = second.get("/v1/attention?limit=1").json();
        assert_eq!(stuck["total"], 0, "{what}: {stuck:#}");
    }
    eprintln!("{} operations, {lossy} of {CUTS} cuts lost something", trace.ops.len());
    // Every life on what was left sent what it did not know to be done; the barrier let nothing act twice.
    let book = ledger.book();
    assert!(book.values().all(|e| e.done <= 1 && e.undone <= e.done), "{book:?}");
    for (_, reply, _) in &answered {
        let uid =
            serde_json::from_str::<serde_json::Value>(reply).unwrap()["uid"].as_str().unwrap().to_owned();
        assert!(book.contains_key(&(uid.clone(), "reserve".to_owned())), "{uid} reached its first step");
    }
}
