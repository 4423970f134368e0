//! What a server says about itself, and how positions are judged by it: plain decisions, without I/O.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_store::replicated::{Judgment, Mark, Observed, Position, Role};

use crate::gtid::{self, State};

/// What a MariaDB says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MariaDb {
    /// All that is in its log: the last sequence per domain and server.
    pub(crate) state: State,
    /// What it has applied as a replica: per domain.
    pub(crate) applied: BTreeMap<u32, u64>,
    /// The last writer in its own domain, as its log has it.
    pub(crate) writer: Option<u32>,
    pub(crate) server: u32,
    pub(crate) role: Role,
    /// When it was started.
    pub(crate) life: u64,
}

impl MariaDb {
    /// Reads the texts of `@@gtid_binlog_state`, `@@gtid_slave_pos` and `@@gtid_binlog_pos`.
    pub(crate) fn read(
        (state, applied, last): (&str, &str, &str),
        (server, domain): (u32, u32),
        (role, life): (Role, u64),
    ) -> Option<Self> {
        let applied = gtid::mariadb(applied)?;
        let writer = gtid::mariadb(last)?.into_keys().find(|(d, _)| *d == domain).map(|(_, s)| s);
        let applied = applied.into_iter().map(|((domain, _), n)| (domain, n)).collect();
        Some(Self { state: gtid::mariadb(state)?, applied, writer, server, role, life })
    }

    /// What others wrote that is in the log and not applied yet: the log comes first, and readers see it a moment
    /// later. Nothing on a primary, whose readers are told of a commit when it is visible.
    pub(crate) fn unapplied(&self) -> State {
        let open = |(&(domain, server), &n): (&(u32, u32), &u64)| {
            self.role == Role::Replica
                && server != self.server
                && self.applied.get(&domain).is_none_or(|at| *at < n)
        };
        self.state.iter().filter(|entry| open(*entry)).map(|(key, n)| (*key, *n)).collect()
    }

    /// What sessions are to know. The history is that of its last writer: whoever is promoted begins another.
    pub(crate) fn observed(&self, system: &str) -> Observed {
        let writer = match self.role {
            Role::Primary => self.server,
            Role::Replica => self.writer.unwrap_or(self.server),
        };
        let position = Position::MariaGtid(self.state.clone());
        let mark = Mark { system: system.to_owned(), timeline: timeline(writer), position };
        let writers: BTreeSet<u32> = self.state.keys().map(|(_, server)| *server).collect();
        Observed::new(mark, Vec::new())
            .with_role(self.role)
            .with_incarnation(self.life)
            .with_writer(self.server.to_string())
            .with_changes(writers.len() as u64)
            .with_rule(judge_mariadb)
    }

    /// Where the last commit of a connection is, from `@@last_gtid`. Nothing was logged: the empty position, which is
    /// in every state, so that what is wanted stays what it was.
    pub(crate) fn committed(system: &str, server: u32, last: &str) -> Option<Mark> {
        let position = Position::MariaGtid(gtid::mariadb(last)?);
        Some(Mark { system: system.to_owned(), timeline: timeline(server), position })
    }
}

/// A name and no number: server ids have no order in time.
fn timeline(server: u32) -> String {
    format!("s{server}")
}

/// The rule of MariaDB: a transaction is contained if its server's entry in the log's state has its sequence. The
/// sequence of the domain alone would count a fork's transactions as ours.
///
/// On a primary, entries of other servers are final: it will apply no more of them. So one that lacks is `Lost`, also
/// where the primary's own sequence has long passed it.
pub(crate) fn judge_mariadb(wanted: &Mark, observed: &Observed) -> Judgment {
    let (Position::MariaGtid(have), Position::MariaGtid(want)) = (&observed.mark.position, &wanted.position)
    else {
        return Judgment::Foreign;
    };
    if wanted.system != observed.mark.system {
        return Judgment::Foreign;
    }
    let lacks = |key: &(u32, u32), n: &u64| have.get(key).is_none_or(|held| held < n);
    let missing = want.iter().filter(|(key, n)| lacks(key, n)).map(|((_, server), _)| server.to_string());
    lacking(missing, observed)
}

/// What lacks on a replica may come; on a primary only what it writes itself may be younger than the observation.
fn lacking(mut writers: impl Iterator<Item = String>, observed: &Observed) -> Judgment {
    let Some(first) = writers.next() else { return Judgment::Satisfied };
    let own = |writer: &String| observed.writer.as_ref() == Some(writer);
    if observed.role == Role::Primary && !(own(&first) && writers.all(|w| own(&w))) {
        return Judgment::Lost;
    }
    Judgment::Behind
}

/// What a MySQL says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MySql {
    pub(crate) executed: BTreeMap<String, gtid::Executed>,
    /// The UUID of the server.
    pub(crate) server: String,
    /// The UUID of the server that it follows; its own on a primary.
    pub(crate) source: String,
    pub(crate) role: Role,
    pub(crate) life: u64,
}

