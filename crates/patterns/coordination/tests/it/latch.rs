//! Counting ids.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock, Deadline};
use mainstay_coordination::ErrorKind;
use mainstay_store::RecordStore;

use crate::drops::dropped_after;
use crate::faulty::LostWrite;
use crate::world::virtually;

#[test]
fn it_opens_for_all_waiters_when_enough_different_ids_were_counted() {
    virtually(|w| async move {
        let (here, there) = (w.node("a").latch("x", 3).unwrap(), w.node("b").latch("x", 3).unwrap());
        let start = w.clock.now();
        let count = async {
            for id in ["1", "1", "2", "2", "1"] {
                assert!(!here.count_down(id).await.unwrap().open);
                w.clock.sleep(Duration::from_secs(10)).await;
            }
            here.count_down("3").await.unwrap()
        };
        let (one, two, last) = tokio::join!(here.wait(Deadline::NONE), there.wait(Deadline::NONE), count);
        assert_eq!((one.unwrap(), two.unwrap()), (last.clone(), last.clone()));
        assert_eq!(last.ids, ["1", "2", "3"]);
        let took = w.clock.now().saturating_duration_since(start);
        assert!(took < Duration::from_millis(50_100), "woken by a hint: {took:?}");
        assert!(there.wait(w.within(0)).await.unwrap().open, "it stays open");
    });
}

#[test]
fn arming_again_is_a_new_generation_that_holds_nobody_of_the_old_one_up() {
    virtually(|w| async move {
        let latch = w.node("a").latch("x", 1).unwrap();
        assert_eq!(*latch.rearm(1).await.unwrap_err().kind(), ErrorKind::ApiMisuse, "it is closed");
        // A waiter that looks only after the latch was opened and closed again.
        let slow = async {
            w.clock.sleep(Duration::from_millis(1)).await;
            latch.count_down("1").await.unwrap();
            assert_eq!(latch.rearm(1).await.unwrap(), 2);
            assert_eq!(latch.rearm(1).await.unwrap(), 2, "repeated after a lost answer");
        };
        let (waited, ()) = tokio::join!(latch.wait(w.within(30)), slow);
        assert_eq!((waited.as_ref().unwrap().generation, waited.unwrap().open), (1, true));
        let timed_out = latch.wait(w.within(3)).await.unwrap_err();
        assert!(matches!(timed_out.kind(), ErrorKind::TimedOut { .. }), "{timed_out}");
        latch.count_down("1").await.unwrap();
        assert_eq!(latch.wait(w.within(1)).await.unwrap().generation, 2);
    });
}

#[test]
fn a_count_whose_answer_was_lost_is_not_repeated_in_the_next_generation() {
    virtually(|w| async move {
        let here = w.node("a").latch("x", 2).unwrap();
        here.count_down("1").await.unwrap();
        let records = LostWrite::new(w.records.clone());
        let there = w.node_with(
            Arc::new(w.store.clone()),
            Arc::clone(&records) as Arc<dyn RecordStore>,
            w.clock.clone(),
            "b",
        );
        let there = there.latch("x", 2).unwrap();
        // The latch opened by the count of "2", and is closed again before its caller hears that nobody knows.
        let close = async {
            assert!(here.progress().await.unwrap().open, "it was written");
            assert_eq!(here.rearm(1).await.unwrap(), 2);
            records.answer.notify_one();
        };
        let (counted, ()) = tokio::join!(there.count_down("2"), close);
        let counted = counted.unwrap();
        assert_eq!((counted.generation, counted.open), (1, true), "what it counted in has opened");
        let next = here.progress().await.unwrap();
        assert_eq!((next.generation, next.ids.len(), next.open), (2, 0, false));
        assert!(!here.count_down("1").await.unwrap().open, "two are needed again");
    });
}

#[test]
fn sizes_and_ids_are_checked() {
    virtually(|w| async move {
        let node = w.node("a");
        node.latch("x", 2).unwrap().count_down("1").await.unwrap();
        let other = node.latch("x", 3).unwrap();
        assert_eq!(*other.count_down("1").await.unwrap_err().kind(), ErrorKind::ConfigMismatch);
        assert_eq!(*other.wait(w.within(1)).await.unwrap_err().kind(), ErrorKind::ConfigMismatch);
        assert_eq!(*other.count_down("").await.unwrap_err().kind(), ErrorKind::ApiMisuse);
        for bad in [0, 1_001] {
            assert_eq!(node.latch("x", bad).unwrap_err().field(), "size");
        }
        assert_eq!(node.latch("", 1).unwrap_err().field(), "name");
        // A record of another recipe is not read as one of ours.
        let foreign = b"mainstay 1\nslot 60000 op".to_vec();
        w.records.put_if("test/latch/y", None, foreign, None).await.unwrap();
        let error = node.latch("y", 1).unwrap().count_down("1").await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::ApiMisuse, "{error}");
    });
}

#[test]
fn count_and_wait_dropped_at_every_await_point_can_be_repeated() {
    virtually(|w| async move {
        let latch = w.node("a").latch("x", 40).unwrap();
        for polls in 1..40 {
            let id = polls.to_string();
            let _ = dropped_after(latch.count_down(&id), polls % 4 + 1).await;
            let _ = dropped_after(latch.wait(Deadline::NONE), polls % 5 + 1).await;
            assert_eq!(latch.count_down(&id).await.unwrap().ids.len(), polls);
        }
        assert!(latch.count_down("last").await.unwrap().open);
    });
}
