//! The rules by which positions are judged.

use super::{Judgment, Mark, Observed, Position, Role};

/// Judges whether what was `observed` contains what `wanted` marks. The rule of every observation that brings no other.
///
/// - In the node's own history: `Satisfied` at or past the position, else `Behind`.
/// - In an earlier one: `Lost` when some switch since left it behind, else as above.
/// - In one that the node does not know, where histories are numbered (PostgreSQL): a higher number is `Behind`, since
///   the node is an old primary or has not followed yet; a lower one is `Lost`, a fork that was left behind, unless the
///   node's own past could not be read, which proves nothing: `Behind`.
/// - Where they have names without an order (Redis): `Lost` on a primary, `Behind` on a replica, which may be the
///   older one.
/// - A commit that nobody waited for: `Satisfied` only on the primary in the same life that made it.
///
/// A primary's observation is as old as it is: what it has written since is `Behind`. Only one that was asked for after
/// the position was known can prove that a position past its end was lost.
///
/// ```
/// use mainstay_store::replicated::{Judgment, Mark, Observed, Position, TimelineSwitch, judge};
///
/// let mark = |timeline: &str, n| Mark { system: "db".into(), timeline: timeline.into(), position: Position::Lsn(n) };
/// let switch = TimelineSwitch { timeline: "1".into(), position: Position::Lsn(10), next: "3".into() };
/// let now = Observed::new(mark("3", 15), vec![switch]);
/// assert_eq!(judge(&mark("1", 10), &now), Judgment::Satisfied);
/// assert_eq!(judge(&mark("1", 11), &now), Judgment::Lost);
/// assert_eq!(judge(&mark("2", 10), &now), Judgment::Lost, "a sibling that was left");
/// assert_eq!(judge(&mark("3", 16), &now), Judgment::Behind);
/// assert_eq!(judge(&mark("4", 10), &now), Judgment::Behind, "not followed yet");
/// ```
#[must_use]
pub fn judge(wanted: &Mark, observed: &Observed) -> Judgment {
    let here = &observed.mark;
    let Some(distance) = here.position.distance(&wanted.position) else { return Judgment::Foreign };
    if wanted.system != here.system {
        return Judgment::Foreign;
    }
    if wanted.timeline == here.timeline {
        return match wanted.position {
            Position::LsnUnsynced { start, .. } => unsynced(start, observed),
            _ if distance == 0 => Judgment::Satisfied,
            _ => Judgment::Behind,
        };
    }
    let mut later = observed.history.iter().skip_while(|s| s.timeline != wanted.timeline).peekable();
    let Some(left) = later.peek().map(|s| &s.position) else { return unrelated(wanted, observed) };
    // Every switch since must have kept it: a later failover may cut deeper than the first one.
    for switch in later {
        match switch.position.keeps(&wanted.position) {
            None => return Judgment::Foreign,
            Some(true) => {}
            Some(false) => return Judgment::Lost,
        }
    }
    if let Position::LsnUnsynced { start, .. } = wanted.position {
        return unsynced(start, observed);
    }
    // Kept by the history, but this node may not have got so far. Where the wanted history was left, all is there that
    // anybody can have seen of it.
    if distance == 0 || here.position.covers(left) == Some(true) {
        Judgment::Satisfied
    } else {
        Judgment::Behind
    }
}

/// A commit that a crash may have replaced by others at the same place: only the life that made it has it for certain.
fn unsynced(start: u64, observed: &Observed) -> Judgment {
    match observed.role {
        Role::Primary if observed.incarnation == start => Judgment::Satisfied,
        Role::Primary => Judgment::Lost,
        Role::Replica => Judgment::Behind,
    }
}

