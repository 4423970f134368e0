//! Who is taken for the primary, while some callers cannot reach it and others say that they are.

use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_clock::virtual_time::VirtualClock;
use mainstay_consistency::ErrorKind;
use mainstay_consistency::session::{Consistency, Guarantees, Plan, Router, SessionEvent, Why};
use mainstay_store::Error;
use mainstay_store::replicated::{Mark, Observed, Position, Role, TimelineSwitch};

use super::sessions::{Door, Doors, Heard, Told, kind, mark, mark_of, on_paused, switch, told_behind_doors};

/// The router's default: how long a silent leader's word counts.
const TRUST: Duration = Duration::from_secs(1);

/// A router whose first node is the primary, and stays it as far as the samples say.
struct World {
    router: Router<Told>,
    events: Heard,
    doors: Doors,
    nodes: Vec<Told>,
}

impl World {
    async fn new(nodes: &[Observed]) -> Self {
        let nodes: Vec<Told> = nodes.iter().cloned().map(Told::new).collect();
        let (router, events, doors) = told_behind_doors(&nodes);
        let world = Self { router, events, doors, nodes };
        world.router.poll_once().await;
        assert_eq!(world.leader(), "n0");
        world
    }

    /// The node that was last said to have become the primary.
    fn leader(&self) -> String {
        let events = self.events.lock().unwrap();
        let name = |e: &SessionEvent| match e {
            SessionEvent::PrimaryChanged { node } => Some(node.clone()),
            _ => None,
        };
        events.iter().rev().find_map(name).unwrap()
    }

    fn shut(&self, node: usize) {
        self.doors.lock().unwrap()[node] = Door::Shut;
    }

    /// The leader cannot be reached any more; who it is a poll and `silence` later, and after the poll that follows.
    async fn after_silence(&self, silence: Duration) -> String {
        self.shut(0);
        self.router.poll_once().await;
        VirtualClock::new().sleep(silence).await;
        self.router.poll_once().await;
        self.leader()
    }
}

fn primary(timeline: &str, n: u64, history: Vec<TimelineSwitch>) -> Observed {
    Observed::new(mark(timeline, n), history).with_role(Role::Primary)
}

/// A primary of a store whose histories have names without an order.
fn named(timeline: &str, n: u64, history: Vec<TimelineSwitch>) -> Observed {
    let changes = history.len() as u64;
    let observed = Observed::new(mark_of(timeline, Position::Offset(n)), history);
    observed.with_role(Role::Primary).with_changes(changes)
}

/// The server `writer` of a store whose positions name writers, with what each has written.
fn writes(writer: u32, log: &[(u32, u64)]) -> Observed {
    let position = Position::MariaGtid(log.iter().map(|(server, n)| ((0, *server), *n)).collect());
    let mark = Mark { system: "db".into(), timeline: format!("s{writer}"), position };
    let observed = Observed::new(mark, vec![]).with_role(Role::Primary).with_writer(writer.to_string());
    observed.with_changes(log.len() as u64)
}

#[test]
fn p9_a_full_pool_of_one_caller_makes_no_old_primary_of_long_ago_the_present_one() {
    on_paused(async {
        let named_switch =
            TimelineSwitch { timeline: "aaaa".into(), position: Position::Offset(50), next: "bbbb".into() };
        let stores = [
            (primary("2", 60, vec![switch("1", 50, "2")]), primary("1", 90, vec![])),
            (named("bbbb", 60, vec![named_switch]), named("aaaa", 90, vec![])),
            (writes(2, &[(1, 50), (2, 60)]), writes(1, &[(1, 90)])),
        ];
        for (present, old) in stores {
            let w = World::new(&[present, old]).await;
            w.shut(0);
            for _ in 0..3 {
                let mut session = w.router.session();
                let read = session.read_at(&Consistency::Primary, async |_: &mut Told| Ok::<_, Error>(()));
                assert_eq!(kind(read.await), ErrorKind::Unavailable);
                let wrote = session.write(async |_: &mut Told| Ok::<_, Error>(()));
                assert_eq!(kind(wrote.await), ErrorKind::Unavailable);
                // However long it lasts.
                assert_eq!(w.after_silence(10 * TRUST).await, "n0");
                assert!(!w.router.status()[1].eligible, "nothing is read from a history that was left");
            }
            w.doors.lock().unwrap()[0] = Door::Open;
            let mut session = w.router.session();
            session.write(async |_: &mut Told| Ok::<_, Error>(())).await.unwrap();
            w.router.poll_once().await;
            assert_eq!(w.leader(), "n0");
        }
    });
}

#[test]
fn p42_a_fork_does_not_take_the_place_of_a_leader_that_is_silent() {
    on_paused(async {
        let leader = primary("2", 60, vec![switch("1", 50, "2")]);
        let w = World::new(&[leader, primary("2", 70, vec![switch("1", 55, "2")])]).await;
        assert_eq!(w.after_silence(10 * TRUST).await, "n0");
        let status = w.router.status();
        assert!(status[1].forked && !status[1].eligible, "{status:?}");
    });
}

#[test]
fn a_later_history_takes_the_place_at_once() {
    on_paused(async {
        for silent in [true, false] {
            let w = World::new(&[primary("1", 60, vec![]), Observed::new(mark("1", 55), vec![])]).await;
            if silent {
                w.shut(0);
            }
            w.nodes[1].say(primary("2", 56, vec![switch("1", 55, "2")]));
            w.router.poll_once().await;
            assert_eq!(w.leader(), "n1");
        }
    });
}