impl MySql {
    fn mark(&self, system: &str, set: BTreeMap<String, u64>) -> Mark {
        // Enough of a UUID to tell the primaries of one store apart, and a letter, because the rest may be a number.
        let timeline = format!("g{}", self.source.get(..8).unwrap_or(&self.source));
        Mark { system: system.to_owned(), timeline, position: Position::Gtid(set) }
    }

    /// What sessions are to know: per server the transactions without a gap. Of its own, a primary has whatever it ever
    /// told of, as [`committed`](Self::committed) counts it: a gap there holds nothing that was ever confirmed, or what
    /// a restore put there.
    pub(crate) fn observed(&self, system: &str) -> Observed {
        let own = |key: &str| self.role == Role::Primary && uuid(key) == self.server;
        let end = |key: &str, e: &gtid::Executed| if own(key) { e.last } else { e.without_gap };
        let set: BTreeMap<String, u64> =
            self.executed.iter().map(|(key, e)| (key.clone(), end(key, e))).collect();
        let writers: BTreeSet<&str> = set.keys().map(|key| uuid(key)).collect();
        let changes = writers.len() as u64;
        Observed::new(self.mark(system, set), Vec::new())
            .with_role(self.role)
            .with_incarnation(self.life)
            .with_writer(self.server.clone())
            .with_changes(changes)
            .with_rule(judge_mysql)
    }

    /// A position at or past whatever this server has committed by itself.
    pub(crate) fn committed(&self, system: &str) -> Mark {
        let own = self.executed.iter().filter(|(key, _)| uuid(key) == self.server);
        self.mark(system, own.map(|(key, e)| (key.clone(), e.last)).collect())
    }
}

/// A key without its tag.
fn uuid(key: &str) -> &str {
    key.split(':').next().unwrap_or(key)
}