/// A history that the node does not name among its own.
fn unrelated(wanted: &Mark, observed: &Observed) -> Judgment {
    let lost = match (wanted.timeline.parse::<u64>(), observed.mark.timeline.parse::<u64>()) {
        (Ok(wanted), Ok(here)) => wanted < here && !observed.history.is_empty(),
        _ => observed.role == Role::Primary,
    };
    if lost { Judgment::Lost } else { Judgment::Behind }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Judgment, Mark, Observed, Position, Role, TimelineSwitch};
    use Judgment::{Behind, Foreign, Lost, Satisfied};
    use Position::{Lsn, LsnRead, LsnUnsynced, Offset};

    fn mark(timeline: &str, position: Position) -> Mark {
        Mark { system: "db".into(), timeline: timeline.into(), position }
    }

    /// A node on `timeline` at `position`; its past as `(timeline, left at)`.
    fn node(role: Role, timeline: &str, position: Position, past: &[(&str, Position)]) -> Observed {
        let next = |i: usize| past.get(i + 1).map_or(timeline, |(name, _)| name).to_owned();
        let switch = |(i, (name, at)): (usize, &(&str, Position))| TimelineSwitch {
            timeline: (*name).to_owned(),
            position: at.clone(),
            next: next(i),
        };
        let history = past.iter().enumerate().map(switch).collect();
        Observed::new(mark(timeline, position), history).with_role(role).with_incarnation(7)
    }

    #[track_caller]
    fn check(wanted: (&str, Position), observed: &Observed, expected: Judgment) {
        assert_eq!(observed.judge(&mark(wanted.0, wanted.1)), expected);
    }

    #[test]
    fn numbered_histories() {
        let past = [("1", Lsn(50)), ("3", Lsn(80))];
        let replica = node(Role::Replica, "4", Lsn(100), &past);
        for (wanted, expected) in [
            (("4", Lsn(100)), Satisfied),
            (("4", Lsn(101)), Behind),
            (("3", Lsn(80)), Satisfied),
            (("3", Lsn(81)), Lost),
            (("1", Lsn(50)), Satisfied),
            (("1", Lsn(51)), Lost),
            (("2", Lsn(1)), Lost),
            (("5", Lsn(1)), Behind),
            (("4", Offset(1)), Foreign),
        ] {
            check(wanted, &replica, expected);
        }
        // A later switch that cuts deeper than an earlier one.
        let deeper = node(Role::Primary, "3", Lsn(90), &[("1", Lsn(50)), ("2", Lsn(40))]);
        check(("1", Lsn(45)), &deeper, Lost);
        // On its way to the switch.
        let slow = node(Role::Replica, "2", Lsn(30), &[("1", Lsn(50))]);
        check(("1", Lsn(40)), &slow, Behind);
        check(("1", Lsn(30)), &slow, Satisfied);
    }

    #[test]
    fn a_past_that_cannot_be_read_proves_nothing() {
        for role in [Role::Primary, Role::Replica] {
            check(("1", Lsn(1)), &node(role, "2", Lsn(100), &[]), Behind);
        }
        check(("2", Lsn(100)), &node(Role::Primary, "1", Lsn(100), &[]), Behind);
    }

    #[test]
    fn what_a_read_saw_ahead_is_waited_for_and_not_lost() {
        let seen = |lsn, ahead| ("1", LsnRead { lsn, ahead });
        let replica = node(Role::Replica, "1", Lsn(100), &[]);
        check(seen(90, 10), &replica, Satisfied);
        check(seen(90, 11), &replica, Behind);
        // What the node itself has only received counts for nothing.
        check(seen(90, 11), &node(Role::Replica, "1", LsnRead { lsn: 100, ahead: 50 }, &[]), Behind);
        let after = node(Role::Primary, "2", Lsn(104), &[("1", Lsn(100))]);
        check(seen(90, 20), &after, Satisfied);
        check(seen(101, 0), &after, Lost);
        check(seen(90, 20), &node(Role::Replica, "2", Lsn(95), &[("1", Lsn(100))]), Behind);
    }

    #[test]
    fn p39_a_commit_that_nobody_waited_for_ends_with_the_life_that_made_it() {
        let wanted = |start| ("1", LsnUnsynced { lsn: 90, start });
        check(wanted(7), &node(Role::Primary, "1", Lsn(80), &[]), Satisfied);
        check(wanted(6), &node(Role::Primary, "1", Lsn(200), &[]), Lost);
        check(wanted(7), &node(Role::Replica, "1", Lsn(200), &[]), Behind);
        check(wanted(6), &node(Role::Primary, "2", Lsn(200), &[("1", Lsn(95))]), Lost);
        check(wanted(6), &node(Role::Replica, "2", Lsn(200), &[("1", Lsn(85))]), Lost);
        check(wanted(6), &node(Role::Replica, "2", Lsn(200), &[("1", Lsn(95))]), Behind);
    }

    #[test]
    fn p19_named_histories() {
        let past = [("aaaa", Offset(50))];
        let (primary, replica) =
            (node(Role::Primary, "bbbb", Offset(60), &past), node(Role::Replica, "bbbb", Offset(55), &past));
        for observed in [&primary, &replica] {
            check(("aaaa", Offset(50)), observed, Satisfied);
            check(("aaaa", Offset(51)), observed, Lost);
        }
        check(("bbbb", Offset(60)), &primary, Satisfied);
        check(("bbbb", Offset(60)), &replica, Behind);
        check(("cccc", Offset(1)), &primary, Lost);
        check(("cccc", Offset(1)), &replica, Behind);
    }

    #[test]
    fn p22_p36_sets_are_contained_by_server_not_by_sum() {
        let set = |of: &[(u32, u64)]| Position::MariaGtid(of.iter().map(|(s, n)| ((0, *s), *n)).collect());
        let primary = node(Role::Primary, "", set(&[(1, 4_006), (2, 4_056)]), &[]);
        check(("", set(&[(1, 4_006)])), &primary, Satisfied);
        check(("", set(&[(1, 4_007)])), &primary, Behind);
        check(("", set(&[(3, 1)])), &primary, Behind);
        let gtids = |end| Position::Gtid(BTreeMap::from([("a".to_owned(), end)]));
        check(("", gtids(1)), &primary, Foreign);
        check(("", gtids(7)), &node(Role::Replica, "", gtids(6), &[]), Behind);
    }
}
