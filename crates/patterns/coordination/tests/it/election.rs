//! One leader at a time.

use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_coordination::{Election, ErrorKind};
use mainstay_store::LeaseStore;

use crate::world::{TTL, World, virtually};

fn election(w: &World, owner: &str) -> Election {
    w.node(owner).election("scheduler").ttl(TTL).build().unwrap()
}

#[test]
fn k05_k08_followers_wait_and_a_clean_stop_costs_no_ttl() {
    virtually(|w| async move {
        let term = election(&w, "a").campaign(w.within(1)).await.unwrap();
        let (second, limit) = (election(&w, "b"), w.within(600));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { second.campaign(limit).await.unwrap() });
        w.clock.sleep(TTL * 5).await;
        term.check().unwrap();
        let (old, start) = (term.token(), w.clock.now());
        term.resign().await.unwrap();
        let next = tasks.join_next().await.unwrap().unwrap();
        assert!(next.token() > old);
        assert!(w.clock.now().saturating_duration_since(start) < Duration::from_millis(50));
    });
}

#[test]
fn k07_a_restarted_candidate_of_the_same_name_gets_a_new_term() {
    virtually(|w| async move {
        let first = election(&w, "a").campaign(w.within(1)).await.unwrap();
        let again = election(&w, "a").campaign(w.within(2)).await.unwrap_err();
        assert!(matches!(again.kind(), ErrorKind::TimedOut { .. }), "the name is not the right: {again}");
        let old = first.token();
        drop(first);
        let second = election(&w, "a").campaign(w.within(60)).await.unwrap();
        assert!(second.token() > old);
    });
}

#[test]
fn k10_observers_see_the_last_leader_and_its_value() {
    virtually(|w| async move {
        let watcher = election(&w, "c");
        assert_eq!(watcher.leader().await.unwrap(), None);
        let term = election(&w, "a").campaign(w.within(1)).await.unwrap();
        term.proclaim("10.0.0.1:80").await.unwrap();
        let seen = watcher.changed(None).await.unwrap().unwrap();
        assert_eq!((seen.owner.as_str(), seen.token), ("a", term.token()));
        let old = seen.token;
        term.resign().await.unwrap();
        let next = election(&w, "b").campaign(w.within(60)).await.unwrap();
        let mut known = Some(seen);
        while known.as_ref().is_none_or(|k| k.owner != "b") {
            known = watcher.changed(known.as_ref()).await.unwrap();
        }
        let known = known.unwrap();
        assert!(known.token > old && known.value.is_none(), "the old leader's value is gone: {known:?}");
        next.resign().await.unwrap();
    });
}

#[test]
fn a_term_that_is_over_is_lost_and_hands_nothing_over() {
    virtually(|w| async move {
        let term = election(&w, "a").campaign(w.within(1)).await.unwrap();
        w.store.break_lease("test/election/scheduler").await.unwrap();
        term.lost().await;
        let (_, error) = term.transfer("b").await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Lost(_)), "{error}");
    });
}

#[test]
fn a_leader_hands_over_to_a_waiting_candidate_and_only_to_one() {
    virtually(|w| async move {
        let term = election(&w, "a").campaign(w.within(1)).await.unwrap();
        let (term, error) = term.transfer("nobody").await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Contended { .. }), "{error}");
        term.check().unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for name in ["b", "c"] {
            let (candidate, limit) = (election(&w, name), w.within(600));
            tasks.spawn(async move {
                let term = candidate.campaign(limit).await.unwrap();
                (name, term)
            });
        }
        w.clock.sleep(Duration::from_secs(3)).await;
        term.transfer("c").await.map_err(|(_, e)| e).unwrap();
        let (name, led) = tasks.join_next().await.unwrap().unwrap();
        assert_eq!(name, "c");
        led.check().unwrap();
        w.clock.sleep(TTL * 3).await;
        led.check().unwrap();
    });
}

#[test]
fn f23_an_observer_never_sees_a_mix_and_always_the_last_one() {
    virtually(|w| async move {
        let mut observer = election(&w, "z").observe();
        assert_eq!(observer.next().await.unwrap(), None, "at once, though nobody leads");
        let done = std::cell::Cell::new(false);
        let lead = async {
            let mut last = None;
            for n in 0..50 {
                let owner = format!("n{n}");
                let term = election(&w, &owner).campaign(w.within(60)).await.unwrap();
                term.proclaim(owner.clone()).await.unwrap();
                if n % 3 == 0 {
                    w.clock.sleep(Duration::from_millis(7)).await;
                }
                last = Some((owner, term.token()));
                if n < 49 {
                    term.resign().await.unwrap();
                } else {
                    std::mem::forget(term);
                }
            }
            done.set(true);
            last.unwrap()
        };
        let watch = async {
            let mut highest = None;
            loop {
                let Some(leader) = observer.next().await.unwrap() else { continue };
                if let Some(value) = &leader.value {
                    assert_eq!(value, leader.owner.as_bytes(), "of one term");
                }
                assert!(highest <= Some(leader.token), "terms only grow");
                highest = Some(leader.token);
                if leader.owner == "n49" && leader.value.is_some() {
                    return (leader.owner, leader.token);
                }
            }
        };
        let (last, seen) = tokio::join!(lead, watch);
        assert_eq!(last, seen, "the latest is always delivered");
        assert!(done.get());
    });
}