/// The rule of MySQL: containment of sets, which no fork can fool, because the server's UUID is in every id.
pub(crate) fn judge_mysql(wanted: &Mark, observed: &Observed) -> Judgment {
    let (Position::Gtid(have), Position::Gtid(want)) = (&observed.mark.position, &wanted.position) else {
        return Judgment::Foreign;
    };
    if wanted.system != observed.mark.system {
        return Judgment::Foreign;
    }
    let lacks = |server: &String, n: &u64| have.get(server).is_none_or(|held| held < n);
    let missing = want.iter().filter(|(server, n)| lacks(server, n)).map(|(key, _)| uuid(key).to_owned());
    lacking(missing, observed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mariadb(role: Role, server: u32, (state, applied, last): (&str, &str, &str)) -> MariaDb {
        MariaDb::read((state, applied, last), (server, 0), (role, 9)).unwrap()
    }

    fn wanted(gtids: &str) -> Mark {
        let position = Position::MariaGtid(gtid::mariadb(gtids).unwrap());
        Mark { system: "orders".into(), timeline: "s1".into(), position }
    }

    #[test]
    fn p22_p36_a_fork_is_told_by_the_server_and_not_by_the_sequence() {
        // Server 1 wrote 4007, which server 2 had not when it was promoted; it has gone on to 4056.
        let (state, applied) = ("0-1-4006,0-2-4056", "0-1-4006");
        let primary = mariadb(Role::Primary, 2, (state, applied, "0-2-4056")).observed("orders");
        let replica = mariadb(Role::Replica, 3, (state, "0-2-4056", "0-2-4056")).observed("orders");
        for (gtids, on_primary, on_replica) in [
            ("0-1-4006", Judgment::Satisfied, Judgment::Satisfied),
            ("0-1-4007", Judgment::Lost, Judgment::Behind),
            ("0-2-4056", Judgment::Satisfied, Judgment::Satisfied),
            // Its own next one may be younger than the observation.
            ("0-2-4057", Judgment::Behind, Judgment::Behind),
            ("0-2-4057,0-1-4007", Judgment::Lost, Judgment::Behind),
            ("0-3-1", Judgment::Lost, Judgment::Behind),
            ("7-1-1", Judgment::Lost, Judgment::Behind),
            ("", Judgment::Satisfied, Judgment::Satisfied),
        ] {
            assert_eq!(primary.judge(&wanted(gtids)), on_primary, "{gtids} on the primary");
            assert_eq!(replica.judge(&wanted(gtids)), on_replica, "{gtids} on the replica");
        }
        assert_eq!((primary.mark.timeline.as_str(), replica.mark.timeline.as_str()), ("s2", "s2"));
        assert_eq!(primary.changes, 2);
        let other = Mark { system: "invoices".into(), ..wanted("0-1-1") };
        assert_eq!(primary.judge(&other), Judgment::Foreign);
        let kind = Mark { position: Position::Offset(1), ..wanted("") };
        assert_eq!(primary.judge(&kind), Judgment::Foreign);
    }

    #[test]
    fn p40_what_is_logged_and_not_applied_is_open() {
        let open = |role, server, state: &str, applied: &str| {
            gtid::mariadb_text(&mariadb(role, server, (state, applied, state)).unapplied())
        };
        assert_eq!(open(Role::Replica, 2, "0-1-7", "0-1-7"), "");
        assert_eq!(open(Role::Replica, 2, "0-1-8", "0-1-7"), "0-1-8");
        assert_eq!(open(Role::Replica, 2, "0-1-8", ""), "0-1-8");
        assert_eq!(
            open(Role::Replica, 2, "0-1-7,0-2-9", "0-1-7"),
            "",
            "its own are visible when they are told"
        );
        assert_eq!(open(Role::Replica, 2, "0-1-7,5-1-3", "0-1-7"), "5-1-3");
        assert_eq!(open(Role::Primary, 2, "0-1-8", "0-1-7"), "");
    }

    const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
    const B: &str = "2174b383-5441-11e8-b90a-c80aa9429562";

    fn mysql(role: Role, server: &str, executed: &str) -> MySql {
        let (server, source) = (server.to_owned(), server.to_owned());
        MySql { executed: gtid::mysql(executed).unwrap(), server, source, role, life: 9 }
    }

    /// `GTID_SUBSET` of the reference manual: what it denies is never `Satisfied`.
    #[test]
    fn sets_of_mysql_are_contained_by_uuid() {
        let mark = |server: &str, end| {
            let position = Position::Gtid(BTreeMap::from([(server.to_owned(), end)]));
            Mark { system: "orders".into(), timeline: "g".into(), position }
        };
        let judge =
            |role, executed: &str, wanted: &Mark| mysql(role, B, executed).observed("orders").judge(wanted);
        assert_eq!(judge(Role::Replica, &format!("{A}:1-57"), &mark(A, 23)), Judgment::Satisfied);
        assert_eq!(judge(Role::Replica, &format!("{A}:1-22"), &mark(A, 23)), Judgment::Behind);
        assert_eq!(judge(Role::Replica, &format!("{A}:1-22:24-57"), &mark(A, 23)), Judgment::Behind);
        assert_eq!(judge(Role::Replica, &format!("{A}:23-57"), &mark(A, 20)), Judgment::Behind);
        // A promoted server has its own; what it lacks of the old one it will never get.
        let forked = format!("{A}:1-22,{B}:1-90");
        assert_eq!(judge(Role::Primary, &forked, &mark(A, 22)), Judgment::Satisfied);
        assert_eq!(judge(Role::Primary, &forked, &mark(A, 23)), Judgment::Lost);
        assert_eq!(judge(Role::Primary, &forked, &mark(B, 91)), Judgment::Behind);
        assert_eq!(judge(Role::Primary, &forked, &mark("other", 1)), Judgment::Lost);
    }

    #[test]
    fn sl6_a_primary_has_its_own_commits_behind_a_gap_of_its_own() {
        // Another commit is still to come, or a restore left a hole.
        for executed in [format!("{A}:1-22:24"), format!("{A}:5-24"), format!("{A}:1-3,{A}:tag:2-4")] {
            let here = mysql(Role::Primary, A, &executed);
            let commit = here.committed("orders");
            assert_eq!(here.observed("orders").judge(&commit), Judgment::Satisfied, "{executed}");
            // Elsewhere a gap may be in the middle of being applied.
            let replica = mysql(Role::Replica, B, &executed).observed("orders");
            let demoted = mysql(Role::Replica, A, &executed).observed("orders");
            assert_eq!(replica.judge(&commit), Judgment::Behind, "{executed}");
            assert_eq!(demoted.judge(&commit), Judgment::Behind, "{executed}");
        }
        // Of another server it has what is without a gap.
        let other = mysql(Role::Primary, A, &format!("{A}:1-9,{B}:1-22:24")).observed("orders");
        let wanted = Position::Gtid(BTreeMap::from([(B.to_owned(), 24)]));
        let wanted = Mark { system: "orders".into(), timeline: "g".into(), position: wanted };
        assert_eq!(other.judge(&wanted), Judgment::Lost);
    }

    #[test]
    fn a_commit_of_mysql_is_at_or_past_the_last_of_its_server() {
        let executed = format!("{A}:1-22:24,{B}:1-90,{A}:tag:1-4");
        let mark = mysql(Role::Primary, A, &executed).committed("orders");
        let expected = BTreeMap::from([(A.to_owned(), 24), (format!("{A}:tag"), 4)]);
        assert_eq!(mark.position, Position::Gtid(expected), "past a gap that another commit still fills");
        assert_eq!(mark.timeline, "g3e11fa47");
    }
}