#[test]
fn where_no_history_is_proven_the_earlier_one_a_silent_leader_is_given_the_time_its_word_is_trusted() {
    on_paused(async {
        // The second is of a history that has nothing to do with the first, or a copy of the same one.
        for (leader, other) in [
            (named("aaaa", 60, vec![]), named("cccc", 5, vec![])),
            (primary("1", 60, vec![]), primary("1", 40, vec![])),
        ] {
            let w = World::new(&[leader.clone(), other.clone()]).await;
            assert_eq!(w.after_silence(TRUST / 2).await, "n0");
            // It was heard of in between.
            w.doors.lock().unwrap()[0] = Door::Open;
            w.router.poll_once().await;
            assert_eq!(w.after_silence(TRUST / 2).await, "n0");
            assert_eq!(w.after_silence(TRUST / 2).await, "n1");
            // Its own word that it is none is enough.
            let w = World::new(&[leader.clone(), other]).await;
            w.nodes[0].say(leader.with_role(Role::Replica));
            w.router.poll_once().await;
            assert_eq!(w.leader(), "n1");
        }
    });
}

#[test]
fn a_server_that_writes_for_the_first_time_was_promoted() {
    on_paused(async {
        // Two failovers, of which the second server never heard of the first.
        let leader = writes(2, &[(1, 50), (2, 60)]);
        let w = World::new(&[leader, writes(3, &[(1, 49)])]).await;
        assert_eq!(w.after_silence(Duration::ZERO).await, "n1");
    });
}

#[test]
fn a_leader_that_is_filled_anew_still_says_whose_history_counts() {
    on_paused(async {
        let named_switch =
            TimelineSwitch { timeline: "aaaa".into(), position: Position::Offset(50), next: "bbbb".into() };
        let leader = named("bbbb", 60, vec![named_switch.clone()]);
        let w = World::new(&[leader, named("aaaa", 90, vec![])]).await;
        // It is being filled from a third server that nobody heard of yet.
        w.nodes[0].say(Observed::new(mark_of("", Position::Offset(0)), vec![]));
        w.router.poll_once().await;
        assert_eq!(w.leader(), "n0");
        let read = w.router.session().read(async |_: &mut Told| Ok::<_, Error>(())).await;
        assert_eq!(kind(read), ErrorKind::Unavailable);
        // It follows the old one: what it was primary of is given up.
        w.nodes[0].say(named("aaaa", 90, vec![]).with_role(Role::Replica));
        w.router.poll_once().await;
        assert_eq!(w.leader(), "n1");
    });
}

#[test]
fn p6_a_server_of_another_system_is_not_taken_for_the_primary_whatever_its_number() {
    on_paused(async {
        let mut foreign = primary("9", 90, vec![]);
        foreign.mark.system = "another".into();
        let w = World::new(&[primary("1", 60, vec![]), foreign]).await;
        let mut session = w.router.session();
        let wrote =
            session.write(async |node: &mut Told| Ok::<_, Error>(node.0.lock().unwrap().mark.system.clone()));
        assert_eq!(wrote.await.unwrap(), "db");
        assert!(!w.router.status()[1].eligible);
        assert_eq!(w.after_silence(10 * TRUST).await, "n0");
    });
}

#[test]
fn a_bound_in_time_goes_by_what_the_primary_had_and_not_by_what_it_has_since_it_stepped_down() {
    on_paused(async {
        let bounded = Consistency::Bounded(TRUST);
        let w = World::new(&[primary("1", 100, vec![]), Observed::new(mark("1", 50), vec![])]).await;
        let session = w.router.session();
        assert_eq!(session.plan(&bounded), Plan::Primary(Why::Behind));
        // It was filled from a copy of an hour ago, and follows a primary that nobody has heard of.
        w.nodes[0].say(Observed::new(mark("1", 40), vec![]).with_incarnation(1));
        w.router.poll_once().await;
        assert_eq!(session.plan(&bounded), Plan::Primary(Why::Behind));
    });
}

#[test]
fn a_bound_in_time_does_not_go_by_a_primary_that_was_left_at_that_time() {
    on_paused(async {
        let replica = |n| Observed::new(mark("1", n), vec![]);
        let w = World::new(&[primary("1", 55, vec![]), replica(55), replica(55)]).await;
        VirtualClock::new().sleep(TRUST).await;
        // A failover, long ago by now: the old primary answers, and the replica that follows the new one is far behind.
        let past = || vec![switch("1", 55, "2")];
        w.nodes[1].say(primary("2", 500, past()));
        w.nodes[2].say(Observed::new(mark("2", 60), past()));
        w.router.poll_once().await;
        assert_eq!(w.leader(), "n1");
        let session = w.router.session();
        for _ in 0..3 {
            assert_eq!(session.plan(&Consistency::Bounded(TRUST / 2)), Plan::Primary(Why::Behind));
        }
        w.nodes[2].say(Observed::new(mark("2", 500), past()));
        w.router.poll_once().await;
        assert_eq!(session.plan(&Consistency::Bounded(TRUST / 2)), Plan::Replica("n2"));
    });
}

#[test]
fn p9_an_old_primary_is_not_read_from_as_if_it_were_a_replica() {
    on_paused(async {
        // It has nothing yet that the present one has not, and takes writes.
        let w = World::new(&[primary("2", 60, vec![switch("1", 50, "2")]), primary("1", 45, vec![])]).await;
        assert!(!w.router.status()[1].eligible);
        let session = w.router.session();
        for how in [Consistency::MinLatency, Consistency::Session(Guarantees::ALL)] {
            assert_eq!(session.plan(&how), Plan::Primary(Why::NoReplica));
        }
    });
}
