//! What a read saw, while nobody has said its position yet: who may say it later.

use mainstay_consistency::ErrorKind;
use mainstay_consistency::session::{Guarantees, Session, SessionToken};
use mainstay_store::Error;
use mainstay_store::replicated::{Observed, Position, Role};

use super::sessions::{Door, MUTE, Told, kind, mark, nothing, on_paused, placed, switch, told_behind_doors};

fn replica(timeline: &str, n: u64) -> Observed {
    let history = if timeline == "2" { vec![switch("1", 55, "2")] } else { vec![] };
    Observed::new(mark(timeline, n), history).with_incarnation(1)
}

fn primary(timeline: &str, n: u64) -> Observed {
    replica(timeline, n).with_role(Role::Primary)
}

async fn wrote_in(session: &mut Session<Told>) -> String {
    let wrote =
        session.write(async |node: &mut Told| Ok::<_, Error>(node.0.lock().unwrap().mark.timeline.clone()));
    wrote.await.unwrap()
}

#[test]
fn sl2_a_replica_that_goes_on_under_a_read_is_not_spoken_for_by_the_primary_of_before() {
    on_paused(async {
        let (old, node) = (Told::new(primary("1", 90)), Told::new(replica("1", 50)));
        let (router, events, doors) = told_behind_doors(&[old, node.clone()]);
        router.poll_once().await;
        let mut session = router.session();
        let read = session.read(async |_: &mut Told| {
            // It follows a new primary, which nobody has heard of, and the read sees what that wrote.
            node.say(replica("2", 60));
            router.poll_once().await;
            Ok::<_, Error>(())
        });
        read.await.unwrap();
        assert_eq!(placed(&events), Ok("n1".to_owned()));
        // It is gone, and the old primary is alive.
        doors.lock().unwrap()[1] = Door::Shut;
        router.poll_once().await;
        assert_eq!(kind(nothing(&mut session).await), ErrorKind::Unproven);
    });
}

#[test]
fn sl6_an_old_primary_does_not_speak_for_a_replica_of_the_history_that_it_left() {
    on_paused(async {
        let (old, node) = (Told::new(primary("1", 90)), Told::new(replica("1", 50)));
        let (router, events, doors) = told_behind_doors(&[old, Told::new(primary("2", 60)), node]);
        router.poll_once().await;
        let mut session = router.session();
        nothing(&mut session).await.unwrap();
        assert_eq!(placed(&events), Ok("n2".to_owned()));
        doors.lock().unwrap()[2] = Door::Shut;
        router.poll_once().await;
        // The old one has what was lost besides; that it was seen, nobody says.
        assert_eq!(kind(nothing(&mut session).await), ErrorKind::Unproven);
        assert!(session.accept_loss());
        assert_eq!(session.token().await.unwrap(), SessionToken::at(mark("2", 60)), "what the primary has");
        nothing(&mut session).await.unwrap();
    });
}

#[test]
fn sl2_as_long_as_a_node_can_be_asked_nobody_else_speaks_for_it() {
    on_paused(async {
        let (old, node) = (Told::new(primary("1", 90)), Told::new(replica("1", 50)));
        let (router, events, _) = told_behind_doors(&[old, node.clone()]);
        router.poll_once().await;
        let mut session = router.session();
        let read = session.read(async |_: &mut Told| {
            node.say(replica("2", 60));
            Ok::<_, Error>(())
        });
        read.await.unwrap();
        assert_eq!(placed(&events), Ok("n1".to_owned()));
        // Somebody asks the old primary afresh.
        let mut other = router.session().resume_sealed("", &super::session_tokens::keys());
        nothing(&mut other).await.unwrap();
        assert_eq!(session.token().await.unwrap(), SessionToken::at(mark("2", 60)));
    });
}

#[test]
fn p9_a_replica_of_a_later_history_says_that_the_primary_was_left() {
    on_paused(async {
        let nodes = [Told::new(primary("1", 90)), Told::new(replica("1", 50)), Told::new(replica("1", 55))];
        let (router, _, doors) = told_behind_doors(&nodes);
        router.poll_once().await;
        nodes[1].say(replica("2", 58));
        nodes[2].say(primary("2", 60));
        doors.lock().unwrap()[2] = Door::Shut;
        router.poll_once().await;
        let refused = router.session().write(async |_: &mut Told| Ok::<_, Error>(())).await;
        assert_eq!(kind(refused), ErrorKind::Unavailable, "not into a history that was left");
        // It is looked for at once.
        doors.lock().unwrap()[2] = Door::Open;
        assert_eq!(wrote_in(&mut router.session()).await, "2");
    });
}

#[test]
fn sl6_what_two_failovers_kept_is_found_also_when_the_second_knows_nothing_of_the_first() {
    on_paused(async {
        let nodes = [Told::new(primary("1", 60)), Told::new(replica("1", 55)), Told::new(replica("1", 46))];
        let (router, _, doors) = told_behind_doors(&nodes);
        router.poll_once().await;
        let session = router.session().guarantees(Guarantees::READ_YOUR_WRITES);
        let mut session = session.resume(&SessionToken::at(mark("1", 40))).unwrap();
        nodes[1].say(primary("2", 57));
        router.poll_once().await;
        nothing(&mut session).await.unwrap();
        assert_eq!(session.token().await.unwrap(), SessionToken::at(mark("1", 40)));
        // The new primary is gone before anybody follows it.
        doors.lock().unwrap()[1] = Door::Shut;
        let third = Observed::new(mark("3", 47), vec![switch("1", 46, "3")]);
        nodes[2].say(third.with_role(Role::Primary).with_incarnation(1));
        router.poll_once().await;
        nothing(&mut session).await.unwrap();
        assert_eq!(wrote_in(&mut session).await, "3");
    });
}

#[test]
fn p39_a_write_without_a_position_is_not_taken_for_present_after_a_crash_that_may_have_taken_it() {
    on_paused(async {
        for keeps_all in [false, true] {
            let life = |n, life| {
                let observed = primary("1", n).with_incarnation(life).with_writer(MUTE);
                if keeps_all { observed } else { observed.with_durable(Position::Lsn(n)) }
            };
            let node = Told::new(life(60, 1));
            let (router, _, _) = told_behind_doors(std::slice::from_ref(&node));
            router.poll_once().await;
            let mut session = router.session();
            session.write(async |_: &mut Told| Ok::<_, Error>(())).await.unwrap();
            // It crashes, and goes on under the same name.
            node.say(life(58, 2));
            router.poll_once().await;
            let read = nothing(&mut session).await;
            if keeps_all {
                read.unwrap();
            } else {
                assert_eq!(kind(read), ErrorKind::Unproven);
            }
        }
    });
}
