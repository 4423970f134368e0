//! The protocol of a topology, every interleaving of small scenes. Built with `--cfg loom` only:
//! `RUSTFLAGS="--cfg loom" cargo test -p mainstay-partition --test loom --release`.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

use std::sync::Arc;

use loom::thread;
use mainstay_clock::{Clock, Instant, Sleep, Tick, WallTime};
use mainstay_partition::topology::{Change, Guard, Stage, Topology};
use mainstay_partition::{ErrorKind, Node, Place as _, Ring};
use mainstay_store::FencingToken;

#[derive(Debug)]
struct Still;

impl Clock for Still {
    fn now(&self) -> Instant {
        Instant::ZERO
    }
    fn wall(&self) -> WallTime {
        WallTime::from_unix_millis(0)
    }
    fn tick(&self) -> Tick {
        Tick::system()
    }
    fn sleep_until(&self, _: Instant) -> Sleep {
        Box::pin(std::future::pending())
    }
}

/// The placement of an epoch has one node that is named after it.
fn place(epoch: u64) -> Arc<Ring> {
    Arc::new(Ring::builder().points(1).nodes([Node::new(format!("e{epoch}"))]).build().unwrap())
}

fn topology() -> Topology<Ring> {
    Topology::new(1, place(1), Arc::new(Still))
}

fn acked(topology: &Topology<Ring>, epoch: u64) -> Change<Ring> {
    let change = topology.prepare(place(epoch), &Guard::new().force()).unwrap();
    change.ack(&format!("e{}", epoch - 1)).unwrap();
    change.ack(&format!("e{epoch}")).unwrap();
    change
}

#[test]
fn l9_a_reader_sees_whole_pairs_and_rising_epochs() {
    loom::model(|| {
        let topology = topology();
        let mut reader = topology.reader();
        let writer = thread::spawn(move || {
            acked(&topology, 2).commit(FencingToken::new(1)).unwrap();
            topology.handoff_done(2, "e1").unwrap();
            topology.observe(3, place(3)).unwrap();
        });
        let mut last = 0;
        for _ in 0..3 {
            let routed = reader.owner(b"k").unwrap();
            assert_eq!(routed.node.id.as_str(), format!("e{}", routed.epoch));
            if let Some(previous) = routed.previous() {
                assert_eq!(previous.id.as_str(), format!("e{}", routed.epoch - 1));
            }
            assert!(routed.epoch >= last);
            last = routed.epoch;
        }
        writer.join().unwrap();
        assert_eq!(reader.owner(b"k").unwrap().epoch, 3);
    });
}

#[test]
fn of_two_coordinators_that_prepare_one_waits() {
    loom::model(|| {
        let topology = topology();
        let other = topology.clone();
        let try_it =
            |topology: &Topology<Ring>, epoch| match topology.prepare(place(epoch), &Guard::new().force()) {
                Ok(change) => Some(change),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::InProgress);
                    None
                }
            };
        let thread = thread::spawn(move || try_it(&other, 2));
        let mine = try_it(&topology, 3);
        let theirs = thread.join().unwrap();
        assert!(mine.is_some() != theirs.is_some());
        drop((mine, theirs));
        assert_eq!((topology.stage(), topology.epoch()), (Stage::Stable, 1));
    });
}

#[test]
fn a_commit_against_a_successor_that_aborts_is_decided_once() {
    loom::model(|| {
        let topology = topology();
        let mut change = acked(&topology, 2);
        let other = topology.clone();
        let successor = thread::spawn(move || match other.take_over(FencingToken::new(2)) {
            Ok(change) => change.abort(FencingToken::new(2)).map(|()| true).unwrap(),
            // The commit came first: nothing is prepared any more.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ApiMisuse);
                false
            }
        });
        let committed = match change.commit(FencingToken::new(1)) {
            Ok(epoch) => epoch == 2,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StaleToken);
                false
            }
        };
        drop(change);
        let aborted = successor.join().unwrap();
        assert!(committed != aborted, "committed {committed}, aborted {aborted}");
        assert_eq!(topology.epoch(), if committed { 2 } else { 1 });
        assert_eq!(topology.view().place().fingerprint(), place(topology.epoch()).fingerprint());
    });
}

#[test]
fn confirmations_from_two_threads_end_the_handoff_once() {
    loom::model(|| {
        let two = Ring::builder().points(1).nodes(["a", "b"].map(Node::new)).build().unwrap();
        let topology = Topology::new(1, Arc::new(two), Arc::new(Still));
        topology.observe(2, place(2)).unwrap();
        let other = topology.clone();
        let thread = thread::spawn(move || other.handoff_done(2, "a").unwrap());
        let mine = topology.handoff_done(2, "b").unwrap();
        let theirs = thread.join().unwrap();
        assert!(mine != theirs, "exactly one is the last");
        assert!(topology.view().previous().is_none());
        assert_eq!(topology.stage(), Stage::Stable);
    });
}
